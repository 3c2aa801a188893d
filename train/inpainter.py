"""Trains networks that paint: bare faces, hidden where masks are worn, to be painted again."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.models.geometry import CROP_SIZE, EYE_DISTANCE_PX, canonical_crop, transform_landmarks
from unmask.models.outline import beyond_outline, disc, fill_beyond
from unmask.models.placement import USUAL, Shift
from unmask.train.ages import by_decade, read_ages
from unmask.train.config import Phase, Recipe
from unmask.train.data import Draw, FaceCrops, Sample, augment, background, relight
from unmask.train.glasses import wear_glasses
from unmask.train.loop import Indices
from unmask.train.masks import hidden_region, mask_coverage, raised, random_outline
from unmask.train.materials import Masked, Template, degrade, draw_mask, wear_template
from unmask.train.objectives import ObjectiveTrainer, Scene, on_device, shown
from unmask.train.sheets import picture_sheet, tinted
from unmask.train.skins import dark_faces
from unmask.train.turning import random_turn, turn_head

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

WORN_SHARE = 0.5
"""How many training faces wear a drawn mask, with its shadow and loops, instead of a mere hole."""
TURNED_SHARE = 0.5
"""How many training faces are turned aside: few pictures show profiles."""
EVEN_SHARE = 0.4
"""How many are drawn evenly over the decades, where a recipe names ages: a tenth of the pictures at hand look old."""
DARK_SHARE = 0.12
"""Of the others, how many are drawn from those whose skin looks dark: a sixteenth of the pictures at hand."""
_ASIDE_SHARE = 0.1
"""How many are drawn from those that were photographed from aside, by more than `_ASIDE` degrees."""
_ASIDE = 25.0
_LEFT_EAR, _RIGHT_EAR = 234, 454
RAISED_SHARE = 0.08
"""How many holes are those of masks over the eyes: while one is put on, it is drawn over them."""
SPILLED_SHARE = 0.12
"""How many holes take in something beside the mask, as segmenters do with collars and walls in profile: that is to be
what it was, and not skin."""
OUTLINED_SHARE = 0.6
"""Of faces that look aside, how many are shown with the background filled beyond them, as in the pipeline."""
_OUTLINE_ERROR = 0.03
_OUTLINE_MARGIN = (0.01, 0.1)
"""How far, in eye distances, the landmarks lie from the real outline of the face, and the fill from the landmarks."""
_SHIFTED: Mapping[Shift, float] = {(0, 1): 0.1, (1, 0): 0.03, (-1, 0): 0.03, (1, 1): 0.02, (-1, 1): 0.02}
"""How many crops lie elsewhere, as for masks that the usual one would cut off."""
MOST_TURNED = 88.0
"""Degrees. Beyond 65 the turned pictures are crude; without them a mask in profile is painted as skin to its tip."""
_WHOLE_SHARE = 0.95
"""Only crops that lie in their picture by that much are turned: what is beyond the border would be seen as a face."""
GLASSES_SHARE = 0.15
"""How many training faces get glasses: an edge that the mask cuts through, which must not run down the cheek."""
_IN_FRONT_SHARE = 0.5
"""Of those, how many wear them over the mask."""
BAD_LIGHT_SHARE = 0.2
FILMED_SHARE = 0.3
"""How many training faces are as dim or garish, and how many as blurred, noisy or compressed, as a webcam shows them:
what is painted must be no better."""
_REST_PX = 6
_REST = 0.03
"""How far beside the hidden part the painting is shown, and what differs there from the bare face, by so much of 1, is
the rest of a mask: blur and compression carry its colour beyond its edge. It is to be painted over, too."""
MOVED_PX = 4
"""How far pictures are moved for the temporal loss, at most."""


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
    if rng.random() < RAISED_SHARE:
        region = mask_coverage(sample.points, raised(random_outline(rng), rng), size)
        return sample.rgb, np.asarray(cv2.dilate(region, disc(3)) > 127, np.float32)
    if rng.random() > WORN_SHARE:
        return sample.rgb, hidden_region(sample.points, rng, size)
    if templates and rng.random() < 0.6:
        worn = wear_template(sample.rgb, sample.points, templates[int(rng.integers(len(templates)))], rng)
    else:
        worn = draw_mask(sample.rgb, sample.points, rng, varied=True)
    thin = max(1, round(0.02 * size[0]))
    body = cv2.morphologyEx((worn.coverage > 0.5).astype(np.uint8), cv2.MORPH_OPEN, disc(thin))
    body = cv2.dilate(body, disc(int(rng.integers(0, thin + 1 if rng.random() < 0.5 else 2))))
    if rng.random() < 0.5:  # nothing of the mask is left
        keep = (body > 0)[..., None] | (worn.coverage < 0.01)[..., None]
        return np.where(keep, worn.rgb, sample.rgb).astype(np.float32), body.astype(np.float32)
    return worn.rgb, body.astype(np.float32)


def turned_face(
    sample: Sample, behind: F32, rng: np.random.Generator, templates: Sequence[Template]
) -> tuple[Sample, F32, F32]:
    """The face turned aside, in the crop that a tracker would cut there.

    Args:
        sample: a face that looks ahead, whole in its picture.
        behind: (S, S, 3) float32 0..1, what is seen behind the head.
        rng: where chance comes from.
        templates: mask pictures, may be none.

    Returns:
        The turned face, and what `draw_region` gives for it.
    """
    size = sample.rgb.shape[0]
    seen, hidden = draw_region(sample, rng, templates)
    turn = random_turn(rng, MOST_TURNED)
    bare, points = turn_head(Masked(sample.rgb, np.zeros_like(hidden)), sample.points, behind, turn)
    worn, _ = turn_head(Masked(seen, hidden), sample.points, behind, turn)
    to_crop = np.diag([size / CROP_SIZE, size / CROP_SIZE]) @ canonical_crop(points)
    strayed = cv2.getRotationMatrix2D(
        (size / 2, size / 2), float(rng.normal(0, 8)), float(np.exp(rng.normal(0.03, 0.09)))
    )
    strayed[:, 2] += rng.normal(0, 0.04 * size, 2)  # trackers are less sure of profiles
    matrix = strayed @ np.vstack([to_crop, [0, 0, 1]])
    truth, rgb, coverage = (
        np.asarray(cv2.warpAffine(x, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE), np.float32)
        for x in (bare.rgb, worn.rgb, worn.coverage)
    )
    region = cv2.dilate((coverage > 0.2).astype(np.uint8), disc(max(1, round(0.008 * size)))).astype(np.float32)
    return Sample(truth, np.ones((size, size), np.float32), transform_landmarks(matrix, points)), rgb, region


def spilled(hidden: F32, rng: np.random.Generator) -> F32:
    """(S, S) float32 0/1: what is hidden, and an oval that begins there."""
    rows, columns = np.nonzero(hidden)
    if not len(rows):
        return hidden
    one, size = int(rng.integers(len(rows))), len(hidden)
    axes = (round(size * rng.uniform(0.03, 0.2)), round(size * rng.uniform(0.03, 0.12)))
    oval = np.zeros(hidden.shape, np.uint8)
    cv2.ellipse(oval, (int(columns[one]), int(rows[one])), axes, float(rng.uniform(0, 180)), 0, 360, 1, -1)
    return np.maximum(hidden, oval.astype(np.float32))


def outlined(sample: Sample, seen: F32, hidden: F32, rng: np.random.Generator) -> tuple[Sample, F32, F32]:
    """A face that looks aside, what is seen and what is hidden of it, once what lies beyond its outline is filled with
    background as in the pipeline, as well as landmarks can be known; any other face as it is."""
    size = len(hidden)
    points = sample.points.copy()
    points[:, 0] += rng.normal(0, _OUTLINE_ERROR) * EYE_DISTANCE_PX * size / CROP_SIZE
    beyond = beyond_outline(points, _bytes(hidden), float(rng.uniform(*_OUTLINE_MARGIN)))
    if beyond is None:
        return sample, seen, hidden
    unseen = cv2.dilate(hidden, disc(max(1, round(0.015 * size))))
    shown, left, filled = fill_beyond(_bytes(seen), _bytes(hidden), _bytes(unseen), beyond)
    background = shown.astype(np.float32) / 255
    there = filled[..., None] > 0
    truth, seen = (np.where(there, background, x).astype(np.float32) for x in (sample.rgb, seen))
    return Sample(truth, sample.inside, sample.points), seen, (left > 127).astype(np.float32)


def _bytes(x: F32) -> U8:
    return np.asarray(np.clip(255.0 * x + 0.5, 0, 255), np.uint8)


def make_batch(data: FaceCrops, indices: Indices, size: int, seed: int) -> Batch:
    """Draw a batch for validation: fixed pictures under fixed regions; the same arguments give the same batch."""
    rng = np.random.default_rng(seed)
    samples = [augment(data, int(index), size, rng, 0.0) for index in indices]
    return _stack([(s, s.rgb, hidden_region(s.points, rng, (size, size))) for s in samples])


def photographed_aside(data: FaceCrops, indices: Indices) -> Indices:
    """Which of these faces look aside."""
    across = data.points[indices, _LEFT_EAR] - data.points[indices, _RIGHT_EAR]
    return np.asarray(indices[np.abs(across[:, 2]) > np.tan(np.radians(_ASIDE)) * np.abs(across[:, 0])])


def make_training_batch(
    data: FaceCrops, drawn: Sequence[Draw], size: int, templates: Sequence[Template] = (), aside: Indices | None = None
) -> Batch:
    """Draw a batch for training, now and then a face from `aside`; the same arguments give the same batch."""
    made = []
    for draw in drawn:
        rng = draw.rng
        face = int(rng.choice(aside)) if rng.random() < _ASIDE_SHARE and aside is not None else draw.face
        sample, frame = _as_met(augment(data, face, size, rng, shift=_random_shift(rng)), rng)
        if rng.random() < TURNED_SHARE and sample.inside.mean() > _WHOLE_SHARE:
            sample, seen, hidden = turned_face(sample, background(data, size, rng), rng, templates)
        else:
            seen, hidden = draw_region(sample, rng, templates)
            if rng.random() < _IN_FRONT_SHARE:
                seen = seen + frame[..., None] * (sample.rgb - seen)
                hidden = hidden * (frame < 0.1)
        if rng.random() < FILMED_SHARE:
            sample, seen = _filmed(sample, seen, rng)
        if rng.random() < OUTLINED_SHARE:
            sample, seen, hidden = outlined(sample, seen, hidden, rng)
        made.append((sample, seen, spilled(hidden, rng) if rng.random() < SPILLED_SHARE else hidden))
    return _stack(made)


def _filmed(sample: Sample, seen: F32, rng: np.random.Generator) -> tuple[Sample, F32]:
    """The bare face, and the same with a mask, as the same poor camera shows both."""
    seed = int(rng.integers(1 << 32))
    truth, seen = (degrade(rgb, np.random.default_rng(seed)) for rgb in (sample.rgb, seen))
    return Sample(truth, sample.inside, sample.points), seen


def _random_shift(rng: np.random.Generator) -> Shift:
    places = (*_SHIFTED, USUAL)
    shares = (*_SHIFTED.values(), 1 - sum(_SHIFTED.values()))
    return places[int(rng.choice(len(places), p=shares))]


def _as_met(sample: Sample, rng: np.random.Generator) -> tuple[Sample, F32]:
    """A face as people meet cameras: some wear glasses, some sit in bad light.

    Returns:
        The face, and (S, S) float32 0..1, where the frame of its glasses is.
    """
    rgb, frame = sample.rgb, np.zeros(sample.rgb.shape[:2], np.float32)
    if rng.random() < GLASSES_SHARE:
        worn = wear_glasses(rgb, sample.points, rng)
        rgb, frame = worn.rgb, worn.frame
    if rng.random() < BAD_LIGHT_SHARE:
        rgb = relight(rgb, rng, 2.5)
    return Sample(rgb, sample.inside, sample.points), frame


def _stack(drawn: Sequence[tuple[Sample, F32, F32]]) -> Batch:
    def pictures(arrays: list[F32]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    return Batch(
        pictures([sample.rgb for sample, _, _ in drawn]),
        pictures([seen for _, seen, _ in drawn]),
        torch.from_numpy(np.stack([hidden for _, _, hidden in drawn]))[:, None],
        torch.from_numpy(np.stack([sample.inside for sample, _, _ in drawn]))[:, None],
    )


class PaintTrainer(ObjectiveTrainer[Batch]):
    """A network that paints what is hidden: (rgb, mask) to rgb.

    Args:
        recipe: what to do.
        build: makes the network, with random weights.
    """

    figure: ClassVar[str] = "validation_psnr"
    losses: ClassVar[Mapping[str, float]] = {"l1": 1.0, "edge": 0.5}

    def __init__(self, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
        super().__init__(recipe, build, self.losses, draws=True, segments=False)
        aside = photographed_aside(self.faces, self.training)
        self.aside = aside if len(aside) else None
        ages = read_ages(Path(recipe.ages)) if recipe.ages else {}
        self.decades = by_decade(self.faces, self.training, ages) if ages else []
        self.dark = dark_faces(self.faces, self.training)

    def batch(self, phase: Phase, seed: int) -> Batch:
        drawn = [self.evened(draw) for draw in self.draws(phase, seed)]
        return make_training_batch(self.faces, drawn, phase.size, self.templates, self.aside)

    def evened(self, draw: Draw) -> Draw:
        """In place of some of those drawn a face of any decade, where ages are known, or one whose skin looks dark."""
        if self.decades and draw.rng.random() < EVEN_SHARE:
            decade = self.decades[int(draw.rng.integers(len(self.decades)))]
            return draw._replace(face=int(draw.rng.choice(decade)))
        if len(self.dark) and draw.rng.random() < DARK_SHARE:
            return draw._replace(face=int(draw.rng.choice(self.dark)))
        return draw

    def scene(self, phase: Phase, step: int, batch: Batch) -> Scene:
        (truth, seen), (mask, inside) = self.augmenter([batch.truth, batch.seen], [batch.mask, batch.inside])
        with self.autocast():
            output = self.model(seen, mask)
        whole = shown(output, truth, mask, torch.maximum(mask, rest_of_mask(seen, truth, mask)) * inside)
        return Scene(step, phase.window, whole, moved=lambda: self._moved(seen, mask))

    def _moved(self, seen: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """What the network paints when the pictures lie some pixels elsewhere, moved back, and where that is known."""
        by = torch.randint(-MOVED_PX, MOVED_PX + 1, (2,)).tolist()
        with self.autocast():
            output = self.model(*(torch.roll(x, by, (2, 3)) for x in (seen, mask)))
        inner = F.pad(torch.ones_like(mask[..., MOVED_PX:-MOVED_PX, MOVED_PX:-MOVED_PX]), [MOVED_PX] * 4)
        return torch.roll(output, [-b for b in by], (2, 3)), inner

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """Mean PSNR in the mask, dB, of the averaged weights on fixed validation pictures and masks, and the median of
        sharpness (variance of the Laplacian) over the truth's; pictures whose hidden part lies beyond the border, so
        that there is no truth, do not count."""
        model = self.averaged()
        values: list[float] = []
        sharp: list[float] = []
        for seed, indices in self.validation_groups():
            batch = on_device(make_batch(self.faces, indices, size, seed), self.device)
            with self.autocast():
                output = model(batch.seen, batch.mask)
            weight = batch.mask * batch.inside
            values += psnr_in(output, batch.truth, weight).tolist()
            ratio = detail(output, weight) / (detail(batch.truth, weight) + 1e-8)
            sharp += ratio[judged(weight)].tolist()
        return {
            "validation_psnr": float(np.mean(values or [np.nan])),
            "validation_sharpness": float(np.median(sharp or [np.nan])),
        }

    @torch.no_grad()
    def sheet(self, size: int) -> U8:
        _, indices = next(self.validation_groups())
        batch = on_device(make_batch(self.faces, indices, size, 0), self.device)
        with self.autocast():
            output = self.averaged()(batch.seen, batch.mask)
        result = only_hidden(output, batch.seen, batch.mask)
        columns = [batch.seen * (1 - batch.mask), tinted(batch.seen, batch.mask), result, batch.truth]
        return picture_sheet(columns, ["hidden", "mask", "result", "truth"])


def rest_of_mask(seen: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """(N, 1, H, W) 0/1: where, close to what is hidden, something is seen that is not the bare face. Arguments are
    (N, 3, H, W) 0..1, twice, and (N, 1, H, W)."""
    near = F.max_pool2d(mask, 2 * _REST_PX + 1, 1, _REST_PX)
    return near * ((seen - truth).abs().amax(1, keepdim=True) > _REST)


def only_hidden(painted: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """(N, 3, H, W), a painted picture where the mask is, what is seen elsewhere."""
    return seen * (1 - mask) + painted * mask


def psnr_in(output: Tensor, truth: Tensor, weight: Tensor) -> Tensor:
    """(M,) PSNR in dB of (N, 3, H, W) pictures where (N, 1, H, W) `weight` is 1; of the M that are `judged` at all."""
    mse = ((output - truth) ** 2 * weight).sum((1, 2, 3)) / (3 * weight.sum((1, 2, 3)) + 1e-6)
    return (-10 * torch.log10(mse + 1e-8))[judged(weight)]


def judged(weight: Tensor) -> Tensor:
    """(N,) bool: which pictures have a pixel where (N, 1, H, W) `weight` is not 0."""
    return (weight != 0).flatten(1).any(1)


def detail(rgb: Tensor, weight: Tensor) -> Tensor:
    """(N,) variance of the Laplacian of (N, 3, H, W) pictures where (N, 1, H, W) `weight` is 1."""
    kernel = rgb.new_tensor([[0.0, 1, 0], [1, -4, 1], [0, 1, 0]]).view(1, 1, 3, 3)
    edges = F.conv2d(F.pad(rgb.float().mean(1, keepdim=True), (1, 1, 1, 1), mode="replicate"), kernel)
    count = weight.sum((1, 2, 3)) + 1e-6
    mean = (edges * weight).sum((1, 2, 3)) / count
    return (edges.square() * weight).sum((1, 2, 3)) / count - mean.square()
