"""A face that keeps still is moved along, and spared the networks; one that changes is not."""

from collections.abc import Callable
from fractions import Fraction

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait
from test_track import FPS, HEIGHT, LAYOUT, MAX_FACES, WIDTH, Camera, picture, placed

from unmask.models.geometry import crop_pose, transform_points
from unmask.stream.canvas import Canvas, compose, inverse_affine
from unmask.stream.face_finder import Sighting
from unmask.stream.face_track import FaceTrack
from unmask.stream.frame import Frame, Layout
from unmask.stream.likeness import Likeness
from unmask.stream.one_euro import OneEuro, OneEuroSettings
from unmask.stream.stages.track import Track

U8 = npt.NDArray[np.uint8]

PLACE = placed(320, 240, 0.8)


def frame_of(rgb: U8) -> Frame:
    frame = Frame(0, 0, Fraction(1, FPS), LAYOUT, np.zeros(LAYOUT.slot_bytes(MAX_FACES), np.uint8), 0)
    frame.planes[0][...] = rgb
    return frame


def on_frame(portrait: Portrait) -> npt.NDArray[np.float32]:
    """The portrait's landmarks where `PLACE` puts them."""
    flat = transform_points(PLACE, portrait.landmarks)
    return np.column_stack([flat, 0.8 * portrait.landmarks[:, 2]])


def test_a_movement_in_the_picture_plane_is_found_whatever_the_noise(portrait: Portrait) -> None:
    rng, points = np.random.default_rng(5), on_frame(portrait)

    def shown(place: npt.NDArray[np.float64]) -> Frame:
        clean = picture(portrait.masked, place)
        return frame_of(np.clip(clean + rng.normal(0, 4, clean.shape), 0, 255).astype(np.uint8))

    likeness, before = Likeness(Canvas(LAYOUT), shown(PLACE), points), PLACE
    for x, y, scale, radians in [(324, 241, 0.8, 0.0), (328, 243, 0.81, 0.02), (334, 240, 0.82, 0.05)]:
        place = placed(x, y, scale, radians)
        movement = likeness.follow(shown(place))
        assert movement is not None
        expected = compose(place, inverse_affine(before))
        seen = transform_points(before, portrait.landmarks)
        error = np.linalg.norm(transform_points(movement, seen) - transform_points(expected, seen), axis=1)
        assert error.max() < 0.5
        before = place


def darker(rgb: U8) -> U8:
    return (rgb * 0.9).astype(np.uint8)


def spot(rgb: U8, x: int, y: int) -> U8:
    """Something as large as a finger at a place of the frame."""
    return np.asarray(cv2.circle(rgb.copy(), (x, y), 12, (210, 160, 130), -1), np.uint8)


def wider(rgb: U8) -> U8:
    """As of a head that turns by a few degrees."""
    matrix = np.array([[1.06, 0, -0.06 * 320], [0, 1, 0]])
    return np.asarray(cv2.warpAffine(rgb, matrix, (WIDTH, HEIGHT)), np.uint8)


