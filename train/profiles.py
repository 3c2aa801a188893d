"""Real faces in profile whose points were marked by eye: MediaPipe's mesh, which teaches all others, fails on them."""

import csv
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.models.geometry import head_pose
from unmask.train.data import FaceCrops
from unmask.train.turning import Turn, rotation_of

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_MARKED: Final = {"right": (168, 33, 234, 4, 152), "left": (168, 263, 454, 4, 152)}
"""Points of the mesh that are marked on a face that looks to the right or left of the picture: the bridge of the nose,
the outer corner of the near eye, the ear's tragus, the tip of the nose, the chin."""
_CERTAIN: Final = np.array([1.0, 1.0, 0.7, 0.7, 0.7])
"""Weights of the marks: hair and masks hide some, which are guessed."""
_YAWS: Final = np.radians(np.arange(40.0, 110.1, 2.5))
_PITCHES: Final = np.radians(np.arange(-40.0, 40.1, 2.5))
_YAW_WEIGHT: Final = 0.05
"""Squared error, in eye distances, of a yaw that is one radian from the one that was estimated."""
_AVERAGED: Final = 500
"""Faces that the mean mesh is made of."""
_REACH: Final = 0.4
"""Eye distances within which the points of the mesh follow a mark."""


@dataclass(frozen=True, slots=True)
class ProfileFace:
    """A face that was marked.

    Attributes:
        file: folder and file of its picture.
        facing: "left" or "right", in the picture.
        yaw: radians, estimated: a half pi is full profile.
        marks: (5, 2) float32 px of the picture: bridge and corner of the eye, tragus, tip of the nose, chin.
    """

    file: str
    facing: str
    yaw: float
    marks: F32


def read_profiles(path: Path) -> list[ProfileFace]:
    """Read a list of marked faces: file,facing,yaw (degrees),marks (five times x y).

    Raises:
        UserError: it cannot be read, or a line is not understood.
    """
    faces = []
    try:
        with path.open(newline="") as file:
            for row in csv.DictReader(file):
                marks = np.array(row["marks"].split(), np.float32).reshape(5, 2)
                _ = _MARKED[row["facing"]]
                faces.append(ProfileFace(row["file"], row["facing"], float(np.radians(float(row["yaw"]))), marks))
    except OSError as error:
        raise UserError(f"cannot read the profiles '{path}': {error.strerror}") from error
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"'{path}' needs the columns file,facing,yaw,marks, with five points a line: {error}"
        ) from error
    return faces


def fit_profiles(path: Path, crops: Path) -> dict[str, list[F32]]:
    """Landmarks (468, 3), in px of the picture, of the faces that a list names, by the file names there.

    Args:
        path: the list.
        crops: folder written by `unmask data crops`: what faces look like on average.

    Raises:
        UserError: either cannot be read.
    """
    listed, faces = read_profiles(path), FaceCrops.open(crops)
    training = faces.split(False)
    mean = mean_mesh([faces.points[i] for i in training[:: max(1, len(training) // _AVERAGED)]])
    fitted: dict[str, list[F32]] = defaultdict(list)
    for face in listed:
        fitted[face.file].append(fit_mesh(face, mean))
    return fitted


def mean_mesh(meshes: Sequence[F32]) -> F64:
    """(468, 3) float64: the mean of meshes (468, 3) px, upright and looking ahead, in distances of the outer eye
    corners."""
    total = np.zeros(meshes[0].shape)
    for points in meshes:
        pose = head_pose(points)
        total += (points - pose.shift) @ pose.rotation / pose.scale
    return np.asarray(total / len(meshes), np.float64)


def fit_mesh(face: ProfileFace, mean: F64) -> F32:
    """(468, 3) float32 px of the picture: the mean mesh, turned and placed so that it meets the marks, and bent to them
    where it does not."""
    indices = list(_MARKED[face.facing])
    marks = face.marks.astype(np.float64)
    signed = 1.0 if face.facing == "right" else -1.0
    best, fitted, scale = np.inf, mean, 1.0
    for yaw in _YAWS:
        for pitch in _PITCHES:
            turned = mean @ rotation_of(Turn(signed * yaw, nod=pitch)).T
            by, shift, away = _similarity(turned[indices, :2], marks)
            error = away + _YAW_WEIGHT * (yaw - face.yaw) ** 2
            if error < best:
                plane = turned[:, 0] + 1j * turned[:, 1]
                placed = by * plane + shift
                scale = abs(by)
                best, fitted = error, np.column_stack([placed.real, placed.imag, scale * turned[:, 2]])
    return _bent(fitted, fitted[indices, :2], marks, _REACH * scale)


def _similarity(source: F64, target: F64) -> tuple[complex, complex, float]:
    """Scale and turn, and shift, as complex numbers, that take (N, 2) points to others, and the mean squared error in
    units of the source."""
    a, b = source @ (1, 1j), target @ (1, 1j)
    weight = _CERTAIN / _CERTAIN.sum()
    mean_a, mean_b = weight @ a, weight @ b
    spread = float(weight @ np.abs(a - mean_a) ** 2)
    by = complex(weight @ (np.conj(a - mean_a) * (b - mean_b)) / spread)
    shift = complex(mean_b - by * mean_a)
    away = float(weight @ np.abs(by * a + shift - b) ** 2) / max(abs(by) ** 2, 1e-9)
    return by, shift, away


def _bent(points: F64, source: F64, target: F64, reach: float) -> F32:
    """Points (N, 3), moved as their nearest marks must be moved from `source` to `target` (5, 2)."""
    squares = ((points[:, None, :2] - source[None]) ** 2).sum(axis=2)
    weight = np.exp(-squares / (2 * reach**2))
    moved = points.copy()
    moved[:, :2] += (weight / (weight.sum(axis=1, keepdims=True) + 0.2)) @ (target - source)
    return moved.astype(np.float32)
