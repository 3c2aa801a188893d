"""Where the canonical crop of a face is placed so that the whole mask lies in it.

The usual place has room for a mask that fits a face which looks into the camera. Worn low, or in profile, a mask goes
on beyond the border of the crop; what lies there cannot be found nor painted, and a crop that lies a little further to
that side has all of it. The networks know such crops: training moves faces about.
"""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import transform_points

U8 = npt.NDArray[np.uint8]
F64 = npt.NDArray[np.float64]

Shift = tuple[int, int]
"""To which side a crop is moved: -1, 0 or 1 to the right, 0 or 1 down."""

USUAL: Final[Shift] = (0, 0)

STEP_PX: Final = 38
"""How far a crop is moved, in px of the crop."""

_CUT_SHARE: Final = 0.06
"""Share of a side on which a mask must reach the border to be cut off there, and not just touch it."""

_BODY: Final = np.ones((9, 9), np.uint8)
"""What is narrower is an ear loop, after which no crop moves."""

_BEYOND_PX: Final = 10
"""So far beyond the border, in px of the crop, the picture must have something to show."""

_ROOM_PX: Final = 8
"""From the border of the usual crop, which one that was moved goes back to once the mask leaves that much."""


def placed(crop_from_picture: F64, shift: Shift) -> F64:
    """(2, 3) float64, the map to the crop that lies `shift` away from one with a map of that kind."""
    moved = crop_from_picture.copy()
    moved[:, 2] -= STEP_PX * np.array(shift)
    return moved


def better_shift(region: U8, crop_from_picture: F64, picture_size: tuple[int, int], shift: Shift = USUAL) -> Shift:
    """Where the crop should lie instead of where it does.

    Args:
        region: (S, S) uint8, above 0 where mask is.
        crop_from_picture: (2, 3) float64, map from px of the picture to px of the crop as it lies.
        picture_size: width and height in px; what the crop shows beyond the picture is no mask.
        shift: how it lies.
    """
    body = np.asarray(cv2.morphologyEx(region, cv2.MORPH_OPEN, _BODY), np.uint8)
    (right, down), side = _cut_off(body, crop_from_picture, picture_size), len(region)
    x, y, width, height = cv2.boundingRect(body)
    beside = x if shift[0] < 0 else side - x - width
    return _along(shift[0], right, beside), _along(shift[1], down, side - y - height)


def _along(now: int, cut: int, left_px: int) -> int:
    """One part of a shift, where the mask is cut off on the side `cut`, or leaves `left_px` to the border."""
    if cut:
        return int(np.sign(now + cut))
    return 0 if left_px > STEP_PX + _ROOM_PX else now


def _cut_off(region: U8, crop_from_picture: F64, picture_size: tuple[int, int]) -> Shift:
    """On which side a mask goes on beyond the crop, within the picture; none where it does on both."""
    side = len(region)
    at, first, last = np.arange(side), np.full(side, -_BEYOND_PX), np.full(side, side - 1 + _BEYOND_PX)
    picture_from_crop = cv2.invertAffineTransform(crop_from_picture)

    def goes_on(border: U8, beyond: tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]]) -> bool:
        points = np.column_stack(beyond)[border > 0].astype(np.float32)
        seen = transform_points(picture_from_crop, points)
        inside = ((seen >= 0) & (seen < picture_size)).all(axis=1)
        return bool(inside.sum() >= _CUT_SHARE * side)

    right = goes_on(region[:, -1], (last, at)) - goes_on(region[:, 0], (first, at))
    return int(right), int(goes_on(region[-1], (at, last)))
