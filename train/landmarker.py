"""Trains the landmarker: MediaPipe's mesh on a bare face is the label of the same face with a mask drawn on."""

from dataclasses import dataclass
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

from unmask.models.geometry import ANCHOR_POINTS, transform_points
from unmask.models.landmarker import Landmarker
from unmask.models.mediapipe import MESH_SIZE, roi_from_landmarks
from unmask.models.rows import LANDMARKER_SIZE, MESH_POINTS
from unmask.train.config import Phase, Recipe
from unmask.train.loop import Trainer, channels_last, keep_memory, learning_rate
from unmask.train.tracker_data import DrawnFace, TrackerData, draw_face, overlap
from unmask.train.views import as_filmed

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_ENCODER: Final = frozenset({"stem", "down1", "enc1", "down2", "enc2", "down3"})
"""The layers that the landmarker shares with the segmenter."""

_REAL_SHARE: Final = 0.15
_REAL_WEIGHT: Final = 0.3
"""Of the points of real masked faces, which the mesh found on the masked face itself."""

_NOTHING_SHARE: Final = 0.12
_ANCHOR_WEIGHT: Final = 4.0
"""Of the points that place the canonical crop; the others have 1."""

_DEPTH_WEIGHT: Final = 0.5
_LOST: Final = 0.35
"""Shift of the face, in sizes of the picture, from which on a picture holds no face."""


@dataclass(frozen=True, slots=True)
class Batch:
    """rgb (N, 3, S, S) 0..1; face (N, 1) 0/1; points (N, 468, 3) as the network gives them; weight (N, 1, 1) of the
    points, 0 where they are not known."""

    rgb: Tensor
    face: Tensor
    points: Tensor
    weight: Tensor


def mirrored_order(points: F32) -> npt.NDArray[np.int64]:
    """(468,) the order in which the points of a mirrored face are to be read: the pairs that lie nearest to each other
    in the mean face and its mirror image.

    Args:
        points: (N, 468, 3) float32, canonical crops.
    """
    mean = points.astype(np.float64).mean(axis=0)
    mean[:, 0] -= (mean[33, 0] + mean[263, 0]) / 2
    distance = np.linalg.norm((mean * (-1.0, 1.0, 1.0))[:, None] - mean[None], axis=2)
    order = np.full(len(mean), -1)
    for flat in np.argsort(distance + distance.T, axis=None):
        i, j = np.unravel_index(flat, distance.shape)
        if order[i] < 0 and order[j] < 0:
            order[i], order[j] = j, i
    return order.astype(np.int64)


def _crop(points: F32, rng: np.random.Generator | None) -> F64:
    """(2, 3) map to the network's picture, as a tracker or a detector places it; exactly so without `rng`."""
    size = LANDMARKER_SIZE
    matrix = roi_from_landmarks(points) * (size / MESH_SIZE)
    if rng is None:
        return matrix
    turn = rng.uniform(-45, 45) if rng.random() < 0.12 else rng.normal(0, 8)
    wobble = cv2.getRotationMatrix2D((size / 2, size / 2), float(turn), float(np.exp(rng.normal(0.0, 0.12))))
    wobble[:, 2] += np.clip(rng.normal(0, 0.06, 2), -0.2, 0.2) * size
    return np.asarray(wobble @ np.vstack([matrix, [0, 0, 1]]), np.float64)


def _warped(rgb: U8, matrix: F64, rng: np.random.Generator) -> U8:
    """The picture of a crop; beyond the border its last pixels, or any colour."""
    size = (LANDMARKER_SIZE, LANDMARKER_SIZE)
    shrink = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    if shrink < 0.6:
        rgb = np.asarray(cv2.resize(rgb, None, fx=2 * shrink, fy=2 * shrink, interpolation=cv2.INTER_AREA), np.uint8)
        matrix = matrix @ np.diag([0.5 / shrink, 0.5 / shrink, 1.0])
    if rng.random() < 0.6:
        return np.asarray(cv2.warpAffine(rgb, matrix, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)
    colour = tuple(float(v) for v in rng.uniform(0, 255, 3))
    return np.asarray(cv2.warpAffine(rgb, matrix, size, borderValue=colour), np.uint8)


def _normalised(matrix: F64, points: F32) -> F32:
    """(468, 3) from px to what the network gives."""
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))
    flat = transform_points(matrix, points) / LANDMARKER_SIZE - 0.5
    return np.concatenate([flat, points[:, 2:] * scale / LANDMARKER_SIZE], axis=1).astype(np.float32)


