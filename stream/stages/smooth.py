"""Smooth: steadies what is painted from frame to frame, in face space, and puts it into the picture."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, transform_points
from unmask.stream.canvas import Canvas
from unmask.stream.frame import F64, U8, Face, Frame
from unmask.stream.stage import Context, Stage

F32 = npt.NDArray[np.float32]

_BEND_PX: Final = 2.5
"""Movement of the points, beyond what an affine map explains, at which the weight has fallen to 1/e (crop px)."""
_LIGHT: Final = 12.0
"""Difference in colour, averaged over the painted part, at which the weight has fallen to 1/e (of 255)."""
_STILL_PX: Final = 0.15
"""Below this movement the frame before is not resampled: resampling blurs a little each time."""


_MAX_GAIN: Final = 1.5
"""Detail that was blended is made stronger by this factor at most."""


@dataclass(slots=True)
class _Memory:
    painted: F32
    points: F32


def fit_affine(source: F32, target: F32) -> tuple[F64, float]:
    """The affine map that takes (N, 2) points to others, by least squares.

    Returns:
        (2, 3) float64, and the root mean square of what it leaves, in px.
    """
    ones = np.column_stack([source, np.ones(len(source), np.float32)]).astype(np.float64)
    solution = np.linalg.lstsq(ones, target.astype(np.float64), rcond=None)[0]
    residual = ones @ solution - target
    return np.asarray(solution.T, np.float64), float(np.sqrt((residual**2).sum(axis=1).mean()))


def _detail(picture: F32) -> F32:
    """What a picture (H, W, 3) has beyond its surroundings of 5x5 px."""
    return np.asarray(picture - cv2.blur(picture, (5, 5)), np.float32)


def with_detail_of(now: F32, blended: F32, mask: U8) -> F32:
    """Give a mean of frames as much fine detail as a single frame has.

    Detail that differs from frame to frame is averaged away, and resampling blurs; what is left is what stays from
    frame to frame, and is made stronger until it has the variance that it had.

    Args:
        now: (S, S, 3) float32, the single frame.
        blended: (S, S, 3) float32, its mean with the frames before.
        mask: (S, S) uint8, not 0 where detail is measured.

    Returns:
        (S, S, 3) float32.
    """
    detail = _detail(blended)
    wanted, left = (float(np.sum(cv2.meanStdDev(d, mask=mask)[1] ** 2)) for d in (_detail(now), detail))
    gain = min(_MAX_GAIN, float(np.sqrt(wanted / max(left, 1e-6))))
    return blended + np.float32(max(gain, 1.0) - 1.0) * detail


def _largest_move(matrix: F64) -> float:
    """How far the corners of the crop move under an affine map, px."""
    corners = np.array([[0, 0], [CROP_SIZE, 0], [0, CROP_SIZE], [CROP_SIZE, CROP_SIZE]], np.float32)
    return float(np.abs(transform_points(matrix, corners) - corners).max())


class Smooth(Stage):
    """Blends `painted` with the frame before, moved along with the face, and pastes it into the frame.

    The weight of the past falls where the face bends or the light changes, so that nothing smears. Fine detail keeps
    its strength, see `with_detail_of`.

    Args:
        keep: weight of the frame before on a face that is still, 0..1: at 0.8 what is painted settles in about five
            frames, at 0 each frame stands alone.
    """

    name: ClassVar[str] = "smooth"

    def __init__(self, keep: float = 0.8) -> None:
        self._keep = keep

    def open(self, context: Context) -> None:
        self._canvas = Canvas(context.layout)
        self._memory: dict[int, _Memory] = {}

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._memory.clear()
        for face in frame.faces:
            if face.masked:
                self._steady(face)
        # All faces are steadied before any is pasted: their crops were cut from the same untouched picture.
        for face in frame.faces:
            if face.masked:
                self._canvas.paste(frame, face.crop_from_frame, face.pictures.painted, face.pictures.mask)
        present = {face.track_id for face in frame.faces if face.masked}
        self._memory = {track: m for track, m in self._memory.items() if track in present}
        return (frame,)

    def _steady(self, face: Face) -> None:
        points = transform_points(face.crop_from_frame, face.landmarks_px)
        now = face.pictures.painted.astype(np.float32)
        memory = None if face.reset else self._memory.get(face.track_id)
        if memory is not None:
            now = self._blend(memory, now, points, face)
            face.pictures.painted[:] = np.clip(now + 0.5, 0, 255).astype(np.uint8)
        self._memory[face.track_id] = _Memory(now, points)

    def _blend(self, memory: _Memory, now: F32, points: F32, face: Face) -> F32:
        matrix, bend = fit_affine(memory.points, points)
        past = memory.painted
        if _largest_move(matrix) > _STILL_PX:
            size = (CROP_SIZE, CROP_SIZE)
            warped = cv2.warpAffine(past, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
            past = np.asarray(warped, np.float32)
        change = past - now
        light = float(np.abs(cv2.mean(change, mask=face.pictures.mask)[:3]).mean())
        weight = self._keep * float(np.exp(-((bend / _BEND_PX) ** 2) - (light / _LIGHT) ** 2))
        return with_detail_of(now, now + np.float32(weight) * change, face.pictures.mask)

    def summary(self) -> dict[str, Any]:
        return {}
