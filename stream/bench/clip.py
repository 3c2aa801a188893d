"""Clips for benchmarks: masked faces that move over a soft background, any size and number.

The face is Rear Admiral Grace Hopper's official portrait (public domain) with a drawn surgical mask.
"""

import math
from fractions import Fraction
from importlib.resources import files
from pathlib import Path
from typing import Final

import av
import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]

RATE: Final = 25
_LARGEST: Final = 0.8
"""Height of the picture of a face, in heights of the frame, where there is one; several share the space."""


def masked_portrait() -> U8:
    """(H, W, 3) uint8 RGB, head and shoulders."""
    data = np.frombuffer(files("unmask.stream.bench").joinpath("masked_portrait.jpg").read_bytes(), np.uint8)
    bgr = cv2.imdecode(data, cv2.IMREAD_COLOR)
    assert bgr is not None
    return np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), np.uint8)


def _background(width: int, height: int) -> U8:
    y, x = np.mgrid[:height, :width].astype(np.float32)
    waves = [np.sin(x / width * a + y / height * b) for a, b in ((3.0, 2.0), (1.0, 4.0), (2.0, 3.0))]
    return np.asarray(110 + 60 * np.stack(waves, axis=2), np.uint8)


def _places(width: int, height: int, faces: int) -> list[tuple[int, int, int]]:
    """Column, row and height in px of each face: in a grid that fills the frame."""
    if not faces:
        return []
    columns = math.ceil(math.sqrt(faces * width / height / 1.2))
    rows = math.ceil(faces / columns)
    cell_w, cell_h = width / columns, height / rows
    size = round(_LARGEST * min(cell_h, cell_w * 1.1))
    return [(round((i % columns + 0.5) * cell_w), round((i // columns + 0.5) * cell_h), size) for i in range(faces)]


def write_clip(path: Path, width: int, height: int, faces: int, frames: int) -> None:
    """Write an H.264 clip of 25 frames/s in which every face sways a little, each in its own time.

    Args:
        path: the file; its suffix names the container.
        width, height: px, even.
        faces: how many, 0 for none.
        frames: how many.
    """
    portrait, background = masked_portrait(), _background(width, height)
    places = _places(width, height, faces)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "18", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for number in range(frames):
            rgb = background.copy()
            for index, (x, y, size) in enumerate(places):
                _put(rgb, portrait, x, y, size, number / RATE + index)
            frame = av.VideoFrame.from_ndarray(rgb, "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def _put(rgb: U8, portrait: U8, x: int, y: int, size: int, seconds: float) -> None:
    """Draw the portrait with its middle near (x, y), `size` px high, swaying."""
    scale = size / portrait.shape[0]
    width = round(portrait.shape[1] * scale)
    matrix = cv2.getRotationMatrix2D((portrait.shape[1] / 2, portrait.shape[0] / 2), 4 * math.sin(seconds), scale)
    matrix[:, 2] += (width / 2 - portrait.shape[1] / 2, size / 2 - portrait.shape[0] / 2)
    matrix[0, 2] += 0.03 * size * math.sin(1.7 * seconds)
    drawn = cv2.warpAffine(portrait, matrix, (width, size), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REPLICATE)
    top, left = max(0, y - size // 2), max(0, x - width // 2)
    part = rgb[top : top + size, left : left + width]
    part[...] = drawn[: part.shape[0], : part.shape[1]]
