"""Eyes that a mask hides for a moment are those that were seen before."""

from dataclasses import replace

import cv2
import numpy as np
import pytest
from faces import Portrait

from unmask.models.geometry import CROP_SIZE, transform_points
from unmask.models.outline import Shown
from unmask.stream.eye_memory import EyeMemory
from unmask.stream.frame import U8, Face

EYES = slice(95, 150)
"""Rows of the crop in which eyes and brows lie."""


def bare_face(portrait: Portrait) -> Face:
    """The portrait's face, as `segment` leaves a bare one."""
    face = portrait.frame(masked=False).faces[0]
    crop = cv2.warpAffine(portrait.bare, face.crop_from_frame, (CROP_SIZE, CROP_SIZE))
    face.pictures.crop[:] = crop
    face.pictures.mask[:] = face.pictures.hidden[:] = 0
    return face


def behind_a_mask(face: Face, rgb: U8) -> Shown:
    """What is shown of a face whose mask lies over eyes and cheeks."""
    hidden = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    hidden[EYES.start : 220, 20:236] = 255
    face.masked = True
    face.pictures.mask[:] = face.pictures.hidden[:] = hidden
    return Shown(np.where(hidden[..., None] > 0, np.uint8(255), rgb), hidden, np.zeros_like(hidden))


def test_eyes_that_were_seen_are_shown_where_a_mask_hides_them(portrait: Portrait) -> None:
    memory, face = EyeMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 1.0)
    before = behind_a_mask(face, crop)
    memory.look([face], 1.1)  # now they cannot be seen
    shown = memory.recall(face, before, 1.1)
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
    memory, face = EyeMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 0.0)
    turned = cv2.getRotationMatrix2D((128, 128), 12, 0.95)
    moved = replace(face, crop_from_frame=turned @ np.vstack([face.crop_from_frame, [0, 0, 1]]))
    truth = cv2.warpAffine(crop, turned, (CROP_SIZE, CROP_SIZE), borderMode=cv2.BORDER_REPLICATE)
    truth = cv2.convertScaleAbs(truth, alpha=0.8)
    shown = memory.recall(moved, behind_a_mask(moved, np.asarray(truth, np.uint8)), 0.2)
    given = shown.given > 0
    assert given.sum() > 1000
    assert np.abs(shown.rgb[given].astype(int) - truth[given]).mean() < 10


@pytest.mark.parametrize("why", ["long ago", "another face", "a cut", "never certain", "hardly hidden"])
def test_eyes_are_not_shown_without_reason(portrait: Portrait, why: str) -> None:
    memory, face = EyeMemory(), bare_face(portrait)
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
    shown = memory.recall(face, before, 60.0 if why == "long ago" else 0.1)
    assert not shown.given.any()
    np.testing.assert_array_equal(shown.hidden, before.hidden)


def test_a_blink_is_not_remembered(portrait: Portrait) -> None:
    memory, face = EyeMemory(), bare_face(portrait)
    crop = face.pictures.crop.copy()
    memory.look([face], 0.0)
    blinking = replace(face, landmarks_px=face.landmarks_px.copy())
    for upper, lower in ((159, 145), (386, 374)):
        blinking.landmarks_px[upper] = blinking.landmarks_px[lower]
    blinking.pictures.crop[:] = 0
    memory.look([blinking], 0.1)
    shown = memory.recall(face, behind_a_mask(face, crop), 0.2)
    assert shown.rgb[shown.given > 0].mean() > 20, "the eyes before it are"
    memory.look([replace(blinking, masked=False)], 3.0)
    shown = memory.recall(face, behind_a_mask(face, crop), 3.1)
    assert shown.rgb[shown.given > 0].mean() < 20, "those that stay closed are, after a while"
