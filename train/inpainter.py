"""Trains the inpainter: bare faces, hidden where masks are worn, to be painted again."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.discriminator import PatchDiscriminator
from unmask.models.inpainter import Inpainter
from unmask.train.config import Phase, Recipe
from unmask.train.data import FaceCrops, Sample, augment
from unmask.train.loop import Trainer, channels_last, check_finite, keep_memory, learning_rate
from unmask.train.losses import Perceptual, edge_l1, feature_matching, hinge_discriminator, hinge_generator, masked_l1
from unmask.train.masks import hidden_region
from unmask.train.materials import Template, draw_mask, wear_template

F32 = npt.NDArray[np.float32]

WORN_SHARE = 0.35
"""How many training faces wear a drawn mask, with its shadow and loops, instead of a mere hole."""


@dataclass(frozen=True, slots=True)
class View:
    """What a discriminator is shown: fake and real (N, 3, H, W) 0..1, mask (N, 1, H, W) 0/1."""

    fake: Tensor
    real: Tensor
    mask: Tensor


@dataclass(frozen=True, slots=True)
class Batch:
    """truth (N, 3, S, S) 0..1, the bare face; seen, the same or with the rest of a mask beside the hidden part, which
    the network is given; mask (N, 1, S, S) 0/1, hidden; inside (N, 1, S, S) 0/1, part of the real picture."""

    truth: Tensor
    seen: Tensor
    mask: Tensor
    inside: Tensor


def draw_region(sample: Sample, rng: np.random.Generator, templates: Sequence[Template]) -> tuple[F32, F32]:
    """What is seen (S, S, 3) float32 0..1, and the hidden part of it (S, S) float32 0/1.

    Mostly the bare face under a region shaped like a mask. For the others a mask is put on, and found as a segmenter
    finds it: a little too large or too small, without its ear loops.
    """
    size = (sample.rgb.shape[0], sample.rgb.shape[0])
    if rng.random() > WORN_SHARE:
        return sample.rgb, hidden_region(sample.points, rng, size)
    if templates and rng.random() < 0.6:
        worn = wear_template(sample.rgb, sample.points, templates[int(rng.integers(len(templates)))], rng)
    else:
        worn = draw_mask(sample.rgb, sample.points, rng)
    thin = max(1, round(0.02 * size[0]))
    body = cv2.morphologyEx((worn.coverage > 0.5).astype(np.uint8), cv2.MORPH_OPEN, disc(thin))
    body = cv2.dilate(body, disc(int(rng.integers(0, thin + 1))))
    if rng.random() < 0.5:  # nothing of the mask is left
        keep = (body > 0)[..., None] | (worn.coverage < 0.01)[..., None]
        return np.where(keep, worn.rgb, sample.rgb).astype(np.float32), body.astype(np.float32)
    return worn.rgb, body.astype(np.float32)


def disc(radius: int) -> npt.NDArray[np.uint8]:
    """(2 radius + 1)² uint8, for morphology."""
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def make_batch(data: FaceCrops, indices: np.ndarray[tuple[int], np.dtype[np.int64]], size: int, seed: int) -> Batch:
    """Draw a batch for validation: fixed pictures under fixed regions; the same arguments give the same batch."""
    rng = np.random.default_rng(seed)
    samples = [augment(data, int(index), size, rng, 0.0) for index in indices]
    return _stack([(s, s.rgb, hidden_region(s.points, rng, (size, size))) for s in samples])


def make_training_batch(
    data: FaceCrops,
    indices: np.ndarray[tuple[int], np.dtype[np.int64]],
    size: int,
    seed: int,
    templates: Sequence[Template] = (),
) -> Batch:
    """Draw a batch for training; the same arguments give the same batch."""
    rng = np.random.default_rng(seed)
    samples = [augment(data, int(index), size, rng) for index in indices]
    return _stack([(s, *draw_region(s, rng, templates)) for s in samples])


def _stack(drawn: Sequence[tuple[Sample, F32, F32]]) -> Batch:
    def pictures(arrays: list[F32]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    return Batch(
        pictures([sample.rgb for sample, _, _ in drawn]),
        pictures([seen for _, seen, _ in drawn]),
        torch.from_numpy(np.stack([hidden for _, _, hidden in drawn]))[:, None],
        torch.from_numpy(np.stack([sample.inside for sample, _, _ in drawn]))[:, None],
    )


class InpainterTrainer(Trainer[Batch]):
    """The inpainter, its discriminators and its losses.

    Args:
        recipe: what to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        model = channels_last(Inpainter())
        self.judges = nn.ModuleDict({name: channels_last(PatchDiscriminator()) for name in ("judge", "fine_judge")})
        self.judge_optimizer = torch.optim.AdamW(self.judges.parameters(), betas=(0.5, 0.98))
        needs_vgg = any(phase.perceptual or phase.texture for phase in recipe.phases)
        self.perceptual = Perceptual(Path(recipe.perceptual_weights)) if needs_vgg else None
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-4, betas=(0.9, 0.98))
        super().__init__("inpainter", recipe, model, optimizer, judges=self.judges, judge_opt=self.judge_optimizer)

    def batch(self, phase: Phase, seed: int) -> Batch:
        return make_training_batch(self.faces, self.chosen(phase, seed), phase.size, seed, self.templates)

    def step(self, phase: Phase, step: int, batch: Batch) -> dict[str, float]:
        for optimizer, faster in ((self.optimizer, 1.0), (self.judge_optimizer, 2.0)):
            for group in optimizer.param_groups:
                group["lr"] = faster * learning_rate(phase, step)
        self.model.train()
        weight, truth = batch.mask * batch.inside, batch.truth
        with torch.autocast("cpu", torch.bfloat16):
            output = self.model(batch.seen, batch.mask)
        losses = {"l1": masked_l1(output, truth, weight), "edge": 0.5 * edge_l1(output, truth, weight)}
        # Beyond the picture's border there is no truth: what is painted there must not be judged.
        shown = output.clamp(0, 1) * weight + truth * (1 - weight)
        whole = View(*(lower_part(x, phase.judge_shrink) for x in (shown, truth, batch.mask)))
        # Windows at full size and twice as large at half size in turn: pores, then the corners of the mouth.
        far = 1 + step % 2
        corners = random_windows(weight, phase.window * far) if phase.texture or phase.fine else []
        near = View(*(windows(x, corners, phase.window * far, far) for x in (shown, truth, batch.mask)))
        losses |= self.seen_losses(phase, shown, truth, near)
        fine = phase.fine if far == 1 else 0.0
        trials = [t for t in (("judge", phase.adversarial, whole), ("fine_judge", fine, near)) if t[1]]
        for name, share, view in trials:
            losses |= self.fool(name, share, phase.matching, view)
        self.descend(torch.stack(list(losses.values())).sum())
        if trials:
            losses["judges"] = self.step_judges([(name, view) for name, _, view in trials])
        return {name: value.item() for name, value in losses.items()}

    def seen_losses(self, phase: Phase, shown: Tensor, truth: Tensor, near: "View") -> dict[str, Tensor]:
        """The losses through VGG-16 that the phase asks for, weighted."""
        losses: dict[str, Tensor] = {}
        if self.perceptual is None:
            return losses
        with torch.autocast("cpu", torch.bfloat16):
            if phase.perceptual:
                seen, wanted = (lower_part(x, phase.perceptual_shrink) for x in (shown, truth))
                losses["perceptual"] = phase.perceptual * self.perceptual(seen, wanted)
            if phase.texture:
                losses["texture"] = phase.texture * self.perceptual.texture(near.fake, near.real)
        return losses

    def fool(self, name: str, share: float, matching: float, view: "View") -> dict[str, Tensor]:
        """What a discriminator says against the painted picture, and feature matching with it, weighted."""
        judge = self.judges[name]
        with torch.autocast("cpu", torch.bfloat16):
            score, fake = judge(view.fake, view.mask)
            with torch.no_grad():
                _, real = judge(view.real, view.mask)
        return {
            f"{name}_hinge": share * hinge_generator(score),
            f"{name}_match": matching * feature_matching(real, fake),
        }

    def step_judges(self, trials: list[tuple[str, "View"]]) -> Tensor:
        """One step of the discriminators. Returns their mean loss."""
        losses = []
        for name, view in trials:
            with torch.autocast("cpu", torch.bfloat16):
                real, fake = (self.judges[name](x.detach(), view.mask)[0] for x in (view.real, view.fake))
            losses.append(hinge_discriminator(real, fake))
        loss = torch.stack(losses).mean()
        check_finite(loss, self.run.done)
        self.judge_optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        self.judge_optimizer.step()
        return loss

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """Mean PSNR in the mask, dB, of the averaged weights on fixed validation pictures and masks, and the median of
        sharpness (variance of the Laplacian) over the truth's."""
        model = channels_last(Inpainter()).eval()
        model.load_state_dict(self.ema.state)
        values: list[float] = []
        sharp: list[float] = []
        for seed, indices in self.validation_groups():
            batch = make_batch(self.faces, indices, size, seed)
            with torch.autocast("cpu", torch.bfloat16):
                output = model(batch.seen, batch.mask)
            weight = batch.mask * batch.inside
            mse = ((output - batch.truth) ** 2 * weight).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)) + 1e-6)
            values += (-10 * torch.log10(mse + 1e-8)).tolist()
            sharp += (detail(output, weight) / (detail(batch.truth, weight) + 1e-8)).tolist()
        return {"validation_psnr": float(np.mean(values)), "validation_sharpness": float(np.median(sharp))}


