"""Rims of glasses in front of a mask stay as they are filmed."""

from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait

from unmask.models.geometry import CROP_SIZE, canonical_crop, transform_landmarks
from unmask.stream.jobs import PictureDesk
from unmask.stream.pipeline import Settings
from unmask.stream.rims import rims_in_front

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
RIM, CLOTH = (35, 30, 40), (215, 220, 228)
LOW = 36
"""How far below the eyes rims lie, px."""


def points_of(portrait: Portrait) -> F32:
    return transform_landmarks(canonical_crop(portrait.landmarks), portrait.landmarks)


def masked(points: F32, below: int = 18) -> tuple[U8, U8]:
    """Skin with a white mask up to the middle of the nose, whose folds are a little darker, and where it is."""
    crop, hidden = np.full((CROP_SIZE, CROP_SIZE, 3), (205, 160, 135), np.uint8), np.zeros((CROP_SIZE,) * 2, np.uint8)
    top = int(points[[33, 263], 1].mean()) + below
    cv2.rectangle(hidden, (70, top), (186, 235), 255, -1)
    crop[hidden > 0] = CLOTH
    for row in range(top + 5, 230, 24):
        cv2.line(crop, (70, row), (186, row), (170, 175, 182), 2)
    noise = np.random.default_rng(0).normal(0, 2, crop.shape)
    return np.clip(crop + noise, 0, 255).astype(np.uint8), hidden


def worn(crop: U8, points: F32, thick: int = 3, colour: tuple[int, ...] = RIM, wide: int = 24) -> U8:
    """Glasses drawn on a crop; written; narrow ones have no bridge. Returns (S, S) uint8, 255 where they are."""
    drawn = np.zeros(crop.shape[:2], np.uint8)
    middles = [np.rint(points[list(eye), :2].mean(0)).astype(int) for eye in ((33, 133), (263, 362))]
    for x, y in middles:
        cv2.rectangle(drawn, (x - wide, y - 14), (x + wide, y + LOW), 255, thick)
    if wide == 24:
        cv2.line(drawn, (middles[0][0] + 24, middles[0][1]), (middles[1][0] - 24, middles[1][1]), 255, thick)
    crop[drawn > 0] = colour
    return drawn


@pytest.mark.parametrize("thick", [2, 3, 4])
@pytest.mark.parametrize("colour", [RIM, (110, 40, 30)])
def test_rims_are_found_whole_and_nothing_else(portrait: Portrait, thick: int, colour: tuple[int, ...]) -> None:
    points = points_of(portrait)
    crop, hidden = masked(points)
    drawn = worn(crop, points, thick, colour)
    found = rims_in_front(crop, hidden, points)
    assert found is not None
    over = (drawn > 0) & (cv2.erode(hidden, np.ones((5, 5), np.uint8)) > 0)
    assert over.sum() > 80
    assert found[over].mean() > 0.9 * 255
    assert found[(cv2.dilate(drawn, np.ones((7, 7), np.uint8)) == 0) & (hidden > 0)].max() < 45, "folds at most"


def test_rims_along_the_edge_of_a_mask_are_rims_if_they_are_on_both_sides_of_the_nose(portrait: Portrait) -> None:
    points = points_of(portrait)
    crop, hidden = masked(points, LOW - 1)
    drawn = worn(crop, points, 2)
    found = rims_in_front(crop, hidden, points)
    assert found is not None
    over = (drawn > 0) & (cv2.erode(hidden, np.ones((3, 3), np.uint8)) > 0)
    assert over.sum() > 60
    assert found[over].mean() > 0.9 * 255
    crop, hidden = masked(points, LOW - 1)
    without = crop.copy()
    worn(crop, points, 2)
    crop[:, : round(float(points[168, 0])) - 8] = without[:, : round(float(points[168, 0])) - 8]
    assert rims_in_front(crop, hidden, points) is None


def test_blurred_rims_are_as_much_rim_as_they_are_dark(portrait: Portrait) -> None:
    points = points_of(portrait)
    crop, hidden = masked(points)
    drawn = worn(crop, points, 4)
    blurred, share = (cv2.GaussianBlur(x, (0, 0), 1.2) for x in (crop, drawn))
    found = rims_in_front(np.asarray(blurred, np.uint8), hidden, points)
    assert found is not None
    inner = cv2.erode(hidden, np.ones((9, 9), np.uint8)) > 0
    edge = inner & (share > 60) & (share < 200)
    assert edge.sum() > 50
    assert np.corrcoef(found[edge], share[edge])[0, 1] > 0.8


def test_what_does_not_cross_the_nose_is_no_pair_of_glasses(portrait: Portrait) -> None:
    points = points_of(portrait)
    crop, hidden = masked(points)
    assert rims_in_front(crop, hidden, points) is None, "folds"
    worn(crop, points, wide=15)
    assert rims_in_front(crop, hidden, points) is None
    assert rims_in_front(crop, np.zeros_like(hidden), points) is None, "no mask"
    assert rims_in_front(crop, hidden, points - 400) is None, "eyes beyond the crop"
    assert rims_in_front(crop, hidden, points + 400) is None


def test_prints_and_dark_masks_are_no_rims(portrait: Portrait) -> None:
    points = points_of(portrait)
    crop, hidden = masked(points)
    for column in range(72, 186, 9):
        cv2.line(crop, (column, 60), (column, 235), RIM, 3)
    worn(crop, points)
    assert rims_in_front(crop, hidden, points) is None
    crop, hidden = masked(points)
    crop[hidden > 0] = (45, 45, 50)
    worn(crop, points)
    assert rims_in_front(crop, hidden, points) is None


def test_glasses_of_a_real_video_keep_their_lower_rims(shared: Path) -> None:
    """Frames in which what crosses the white mask is the lower half of dark glasses."""
    wanted = (371, 393, 410, 430)
    with (
        av.open(str(shared / "data/videos/masked/glasses-vfr-audio-720p.mp4")) as video,
        PictureDesk(Settings()) as desk,
    ):
        for index, picture in enumerate(video.decode(video=0)):
            if index not in wanted:
                continue
            rgb = picture.to_ndarray(format="rgb24")
            frame = desk.process_frame(np.asarray(rgb, np.uint8))
            face = max((face for face in frame.faces if face.masked), key=lambda face: face.box_px[2] - face.box_px[0])
            seen = face.pictures
            luma = cv2.cvtColor(seen.crop, cv2.COLOR_RGB2GRAY)
            inner = cv2.erode(seen.hidden, np.ones((7, 7), np.uint8)) > 0
            inner[200:] = False  # towards the crop's border nothing is replaced
            rims = inner & (seen.mask < 100)
            assert 60 < rims.sum() < 800, index
            assert luma[rims].mean() < 0.7 * luma[inner & ~rims].mean(), index
            assert seen.mask[rims].min() >= 1, "what is under them is not known"
