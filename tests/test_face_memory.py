"""What a mask hides of a face is what was seen of it before: all of it if it was bare, else the eyes for a moment."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from faces import Portrait

from unmask.models.geometry import CROP_SIZE, transform_landmarks, transform_points
from unmask.models.outline import Shown, disc, hull
from unmask.models.seen import Seen, Views, direction
from unmask.stream.face_memory import FaceMemory
from unmask.stream.face_views import as_now, followed, in_light_of
from unmask.stream.frame import U8, Face
from unmask.stream.later_views import LaterViews, ViewsWriter, Who

EYES, BELOW = slice(95, 150), 150
"""Rows of the crop in which eyes and brows lie, and from which a mask leaves them free."""


def bare_face(portrait: Portrait) -> Face:
    """The portrait's face, as `segment` leaves a bare one."""
    face = portrait.frame(masked=False).faces[0]
    crop = cv2.warpAffine(portrait.bare, face.crop_from_frame, (CROP_SIZE, CROP_SIZE))
    face.pictures.crop[:] = crop
    face.pictures.mask[:] = face.pictures.hidden[:] = 0
    return face


def behind_a_mask(face: Face, rgb: U8, top: int = EYES.start) -> Shown:
    """What is shown of a face whose mask lies over cheeks and, as a rule, eyes."""
    hidden = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    hidden[top:220, 20:236] = 255
    face.masked = True
    face.pictures.mask[:] = face.pictures.hidden[:] = hidden
    return Shown(np.where(hidden[..., None] > 0, np.uint8(255), rgb), hidden, np.zeros_like(hidden))


def test_eyes_that_were_seen_are_shown_where_a_mask_hides_them(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 1.0)
    before = behind_a_mask(face, crop)
    memory.look([face], 1.1)  # now they cannot be seen
    shown = memory.with_eyes(face, before, 1.1)
    given = shown.given > 0
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    for corner in (33, 133, 362, 263, 159, 386):
        x, y = points[corner].round().astype(int)
        assert given[y, x], "both eyes"
    assert not given[170:].any()
    assert np.abs(shown.rgb[given].astype(int) - crop[given]).mean() < 6
    np.testing.assert_array_equal(shown.hidden > 0, (before.hidden > 0) & ~given)
    np.testing.assert_array_equal(shown.rgb[~given], before.rgb[~given])


def test_remembered_eyes_go_with_the_face_and_the_light(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 0.0)
    turned = cv2.getRotationMatrix2D((128, 128), 12, 0.95)
    moved = replace(face, crop_from_frame=turned @ np.vstack([face.crop_from_frame, [0, 0, 1]]))
    truth = cv2.warpAffine(crop, turned, (CROP_SIZE, CROP_SIZE), borderMode=cv2.BORDER_REPLICATE)
    truth = cv2.convertScaleAbs(truth, alpha=0.8)
    shown = memory.with_eyes(moved, behind_a_mask(moved, np.asarray(truth, np.uint8)), 0.2)
    given = shown.given > 0
    assert given.sum() > 1000
    assert np.abs(shown.rgb[given].astype(int) - truth[given]).mean() < 10


@pytest.mark.parametrize("why", ["long ago", "another face", "a cut", "never certain", "hardly hidden"])
def test_eyes_are_not_shown_without_reason(portrait: Portrait, why: str) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    face.score = 0.7 if why == "never certain" else 1.0
    memory.look([face], 0.0)
    before = behind_a_mask(face, crop)
    if why == "another face":
        face = replace(face, track_id=face.track_id + 1)
    if why == "a cut":
        memory.forget()
    if why == "hardly hidden":
        before = Shown(crop, np.where(np.arange(CROP_SIZE)[:, None] > 150, before.hidden, np.uint8(0)), before.given)
    shown = memory.with_eyes(face, before, 60.0 if why == "long ago" else 0.1)
    assert not shown.given.any()
    np.testing.assert_array_equal(shown.hidden, before.hidden)


def test_a_blink_is_not_remembered(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 0.0)
    blinking = replace(face, landmarks_px=face.landmarks_px.copy())
    for upper, lower in ((159, 145), (386, 374)):
        blinking.landmarks_px[upper] = blinking.landmarks_px[lower]
    blinking.pictures.crop[:] = 0
    memory.look([blinking], 0.1)
    shown = memory.with_eyes(face, behind_a_mask(face, crop), 0.2)
    opened = shown.rgb[shown.given > 0].mean()
    memory.look([replace(blinking, masked=False)], 3.0)
    shown = memory.with_eyes(face, behind_a_mask(face, crop), 3.1)
    assert shown.rgb[shown.given > 0].mean() < 0.5 * opened, "those that stay closed are, after a while"


def slipped(face: Face, by: float) -> Face:
    """The same face, whose landmarks lie too high by some px of its crop."""
    points = face.landmarks_px.copy()
    points[:, 1] -= by / np.hypot(*face.crop_from_frame[0, :2])
    return replace(face, landmarks_px=points)


def rows_of_eyes(face: Face) -> tuple[int, int]:
    """The rows of the crop of the middle of the eyes, and of the brows."""
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    return int(points[[33, 133, 362, 263], 1].mean()), int(points[[105, 334], 1].mean())


