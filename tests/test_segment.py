"""segment: what it makes of what a network finds, with networks that find what a test says."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait

from unmask.models.geometry import CROP_SIZE, canonical_crop
from unmask.stream.frame import U8, Frame
from unmask.stream.mask_shape import MaskShape
from unmask.stream.stage import Context
from unmask.stream.stages.segment import Segment

NOTHING = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)


def box(rows: tuple[int, int], columns: tuple[int, int]) -> U8:
    """(S, S): mask in those rows and columns of the crop."""
    found = NOTHING.copy()
    found[slice(*rows), slice(*columns)] = 255
    return found


def frames_in_which(
    found: Sequence[Callable[[], U8]], portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> list[Frame]:
    """Frames in which the network, each time that it is asked, finds what `found` gives for that frame."""
    stage = Segment("cpu")
    stage.open(Context(portrait.frame(masked=True).layout))
    frames: list[Frame] = []
    for index, finds in enumerate(found):
        monkeypatch.setattr(stage, "_engine", lambda crops, finds=finds: np.stack([finds() for _ in crops]))
        frames += stage.process(portrait.frame(masked=True, index=index))
    return frames


def always(found: U8) -> Callable[[], U8]:
    return lambda: found


def masked(frames: Sequence[Frame]) -> list[bool]:
    return [frame.faces[0].masked for frame in frames]


def test_what_only_a_closer_view_shows_is_mask_where_it_lies_in_the_crop(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    views = iter([NOTHING, box((110, 220), (70, 186))])
    (frame,) = frames_in_which([lambda: next(views)], portrait, monkeypatch)
    assert frame.faces[0].masked
    rows = np.flatnonzero((frame.faces[0].pictures.hidden > 0).any(axis=1))
    middle, closer = CROP_SIZE / 2, 1.2
    assert rows[0] == pytest.approx(middle + (110 - middle) / closer, abs=4)
    assert rows[-1] == pytest.approx(middle + (219 - middle) / closer, abs=4)


def test_what_looks_like_a_mask_on_the_forehead_is_none(portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    frames = frames_in_which([always(box((10, 80), (60, 196)))], portrait, monkeypatch)
    assert masked(frames) == [False]


def test_less_mask_is_enough_on_a_face_that_wears_one(portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between what a mask covers at least when it is found and when it goes, nothing changes, so nothing flickers."""
    little, much = always(box((170, 206), (110, 146))), always(box((150, 210), (100, 160)))
    assert masked(frames_in_which([much, little, little, little], portrait, monkeypatch)) == [True] * 4
    assert masked(frames_in_which([little] * 4, portrait, monkeypatch)) == [False] * 4


def test_the_crop_of_a_face_that_takes_its_mask_off_goes_back(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    worn = always(box((140, CROP_SIZE), (70, 186)))
    frames = frames_in_which([worn] * 3 + [always(NOTHING)] * 3, portrait, monkeypatch)
    usual = canonical_crop(portrait.landmarks)
    assert not np.allclose(frames[2].faces[0].crop_from_frame, usual)
    assert not frames[-1].faces[0].masked
    np.testing.assert_allclose(frames[-1].faces[0].crop_from_frame, usual)


def test_a_mask_fades_towards_the_border_of_the_crop() -> None:
    """Where the crop ends what is painted ends, too, and must not end in a line."""
    shape = MaskShape()
    probability: npt.NDArray[np.float32] = box((150, CROP_SIZE), (60, 200)).astype(np.float32)
    alpha, _ = shape.regions(shape.solid(probability), probability, np.full((468, 2), -100, np.float32))
    assert alpha[-1].max() == 0
    assert 0 < alpha[-5, 128] < 255
    assert alpha[-20, 128] == 255
