"""smooth: when what was shown before counts, and when not."""

from collections.abc import Callable, Sequence

import numpy as np
from faces import Portrait

from unmask.models.geometry import CROP_SIZE
from unmask.stream.frame import U8, Face
from unmask.stream.stage import Context
from unmask.stream.stages.smooth import Smooth

INSIDE = np.s_[120:180, 100:160]
"""A part of the crop well inside the mask."""


def plain(value: int) -> U8:
    return np.full((CROP_SIZE, CROP_SIZE, 3), value, np.uint8)


def shown_last(portrait: Portrait, pictures: Sequence[U8], change: Callable[[Face], None] = lambda face: None) -> U8:
    """What is shown in the last of frames in which `pictures` were painted; `change` is done to the face in all but the
    first."""
    stage = Smooth()
    stage.open(Context(portrait.frame(masked=True).layout))
    for index, picture in enumerate(pictures):
        frame = portrait.frame(masked=True, index=index)
        face = frame.faces[0]
        face.masked = True
        face.pictures.mask[100:200, 80:180] = 255
        face.pictures.painted[:] = picture
        if index:
            change(face)
        list(stage.process(frame))
    return face.pictures.painted


def test_a_highlight_stays_bright(portrait: Portrait) -> None:
    """Beyond 255 numbers must not begin at 0 again."""
    now = plain(235)
    now[150, 130] = 255
    assert shown_last(portrait, [plain(240), now])[150, 130].min() > 250


def test_when_the_light_changes_nothing_is_kept_of_what_was_shown(portrait: Portrait) -> None:
    assert shown_last(portrait, [plain(100), plain(160)])[INSIDE].min() > 158


def test_when_the_face_bends_little_is_kept_of_what_was_shown(portrait: Portrait) -> None:
    def widen_the_jaw(face: Face) -> None:
        x, y = face.landmarks_px[:, 0], face.landmarks_px[:, 1]
        low = y > np.median(y)
        x[low] += 0.15 * np.ptp(x) * np.sign(x[low] - np.median(x[low]))

    pictures = plain(100), plain(104)
    assert shown_last(portrait, pictures, widen_the_jaw)[INSIDE].min() >= 103
    assert shown_last(portrait, pictures)[INSIDE].max() <= 102


def test_what_was_shown_goes_along_with_the_face(portrait: Portrait) -> None:
    def move_10_px_to_the_right(face: Face) -> None:
        face.crop_from_frame[0, 2] += 10

    before, now = plain(100), plain(100)
    before[:, :130] = now[:, :140] = 112
    shown = shown_last(portrait, [before, now], move_10_px_to_the_right)
    part = np.s_[120:180, 100:170]
    np.testing.assert_allclose(shown[part].astype(int), now[part], atol=3)
