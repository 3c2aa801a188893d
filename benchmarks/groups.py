"""How well faces of different ages and skins are painted, and how old they look then.

    python benchmarks/groups.py CROPS --labels train/ages.csv --instruments DIR [--sheet FILE.png]

Faces of the validation split that have a label, painted under the masks of `unmask evaluate inpainter`; means of PSNR
in the mask, LPIPS and likeness to the person (cosine of face embeddings).

"older" is how much older they look painted than true. What tells that is not what the inpainter learnt from:
SqueezeNet's feature maps (of LPIPS) of the lower face, pooled, and a ridge regression from them to the years of the
training faces of the list. What it says of the painted face less what it says of the true one counts, so that what it
gets wrong in both does not; its mistakes on the true faces ("judge") are printed, too. Ages are by the label.

Skin is told by its colour on cheeks and nose (`unmask.train.skins`). The light of the pictures is not known, so that it
sorts pictures, not people.
"""

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch

from unmask.models.engine import Engine, choose, load
from unmask.train.ages import AgeHead, fit_ridge, pooled, read_ages
from unmask.train.data import FaceCrops
from unmask.train.evaluate import painted_crops, psnr
from unmask.train.instruments import Instruments
from unmask.train.losses import lower_part
from unmask.train.skins import skin_angle

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

AGES: Final = (0, 15, 30, 50, 65, 120)
SKINS: Final = (-90, 0, 28, 41, 55, 90)
"""Degrees: dark or brown, tan, intermediate, light, very light."""
_SHOWN: Final = 32
_COLUMNS: Final = 8


@dataclass(frozen=True, slots=True)
class Painted:
    """One face.

    Attributes:
        years: by the label.
        skin: degrees.
        truth, result: (256, 256, 3) uint8 crops.
        psnr: dB in the mask.
        lpips: of the crop.
        identity: None where no face was found.
        judged: what the judge says, years, of the true and of the painted face.
    """

    years: float
    skin: float
    truth: U8
    result: U8
    psnr: float
    lpips: float
    identity: float | None
    judged: tuple[float, float]


def features(judge: Instruments, rgb: U8) -> torch.Tensor:
    """(D,) of the lower part of a (256, 256, 3) uint8 crop."""
    return pooled(judge.lpips_maps(lower_part(torch.from_numpy(rgb).permute(2, 0, 1)[None])))[0]


def judge_of_ages(judge: Instruments, crops: FaceCrops, ages: Mapping[str, float]) -> AgeHead:
    """What tells years from `features`, learnt from the training faces that have a label."""
    learnt = [int(i) for i in crops.split(validation=False) if crops.names[i] in ages]
    seen = torch.stack([features(judge, crops.crops[i].copy()) for i in learnt])
    return fit_ridge(seen, np.array([ages[crops.names[i]] for i in learnt]))


def painted_faces(
    engine: Engine, crops: FaceCrops, ages: Mapping[str, float], judge: Instruments, head: AgeHead
) -> Iterator[Painted]:
    """The validation faces that have a label, as `unmask evaluate inpainter` has them painted."""
    for face in painted_crops(engine, crops, lambda done, total: None):
        name = crops.names[face.index]
        if name in ages:
            said = head.years_of(torch.stack([features(judge, x) for x in (face.truth, face.result)])).tolist()
            yield Painted(
                ages[name],
                skin_angle(face.truth, crops.points[face.index]),
                face.truth,
                face.result,
                psnr((face.result.astype(np.float64) - face.truth)[face.inside]),
                judge.lpips(face.truth, face.result),
                judge.identity(face.truth, face.result),
                (said[0], said[1]),
            )


def print_group(name: str, faces: Sequence[Painted]) -> None:
    """A line of means."""
    if not faces:
        print(f"{name:20} none")
        return
    said = np.array([face.judged for face in faces])
    alike = [face.identity for face in faces if face.identity is not None]
    wrong = float(np.mean(said[:, 0] - [face.years for face in faces]))
    print(
        f"{name:20} {len(faces):4} faces  PSNR {np.mean([f.psnr for f in faces]):.2f} dB"
        f"  LPIPS {np.mean([f.lpips for f in faces]):.4f}  identity {np.mean(alike):.3f}"
        f"  older {np.mean(said[:, 1] - said[:, 0]):+.1f} years (judge {wrong:+.1f})"
    )


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
    faces = list(painted_faces(load("inpainter", choose()), crops, ages, judge, head))
    print_group("all", faces)
    for low, high in pairwise(AGES):
        print_group(f"{low} to {high} years", [face for face in faces if low <= face.years < high])
    for low, high in pairwise(SKINS):
        print_group(f"skin {low} to {high}", [face for face in faces if low <= face.skin < high])
    true, shown = np.array([face.judged for face in faces]).T
    apart = np.abs(shown - true).mean()
    print(f"years of painted and true faces: {apart:.1f} apart, r {np.corrcoef(true, shown)[0, 1]:.3f}")
    if options.sheet:
        oldest = sorted(faces, key=lambda face: -face.years)[:_SHOWN]
        pairs = [np.vstack([face.truth, face.result]) for face in oldest]
        rows = [np.hstack(pairs[i : i + _COLUMNS]) for i in range(0, len(pairs), _COLUMNS)]
        cv2.imwrite(str(options.sheet), np.vstack(rows)[..., ::-1])


if __name__ == "__main__":
    main()
