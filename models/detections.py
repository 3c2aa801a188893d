"""What any network that finds faces gives, and the view of a face that any network of points is shown."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import head_pose
from unmask.models.rows import overlap

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

MESH_SIZE: Final = 192
"""Width and height in px of the view that networks of points are shown, MediaPipe's and ours (which shrinks it)."""

RIGHT_EYE_OUTER: Final = 33
LEFT_EYE_OUTER: Final = 263
"""Points of the mesh, as the person has them."""

_ROI_SCALE: Final = 1.5


@dataclass(frozen=True, slots=True)
class Detection:
    """A face box found by the detector.

    Args:
        box_px: (x0, y0, x1, y1) in px of the picture.
        keypoints_px: (6, 2) float32: right eye, left eye, nose tip, mouth centre, right ear, left ear. Other detectors
            give other points, but the eyes first.
        score: 0..1.
        kinds: how likely the face is of each of `unmask.models.rows.KINDS`; empty where the detector does not know.
    """

    box_px: tuple[float, float, float, float]
    keypoints_px: F32
    score: float
    kinds: tuple[float, ...] = ()


def merge_overlapping(boxes: F32, scores: F32, threshold: float = 0.3) -> tuple[F32, F32]:
    """Non-maximum suppression that averages what it suppresses, weighted by score (BlazeFace, section 3.4).

    Args:
        boxes: (N, 4 + K) float32; x0, y0, x1, y1, then coordinates to be averaged along.
        scores: (N,) float32.
        threshold: boxes that overlap more than this (IoU) are one face.

    Returns:
        The merged boxes (M, 4 + K) and their scores (M,), best first.
    """
    order = np.argsort(-scores)
    boxes, scores = boxes[order], scores[order]
    same = overlap(boxes[:, :4], boxes[:, :4]) > threshold
    np.fill_diagonal(same, val=True)
    left, merged, best = np.ones(len(boxes), bool), [], []
    for first in range(len(boxes)):
        if left[first]:
            group = np.flatnonzero(same[first] & left)
            left[group] = False
            merged.append(scores[group] @ boxes[group] / scores[group].sum())
            best.append(scores[first])
    return np.array(merged, np.float32).reshape(-1, boxes.shape[1]), np.array(best, np.float32)


def roi_from_detection(detection: Detection) -> F64:
    """The region that the mesh should look at: (2, 3) affine from picture px to px of the mesh's picture."""
    x0, y0, x1, y1 = detection.box_px
    right_eye, left_eye = detection.keypoints_px[0], detection.keypoints_px[1]
    side = max(x1 - x0, y1 - y0) * _ROI_SCALE
    return _roi(((x0 + x1) / 2, (y0 + y1) / 2), side, _roll(right_eye, left_eye))


def roi_from_landmarks(points: F32) -> F64:
    """The same, from the (468, 3) landmarks of the frame before, in px, turned as the line between the eyes is: what
    MediaPipe's mesh was trained on."""
    return _turned_roi(points, _roll(points[RIGHT_EYE_OUTER, :2], points[LEFT_EYE_OUTER, :2]))


def upright_roi(points: F32) -> F64:
    """The same, turned as the whole head is: in profile the line between the eyes points towards the camera, and says
    nothing of that."""
    return _turned_roi(points, head_pose(points).roll)


def _turned_roi(points: F32, roll: float) -> F64:
    upright = cv2.getRotationMatrix2D((0, 0), float(np.degrees(roll)), 1.0)[:, :2]
    turned = points[:, :2] @ upright.T
    low, high = turned.min(axis=0), turned.max(axis=0)
    centre = (low + high) / 2 @ upright  # turned back
    return _roi((float(centre[0]), float(centre[1])), float((high - low).max()) * _ROI_SCALE, roll)


def _roll(right_eye: F32, left_eye: F32) -> float:
    """Angle of the line between the eyes in radians, positive where the left eye (the picture's right) is lower."""
    return float(np.arctan2(left_eye[1] - right_eye[1], left_eye[0] - right_eye[0]))


def _roi(centre: tuple[float, float], side: float, roll: float) -> F64:
    scale = MESH_SIZE / max(side, 1.0)
    matrix: F64 = cv2.getRotationMatrix2D(centre, float(np.degrees(roll)), scale).astype(np.float64)
    matrix[:, 2] += MESH_SIZE / 2 - np.array(centre)
    return matrix


def points_to_frame(points: F32, roi: F64) -> F32:
    """Map (468, 3) points from px of the mesh's picture back to px of the frame; `roi` maps the other way."""
    back = cv2.invertAffineTransform(roi)
    scale = float(np.sqrt(abs(np.linalg.det(back[:, :2]))))
    flat = points[:, :2] @ back[:, :2].T + back[:, 2]
    return np.asarray(np.concatenate([flat, points[:, 2:] * scale], axis=1), np.float32)
