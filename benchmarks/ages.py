"""How old painted faces look, next to how old the people are.

    python benchmarks/ages.py CROPS --labels train/ages.csv --instruments DIR [--sheet FILE.png]

Faces of the validation split, painted under the masks of `unmask evaluate inpainter`. What tells ages is not what the
inpainter learnt from: SqueezeNet's feature maps (of LPIPS, `--instruments`) of the lower face, pooled, and a ridge
regression from them to the years of the training faces of the list. Its mistakes on the true faces are printed, too.
"older" is what it says of the painted face less what it says of the true one, so that what it gets wrong in both does
not count. Faces are grouped by their label. The sheet shows the oldest, true above painted.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch

from unmask.models.engine import Engine, choose, load
from unmask.models.geometry import CROP_SIZE
from unmask.train.ages import AgeHead, fit_ridge, pooled, read_ages
from unmask.train.data import FaceCrops
from unmask.train.instruments import Instruments
from unmask.train.losses import lower_part
from unmask.train.masks import hidden_region

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

GROUPS: Final = ((0, 15), (15, 30), (30, 50), (50, 65), (65, 120))
_SHOWN: Final = 32
_COLUMNS: Final = 8


def features(judge: Instruments, rgb: U8) -> torch.Tensor:
    """(D,) of the lower part of a (256, 256, 3) uint8 crop."""
    return pooled(judge.lpips_maps(lower_part(torch.from_numpy(rgb.copy()).permute(2, 0, 1)[None])))[0]


def paint(engine: Engine, crops: FaceCrops, index: int, seed: int) -> U8:
    """A validation face as `unmask evaluate inpainter` has it painted."""
    truth = np.ascontiguousarray(crops.crops[index])
    hidden = hidden_region(crops.points[index], np.random.default_rng(seed), (CROP_SIZE, CROP_SIZE)) > 0
    mask = hidden.astype(np.uint8) * np.uint8(255)
    return np.where(hidden[..., None], engine(truth[None], mask[None])[0], truth).astype(np.uint8)


def judge_of_ages(judge: Instruments, crops: FaceCrops, ages: Mapping[str, float]) -> AgeHead:
    """What tells years from `features`, learnt from the training faces that have a label."""
    learnt = [int(i) for i in crops.split(validation=False) if crops.names[i] in ages]
    seen = torch.stack([features(judge, np.ascontiguousarray(crops.crops[i])) for i in learnt])
    return fit_ridge(seen, np.array([ages[crops.names[i]] for i in learnt]))


def print_figures(labels: F32, truth: F32, painted: F32) -> None:
    """By the age on the label: how many there are, how wrong the judge is, and how much younger the painted look."""
    wrong = np.abs(truth - labels).mean()
    print(f"the judge on {len(labels)} true faces: {wrong:.1f} years wrong, r {np.corrcoef(truth, labels)[0, 1]:.3f}")
    for low, high in GROUPS:
        there = (labels >= low) & (labels < high)
        older, off = (painted - truth)[there].mean(), (truth - labels)[there].mean()
        print(f"{low:3} to {high:3} years: {there.sum():4} faces, painted look {older:+.1f} years (judge {off:+.1f})")
    print(f"all: {np.abs(painted - truth).mean():.1f} years apart, r {np.corrcoef(painted, truth)[0, 1]:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("crops", type=Path)
    parser.add_argument("--labels", type=Path, required=True, help="lines picture,years")
    parser.add_argument("--instruments", type=Path, required=True, help="with loaders.py")
    parser.add_argument("--sheet", type=Path, help="the oldest, true above painted")
    options = parser.parse_args()
    crops, ages = FaceCrops.open(options.crops), read_ages(options.labels)
    judge = Instruments(options.instruments)
    head = judge_of_ages(judge, crops, ages)
    engine = load("inpainter", choose())
    pairs, labels = [], []
    for seed, index in enumerate(crops.split(validation=True)):
        if crops.names[index] in ages:
            pairs.append((np.ascontiguousarray(crops.crops[index]), paint(engine, crops, int(index), seed)))
            labels.append(ages[crops.names[index]])
    truth, painted = (head.years_of(torch.stack([features(judge, pair[k]) for pair in pairs])).numpy() for k in (0, 1))
    print_figures(np.array(labels, np.float32), truth, painted)
    if options.sheet:
        oldest = [np.vstack(pairs[i]) for i in np.argsort(labels)[::-1][:_SHOWN]]
        rows = [np.hstack(oldest[i : i + _COLUMNS]) for i in range(0, _SHOWN, _COLUMNS)]
        cv2.imwrite(str(options.sheet), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
