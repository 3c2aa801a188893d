"""Rims of glasses that lie on a mask: dark lines in front of it, which stay as they are filmed.

The segmenter takes them for mask where they are thin, and glasses would lose their lower half. They are told by their
shape: what crosses the bridge of the nose as a dark, narrow thing, and goes on over the mask.
"""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, EYE_DISTANCE_PX
from unmask.models.outline import disc
from unmask.stream.frame import U8

F32 = npt.NDArray[np.float32]

_WIDEST_PX: Final = 12
"""A frame of thick plastic, in a canonical crop."""
_DARK: Final = 0.68
"""How bright a rim is at most, of what lies beside it: folds of a mask are hardly ever as dark."""
_FAINT: Final = 0.82
"""The same for what goes on from a rim, as where it is blurred."""
_FOLD: Final = 0.25
_RIM: Final = 0.85
"""Of a rim's darkness, how dark a fold of the mask is that runs into it, and what is nothing but rim."""
_MORE: Final = 4.0
"""How many times as many pixels that may be; more is a print."""
_LEAST: Final = 70.0
"""Of 255: how bright that must be; a rim on something dark cannot be seen."""
_ABOVE: Final = 25
_BELOW: Final = round(0.62 * EYE_DISTANCE_PX)
"""Rows from so far above the eyes to so far below them: there glasses are worn."""
_EYES: Final = (33, 133, 263, 362)
_BETWEEN_EYES: Final = 168
_BRIDGE: Final = 6
_BRIDGE_PX: Final = 22
"""Width of the way down the nose that glasses cross."""
_CROSSES: Final = 8
_ON_MASK: Final = 12
"""Pixels of a rim: on that way at least, and on the mask at least."""
_LOWER_HALF: Final = 0.95
"""How many pixels of it lie on the mask at most, of those on the bare face: a dark hem of a mask lies on it mostly."""
_DEEP_PX: Final = 6.0
_SHALLOW_PX: Final = 3.0
_BESIDE_NOSE: Final = 60
"""How far into the mask a rim reaches at least, as the shadow along the mask's own edge does not; or only so far, if so
many pixels of it lie on either side of the nose, as of hair and straps do not."""
_RIM_OF_MASK_PX: Final = 1.0
_CALM: Final = 0.15
"""Share of the mask between those rows that may be dark and narrow: more is a print."""


def rims_in_front(crop: U8, hidden: U8, points: F32) -> U8 | None:
    """Where rims of glasses lie in front of a mask.

    Args:
        crop: (S, S, 3) uint8, a canonical crop.
        hidden: (S, S) uint8, above 0 where mask is.
        points: (468, 2) float32, the landmarks in crop px.

    Returns:
        (S, S) uint8, how much of each pixel is rim; None where there is none.
    """
    eyes = float(points[list(_EYES), 1].mean())
    rows = np.s_[max(0, round(eyes) - _ABOVE) : max(0, round(eyes) + _BELOW)]
    mask = hidden[rows]
    if not mask.any():
        return None
    luma = np.asarray(cv2.cvtColor(crop[rows], cv2.COLOR_RGB2GRAY), np.uint8)
    beside = cv2.morphologyEx(luma, cv2.MORPH_CLOSE, disc(_WIDEST_PX // 2))
    darker = cv2.compare(luma, cv2.convertScaleAbs(beside, alpha=_DARK), cv2.CMP_LT)
    dark = np.asarray(cv2.bitwise_and(darker, cv2.compare(beside, _LEAST, cv2.CMP_GT)), np.uint8)
    if cv2.countNonZero(dark & mask) > _CALM * cv2.countNonZero(mask):
        return None
    faint = np.asarray(cv2.compare(luma, cv2.convertScaleAbs(beside, alpha=_FAINT), cv2.CMP_LT) & mask, np.uint8)
    way = _way_down(points, rows.start, mask.shape)
    rims, level = _crossing(dark, luma, mask, way, float(points[_BETWEEN_EYES, 0]))
    if rims is None or level > _DARK * float(np.median(luma[mask > 0])):
        return None
    rims = _going_on(rims, faint)
    darkness = (beside.astype(np.float32) - luma) / np.maximum(beside.astype(np.float32) - level, 1.0)
    share = np.clip(255 / (_RIM - _FOLD) * (darkness - _FOLD), 0, 255).astype(np.uint8)
    found = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    found[rows] = cv2.bitwise_and(share, cv2.dilate(rims, disc(2)))
    return found


def _way_down(points: F32, first: int, shape: tuple[int, ...]) -> U8:
    """(H, W) uint8, 255 on the way down the nose; the first of these rows is `first` of the crop."""
    (x0, y0), (x1, y1) = points[[_BETWEEN_EYES, _BRIDGE], :2].astype(float)
    start, end = (round(x0), round(y0) - first), (round(1.6 * x1 - 0.6 * x0), round(1.6 * y1 - 0.6 * y0) - first)
    return np.asarray(cv2.line(np.zeros(shape, np.uint8), start, end, 255, _BRIDGE_PX), np.uint8)


def _crossing(dark: U8, luma: U8, mask: U8, way: U8, nose: float) -> tuple[U8 | None, float]:
    """What of (H, W) `dark` crosses the `way` and goes on over the mask (255 there), and how bright it is on it; the
    nose lies in the column `nose`."""
    joined = cv2.morphologyEx(dark, cv2.MORPH_CLOSE, disc(1))
    _, labels = cv2.connectedComponents(joined, connectivity=8)
    deep = cv2.distanceTransform(np.where(mask > 0, np.uint8(255), np.uint8(0)), cv2.DIST_L2, 3)
    on_mask, rims, levels = deep > _RIM_OF_MASK_PX, np.zeros_like(dark), [0.0]
    for label in {*np.unique(labels[way > 0])} - {0}:
        one = labels == label
        over, bare = np.count_nonzero(one & on_mask), np.count_nonzero(one & (mask == 0), axis=0)
        crosses = np.count_nonzero(one & (way > 0)) >= _CROSSES
        both = min(bare[: round(nose)].sum(), bare[round(nose) :].sum()) >= _BESIDE_NOSE
        enough = deep[one].max() >= (_SHALLOW_PX if both else _DEEP_PX)
        if crosses and enough and _ON_MASK <= over <= _LOWER_HALF * bare.sum():
            rims[one] = 255
            levels.append(float(np.percentile(luma[one & on_mask], 20)))
    return (rims if len(levels) > 1 else None), max(levels)


def _going_on(rims: U8, faint: U8) -> U8:
    """The rims (H, W), and what is `faint` and hangs together with them; 255 there."""
    _, labels = cv2.connectedComponents(rims | faint, connectivity=8)
    more = np.where(np.isin(labels, np.unique(labels[rims > 0])), np.uint8(255), np.uint8(0))
    return more if cv2.countNonZero(more & faint) <= _MORE * cv2.countNonZero(rims & faint) else rims
