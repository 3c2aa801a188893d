"""Trains the inpainter: bare faces, hidden where masks are worn, to be painted again."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from unmask.models.discriminator import PatchDiscriminator
from unmask.models.inpainter import Inpainter
from unmask.train.config import Phase, Recipe
from unmask.train.data import FaceCrops, augment
from unmask.train.loop import Averaged, Run, Steps, channels_last, check_finite, keep_memory, learning_rate
from unmask.train.losses import Perceptual, edge_l1, feature_matching, hinge_discriminator, hinge_generator, masked_l1
from unmask.train.masks import hidden_region

REPORT_EVERY = 100
VALIDATION_PICTURES = 192


@dataclass(frozen=True, slots=True)
class Batch:
    """rgb (N, 3, S, S) 0..1; mask (N, 1, S, S) 0/1, hidden; inside (N, 1, S, S) 0/1, part of the real picture."""

    rgb: Tensor
    mask: Tensor
    inside: Tensor


def make_batch(
    data: FaceCrops, indices: np.ndarray[tuple[int], np.dtype[np.int64]], size: int, seed: int, jitter: float
) -> Batch:
    """Draw a batch; the same arguments give the same batch."""
    rng = np.random.default_rng(seed)
    rgb, mask, inside = [], [], []
    for index in indices:
        sample = augment(data, int(index), size, rng, jitter)
        rgb.append(sample.rgb)
        mask.append(hidden_region(sample.points, rng, (size, size)))
        inside.append(sample.inside)
    pictures = torch.from_numpy(np.stack(rgb)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return Batch(pictures, torch.from_numpy(np.stack(mask))[:, None], torch.from_numpy(np.stack(inside))[:, None])


class Trainer:
    """Networks, losses and optimizers of a run.

    Args:
        recipe: what to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        self.recipe = recipe
        self.data = FaceCrops.open(Path(recipe.crops))
        self.train_indices, self.validation_indices = self.data.split(False), self.data.split(True)
        self.model = channels_last(Inpainter())
        if recipe.start:
            self.model.load_state_dict(load_file(recipe.start))
        self.judge = channels_last(PatchDiscriminator())
        needs_vgg = any(phase.perceptual for phase in recipe.phases)
        self.perceptual = Perceptual(Path(recipe.perceptual_weights)) if needs_vgg else None
        self.optimizer = torch.optim.AdamW(self.model.parameters(), weight_decay=1e-4, betas=(0.9, 0.98))
        self.judge_optimizer = torch.optim.AdamW(self.judge.parameters(), betas=(0.5, 0.98))
        self.ema = Averaged(self.model, recipe.ema)
        parts = {"model": self.model, "judge": self.judge}
        self.run = Run(recipe, parts | {"opt": self.optimizer, "judge_opt": self.judge_optimizer}, self.ema)

    def batch(self, phase: Phase, seed: int) -> Batch:
        """The training batch of a seed."""
        chosen = np.random.default_rng(seed).choice(self.train_indices, phase.batch)
        return make_batch(self.data, chosen, phase.size, seed, 1.0)

    def fit(self) -> None:
        """Run to the end of the recipe, from the last checkpoint if there is one."""
        self.run.resume()
        for phase, step, batch in Steps(self.recipe, self.run.done, self.batch):
            self.run.add(self.step(phase, step, batch))
            if self.run.step_done(REPORT_EVERY):
                self.run.log(validation_psnr=self.validate(phase.size))
        self.run.save()
        self.run.log(validation_psnr=self.validate(self.recipe.phases[-1].size))

    def step(self, phase: Phase, step: int, batch: Batch) -> dict[str, float]:
        """One optimizer step. Returns the losses."""
        for group in (*self.optimizer.param_groups, *self.judge_optimizer.param_groups):
            group["lr"] = learning_rate(phase, step)
        self.model.train()
        weight = batch.mask * batch.inside
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(batch.rgb, batch.mask)
        truth = batch.rgb
        l1, edges = masked_l1(output, truth, weight), edge_l1(output, truth, weight)
        loss = l1 + 0.5 * edges
        figures = {"l1": l1.item(), "edge": edges.item()}
        # Beyond the picture's border there is no truth: what is painted there must not be judged.
        shown = output.clamp(0, 1) * batch.inside + truth * (1 - batch.inside)
        if phase.perceptual and self.perceptual:
            with torch.autocast("cpu", torch.bfloat16):
                seen, wanted = (lower_part(x, phase.perceptual_shrink) for x in (shown, truth))
                perceptual = self.perceptual(seen, wanted)
            loss = loss + phase.perceptual * perceptual
            figures["perceptual"] = perceptual.item()
        if phase.adversarial:
            with torch.autocast("cpu", torch.bfloat16):
                hidden = lower_part(batch.mask, phase.judge_shrink)
                score, fake = self.judge(lower_part(shown, phase.judge_shrink), hidden)
                with torch.no_grad():
                    _, real = self.judge(lower_part(truth, phase.judge_shrink), hidden)
            fooled, unlike = hinge_generator(score), feature_matching(real, fake)
            loss = loss + phase.adversarial * fooled + phase.matching * unlike
            figures |= {"adversarial": fooled.item(), "matching": unlike.item()}
        check_finite(loss, self.run.done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.model)
        if phase.adversarial:
            figures["judge"] = self.step_judge(phase, truth, shown.detach(), batch.mask)
        return figures

    def step_judge(self, phase: Phase, real: Tensor, fake: Tensor, mask: Tensor) -> float:
        """One step of the discriminator. Returns its loss."""
        with torch.autocast("cpu", torch.bfloat16):
            hidden = lower_part(mask, phase.judge_shrink)
            scores = (self.judge(lower_part(x, phase.judge_shrink), hidden)[0] for x in (real, fake))
            loss = hinge_discriminator(*scores)
        check_finite(loss, self.run.done)
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.judge_optimizer.step()
        return loss.item()

    @torch.no_grad()
    def validate(self, size: int) -> float:
        """Mean PSNR in the mask, dB, of the averaged weights on fixed validation pictures and masks."""
        model = channels_last(Inpainter()).eval()
        model.load_state_dict(self.ema.state)
        values: list[float] = []
        indices = self.validation_indices[:: max(1, len(self.validation_indices) // VALIDATION_PICTURES)]
        for start in range(0, len(indices), 16):
            batch = make_batch(self.data, indices[start : start + 16], size, start, 0.0)
            with torch.autocast("cpu", torch.bfloat16):
                output = model(batch.rgb, batch.mask)
            weight = batch.mask * batch.inside
            mse = ((output - batch.rgb) ** 2 * weight).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)) + 1e-6)
            values += (-10 * torch.log10(mse + 1e-8)).tolist()
        return float(np.mean(values))


def lower_part(x: Tensor, shrink: int) -> Tensor:
    """The part of a canonical crop where masks are: (N, C, S, S) to (N, C, 5S/8, S), both divided by `shrink`."""
    part = x[..., 3 * x.shape[-2] // 8 :, :]
    return F.avg_pool2d(part, shrink) if shrink > 1 else part


def train(recipe: Recipe) -> None:
    """Run a recipe to its end; interrupted runs go on where they stopped."""
    keep_memory()
    Trainer(recipe).fit()
