"""Smooth: steadies what is painted from frame to frame, in face space, and puts it into the picture."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, fit_affine, largest_move, transform_points
from unmask.stream.canvas import canvas_for
from unmask.stream.frame import U8, Face, Frame
from unmask.stream.stage import Context, Stage

F32 = npt.NDArray[np.float32]

_BEND_PX: Final = 4.0
"""Movement of the points, beyond what an affine map explains, at which the weight has fallen to 1/e (crop px)."""
_LIGHT: Final = 12.0
"""Difference in colour, averaged over the painted part, at which the weight has fallen to 1/e (of 255)."""
_UNLIKE: Final = 25.0
"""Standard deviation of that difference from pixel to pixel, from which on little is kept (of 255): what was shown
before does not lie where the face is now, whatever the points say."""
_STILL_PX: Final = 0.15
"""Below this movement the frame before is not resampled: resampling blurs a little each time."""


_AROUND_PX: Final = 8
"""How far around the mask what is painted is steadied: the mask moves a little from frame to frame."""

_FINE_PX: Final = 5
"""Window of the Gaussian that tells shape and light, which are steadied, from fine detail, which is each frame's own: a
mean of frames averages detail away, and of what flickers it is the lesser part."""


@dataclass(slots=True)
class _Memory:
    """What was shown of a face.

    Attributes:
        painted: (S, S, 3) float32, 0..255.
        mask: (S, S) uint8, above 0 where that was shown: elsewhere a network's picture means nothing.
        points: (468, 2) float32 landmarks in px of the crop.
    """

    painted: F32
    mask: U8
    points: F32


def _around(mask: U8) -> tuple[slice, slice] | None:
    """Rows and columns of a mask and a little around it; None where it is empty."""
    x, y, width, height = cv2.boundingRect(mask)
    if width == 0:
        return None
    rows = slice(max(0, y - _AROUND_PX), min(CROP_SIZE, y + height + _AROUND_PX))
    return rows, slice(max(0, x - _AROUND_PX), min(CROP_SIZE, x + width + _AROUND_PX))


def _moved(memory: _Memory, points: F32, part: tuple[slice, slice]) -> tuple[F32, U8, float]:
    """What was shown in `part` of the crop, and where, moved by an affine map of the points; and what that map leaves,
    px."""
    matrix, bend = fit_affine(memory.points, points)
    if largest_move(matrix) <= _STILL_PX:
        return memory.painted[part], memory.mask[part], bend
    rows, columns = part
    matrix[:, 2] -= (columns.start, rows.start)
    size = (columns.stop - columns.start, rows.stop - rows.start)
    painted = cv2.warpAffine(memory.painted, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    mask = cv2.warpAffine(memory.mask, matrix, size, flags=cv2.INTER_NEAREST)
    return np.asarray(painted, np.float32), np.asarray(mask, np.uint8), bend


class Smooth(Stage):
    """Blends `painted` with the frame before, moved along with the face, and pastes it into the frame.

    The weight of the past falls where the face bends or the light changes, so that nothing smears. Fine detail is that
    of each frame, and stays nearly as sharp as it was painted.

    Args:
        keep: weight of the frame before on a face that is still, 0..1: at 0.8 what is painted settles in about six
            frames, at 0 each frame stands alone.
    """

    name: ClassVar[str] = "smooth"

    def __init__(self, keep: float = 0.80) -> None:
        self._keep = keep

    def open(self, context: Context) -> None:
        self._canvas = canvas_for(context.layout)
        self._memory: dict[int, _Memory] = {}

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._memory.clear()
        masked = [face for face in frame.faces if face.masked]
        for face in masked:
            self._steady(face)
        if masked:
            pictures = [(face.crop_from_frame, face.pictures.painted, face.pictures.mask) for face in masked]
            self._canvas.paste_all(frame, pictures)
        present = {face.track_id for face in masked}
        self._memory = {track: m for track, m in self._memory.items() if track in present}
        return (frame,)

    def _steady(self, face: Face) -> None:
        now, mask = face.pictures.painted.astype(np.float32), face.pictures.mask
        memory = None if face.reset else self._memory.get(face.track_id)
        if face.still and memory is not None:
            points = memory.points  # which may be better ones than the tracker's, if a mask covers eyes
        else:
            points = transform_points(face.crop_from_frame, face.landmarks_px)
        part = _around(mask)
        if memory is not None and part is not None:
            still = memory.painted[part], memory.mask[part], 0.0
            past, known, bend = still if face.still else _moved(memory, points, part)
            change = self._change(past, now[part], cv2.min(known, mask[part]), bend)
            shown = now[part] + cv2.GaussianBlur(change, (_FINE_PX, _FINE_PX), 0)
            face.pictures.painted[part] = np.clip(shown + 0.5, 0, 255).astype(np.uint8)
            now[part] = shown
        self._memory[face.track_id] = _Memory(now, mask.copy(), points)

    def _change(self, past: F32, now: F32, both: U8, bend: float) -> F32:
        """How far to go from what is painted now, (H, W, 3) float32, to `past`, what was shown in the frame before,
        where both were (not 0), after which points have moved by `bend` px besides: (H, W, 3) float32."""
        change = cv2.copyTo(cv2.subtract(past, now), both)
        mean, spread = cv2.meanStdDev(change, mask=both)
        light, unlike = float(np.abs(mean).mean()), float(spread.mean())
        exponent = (bend / _BEND_PX) ** 2 + (light / _LIGHT) ** 2 + (unlike / _UNLIKE) ** 4
        return np.asarray(cv2.multiply(change, (self._keep * math.exp(-exponent),) * 4), np.float32)

    def summary(self) -> dict[str, Any]:
        return {}
