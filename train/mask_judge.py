"""Tells faces that wear masks from bare ones, in pictures to learn from.

It asks as the pipeline does, with its networks and its thresholds; those lie in `unmask.stream`, which training does
not know.
"""

from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.detections import MESH_SIZE, upright_roi
from unmask.models.engine import choose, load
from unmask.models.geometry import canonical_crop, transform_points
from unmask.models.mask_region import mask_region
from unmask.models.masked_faces import MaskedFaceDetector
from unmask.models.rows import BARE
from unmask.train.data import warp_crop

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_CLOSE_PX: Final = 160
_CLOSE_SHARE: Final = 0.4
"""The picture in which the tracker's detector looks at a known face, and the size of the face in it."""
_MESH_SHARE: Final = 2 / 3
"""Size of the face in the picture that the mesh sees."""
_LEAST_FACE: Final = 0.05
"""Where the detector sees less of a face there, it says nothing about its mask."""
_SAME_PLACE: Final = 0.4
"""How far from the middle of the face, in sizes of it, what the detector sees may lie to be that face."""
_WEARS: Final = 0.5
_SURELY_WEARS: Final = 0.9
"""How likely a face wears a mask for the detector to think so rather than not, and to be sure."""
_SURE: Final = 127.5
"""Of 255: more likely mask than not."""
_SPECK_PX: Final = 40
_WORN_SHARE: Final = 0.03
_SHOWN: Final = 0.3
"""What is smaller than specks counts for nothing; what covers less than that share of the crop, for less; from which
score on the segmenter sees a mask."""


class MaskJudge:
    """Tells whether a face wears a mask: the tracker's detector says how likely it does, the segmenter where."""

    def __init__(self) -> None:
        self._detector = MaskedFaceDetector((_CLOSE_PX, _CLOSE_PX))
        self._segmenter = load("segmenter", choose("cpu"))

    def wears_mask(self, rgb: U8, landmarks: F32) -> bool:
        """Whether the face with these (468, 3) landmarks of a (H, W, 3) picture wears a mask.

        Each alone would take some beards and collars for one. Of 850 pictures of bare faces both together leave out 8
        (either of them 31), of 57 labelled masked ones they let one pass.
        """
        likely, shown = self.likely(rgb, landmarks), self._shown(rgb, landmarks)
        if likely is None:
            return shown > _SHOWN
        return likely >= _SURELY_WEARS or (likely >= _WEARS and shown > _SHOWN)

    def likely(self, rgb: U8, landmarks: F32) -> float | None:
        """How likely the detector thinks so, 0..1; None where it sees no face."""
        zoom = _CLOSE_SHARE / _MESH_SHARE * _CLOSE_PX / MESH_SIZE
        view = zoom * upright_roi(landmarks)
        view[:, 2] += (_CLOSE_PX - zoom * MESH_SIZE) / 2
        points = transform_points(view, landmarks)
        low, high = points.min(axis=0), points.max(axis=0)
        for face in self._detector(warp_crop(rgb, view, _CLOSE_PX)[0], _LEAST_FACE):
            middle = np.reshape(face.box_px, (2, 2)).mean(axis=0)
            if np.linalg.norm(middle - (low + high) / 2) < _SAME_PLACE * (high - low).max():
                return 1.0 - face.kinds[BARE]
        return None

    def _shown(self, rgb: U8, landmarks: F32) -> float:
        """How much of a mask the segmenter sees, 0..1: `unmask.stream.frame.Face.mask_score`."""
        crop = warp_crop(rgb, canonical_crop(landmarks))[0]
        probability = np.asarray(self._segmenter(crop[None])[0], np.float32)
        solid = mask_region(probability, _SPECK_PX)
        core = cv2.bitwise_and(solid, cv2.compare(probability, _SURE, cv2.CMP_GT))
        sure = cv2.mean(probability, mask=core)[0] / 255.0
        return sure * min(1.0, cv2.countNonZero(solid) / solid.size / _WORN_SHARE)
