"""Trains the detector: real scenes with labelled boxes, portraits, and drawn faces pasted at many sizes."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unmask.errors import UserError
from unmask.models.geometry import transform_points
from unmask.models.rows import CHANNELS, KINDS, POINTS, STRIDES, cell_centres, five_points_of, overlap
from unmask.train.config import Phase, Recipe
from unmask.train.loop import Indices, Trainer, channels_last
from unmask.train.objectives import on_device, split_batch
from unmask.train.optimizers import make_optimizer
from unmask.train.tracker_data import TrackerData, box_of, check_recipe, draw_face
from unmask.train.views import as_filmed

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
I64 = npt.NDArray[np.int64]

SMALLEST: Final = 7.0
"""Faces below this size in px are neither to be found nor to be passed over."""

_SIZES: Final = ((0.0, 44.0), (38.0, 104.0), (90.0, math.inf))
"""Which faces each level finds, by their longer side in px."""

_TOLERANCE: Final = 1.6
"""A level that is off by less than this factor is left in peace where such a face is."""

_RADIUS: Final = 1.5
"""Cells so near to the middle of a face, in strides, are to find it."""

_MIRRORED_POINTS: Final = np.array([1, 0, 2, 4, 3])
_SIZE_RANGE: Final = (11.0, 400.0)
_ELSEWHERE: Final = 0.2
"""How often a part of a scene is shown that no face was chosen for: hands, ears, emblems and signs are not faces."""

_MISTAKEN: Final = 0.3
"""How often, where a scene has something that was once taken for a face, that is shown."""

_CUT_OFF: Final = 0.2
"""How often a part of a scene may end anywhere in the face that it was chosen for."""

_ACROSS_BORDER: Final = 0.3
"""How often a pasted face is put across the border."""

_ENDS_WITHIN: Final = 0.25
"""How often the border of the picture is moved into it, through a face. Views of a frame show what lies beyond it too,
as its last row of pixels repeated."""

_DISTRACTED: Final = 0.35
"""How often things are put into a picture that are as round as a face and are none."""

_LEAST_SEEN: Final = 0.35
"""Share of a face from which on it is to be found."""

_MOST_ENLARGED: Final = 3.0
_VALIDATION_GROUPS: Final = 4

_WEIGHTS: Final = {"face": 1.0, "box": 2.0, "kind": 0.3, "points": 1.0}
"""Of the losses."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A training picture.

    Attributes:
        rgb: (S, S, 3) uint8.
        boxes: (N, 4) float32 px.
        kinds: (N,) int64, indices into `KINDS`; -1 for what is neither to be found nor to be passed over.
        points: (N, 5, 2) float32 px, NaN where they are not known.
    """

    rgb: U8
    boxes: F32
    kinds: I64
    points: F32


@dataclass(frozen=True, slots=True)
class Batch:
    """P cells. rgb (N, 3, S, S) 0..1; face (N, P) 1 where a face is to be found, 0 where there is none, -1 where
    neither matters; box (N, P, 4) x0, y0, x1, y1 px; kind (N, P) int64; points (N, P, 5, 2) px, NaN where they are not
    known."""

    rgb: Tensor
    face: Tensor
    box: Tensor
    kind: Tensor
    points: Tensor


def _moved(picture: Picture, matrix: F64, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    """A picture through a similarity, into (width, height) px; boxes stay upright. What is cut off too far is left to
    nobody."""
    zoom = math.sqrt(abs(float(np.linalg.det(matrix[:, :2]))))
    rgb = picture.rgb
    inner = matrix
    if zoom < 0.6:
        rgb = np.asarray(cv2.resize(rgb, None, fx=2 * zoom, fy=2 * zoom, interpolation=cv2.INTER_AREA), np.uint8)
        scale = np.array([picture.rgb.shape[1] / rgb.shape[1], picture.rgb.shape[0] / rgb.shape[0]])
        inner = matrix @ np.diag([*scale, 1.0])
    if rng.random() < 0.5:
        out = cv2.warpAffine(rgb, inner, size, borderMode=cv2.BORDER_REPLICATE)
    else:
        out = cv2.warpAffine(rgb, inner, size, borderValue=tuple(float(v) for v in rng.uniform(0, 255, 3)))
    middles = np.asarray((picture.boxes[:, :2] + picture.boxes[:, 2:]) / 2, np.float32)
    centres = transform_points(matrix, middles)
    half = zoom * (picture.boxes[:, 2:] - picture.boxes[:, :2]) / 2
    boxes = np.concatenate([centres - half, centres + half], axis=1).astype(np.float32)
    small = (boxes[:, 2:] - boxes[:, :2]).max(axis=1, initial=0) < SMALLEST
    kinds = np.where(small, -1, picture.kinds)
    points = transform_points(matrix, picture.points.reshape(-1, 2)).reshape(-1, POINTS, 2)
    placed = Picture(np.asarray(out, np.uint8), boxes, kinds, points)
    return _only_seen(placed, np.array([0, 0, *size], np.float32))


def _only_seen(picture: Picture, border: F32) -> Picture:
    """The picture without the faces that lie beyond a border x0, y0, x1, y1 px; those that it cuts off too far are left
    to nobody."""
    boxes = picture.boxes
    seen = np.clip(boxes, np.tile(border[:2], 2), np.tile(border[2:], 2))
    share = np.prod(seen[:, 2:] - seen[:, :2], axis=1) / np.maximum(np.prod(boxes[:, 2:] - boxes[:, :2], axis=1), 1e-6)
    kinds, kept = np.where(share < _LEAST_SEEN, -1, picture.kinds), share > 0.02
    return Picture(picture.rgb, boxes[kept], kinds[kept], picture.points[kept])


def ended_within(picture: Picture, rng: np.random.Generator) -> Picture:
    """The picture's border moved to where it crosses one of its faces, on one side or two that meet there; beyond it
    the last pixels are repeated (`unmask.stream.canvas.Canvas.crop`)."""
    faces = np.flatnonzero(picture.kinds >= 0)
    if not len(faces):
        return picture
    sizes = (picture.boxes[faces, 2:] - picture.boxes[faces, :2]).max(axis=1)
    box, rgb = picture.boxes[rng.choice(faces, p=sizes / sizes.sum())], picture.rgb.copy()
    extent = rgb.shape[1::-1]
    border = np.array([0, 0, *extent], np.float32)
    for axis in rng.permutation(2)[: 1 if rng.random() < 0.7 else 2]:
        side = float(box[axis + 2] - box[axis])
        beyond = rng.uniform(-0.1, 0.5) * side
        along = rgb.swapaxes(0, 1) if axis == 0 else rgb
        if box[axis] + box[axis + 2] < extent[axis]:  # the smaller part of the picture is the one to go
            end = int(np.clip(box[axis] + beyond, 0, extent[axis] - 1))
            along[:end], border[axis] = along[end], end
        else:
            end = int(np.clip(box[axis + 2] - beyond, 1, extent[axis]))
            along[end:], border[axis + 2] = along[end - 1], end
    return _only_seen(Picture(rgb, picture.boxes, picture.kinds, picture.points), border)


def _random_turn(rng: np.random.Generator) -> float:
    """Degrees: mostly about upright, sometimes anything to 45."""
    return float(rng.uniform(-45, 45)) if rng.random() < 0.2 else float(rng.normal(0, 7))


def draw_scene(data: TrackerData, size: tuple[int, int], rng: np.random.Generator) -> Picture:
    """A part of a real scene in which one of its faces has a size drawn at random. Each face is as likely."""
    scene = data.scenes[int(rng.choice(data.scene_of_face))]
    height, width = scene.rgb.shape[:2]
    focus = rng.uniform(0, 1, 2) * (width, height)
    zoom = float(np.exp(rng.uniform(-0.7, 1.0))) * max(size) / max(height, width)
    spread = 0.35
    labelled = scene.boxes[scene.kinds >= 0]
    if len(scene.nothing) and rng.random() < _MISTAKEN:
        labelled = scene.nothing
    if len(labelled) and rng.random() >= _ELSEWHERE:
        box = labelled[int(rng.integers(len(labelled)))]
        wanted = math.exp(rng.uniform(*np.log((_SIZE_RANGE[0], min(_SIZE_RANGE[1], 0.95 * min(size))))))
        zoom = wanted / float((box[2:] - box[:2]).max())
        focus = (box[:2] + box[2:]) / 2
        # A large face is cut off only a little, as a rule.
        spread = 0.5 if rng.random() < _CUT_OFF else spread * (1 - 0.7 * wanted / min(size))
    zoom = min(zoom, _MOST_ENLARGED)
    matrix = cv2.getRotationMatrix2D((float(focus[0]), float(focus[1])), _random_turn(rng), zoom)
    matrix[:, 2] += rng.uniform(0.5 - spread, 0.5 + spread, 2) * size - focus
    return _moved(Picture(scene.rgb, scene.boxes, scene.kinds, scene.points), matrix.astype(np.float64), size, rng)


def paste_faces(
    picture: Picture, data: TrackerData, count: int, rng: np.random.Generator, cut_off: float = 0.0
) -> Picture:
    """Drawn faces put where there is room, with what surrounds them, in soft-edged ovals and rectangles; `cut_off` is
    how often one is put across the border."""
    rgb = picture.rgb.copy()
    boxes, kinds, points = list(picture.boxes), list(picture.kinds), list(picture.points)
    height, width = rgb.shape[:2]
    for index in rng.integers(len(data.kinds), size=count):
        mesh = data.points[index]
        source = box_of(mesh)
        wanted = math.exp(rng.uniform(*np.log((_SIZE_RANGE[0], 0.7 * min(height, width)))))
        zoom = wanted / float((source[2:] - source[:2]).max())
        middle = (source[:2] + source[2:]) / 2
        at = rng.uniform(0.02, 0.98, 2) * (width, height)
        if cut_off and rng.random() < cut_off:
            at = _across_border(at, wanted, (width, height), rng)
        matrix = cv2.getRotationMatrix2D((float(middle[0]), float(middle[1])), _random_turn(rng), zoom)
        matrix[:, 2] += at - middle
        half = zoom * (source[2:] - source[:2]) / 2
        box = np.concatenate([at - half, at + half]).astype(np.float32)
        if boxes and overlap(_wider(box)[None], np.array(boxes)).max() > 0.02:
            continue
        _paste(rgb, np.asarray(data.faces[index]), np.asarray(data.inside[index]), matrix.astype(np.float64), zoom, rng)
        inside = np.clip(box, 0, [width, height, width, height])
        share = np.prod(inside[2:] - inside[:2]) / np.prod(box[2:] - box[:2])
        boxes.append(box)
        kinds.append(int(data.kinds[index]) if share > _LEAST_SEEN and wanted >= SMALLEST else -1)
        points.append(transform_points(matrix.astype(np.float64), five_points_of(mesh)))
    return Picture(
        rgb,
        np.array(boxes, np.float32).reshape(-1, 4),
        np.array(kinds, np.int64),
        np.array(points, np.float32).reshape(-1, POINTS, 2),
    )


def put_distractors(picture: Picture, rng: np.random.Generator) -> Picture:
    """Wheels, emblems, blurred discs and stones where no face is: what a detector of faces follows in videos."""
    rgb = picture.rgb.copy()
    extent = np.array(rgb.shape[1::-1])
    for _ in range(int(rng.integers(1, 5))):
        size = math.exp(rng.uniform(*np.log((_SIZE_RANGE[0], 0.5 * extent.min()))))
        at = rng.uniform(0, 1, 2) * extent
        box = np.concatenate([at - size / 2, at + size / 2]).astype(np.float32)
        if len(picture.boxes) and overlap(_wider(box)[None], picture.boxes).max() > 0.0:
            continue
        low, high = np.clip(at - size, 0, extent).astype(int), np.clip(at + size + 1, 1, extent).astype(int)
        region = rgb[low[1] : high[1], low[0] : high[0]]
        _draw_thing(region, at - low, size, rng)
    return Picture(rgb, picture.boxes, picture.kinds, picture.points)


def _draw_thing(target: U8, at: F64, size_px: float, rng: np.random.Generator) -> None:
    """Something round of a few colours, in or out of focus: discs within discs, perhaps with spokes or spots."""
    layer, cover = target.copy(), np.zeros(target.shape[:2], np.uint8)
    centre = (round(float(at[0])), round(float(at[1])))
    tall, turn, share = rng.uniform(0.7, 1.4), float(rng.uniform(0, 180)), 1.0
    while share > 0.15:
        axes = (max(1, round(share * size_px / 2)), max(1, round(share * tall * size_px / 2)))
        colour = tuple(float(v) for v in rng.uniform(0, 255) + rng.normal(0, 40, 3))
        cv2.ellipse(layer, centre, axes, turn, 0, 360, colour, -1, cv2.LINE_AA)
        if share == 1.0:
            cv2.ellipse(cover, centre, axes, turn, 0, 360, 255, -1, cv2.LINE_AA)
        share *= rng.uniform(0.3, 0.9)
    for _ in range(int(rng.integers(0, 7))):
        a, b = (centre + rng.uniform(-0.45, 0.45, 2) * size_px for _ in range(2))
        colour = tuple(float(v) for v in rng.uniform(0, 255, 3))
        start, end = ((round(float(x)), round(float(y))) for x, y in (a, b))
        if rng.random() < 0.5:
            cv2.line(layer, start, end, colour, max(1, round(0.08 * size_px)), cv2.LINE_AA)
        else:
            cv2.circle(layer, start, max(1, round(rng.uniform(0.04, 0.15) * size_px)), colour, -1, cv2.LINE_AA)
    blur = rng.uniform(0.2, 0.02 * size_px + 0.3) if rng.random() < 0.5 else rng.uniform(0.3, 0.1 * size_px + 0.4)
    layer, cover = cv2.GaussianBlur(layer, (0, 0), blur), cv2.GaussianBlur(cover, (0, 0), blur)
    weight = cover[..., None].astype(np.float32) / 255
    target[...] = np.clip(target + weight * (layer.astype(np.float32) - target), 0, 255).astype(np.uint8)


def _across_border(at: F64, size_px: float, extent: tuple[int, int], rng: np.random.Generator) -> F64:
    """A place moved to where a face of `size_px` crosses one border, or two."""
    at = at.copy()
    for axis in rng.permutation(2)[: 1 if rng.random() < 0.7 else 2]:
        within = rng.uniform(-0.12, 0.5) * size_px
        at[axis] = within if rng.random() < 0.5 else extent[axis] - within
    return at


def _wider(box: F32) -> F32:
    size = 0.35 * (box[2:] - box[:2])
    return np.concatenate([box[:2] - size, box[2:] + size]).astype(np.float32)


def _paste(target: U8, face: U8, inside: U8, matrix: F64, zoom: float, rng: np.random.Generator) -> None:
    size = face.shape[0]
    alpha = np.zeros(inside.shape, np.uint8)
    if rng.random() < 0.5:
        axes = (round(size * rng.uniform(0.4, 0.5)), round(size * rng.uniform(0.46, 0.56)))
        cv2.ellipse(alpha, (size // 2, round(0.5 * size)), axes, 0, 0, 360, 255, -1)
    else:
        alpha[2:-2, 2:-2] = 255
    alpha = np.minimum(alpha, cv2.erode(inside, np.ones((5, 5), np.uint8)))
    if rng.random() < 0.7:
        alpha = np.asarray(cv2.blur(alpha, (9, 9)), np.uint8)
    if zoom < 0.6:
        face, alpha = (
            np.asarray(cv2.resize(x, None, fx=2 * zoom, fy=2 * zoom, interpolation=cv2.INTER_AREA), np.uint8)
            for x in (face, alpha)
        )
        matrix = matrix @ np.diag([size / face.shape[1], size / face.shape[0], 1.0])
    corners = np.array([(0, 0), (face.shape[1], 0), (0, face.shape[0]), face.shape[1::-1]], np.float32)
    placed = transform_points(matrix, corners)
    low = np.clip(np.floor(placed.min(axis=0)), 0, target.shape[1::-1]).astype(int)
    high = np.clip(np.ceil(placed.max(axis=0)), 0, target.shape[1::-1]).astype(int)
    if (high - low < 2).any():
        return
    moved = matrix.copy()
    moved[:, 2] -= low
    box = (int(high[0] - low[0]), int(high[1] - low[1]))
    weight = cv2.warpAffine(alpha, moved, box)[..., None].astype(np.float32) / 255
    shown = cv2.warpAffine(face, moved, box, borderMode=cv2.BORDER_REPLICATE).astype(np.float32)
    shown *= np.exp(rng.normal(0, 0.25))
    region = target[low[1] : high[1], low[0] : high[0]]
    region[...] = np.clip(region + weight * (shown - region), 0, 255).astype(np.uint8)


def draw_picture(data: TrackerData, size: int, rng: np.random.Generator) -> Picture:
    """A picture to train on: one scene or four, pasted faces, light and camera as they come."""
    if rng.random() < 0.45:
        x, y = (int(v) for v in rng.uniform(0.3, 0.7, 2) * size)
        parts = [((0, 0), (x, y)), ((x, 0), (size - x, y)), ((0, y), (x, size - y)), ((x, y), (size - x, size - y))]
        rgb = np.zeros((size, size, 3), np.uint8)
        tiles = []
        for (left, top), extent in parts:
            tile = draw_scene(data, extent, rng)
            rgb[top : top + extent[1], left : left + extent[0]] = tile.rgb
            tiles.append((tile, np.array([left, top], np.float32)))
        picture = Picture(
            rgb,
            np.concatenate([t.boxes + np.tile(corner, 2) for t, corner in tiles]),
            np.concatenate([t.kinds for t, _ in tiles]),
            np.concatenate([t.points + corner for t, corner in tiles]),
        )
    else:
        picture = draw_scene(data, (size, size), rng)
    if rng.random() < 0.45:
        picture = paste_faces(picture, data, int(rng.integers(1, 7)), rng, _ACROSS_BORDER)
    if rng.random() < _DISTRACTED:
        picture = put_distractors(picture, rng)
    if rng.random() < _ENDS_WITHIN:
        picture = ended_within(picture, rng)
    rgb, boxes, points = as_filmed(picture.rgb, rng), picture.boxes, picture.points
    if rng.random() < 0.5:
        rgb = rgb[:, ::-1].copy()
        boxes = np.stack([size - boxes[:, 2], boxes[:, 1], size - boxes[:, 0], boxes[:, 3]], axis=1)
        points = (np.array([size, 0]) + points * np.array([-1, 1]))[:, _MIRRORED_POINTS]
    return Picture(rgb, boxes.astype(np.float32), picture.kinds, points.astype(np.float32))


def assign(picture: Picture, centres: F32, sides: npt.NDArray[np.int64]) -> tuple[F32, I64]:
    """Which cell is to find which face.

    Args:
        centres: (P, 2) float32 px, of the cells.
        sides: (P,) their strides.

    Returns:
        (P,) float32: 1, 0 or -1 as in `Batch.face`; and (P,) int64, the face of each cell with 1.
    """
    face, which = np.zeros(len(centres), np.float32), np.zeros(len(centres), np.int64)
    sizes = (picture.boxes[:, 2:] - picture.boxes[:, :2]).max(axis=1, initial=0)
    for number in np.argsort(-sizes):  # where faces overlap, the smaller one is in front
        box, size = picture.boxes[number], sizes[number]
        away = np.abs(centres - (box[:2] + box[2:]) / 2).max(axis=1)
        within = (away < size / 2) & (centres >= box[:2]).all(axis=1) & (centres <= box[2:]).all(axis=1)
        if picture.kinds[number] < 0:
            face[within] = -1
            continue
        for stride, (low, high) in zip(STRIDES, _SIZES, strict=True):
            level = sides == stride
            if low <= size < high:
                near = level & (away < _RADIUS * stride) & within
                near[np.flatnonzero(level)[np.argmin(away[level])]] = True
                face[near], which[near] = 1, number
            elif low / _TOLERANCE <= size < high * _TOLERANCE:
                face[level & (away < 0.3 * size) & (face == 0)] = -1
    return face, which


class DetectorTrainer(Trainer[Batch]):
    """The detector and its losses.

    Args:
        recipe: what to do.
        build: makes the network, with random weights.

    Raises:
        UserError: the recipe asks for what a detector cannot do, or `tracker` is no folder of its data.
    """

    figure: ClassVar[str] = "validation_giou"

    def __init__(self, recipe: Recipe, build: Callable[[], nn.Module]) -> None:
        _check(recipe)
        torch.manual_seed(recipe.seed)
        self.data = TrackerData.open(Path(recipe.tracker))
        model = channels_last(build()).to(recipe.device)
        super().__init__(recipe.model, recipe, model, make_optimizer(recipe.optimizer, model))

    def batch(self, phase: Phase, seed: int) -> Batch:
        return collate([draw_picture(self.data, phase.size, draw.rng) for draw in self.draws(phase, seed)])

    def step(self, phase: Phase, step: int, batch: Batch) -> dict[str, float]:
        self.begin(phase, step)
        share = 1.0 / self.recipe.accumulate
        figures: dict[str, float] = {}
        for part in split_batch(batch, self.recipe.accumulate, self.device):
            with self.autocast():
                out = self.model(part.rgb)
            found = losses(out, part)
            self.backward(share * torch.stack([_WEIGHTS[name] * value for name, value in found.items()]).sum())
            for name, value in found.items():
                figures[name] = figures.get(name, 0.0) + share * value.item()
        self.update()
        return figures

    @torch.no_grad()
    def validate(self, size: int) -> dict[str, float]:
        """The losses of the averaged weights on validation faces pasted onto grey, and the mean generalised IoU of the
        boxes that their cells give."""
        model = self.averaged()
        total: dict[str, float] = {}
        groups = list(self.validation_groups())[:_VALIDATION_GROUPS]
        for seed, indices in groups:
            batch = on_device(self._validation_batch(size, seed, indices), self.device)
            for name, value in losses(model(batch.rgb), batch).items():
                total[name] = total.get(name, 0.0) + value.item() / len(groups)
        return {f"validation_{name}": value for name, value in total.items()} | {"validation_giou": 1 - total["box"]}

    def _validation_batch(self, size: int, seed: int, indices: Indices) -> Batch:
        rng = np.random.default_rng(seed)
        drawn = [draw_face(self.faces, int(i), self.templates, rng) for i in indices]
        data = TrackerData(
            np.stack([d.rgb for d in drawn]),
            np.stack([d.inside for d in drawn]),
            np.stack([d.points for d in drawn]),
            np.array([d.kind for d in drawn], np.uint8),
            (),
        )
        empty = Picture(
            np.full((size, size, 3), 120, np.uint8),
            np.zeros((0, 4), np.float32),
            np.zeros(0, np.int64),
            np.zeros((0, POINTS, 2), np.float32),
        )
        return collate([paste_faces(empty, data, 8, rng) for _ in range(8)])


def _check(recipe: Recipe) -> None:
    """Refuse what a detector's run would leave out in silence. Raises UserError."""
    check_recipe(recipe, "detector", "boxes")
    if any(phase.size % max(STRIDES) for phase in recipe.phases):
        raise UserError(f"phases: size must be a multiple of {max(STRIDES)} for the detector")


