"""Measures what a training run made: its averaged weights, on the pictures that it kept for validation."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unmask.errors import UserError
from unmask.train import inpainter, segmenter, unmasker
from unmask.train.config import Recipe, as_struct
from unmask.train.data import FaceCrops
from unmask.train.detector import DetectorTrainer
from unmask.train.evaluate import psnr, structural_similarity
from unmask.train.instruments import Instruments
from unmask.train.loop import Indices
from unmask.train.materials import load_templates
from unmask.train.registry import build, model_of
from unmask.train.sheets import as_picture, picture_sheet, tinted

U8 = npt.NDArray[np.uint8]
Bools = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a network made of some pictures; N of them, S px.

    Attributes:
        masked: (N, 3, S, S) 0..1, what it was given.
        label: (N, 1, S, S) 0/1, where the mask is.
        found: (N, 1, S, S) 0..1, where it says that the mask is; None for one that is told.
        truth, result: (N, 3, S, S) 0..1, the face without its mask, and as it was painted; None where none is painted.
    """

    masked: Tensor
    label: Tensor
    found: Tensor | None = None
    truth: Tensor | None = None
    result: Tensor | None = None


def load_run(folder: Path) -> tuple[Recipe, nn.Module]:
    """The recipe of a run and its network with the averaged weights, ready to run.

    Raises:
        UserError: the folder is not of a run.
    """
    try:
        recipe = as_struct(json.loads((folder / "recipe.json").read_text()), Recipe, f"'{folder}/recipe.json'")
        state = torch.load(folder / "state.pt", weights_only=True, map_location="cpu")
    except OSError as error:
        raise UserError(f"'{folder}' is no training run: {Path(str(error.filename)).name} is missing") from error
    network = build(recipe)
    network.load_state_dict(state["ema"])
    return recipe, network.eval()


@torch.no_grad()
def outcome(recipe: Recipe, network: nn.Module, faces: FaceCrops, indices: Indices, seed: int) -> Outcome:
    """Run a network on some faces with synthetic masks; the same seed gives the same masks."""
    size = recipe.phases[-1].size
    templates = load_templates(Path(recipe.textures)) if recipe.textures else []
    trainer: Any = model_of(recipe).trainer
    if trainer is segmenter.SegmentTrainer:
        batch = segmenter.make_batch(segmenter.Sources(faces, templates), indices, size, seed)
        return Outcome(batch.rgb, batch.label, found=network(batch.rgb).sigmoid())
    worn = unmasker.make_batch(faces, templates, None, indices, size, seed, 0.0)
    if trainer is unmasker.UnmaskTrainer:
        result, logits = network(worn.rgb)
        return Outcome(worn.rgb, worn.mask, logits.sigmoid(), worn.truth, result.clamp(0, 1))
    hidden = inpainter.make_batch(faces, indices, size, seed)
    result = network(hidden.seen, hidden.mask).clamp(0, 1)
    return Outcome(hidden.seen * (1 - hidden.mask), hidden.mask, None, hidden.truth, result)


def evaluate_run(
    folder: Path, instruments: Instruments | None, most: int, progress: Callable[[int, int], None]
) -> tuple[dict[str, float], U8]:
    """Measure a run.

    Protocol: validation faces of the run's own split, at the size of its last phase, with synthetic masks (seed: the
    position of the first face of each group of eight). IoU and Dice are over the pixels of all pictures, the rest are
    means over the pictures. LPIPS and identity compare whole crops, enlarged to 256 px.

    Args:
        folder: of the run.
        instruments: for LPIPS and identity; None leaves them out.
        most: how many pictures at most.
        progress: is told how many of how many are done.

    Returns:
        The figures, and a sheet of the first pictures: masked, mask over picture, result, truth.

    Raises:
        UserError: the folder is of no run, or of a detector's.
    """
    recipe, network = load_run(folder)
    if model_of(recipe).trainer is DetectorTrainer:
        raise UserError("a detector finds no masks and paints nothing; measure it with benchmarks/tracking.py")
    faces = FaceCrops.open(Path(recipe.crops))
    validation = faces.split(True, recipe.split)[:most]
    overlap = np.zeros(3)
    rows: list[dict[str, float]] = []
    sheet: U8 | None = None
    for start in range(0, len(validation), 8):
        progress(start, len(validation))
        made = outcome(recipe, network, faces, validation[start : start + 8], start)
        sheet = _sheet(made) if sheet is None else sheet
        if made.found is not None:
            found, label = made.found > 0.5, made.label > 0.5
            overlap += [(found & label).sum().item(), (found | label).sum().item(), len(label)]
        if made.result is not None and made.truth is not None:
            rows += [_painted(made, i, instruments) for i in range(len(made.result))]
    assert sheet is not None
    figures: dict[str, float] = {"pictures": len(validation)}
    if overlap[2]:
        iou = float(overlap[0] / max(overlap[1], 1.0))
        figures |= {"iou": iou, "dice": 2 * iou / (1 + iou)}
    names = dict.fromkeys(name for row in rows for name in row)
    return figures | {n: float(np.mean([row[n] for row in rows if n in row])) for n in names}, sheet


def _painted(made: Outcome, index: int, instruments: Instruments | None) -> dict[str, float]:
    """Figures of one painted picture."""
    assert made.result is not None
    assert made.truth is not None
    result, truth = as_picture(made.result[index]), as_picture(made.truth[index])
    hidden = made.label[index, 0].numpy() > 0.5
    error = result.astype(np.float64) - truth
    figures = {
        "psnr": psnr(error),
        "ssim": structural_similarity(result, truth),
        "mse": float(np.mean((error / 255) ** 2)),
    }
    if hidden.any():
        figures["psnr_in_mask"] = psnr(error[hidden])
    if instruments is None:
        return figures
    large = [np.asarray(cv2.resize(x, (256, 256), interpolation=cv2.INTER_CUBIC), np.uint8) for x in (truth, result)]
    figures["lpips"] = instruments.lpips(large[0], large[1])
    identity = instruments.identity(large[0], large[1])
    return figures if identity is None else figures | {"identity": identity}


def _sheet(made: Outcome) -> U8:
    columns = {"masked": made.masked, "mask": tinted(made.masked, made.label if made.found is None else made.found)}
    if made.result is not None and made.truth is not None:
        columns |= {"result": made.result, "truth": made.truth}
    return picture_sheet(list(columns.values()), list(columns))
