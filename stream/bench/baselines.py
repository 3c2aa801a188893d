"""The loops that people write, for comparison: `python -m unmask.stream.bench.baselines KIND CLIP REPORT`.

Each reads with OpenCV, finds the faces with MediaPipe's networks, takes the mask off and writes with OpenCV (MPEG-4),
frame by frame in one thread:

    eager     our networks in PyTorch, float32, without an engine
    onnx      our networks in ONNX Runtime
    telea     our segmenter in ONNX Runtime, OpenCV's Telea inpainting instead of the inpainter

Frames are counted after the first, so that loading is left out.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import canonical_crop
from unmask.models.mask_region import mask_region
from unmask.models.mediapipe import FaceDetector, FaceMesh, find_landmarks

U8 = npt.NDArray[np.uint8]
Find = Callable[[U8], U8]
Paint = Callable[[U8, U8], U8]


def eager() -> tuple[Find, Paint]:
    """Both networks in PyTorch."""
    from unmask.models.engine import TorchEngine

    segmenter, inpainter = TorchEngine("segmenter"), TorchEngine("inpainter")
    return lambda crop: segmenter(crop[None])[0], lambda crop, mask: inpainter(crop[None], mask[None])[0]


def onnx() -> tuple[Find, Paint]:
    """Both networks in ONNX Runtime."""
    import onnxruntime

    from unmask.models.engine import weights_file

    def load(name: str) -> Any:
        return onnxruntime.InferenceSession(str(weights_file(f"{name}.onnx")), providers=["CPUExecutionProvider"])

    segmenter, inpainter = load("segmenter"), load("inpainter")
    return (
        lambda crop: np.asarray(segmenter.run(None, {"rgb": crop[None]})[0][0]),
        lambda crop, mask: np.asarray(inpainter.run(None, {"rgb": crop[None], "mask": mask[None]})[0][0]),
    )


def telea() -> tuple[Find, Paint]:
    """The segmenter in ONNX Runtime, and Telea."""
    find, _ = onnx()
    return find, lambda crop, mask: np.asarray(cv2.inpaint(crop, mask, 5, cv2.INPAINT_TELEA), np.uint8)


def unmask_frame(rgb: U8, detector: FaceDetector, mesh: FaceMesh, find: Find, paint: Paint) -> int:
    """Take the masks off one picture, in place. Returns how many."""
    removed = 0
    for _, landmarks, _ in find_landmarks(rgb, detector, mesh):
        matrix = canonical_crop(landmarks)
        crop = np.asarray(cv2.warpAffine(rgb, matrix, (256, 256)), np.uint8)
        mask = mask_region(find(crop))
        if not mask.any():
            continue
        mask = np.asarray(cv2.dilate(mask, np.ones((9, 9), np.uint8)), np.uint8)
        size = (rgb.shape[1], rgb.shape[0])
        back = cv2.warpAffine(paint(crop, mask), matrix, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
        hidden = cv2.warpAffine(mask, matrix, size, flags=cv2.INTER_NEAREST | cv2.WARP_INVERSE_MAP) > 0
        rgb[hidden] = back[hidden]
        removed += 1
    return removed


KINDS: Final = {"eager": eager, "onnx": onnx, "telea": telea}


def loop(kind: str, clip: Path) -> dict[str, Any]:
    """Run one baseline. Returns the report of a benchmark."""
    began = time.perf_counter()
    find, paint = KINDS[kind]()
    detector, mesh = FaceDetector("full"), FaceMesh()
    reader = cv2.VideoCapture(str(clip))
    size = (int(reader.get(cv2.CAP_PROP_FRAME_WIDTH)), int(reader.get(cv2.CAP_PROP_FRAME_HEIGHT)))
    writer = cv2.VideoWriter(str(clip.with_suffix(f".{kind}.mp4")), cv2.VideoWriter.fourcc(*"mp4v"), 25, size)
    removed = frames = 0
    first = 0.0
    while True:
        there, bgr = reader.read()
        if not there:
            break
        rgb = np.ascontiguousarray(bgr[..., ::-1], np.uint8)
        removed += unmask_frame(rgb, detector, mesh, find, paint)
        writer.write(rgb[..., ::-1])
        frames += 1
        first = first or time.perf_counter()
    writer.release()
    return {
        "seconds": time.perf_counter() - began,
        "open_seconds": first - began,
        "counted": frames - 1,
        "masks_removed": removed,
        "engine": kind,
        "encoder": "OpenCV mp4v",
        "stages": {},
    }


if __name__ == "__main__":
    Path(sys.argv[3]).write_text(json.dumps(loop(sys.argv[1], Path(sys.argv[2]))))
