"""Where a head that looks aside ends: a mask that stands off the face hides background there, not skin.

The inpainter sees a hole, and cannot know which part of it is face. The landmarks do: what lies beyond them is filled
from the background before the network looks, and the hole ends where the face does.
"""

from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import EYE_DISTANCE_PX, head_pose

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_ASIDE: Final = 0.6
"""Radians from which on a head looks aside: 34 degrees."""
_BROW: Final = 8
_CHIN: Final = 152
"""Points between which the outline is known: above the brows nothing is hidden, and below the chin it goes straight
down."""
_BRIDGE: Final = 168
_NOSE_BASE: Final = 2
"""Points between which the nose lies."""
_NEAR: Final = 0.06
"""Eye distances above and below a row within which points tell where the face ends."""
MARGIN: Final = 0.05
"""Eye distances beyond the landmarks that are left to the network: they are not right to the pixel."""
_FEWEST_PX: Final = 30
"""Less than that beyond the outline is not worth a fill."""
_AROUND: Final = 24
"""How far around what is filled the background is looked at, px."""
_BESIDE_PX: Final = 8
"""How far beside the landmarks of a face that looks ahead a mask may reach that fits it."""
_BROAD_PX: Final = 6
"""Half the width from which on a part of a mask beside the face is no ear loop."""


class Shown(NamedTuple):
    """What the inpainter is shown of a face.

    Attributes:
        rgb: (S, S, 3) uint8, the canonical crop, with what is known of the hidden part.
        hidden: (S, S) uint8, 255 where it is still to be painted.
        given: (S, S) uint8, 255 where the mask is, and what is under it known.
    """

    rgb: U8
    hidden: U8
    given: U8