CHANGES: dict[str, Callable[[U8], U8]] = {
    "light": darker,
    "a hand on the mask": lambda rgb: spot(rgb, 320, 290),
    "a turn": wider,
    "another place": lambda rgb: np.roll(rgb, 150, axis=1),
    "nobody": lambda rgb: np.full_like(rgb, 90),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_seen(portrait: Portrait, change: str) -> None:
    still = picture(portrait.masked, PLACE)
    likeness = Likeness(Canvas(LAYOUT), frame_of(still), on_frame(portrait))
    assert likeness.follow(frame_of(still)) is not None
    assert likeness.follow(frame_of(CHANGES[change](still))) is None


@pytest.mark.parametrize(("score", "given"), [(0.95, 5), (0.5, 2)])
def test_a_face_in_doubt_that_is_gone_is_given_up_earlier(portrait: Portrait, score: float, given: int) -> None:
    stage = Track(max_faces=1)
    camera = Camera(stage)
    for index in range(30):
        camera.show(picture(portrait.masked, placed(320 + 4 * (index % 2), 240, 0.8, 0.05 * (index % 3))))
    (track,) = stage._tracks
    assert track.proven
    track.score = score
    nobody = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert [len(camera.show(nobody)) for _ in range(given + 2)] == [1] * given + [0, 0]


def test_a_mask_that_slips_is_seen(portrait: Portrait) -> None:
    likeness = Likeness(Canvas(LAYOUT), frame_of(picture(portrait.masked, PLACE)), on_frame(portrait))
    slipped = portrait.bare.copy()
    hidden = np.roll(portrait.coverage, 4, axis=0) > 0.5
    slipped[hidden] = np.roll(portrait.masked, 4, axis=0)[hidden]
    assert likeness.follow(frame_of(picture(slipped, PLACE))) is None


def test_a_mask_that_moves_under_the_chin_is_seen(portrait: Portrait) -> None:
    still, points = picture(portrait.bare, PLACE), on_frame(portrait)
    below = int(points[:, 1].max()) + 12
    likeness = Likeness(Canvas(LAYOUT), frame_of(still), points)
    assert likeness.follow(frame_of(spot(still, int(points[152, 0]), below))) is None


@pytest.mark.parametrize("pixel_format", ["yuv420p", "yuv420p10le"])
def test_brightness_comes_from_the_first_plane(pixel_format: str) -> None:
    layout = Layout(64, 64, pixel_format)
    frame = Frame(0, 0, Fraction(1), layout, np.zeros(layout.slot_bytes(1), np.uint8), 0)
    levels = np.arange(64, dtype=layout.dtype)[None].repeat(64, axis=0)
    frame.planes[0][...] = levels << (layout.pixel_format.bits - 8)
    np.testing.assert_array_equal(Canvas(layout).grey(frame, np.eye(2, 3), 64), levels)


def test_a_carried_track_goes_where_the_movement_takes_it(portrait: Portrait) -> None:
    points = on_frame(portrait)
    track = FaceTrack(0, Sighting(points, 1.0, 1.0), 0.0, True, np.ones(1, np.float32))
    crop = track.crop.matrix()
    movement = compose(placed(330, 236, 0.82, 0.04), inverse_affine(PLACE))
    track.carry(movement, 1 / FPS)
    np.testing.assert_allclose(compose(track.crop.matrix(), movement), crop, atol=1e-6)
    np.testing.assert_allclose(track.landmarks_px[:, :2], transform_points(movement, points), atol=1e-3)
    # What the networks then see confirms it: the filters have nothing to make up for.
    seen = track.raw_px.copy()
    track.advance(seen, 2 / FPS)
    assert np.abs(track.crop.matrix() - crop_pose(seen).matrix()).max() < 0.05


def leaning(points: npt.NDArray[np.float32], degrees: float) -> npt.NDArray[np.float32]:
    """Points of a face, turned about their middle in the picture."""
    middle = points[:, :2].mean(axis=0)
    turn = cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), -degrees, 1.0)
    return np.column_stack([transform_points(turn, points), points[:, 2]])


