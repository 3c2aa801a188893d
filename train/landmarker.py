"""Trains the landmarker: the points of drawn masked faces, whose bare faces are known, and of real masked ones."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models.detections import LEFT_EYE_OUTER, MESH_SIZE, RIGHT_EYE_OUTER, upright_roi
from unmask.models.geometry import ANCHOR_POINTS, transform_landmarks
from unmask.models.landmarker import Landmarker
from unmask.models.rows import LANDMARKER_SIZE, LANDMARKS
from unmask.train import processes
from unmask.train.config import Phase, Recipe
from unmask.train.loop import Indices, Trainer, channels_last
from unmask.train.objectives import on_device
from unmask.train.optimizers import make_optimizer
from unmask.train.symmetry import MIRRORED, mirror
from unmask.train.tracker_data import TrackerData, check_recipe, draw_face
from unmask.train.views import as_filmed

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_REAL_SHARE: Final = 0.25
_NOTHING_SHARE: Final = 0.2
"""Pictures without a face, or with one so far off that its points cannot be told."""

_PROFILE_SHARE: Final = 0.12
"""Of the pictures with a face, those with a real one in profile, where some were marked."""

_NOSE_TIP: Final = 4
_HIDDEN_TRUST: Final = 0.3
"""Weight of the points below the tip of the nose of real masked faces: they are guesses of MediaPipe's mesh."""

_DEPTH_WEIGHT: Final = 0.3
_ANCHOR_WEIGHT: Final = 2.0
_WEIGHTS: Final = {"points": 1.0, "sure": 0.1}
"""Of the losses."""

_ACCURATE: Final = 0.05
"""Mean distance of the points, over the eye distance, up to which a face counts as well placed in validation."""


@dataclass(frozen=True, slots=True)
class Example:
    """A picture for the landmarker.

    Attributes:
        rgb: (S, S, 3) uint8, S = `LANDMARKER_SIZE`.
        points: (468, 3) float32 px of it.
        trust: (468,) float32, weights of the points; all 0 where there is no face to be found.
        sure: 1 where there is a face, 0 where there is none, -1 where it may be either.
    """

    rgb: U8
    points: F32
    trust: F32
    sure: float


@dataclass(frozen=True, slots=True)
class Batch:
    """rgb (N, 3, S, S) 0..1; points (N, 468, 3) as the network gives them; trust (N, 468); sure (N,); eyes (N,), the
    distance of the outer eye corners in space, in widths of the picture."""

    rgb: Tensor
    points: Tensor
    trust: Tensor
    sure: Tensor
    eyes: Tensor


def roi_of(points: F32) -> F64:
    """(2, 3) float64: from px of the picture to px of what the landmarker sees, for a face with these points."""
    return upright_roi(points) * (LANDMARKER_SIZE / MESH_SIZE)


def _stray(rng: np.random.Generator, far: bool) -> F64:
    """(3, 3) float64: how the view of a tracker strays from where a face really is; `far`: beyond recognition."""
    turn = float(rng.uniform(-45, 45)) if rng.random() < 0.12 else float(rng.normal(0, 8))
    grow, shift = float(rng.normal(0, 0.12)), rng.normal(0, 0.06, 2)
    if far:
        angle = rng.uniform(0, 2 * math.pi)
        shift = rng.uniform(0.45, 0.9) * np.array([math.cos(angle), math.sin(angle)])
        grow = float(rng.normal(0, 0.3))
    middle = LANDMARKER_SIZE / 2
    matrix = cv2.getRotationMatrix2D((middle, middle), turn, math.exp(grow))
    matrix[:, 2] += shift * LANDMARKER_SIZE
    return np.vstack([matrix, [0, 0, 1]])


def cut_out(rgb: U8, points: F32, trust: F32, rng: np.random.Generator, far: bool = False) -> Example:
    """What the landmarker sees of a face in a picture."""
    matrix = (_stray(rng, far) @ np.vstack([roi_of(points), [0, 0, 1]]))[:2]
    placed = transform_landmarks(matrix, points)
    if far:
        trust = np.zeros_like(trust)
    return Example(_warped(rgb, matrix, rng), placed, trust, 0.0 if far else 1.0)


