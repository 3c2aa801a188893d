"""Trains the segmenter: bare faces with synthetic masks, and bare faces without, to be told apart pixel by pixel."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from unmask.models.segmenter import Segmenter
from unmask.train.config import Phase, Recipe
from unmask.train.data import FaceCrops, augment, relight
from unmask.train.loop import Averaged, Run, Steps, channels_last, check_finite, keep_memory, learning_rate
from unmask.train.losses import dice
from unmask.train.materials import (
    Masked,
    Template,
    cut_off,
    degrade,
    draw_mask,
    grow_beard,
    load_templates,
    put_in_front,
    wear_template,
)

REPORT_EVERY = 100
VALIDATION_PICTURES = 192
JITTER = 2.4
"""More than for the inpainter: the segmenter must find masks on faces that the tracker places badly."""


@dataclass(frozen=True, slots=True)
class Batch:
    """rgb (N, 3, S, S) 0..1; label (N, 1, S, S) 0/1, 1 where a mask is seen."""

    rgb: Tensor
    label: Tensor


def make_sample(data: FaceCrops, index: int, size: int, rng: np.random.Generator, templates: list[Template]) -> Masked:
    """A face with a mask (three quarters of them), perhaps with something in front of it, as a camera would see it."""
    face = augment(data, index, size, rng, JITTER)
    rgb = grow_beard(face.rgb, face.points, rng) if rng.random() < 0.25 else face.rgb
    masked = Masked(rgb, np.zeros((size, size), np.float32))
    wears = rng.random() < 0.75
    strength = 2.5 if rng.random() < 0.3 else 1.0
    if wears and templates and rng.random() < 0.45:
        masked = wear_template(rgb, face.points, templates[rng.integers(len(templates))], rng)
    elif wears:
        masked = draw_mask(rgb, face.points, rng)
    if rng.random() < (0.5 if wears else 0.3):
        masked = put_in_front(masked, rgb, face.points, rng)
    masked = Masked(degrade(relight(masked.rgb, rng, strength), rng), masked.coverage)
    return cut_off(masked, rng) if rng.random() < 0.3 else masked


def make_batch(
    data: FaceCrops,
    indices: np.ndarray[tuple[int], np.dtype[np.int64]],
    size: int,
    seed: int,
    templates: list[Template],
) -> Batch:
    """Draw a batch; the same arguments give the same batch."""
    rng = np.random.default_rng(seed)
    samples = [make_sample(data, int(i), size, rng, templates) for i in indices]
    rgb = torch.from_numpy(np.stack([s.rgb for s in samples])).permute(0, 3, 1, 2)
    label = torch.from_numpy(np.stack([s.coverage > 0.5 for s in samples]).astype(np.float32))[:, None]
    return Batch(rgb.contiguous(memory_format=torch.channels_last), label)


class Trainer:
    """Network and optimizer of a run.

    Args:
        recipe: what to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.data = FaceCrops.open(Path(recipe.crops))
        self.train_indices, self.validation_indices = self.data.split(False), self.data.split(True)
        self.templates = load_templates(Path(recipe.textures)) if recipe.textures else []
        self.model = channels_last(Segmenter())
        if recipe.start:
            self.model.load_state_dict(load_file(recipe.start))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-4)
        self.ema = Averaged(self.model, recipe.ema)
        self.run = Run(recipe, {"model": self.model, "opt": self.optimizer}, self.ema)

    def batch(self, phase: Phase, seed: int) -> Batch:
        """The training batch of a seed."""
        chosen = np.random.default_rng(seed).choice(self.train_indices, phase.batch)
        return make_batch(self.data, chosen, phase.size, seed, self.templates)

    def fit(self) -> None:
        """Run to the end of the recipe, from the last checkpoint if there is one."""
        self.run.resume()
        for phase, step, batch in Steps(self.recipe, self.run.done, self.batch):
            self.run.add(self.step(phase, step, batch))
            if self.run.step_done(REPORT_EVERY):
                self.run.log(validation_iou=self.validate(phase.size))
        self.run.save()
        self.run.log(validation_iou=self.validate(self.recipe.phases[-1].size))

    def step(self, phase: Phase, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step. Returns the losses."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(phase, step)
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model(batch.rgb)
        entropy = F.binary_cross_entropy_with_logits(logits, batch.label)
        overlap = dice(logits, batch.label)
        loss = entropy + 0.5 * overlap
        check_finite(loss, self.run.done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.model)
        return {"bce": entropy.item(), "dice": overlap.item()}

    @torch.no_grad()
    def validate(self, size: int) -> float:
        """IoU over all pixels of the averaged weights on fixed validation faces with synthetic masks."""
        model = channels_last(Segmenter()).eval()
        model.load_state_dict(self.ema.state)
        both = either = 0.0
        indices = self.validation_indices[:: max(1, len(self.validation_indices) // VALIDATION_PICTURES)]
        for start in range(0, len(indices), 16):
            batch = make_batch(self.data, indices[start : start + 16], size, start, self.templates)
            with torch.autocast("cpu", torch.bfloat16):
                found = model(batch.rgb) > 0
            label = batch.label > 0
            both += (found & label).sum().item()
            either += (found | label).sum().item()
        return both / max(either, 1.0)


def train(recipe: Recipe) -> None:
    """Run a recipe to its end; interrupted runs go on where they stopped."""
    keep_memory()
    Trainer(recipe).fit()
