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

from unmask.models.detections import (
    MESH_SIZE,
    Detection,
    merge_overlapping,
    points_to_frame,
    roi_from_detection,
    roi_from_landmarks,
)
from unmask.models.engine import compile_for_cpu
from unmask.models.rows import LANDMARKS
from unmask.models.vino import openvino

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


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
        points = self._request.get_output_tensor(0).data.reshape(LANDMARKS, 3).astype(np.float32)
        logit = float(self._request.get_output_tensor(1).data.reshape(-1)[0])
        return points, 1.0 / (1.0 + float(np.exp(-logit)))


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
