"""inpaint uses its parts: what a network is shown, and what is done with what it paints."""

from collections.abc import Callable

import cv2
import numpy as np
import pytest
from faces import Portrait
from test_mask_rests import SKIN, masked
from test_outline import aside, mask_over

from unmask.errors import UserError
from unmask.models.engine import Engine
from unmask.models.geometry import CROP_SIZE, transform_landmarks
from unmask.stream.frame import U8
from unmask.stream.stage import Context
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment

WALL = (120, 190, 90)


class Plain:
    """An engine that paints in one colour what is hidden, or the whole picture, and keeps what it was shown."""

    description = "plain"

    def __init__(self, colour: tuple[int, int, int] = (0, 0, 0), *, everywhere: bool = False) -> None:
        self._colour, self._everywhere = colour, everywhere
        self.rgb = self.hidden = np.empty(0, np.uint8)

    def __call__(self, rgb: U8, hidden: U8) -> U8:
        self.rgb, self.hidden = rgb[0].copy(), hidden[0].copy()
        painted = rgb.copy()
        painted[(hidden > 0) | self._everywhere] = self._colour
        return painted


def opened(portrait: Portrait, monkeypatch: pytest.MonkeyPatch, engine: Plain) -> Inpaint:
    stage = Inpaint("cpu")
    stage.open(Context(portrait.frame(masked=True).layout))
    monkeypatch.setattr(stage, "_engine", engine)
    return stage


def test_a_stage_that_could_not_open_closes_all_the_same(portrait: Portrait) -> None:
    def refuse(*_: object) -> Engine:
        raise UserError("it is damaged")

    stage = Inpaint("cpu")
    with pytest.raises(UserError, match="it is damaged"):
        stage.open(Context(portrait.frame(masked=True).layout, load=refuse))
    stage.close()


def test_rests_of_the_mask_are_filled(portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, frame = opened(portrait, monkeypatch, Plain(SKIN)), portrait.frame(masked=True)
    face = frame.faces[0]
    face.masked = True
    face.pictures.crop[:], face.pictures.hidden[:], _ = masked(2)
    face.pictures.mask[:] = cv2.dilate(face.pictures.hidden, np.ones((7, 7), np.uint8))
    list(stage.process(frame))
    assert np.abs(face.pictures.painted.astype(int) - SKIN).max() < 12


def painted_before_a_wall(
    portrait: Portrait,
    monkeypatch: pytest.MonkeyPatch,
    yaw: float,
    mask_on: Callable[[np.ndarray], U8],
    *,
    put_on: bool = False,
) -> tuple[U8, U8]:
    """What is hidden from the network of a head that is turned by degrees, and what is painted in the end."""
    engine = Plain(everywhere=True)
    stage, frame = opened(portrait, monkeypatch, engine), portrait.frame(masked=True)
    monkeypatch.setattr(stage._memory, "is_put_on", lambda face, seconds: put_on)
    face, points = frame.faces[0], aside(portrait, yaw)
    face.masked, face.landmarks_px, face.crop_from_frame = True, points, np.eye(2, 3)
    mask = mask_on(points)
    face.pictures.hidden[:] = face.pictures.mask[:] = mask
    face.pictures.crop[:] = np.where(mask[..., None] > 0, 20, WALL)
    list(stage.process(frame))
    return engine.hidden, face.pictures.painted


def test_background_is_put_where_a_mask_stands_off_a_face_in_profile(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mask(points: np.ndarray) -> U8:
        return mask_over(points, 25)

    points = aside(portrait, 60)
    tip = 160, int(points[:, 0].max()) + 18
    assert mask(points)[tip]
    hidden, painted = painted_before_a_wall(portrait, monkeypatch, 60, mask)
    assert not hidden[tip], "the network need not paint it"
    np.testing.assert_allclose(painted[tip].astype(int), WALL, atol=10)


@pytest.mark.parametrize("put_on", [False, True])
def test_beside_a_face_there_is_background_while_a_mask_is_put_on(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch, put_on: bool
) -> None:
    wide = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    wide[130:200, 3:-3] = 255
    hidden, _ = painted_before_a_wall(portrait, monkeypatch, 0, lambda points: wide, put_on=put_on)
    assert (hidden[150, 8] == 0) == put_on


def test_the_network_is_shown_eyes_that_were_seen_a_moment_ago(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, segment = Plain(), Segment("cpu")
    segment.open(Context(portrait.frame(masked=True).layout))
    stage = opened(portrait, monkeypatch, engine)
    for index in range(10):
        frame = portrait.frame(masked=False, index=index)
        list(segment.process(frame))
        list(stage.process(frame))
    bare = frame.faces[0].pictures.crop.copy()
    frame = portrait.frame(masked=True, index=10)
    face, seen = frame.faces[0], frame.faces[0].pictures
    face.masked = True
    points = transform_landmarks(face.crop_from_frame, face.landmarks_px)
    over_the_brows = int(points[[70, 300], 1].min()) - 8
    seen.hidden[over_the_brows:220, 50:206] = 255
    seen.mask[:], seen.crop[:] = seen.hidden, np.where(seen.hidden[..., None] > 0, np.uint8(90), bare)
    list(stage.process(frame))
    x, y = points[159, :2].round().astype(int)
    assert engine.hidden[y, x] == 0
    np.testing.assert_allclose(engine.rgb[y, x].astype(int), bare[y, x], atol=60)
