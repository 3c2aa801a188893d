"""Glasses drawn on bare faces: few pictures show them, many people who wear masks do."""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_EYES: Final = ((33, 133), (263, 362))
"""Outer and inner corner of the right and of the left eye, as the person has them."""
_TEMPLES: Final = (127, 356)
_BRIDGE: Final = 168
_SHIFT: Final = 4
"""Bits behind the point of coordinates that OpenCV draws at."""
_CORNERS: Final = 48


@dataclass(frozen=True, slots=True)
class Glasses:
    """A face with glasses.

    Attributes:
        rgb: (H, W, 3) float32, 0..1.
        frame: (H, W) float32, 0..1: where the frame of the glasses is, without the lenses.
    """

    rgb: F32
    frame: F32


@dataclass(frozen=True, slots=True)
class _Model:
    """A pair of glasses in eye distances: half width and half height of a lens, how far below the eye its middle lies,
    its roundness (2: an ellipse, more: towards a rectangle), thickness of the frame, whether there is a lower rim."""

    width: float
    height: float
    below: float
    roundness: float
    thickness: float
    lower_rim: bool


def _random_model(rng: np.random.Generator, lowest: float) -> _Model:
    width = rng.uniform(0.36, 0.46)
    return _Model(
        width=width,
        height=width * rng.uniform(0.55, 1.0),
        below=rng.uniform(0.02, lowest),
        roundness=rng.uniform(2.0, 4.5),
        thickness=rng.uniform(0.018, 0.075),
        lower_rim=rng.random() < 0.85,
    )


def wear_glasses(rgb: F32, landmarks: F32, rng: np.random.Generator, lowest: float = 0.14) -> Glasses:
    """Put random glasses on a face.

    Args:
        rgb: (H, W, 3) float32, 0..1.
        landmarks: (468, 2 or more) float32 px.
        rng: where chance comes from.
        lowest: how far below the eyes the middle of the lenses lies at most, in eye distances.
    """
    size = rgb.shape[:2]
    model, points = _random_model(rng, lowest), landmarks[:, :2].astype(np.float64)
    lenses = [_lens(points, side, model) for side in (0, 1)]
    inside = np.zeros(size, np.uint8)
    cv2.fillPoly(inside, [_fixed(lens) for lens in lenses], 255, cv2.LINE_AA, _SHIFT)
    frame = _draw_frame(points, lenses, model, size)
    cover = (frame.astype(np.float32) / np.float32(255))[..., None]
    glass = (inside.astype(np.float32) / np.float32(255))[..., None]
    shaded = _with_shadow(rgb, cover[..., 0], _distance(points), rng)
    behind = shaded + glass * (_seen_through(shaded, rng) - shaded)
    return Glasses(np.asarray(behind + cover * (_material(size, rng) - behind), np.float32), cover[..., 0])


def _distance(points: F64) -> float:
    """Between the eyes, px."""
    right, left = (points[list(pair)].mean(axis=0) for pair in _EYES)
    return float(np.linalg.norm(left - right)) + 1e-6


def _axes(points: F64) -> tuple[F64, F64]:
    """Unit vectors across the face, from its right to its left, and down."""
    right, left = (points[list(pair)].mean(axis=0) for pair in _EYES)
    across = (left - right) / (np.linalg.norm(left - right) + 1e-6)
    return across, np.array([-across[1], across[0]])


def _lens(points: F64, side: int, model: _Model) -> F64:
    """(N, 2) outline of a lens, from its inner end over its top to its outer end and back below: a superellipse,
    narrower on the side that a turned head hides."""
    across, down = _axes(points)
    eye, distance = points[list(_EYES[side])].mean(axis=0), _distance(points)
    near = 2 * abs(float((eye - points[_BRIDGE]) @ across)) / distance
    angle = np.linspace(0, 2 * np.pi, _CORNERS, endpoint=False)
    outwards = -1.0 if side == 0 else 1.0
    power = 2 / model.roundness
    x = -np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** power * model.width * distance * near * outwards
    y = -np.sign(np.sin(angle)) * np.abs(np.sin(angle)) ** power * model.height * distance
    middle = eye + model.below * distance * down + 0.04 * distance * outwards * across
    return np.asarray(middle + x[:, None] * across + y[:, None] * down)


