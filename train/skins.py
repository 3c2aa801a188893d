"""How dark skin looks in a picture, told by its colour."""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.train.data import FaceCrops

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Indices = npt.NDArray[np.int64]

DARK: Final = 0.0
"""Degrees; below is what is called dark."""
_SPOTS: Final = (50, 280, 205, 425, 5)
"""Landmarks on cheeks and nose; hair hangs into foreheads."""
_SPOT_PX: Final = 5


def skin_angle(rgb: U8, points: F32) -> float:
    """Individual typology angle (Chardon et al. 1991, doi:10.1111/j.1467-2494.1991.tb00561.x). The light of a picture
    is not known, so that it sorts pictures, not people.

    Args:
        rgb: (256, 256, 3) uint8 crop.
        points: (468, 3) landmarks in px of it.

    Returns:
        Degrees from -90 to 90: the larger, the lighter.
    """
    spots = [
        rgb[max(0, y - _SPOT_PX) : y + _SPOT_PX, max(0, x - _SPOT_PX) : x + _SPOT_PX].reshape(-1, 3)
        for x, y in points[list(_SPOTS), :2].round().astype(int)
    ]
    lab = cv2.cvtColor(np.concatenate(spots)[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    lightness, _, yellow = np.median(lab, axis=0)
    return float(np.degrees(np.arctan2(lightness - 50.0, max(float(yellow), 1e-3))))


def dark_faces(faces: FaceCrops, chosen: Indices) -> Indices:
    """Those of the `chosen` faces whose skin looks dark."""
    return np.array([i for i in chosen if skin_angle(faces.crops[i], faces.points[i]) < DARK], np.int64)
