"""What is left of a mask along the edge of the hidden part."""

import cv2
import numpy as np
import pytest

from unmask.models.geometry import CROP_SIZE
from unmask.stream.mask_rests import fill_rests

SKIN, MASK, WALL = (200, 150, 120), (40, 45, 90), (120, 190, 90)


def masked(beyond_px: int, wall: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The crop, what was hidden, and what was painted: skin, and all that is seen around it, given back as it was.

    Args:
        beyond_px: how far the mask's colour reaches beyond the hidden part.
        wall: whether the face ends where the mask does.
    """
    hidden = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    cv2.ellipse(hidden, (128, 170), (70, 55), 0, 0, 360, 255, -1)
    seen = np.full((CROP_SIZE, CROP_SIZE, 3), WALL if wall else SKIN, np.uint8)
    noise = np.random.default_rng(3).integers(-4, 5, seen.shape)
    seen = np.clip(seen + noise, 0, 255).astype(np.uint8)
    reach = cv2.dilate(hidden, np.ones((2 * beyond_px + 1,) * 2, np.uint8)) if beyond_px else hidden
    crop = seen.copy()
    crop[reach > 0] = MASK
    painted = crop.copy()
    painted[hidden > 0] = SKIN
    return crop, hidden, painted


def filled(crop: np.ndarray, hidden: np.ndarray, painted: np.ndarray) -> np.ndarray:
    result = painted.copy()
    fill_rests(crop, hidden, result)
    return result


@pytest.mark.parametrize("beyond_px", [1, 2])
def test_line_in_the_colour_of_the_mask_is_filled_with_skin(beyond_px: int) -> None:
    crop, hidden, painted = masked(beyond_px)
    line = (np.abs(painted.astype(int) - SKIN).max(2) > 60).sum()
    assert line > 300 * beyond_px
    result = filled(crop, hidden, painted)
    assert np.abs(result.astype(int) - SKIN).max() < 12
    away = cv2.dilate(hidden, np.ones((13, 13), np.uint8)) == 0
    np.testing.assert_array_equal(result[away], painted[away])


def test_hue_alone_gives_a_line_away() -> None:
    crop, hidden, painted = masked(0)
    ring = (cv2.dilate(hidden, np.ones((3, 3), np.uint8)) > 0) & (hidden == 0)
    painted[ring] = (165, 150, 155)  # as bright as the skin around it, and blue as the mask
    assert np.abs(filled(crop, hidden, painted)[ring].astype(int) - SKIN).mean() < 6


@pytest.mark.parametrize("wall", [False, True])
def test_faces_and_their_outlines_stay_as_they_were_painted(wall: bool) -> None:
    crop, hidden, painted = masked(0, wall)
    painted[150:154, 100:156] = (150, 70, 70)  # lips, well inside
    painted[40:46, 90:166] = MASK  # brows in the mask's colour, away from it
    np.testing.assert_array_equal(filled(crop, hidden, painted), painted)


def test_nothing_is_done_where_nothing_is_hidden() -> None:
    crop, hidden, painted = masked(2)
    np.testing.assert_array_equal(filled(crop, np.zeros_like(hidden), painted), painted)
    everything = np.full_like(hidden, 255)
    np.testing.assert_array_equal(filled(crop, everything, painted), painted)