def _warped(rgb: U8, matrix: F64, rng: np.random.Generator) -> U8:
    zoom = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    if zoom < 0.6:
        smaller = cv2.resize(rgb, None, fx=2 * zoom, fy=2 * zoom, interpolation=cv2.INTER_AREA)
        matrix = matrix @ np.diag([rgb.shape[1] / smaller.shape[1], rgb.shape[0] / smaller.shape[0], 1.0])
        rgb = np.asarray(smaller, np.uint8)
    border = cv2.BORDER_REPLICATE if rng.random() < 0.5 else cv2.BORDER_CONSTANT
    colour = tuple(float(v) for v in rng.uniform(0, 255, 3))
    size = (LANDMARKER_SIZE, LANDMARKER_SIZE)
    out = cv2.warpAffine(rgb, matrix, size, flags=cv2.INTER_LINEAR, borderMode=border, borderValue=colour)
    return np.asarray(out, np.uint8)


def draw_example(data: TrackerData, rng: np.random.Generator) -> Example:
    """A picture to train on, as some camera films it."""
    far = rng.random() < _NOTHING_SHARE
    if data.profiles and not far and rng.random() < _PROFILE_SHARE:
        example = _profile_example(data, rng)
    elif len(data.scene_of_face) and rng.random() < (0.5 if far else _REAL_SHARE):
        example = _real_example(data, rng, far)
    else:
        index = int(rng.integers(len(data.kinds)))
        whole = np.ones(LANDMARKS, np.float32)
        example = cut_out(np.asarray(data.faces[index]), data.points[index], whole, rng, far)
    rgb, points, trust = example.rgb, example.points, example.trust
    if rng.random() < 0.5:
        (rgb, points), trust = mirror(rgb, points), trust[MIRRORED]
    return Example(as_filmed(rgb, rng), points, trust, example.sure)


def _profile_example(data: TrackerData, rng: np.random.Generator) -> Example:
    """A face in profile of a real scene, whose points were marked by hand."""
    scene, mesh = data.profiles[int(rng.integers(len(data.profiles)))]
    found = data.scenes[scene]
    return cut_out(found.rgb, found.meshes[mesh], np.ones(LANDMARKS, np.float32), rng)


def _real_example(data: TrackerData, rng: np.random.Generator, far: bool) -> Example:
    """A face of a real scene, or a part of the scene without any."""
    scene = data.scenes[int(rng.choice(data.scene_of_face))]
    meshes = scene.meshes[~scene.profile]
    if not far and len(meshes):
        points = meshes[int(rng.integers(len(meshes)))]
        below = points[:, 1] > points[_NOSE_TIP, 1]
        return cut_out(scene.rgb, points, np.where(below, _HIDDEN_TRUST, 1.0).astype(np.float32), rng)
    height, width = scene.rgb.shape[:2]
    side = float(np.exp(rng.uniform(np.log(24), np.log(0.8 * min(height, width) + 25))))
    middle = rng.uniform(0, 1, 2) * (width, height)
    matrix = cv2.getRotationMatrix2D(tuple(map(float, middle)), float(rng.normal(0, 15)), LANDMARKER_SIZE / side)
    matrix[:, 2] += LANDMARKER_SIZE / 2 - middle
    nearest = np.abs((scene.boxes[:, :2] + scene.boxes[:, 2:]) / 2 - middle).max(axis=1) / side
    sizes = (scene.boxes[:, 2:] - scene.boxes[:, :2]).max(axis=1) / side
    maybe = bool(((nearest < 0.4) & (sizes > 0.3)).any())
    nothing = np.zeros(LANDMARKS, np.float32)
    points = np.zeros((LANDMARKS, 3), np.float32)
    return Example(_warped(scene.rgb, matrix.astype(np.float64), rng), points, nothing, -1.0 if maybe else 0.0)


def collate(examples: list[Example]) -> Batch:
    """Put pictures together, in the network's units."""
    rgb = torch.from_numpy(np.stack([e.rgb for e in examples])).permute(0, 3, 1, 2).float() / 255
    points = torch.from_numpy(np.stack([e.points for e in examples])) / LANDMARKER_SIZE
    points -= torch.tensor([0.5, 0.5, 0.0])
    trust, sure = np.stack([e.trust for e in examples]), np.array([e.sure for e in examples], np.float32)
    eyes = (points[:, RIGHT_EYE_OUTER] - points[:, LEFT_EYE_OUTER]).norm(dim=1).clamp(min=0.05)
    rgb = rgb.contiguous(memory_format=torch.channels_last)
    return Batch(rgb, points, torch.from_numpy(trust), torch.from_numpy(sure), eyes)


