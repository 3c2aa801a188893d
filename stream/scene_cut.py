"""Noticing that the picture has changed to another scene."""

from typing import Final

import cv2
import numpy as np

from unmask.stream.canvas import Canvas
from unmask.stream.frame import F32, U8, Frame

_SMALL_PX: Final = 64
_MIN_DIFFERENCE: Final = 0.12
_MIN_HISTOGRAM_DISTANCE: Final = 0.35
_BINS: Final = 8


class SceneCuts:
    """Compares each frame with the one before: pixel by pixel, and by its colours.

    A cut changes both. A pan changes pixels but keeps colours; a flash or a fade keeps what stands where.

    Args:
        canvas: reads the frames.
    """

    def __init__(self, canvas: Canvas) -> None:
        self._canvas = canvas
        self._before: tuple[U8, F32] | None = None

    def __call__(self, frame: Frame) -> bool:
        """True where the frame begins another scene than the frame given before."""
        small, _ = self._canvas.downscaled_rgb(frame, _SMALL_PX)
        histogram = _histogram(small)
        before, self._before = self._before, (small, histogram)
        if before is None:
            return False
        difference = float(cv2.absdiff(small, before[0]).mean()) / 255
        distance = cv2.compareHist(histogram, before[1], cv2.HISTCMP_BHATTACHARYYA)
        return difference > _MIN_DIFFERENCE and distance > _MIN_HISTOGRAM_DISTANCE


def _histogram(rgb: U8) -> F32:
    bins = [_BINS] * 3
    return np.asarray(cv2.calcHist([rgb], [0, 1, 2], None, bins, [0, 256] * 3), np.float32)
