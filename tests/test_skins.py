"""How dark skin looks: told from cheeks and nose, and drawn more often in training."""

import dataclasses
from pathlib import Path

import cv2
import numpy as np
import pytest
from faces import Portrait
from training_faces import small_recipe, write_crops

from unmask.models.geometry import canonical_crop, transform_landmarks
from unmask.train.data import FaceCrops, warp_crop
from unmask.train.inpainter import DARK_SHARE, PaintTrainer
from unmask.train.registry import trainer_of
from unmask.train.skins import DARK, dark_faces, skin_angle


def test_the_darker_the_picture_the_smaller_the_angle(portrait: Portrait) -> None:
    matrix = canonical_crop(portrait.landmarks)
    crop, points = warp_crop(portrait.bare, matrix)[0], transform_landmarks(matrix, portrait.landmarks)
    angles = [skin_angle(np.asarray(crop * light, np.uint8), points) for light in (1.0, 0.7, 0.4)]
    assert angles[0] > angles[1] > angles[2]
    assert angles[2] < DARK < angles[0]
    fringe = crop.copy()
    cv2.rectangle(fringe, (0, 0), (255, int(points[8, 1])), (20, 15, 10), -1)
    assert skin_angle(fringe, points) == pytest.approx(angles[0], abs=1.0), "hair in the forehead is no skin"


def test_dark_faces_are_drawn_more_often(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "data" / "crops", 40)
    pictures = np.load(crops / "crops.npy", mmap_mode="r+")
    pictures[...] = 230
    pictures[[1, 9, 20]] = (90, 60, 45)
    pictures.flush()
    overrides = (f"crops={crops}",)
    trainer = trainer_of(small_recipe("inpainter", tmp_path / "other", tmp_path / "run", *overrides))
    assert isinstance(trainer, PaintTrainer)
    assert list(trainer.dark) == [9, 20], "the first two are for validation"
    phase = trainer.recipe.phases[0]
    drawn = np.array([trainer.evened(draw).face for seed in range(500) for draw in trainer.draws(phase, seed)])
    assert abs(np.isin(drawn, trainer.dark).mean() - (DARK_SHARE + (1 - DARK_SHARE) * 2 / 38)) < 0.03
    light = dataclasses.replace(trainer.faces, crops=np.full_like(pictures, 230))
    assert not len(dark_faces(light, FaceCrops.open(crops).split(validation=False)))
