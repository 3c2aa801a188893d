"""This project's own face detector as it runs, with the interface of `unmask.models.mediapipe.FaceDetector`."""

from typing import Final

import numpy as np
import numpy.typing as npt

from unmask.models.engine import compile_for_cpu, cpu_precision
from unmask.models.mediapipe import Detection, merge_overlapping
from unmask.models.rows import cell_centres

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_KINDS: Final = slice(5, 8)
_POINTS: Final = slice(8, 18)
_SAME_FACE: Final = 0.4
"""IoU."""


class MaskedFaceDetector:
    """Finds faces with and without masks in pictures of one size.

    Args:
        size: height and width in px, multiples of 32.
        threads: CPU threads; 0 leaves it to OpenVINO.
    """

    def __init__(self, size: tuple[int, int], threads: int = 0) -> None:
        model = compile_for_cpu("detector.onnx", cpu_precision(), threads, size)
        self._request = model.create_infer_request()
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
        self._request.infer([np.ascontiguousarray(rgb[None])], share_inputs=True)
        rows = self._request.get_output_tensor(0).data[0]
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
