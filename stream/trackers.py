"""The trackers to choose from. Imports nothing slow: the command line reads it before anything is run."""

from enum import StrEnum
from typing import Final


class Tracker(StrEnum):
    """Whose detector finds the faces; the points are those of MediaPipe's mesh in any case."""

    UNMASK = "unmask"
    MEDIAPIPE = "mediapipe"
    BOTH = "both"


DEFAULT_TRACKER: Final = Tracker.MEDIAPIPE
