"""The canonical face crop: the one frame of reference that every network sees, in training and in the pipeline.

The crop is a similarity (scale, turn in the plane, shift) of the picture, computed from points above a mask: eyes,
brows, nose bridge, forehead, temples. They are fitted in three dimensions, because a fit in the plane would zoom in on
a face that turns away. Consecutive crops of a moving head therefore line up.
"""

from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

CROP_SIZE: Final = 256
"""Width and height of the canonical crop in px."""

EYE_DISTANCE_PX: Final = 98.0
"""Distance of the outer eye corners of a frontal face in the canonical crop, in px."""

_ANCHOR: Final = np.array([0.0, 0.25, 0.25])
"""The point of the head, in template units, that stays fixed in the crop: about the axis around which a head turns."""

_ANCHOR_PX: Final = (128.0, 124.0)

# Mesh point, x (to the picture's right), y (down), z (away from the camera); unit: distance of the outer eye corners,
# origin between them. Mean of the meshes of 3,700 bare faces after generalised Procrustes alignment, made symmetric.
_TEMPLATE: Final = (
    (10, 0.0, -0.613, -0.148),
    (151, 0.0, -0.437, -0.202),
    (9, 0.0, -0.249, -0.246),
    (8, 0.0, -0.152, -0.239),
    (168, 0.0, -0.070, -0.241),
    (6, 0.0, 0.012, -0.296),
    (197, 0.0, 0.086, -0.358),
    (33, -0.500, 0.000, 0.000),
    (263, 0.500, 0.000, 0.000),
    (133, -0.193, 0.014, -0.063),
    (362, 0.193, 0.014, -0.063),
    (159, -0.365, -0.062, -0.085),
    (386, 0.365, -0.062, -0.085),
    (145, -0.347, 0.036, -0.082),
    (374, 0.347, 0.036, -0.082),
    (70, -0.628, -0.161, 0.023),
    (300, 0.628, -0.161, 0.023),
    (105, -0.449, -0.276, -0.135),
    (334, 0.449, -0.276, -0.135),
    (107, -0.159, -0.262, -0.236),
    (336, 0.159, -0.262, -0.236),
    (55, -0.137, -0.164, -0.216),
    (285, 0.137, -0.164, -0.216),
    (127, -0.772, 0.108, 0.538),
    (356, 0.772, 0.108, 0.538),
    (21, -0.727, -0.224, 0.310),
    (251, 0.727, -0.224, 0.310),
    (162, -0.762, -0.073, 0.440),
    (389, 0.762, -0.073, 0.440),
)
ANCHOR_POINTS: Final = np.array([row[0] for row in _TEMPLATE])
"""The points of the mesh that place the canonical crop."""

_SHAPE: Final = np.array([row[1:] for row in _TEMPLATE], np.float64)
_MEAN_SHAPE: Final = _SHAPE.mean(axis=0)
_CENTRED_SHAPE: Final = _SHAPE - _MEAN_SHAPE
_SHAPE_EXTENT: Final = float((_CENTRED_SHAPE**2).sum())


class Pose(NamedTuple):
    """Where a head is, as a weak-perspective view of the template.

    Attributes:
        scale: px per distance of the outer eye corners.
        rotation: (3, 3) float64, turns template axes into picture axes.
        shift: (3,) float64 px; a template point p is seen at scale * rotation @ p + shift.
    """

    scale: float
    rotation: F64
    shift: F64

    @property
    def roll(self) -> float:
        """Turn in the picture plane, radians, clockwise as seen."""
        r = self.rotation
        return float(np.arctan2(r[1, 0] - r[0, 1], r[0, 0] + r[1, 1]))

    @property
    def yaw(self) -> float:
        """Turn to the side, radians; 0 looks into the camera."""
        return float(np.arctan2(-self.rotation[0, 2], self.rotation[2, 2]))