def beyond_outline(points: F32, hidden: U8, margin: float = MARGIN) -> U8 | None:
    """Where, beside a face that looks aside, nothing of it can be.

    Args:
        points: (468, 3) float32 landmarks in px of a canonical crop.
        hidden: (S, S) uint8, above 0 where its mask is; it lies on the nose, so where points slip back into the face
            the outline goes forward to it.
        margin: eye distances between the landmarks and what is taken for background.

    Returns:
        (S, S) uint8, 255 beyond the face on the side that it looks to; None for a face that does not look aside.
    """
    yaw, size = head_pose(points).yaw, len(hidden)
    if abs(yaw) < _ASIDE:
        return None
    side, eye = 1.0 if yaw > 0 else -1.0, EYE_DISTANCE_PX * size / 256
    rows, ahead = np.arange(size, dtype=np.float32), side * np.arange(size, dtype=np.float32)
    reach = np.full(size, -np.inf, np.float32)
    np.maximum.at(reach, np.clip(np.rint(points[:, 1]), 0, size - 1).astype(int), side * points[:, 0])
    reach = cv2.dilate(reach[:, None], np.ones((2 * round(_NEAR * eye) + 1, 1), np.uint8))[:, 0]
    known = np.isfinite(reach) & (rows >= points[_BROW, 1]) & (rows <= points[_CHIN, 1])
    if not known.any():
        return None
    width = 2 * round(_NEAR * eye) + 1
    padded = np.pad(np.interp(rows, rows[known], reach[known]), width // 2, mode="edge")
    outline = np.convolve(padded, np.full(width, 1 / width), "valid") + margin * eye
    nose = (hidden > 0).any(axis=1) & (rows > points[_BRIDGE, 1]) & (rows < points[_NOSE_BASE, 1])
    if nose.any():
        edge = np.where(hidden[nose] > 0, ahead, -np.inf).max(axis=1)
        outline += max(0.0, float((edge - outline[nose]).min()))
    beyond = (ahead[None] > outline[:, None]) & (rows >= points[_BROW, 1])[:, None]
    return np.where(beyond, np.uint8(255), np.uint8(0))


def beside_face(points: F32, hidden: U8) -> U8 | None:
    """Where a mask lies broadly beside a face that looks ahead, as while it is put on, and hides what is behind it. One
    that is worn may stand out at the jaw, too: what is there is neck or hair, and the network's to paint.

    Args:
        points: (468, 3) float32 landmarks in px of a canonical crop.
        hidden: (S, S) uint8, above 0 where its mask is.

    Returns:
        (S, S) uint8, 255 there and a little around; None where there is no such part, as mostly.
    """
    face = cv2.dilate(hull(points, len(hidden)), disc(_BESIDE_PX))
    rows = np.arange(len(hidden))
    face[rows > points[_CHIN, 1]] = 255  # the neck
    broad = cv2.morphologyEx(cv2.bitwise_and(hidden, cv2.bitwise_not(face)), cv2.MORPH_OPEN, disc(_BROAD_PX))
    if not broad.any():
        return None
    around = cv2.dilate(broad, disc(2 * _BROAD_PX))
    return np.asarray(cv2.bitwise_and(around, cv2.bitwise_not(face)), np.uint8)


def hull(points: F32, size: int) -> U8:
    """(size, size) uint8, 255 within the hull of (N, 2 or more) points in px."""
    mask = np.zeros((size, size), np.uint8)
    return np.asarray(cv2.fillConvexPoly(mask, cv2.convexHull(np.rint(points[:, :2]).astype(np.int32)), 255), np.uint8)


def disc(radius: int) -> U8:
    """(2 radius + 1)² uint8, for morphology."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def fill_beyond(rgb: U8, hidden: U8, unseen: U8, beyond: U8) -> Shown:
    """Fill what a mask hides of the background from what is seen of it beside the mask.

    Args:
        rgb: (S, S, 3) uint8, a canonical crop.
        hidden: (S, S) uint8, 255 where the inpainter is to paint.
        unseen: (S, S) uint8, above 0 where there is mask, its shadow and its fibres.
        beyond: (S, S) uint8, 255 where there is no face.
    """
    filled = cv2.bitwise_and(beyond, cv2.compare(unseen, 0, cv2.CMP_GT))
    nothing = Shown(rgb, hidden, np.zeros_like(filled))
    x, y, width, height = cv2.boundingRect(filled)
    if cv2.countNonZero(filled) < _FEWEST_PX:
        return nothing
    part = np.s_[max(0, y - _AROUND) : y + height + _AROUND, max(0, x - _AROUND) : x + width + _AROUND]
    known = (beyond[part] > 0) & (unseen[part] == 0)
    if known.sum() < _FEWEST_PX:
        return nothing
    behind = spread(rgb[part].astype(np.float32), known.astype(np.float32))
    out = rgb.copy()
    out[part] = np.where(filled[part][..., None] > 0, np.clip(behind + 0.5, 0, 255), rgb[part]).astype(np.uint8)
    return Shown(out, cv2.bitwise_and(hidden, cv2.bitwise_not(filled)), np.asarray(filled, np.uint8))


def spread(rgb: F32, weight: F32) -> F32:
    """(H, W, 3) float32: the colours where `weight` (H, W) is 1, elsewhere those of a coarser picture (the
    pull-push of Gortler et al. 1996, doi:10.1145/237170.237200)."""
    height, width = weight.shape
    if min(height, width) <= 2:
        mean = (rgb * weight[..., None]).sum((0, 1)) / max(float(weight.sum()), 1e-6)
        return np.where(weight[..., None] > 0, rgb, mean).astype(np.float32)
    size = ((width + 1) // 2, (height + 1) // 2)
    share = cv2.pyrDown(weight, dstsize=size)
    colours = cv2.pyrDown(rgb * weight[..., None], dstsize=size) / np.maximum(share, 1e-6)[..., None]
    coarse = spread(colours, np.minimum(1.0, 4.0 * share).astype(np.float32))
    behind = cv2.resize(coarse, (width, height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(behind + weight[..., None] * (rgb - behind), np.float32)