Sample = tuple[U8, float, F32, float]
"""Picture, whether it holds a face, points, weight of the points."""

_NO_POINTS: Final = np.zeros((MESH_POINTS, 3), np.float32)


def make_drawn(face: DrawnFace, rng: np.random.Generator) -> Sample:
    """A face with a drawn mask, as a tracker sees it."""
    matrix = _crop(face.points, rng)
    return as_filmed(_warped(face.rgb, matrix, rng), rng), 1.0, _normalised(matrix, face.points), 1.0


def make_real(data: TrackerData, rng: np.random.Generator) -> Sample | None:
    """A real masked face, if the picture that is drawn has one of a fair size with known points."""
    scene = data.scenes[int(rng.integers(len(data.scenes)))]
    known = [m for m in scene.mesh if m is not None and np.ptp(m[:, 0]) > 40]
    if not known:
        return None
    mesh = known[int(rng.integers(len(known)))]
    matrix = _crop(mesh, rng)
    return as_filmed(_warped(scene.rgb, matrix, rng), rng), 1.0, _normalised(matrix, mesh), _REAL_WEIGHT


def make_nothing(data: TrackerData, rng: np.random.Generator) -> Sample:
    """A part of a scene without a face, or a face so far aside that a tracker has lost it."""
    size = LANDMARKER_SIZE
    if rng.random() < 0.4:
        index = int(rng.integers(len(data.kinds)))
        matrix = _crop(data.points[index], rng)
        angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(_LOST, 0.8) * size
        matrix[:, 2] += far * np.array([np.cos(angle), np.sin(angle)])
        picture = _warped(np.asarray(data.faces[index]), matrix, rng)
        return as_filmed(picture, rng), 0.0, _NO_POINTS, 0.0
    for _ in range(20):
        scene = data.scenes[int(rng.integers(len(data.scenes)))]
        height, width = scene.rgb.shape[:2]
        side = float(np.exp(rng.uniform(np.log(24), np.log(0.9 * min(height, width)))))
        x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
        box = np.array([[x, y, x + side, y + side]], np.float32)
        if not len(scene.boxes) or overlap(box, scene.boxes).max() < 0.05:
            zoom = size / side
            matrix = cv2.getRotationMatrix2D((x + side / 2, y + side / 2), float(rng.normal(0, 20)), zoom)
            matrix[:, 2] += size / 2 - np.array([x + side / 2, y + side / 2])
            return as_filmed(_warped(scene.rgb, matrix, rng), rng), 0.0, _NO_POINTS, 0.0
    return rng.integers(0, 256, (size, size, 3)).astype(np.uint8), 0.0, _NO_POINTS, 0.0


def collate(samples: list[Sample], mirror: npt.NDArray[np.int64] | None, rng: np.random.Generator) -> Batch:
    """Put samples together; half of them are mirrored where the order of mirrored points is given."""
    rgb = np.stack([s[0] for s in samples])
    points = np.stack([s[2] for s in samples])
    for row in np.flatnonzero(rng.random(len(samples)) < 0.5) if mirror is not None else ():
        rgb[row] = rgb[row, :, ::-1].copy()
        points[row] = points[row][mirror] * np.array([-1, 1, 1], np.float32)
    planes = torch.from_numpy(rgb).permute(0, 3, 1, 2).float() / 255
    face, weight = (torch.tensor([s[i] for s in samples], dtype=torch.float32) for i in (1, 3))
    return Batch(
        planes.contiguous(memory_format=torch.channels_last),
        face[:, None],
        torch.from_numpy(points),
        weight[:, None, None],
    )


