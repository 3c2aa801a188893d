"""This project's own face detector and landmarker as they run, with the interfaces of `unmask.models.mediapipe`."""

from typing import Final

import numpy as np
import numpy.typing as npt

from unmask.models.detections import Detection, merge_overlapping
from unmask.models.engine import compile_for_cpu
from unmask.models.rows import LANDMARKS, cell_centres
from unmask.models.vino import openvino

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_KINDS: Final = slice(5, 8)
_POINTS: Final = slice(8, 18)
_SAME_FACE: Final = 0.4
"""IoU."""


class _Network:
    """A compiled network of one picture, with memory of its own for it: handing over a new array with each picture
    takes a tenth of a millisecond, as long as a seventh of the landmarker."""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._request = model.create_infer_request()
        self._picture = np.zeros(tuple(model.input(0).shape), np.uint8)
        self._request.set_input_tensor(openvino.Tensor(self._picture, shared_memory=True))
        self._output = self._request.get_output_tensor(0).data

    def __call__(self, rgb: U8) -> F32:
        """(H, W, 3) uint8 to what the network says of it, valid until the next call."""
        self._picture[0] = rgb
        self._request.infer()
        result: F32 = self._output[0]
        return result


class MaskedFaceDetector:
    """Finds faces with and without masks in pictures of one size.

    Args:
        size: height and width in px, multiples of 32.
        threads: CPU threads; 0 leaves it to OpenVINO.
    """

    def __init__(self, size: tuple[int, int], threads: int = 0) -> None:
        self._rows = _Network(compile_for_cpu("detector.onnx", threads=threads, size=size).model)
        self._centres = cell_centres(*size)

    def __call__(self, rgb: U8, min_score: float = 0.5) -> list[Detection]:
        """Find faces.

        Args:
            rgb: (H, W, 3) uint8, of the size that was given.
            min_score: 0..1.

        Returns:
            Detections, best first. Their five keypoints are the eyes, the tip of the nose and the corners of the mouth,
            each first on the person's right.
        """
        rows = self._rows(rgb)
        keep = np.flatnonzero(rows[:, 0] >= min_score)
        if not len(keep):
            return []
        row, centres = rows[keep].astype(np.float32), self._centres[keep]
        boxes = np.concatenate([centres - row[:, 1:3], centres + row[:, 3:5]], axis=1)
        points = row[:, _POINTS] + np.tile(centres, 5)
        merged, scores = merge_overlapping(
            np.concatenate([boxes, points, row[:, _KINDS]], axis=1), row[:, 0], _SAME_FACE
        )
        return [
            Detection(
                (float(m[0]), float(m[1]), float(m[2]), float(m[3])),
                m[4:14].reshape(5, 2).copy(),
                float(score),
                (float(m[14]), float(m[15]), float(m[16])),
            )
            for m, score in zip(merged, scores, strict=True)
        ]


class FaceLandmarker:
    """The points of a face with or without a mask.

    Args:
        threads: CPU threads.
    """

    def __init__(self, threads: int = 1) -> None:
        # In float32, so that points are the same on every processor; in bfloat16 they move by 0.1 px, in 0.4 ms a face
        # instead of 0.55.
        self._points = _Network(compile_for_cpu("landmarker.onnx", "f32", threads).model)

    def __call__(self, roi_rgb: U8) -> tuple[F32, float]:
        """Find the points of one face.

        Args:
            roi_rgb: (S, S, 3) uint8, S = `unmask.models.rows.LANDMARKER_SIZE`; the face upright, filling about two
                thirds of the picture.

        Returns:
            (468, 3) float32: x, y in px of `roi_rgb`, z (towards the camera is negative) on the same scale; and how
            likely it is that there is a face, and that it is where these points are, 0..1.
        """
        out = self._points(roi_rgb).astype(np.float32)
        return out[:-1].reshape(LANDMARKS, 3), float(out[-1])
