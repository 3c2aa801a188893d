"""Trains networks that find masks: faces with synthetic masks and bare ones, to be told apart pixel by pixel."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from unmask.train.config import Phase, Recipe
from unmask.train.data import Draw, FaceCrops, Sample, augment, background, draws, relight
from unmask.train.fabrics import load_fabrics, printed
from unmask.train.glasses import wear_glasses
from unmask.train.materials import (
    Masked,
    Template,
    add_long_loops,
    cut_off,
    degrade,
    draw_mask,
    grow_beard,
    put_in_front,
    varied_outline,
    wear_collar,
    wear_template,
)
from unmask.train.objectives import ObjectiveTrainer, Scene, on_device
from unmask.train.pseudo import PseudoLabels
from unmask.train.sheets import picture_sheet, tinted
from unmask.train.turning import random_turn, turn_head

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]

TURNED_SHARE = 0.35
FACELESS_SHARE = 0.06
"""Pictures without a face: a tracker may follow an emblem or a blurred light for a while."""
GLASSES_SHARE = 0.25
"""How many faces get glasses: their frame stays where it crosses the mask."""
_ON_THE_MASK = 0.28
"""How far below the eyes glasses sit at most, in eye distances: a mask pushes them down the nose."""
PRINTED_SHARE = 0.3
"""How many masks are of printed cloth, or of cloth in any colour, that of skin among them."""
COLLAR_SHARE = 0.25
"""How many faces wear something up to the chin that is no mask."""
LONG_LOOPS_SHARE = (0.2, 0.6)
"""How many masks get ear loops across the cheek: on faces as they were photographed, and on turned ones."""
_IN_DOUBT = 0.1
"""A likelihood that is no label away from a mask."""
_LINE_PX = 7
_LINE_CONTRAST = 10
"""What is narrower, in px at 256, and differs by more, of 255, from both sides, may be an ear loop."""
JITTER = 2.4
"""More than for the inpainter: the segmenter must find masks on faces that the tracker places badly."""


@dataclass(frozen=True, slots=True)
class Batch:
    """rgb (N, 3, S, S) 0..1; label (N, 1, S, S) 0/1, 1 where a mask is seen; weight (N, 1, S, S) 0/1, 0 where the label
    is not known."""

    rgb: Tensor
    label: Tensor
    weight: Tensor


@dataclass(frozen=True, slots=True)
class Sources:
    """What samples are made from.

    Args:
        faces: bare faces.
        templates: mask pictures, may be none.
        real: real masked faces with pseudo-labels, may be none.
        loops_known: whether these labels know ear loops.
        fabrics: pictures of printed cloth, may be none.
    """

    faces: FaceCrops
    templates: Sequence[Template] = ()
    real: PseudoLabels | None = None
    loops_known: bool = False
    fabrics: Sequence[F32] = ()

    @property
    def usual(self) -> F32:
        """(468, 3) float32 px: the mean points of the faces in the canonical crop."""
        return np.asarray(self.faces.points[::100].mean(axis=0), np.float32)


def put_mask_on(face: Sample, rgb: F32, sources: Sources, rng: np.random.Generator) -> Masked:
    """A mask of printed cloth, a mask picture or another drawn mask."""
    if rng.random() < PRINTED_SHARE:
        # Never under the chin: in the colour of skin that would be a neck.
        return draw_mask(rgb, face.points, rng, printed(sources.fabrics), varied_outline(rng))
    if sources.templates and rng.random() < 0.45:
        return wear_template(rgb, face.points, sources.templates[int(rng.integers(len(sources.templates)))], rng)
    return draw_mask(rgb, face.points, rng, varied=True)


def with_glasses(masked: Masked, points: F32, rng: np.random.Generator) -> Masked:
    """Glasses in front of the mask. Through the lenses it is still seen."""
    worn = wear_glasses(masked.rgb, points, rng, _ON_THE_MASK)
    return Masked(worn.rgb, np.asarray(masked.coverage * (1 - worn.frame), np.float32))


def make_sample(sources: Sources, index: int, size: int, rng: np.random.Generator) -> Masked:
    """A face with a mask (three quarters of them), perhaps turned, perhaps with something in front of it, as a camera
    would see it."""
    if rng.random() < FACELESS_SHARE:
        return faceless(sources, size, rng)
    turns = rng.random() < TURNED_SHARE
    face = augment(sources.faces, index, size, rng, 1.0 if turns else JITTER)
    rgb = grow_beard(face.rgb, face.points, rng) if rng.random() < 0.25 else face.rgb
    if rng.random() < COLLAR_SHARE:
        rgb = wear_collar(rgb, face.points, rng)
    masked, points = Masked(rgb, np.zeros((size, size), np.float32)), face.points
    wears = rng.random() < 0.75
    strength = 2.5 if rng.random() < 0.35 else 1.0
    if wears:
        masked = put_mask_on(face, rgb, sources, rng)
    if rng.random() < GLASSES_SHARE:
        masked = with_glasses(masked, points, rng)
    if turns:
        masked, points = turn_head(masked, points, background(sources.faces, size, rng), random_turn(rng))
    if wears and rng.random() < LONG_LOOPS_SHARE[turns]:
        masked = add_long_loops(masked, points, rng)
    if turns:
        masked = moved(masked, rng)
    if rng.random() < (0.55 if wears else 0.3):
        masked = put_in_front(masked, rgb, points, rng)
    masked = Masked(degrade(relight(masked.rgb, rng, strength), rng), masked.coverage)
    return cut_off(masked, rng) if rng.random() < 0.3 else masked


def faceless(sources: Sources, size: int, rng: np.random.Generator) -> Masked:
    """Things that are no face: backgrounds and mask pictures as patches, in ovals and rings as emblems have them."""
    rgb = background(sources.faces, size, rng)
    for _ in range(int(rng.integers(0, 6))):
        layer = background(sources.faces, size, rng)
        if sources.templates and rng.random() < 0.3:
            rgba = sources.templates[int(rng.integers(len(sources.templates)))].rgba
            layer = np.asarray(cv2.resize(rgba[..., :3], (size, size)), np.float32)
        if rng.random() < 0.5:
            layer = 0.3 * layer + np.float32(0.7) * rng.uniform(0, 1, 3).astype(np.float32)
        shape = np.zeros((size, size), np.float32)
        centre = (int(rng.integers(0, size)), int(rng.integers(0, size)))
        axes = (int(rng.integers(size // 12, size // 2)), int(rng.integers(size // 12, size // 2)))
        thickness = -1 if rng.random() < 0.6 else int(rng.integers(1, size // 10))
        cv2.ellipse(shape, centre, axes, float(rng.uniform(0, 180)), 0, 360, 1.0, thickness, cv2.LINE_AA)
        rgb = rgb + shape[..., None] * (layer - rgb)
    rgb = degrade(relight(np.asarray(rgb, np.float32), rng), rng)
    return Masked(rgb, np.zeros((size, size), np.float32))


def moved(masked: Masked, rng: np.random.Generator) -> Masked:
    """Shift, turn and scale a picture as a tracker that is unsure of a profile does."""
    size = masked.coverage.shape[0]
    matrix = cv2.getRotationMatrix2D(
        (size / 2, size / 2), float(rng.normal(0, 10)), float(np.exp(rng.normal(0.1, 0.2)))
    )
    matrix[:, 2] += rng.normal(0, 0.1 * size, 2)
    rgb, coverage = (
        cv2.warpAffine(x, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE) for x in (masked.rgb, masked.coverage)
    )
    return Masked(rgb, coverage)


def lines_of(rgb: F32) -> npt.NDArray[np.bool_]:
    """(S, S) bool: what is a narrow line, lighter or darker than both of its sides, in (S, S, 3) float32 0..1."""
    grey = cv2.cvtColor(np.rint(np.clip(rgb, 0, 1) * 255).astype(np.uint8), cv2.COLOR_RGB2GRAY)
    side = max(3, round(_LINE_PX * len(grey) / 256))
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
    lines = [cv2.morphologyEx(grey, way, window) > _LINE_CONTRAST for way in (cv2.MORPH_TOPHAT, cv2.MORPH_BLACKHAT)]
    return np.asarray(lines[0] | lines[1])


def make_real(sources: Sources, real: PseudoLabels, size: int, rng: np.random.Generator) -> tuple[Masked, F32]:
    """A real masked face as another camera would see it, and where its label is known: not on narrow lines beside the
    mask, which may be ear loops that the labeller missed, unless it knows them.

    Args:
        sources: what is known of `real`, and of faces, by whose points glasses are put on.
        real: such faces.
        size: of the result in px.
        rng: where chance comes from.
    """
    wears = rng.random() < GLASSES_SHARE

    def as_met(face: Masked) -> Masked:
        if not sources.loops_known:
            unknown = lines_of(face.rgb) & (face.coverage < _IN_DOUBT)
            face = Masked(face.rgb, np.where(unknown, np.float32(_IN_DOUBT), face.coverage))
        return with_glasses(face, sources.usual, rng) if wears else face

    rgb, label, weight = real.draw(int(rng.integers(len(real.crops))), size, rng, JITTER, as_met)
    masked = Masked(degrade(relight(rgb, rng, 2.0 if rng.random() < 0.3 else 1.0), rng), label)
    if rng.random() < 0.4:
        state = rng.bit_generator.state
        masked = cut_off(masked, rng)
        rng.bit_generator.state = state  # the same cut once more
        weight = cut_off(Masked(masked.rgb, weight), rng).coverage
    return masked, weight


def make_batch(sources: Sources, drawn: Sequence[Draw], size: int, real: float = 0.0) -> Batch:
    """Draw a batch; the same arguments give the same batch. At its first `real` positions are real masked faces."""
    everywhere = np.ones((size, size), np.float32)
    made: list[tuple[Masked, F32]] = []
    for draw in drawn:
        if sources.real is not None and draw.position < real:
            made.append(make_real(sources, sources.real, size, draw.rng))
        else:
            made.append((make_sample(sources, draw.face, size, draw.rng), everywhere))
    rgb = torch.from_numpy(np.stack([s.rgb for s, _ in made])).permute(0, 3, 1, 2)
    label = torch.from_numpy(np.stack([s.coverage > 0.5 for s, _ in made]).astype(np.float32))[:, None]
    weight = torch.from_numpy(np.stack([w for _, w in made]))[:, None]
    return Batch(rgb.contiguous(memory_format=torch.channels_last), label, weight)


class SegmentTrainer(ObjectiveTrainer[Batch]):
    """A network that finds the mask: rgb to logits.

    Args:
        recipe: what to do.
        build: makes the network, with random weights.
    """

    figure: ClassVar[str] = "validation_iou"
    losses: ClassVar[Mapping[str, float]] = {"bce": 1.0, "dice": 0.5}

    def __init__(self, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
        super().__init__(recipe, build, self.losses, draws=False, segments=True)
        real = PseudoLabels.open(Path(recipe.real)) if recipe.real else None
        fabrics = load_fabrics(Path(recipe.textures)) if recipe.textures else []
        self.sources = Sources(self.faces, self.templates, real, fabrics=fabrics)

    def batch(self, phase: Phase, seed: int) -> Batch:
        return make_batch(self.sources, self.draws(phase, seed), phase.size, self.recipe.real_share * phase.batch)

    def scene(self, phase: Phase, step: int, batch: Batch) -> Scene:
        (rgb,), (label, known) = self.augmenter([batch.rgb], [batch.label, batch.weight])
        with self.autocast():
            logits = self.model(rgb)
        return Scene(step, logits=logits, label=label, known=known)

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """IoU and Dice over all pixels of the averaged weights on fixed validation faces with synthetic masks."""
        model = self.averaged()
        both = either = 0.0
        for seed, indices in self.validation_groups():
            batch = on_device(make_batch(self.sources, draws(indices, seed), size), self.device)
            with self.autocast():
                found = model(batch.rgb) > 0
            label = batch.label > 0
            both += (found & label).sum().item()
            either += (found | label).sum().item()
        iou = both / max(either, 1.0)
        return {"validation_iou": iou, "validation_dice": 2 * iou / (1 + iou)}

    @torch.no_grad()
    def sheet(self, size: int) -> U8:
        _, indices = next(self.validation_groups())
        batch = on_device(make_batch(self.sources, draws(indices, 0), size), self.device)
        with self.autocast():
            found = self.averaged()(batch.rgb).sigmoid()
        columns = [batch.rgb, tinted(batch.rgb, found), tinted(batch.rgb, batch.label)]
        return picture_sheet(columns, ["masked", "found", "label"])