def test_a_head_in_doubt_does_not_lean_from_one_frame_to_the_next(portrait: Portrait) -> None:
    points = on_frame(portrait)
    track = FaceTrack(0, Sighting(points, 1.0, 1.0), 0.0, True, np.ones(1, np.float32))
    upright = track.crop.roll

    def seen(frames: int, score: float, degrees: float) -> float:
        for _ in range(frames):
            track.confirm(Sighting(leaning(points, degrees), score, score))
            track.advance(leaning(points, degrees), track.seen_seconds + 1 / FPS)
        return float(np.degrees(track.steady_crop.roll - upright))

    assert seen(2, 0.5, 40.0) < 6
    assert np.degrees(track.crop.roll - upright) > 25
    assert seen(1, 0.5, 0.0) < 6
    assert seen(80, 0.5, 40.0) > 35, "it may have leant after all"
    assert 8 < seen(1, 1.0, 0.0) < 38, "back, but not at a jump"
    assert seen(8, 1.0, 0.0) < 2
    lean = seen(1, 1.0, 4.0)
    assert lean == pytest.approx(np.degrees(track.crop.roll - upright)), "a certain face leans as it is seen"
    movement = compose(placed(330, 236, 0.82, 0.04), inverse_affine(PLACE))
    before = track.steady_crop.matrix()
    track.carry(movement, track.seen_seconds + 1 / FPS)
    np.testing.assert_allclose(compose(track.steady_crop.matrix(), movement), before, atol=1e-6)


def test_a_filter_that_is_carried_neither_lags_nor_jumps() -> None:
    smooth = OneEuro(OneEuroSettings(0.5, 0.0), np.zeros(1), 0.0)
    for i in range(1, 11):
        smooth.carry(np.array([i + 0.5]), np.array([float(i)]), i / FPS)
    now = smooth(np.array([11.5]), 11 / FPS)
    assert 10 < now[0] < 10.3


def test_networks_look_at_still_faces_every_twelfth_frame_and_at_each_in_another(portrait: Portrait) -> None:
    camera = Camera(Track(max_faces=MAX_FACES))
    two = picture(portrait.masked, placed(170, 240, 0.5), placed(480, 240, 0.6))
    looks: dict[int, list[int]] = {0: [], 1: []}
    for index in range(72):
        for face in camera.show(two):
            if not face.still:
                looks[face.track_id].append(index)
    for track in (0, 1):
        assert set(looks[track]) >= {0, 1, 2}, "a new face settles first"
        proven = [i for i in looks[track] if i >= 32]
        assert set(np.diff(proven)) == {12}
    assert not {i for i in looks[0] if i > 2} & {i for i in looks[1] if i > 2}
    assert camera.stage.summary()["moved_along"] == 2 * 72 - len(looks[0]) - len(looks[1])


def test_a_swaying_head_is_followed_without_lag_between_the_looks(portrait: Portrait) -> None:
    camera, in_portrait, still = Camera(Track(max_faces=1)), [], 0
    for index in range(40):
        seconds = index / FPS
        place = placed(320 + 30 * np.sin(2 * seconds), 240, 0.8, 0.1 * np.sin(3 * seconds))
        (face,) = camera.show(picture(portrait.masked, place))
        still += face.still
        portrait_from_crop = compose(inverse_affine(place), inverse_affine(face.crop_from_frame))
        in_portrait.append(
            transform_points(portrait_from_crop, np.array([(64, 64), (192, 64), (128, 192)], np.float32))
        )
    assert still > 20
    steps = np.linalg.norm(np.diff(in_portrait[5:], axis=0), axis=-1)
    assert steps.mean() < 0.4


def test_networks_look_at_once_where_a_face_changes(portrait: Portrait) -> None:
    camera = Camera(Track(max_faces=1))
    still = picture(portrait.masked, PLACE)
    while not (camera.frames and len(camera.frames) > 8 and camera.frames[-1].faces[0].still):
        camera.show(still)
    assert camera.show(still)[0].still
    (face,) = camera.show(darker(still))
    assert not face.still
    assert face.track_id == 0
    assert [camera.show(darker(still))[0].still for _ in range(4)] == [False, False, True, True]
    (face,) = camera.show(np.flip(still, axis=1).copy(), discontinuity=True)
    assert not face.still
    assert face.reset


def test_networks_look_at_every_face_in_every_frame_if_told_so(portrait: Portrait) -> None:
    camera = Camera(Track(max_faces=1, networks_every=1))
    still = picture(portrait.masked, PLACE)
    assert not any(face.still for _ in range(12) for face in camera.show(still))
