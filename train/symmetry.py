"""Mirror images of faces with their points."""

from typing import Final

import numpy as np
import numpy.typing as npt

from unmask.models.rows import LANDMARKS

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_FIRST_LEFT: Final = 248
_MIDDLE: Final = (
    *(0, 1, 2, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15),
    *(16, 17, 18, 19, 94, 151, 152, 164, 168, 175, 195, 197, 199, 200),
)
"""Points on the middle line. The others below `_FIRST_LEFT` are on the right side of the face, and those from there on
are their partners on the left, in the same order. Found by laying the mean of 5,566 meshes on its mirror image."""


def _partners() -> npt.NDArray[np.int64]:
    right = np.setdiff1d(np.arange(_FIRST_LEFT), _MIDDLE)
    left = np.arange(_FIRST_LEFT, LANDMARKS)
    found = np.arange(LANDMARKS)
    found[right], found[left] = left, right
    return found


MIRRORED: Final = _partners()
"""(468,) int64: which point takes the place of each one in the mirror."""


def mirror(rgb: U8, points: F32) -> tuple[U8, F32]:
    """A picture and the points of a face in it, as a mirror shows them.

    Args:
        rgb: (H, W, 3) uint8.
        points: (468, D) float32 px, x first.
    """
    turned = points[MIRRORED].copy()
    turned[:, 0] = rgb.shape[1] - turned[:, 0]
    return np.ascontiguousarray(rgb[:, ::-1]), turned
