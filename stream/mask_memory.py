"""What was found in the crop of a face in the frame before, and how much of it holds in the next."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.stream.canvas import compose, inverse_affine
from unmask.stream.frame import F64, U8, Face

F32 = npt.NDArray[np.float32]

_STEADY: Final = 0.5
"""Weight of the frame before in the probability of a mask that keeps still in the crop."""
_AGREES: Final = (0.85, 0.95)
"""Overlap (soft IoU) of two frames' probabilities: from the second on a mask keeps still; up to the first it moves, and
the frame before says nothing. Worn masks have 0.95 to 0.99; while one is put on, or a hand moves before it, 0.55 to
0.92."""
_FADES: Final = 0.8
"""Where so little of the frame before is left, the mask has not moved, but the network doubts."""
_GONE: Final = 0.3
"""Of a mask: with less it has gone."""
_SURE: Final = 127.5
_BEYOND_DOUBT: Final = 242.0
_FAINT: Final = 25.0
"""Of 255."""
_BROAD: Final = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (11, 11))
"""What is narrower may be an ear loop."""
_REACH: Final = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (33, 33))
"""How far a mask may move, or be found to reach, from one frame to the next."""


@dataclass(slots=True)
class Memory:
    """What was found in the crop of a face in the frame before; names are those of `Face` and its pictures.

    Attributes:
        probability: (S, S) float32 0..255, that each pixel is mask; None where the crop has been placed anew since.
        mask, hidden, mask_score, masked: what was written.
        crop_from_frame: where the crop lay.
        since: frames since a mask was worn.
        held: frames for which a mask was kept that was not found.
    """

    probability: F32 | None
    mask: U8
    hidden: U8
    mask_score: float
    masked: bool
    crop_from_frame: F64
    since: int
    held: int


def steadied(now: F32, before: F32) -> F32:
    """The probability of a frame, and that of the frame before as far as the mask keeps still in the crop."""
    weight = _weight_of_before(now, before)
    return np.asarray(cv2.addWeighted(now, 1 - weight, before, weight, 0), np.float32)


def near_before(now: F32, before: F32) -> F32:
    """The probability of a frame without what is broad, far from the mask of the frame before, and not beyond doubt:
    from the side, walls, cars and collars in the colour of a mask are taken for parts of it, for a frame or two."""
    near = cv2.dilate(cv2.compare(before, _SURE, cv2.CMP_GT), _REACH)
    away = cv2.inRange(now, _FAINT, _BEYOND_DOUBT) & ~near
    broad = cv2.dilate(cv2.morphologyEx(away, cv2.MORPH_OPEN, _BROAD), _BROAD) & ~near
    return np.asarray(np.where((broad > 0) & (now < _BEYOND_DOUBT), 0, now), np.float32)


def has_gone(now: F32, before: F32) -> bool:
    """Whether next to nothing is left of a mask."""
    return bool(cv2.sumElems(now)[0] < _GONE * cv2.sumElems(before)[0])


def carried(probability: F32, crop_from_frame: F64, face: Face) -> F32:
    """What was found in a crop of the frame before, in the crop as it lies now: heads move less than crops may jump."""
    moved = compose(face.crop_from_frame, inverse_affine(crop_from_frame))
    return np.asarray(cv2.warpAffine(probability, moved, probability.shape), np.float32)


def _weight_of_before(now: F32, before: F32) -> float:
    """How much the probability of the frame before counts, 0..1."""
    seen, seen_before = cv2.sumElems(now)[0], cv2.sumElems(before)[0]
    if seen < _FADES * seen_before:
        return _STEADY
    both = cv2.sumElems(cv2.min(now, before))[0]
    low, high = _AGREES
    return _STEADY * float(np.clip((both / max(seen + seen_before - both, 1e-6) - low) / (high - low), 0, 1))
