"""Where a face that looks aside ends, and the background that is filled in beyond it."""

import numpy as np
import pytest
from faces import Portrait

from unmask.models.geometry import canonical_crop, transform_landmarks
from unmask.models.outline import beside_face, beyond_outline, fill_beyond
from unmask.train.profiles import mean_mesh

SIZE = 256
EYE = 98.0
BRIDGE, NOSE_BASE, CHIN = 168, 2, 152


def aside(portrait: Portrait, yaw: float) -> np.ndarray:
    """The portrait's landmarks, turned by degrees to the right of the picture, in px of their canonical crop."""
    c, s = np.cos(np.radians(yaw)), np.sin(np.radians(yaw))
    turned = mean_mesh([portrait.landmarks]) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]).T
    points = (90 * turned + (300, 300, 0)).astype(np.float32)
    return transform_landmarks(canonical_crop(points), points)


def mask_over(points: np.ndarray, tip: float) -> np.ndarray:
    """(S, S) uint8: a mask from the nose to the chin, whose front is `tip` px ahead of the nose."""
    mask = np.zeros((SIZE, SIZE), np.uint8)
    rows = slice(round(float(points[BRIDGE, 1])), round(float(points[CHIN, 1])))
    mask[rows, 100 : round(float(points[:, 0].max() + tip))] = 255
    return mask


@pytest.mark.parametrize("yaw", [0, 20])
def test_a_face_that_looks_ahead_has_nothing_beyond_it(portrait: Portrait, yaw: int) -> None:
    points = aside(portrait, yaw)
    assert beyond_outline(points, mask_over(points, 10)) is None


@pytest.mark.parametrize("yaw", [45, 90, -90])
def test_no_part_of_the_face_lies_beyond_its_outline(portrait: Portrait, yaw: int) -> None:
    points, side = aside(portrait, yaw), 1 if yaw > 0 else -1
    beyond = beyond_outline(points, np.zeros((SIZE, SIZE), np.uint8))
    assert beyond is not None
    x, y = np.clip(np.rint(points[:, :2]), 0, SIZE - 1).astype(int).T
    assert not beyond[y, x].any()
    lips = round(float(points[0, 1]))
    ends = (side * points[np.abs(points[:, 1] - lips) < 0.06 * EYE, 0]).max()
    starts = (side * np.nonzero(beyond[lips])[0]).min()
    assert ends < starts < ends + 0.25 * EYE, "and not far ahead of it there is none"
    assert (beyond[lips] > 0).sum() == (SIZE - starts if side > 0 else 1 - starts)


def test_an_outline_that_slipped_goes_forward_to_the_mask(portrait: Portrait) -> None:
    points = aside(portrait, 90)
    mask = mask_over(points, 0)
    right = beyond_outline(points, mask)
    points[:, 0] -= 0.3 * EYE
    slipped = beyond_outline(points, mask)
    assert right is not None
    assert slipped is not None
    nose = slice(round(float(points[BRIDGE, 1])) + 2, round(float(points[NOSE_BASE, 1])) - 2)
    touches = (mask[nose] > 0) & (slipped[nose] > 0)
    assert (~touches.any(axis=1)).any(), "at one place of the nose it reaches the mask's front"
    assert abs(int((slipped > 0).sum()) - int((right > 0).sum())) < 0.15 * (right > 0).sum()


def test_what_lies_beyond_is_filled_with_background(portrait: Portrait) -> None:
    mask = mask_over(aside(portrait, 90), 25)
    beyond = np.zeros((SIZE, SIZE), np.uint8)
    beyond[:, 200:] = 255
    rgb = np.full((SIZE, SIZE, 3), (200, 120, 90), np.uint8)
    rgb[:, 200:] = (10, 80, 40)
    rgb[mask > 0] = 255
    mask[:, 230:] = 0
    rgb[:, 230:] = (10, 80, 40)
    shown = fill_beyond(rgb, mask, mask, beyond)
    hole = (mask > 0) & (beyond > 0)
    assert hole.sum() > 500
    np.testing.assert_array_equal(shown.given > 0, hole)
    np.testing.assert_allclose(shown.rgb[hole].astype(int), np.tile((10, 80, 40), (hole.sum(), 1)), atol=2)
    np.testing.assert_array_equal(shown.rgb[~hole], rgb[~hole])
    np.testing.assert_array_equal(shown.hidden > 0, (mask > 0) & ~hole)


def test_nothing_is_filled_where_no_background_is_seen() -> None:
    mask = np.full((SIZE, SIZE), 255, np.uint8)
    rgb = np.full((SIZE, SIZE, 3), 255, np.uint8)
    beyond = np.zeros_like(mask)
    beyond[:, 200:] = 255
    shown = fill_beyond(rgb, mask, mask, beyond)
    assert not shown.given.any()
    np.testing.assert_array_equal(shown.hidden, mask)


def test_a_mask_that_lies_beside_a_face_hides_background_there(portrait: Portrait) -> None:
    points = aside(portrait, 0)
    left, right, chin = points[:, 0].min(), points[:, 0].max(), points[CHIN, 1]
    fits = np.zeros((SIZE, SIZE), np.uint8)
    fits[130:190, round(float(left)) : round(float(right))] = 255
    assert beside_face(points, fits) is None
    loops = fits.copy()
    loops[140:146, :] = 255
    assert beside_face(points, loops) is None, "an ear loop is no part of it"
    wide = fits.copy()
    wide[130:200, :] = 255
    beside = beside_face(points, wide)
    assert beside is not None
    x, y = np.clip(np.rint(points[:, :2]), 0, SIZE - 1).astype(int).T
    assert not beside[y, x].any(), "nothing of the face"
    assert beside[150:180, 2].all()
    assert beside[150:180, -3].all()
    assert not beside[round(float(chin)) + 2 :].any(), "nor of the neck"
