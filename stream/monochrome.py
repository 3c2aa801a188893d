"""Pictures in black and white, or in one tint: what is painted into them gets no colours of its own."""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.stream.frame import U8

F32 = npt.NDArray[np.float32]

_STEP: Final = 4
"""Every so many rows and columns are looked at."""
_FEWEST: Final = 200
"""Fewer pixels than that say nothing about a picture."""
_RED, _GREEN, _BLUE = 0.299, 0.587, 0.114
"""Brightness (ITU-R BT.601)."""
_LEFT: Final = (1.5, 3.0)
"""Red and blue less brightness, root mean square of what a straight line by brightness leaves of them (of 255): a
picture of one tint, and one of colours. Of 1,500 portraits those in colour leave 3.8 and more, 99 in a hundred 5.7 and
more; tinted photographs 2.2 to 3.6."""


def tint(rgb: U8, known: U8, painted: U8) -> None:
    """Give what is painted the tint of a picture that has no colours, in place; leave it where the picture has some.

    Args:
        rgb: (S, S, 3) uint8, a canonical crop.
        known: (S, S) uint8, above 0 where that says something: not where a mask is.
        painted: (S, S, 3) uint8, what a network painted.
    """
    seen = rgb[::_STEP, ::_STEP][known[::_STEP, ::_STEP] > 0].astype(np.float32)
    if len(seen) < _FEWEST:
        return
    bright = _brightness(seen)
    by = np.column_stack([bright, np.ones_like(bright)])
    colour = seen[:, [0, 2]] - bright[:, None]
    line = np.linalg.lstsq(by, colour, rcond=None)[0]
    left = float(np.sqrt(np.square(colour - by @ line).mean()))
    share = float(np.clip((_LEFT[1] - left) / (_LEFT[1] - _LEFT[0]), 0.0, 1.0))
    if share == 0.0:
        return
    now = painted.astype(np.float32)
    bright = _brightness(now)
    red, blue = (bright * (1 + slope) + offset for slope, offset in line.T)
    green = (bright - _RED * red - _BLUE * blue) / _GREEN
    painted[:] = cv2.convertScaleAbs(cv2.addWeighted(now, 1 - share, np.dstack([red, green, blue]), share, 0).clip(0))


def _brightness(rgb: F32) -> F32:
    """(...) float32 of (..., 3)."""
    return rgb @ np.array([_RED, _GREEN, _BLUE], np.float32)