def lower_part(x: Tensor, shrink: int) -> Tensor:
    """The part of a canonical crop where masks are: (N, C, S, S) to (N, C, 5S/8, S), both divided by `shrink`."""
    part = x[..., 3 * x.shape[-2] // 8 :, :]
    return F.avg_pool2d(part, shrink) if shrink > 1 else part


def detail(rgb: Tensor, weight: Tensor) -> Tensor:
    """(N,) variance of the Laplacian of (N, 3, H, W) pictures where (N, 1, H, W) `weight` is 1."""
    kernel = rgb.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    edges = F.conv2d(F.pad(rgb.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), kernel)
    count = weight.sum((1, 2, 3)) + 1e-6
    mean = (edges * weight).sum((1, 2, 3)) / count
    return (edges.square() * weight).sum((1, 2, 3)) / count - mean.square()


def random_windows(weight: Tensor, size: int) -> list[tuple[int, int]]:
    """Corners (y, x), one per picture, of windows around a random pixel of (N, 1, S, S) `weight` that is not 0."""
    limit = weight.shape[-1] - size
    corners = []
    for picture in weight[:, 0]:
        pixels = picture.nonzero()
        y, x = pixels[torch.randint(len(pixels), ())].tolist() if len(pixels) else (limit, limit // 2)
        corners.append((min(max(y - size // 2, 0), limit), min(max(x - size // 2, 0), limit)))
    return corners


def windows(x: Tensor, corners: list[tuple[int, int]], size: int, shrink: int = 1) -> Tensor:
    """Cut (len(corners), C, size, size) out of (N, C, S, S), one window per picture, and divide its size by `shrink`.
    Without corners the pictures stay whole."""
    if not corners:
        return x
    cut = [picture[:, i : i + size, j : j + size] for picture, (i, j) in zip(x, corners, strict=True)]
    return F.avg_pool2d(torch.stack(cut), shrink)


def train(recipe: Recipe) -> None:
    """Run a recipe to its end; interrupted runs go on where they stopped."""
    keep_memory()
    InpainterTrainer(recipe).fit()
