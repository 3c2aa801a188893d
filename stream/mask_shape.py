"""From the likelihood that each pixel is mask to the region that is painted."""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE
from unmask.models.mask_region import NO_MASK, mask_region
from unmask.models.outline import disc
from unmask.stream.frame import U8

F32 = npt.NDArray[np.float32]

_SPECK_AREA_PX: Final = 40
"""Spots smaller than this are mistakes. Narrow parts stay: they may be ear loops."""
_GROW_PX: Final = 3
"""How far the painted region reaches beyond the mask: its shadow and its fibres lie there."""
_FRINGE_PX: Final = 1
"""How far beyond the mask nothing of the face can be seen."""
_FEATHER_PX: Final = 3
"""Width of the soft edge."""
_GAP_PX: Final = 5
"""Half the width of what is narrow: there the painted region does not reach beyond the mask."""
EYES: Final = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249),
)
"""Landmarks around the openings of the eyes."""
_LID_PX: Final = 3
"""How far the rims of the eyes reach beyond their openings."""
_HIDES_EYE: Final = 217
"""Of 255: how likely mask must be for an eye to be painted over, as where a mask is being put on."""
_OVER_EYE: Final = 0.06
"""Share of an eye that is so likely from which on the mask lies over it: then it grows there as elsewhere."""


class MaskShape:
    """From a probability to the region that is painted."""

    def __init__(self) -> None:
        self._grow, self._fringe, self._gap = disc(_GROW_PX), disc(_FRINGE_PX), disc(_GAP_PX)
        self._window = _border_window()

    def solid(self, probability: F32) -> U8:
        """(S, S) uint8 0 or 255: where mask is, without specks. `probability` is 0..255."""
        return mask_region(probability, _SPECK_AREA_PX)

    def regions(self, solid: U8, probability: F32, points: F32) -> tuple[U8, U8]:
        """The mask grown by its shadow, with a soft edge, but not over eyes that can be seen, nor over rims of glasses
        and the like, which the growth from both sides would cover.

        Args:
            solid: from `solid`.
            probability: (S, S) float32 0..255.
            points: (468, 2) float32, the landmarks in crop px.

        Returns:
            `mask` and `hidden` as in `FacePictures`.
        """
        eyes = self._seen_eyes(probability, points)
        gaps = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, self._gap) & ~solid
        seen = eyes | (gaps & cv2.compare(probability, NO_MASK, cv2.CMP_LT))
        grown = cv2.blur(cv2.dilate(solid, self._grow) & ~seen, (_FEATHER_PX, _FEATHER_PX))
        return np.asarray(grown * self._window, np.uint8), np.asarray(cv2.dilate(solid, self._fringe) & ~seen, np.uint8)

    def _seen_eyes(self, probability: F32, points: F32) -> U8:
        """(S, S) uint8 0 or 255, where eyes can be seen; arguments as for `regions`."""
        certain = cv2.compare(probability, _HIDES_EYE, cv2.CMP_GE)
        covered = cv2.dilate(certain, self._grow)
        eyes = np.zeros_like(certain)
        for eye in EYES:
            contour, region = np.round(points[list(eye)]).astype(np.int32), np.zeros_like(certain)
            cv2.fillPoly(region, [contour], 255)
            cv2.polylines(region, [contour], True, 255, 2 * _LID_PX)
            over = cv2.countNonZero(region & certain) > _OVER_EYE * cv2.countNonZero(region)
            eyes |= region & ~(covered if over else certain)
        return np.asarray(eyes, np.uint8)


def _border_window() -> F32:
    """(S, S) float32, 1 inside, falling to 0 at the border of the crop, beyond which nothing can be painted."""
    ramp = np.clip(np.minimum(np.arange(CROP_SIZE), np.arange(CROP_SIZE)[::-1]) / 8.0, 0, 1)
    return np.asarray(np.minimum.outer(ramp, ramp), np.float32)
