"""The trackers to choose from. Imports nothing slow: the command line reads it before anything is run."""

from enum import StrEnum
from typing import Final


class Tracker(StrEnum):
    """Whose networks find the faces and their points. With both, this project's landmarker gives the points."""

    UNMASK = "unmask"
    MEDIAPIPE = "mediapipe"
    BOTH = "both"


DEFAULT_TRACKER: Final = Tracker.MEDIAPIPE
