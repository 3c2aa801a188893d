"""What `--draw tracks` shows."""

from fractions import Fraction

import cv2
import numpy as np
import pytest

from unmask.stream.frame import Face, Frame, Layout
from unmask.stream.stage import Context
from unmask.stream.stages.draw import DrawTracks


@pytest.mark.parametrize("size_px", [60, 150, 400])
def test_colour_and_brightness_of_a_track_lie_in_the_same_place(size_px: int) -> None:
    layout = Layout(960, 720, "yuv420p")
    frame = Frame(0, 0, Fraction(1, 25), layout, np.full(layout.slot_bytes(1), 128, np.uint8), 0)
    x, y = 200.0, 150.0
    across = np.linspace(x, x + size_px, 468, dtype=np.float32)
    points = np.stack([across, across - x + y, np.zeros(468, np.float32)], axis=1)
    crop_from_frame = np.array([[256 / size_px, 0, -x * 256 / size_px], [0, 256 / size_px, -y * 256 / size_px]])
    box = (x, y, x + size_px, y + size_px)
    frame.faces.append(Face(0, box, 0.9, points, crop_from_frame, False, frame.face_pictures(0)))
    stage = DrawTracks()
    stage.open(Context(layout, 1))
    list(stage.process(frame))
    luma, *chroma = ((plane != 128).astype(np.uint8) for plane in frame.planes)
    label = luma[: int(y) - 6]
    assert label.any(), "the label stands above the face"
    near = cv2.dilate(luma, np.ones((13, 13), np.uint8))
    for plane in chroma:
        placed = cv2.resize(plane, (960, 720), interpolation=cv2.INTER_NEAREST)
        assert placed[: int(y) - 6].any()
        assert not (placed & ~near).any(), "no colour beside what was drawn"
