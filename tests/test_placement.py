"""Where a crop is placed so that the whole mask lies in it."""

import numpy as np
import numpy.typing as npt
import pytest

from unmask.models.geometry import CROP_SIZE, transform_points
from unmask.models.placement import STEP_PX, USUAL, Shift, better_shift, placed

SAME = np.eye(3)[:2] + np.array([[0, 0, -300], [0, 0, -300]])
"""A crop out of the middle of a large picture, at its own size."""
LARGE = (1000, 1000)


def region(left: int, top: int, right: int, bottom: int) -> npt.NDArray[np.uint8]:
    mask = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    mask[top:bottom, left:right] = 255
    return mask


@pytest.mark.parametrize(
    ("mask", "shift"),
    [
        (region(70, 140, 190, 250), (0, 0)),
        (region(70, 140, 190, 256), (0, 1)),
        (region(70, 140, 256, 250), (1, 0)),
        (region(0, 140, 190, 250), (-1, 0)),
        (region(70, 140, 256, 256), (1, 1)),
        (region(0, 140, 256, 250), (0, 0)),
        (region(120, 140, 140, 256), (0, 1)),
        (region(124, 140, 136, 256), (0, 0)),
        (region(70, 140, 190, 250) | region(190, 150, 256, 158) | region(190, 190, 256, 198), (0, 0)),  # ear loops
        (region(0, 0, 0, 0), (0, 0)),
    ],
)
def test_crop_moves_to_where_the_mask_goes_on(mask: npt.NDArray[np.uint8], shift: Shift) -> None:
    assert better_shift(mask, SAME, LARGE) == shift


def test_beyond_the_picture_there_is_no_mask() -> None:
    low = region(70, 140, 190, 256)
    assert better_shift(low, SAME, (1000, 300 + CROP_SIZE + 2)) == USUAL
    assert better_shift(low, SAME, (1000, 300 + CROP_SIZE + 40)) == (0, 1)


def test_crop_goes_back_once_the_usual_one_has_room() -> None:
    lowered = placed(SAME, (0, 1))
    assert better_shift(region(70, 140, 190, 230), lowered, LARGE, (0, 1)) == (0, 1), "would be cut off again"
    assert better_shift(region(70, 140, 190, 256 - STEP_PX - 4), lowered, LARGE, (0, 1)) == (0, 1), "or nearly so"
    assert better_shift(region(70, 140, 190, 180), lowered, LARGE, (0, 1)) == USUAL
    assert better_shift(region(0, 140, 150, 200), placed(SAME, (1, 0)), LARGE, (1, 0)) == USUAL, "the head has turned"


def test_placed_crop_shows_what_lies_on_that_side() -> None:
    point = np.array([[400.0, 500.0]], np.float32)
    before, after = transform_points(SAME, point), transform_points(placed(SAME, (1, 1)), point)
    np.testing.assert_allclose(before - after, [[STEP_PX, STEP_PX]])
