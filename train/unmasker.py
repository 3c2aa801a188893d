"""Trains networks that find the mask and paint what it hides in one go, as published ones do: rgb to rgb and logits."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unmask.train.config import Phase, Recipe
from unmask.train.data import Draw, FaceCrops, augment, draws
from unmask.train.inpainter import psnr_in
from unmask.train.loop import Indices
from unmask.train.materials import Template, draw_mask, wear_template
from unmask.train.objectives import ObjectiveTrainer, Scene, View, on_device, shown
from unmask.train.pseudo import PseudoLabels
from unmask.train.sheets import picture_sheet, tinted

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

_JITTER = 1.0


@dataclass(frozen=True, slots=True)
class Batch:
    """rgb (N, 3, S, S) 0..1, faces with masks; truth, the same without; mask (N, 1, S, S) 0/1, where mask is seen;
    inside (N, 1, S, S) 0/1, part of the real picture; unpaired (N or 0, 3, S, S) 0..1, real masked faces."""

    rgb: Tensor
    truth: Tensor
    mask: Tensor
    inside: Tensor
    unpaired: Tensor


def make_batch(
    faces: FaceCrops,
    templates: Sequence[Template],
    real: PseudoLabels | None,
    drawn: Sequence[Draw],
    size: int,
    jitter: float,
) -> Batch:
    """Put masks on some faces, and draw as many real masked ones; the same arguments give the same batch."""
    rgb, truth, mask, inside = [], [], [], []
    unpaired: list[F32] = []
    for _, index, rng in drawn:
        face = augment(faces, index, size, rng, jitter)
        if templates and rng.random() < 0.45:
            worn = wear_template(face.rgb, face.points, templates[int(rng.integers(len(templates)))], rng)
        else:
            worn = draw_mask(face.rgb, face.points, rng)
        rgb.append(worn.rgb)
        truth.append(face.rgb)
        mask.append((worn.coverage > 0.5).astype(np.float32)[..., None])
        inside.append(face.inside[..., None])
        if real is not None:
            unpaired.append(real.draw(int(rng.integers(len(real.crops))), size, rng, jitter)[0])
    planes = [_planes(np.stack(x)) for x in (rgb, truth, mask, inside)]
    without_truth = _planes(np.array(unpaired, np.float32).reshape(-1, size, size, 3))
    return Batch(planes[0], planes[1], planes[2], planes[3], without_truth)


class UnmaskTrainer(ObjectiveTrainer[Batch]):
    """A network that finds the mask and paints what it hides: rgb to (rgb, logits).

    With the recipe's `real`, it also learns from real masked faces, of which there is no truth: what is painted must
    fool the discriminator, and what is not mask must stay (the loss "kept").

    Args:
        recipe: what to do.
        build: makes the network, with random weights.
    """

    figure: ClassVar[str] = "validation_psnr"
    losses: ClassVar[Mapping[str, float]] = {"l1": 1.0, "bce": 1.0}

    def __init__(self, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
        super().__init__(recipe, build, self.losses, draws=True, segments=True)
        self.real = PseudoLabels.open(Path(recipe.real)) if recipe.real else None

    def batch(self, phase: Phase, seed: int) -> Batch:
        return make_batch(self.faces, self.templates, self.real, self.draws(phase, seed), phase.size, _JITTER)

    def _fixed(self, indices: Indices, size: int, seed: int) -> Batch:
        batch = make_batch(self.faces, self.templates, None, draws(indices, seed), size, 0.0)
        return on_device(batch, self.device)

    def scene(self, phase: Phase, step: int, batch: Batch) -> Scene:
        (rgb, truth), (mask, inside) = self.augmenter([batch.rgb, batch.truth], [batch.mask, batch.inside])
        count = len(rgb)
        with self.autocast():
            output, logits = self.model(torch.cat([rgb, batch.unpaired]))
        whole = shown(output[:count].float(), truth, mask, inside)
        unpaired = None
        if len(batch.unpaired):
            hidden = logits[count:].detach().sigmoid()
            fake = output[count:].float()
            unpaired = View(fake, fake.clamp(0, 1), truth, hidden, 1.0 - hidden)
        return Scene(
            step,
            phase.window,
            whole,
            logits=logits[:count].float(),
            label=mask,
            known=inside,
            unpaired=unpaired,
            original=batch.unpaired if unpaired is not None else None,
        )

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """Mean PSNR in the mask, dB, and IoU of the mask over all pixels, of the averaged weights on fixed validation
        faces with synthetic masks."""
        model = self.averaged()
        values: list[float] = []
        both = either = 0.0
        for seed, indices in self.validation_groups():
            batch = self._fixed(indices, size, seed)
            with self.autocast():
                output, logits = model(batch.rgb)
            values += psnr_in(output.float(), batch.truth, batch.mask * batch.inside).tolist()
            found, label = logits > 0, batch.mask > 0
            both += (found & label).sum().item()
            either += (found | label).sum().item()
        return {"validation_psnr": float(np.mean(values or [np.nan])), "validation_iou": both / max(either, 1.0)}

    @torch.no_grad()
    def sheet(self, size: int) -> U8:
        _, indices = next(self.validation_groups())
        batch = self._fixed(indices, size, 0)
        with self.autocast():
            output, logits = self.averaged()(batch.rgb)
        columns = [batch.rgb, tinted(batch.rgb, logits.float().sigmoid()), output, batch.truth]
        return picture_sheet(columns, ["masked", "found", "result", "truth"])


def _planes(pictures: F32) -> Tensor:
    """(N, S, S, C) to (N, C, S, S), laid out channels last."""
    return torch.from_numpy(pictures).permute(0, 3, 1, 2)
