"""One face over time: where it is, where it will be, and its filtered points and crop."""

import math
from typing import Final

import numpy as np

from unmask.models.geometry import CropPose, crop_pose
from unmask.stream.face_finder import Sighting
from unmask.stream.frame import F32, F64
from unmask.stream.one_euro import OneEuro, OneEuroSettings

_MAX_JUMP: Final = 0.35
"""Of the crop from one frame to the next, in distances of the outer eye corners, in radians, and in log scale."""

_CROP_FILTER: Final = OneEuroSettings(min_cutoff_hz=1.0, beta=20.0)
_POINT_FILTER: Final = OneEuroSettings(min_cutoff_hz=1.5, beta=20.0)


class FaceTrack:
    """The state of one face.

    Args:
        track_id: its identity.
        sighting: the first one.
        seconds: presentation time.

    Attributes:
        raw_px: (468, 3) float32, the newest points, unfiltered.
        score: 0..1, of the newest close look that found the face.
        seen_seconds: when the face was last in sight.
        misses: close looks in a row that did not find it.
        fresh: True until the face has been given once since it was found, or found again elsewhere.
        landmarks_px: (468, 3) float32, filtered.
        crop: filtered.
    """

    def __init__(self, track_id: int, sighting: Sighting, seconds: float) -> None:
        self.track_id = track_id
        self.restart(sighting, seconds)

    def restart(self, sighting: Sighting, seconds: float) -> None:
        """Begin anew where the face was found again; nothing remembered is used."""
        self.raw_px, self.score = sighting
        self.misses, self.fresh, self.seen_seconds = 0, True, seconds
        self.landmarks_px, self.crop = self.raw_px, crop_pose(self.raw_px)
        self._pose, self._step = self.crop, np.zeros(2)
        self._filtered_points = OneEuro(_POINT_FILTER, self.raw_px.astype(np.float64), seconds)
        self._filtered_crop = OneEuro(_CROP_FILTER, _vector(self.crop), seconds)

    @property
    def predicted_px(self) -> F32:
        """Where the points should be in the next frame, if the face goes on as it does."""
        predicted = self.raw_px.copy()
        predicted[:, :2] += self._step
        return predicted

    def jumps_to(self, landmarks_px: F32) -> bool:
        """True where the points are so far from the prediction that they may be of something else."""
        pose, old = crop_pose(landmarks_px), self._pose
        moved = math.hypot(pose.x - old.x - self._step[0], pose.y - old.y - self._step[1]) / old.scale
        turned = abs(math.remainder(pose.roll - old.roll, math.tau))
        return max(moved, turned, abs(math.log(pose.scale / old.scale))) > _MAX_JUMP

    def advance(self, landmarks_px: F32, seconds: float) -> None:
        """Take the points of the next frame."""
        pose = crop_pose(landmarks_px)
        pose = pose._replace(roll=self._pose.roll + math.remainder(pose.roll - self._pose.roll, math.tau))
        self._step = np.array([pose.x - self._pose.x, pose.y - self._pose.y])
        self.raw_px, self._pose, self.seen_seconds = landmarks_px, pose, seconds
        self.crop = _crop(self._filtered_crop(_vector(pose), seconds, np.array([1.0, 1.0, pose.scale, pose.scale])))
        points = self._filtered_points(landmarks_px.astype(np.float64), seconds, np.array(pose.scale))
        self.landmarks_px = points.astype(np.float32)


def _vector(pose: CropPose) -> F64:
    return np.array([math.log(pose.scale), pose.roll, pose.x, pose.y])


def _crop(vector: F64) -> CropPose:
    log_scale, roll, x, y = (float(v) for v in vector)
    return CropPose(math.exp(log_scale), roll, x, y)