def head_pose(landmarks_px: F32) -> Pose:
    """Fit the template to the points above a mask (orthogonal Procrustes; Umeyama 1991, doi:10.1109/34.88573).

    Args:
        landmarks_px: (468, 3) float32, x, y in px, z on the same scale.

    Raises:
        ValueError: the points coincide or are not finite.
    """
    seen = landmarks_px[ANCHOR_POINTS].astype(np.float64)
    if not np.isfinite(seen).all() or np.ptp(seen[:, :2]) < 1e-6:
        raise ValueError("the landmarks coincide or are not finite")
    mean_seen = seen.mean(axis=0)
    u, s, vt = np.linalg.svd((seen - mean_seen).T @ _CENTRED_SHAPE)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    rotation = (u * signs) @ vt
    scale = float((s * signs).sum() / _SHAPE_EXTENT)
    return Pose(scale, rotation, mean_seen - scale * rotation @ _MEAN_SHAPE)


def similarity(scale: float, roll: float, anchor_px: tuple[float, float]) -> F64:
    """The affine map into the canonical crop of a head seen at `scale` px per eye distance, turned by `roll` radians,
    whose anchor lies at `anchor_px`. Returns (2, 3) float64."""
    zoom = EYE_DISTANCE_PX / scale
    cos, sin = zoom * np.cos(roll), zoom * np.sin(roll)
    linear = np.array([[cos, sin], [-sin, cos]])
    return np.column_stack([linear, np.array(_ANCHOR_PX) - linear @ np.array(anchor_px)])


class CropPose(NamedTuple):
    """The four numbers that place a canonical crop; what is smoothed over time.

    Attributes:
        scale: px of the picture per distance of the outer eye corners.
        roll: radians, clockwise as seen.
        x, y: px of the picture where the crop's anchor lies.
    """

    scale: float
    roll: float
    x: float
    y: float

    def matrix(self) -> F64:
        """(2, 3) float64 affine map from px of the picture to px of the crop."""
        return similarity(self.scale, self.roll, (self.x, self.y))


def crop_pose(landmarks_px: F32) -> CropPose:
    """Where the canonical crop of a face lies; arguments and errors as `head_pose`."""
    pose = head_pose(landmarks_px)
    anchor = pose.scale * pose.rotation @ _ANCHOR + pose.shift
    return CropPose(pose.scale, pose.roll, float(anchor[0]), float(anchor[1]))


def canonical_crop(landmarks_px: F32) -> F64:
    """(2, 3) float64 affine map from px of the picture to px of the canonical crop; arguments as `head_pose`."""
    return crop_pose(landmarks_px).matrix()


def transform_points(matrix: F64, points: F32) -> F32:
    """Map (N, 2 or more) points by a (2, 3) affine matrix, from their first two columns. Returns (N, 2) float32."""
    return np.asarray(points[:, :2] @ matrix[:, :2].T + matrix[:, 2], np.float32)


def transform_landmarks(matrix: F64, points: F32) -> F32:
    """Map (N, 3) landmarks by a (2, 3) similarity: x and y as points, depth by its scale. Returns (N, 3) float32."""
    zoom = np.sqrt(abs(np.linalg.det(matrix[:, :2])))
    return np.column_stack([transform_points(matrix, points), zoom * points[:, 2:]]).astype(np.float32)


def fit_affine(source: F32, target: F32) -> tuple[F64, float]:
    """The affine map that takes (N, 2) points, or (N, 3) with their depth, to other (N, 2), by least squares.

    Returns:
        (2, 3), with depth (2, 4) float64, and the root mean square of what it leaves, in px.
    """
    ones = np.column_stack([source, np.ones(len(source), np.float32)]).astype(np.float64)
    solution = np.linalg.lstsq(ones, target.astype(np.float64), rcond=None)[0]
    residual = ones @ solution - target
    return np.asarray(solution.T, np.float64), float(np.sqrt((residual**2).sum(axis=1).mean()))


def largest_move(matrix: F64) -> float:
    """How far the corners of the canonical crop move under a (2, 3) affine map, px."""
    corners = np.array([[0, 0], [CROP_SIZE, 0], [0, CROP_SIZE], [CROP_SIZE, CROP_SIZE]], np.float32)
    return float(np.abs(transform_points(matrix, corners) - corners).max())
