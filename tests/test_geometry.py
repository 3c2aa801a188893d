"""The canonical crop: where it puts a face, and what it does not depend on."""

import numpy as np
import pytest
from faces import Portrait

from unmask.models.geometry import (
    CROP_SIZE,
    EYE_DISTANCE_PX,
    canonical_crop,
    crop_pose,
    head_pose,
    transform_points,
)


def test_eyes_are_level_and_at_the_standard_distance(portrait: Portrait) -> None:
    points = transform_points(canonical_crop(portrait.landmarks), portrait.landmarks)
    right, left = points[33], points[263]
    assert np.linalg.norm(left - right) == pytest.approx(EYE_DISTANCE_PX, rel=0.08)
    assert abs(left[1] - right[1]) < 4
    assert (points > 0).all()
    assert (points < CROP_SIZE).all()


@pytest.mark.parametrize("angle", [-40.0, 25.0])
@pytest.mark.parametrize("scale", [0.3, 2.0])
def test_crop_follows_a_turned_scaled_shifted_face(portrait: Portrait, angle: float, scale: float) -> None:
    turn = np.radians(angle)
    rotation = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    moved = portrait.landmarks.copy()
    moved[:, :2] = moved[:, :2] @ rotation.T + [300, -40]
    moved[:, 2] *= scale
    before = transform_points(canonical_crop(portrait.landmarks), portrait.landmarks)
    after = transform_points(canonical_crop(moved), moved)
    np.testing.assert_allclose(after, before, atol=0.05)
    assert crop_pose(moved).roll - crop_pose(portrait.landmarks).roll == pytest.approx(turn, abs=1e-3)


def test_turning_away_does_not_zoom_in(portrait: Portrait) -> None:
    yaw = np.radians(40)
    turn = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    turned = (portrait.landmarks @ turn.T).astype(np.float32)
    assert head_pose(turned).scale == pytest.approx(head_pose(portrait.landmarks).scale, rel=0.01)
    assert abs(head_pose(turned).yaw - head_pose(portrait.landmarks).yaw) == pytest.approx(yaw, abs=0.02)


def test_points_below_the_eyes_do_not_matter(portrait: Portrait) -> None:
    changed = portrait.landmarks.copy()
    changed[[152, 17, 61, 291, 1, 4]] += 30
    np.testing.assert_array_equal(canonical_crop(changed), canonical_crop(portrait.landmarks))


def test_useless_landmarks_are_refused() -> None:
    with pytest.raises(ValueError, match="coincide"):
        head_pose(np.zeros((468, 3), np.float32))
    with pytest.raises(ValueError, match="finite"):
        head_pose(np.full((468, 3), np.nan, np.float32))