def losses(out: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Mean distance of the points over the eye distance (L1, smooth near zero), and cross-entropy of there being a
    face."""
    away = (out[:, :-1].reshape(-1, LANDMARKS, 3) - batch.points) / batch.eyes[:, None, None]
    each = F.smooth_l1_loss(away, torch.zeros_like(away), beta=0.02, reduction="none")
    each = each[..., :2].sum(dim=2) + _DEPTH_WEIGHT * each[..., 2]
    weight = batch.trust.clone()
    weight[:, ANCHOR_POINTS] *= _ANCHOR_WEIGHT
    known = batch.sure >= 0
    return {
        "points": (weight * each).sum() / weight.sum().clamp(min=1),
        "sure": F.binary_cross_entropy_with_logits(out[known, -1], batch.sure[known]),
    }


class LandmarkerTrainer(Trainer[Batch]):
    """The landmarker and its losses.

    Args:
        recipe: what to do; its `encoder` is a detector's safetensors.
        build: makes the network, with random weights.

    Raises:
        UserError: the recipe asks for what a landmarker cannot do, or `tracker` is no folder of its data.
    """

    figure: ClassVar[str] = "validation_accurate"

    def __init__(self, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
        _check(recipe)
        torch.manual_seed(recipe.seed)
        self.data = TrackerData.open(Path(recipe.tracker))
        model = channels_last(build()).to(recipe.device)
        assert isinstance(model, Landmarker)
        usual = collate([draw_example(self.data, np.random.default_rng(seed)) for seed in range(64)])
        with torch.no_grad():  # so that the first steps need not learn what a face is like
            model.usual.copy_(usual.points[usual.trust.sum(dim=1) > 0].mean(dim=0).flatten())
        super().__init__(recipe.model, recipe, model, make_optimizer(recipe.optimizer, model))

    def batch(self, phase: Phase, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        # One stream of chance runs through the batch, so each process draws all of it, and keeps its part.
        drawn = [draw_example(self.data, rng) for _ in range(phase.batch)]
        return collate(drawn[processes.rank() :: processes.count()])

    def step(self, phase: Phase, step: int, batch: Batch) -> dict[str, float]:
        self.begin(phase, step)
        batch = on_device(batch, self.device)
        with self.autocast():
            out = self.model(batch.rgb)
        found = losses(out.float(), batch)
        self.backward(torch.stack([_WEIGHTS[name] * value for name, value in found.items()]).sum())
        self.update()
        return {name: value.item() for name, value in found.items()}

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """Mean distance of the points of validation faces with drawn masks to the bare face's, over the eye distance:
        of all points, of those below the nose, and of those that place the crop; and the share of well-placed faces."""
        model = self.averaged()
        rows, sure = [], []
        for seed, indices in self.validation_groups():
            batch = on_device(self._validation_batch(seed, indices), self.device)
            out = model(batch.rgb)
            away = out[:, :-1].reshape(-1, LANDMARKS, 3) - batch.points
            away = away[..., :2].norm(dim=2) / batch.eyes[:, None]
            below = batch.points[..., 1] > batch.points[:, _NOSE_TIP : _NOSE_TIP + 1, 1]
            hidden = (away * below).sum(dim=1) / below.sum(dim=1)
            rows.append(torch.stack([away.mean(dim=1), hidden, away[:, ANCHOR_POINTS].mean(dim=1)], dim=1))
            sure.append(((out[:, -1] > 0) == (batch.sure > 0)).float())
        faces = torch.cat(rows)
        accurate = (faces[:, 0] <= _ACCURATE).float().mean().item()
        names = ("validation_error", "validation_hidden", "validation_anchors")
        figures = dict(zip(names, faces.mean(dim=0).tolist(), strict=True))
        return figures | {"validation_accurate": accurate, "validation_sure": torch.cat(sure).mean().item()}

    def _validation_batch(self, seed: int, indices: Indices) -> Batch:
        rng = np.random.default_rng(seed)
        drawn = [draw_face(self.faces, int(i), self.templates, rng) for i in indices]
        return collate([cut_out(d.rgb, d.points, np.ones(LANDMARKS, np.float32), rng) for d in drawn])


def _check(recipe: Recipe) -> None:
    """Refuse what a landmarker's run would leave out in silence. Raises UserError."""
    check_recipe(recipe, "landmarker", "points")
    if recipe.accumulate != 1:
        raise UserError("accumulate: the landmarker's batches are small enough to be taken whole; leave the key out")
    if any(phase.size != LANDMARKER_SIZE for phase in recipe.phases):
        raise UserError(f"phases: size must be {LANDMARKER_SIZE} for the landmarker")
