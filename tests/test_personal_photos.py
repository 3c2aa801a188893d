"""What is taken from photos for a personal model, and what is said of doubtful ones."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait

from unmask.models.person import Person
from unmask.models.seen import Seen
from unmask.train.personal import personalize

U8 = npt.NDArray[np.uint8]
Given = tuple[Seen, list[str]]


@pytest.fixture
def given(tmp_path: Path) -> Callable[[U8], Given]:
    """The view that a photo gives, and what is said of it."""

    def view_of(rgb: U8) -> Given:
        photo, out, said = tmp_path / "a.png", tmp_path / "p.safetensors", []
        cv2.imwrite(str(photo), rgb[..., ::-1])
        personalize([photo], out, 1, lambda step, of: None, said.append)
        (view,) = Person.load(out).views.views.values()
        return view, [line for line in said if not line.startswith("views alone")]

    return view_of


@pytest.mark.parametrize("quarters", [1, 3])
def test_a_photo_that_lies_on_its_side_is_turned(
    quarters: int, given: Callable[[U8], Given], portrait: Portrait
) -> None:
    upright, _ = given(portrait.bare)
    turned, _ = given(np.ascontiguousarray(np.rot90(portrait.bare, quarters)))
    lower = np.s_[130:220, 70:186]
    alike = cv2.matchTemplate(
        cv2.cvtColor(turned.crop, cv2.COLOR_RGB2GRAY),
        np.ascontiguousarray(cv2.cvtColor(upright.crop, cv2.COLOR_RGB2GRAY)[lower]),
        cv2.TM_CCOEFF_NORMED,
    )
    assert alike.max() > 0.8


def test_a_good_photo_is_not_talked_about(given: Callable[[U8], Given], portrait: Portrait) -> None:
    assert given(portrait.bare)[1] == []


def test_a_small_face_is_said(given: Callable[[U8], Given], portrait: Portrait) -> None:
    _, said = given(np.asarray(cv2.resize(portrait.bare, None, fx=0.2, fy=0.2, interpolation=cv2.INTER_AREA), np.uint8))
    (line,) = said
    assert "a.png: the face is small (" in line
    assert "it will look blurred" in line


def test_several_people_are_said_and_the_largest_taken(given: Callable[[U8], Given], portrait: Portrait) -> None:
    head = portrait.bare[:400, 80:430]
    other = cv2.resize(head[:, ::-1], None, fx=0.8, fy=0.8, interpolation=cv2.INTER_AREA)
    both = np.full((400, head.shape[1] + other.shape[1], 3), 90, np.uint8)
    both[:, : head.shape[1]], both[: other.shape[0], head.shape[1] :] = head, other
    view, said = given(both)
    assert said == [line for line in said if "there are several people; the largest face is taken" in line] != []
    alone, _ = given(portrait.bare)
    assert np.abs(view.crop[120:220, 70:186].astype(int) - alone.crop[120:220, 70:186]).mean() < 25
