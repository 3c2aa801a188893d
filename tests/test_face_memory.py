"""What a mask hides of a face is what was seen of it a moment before: all of it while it is put on, then the eyes."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from faces import Portrait

from unmask.models.geometry import CROP_SIZE, transform_points
from unmask.models.outline import Shown
from unmask.stream.face_memory import FaceMemory
from unmask.stream.frame import U8, Face

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
    assert shown.rgb[shown.given > 0].mean() > 20, "the eyes before it are"
    memory.look([replace(blinking, masked=False)], 3.0)
    shown = memory.with_eyes(face, behind_a_mask(face, crop), 3.1)
    assert shown.rgb[shown.given > 0].mean() < 20, "those that stay closed are, after a while"


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


def test_a_face_stays_as_it_was_while_its_mask_is_put_on(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    shown, other = put_on(memory, face, crop), another_face(crop)
    assert [memory.is_put_on(face, seconds) for seconds in (10.0, 12.9, 13.1)] == [True, True, False]
    painted = {seconds: other.copy() for seconds in (10.0, 11.4, 12.2, 13.1)}
    for seconds, picture in painted.items():
        memory.keep_bare(face, shown, picture, seconds)
    x, y = transform_points(face.crop_from_frame, face.landmarks_px)[[61, 291]].mean(axis=0).round().astype(int)
    mouth = np.s_[y - 8 : y + 8, x - 20 : x + 20]
    brighter = (other[mouth].astype(float) - crop[mouth]).mean()
    for seconds in (10.0, 11.4):
        assert np.abs(painted[seconds][mouth].astype(int) - crop[mouth]).mean() < 6
    assert 0.3 < (painted[12.2][mouth].astype(float) - crop[mouth]).mean() / brighter < 0.8, "it fades"
    np.testing.assert_array_equal(painted[13.1], other, "then there is what was painted")
    np.testing.assert_array_equal(painted[10.0][shown.hidden == 0], other[shown.hidden == 0])
    edge = np.s_[BELOW : BELOW + 2, 90:166]
    assert np.abs(painted[10.0][edge].astype(int) - other[edge]).mean() < 0.4 * brighter, "and the edge is soft"


@pytest.mark.parametrize(
    "why",
    [
        *("no time", "a mask under the chin", "a cut", "another face", "it came with a mask", "its mask was missed"),
        "its eyes are covered",
    ],
)
def test_no_face_is_kept_that_was_not_seen_bare(portrait: Portrait, why: str) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    other = another_face(crop)
    if why == "it came with a mask":
        shown = behind_a_mask(face, crop, BELOW)
        memory.look([face], 10.0)
        assert not memory.is_put_on(face, 10.0)
    else:
        bare, score = (0.2 if why == "no time" else 0.6), (0.5 if why == "a mask under the chin" else 0.0)
        if why == "no time":  # it wore one before, and may wear it still
            behind_a_mask(face, crop)
            memory.look([face], 9.0)
        if why == "its mask was missed":
            face.pictures.crop[EYES.start : 220, 20:236] = 255
        shown = put_on(memory, face, crop, bare, score, 60 if why == "its eyes are covered" else BELOW)
    if why == "a cut":
        memory.forget()
    if why == "another face":
        face = replace(face, track_id=face.track_id + 1)
    painted = other.copy()
    memory.keep_bare(face, shown, painted, 10.1)
    np.testing.assert_array_equal(painted, other)


def test_a_face_that_turns_is_not_kept(portrait: Portrait) -> None:
    memory, face = FaceMemory(), bare_face(portrait)
    other = another_face(face.pictures.crop)
    shown = put_on(memory, face, face.pictures.crop.copy())
    turned = replace(face, landmarks_px=face.landmarks_px.copy())
    turned.landmarks_px[:, 0] += 0.35 * turned.landmarks_px[:, 2]
    changed = []
    for one in (face, turned):
        painted = other.copy()
        memory.keep_bare(one, shown, painted, 10.1)
        changed.append(np.abs(painted.astype(int) - other).mean())
    assert changed[1] < 0.5 * changed[0]
