"""What is kept of a face that was seen without a mask: a view for each direction in which it looked."""

from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, head_pose
from unmask.models.outline import hull

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

EYES_AND_BROWS: Final = (
    (70, 63, 105, 66, 107, 133, 153, 145, 144, 33),
    (300, 293, 334, 296, 336, 362, 380, 374, 373, 263),
)
"""Landmarks around each eye and its brow."""
_UPPER: Final = (*(10, 338, 297, 332, 284, 251, 389, 356, 127, 162, 21, 54, 103, 67, 109), *(33, 133, 362, 263, 168))
"""Landmarks around forehead, temples and eyes."""
_HAIR_PX: Final = 40
_FEATURES: Final = 120
_FEATURE_QUALITY: Final = 0.005
_FEATURES_APART_PX: Final = 4
_MOUTH: Final = (13, 14)
_MOUTH_CORNERS: Final = (61, 291)
_EYES: Final = ((159, 145, 33, 133), (386, 374, 362, 263))
"""Of each eye both lids and both corners."""
_BLINKING: Final = 0.75
"""Eyes that are open less than that, compared with another view of the direction, are closed or half closed."""
_CELL_DEGREES: Final = 8.0
_MOST: Final = 12
"""Views that are remembered of a face."""
_OLD_SECONDS: Final = 60.0
"""After that a view gives way to a new one in any case: light and hair change."""
_BLURRED: Final = 0.7
"""Of the sharpness of a view, which one that is to take its place must have."""


@dataclass(frozen=True, eq=False)
class Seen:
    """A face as it was: its canonical crop (S, S, 3) uint8, its landmarks (468, 3) float32 in px of that, and when.
    What follows from these is computed once, and only if asked for."""

    crop: U8
    points: F32
    seconds: float

    @cached_property
    def ahead(self) -> F64:
        """(3,) float64 of length 1: where the head looks."""
        return direction(self.points)

    @cached_property
    def opening(self) -> float:
        """How far the mouth is open, over its width."""
        upper, lower, left, right = self.points[[*_MOUTH, *_MOUTH_CORNERS], :2]
        return float(np.linalg.norm(upper - lower) / max(float(np.linalg.norm(left - right)), 1.0))

    @cached_property
    def eyes(self) -> float:
        """How far the eyes are open, over their width."""
        upper, lower, left, right = self.points[np.array(_EYES).T, :2]
        width = np.maximum(np.linalg.norm(left - right, axis=1), 1.0)
        return float((np.linalg.norm(upper - lower, axis=1) / width).mean())

    @cached_property
    def features(self) -> F32:
        """(N, 1, 2) float32: corners in the forehead, along the hair, in brows and eyes, px of the crop."""
        grey, where = cv2.cvtColor(self.crop, cv2.COLOR_RGB2GRAY), above(self.points)
        found = cv2.goodFeaturesToTrack(grey, _FEATURES, _FEATURE_QUALITY, _FEATURES_APART_PX, mask=where)
        return np.empty((0, 1, 2), np.float32) if found is None else np.asarray(found, np.float32)

    @cached_property
    def sharpness(self) -> float:
        """Mean square of the Laplacian of the lower half."""
        grey = cv2.cvtColor(self.crop[CROP_SIZE // 2 :], cv2.COLOR_RGB2GRAY)
        return float(cv2.Laplacian(grey, cv2.CV_32F).var())


def direction(points: F32) -> F64:
    """(3,) float64 of length 1: where a head with landmarks (468, 3) in px of its canonical crop looks."""
    return np.asarray(head_pose(points).rotation[:, 2], np.float64)


def degrees_between(one: F64, other: F64) -> float:
    """The angle between two directions of length 1."""
    return float(np.degrees(np.arccos(np.clip(one @ other, -1.0, 1.0))))


@dataclass(slots=True)
class Views:
    """One view of a face for each direction that it has looked in, with its mouth as far closed as it was there, as
    lips that are shown do not move, and with open eyes, by which it may be recognised."""

    views: dict[tuple[int, int], Seen] = field(default_factory=dict)

    def add(self, view: Seen) -> None:
        """Remember a view, if there is none like it or it is the better one."""
        x, y, _ = np.degrees(np.arcsin(np.clip(view.ahead, -1.0, 1.0))) / _CELL_DEGREES
        cell = (round(float(x)), round(float(y)))
        known = self.views.pop(cell, view)
        older = view.seconds - known.seconds > _OLD_SECONDS
        awake, asleep = known.eyes < _BLINKING * view.eyes, view.eyes < _BLINKING * known.eyes
        better = awake or (view.opening < known.opening and not asleep)
        better = better and view.sharpness > _BLURRED * known.sharpness
        self.views[cell] = view if older or better else known
        if len(self.views) > _MOST:
            self.views.pop(next(iter(self.views)))

    def nearest(self, ahead: F64) -> tuple[Seen, float]:
        """The view whose direction is nearest, and by how many degrees it differs. There must be one."""
        angles = {cell: degrees_between(view.ahead, ahead) for cell, view in self.views.items()}
        cell = min(angles, key=angles.__getitem__)
        return self.views[cell], angles[cell]

    def __bool__(self) -> bool:
        return bool(self.views)


def above(points: F32) -> U8:
    """(S, S) uint8, 255 where forehead, eyes, brows and the hair above them are."""
    upper = points[list(_UPPER), :2]
    return hull(np.concatenate([upper, upper - np.array([0, _HAIR_PX], np.float32)]), CROP_SIZE)
