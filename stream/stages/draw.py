"""Draw: shows what the tracker found, for people who want to judge it."""

from collections.abc import Iterable
from typing import Any, ClassVar, Final

import cv2
import numpy as np

from unmask.models.geometry import CROP_SIZE, transform_points
from unmask.stream.canvas import inverse_affine
from unmask.stream.frame import F32, F64, Face, Frame, Plane
from unmask.stream.stage import Context, Stage

_COLOURS: Final = ((235, 64, 52), (64, 200, 80), (80, 130, 250), (240, 200, 40), (200, 90, 220), (60, 210, 210))
"""RGB, by track in turn."""

_CORNERS: Final = np.array([(0, 0), (CROP_SIZE, 0), (CROP_SIZE, CROP_SIZE), (0, CROP_SIZE)], np.float32)


class DrawTracks(Stage):
    """Draws the landmarks and the canonical crop of each face into the frame, with its track and score."""

    name: ClassVar[str] = "draw"

    def open(self, context: Context) -> None:
        layout = context.layout
        block = (1, 1)
        if layout.pixel_format.planar:
            sx, sy = layout.pixel_format.subsampling
            block = (1 << sx, 1 << sy)
        self._blocks = ((1, 1), block, block)
        self._scale = 1 << (layout.pixel_format.bits - 8)
        self._planar = layout.pixel_format.planar
        self._faces = 0

    def process(self, frame: Frame) -> Iterable[Frame]:
        for face in frame.faces:
            colour = _COLOURS[face.track_id % len(_COLOURS)]
            for number, plane in enumerate(frame.planes):
                value = self._value(colour, number)
                self._draw(plane, np.array(self._blocks[number]), face, value)
        self._faces += len(frame.faces)
        return (frame,)

    def summary(self) -> dict[str, Any]:
        return {"faces": self._faces}

    def _value(self, rgb: tuple[int, int, int], plane: int) -> tuple[float, ...]:
        """The samples of a colour in one plane; exact tones do not matter here."""
        if not self._planar:
            return tuple(map(float, rgb))
        yuv = cv2.cvtColor(np.array([[rgb]], np.uint8), cv2.COLOR_RGB2YUV)[0, 0]
        return (float(yuv[plane]) * self._scale,)

    def _draw(self, plane: Plane, block: F64, face: Face, value: tuple[float, ...]) -> None:
        across = float(face.box_px[2] - face.box_px[0]) / block[0]
        thickness = max(1, round(across / 90))
        crop = transform_points(inverse_affine(face.crop_from_frame), _CORNERS) / block
        cv2.polylines(plane, [_px(crop)], True, value, thickness, cv2.LINE_AA, 4)
        for x, y in _px(face.landmarks_px[:, :2] / block):
            cv2.circle(plane, (int(x), int(y)), 8 * thickness, value, -1, cv2.LINE_AA, 4)
        at = _px(np.array([(face.box_px[0], face.box_px[1] - 4)], np.float32) / block)[0] // 16
        size = float(np.clip(across * block[0] / 160, 0.4, 1.5)) / block[0]
        cv2.putText(
            plane, f"{face.track_id}: {face.score:.2f}", tuple(map(int, at)), cv2.FONT_HERSHEY_SIMPLEX, size, value
        )


def _px(points: F32 | F64) -> Any:
    """Points with four bits behind the point, as OpenCV draws them."""
    return np.rint(points * 16).astype(np.int32)