def test_a_face_is_followed_by_what_is_seen_above_its_eyes(portrait: Portrait) -> None:
    face = bare_face(portrait)
    crop, points = face.pictures.crop.copy(), transform_landmarks(face.crop_from_frame, face.landmarks_px)
    before = Seen(crop, points, 0.0)
    moved = cv2.getRotationMatrix2D((128, 128), 5, 1.06)
    moved[:, 2] += 12, -16
    now = np.asarray(cv2.warpAffine(crop, moved, (CROP_SIZE, CROP_SIZE), borderMode=cv2.BORDER_REPLICATE), np.uint8)
    truth = transform_landmarks(moved, points)
    known = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    known[int(truth[[159, 386], 1].mean()) :] = 0
    now[known == 0] = (90, 160, 210)
    found = followed(before, now, known, points)
    assert found is not None
    np.testing.assert_allclose(found, truth, atol=2.0)
    far = points + np.array([60, 30, 0], np.float32)  # tracking that jumps, told by the frame before
    shift = np.array([[1, 0, 60], [0, 1, 30]], np.float32)
    away, seen = (cv2.warpAffine(x, shift, (CROP_SIZE, CROP_SIZE)) for x in (now, known))
    found = followed(before, np.asarray(away, np.uint8), np.asarray(seen, np.uint8), far)
    assert found is not None
    np.testing.assert_allclose(found, truth + np.array([60, 30, 0]), atol=2.0)
    noise = np.random.default_rng(0).integers(0, 255, now.shape).astype(np.uint8)
    assert followed(before, noise, known, points) is None
    assert followed(before, now, np.zeros_like(known), points) is None
    assert followed(Seen(np.full_like(crop, 128), points, 0.0), now, known, points) is None


