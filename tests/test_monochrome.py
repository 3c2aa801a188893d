"""Black and white stays black and white, and a tint a tint; colours stay colours."""

from collections.abc import Callable

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from faces import Portrait

from unmask.models.geometry import CROP_SIZE
from unmask.stream.monochrome import tint
from unmask.stream.stage import Context, Stage
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment
from unmask.stream.stages.smooth import Smooth

U8 = npt.NDArray[np.uint8]


def grey(rgb: U8) -> U8:
    return np.asarray(cv2.cvtColor(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), np.uint8)


def sepia(rgb: U8) -> U8:
    return np.asarray(np.clip(grey(rgb) * np.array([1.05, 0.95, 0.8]) + np.array([8, 4, 0]), 0, 255), np.uint8)


def unmasked(portrait: Portrait, shown_as: Callable[[U8], U8]) -> tuple[U8, U8]:
    """The portrait with a mask as it is filmed, and what the stages show."""
    frame = portrait.frame(masked=True)
    frame.planes[0][:] = shown_as(np.asarray(frame.planes[0]))
    before = frame.planes[0].copy()
    stages: tuple[Stage, ...] = (Segment("cpu"), Inpaint("cpu"), Smooth())
    for stage in stages:
        stage.open(Context(frame.layout))
    for stage in stages:
        (frame,) = stage.process(frame)
    for stage in stages:
        stage.close()
    return before, np.asarray(frame.planes[0])


def off_the_tint(before: U8, after: U8, where: npt.NDArray[np.bool_]) -> float:
    """How far, of 255, red lies from where its brightness has it in the picture as it was."""
    bright = [cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(float) for rgb in (before, after)]
    red = [rgb[..., 0] - light for rgb, light in zip((before, after), bright, strict=True)]
    slope, offset = np.polyfit(bright[0].ravel(), red[0].ravel(), 1)
    return float(np.abs(red[1] - slope * bright[1] - offset)[where].mean())


@pytest.mark.parametrize("shown_as", [grey, sepia])
def test_a_picture_without_colours_gets_none(portrait: Portrait, shown_as: Callable[[U8], U8]) -> None:
    before, after = unmasked(portrait, shown_as)
    painted = np.abs(after.astype(int) - before).max(axis=2) > 12
    assert painted.sum() > 1000
    assert off_the_tint(before, after, painted) < 1.0


def test_a_picture_with_colours_keeps_what_is_painted(portrait: Portrait) -> None:
    crop = np.ascontiguousarray(cv2.resize(portrait.bare, (CROP_SIZE, CROP_SIZE)))
    known = np.full((CROP_SIZE, CROP_SIZE), 255, np.uint8)
    painted = np.random.default_rng(0).integers(0, 255, crop.shape).astype(np.uint8)
    before = painted.copy()
    tint(crop, known, painted)
    np.testing.assert_array_equal(painted, before)
    tint(grey(crop), np.zeros_like(known), painted)  # nothing is known
    np.testing.assert_array_equal(painted, before)
    tint(grey(crop), known, painted)
    assert np.ptp(painted, axis=2).max() <= 1
