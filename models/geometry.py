"""The canonical face crop: the one frame of reference that every network sees, in training and in the pipeline."""

from typing import Final

CROP_SIZE: Final = 256
"""Width and height of the canonical crop in px."""