class LandmarkerTrainer(Trainer[Batch]):
    """The landmarker and its losses.

    Args:
        recipe: what to do.
    """

    def __init__(self, recipe: Recipe) -> None:
        torch.manual_seed(recipe.seed)
        model = channels_last(Landmarker())
        self.data = TrackerData.open(Path(recipe.tracker))
        if recipe.encoder:
            encoder = load_file(recipe.encoder)
            known = model.state_dict()
            model.load_state_dict(known | {k: v.float() for k, v in encoder.items() if k.split(".")[0] in _ENCODER})
        if not recipe.start:  # begin with the mean face
            mean = np.mean([_normalised(_crop(p, None), p) for p in self.data.points[::97]], axis=0)
            model.shape.bias.data.copy_(torch.from_numpy(mean.reshape(-1)))
        super().__init__("landmarker", recipe, model, torch.optim.AdamW(model.parameters(), weight_decay=1e-4))
        self.mirror = mirrored_order(self.faces.points[:4000])
        self.weights = torch.ones(MESH_POINTS, 3)
        self.weights[ANCHOR_POINTS] = _ANCHOR_WEIGHT
        self.weights[:, 2] *= _DEPTH_WEIGHT
        self.weights /= self.weights.mean()

    def batch(self, phase: Phase, seed: int) -> Batch:
        rng = np.random.default_rng(seed)
        samples: list[Sample] = []
        for index in rng.integers(len(self.data.kinds), size=phase.batch):
            kind = rng.random()
            sample = make_nothing(self.data, rng) if kind < _NOTHING_SHARE else None
            if sample is None and kind < _NOTHING_SHARE + _REAL_SHARE and self.data.scenes:
                sample = make_real(self.data, rng)
            samples.append(sample or make_drawn(self._drawn(int(index)), rng))
        return collate(samples, self.mirror, rng)

    def _drawn(self, index: int) -> DrawnFace:
        data = self.data
        return DrawnFace(data.faces[index], data.inside[index], data.points[index], int(data.kinds[index]))

    def step(self, phase: Phase, step: int, batch: Batch) -> dict[str, float]:
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(phase, step)
        self.model.train()
        with torch.autocast("cpu", torch.bfloat16):
            out = self.model(batch.rgb)
        away = (out[:, 1:].reshape(-1, MESH_POINTS, 3) - batch.points).abs()
        points = (away * self.weights * batch.weight).mean()
        face = F.binary_cross_entropy_with_logits(out[:, :1], batch.face)
        self.descend(20.0 * points + 0.2 * face)
        return {"points": 100 * points.item(), "face": face.item()}

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """Mean error of the averaged weights on fixed validation faces with drawn masks, in distances of the outer eye
        corners: of all points, of those that place the crop; and how often a face is taken for one."""
        model = channels_last(Landmarker()).eval()
        model.load_state_dict(self.ema.state)
        errors, anchors, faces = [], [], []
        for seed, indices in self.validation_groups():
            rng = np.random.default_rng(seed)
            drawn = [draw_face(self.faces, int(i), self.templates, rng) for i in indices]
            batch = collate([make_drawn(face, rng) for face in drawn], None, rng)
            out = model(batch.rgb)
            points = out[:, 1:].reshape(-1, MESH_POINTS, 3)
            away = (points - batch.points)[..., :2].norm(dim=2)
            eyes = (batch.points[:, 33] - batch.points[:, 263]).norm(dim=1, keepdim=True)
            errors.append((away / eyes).mean(dim=1))
            anchors.append((away / eyes)[:, ANCHOR_POINTS].mean(dim=1))
            faces.append(out[:, 0] > 0)
        return {
            "validation_error": torch.cat(errors).mean().item(),
            "validation_anchor_error": torch.cat(anchors).mean().item(),
            "validation_faces": torch.cat(faces).float().mean().item(),
        }


def train(recipe: Recipe) -> None:
    """Run a recipe to its end; interrupted runs go on where they stopped."""
    keep_memory()
    LandmarkerTrainer(recipe).fit()
