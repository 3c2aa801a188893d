"""The trackers to choose from. Imports nothing slow: the command line reads it before anything is run."""

from enum import StrEnum
from typing import Final


class Tracker(StrEnum):
    """Whose networks find the faces and their points."""

    UNMASK = "unmask"
    MEDIAPIPE = "mediapipe"


DEFAULT_TRACKER: Final = Tracker.UNMASK