def _draw_frame(points: F64, lenses: list[F64], model: _Model, size: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """(H, W) uint8: rims, bridge and the beginning of the temples."""
    frame = np.zeros(size, np.uint8)
    distance = _distance(points)
    thick = max(1, round(model.thickness * distance))
    half = _CORNERS // 2 + 1
    for lens, temple in zip(lenses, _TEMPLES, strict=True):
        if model.lower_rim:
            cv2.polylines(frame, [_fixed(lens)], True, 255, thick, cv2.LINE_AA, _SHIFT)
        else:
            cv2.polylines(frame, [_fixed(lens[:half])], False, 255, thick, cv2.LINE_AA, _SHIFT)
        upper = lens[half - 1] + 0.3 * (lens[_CORNERS // 4] - lens.mean(axis=0)) * (0, 1)
        cv2.polylines(frame, [_fixed(np.array([upper, points[temple]]))], False, 255, thick, cv2.LINE_AA, _SHIFT)
    _, down = _axes(points)
    inner = [lens[1] for lens in lenses]
    top = np.mean(inner, axis=0) - 0.06 * distance * down
    cv2.polylines(frame, [_fixed(np.array([inner[0], top, inner[1]]))], False, 255, thick, cv2.LINE_AA, _SHIFT)
    return frame


def _fixed(points: F64) -> npt.NDArray[np.int32]:
    return np.round(points * (1 << _SHIFT)).astype(np.int32)


def _material(size: tuple[int, ...], rng: np.random.Generator) -> F32:
    """(H, W, 3) colour of a frame: black, brown, metal or any, lighter where light falls on it."""
    colours = ((0.05, 0.05, 0.06), (0.25, 0.15, 0.08), (0.55, 0.53, 0.5), (0.7, 0.58, 0.35))
    kind = int(rng.choice(5, p=[0.5, 0.15, 0.15, 0.08, 0.12]))
    colour = np.array(colours[kind]) if kind < len(colours) else rng.uniform(0, 0.9, 3)
    coarse = rng.normal(0, 0.06, (9, 9)).astype(np.float32)
    light = cv2.resize(coarse, (size[1], size[0]), interpolation=cv2.INTER_CUBIC)
    return np.asarray(np.clip(colour + light[..., None], 0, 1), np.float32)


def _with_shadow(rgb: F32, frame: F32, distance: float, rng: np.random.Generator) -> F32:
    """The face with the shadow that a frame throws."""
    move = np.array([[1, 0, rng.normal(0, 0.02)], [0, 1, rng.uniform(0.01, 0.06)]]) * (1, 1, distance)
    shadow = cv2.warpAffine(frame, move, frame.shape[::-1])
    shadow = cv2.GaussianBlur(shadow, (0, 0), max(0.5, 0.02 * distance)) * np.float32(rng.uniform(0, 0.35))
    return np.asarray(rgb * (1 - shadow[..., None]), np.float32)


def _seen_through(rgb: F32, rng: np.random.Generator) -> F32:
    """The face through a lens: clear, tinted or nearly black, at times with a streak of light on it."""
    tint = rng.uniform(0.6, 0.95) if rng.random() < 0.1 else rng.uniform(0, 0.12)
    colour = rng.uniform(0, 0.25, 3) if tint > 0.5 else rng.uniform(0.2, 1.0, 3)
    out = rgb + np.float32(tint) * (colour.astype(np.float32) - rgb)
    if rng.random() < 0.3:
        y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]].astype(np.float32) / rgb.shape[0]
        turn, at, wide = rng.uniform(0, np.pi), rng.uniform(0.2, 0.8), rng.uniform(0.02, 0.1)
        away = (np.cos(turn) * x + np.sin(turn) * y - at) / wide
        out = out + (np.float32(rng.uniform(0.05, 0.4)) * np.exp(-(away**2)))[..., None] * (1 - out)
    return np.asarray(np.clip(out, 0, 1), np.float32)
