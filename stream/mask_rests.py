"""Paints over what is left of a mask around the part that was hidden: thin lines in its colour.

Pictures are blurred, sharpened and compressed, and colours with fewer pixels than brightness, so that a mask shows some
pixels beyond where it ends. The inpainter gives back what it is shown there, a line included.
"""

from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.stream.frame import U8

F32 = npt.NDArray[np.float32]

_RIM_PX: Final = 4
"""How far around the hidden part a line may lie."""
_INNER_PX: Final = 2
_OUTER_PX: Final = 5
_DEEP_PX: Final = 9
"""The rim is compared with what was painted from `_INNER_PX` to `_DEEP_PX` inside the hidden part's edge, and with what
is seen up to `_OUTER_PX` beyond the rim."""
_NEAR_PX: Final = 13
"""Width of the window in which those are averaged."""
_FILL_PX: Final = 7
_FEWEST: Final = 4
"""Width of the window from which a line is filled, and how many pixels of it must be no line."""


class _Way(NamedTuple):
    """A way from one colour to another: how far along it counts, and how long it must be (of 255)."""

    share: float
    length: float


_COLOUR: Final = _Way(0.12, 40.0)
_HUE: Final = _Way(0.2, 25.0)
"""The same without brightness: the network tones brightness down, and compression spreads hues further."""
_THIRDS: Final = np.full(3, 1 / 3, np.float32)


def fill_rests(crop: U8, hidden: U8, painted: U8) -> None:
    """Fill lines in the mask's colour along the edge of the hidden part from what lies beside them.

    A pixel belongs to such a line if its colour lies on the way from what was painted inside to the mask, and also on
    the way from what is seen outside to the mask: at an edge of the face itself it lies between inside and outside.

    Args:
        crop: (S, S, 3) uint8, the crop with the mask.
        hidden: (S, S) uint8, 255 where the inpainter saw nothing.
        painted: (S, S, 3) uint8, what it painted; written where there are lines.
    """
    x, y, width, height = cv2.boundingRect(hidden)
    if not width:
        return
    reach = _RIM_PX + _OUTER_PX + _NEAR_PX
    part = np.s_[max(0, y - reach) : y + height + reach, max(0, x - reach) : x + width + reach]
    lines = _lines(crop[part], hidden[part], painted[part])
    if lines.any():
        _fill(painted[part], lines)


def _lines(crop: U8, hidden: U8, painted: U8) -> U8:
    """(H, W) uint8, 255 where lines are."""
    rim, inner = cv2.dilate(hidden, _square(_RIM_PX)), cv2.erode(hidden, _square(_INNER_PX))
    at = np.flatnonzero(rim & ~cv2.erode(hidden, _square(1)))
    outer = cv2.dilate(rim, _square(_OUTER_PX)) & ~rim
    edge = inner & ~cv2.erode(hidden, _square(_DEEP_PX))
    inside, outside, mask = (
        _around(picture, where, at) for picture, where in ((painted, edge), (painted, outer), (crop, inner))
    )
    here = painted.reshape(-1, 3)[at].astype(np.float32)
    lines = np.zeros_like(hidden)
    lines.reshape(-1)[at] = 255 * (_on_the_way(here, inside, mask) & _on_the_way(here, outside, mask))
    return np.asarray(cv2.dilate(lines, _square(1)) & rim, np.uint8)


def _square(radius: int) -> U8:
    """For morphology; a disc takes several times as long."""
    return np.ones((2 * radius + 1, 2 * radius + 1), np.uint8)


def _around(picture: U8, where: U8, at: npt.NDArray[np.intp]) -> F32:
    """(N, 3) float32: the mean colour of what is near some pixels and in `where`; 0 where nothing is."""
    total = cv2.boxFilter(where, cv2.CV_32F, (_NEAR_PX, _NEAR_PX), normalize=False).reshape(-1)[at]
    seen = cv2.bitwise_and(picture, picture, mask=where)
    colour = cv2.boxFilter(seen, cv2.CV_32F, (_NEAR_PX, _NEAR_PX), normalize=False).reshape(-1, 3)[at]
    return np.asarray(colour * (255 / np.maximum(total, 255))[:, None], np.float32)


def _on_the_way(here: F32, skin: F32, mask: F32) -> npt.NDArray[np.bool_]:
    """Which of (N, 3) colours lie on the way from the skin's to the mask's, by colour or by hue."""
    gone, whole = here - skin, mask - skin
    along, length = np.einsum("ij,ij->i", gone, whole), np.einsum("ij,ij->i", whole, whole)
    found = (along > _COLOUR.share * length) & (length > _COLOUR.length**2)
    brightness = whole @ _THIRDS  # without it both are hues
    along, length = along - 3 * (gone @ _THIRDS) * brightness, length - 3 * brightness * brightness
    return np.asarray(found | ((along > _HUE.share * length) & (length > _HUE.length**2)))


def _fill(picture: U8, lines: U8) -> None:
    """Draw what lies beside lines over them."""
    good, size = cv2.bitwise_not(lines), (_FILL_PX, _FILL_PX)
    total = cv2.boxFilter(good, cv2.CV_32F, size, normalize=False).reshape(-1)
    colour = cv2.boxFilter(cv2.bitwise_and(picture, picture, mask=good), cv2.CV_32F, size, normalize=False)
    at = np.flatnonzero(lines)
    at = at[total[at] > _FEWEST * 255]
    rows, columns = at // lines.shape[1], at % lines.shape[1]
    picture[rows, columns] = 255 * colour.reshape(-1, 3)[at] / total[at, None] + 0.5
