"""MediaPipe's face networks (0.10.21, Apache-2.0), run by OpenVINO: two detectors and a 468-point mesh.

Running the three TFLite files directly, instead of MediaPipe's graphs, leaves the decision when a face counts as found
to the tracker (the graphs drop most masked faces by the mesh's own presence score), and spares its users MediaPipe's
dependencies. The arithmetic around the networks follows MediaPipe's published graph options; a test compares it with
MediaPipe's own results.

    Bazarevsky et al., BlazeFace, arXiv:1907.05047
    Kartynnik et al., Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs, arXiv:1907.06724
"""

from dataclasses import dataclass
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.engine import compile_for_cpu
from unmask.models.geometry import head_pose
from unmask.models.rows import overlap
from unmask.models.vino import openvino

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

MESH_SIZE: Final = 192
"""Width and height in px of the picture that the mesh network sees."""

MESH_POINTS: Final = 468
RIGHT_EYE_OUTER: Final = 33
LEFT_EYE_OUTER: Final = 263
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


@dataclass(frozen=True, slots=True)
class _DetectorSpec:
    file: str
    size: int
    anchors: tuple[tuple[int, int], ...]
    """(stride in px, anchors per cell) of each output layer."""


_DETECTORS: Final = {
    "short": _DetectorSpec("face_detection_short_range.tflite", 128, ((8, 2), (16, 6))),
    "full": _DetectorSpec("face_detection_full_range_sparse.tflite", 192, ((4, 1),)),
}


def _compile(file: str, threads: int) -> openvino.InferRequest:
    # Full precision: bfloat16 moves the mesh by up to a pixel, and these networks take under 2 ms anyway.
    return compile_for_cpu(file, "f32", threads).model.create_infer_request()


def _anchor_centres(spec: _DetectorSpec) -> F32:
    """(N, 2) x, y centres of the anchors, 0..1, in the order of the network's output."""
    layers = []
    for stride, count in spec.anchors:
        cells = spec.size // stride
        y, x = np.mgrid[:cells, :cells].astype(np.float32)
        centres = (np.stack([x, y], axis=-1).reshape(-1, 2) + 0.5) / cells
        layers.append(np.repeat(centres, count, axis=0))
    return np.concatenate(layers)


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


class FaceDetector:
    """BlazeFace. `reach` "short" is for faces within about 2 m of the camera (128 px input), "full" for 5 m (192 px).

    Args:
        reach: which of the two networks.
        threads: CPU threads.
    """

    def __init__(self, reach: Literal["short", "full"] = "short", threads: int = 1) -> None:
        self._spec = _DETECTORS[reach]
        self._request = _compile(self._spec.file, threads)
        self._centres = _anchor_centres(self._spec)

    def __call__(self, rgb: U8, min_score: float = 0.5) -> list[Detection]:
        """Find faces.

        Args:
            rgb: (H, W, 3) uint8.
            min_score: 0..1.

        Returns:
            Detections, best first.
        """
        size = self._spec.size
        height, width = rgb.shape[:2]
        scale = size / max(height, width)
        fitted = (max(1, round(width * scale)), max(1, round(height * scale)))
        left, top = (size - fitted[0]) // 2, (size - fitted[1]) // 2
        canvas = np.zeros((size, size, 3), np.float32)
        small = cv2.resize(rgb, fitted, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
        canvas[top : top + fitted[1], left : left + fitted[0]] = small
        raw, scores = self._run(canvas / 127.5 - 1.0)
        keep = scores >= min_score
        if not keep.any():
            return []
        boxes = self._decode(raw[keep], self._centres[keep])
        boxes, scores = merge_overlapping(boxes, scores[keep])
        to_px = np.array([width / fitted[0], height / fitted[1]], np.float32)
        points = (boxes.reshape(len(boxes), -1, 2) - (left, top)) * to_px
        return [
            Detection(
                (float(p[0, 0]), float(p[0, 1]), float(p[1, 0]), float(p[1, 1])), p[2:].astype(np.float32), float(s)
            )
            for p, s in zip(points, scores, strict=True)
        ]

    def _run(self, canvas: F32) -> tuple[F32, F32]:
        self._request.infer([canvas[None]])
        raw = self._request.get_output_tensor(0).data[0].copy()
        logits = self._request.get_output_tensor(1).data[0, :, 0]
        return raw, 1.0 / (1.0 + np.exp(-np.clip(logits, -50, 50)))

    def _decode(self, raw: F32, centres: F32) -> F32:
        """(N, 16) raw outputs to (N, 16): x0, y0, x1, y1 and six points, in px of the network's picture."""
        out = raw + np.tile(centres * self._spec.size, 8)
        half = raw[:, 2:4] / 2
        centre = out[:, 0:2].copy()
        out[:, 0:2], out[:, 2:4] = centre - half, centre + half
        return out


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


class FaceMesh:
    """The 468-point face mesh.

    Args:
        threads: CPU threads.
    """

    def __init__(self, threads: int = 1) -> None:
        self._request = _compile("face_landmark.tflite", threads)

    def __call__(self, roi_rgb: U8) -> tuple[F32, float]:
        """Find the points of one face.

        Args:
            roi_rgb: (192, 192, 3) uint8, the face upright, filling about two thirds of the picture.

        Returns:
            (468, 3) float32: x, y in px of `roi_rgb`, z (towards the camera is negative) on the same scale; and how
            sure the network is that it sees a face, 0..1 (low on masked faces even where the points are good).
        """
        self._request.infer([roi_rgb[None].astype(np.float32) / 255.0])
        points = self._request.get_output_tensor(0).data.reshape(MESH_POINTS, 3).astype(np.float32)
        logit = float(self._request.get_output_tensor(1).data.reshape(-1)[0])
        return points, 1.0 / (1.0 + float(np.exp(-logit)))


def points_to_frame(points: F32, roi: F64) -> F32:
    """Map (468, 3) points from px of the mesh's picture back to px of the frame; `roi` maps the other way."""
    back = cv2.invertAffineTransform(roi)
    scale = float(np.sqrt(abs(np.linalg.det(back[:, :2]))))
    flat = points[:, :2] @ back[:, :2].T + back[:, 2]
    return np.asarray(np.concatenate([flat, points[:, 2:] * scale], axis=1), np.float32)


def find_landmarks(
    rgb: U8, detector: FaceDetector, mesh: FaceMesh, rounds: int = 2, min_score: float = 0.5
) -> list[tuple[Detection, F32, float]]:
    """Detect the faces of a still picture and their points.

    Args:
        rgb: (H, W, 3) uint8.
        rounds: how often the mesh is run on a face; each round looks where the round before found it.
        min_score: of a detection, 0..1.

    Returns:
        For each face its detection, (468, 3) float32 landmarks in px, and the mesh's presence score.
    """
    found = []
    for detection in detector(rgb, min_score):
        roi = roi_from_detection(detection)
        for _ in range(rounds):
            crop = cv2.warpAffine(rgb, roi, (MESH_SIZE, MESH_SIZE), flags=cv2.INTER_LINEAR)
            points, presence = mesh(crop.astype(np.uint8, copy=False))
            landmarks = points_to_frame(points, roi)
            roi = roi_from_landmarks(landmarks)
        found.append((detection, landmarks, presence))
    return found