def test_landmarks_that_slip_from_a_mask_are_put_right(portrait: Portrait) -> None:
    """And all of the face is shown as it was, though the mask lies over the eyes."""
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    eyes, brows = rows_of_eyes(face)
    put_on(memory, face, crop)
    shown = behind_a_mask(face, crop, (eyes + brows) // 2)
    worn = slipped(face, 20)
    painted = another_face(crop)
    memory.look([worn], 10.04)
    assert memory.show_bare(worn, shown, painted, 10.04) < 0.8, "guesses"
    memory.look([worn], 10.08)
    memory.place(worn, 10.08)
    np.testing.assert_allclose(worn.landmarks_px[:, :2], face.landmarks_px[:, :2], atol=3.0)
    eyes_shown = memory.with_eyes(worn, shown, 10.08)
    given = eyes_shown.given > 0
    assert given[eyes + 2, 60:196].mean() > 0.2
    assert np.abs(eyes_shown.rgb[given].astype(int) - crop[given]).mean() < 8
    for seconds in np.arange(10.12, 11.0, 0.04):
        painted = another_face(crop)
        memory.look([worn], float(seconds))
        memory.place(worn, float(seconds))
        share = memory.show_bare(worn, shown, painted, float(seconds))
    assert share > 0.9
    assert np.abs(painted[mouth_of(face)].astype(int) - crop[mouth_of(face)]).mean() < 8


def test_a_face_that_is_not_given_for_a_moment_is_still_known(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    put_on(memory, face, crop)
    shown = behind_a_mask(face, crop)
    memory.look([], 10.04)  # it was missed, or others were larger
    memory.look([face], 10.08)
    assert memory.show_bare(face, shown, another_face(crop), 10.08) > 0.5
    memory.look([], 12.0)  # its track has ended by now
    memory.look([face], 12.04)
    assert memory.show_bare(face, shown, another_face(crop), 12.04) == 0.0


def test_landmarks_of_the_tracker_stay_where_those_that_are_followed_fit_no_better(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    eyes, brows = rows_of_eyes(face)
    put_on(memory, face, face.pictures.crop.copy())
    behind_a_mask(face, face.pictures.crop, (eyes + brows) // 2)
    right = face.landmarks_px.copy()
    memory.look([face], 10.04)
    shift = np.array([0, -12, 0], np.float32)
    monkeypatch.setattr("unmask.stream.face_memory.followed", lambda before, *_: before.points + shift)
    memory.place(face, 10.04)
    np.testing.assert_allclose(face.landmarks_px, right, atol=0.1)


def test_a_mask_below_the_eyes_leaves_landmarks_as_they_are(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    put_on(memory, face, face.pictures.crop.copy())
    worn = slipped(face, 4)
    before = worn.landmarks_px
    memory.place(worn, 10.0)
    assert worn.landmarks_px is before


def test_eyes_that_are_closed_by_now_are_not_opened(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 0.0)
    eyes, _ = rows_of_eyes(face)
    shown = behind_a_mask(face, crop, eyes + 1)
    memory.look([face], 0.1)
    memory.place(face, 0.1)
    assert memory.with_eyes(face, shown, 0.1).given.any()
    closed = shown.rgb.copy()
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    for corners in ((33, 133), (362, 263)):
        left, right = sorted(int(x) for x in points[list(corners), 0])
        closed[eyes - 9 : eyes + 1, left - 4 : right + 5] = crop[eyes + 22, left + 10]
    face.pictures.crop[:] = closed
    memory.place(face, 0.1)
    assert not memory.with_eyes(face, shown._replace(rgb=closed), 0.1).given.any()


def put_on(memory: FaceMemory, face: Face, crop: U8, bare: float = 0.6, score: float = 0.0, top: int = BELOW) -> Shown:
    """Show the memory so many seconds of a bare face, then its mask at 10 seconds."""
    face.masked, face.mask_score = False, score
    for seconds in np.arange(10.0 - bare, 10.0, 0.04):
        memory.look([face], float(seconds))
    shown = behind_a_mask(face, crop, top)
    memory.look([face], 10.0)
    return shown


def another_face(crop: U8) -> U8:
    """What a network may have painted: skin, brighter than it was."""
    return cv2.blur(cv2.convertScaleAbs(crop, beta=20), (9, 9)).astype(np.uint8)


def mouth_of(face: Face) -> tuple[slice, slice]:
    """Rows and columns of the crop around the mouth."""
    x, y = transform_points(face.crop_from_frame, face.landmarks_px)[[61, 291]].mean(axis=0).round().astype(int)
    return np.s_[y - 8 : y + 8, x - 20 : x + 20]


def turned(face: Face, degrees: float) -> Face:
    """The same face, looking aside."""
    points, angle = face.landmarks_px.astype(np.float64), np.radians(degrees)
    centre = points.mean(axis=0)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    return replace(face, landmarks_px=((points - centre) @ turn.T + centre).astype(np.float32))


def test_a_face_that_was_seen_bare_is_shown_as_it_was(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown, other = put_on(memory, face, crop), another_face(crop)
    assert [memory.is_put_on(face, seconds) for seconds in (10.0, 12.9, 13.1)] == [True, True, False]
    mouth = mouth_of(face)
    brighter = (other[mouth].astype(float) - crop[mouth]).mean()
    for seconds in (10.0, 11.4, 300.0):
        painted = other.copy()
        assert memory.show_bare(face, shown, painted, seconds) == 1.0
        assert np.abs(painted[mouth].astype(int) - crop[mouth]).mean() < 6
        np.testing.assert_array_equal(painted[shown.hidden == 0], other[shown.hidden == 0])
        edge = np.s_[BELOW : BELOW + 2, 90:166]
        assert np.abs(painted[edge].astype(int) - other[edge]).mean() < 0.5 * brighter, "the edge is soft"


def test_a_beard_that_the_tracker_nearly_takes_for_a_mask_is_remembered(portrait: Portrait) -> None:
    memory, face = FaceMemory(), replace(bare_face(portrait), wears=0.65)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    assert memory.show_bare(face, shown, another_face(crop), 10.0) == 1.0


@pytest.mark.parametrize(
    "why",
    [
        *("no time", "a mask under the chin", "a cut", "another face", "it came with a mask", "its mask was missed"),
        *("it may wear one still", "the tracker sees a mask"),
        *("its eyes are covered", "it jumped"),
    ],
)
def test_no_face_is_shown_that_was_not_seen_bare(portrait: Portrait, why: str) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    other = another_face(crop)
    if why == "it came with a mask":
        shown = behind_a_mask(face, crop, BELOW)
        memory.look([face], 10.0)
        assert not memory.is_put_on(face, 10.0)
    else:
        bare = {"no time": 0.2, "it may wear one still": 0.8}.get(why, 0.6)
        score = 0.5 if why == "a mask under the chin" else 0.0
        if why == "it may wear one still":
            behind_a_mask(face, crop)
            memory.look([face], 9.15)
        if why == "the tracker sees a mask":
            face.wears = 0.8
        if why == "its mask was missed":
            face.pictures.crop[BELOW:220, 20:236] = 255
        shown = put_on(memory, face, crop, bare, score, 60 if why == "its eyes are covered" else BELOW)
    if why == "a cut":
        memory.forget()
    if why == "another face":
        face = replace(face, track_id=face.track_id + 1)
    if why == "it jumped":
        face = replace(face, reset=True)
        face.pictures.crop[:] = upside_down(crop)  # to somebody else
        memory.look([face], 10.05)
    painted = other.copy()
    assert memory.show_bare(face, shown, painted, 10.1) == 0.0
    np.testing.assert_array_equal(painted, other)


def test_a_face_with_somebody_elses_eyes_is_not_shown_for_long(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    upside_down = np.roll(crop[::-1], 245 - CROP_SIZE, axis=0)
    other = shown._replace(rgb=np.where(shown.hidden[..., None] > 0, shown.rgb, upside_down))
    times = np.arange(10.0, 13.0, 0.04)
    shares = [memory.show_bare(face, other, another_face(crop), float(seconds)) for seconds in times]
    assert shares[0] == 1.0, "the track says that it is the same"
    assert shares[-1] == 0.0


def test_hair_that_hung_at_the_side_of_a_face_is_gone(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    x, y = points[58].round().astype(int)  # the jaw, below an ear
    beard = points[200].round().astype(int)
    cv2.circle(face.pictures.crop, (int(x), int(y)), 24, (0, 0, 0), -1)
    cv2.circle(face.pictures.crop, beard.tolist(), 6, (0, 0, 0), -1)
    shown, painted = put_on(memory, face, crop), another_face(crop)
    assert memory.show_bare(face, shown, painted, 10.0) == 1.0
    assert painted[y, x + 8].mean() < 0.5 * crop[y, x + 8].mean(), "it has not had time to move"
    painted = another_face(crop)
    assert memory.show_bare(face, shown, painted, 14.0) == 1.0
    assert painted[y, x + 8].mean() > 0.7 * crop[y, x + 8].mean()
    assert painted[beard[1], beard[0]].mean() < 0.5 * crop[beard[1], beard[0]].mean()


def test_what_a_mask_hides_beside_the_face_while_it_is_put_on_is_what_was_there(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    beside = cv2.dilate(hull(points, CROP_SIZE), disc(20)) == 0
    beside[:BELOW] = False
    face.pictures.crop[beside] = (10, 250, 10)  # hair, neck and clothes
    shown = put_on(memory, face, crop)
    beside &= cv2.erode(shown.hidden, disc(8)) > 0
    assert beside.sum() > 300
    greens = []
    for seconds in (10.0, 11.0, 12.2, 13.1):
        painted = another_face(crop)
        assert memory.show_bare(face, shown, painted, seconds) == 1.0
        greens.append(float((painted[beside][:, 1] - painted[beside][:, 0].astype(float)).mean()))
    assert greens[0] == greens[1] > 150
    assert 40 < greens[2] < greens[0] - 40
    assert greens[3] < 40


def test_a_face_that_turns_away_gives_way_slowly(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    other = another_face(face.pictures.crop)
    shown = put_on(memory, face, face.pictures.crop.copy())
    assert memory.show_bare(face, shown, other.copy(), 10.0) == 1.0
    aside = turned(face, 50)
    shares = [memory.show_bare(aside, shown, other.copy(), seconds) for seconds in np.arange(10.04, 11.0, 0.04)]
    assert 0.9 < shares[0] < 1.0
    assert all(before >= after for before, after in itertools.pairwise(shares))
    assert shares[-1] == 0.0


def seen(face: Face, degrees: float = 0.0, *, open_by: float = 0.0, seconds: float = 0.0, blur: int = 1) -> Seen:
    """A view of the portrait, looking aside, with its mouth open by so much of the crop."""
    points = transform_landmarks(face.crop_from_frame, turned(face, degrees).landmarks_px)
    points[13, 1] -= open_by
    return Seen(cv2.blur(face.pictures.crop, (blur, blur)).astype(np.uint8), points, seconds)


def test_the_view_that_looks_the_same_way_is_shown(portrait: Portrait) -> None:
    face, views = bare_face(portrait), Views()
    assert not views
    ahead, left = seen(face), seen(face, -30)
    for view in (ahead, left):
        views.add(view)
    for degrees, wanted, difference in ((-24, left, 6), (5, ahead, 5)):
        view, angle = views.nearest(direction(seen(face, degrees).points))
        assert view is wanted
        assert abs(angle - difference) < 0.5
    for degrees in np.arange(-80, 80, 9.0):
        views.add(seen(face, float(degrees)))
    assert len(views.views) == 12, "memory is bounded"


@pytest.mark.parametrize(
    ("second", "kept"),
    [({"open_by": 2.0}, 0), ({"open_by": 9.0}, 1), ({"open_by": 2.0, "blur": 5}, 1), ({"seconds": 61.0}, 0)],
)
def test_a_closed_mouth_is_the_better_view(portrait: Portrait, second: dict[str, Any], kept: int) -> None:
    face, views = bare_face(portrait), Views()
    both = seen(face, open_by=5.0), seen(face, **{"open_by": 9.0} | second)
    for view in both:
        views.add(view)
    assert list(views.views.values()) == [both[1 - kept]]


def test_another_view_comes_slowly(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 0.0)
    face.pictures.crop[:] = cv2.convertScaleAbs(crop, beta=25)
    aside = turned(face, 20)
    for seconds in (0.3, 1.0, 2.0):
        memory.look([aside], seconds)
    shown, mouth = behind_a_mask(face, crop, BELOW), mouth_of(face)
    memory.look([face], 2.1)
    pictures = []
    for seconds, one in ((2.1, face), (2.2, face), (2.3, aside), (2.4, aside), (3.0, aside), (3.1, aside)):
        painted = another_face(crop)
        assert memory.show_bare(one, shown, painted, seconds) > 0.9
        pictures.append(painted[mouth].astype(float))
    steps = [np.abs(after - before).mean() for before, after in itertools.pairwise(pictures)]
    assert steps[0] < 0.1
    assert steps[-1] < 0.1, "then it has come"
    whole = np.abs(pictures[-1] - pictures[2]).mean()
    assert 0.05 * whole < steps[2] < 0.5 * whole


def test_shade_that_has_fallen_on_a_face_since_is_on_what_is_shown(portrait: Portrait) -> None:
    face = bare_face(portrait)
    before = seen(face)
    fall = np.linspace(1.1, 0.8, CROP_SIZE, dtype=np.float32)[None, :, None]
    truth = np.clip(before.crop * fall, 0, 255).astype(np.uint8)
    known = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    known[BELOW:] = 0
    now = as_now(before, truth, known, before.points, ~known)
    around = cv2.erode(hull(before.points, CROP_SIZE), disc(12))
    around[:BELOW] = 0
    error, plain = (np.abs(x[around > 0].astype(float) - truth[around > 0]).mean() for x in (now.rgb, before.crop))
    assert error < 0.6 * plain
    assert now.likeness > 0.95


def test_light_from_another_side_is_on_what_is_shown_beyond_what_is_known(portrait: Portrait) -> None:
    before = seen(bare_face(portrait))
    side = np.linspace(-25, 25, CROP_SIZE)[None, :, None]
    truth = np.clip(before.crop + side, 0, 255).astype(np.uint8)
    known = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    known[BELOW:] = 0
    wanted = np.zeros_like(known)
    wanted[BELOW:200, 70:190] = 255
    now = as_now(before, truth, known, before.points, wanted)
    part = np.s_[BELOW + 5 : 195, 75:185]
    error, plain = (np.abs(x[part].astype(float) - truth[part]).mean() for x in (now.rgb, before.crop))
    assert error < 0.6 * plain


def test_what_is_shown_is_fitted_to_what_is_seen_around_it(portrait: Portrait) -> None:
    """Landmarks are wrong by a pixel or two."""
    before = seen(bare_face(portrait))
    matrix = np.array([[1, 0, 1.5], [0, 1, -1.0]])
    truth = cv2.warpAffine(before.crop, matrix, (CROP_SIZE, CROP_SIZE), borderMode=cv2.BORDER_REPLICATE)
    known = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    wanted = np.zeros_like(known)
    part = np.s_[100:200, 70:190]
    wanted[part] = 255
    now = as_now(before, truth.astype(np.uint8), known, before.points, wanted)
    error, plain = (np.abs(x[part].astype(float) - truth[part]).mean() for x in (now.rgb, before.crop))
    assert error < 0.5 * plain


def test_views_turn_with_the_head(portrait: Portrait) -> None:
    face = bare_face(portrait)
    before, after = seen(face), seen(face, 15)
    bright = before.crop.copy()
    for number in (1, 61, 291, 152):  # nose, corners of the mouth, chin
        cv2.circle(bright, before.points[number, :2].round().astype(int).tolist(), 3, (0, 255, 0), -1)
    known = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    drawn = as_now(replace(before, crop=bright), before.crop, known, after.points, ~known).rgb
    for number in (1, 61, 291, 152):
        x, y = after.points[number, :2].round().astype(int)
        red, green, _ = drawn[y, x].astype(int)
        assert green - red > 100, f"landmark {number} has gone along"


def take_off(memory: FaceMemory, face: Face, crop: U8) -> Shown:
    """Show the memory five frames of a mask, at 10 seconds, then a second of a bare face."""
    shown = behind_a_mask(face, crop, BELOW)
    for number in range(5):
        memory.look([face], 10.0 + 0.04 * number)
    masked = face.pictures.hidden.copy()
    face.masked, face.mask_score = False, 0.0
    face.pictures.mask[:] = face.pictures.hidden[:] = 0
    for seconds in np.arange(10.5, 11.5, 0.04):
        memory.look([face], float(seconds))
    face.masked = True
    face.pictures.mask[:] = face.pictures.hidden[:] = masked
    return shown


def test_a_face_that_is_bare_later_is_kept_for_the_next_pass(portrait: Portrait, tmp_path: Path) -> None:
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    with ViewsWriter(tmp_path / "later.zip") as writer:
        first = FaceMemory(keep=writer.add)
        take_off(first, face, crop)
        first.finish()
    assert first.too_late == 5

    later = LaterViews(tmp_path / "later.zip")
    assert list(later) == [(face.track_id, 0)]
    second, other = FaceMemory(later), another_face(crop)
    shown = behind_a_mask(face, crop, BELOW)
    second.look([face], 10.0)
    assert not second.is_put_on(face, 10.0), "it was worn all along"
    painted = other.copy()
    assert second.show_bare(face, shown, painted, 10.0) == 1.0, "from the first frame on"
    mouth = mouth_of(face)
    assert (
        np.abs(painted[mouth].astype(int) - crop[mouth]).mean()
        < 0.2 * np.abs(other[mouth].astype(int) - crop[mouth]).mean()
    )

    jumped = replace(face, reset=True)
    second.look([jumped], 10.04)
    painted = other.copy()
    assert second.show_bare(jumped, shown, painted, 10.04) == 0.0, "who that is nobody said"


def test_who_was_bare_before_need_not_be_kept(portrait: Portrait) -> None:
    kept: list[Who] = []
    memory, face = FaceMemory(keep=lambda who, _: kept.append(who)), bare_face(portrait)
    crop = face.pictures.crop.copy()
    put_on(memory, face, crop)
    take_off(memory, face, crop)
    memory.finish()
    assert not kept
    assert memory.too_late == 0


def test_views_are_given_up_as_tracks_end(portrait: Portrait) -> None:
    kept: list[Who] = []
    memory, face = FaceMemory(keep=lambda who, _: kept.append(who)), bare_face(portrait)
    take_off(memory, face, face.pictures.crop.copy())
    assert not kept
    memory.look([], 60.0)
    assert kept == [(face.track_id, 0)]


def test_nobody_who_is_bare_later_is_a_file_too(tmp_path: Path) -> None:
    ViewsWriter(tmp_path / "later.zip").close()
    assert len(LaterViews(tmp_path / "later.zip")) == 0


def of_another_day(face: Face, crop: U8) -> Views:
    """A personal model's view of the same face, in other light."""
    views, light = Views(), np.linspace(0.6, 1.1, CROP_SIZE)[None, :, None]
    points = transform_landmarks(face.crop_from_frame, face.landmarks_px)
    views.add(Seen(np.clip(crop * light, 0, 255).astype(np.uint8), points, -np.inf))
    return views


def worn_from_the_beginning(memory: FaceMemory, face: Face, crop: U8) -> Shown:
    shown = behind_a_mask(face, crop, BELOW)
    memory.look([face], 10.0)
    return shown


def upside_down(crop: U8) -> U8:
    """Somebody else's eyes."""
    return np.roll(crop[::-1], 245 - CROP_SIZE, axis=0)


def test_a_face_of_a_personal_model_is_shown_in_the_light_of_what_is_painted(portrait: Portrait) -> None:
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory = FaceMemory(known=of_another_day(face, crop))
    shown, other, mouth = worn_from_the_beginning(memory, face, crop), another_face(crop), mouth_of(face)
    painted = other.copy()
    assert memory.show_bare(face, shown, painted, 10.0) == 1.0
    assert abs(painted[mouth].mean() - other[mouth].mean()) < 3, "as bright as what is painted, not as on that day"
    lips = [cv2.cvtColor(x[mouth], cv2.COLOR_RGB2GRAY).ravel() for x in (painted, crop, other)]
    assert np.corrcoef(lips[0], lips[1])[0, 1] > 0.95 > np.corrcoef(lips[2], lips[1])[0, 1], "and as sharp as there"
    np.testing.assert_array_equal(painted[shown.hidden == 0], other[shown.hidden == 0])


def test_what_was_seen_in_the_video_goes_before_another_day(portrait: Portrait) -> None:
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    strange = of_another_day(face, np.full_like(crop, 90))
    memory = FaceMemory(known=strange)
    shown, painted = put_on(memory, face, crop), another_face(crop)
    assert memory.show_bare(face, shown, painted, 10.0) == 1.0
    assert np.abs(painted[mouth_of(face)].astype(int) - crop[mouth_of(face)]).mean() < 6


@pytest.mark.parametrize("why", ["others' eyes", "eyes covered", "looks aside"])
def test_a_face_that_may_be_somebody_elses_gets_nothing_of_a_personal_model(portrait: Portrait, why: str) -> None:
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory = FaceMemory(known=of_another_day(face, upside_down(crop) if why == "others' eyes" else crop))
    if why == "looks aside":
        face = turned(face, 40)
    shown = behind_a_mask(face, crop, EYES.start if why == "eyes covered" else BELOW)
    for seconds in np.arange(10.0, 12.0, 0.04):
        painted = another_face(crop)
        memory.look([face], float(seconds))
        assert memory.show_bare(face, shown, painted, float(seconds)) == 0.0
        np.testing.assert_array_equal(painted, another_face(crop))


def test_one_person_is_seen_once(portrait: Portrait) -> None:
    """Of two faces the one that is more like the personal model's, whoever is named first, as long as it is there."""
    known, less_alike = bare_face(portrait), bare_face(portrait)
    crop = known.pictures.crop.copy()
    less_alike.track_id = known.track_id + 1
    memory = FaceMemory(known=of_another_day(known, crop))
    shown = behind_a_mask(known, crop, BELOW)
    behind_a_mask(less_alike, crop, BELOW)
    half = cv2.addWeighted(crop, 0.5, np.random.default_rng(0).integers(0, 255, crop.shape).astype(np.uint8), 0.5, 0)
    less_alike.pictures.crop[:] = half
    memory.look([less_alike, known], 10.0)
    shares = [memory.show_bare(face, shown, another_face(crop), 10.0) for face in (less_alike, known)]
    assert shares == [0.0, 1.0]
    memory.look([less_alike], 13.0)
    assert memory.show_bare(less_alike, shown, another_face(crop), 13.0) == 1.0, "alone it may be that person"


def test_a_view_of_another_day_is_shown_or_not_but_not_half(portrait: Portrait) -> None:
    """A head that turns away slowly and keeps still in between: two mouths would stay as long."""
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory = FaceMemory(known=of_another_day(face, crop))
    shown = worn_from_the_beginning(memory, face, crop)
    ends = []
    for number, degrees in enumerate(range(0, 34, 3)):
        aside = turned(face, degrees)
        for seconds in np.arange(0.0, 1.0, 0.1):
            memory.look([aside], 11.0 + number + seconds)
            share = memory.show_bare(aside, shown, another_face(crop), 11.0 + number + float(seconds))
        ends.append(share)
    assert set(ends) == {0.0, 1.0}
    assert ends == sorted(ends, reverse=True)


def noisy(crop: U8, share: float) -> U8:
    """The same face, less and less like itself."""
    noise = np.random.default_rng(3).integers(0, 255, crop.shape).astype(np.uint8)
    return cv2.addWeighted(crop, 1.0 - share, cv2.blur(noise, (3, 3)), share, 0).astype(np.uint8)


def shares_after_a_cut(memory: FaceMemory, faces: list[Face], shown: Shown, seconds: float) -> list[list[float]]:
    """How much of their views is shown of faces that were there before a cut, in the frames of some time."""
    memory.forget()
    return later_shares(memory, faces, shown, np.arange(20.0, 20.0 + seconds, 0.04).tolist())


def later_shares(memory: FaceMemory, faces: list[Face], shown: Shown, times: list[float]) -> list[list[float]]:
    shares = []
    for at in times:
        memory.look(faces, at)
        shares.append([memory.show_bare(face, shown, another_face(shown.rgb), at) for face in faces])
    return shares


@pytest.mark.parametrize("gone", ["cut", "left"])
def test_who_was_seen_bare_is_recognised_in_another_scene(portrait: Portrait, gone: str) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    again = replace(face, track_id=face.track_id + 7)
    if gone == "cut":
        memory.forget()
    else:
        memory.look([], 15.0)
    memory.look([again], 20.0)
    painted, other, mouth = another_face(crop), another_face(crop), mouth_of(face)
    assert memory.show_bare(again, shown, painted, 20.0) == 1.0, "in the first frame: nothing flickers"
    assert abs(painted[mouth].mean() - other[mouth].mean()) < 3, "the light may be another"
    lips = [cv2.cvtColor(x[mouth], cv2.COLOR_RGB2GRAY).ravel() for x in (painted, crop)]
    assert np.corrcoef(*lips)[0, 1] > 0.95
    np.testing.assert_array_equal(painted[shown.hidden == 0], other[shown.hidden == 0])


def test_who_is_less_alike_is_looked_at_longer_and_comes_slowly(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    face.pictures.crop[:] = noisy(crop, 0.66)
    shares = [share for (share,) in shares_after_a_cut(memory, [face], shown, 2.0)]
    assert shares[0] == 0.0
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert max(np.diff(shares)) < 0.2, "painted faces do not jump to another"


@pytest.mark.parametrize("why", ["others' eyes", "hardly alike", "eyes covered", "never certain"])
def test_who_may_be_somebody_else_is_not_recognised(portrait: Portrait, why: str) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    put_on(memory, face, crop)
    shown = behind_a_mask(face, crop, EYES.start if why == "eyes covered" else BELOW)
    face.score = 0.8 if why == "never certain" else 1.0
    face.pictures.crop[:] = {"others' eyes": upside_down(crop), "hardly alike": noisy(crop, 0.8)}.get(why, crop)
    assert shares_after_a_cut(memory, [face], shown, 3.0)[-1] == [0.0]


def test_two_faces_are_not_recognised_as_one(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    twin = replace(bare_face(portrait), track_id=face.track_id + 1)
    behind_a_mask(twin, crop, BELOW)
    twin.pictures.crop[:] = noisy(crop, 0.05)
    assert shares_after_a_cut(memory, [twin, face], shown, 3.0)[-1] == [0.0, 1.0]


def test_who_is_gone_for_longer_than_many_others_is_forgotten(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    memory.forget()
    for number in range(8):
        stranger = replace(bare_face(portrait), track_id=10 + number)
        noise = np.random.default_rng(number).integers(0, 255, (CROP_SIZE // 4, CROP_SIZE // 4, 3))
        stranger.pictures.crop[:] = cv2.resize(noise.astype(np.uint8), (CROP_SIZE, CROP_SIZE))
        for seconds in np.arange(12.0, 13.0, 0.04):
            memory.look([stranger], float(seconds))
        memory.look([stranger], 13.0)
        memory.forget()
    assert shares_after_a_cut(memory, [face], shown, 3.0)[-1] == [0.0]


def test_open_eyes_go_before_a_closed_mouth(portrait: Portrait) -> None:
    face = bare_face(portrait)
    crop, points = face.pictures.crop.copy(), transform_landmarks(face.crop_from_frame, face.landmarks_px)
    speaks, blinks = points.copy(), points.copy()
    speaks[14, 1] += 6
    for upper, lower in ((159, 145), (386, 374)):
        blinks[upper, :2] = 0.6 * blinks[lower, :2] + 0.4 * blinks[upper, :2]
    for order in ((speaks, blinks), (blinks, speaks)):
        views = Views()
        for one in order:
            views.add(Seen(crop, one, 0.0))
        (view,) = views.views.values()
        np.testing.assert_array_equal(view.points, speaks)


def test_hair_of_another_day_is_no_light(portrait: Portrait) -> None:
    """A dark strand across the cheek in a view darkens nothing but itself."""
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    strand, where = crop.copy(), np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    where[BELOW:230, 60:200] = 255
    strand[BELOW:230, 70:90] = 5
    lit = in_light_of(crop, strand, where)
    beside = np.s_[BELOW + 10 : 220, 96:104]
    assert np.abs(lit[beside].astype(int) - crop[beside]).mean() < 3
    np.testing.assert_array_equal(lit[where == 0], strand[where == 0])
    darker = in_light_of(crop, cv2.convertScaleAbs(crop, beta=-15).astype(np.uint8), where)
    assert np.abs(darker[where > 0].astype(int) - crop[where > 0]).mean() < 4, "light is"


def test_another_face_gives_way_at_once_to_the_right_one(portrait: Portrait) -> None:
    """Who is less like the personal model is shown with it as long as nobody else is there."""
    right, wrong = bare_face(portrait), replace(bare_face(portrait), track_id=5)
    crop = right.pictures.crop.copy()
    memory = FaceMemory(known=of_another_day(right, crop))
    shown = behind_a_mask(right, crop, BELOW)
    behind_a_mask(wrong, crop, BELOW)
    wrong.pictures.crop[:] = noisy(crop, 0.8)
    memory.look([wrong], 10.0)
    assert memory.show_bare(wrong, shown, another_face(crop), 10.0) == 1.0
    memory.look([wrong, right], 10.04)
    assert [memory.show_bare(face, shown, another_face(crop), 10.04) for face in (wrong, right)] == [0.0, 1.0]
    assert memory.known_shown == 2


def test_a_little_more_like_it_is_not_enough_to_change(portrait: Portrait) -> None:
    """Two who are about as like the personal model do not take turns."""
    first, second = bare_face(portrait), replace(bare_face(portrait), track_id=5)
    crop = first.pictures.crop.copy()
    memory = FaceMemory(known=of_another_day(first, crop))
    for face in (first, second):
        behind_a_mask(face, crop, BELOW)
    first.pictures.crop[:] = noisy(crop, 0.6)
    memory.look([first], 10.0)
    shown = behind_a_mask(first, crop, BELOW)
    memory.look([first, second], 10.1)
    assert memory.show_bare(first, shown, another_face(crop), 10.1) == 1.0
    assert memory.show_bare(second, shown, another_face(crop), 10.1) == 0.0


def test_a_hand_before_the_eyes_for_a_moment_changes_nothing(portrait: Portrait) -> None:
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory = FaceMemory(known=of_another_day(face, crop))
    shown = worn_from_the_beginning(memory, face, crop)
    face.pictures.crop[:] = upside_down(crop)
    memory.look([face], 10.2)
    assert memory.show_bare(face, shown, another_face(crop), 10.2) == 1.0
    for seconds in np.arange(10.3, 13.0, 0.1):
        memory.look([face], float(seconds))
        share = memory.show_bare(face, shown, another_face(crop), float(seconds))
    assert share == 0.0


def test_who_was_recognised_is_recognised_again(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    for _ in range(3):
        assert shares_after_a_cut(memory, [face], shown, 0.2)[-1] == [1.0]


def test_who_is_recognised_gets_nothing_of_a_personal_model(portrait: Portrait) -> None:
    face = bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory = FaceMemory(known=of_another_day(face, upside_down(crop)))
    shown, mouth = put_on(memory, face, crop), mouth_of(face)
    memory.forget()
    face.pictures.crop[:] = noisy(crop, 0.66)  # recognised after some looks
    for at in np.arange(20.0, 23.0, 0.04).tolist():
        painted = another_face(crop)
        memory.look([face], at)
        share = memory.show_bare(face, shown, painted, at)
    assert share == 1.0
    lips = [cv2.cvtColor(x[mouth], cv2.COLOR_RGB2GRAY).ravel() for x in (painted, crop, upside_down(crop))]
    assert np.corrcoef(lips[0], lips[1])[0, 1] > 0.95 > np.corrcoef(lips[0], lips[2])[0, 1]


def test_a_face_that_is_recognised_late_comes_slowly(portrait: Portrait) -> None:
    """Its eyes were covered at first, and it was painted."""
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown = put_on(memory, face, crop)
    behind_a_mask(face, crop)
    assert shares_after_a_cut(memory, [face], shown, 1.0)[-1] == [0.0]
    behind_a_mask(face, crop, BELOW)
    shares = [share for (share,) in later_shares(memory, [face], shown, np.arange(21.0, 23.0, 0.04).tolist())]
    assert shares == sorted(shares)
    assert shares[-1] == 1.0
    assert max(np.diff([0.0, *shares])) < 0.2


def test_many_faces_are_compared_a_few_at_a_time(portrait: Portrait, monkeypatch: pytest.MonkeyPatch) -> None:
    """And those who are nobody's not for ever."""
    memory, faces = FaceMemory(), []
    for number in range(6):
        face = replace(bare_face(portrait), track_id=number)
        noise = np.random.default_rng(number).integers(0, 255, (CROP_SIZE // 4, CROP_SIZE // 4, 3))
        face.pictures.crop[:] = cv2.resize(noise.astype(np.uint8), (CROP_SIZE, CROP_SIZE))
        faces.append(face)
    for seconds in np.arange(10.0, 11.0, 0.04):
        memory.look(faces, float(seconds))
    looks: list[int] = []
    monkeypatch.setattr("unmask.stream.face_memory.eyes_likeness", lambda *_: looks.append(1) or 0.5)
    memory.forget()
    counts = []
    for seconds in np.arange(20.0, 25.0, 0.04):
        looks.clear()
        strangers = [replace(face, track_id=10 + face.track_id) for face in faces]
        for face in strangers:
            behind_a_mask(face, face.pictures.crop.copy(), BELOW)
        memory.look(strangers, float(seconds))
        counts.append(len(looks))
    assert max(counts) <= 8
    assert sum(counts) == 6 * 6 * 5
    assert counts[-1] == 0


def test_who_cannot_be_compared_keeps_nobody_waiting(portrait: Portrait) -> None:
    """Eight people are gone; of two faces one looks aside for good."""
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    for number in range(8):
        noise = np.random.default_rng(number).integers(0, 255, (CROP_SIZE // 4, CROP_SIZE // 4, 3))
        one = replace(bare_face(portrait), track_id=20 + number)
        one.pictures.crop[:] = crop if number == 7 else cv2.resize(noise.astype(np.uint8), (CROP_SIZE, CROP_SIZE))
        for seconds in np.arange(10.0, 11.0, 0.04):
            memory.look([one], float(seconds))
        memory.forget()
    aside = turned(replace(bare_face(portrait), track_id=1), 50)
    for one in (aside, face):
        shown = behind_a_mask(one, crop, BELOW)
    shares = later_shares(memory, [aside, face], shown, np.arange(20.0, 22.0, 0.04).tolist())
    assert shares[-1] == [0.0, 1.0]