def collate(pictures: list[Picture]) -> Batch:
    """Put pictures of one size together, with what each cell is to find."""
    size = pictures[0].rgb.shape[0]
    centres = cell_centres(size, size)
    sides = np.concatenate([np.full((size // s) ** 2, s) for s in STRIDES])
    count = len(centres)
    rows: list[tuple[npt.NDArray[Any], ...]] = []
    for picture in pictures:
        wanted, which = assign(picture, centres, sides)
        if len(picture.boxes):
            rows.append((wanted, picture.boxes[which], np.maximum(picture.kinds, 0)[which], picture.points[which]))
        else:
            rows.append((wanted, np.zeros((count, 4)), np.zeros(count, np.int64), np.zeros((count, POINTS, 2))))
    face, box, kind, points = (torch.from_numpy(np.stack(x)) for x in zip(*rows, strict=True))
    rgb = torch.from_numpy(np.stack([p.rgb for p in pictures])).permute(0, 3, 1, 2).float() / 255
    rgb = rgb.contiguous(memory_format=torch.channels_last)
    return Batch(rgb, face, box.float(), kind, points.float())


def losses(out: Tensor, batch: Batch) -> dict[str, Tensor]:
    """What the network is taught: to be as sure of a face as its box is right (quality focal loss, Li et al. 2020,
    arXiv:2006.04388), the box (GIoU, Rezatofighi et al. 2019, arXiv:1902.09630), the kind, the points.

    Args:
        out: (N, P, CHANNELS), as the network gives it.
    """
    assert out.shape[-1] == CHANNELS
    size = batch.rgb.shape[-1]
    centres = torch.from_numpy(cell_centres(size, size)).to(out.device)
    found = batch.face == 1
    count = found.sum().clamp(min=1)
    logits, sides, kinds, points = torch.split(out.float(), [1, 4, len(KINDS), 2 * POINTS], dim=2)
    middle = centres.expand(len(out), -1, -1)[found]
    boxes = torch.cat([middle - sides[found][:, :2], middle + sides[found][:, 2:]], dim=1)
    iou, giou = _iou(boxes, batch.box[found])
    target = torch.zeros_like(batch.face)
    target[found] = iou.detach().clamp(min=0.1)
    entropy = F.binary_cross_entropy_with_logits(logits[..., 0], target, reduction="none")
    focus = (logits[..., 0].sigmoid() - target).abs().square()
    wanted = batch.points[found]
    known = wanted.isfinite().all(dim=2).all(dim=1)
    scale = (batch.box[found][:, 2:] - batch.box[found][:, :2]).amax(dim=1)[:, None, None]
    away = (points[found].reshape(-1, POINTS, 2) + middle[:, None] - wanted)[known] / scale[known]
    return {
        "face": (focus * entropy)[batch.face >= 0].sum() / count,
        "box": (1 - giou).sum() / count,
        "kind": F.cross_entropy(kinds[found], batch.kind[found], reduction="sum") / count,
        "points": F.smooth_l1_loss(away, torch.zeros_like(away), beta=0.05, reduction="sum")
        / (2 * POINTS * known.sum().clamp(min=1)),
    }


def _iou(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """IoU and generalised IoU of (N, 4) boxes, pair by pair."""
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(dim=1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(dim=1)
    either = (a[:, 2:] - a[:, :2]).prod(dim=1) + (b[:, 2:] - b[:, :2]).prod(dim=1) - both
    iou = both / either.clamp(min=1e-6)
    return iou, iou - (hull - either) / hull.clamp(min=1e-6)
