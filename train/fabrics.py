"""Printed cloth: pictures of fabrics, and prints that are drawn, as the material of a mask.

A fabric is (H, W, 3) float32 RGB 0..1, flat, as it lies on a table; its borders need not fit each other.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.train.data import PICTURE_SUFFIXES, read_rgb
from unmask.train.materials import F32, Material, Sheet, noise, seamed

U8 = npt.NDArray[np.uint8]
Ink = tuple[float, float, float]

_FOLDER: Final = "textures"
_SIDE: Final = 256
_PICTURED_SHARE: Final = 0.5
"""How many prints are pictures, where there are some."""
_SKIN: Final = (0.8, 0.6, 0.5)


def load_fabrics(folder: Path) -> list[F32]:
    """Read the pictures of fabrics beside mask pictures, in `textures/` there, as MaskTheFace has them; may be none.

    Raises:
        UserError: one cannot be read.
    """
    found = sorted(p for p in (folder / _FOLDER).rglob("*") if p.suffix.lower() in PICTURE_SUFFIXES)
    pictures = [cv2.resize(read_rgb(p), (_SIDE, _SIDE), interpolation=cv2.INTER_AREA) for p in found]
    return [np.asarray(p, np.float32) / np.float32(255) for p in pictures]


def printed(fabrics: Sequence[F32] = ()) -> Material:
    """The material of a mask that is sewn from one of some fabrics or from one that is drawn, with pleats or a seam."""

    def material(sheet: Sheet, rng: np.random.Generator) -> F32:
        if fabrics and rng.random() < _PICTURED_SHARE:
            fabric = _recoloured(fabrics[int(rng.integers(len(fabrics)))], rng)
        else:
            fabric = _DRAWN[int(rng.integers(len(_DRAWN)))](rng)
        return seamed(_laid_on(fabric, sheet, rng), sheet, rng)

    return material


def _laid_on(fabric: F32, sheet: Sheet, rng: np.random.Generator) -> F32:
    """(H, W, 3): the fabric on a mask, at a random scale and turn; it goes on in mirror images of itself."""
    width = 2.0 / (float(np.abs(np.diff(sheet.u, axis=1)).mean()) + 1e-6)
    side = int(np.clip(width / rng.uniform(0.6, 3.5), 12, 2 * _SIDE))
    small = cv2.resize(fabric, (side, side), interpolation=cv2.INTER_AREA)
    turn = rng.uniform(0, 2 * np.pi) if rng.random() < 0.4 else rng.normal(0, 0.1)
    u, v = sheet.u * width / 2, sheet.v * width / 2
    x, y = np.cos(turn) * u - np.sin(turn) * v, np.sin(turn) * u + np.cos(turn) * v
    at = rng.uniform(0, side, 2)
    x, y = (np.asarray(p + a, np.float32) for p, a in zip((x, y), at, strict=True))
    return np.asarray(cv2.remap(small, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101), np.float32)


def _recoloured(fabric: F32, rng: np.random.Generator) -> F32:
    """Half of them in other colours, some inverted or faded."""
    if rng.random() < 0.5:
        return fabric
    hsv = cv2.cvtColor(fabric, cv2.COLOR_RGB2HSV)
    hsv[..., 0] = (hsv[..., 0] + rng.uniform(0, 360)) % 360
    hsv[..., 1] *= rng.uniform(0.3, 1.1)
    turned = np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB), 0, 1)
    return np.asarray(1 - turned if rng.random() < 0.3 else turned, np.float32)


def _colour(rng: np.random.Generator) -> F32:
    """A colour of cloth: any, a pale one, nearly none, or one of skin and of what lies beside it, mustard to rust."""
    kind = rng.random()
    if kind < 0.2:
        return np.asarray(np.array(_SKIN) * rng.uniform(0.4, 1.25) + rng.normal(0, 0.06, 3), np.float32).clip(0, 1)
    hue, saturation, value = rng.uniform(0, 360), rng.uniform(0.2, 1.0), rng.uniform(0.15, 1.0)
    if kind < 0.4:
        hue, saturation = rng.uniform(0, 55), rng.uniform(0.4, 1.0)
    elif kind < 0.55:
        saturation = rng.uniform(0, 0.12)
    rgb = cv2.cvtColor(np.array([[[hue, saturation, value]]], np.float32), cv2.COLOR_HSV2RGB)
    return np.asarray(rgb[0, 0], np.float32)


def _ink(rng: np.random.Generator) -> Ink:
    red, green, blue = (_colour(rng) * 255).tolist()
    return red, green, blue


def _cloth(rng: np.random.Generator) -> F32:
    return np.broadcast_to(_colour(rng), (_SIDE, _SIDE, 3)).copy()


def _plain(rng: np.random.Generator) -> F32:
    return _cloth(rng)


def _dyed(rng: np.random.Generator) -> F32:
    """Clouds of some colours, soft as batik or with borders as camouflage."""
    fabric = _cloth(rng)
    hard = rng.random() < 0.5
    for _ in range(int(rng.integers(1, 5))):
        level = noise(rng, (_SIDE, _SIDE), rng.uniform(3, 24)) - rng.uniform(-0.5, 1.0)
        share = (level > 0).astype(np.float32) if hard else np.clip(0.5 + level, 0, 1)
        fabric += share[..., None] * (_colour(rng) - fabric)
    return fabric


def _woven(rng: np.random.Generator) -> F32:
    """Stripes of several widths in one direction or in both, as tartan."""
    fabric, along = _cloth(rng), np.arange(_SIDE) / _SIDE
    for axis in (0, 1)[: int(rng.integers(1, 3))]:
        for _ in range(int(rng.integers(1, 4))):
            count, width = int(rng.integers(3, 20)), rng.uniform(0.08, 0.6)
            stripe = ((along * count + rng.uniform()) % 1 < width).astype(np.float32) * rng.uniform(0.4, 1.0)
            share = stripe[:, None, None] if axis else stripe[None, :, None]
            fabric += share * (_colour(rng) - fabric)
    return fabric


def _with_motifs(rng: np.random.Generator) -> F32:
    """Dots, rings, dashes, stars, flowers or letters, in rows or strewn."""
    fabric = np.asarray(_cloth(rng) * 255, np.uint8)
    for _ in range(int(rng.integers(1, 4))):
        motif = _MOTIFS[int(rng.integers(len(_MOTIFS)))]
        inks = [_ink(rng) for _ in range(int(rng.integers(1, 4)))]
        cell = float(rng.uniform(14, 80))
        size, stray = cell * rng.uniform(0.15, 0.55), cell * rng.choice([0.0, 0.4])
        shift, first = rng.uniform(0, 0.5), rng.uniform(0, cell, 2)
        for row in range(int(_SIDE / cell) + 2):
            for column in range(int(_SIDE / cell) + 2):
                at = first + cell * np.array([column + shift * (row % 2) - 1, row - 1]) + rng.normal(0, 1, 2) * stray
                motif(fabric, at, size, inks[int(rng.integers(len(inks)))], rng)
    return fabric.astype(np.float32) / np.float32(255)


def _polygon(fabric: U8, points: F32, ink: Ink) -> None:
    cv2.fillPoly(fabric, [np.rint(points * 16).astype(np.int32)], ink, cv2.LINE_AA, 4)


def _dot(fabric: U8, at: F32, size: float, ink: Ink, rng: np.random.Generator) -> None:
    thickness = -1 if rng.random() < 0.7 else max(1, round(size / 4))
    place = (round(float(at[0])), round(float(at[1])))
    cv2.circle(fabric, place, max(1, round(size / 2)), ink, thickness, cv2.LINE_AA)


def _dash(fabric: U8, at: F32, size: float, ink: Ink, rng: np.random.Generator) -> None:
    box = np.array([[-1, -0.2], [1, -0.2], [1, 0.2], [-1, 0.2]]) * size / 1.4
    _polygon(fabric, np.asarray(at + box @ _turn(rng.choice([0.0, 0.0, rng.uniform(0, np.pi)])), np.float32), ink)


def _star(fabric: U8, at: F32, size: float, ink: Ink, rng: np.random.Generator) -> None:
    spikes = int(rng.integers(3, 8))
    angle = np.arange(2 * spikes) * np.pi / spikes + rng.uniform(0, np.pi)
    radius = np.where(np.arange(2 * spikes) % 2, rng.uniform(0.3, 0.9), 1.0) * size / 1.6
    _polygon(fabric, np.asarray(at + radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1), np.float32), ink)


def _flower(fabric: U8, at: F32, size: float, ink: Ink, rng: np.random.Generator) -> None:
    petals, begin = int(rng.integers(4, 8)), rng.uniform(0, np.pi)
    for k in range(petals):
        angle = begin + 2 * np.pi * k / petals
        place = at + 0.32 * size * np.array([np.cos(angle), np.sin(angle)])
        axes = (max(1, round(0.28 * size)), max(1, round(0.14 * size)))
        centre = (round(float(place[0])), round(float(place[1])))
        cv2.ellipse(fabric, centre, axes, float(np.degrees(angle)), 0, 360, ink, -1, cv2.LINE_AA)
    _dot(fabric, at, 0.3 * size, _ink(rng), rng)


def _letter(fabric: U8, at: F32, size: float, ink: Ink, rng: np.random.Generator) -> None:
    letters = "".join(chr(c) for c in rng.integers(65, 91, int(rng.integers(1, 5))))
    place = (round(float(at[0])), round(float(at[1])))
    cv2.putText(fabric, letters, place, int(rng.integers(0, 5)), size / 30, ink, 1 + round(size / 20), 16)


def _turn(angle: float) -> F32:
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]], np.float32)


_MOTIFS: Final = (_dot, _dash, _star, _flower, _letter)
_DRAWN: Final = (_plain, _dyed, _woven, _with_motifs, _with_motifs, _with_motifs)
