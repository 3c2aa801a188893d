"""Measures what a training run made: its averaged weights, on the pictures that it kept for validation."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unmask.errors import UserError
from unmask.train import inpainter, pins, segmenter, unmasker
from unmask.train.config import Recipe, as_struct
from unmask.train.data import FaceCrops, draws
from unmask.train.detector import DetectorTrainer
from unmask.train.evaluate import iou_of, psnr, structural_similarity
from unmask.train.fabrics import load_fabrics
from unmask.train.files import json_of
from unmask.train.instruments import Instruments
from unmask.train.landmarker import LandmarkerTrainer
from unmask.train.loop import Indices, read_state
from unmask.train.materials import load_templates
from unmask.train.registry import build, model_of
from unmask.train.sheets import as_picture, picture_sheet, tinted

U8 = npt.NDArray[np.uint8]


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
        UserError: the folder is not of a run, or its files are damaged.
    """
    try:
        recipe = as_struct(json_of(folder / "recipe.json"), Recipe, f"'{folder}/recipe.json'")
        state = read_state(folder / "state.pt")
    except OSError as error:
        raise UserError(f"'{folder}' is no training run: {Path(str(error.filename)).name} is missing") from error
    network = build(msgspec.structs.replace(recipe, encoder=""))  # what that began with is in the state
    try:
        network.load_state_dict(state["ema"])
    except RuntimeError as error:
        raise UserError(f"'{folder}/state.pt' is of another model than recipe.json; put the run's own there") from error
    return recipe, network.eval()


@torch.no_grad()
def outcome(recipe: Recipe, network: nn.Module, faces: FaceCrops, indices: Indices, seed: int) -> Outcome:
    """Run a network on some faces with synthetic masks; the same seed gives the same masks."""
    size = recipe.phases[-1].size
    templates = load_templates(Path(recipe.textures)) if recipe.textures else []
    trainer: Any = model_of(recipe).trainer
    if issubclass(trainer, segmenter.SegmentTrainer):
        fabrics = load_fabrics(Path(recipe.textures)) if recipe.textures else []
        batch = segmenter.make_batch(segmenter.Sources(faces, templates, fabrics=fabrics), draws(indices, seed), size)
        return Outcome(batch.rgb, batch.label, found=network(batch.rgb).sigmoid())
    worn = unmasker.make_batch(faces, templates, None, draws(indices, seed), size, 0.0)
    if trainer is unmasker.UnmaskTrainer:
        result, logits = network(worn.rgb)
        return Outcome(worn.rgb, worn.mask, logits.sigmoid(), worn.truth, result.clamp(0, 1))
    hidden = inpainter.make_batch(faces, indices, size, seed)
    painted = network(hidden.seen, hidden.mask).clamp(0, 1)
    result = inpainter.only_hidden(painted, hidden.seen, hidden.mask)
    return Outcome(hidden.seen * (1 - hidden.mask), hidden.mask, None, hidden.truth, result)


def evaluate_run(
    folder: Path,
    instruments: Instruments | None,
    progress: Callable[[int, int], None],
    *,
    most: int = 500,
    crops: Path | None = None,
) -> tuple[dict[str, float], U8]:
    """Measure a run.

    Protocol: validation faces of the run's own split, at the size of its last phase, with synthetic masks (seed: the
    position of the first face of each group of eight). IoU and Dice are over the pixels of all pictures, the rest are
    means over the pictures. LPIPS and identity compare whole crops, enlarged to 256 px.

    Args:
        folder: of the run.
        instruments: for LPIPS and identity; None leaves them out. Identity is left out, too, where the run was trained
            by the same network.
        progress: is told how many of how many are done.
        most: how many pictures at most.
        crops: all faces of this folder instead of the validation faces.

    Returns:
        The figures, and a sheet of the first pictures: masked, mask over picture, result, truth.

    Raises:
        UserError: the folder is of no run, or of one of the tracker's networks, or its crops are not those that it was
            trained on.
    """
    recipe, network = load_run(folder)
    if model_of(recipe).trainer in (DetectorTrainer, LandmarkerTrainer):
        raise UserError(f"a {recipe.model} finds no masks and paints nothing; measure it with benchmarks/tracking.py")
    if crops is None:
        pins.check(folder, {"crops": pins.hash_of(Path(recipe.crops))})
    faces = FaceCrops.open(crops or Path(recipe.crops))
    chosen = np.arange(len(faces.names)) if crops else faces.split(True, recipe.split)
    chosen = chosen[:most]
    tally = _Tally(instruments, judges=not _trained_by(folder, instruments))
    for start in range(0, len(chosen), 8):
        progress(start, len(chosen))
        tally.add(outcome(recipe, network, faces, chosen[start : start + 8], start))
    assert tally.sheet is not None
    return {"pictures": len(chosen)} | tally.figures(), tally.sheet


def _trained_by(folder: Path, instruments: Instruments | None) -> bool:
    """Whether a loss of the run was the network that would judge it; says so."""
    loss = pins.pinned(folder).get("identity_weights")
    if instruments is None or loss is None:
        return False
    same = any(pins.hash_of(file) == loss for file in instruments.folder.iterdir() if file.is_file())
    if same:
        print(f"{folder}: its loss is the judge of identity, which is left out", file=sys.stderr)
    return same


class _Tally:
    """Adds up the figures of a run; keeps the first sheet.

    Args:
        instruments: for LPIPS and identity.
        judges: whether they may say something about identity.
    """

    def __init__(self, instruments: Instruments | None, *, judges: bool) -> None:
        self._instruments, self._judges = instruments, judges
        self._both = self._either = 0
        self._finds = False
        self._rows: list[dict[str, float]] = []
        self.sheet: U8 | None = None

    def add(self, made: Outcome) -> None:
        self.sheet = _sheet(made) if self.sheet is None else self.sheet
        if made.found is not None:
            found, label = made.found > 0.5, made.label > 0.5
            self._finds = True
            self._both += int((found & label).sum())
            self._either += int((found | label).sum())
        if made.result is not None and made.truth is not None:
            self._rows += [_painted(made, i, self._instruments, self._judges) for i in range(len(made.result))]

    def figures(self) -> dict[str, float]:
        iou = iou_of(self._both, self._either)
        found = {"iou": iou, "dice": 2 * iou / (1 + iou)} if self._finds else {}
        names = dict.fromkeys(name for row in self._rows for name in row)
        return found | {n: float(np.mean([row[n] for row in self._rows if n in row])) for n in names}


def _painted(made: Outcome, index: int, instruments: Instruments | None, judges: bool) -> dict[str, float]:
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
    identity = instruments.identity(large[0], large[1]) if judges else None
    return figures if identity is None else figures | {"identity": identity}


def _sheet(made: Outcome) -> U8:
    columns = {"masked": made.masked, "mask": tinted(made.masked, made.label if made.found is None else made.found)}
    if made.result is not None and made.truth is not None:
        columns |= {"result": made.result, "truth": made.truth}
    return picture_sheet(list(columns.values()), list(columns))
