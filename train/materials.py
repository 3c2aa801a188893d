"""Masks as they look: materials drawn into an outline, mask pictures warped onto a face, things in front of them.

Colours are float32 0..1 RGB, coverages float32 0..1; coordinates are px of the picture.
"""

import configparser
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.errors import UserError
from unmask.train.masks import (
    JAW,
    Outline,
    Worn,
    _along,
    fill_polygon,
    loosened,
    lowered_coverage,
    mask_coverage,
    outline_corners,
    raised,
    random_outline,
    smooth_outline,
    straps,
)

F32 = npt.NDArray[np.float32]

_SURGICAL: Final = (
    (0.62, 0.8, 0.9),
    (0.45, 0.68, 0.85),
    (0.93, 0.95, 0.96),
    (0.6, 0.84, 0.8),
    (0.95, 0.75, 0.82),
    (0.1, 0.1, 0.12),
)
_N95: Final = ((0.93, 0.93, 0.92), (0.88, 0.89, 0.88), (0.75, 0.77, 0.78), (0.16, 0.16, 0.17))


@dataclass(frozen=True, slots=True)
class Masked:
    """A face with a mask drawn on it.

    Attributes:
        rgb: (H, W, 3) float32, 0..1.
        coverage: (H, W) float32, 0..1: where mask is seen (not where a hand is in front of it).
    """

    rgb: F32
    coverage: F32


@dataclass(frozen=True, slots=True)
class Sheet:
    """Coordinates on the mask.

    Attributes:
        u: (H, W) float32 across the face, -1..1 from ear to ear.
        v: (H, W) float32 down, 0 at the nose's root, 1 at the chin.
        eye: distance of the outer corners of the eyes in px.
    """

    u: F32
    v: F32
    eye: float


def _sheet(landmarks: F32, size: tuple[int, int]) -> Sheet:
    p = landmarks[:, :2]
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
    across = p[454] - p[234]
    down = p[152] - p[6]
    frame = np.linalg.inv(np.column_stack([across / 2, down]) + 1e-6 * np.eye(2)).astype(np.float32)
    dx, dy = x - p[6, 0], y - p[6, 1]
    middle = float((frame @ (p[1] - p[6]))[0])  # on a turned head the middle of the mask is where the nose is
    u = frame[0, 0] * dx + frame[0, 1] * dy
    v = frame[1, 0] * dx + frame[1, 1] * dy
    return Sheet(u - middle * np.clip(1 - np.abs(u), 0, 1), v, float(np.linalg.norm(p[33] - p[263])) + 1e-6)


def noise(rng: np.random.Generator, size: tuple[int, int], cells: float) -> F32:
    """Smooth noise of zero mean and unit deviation with about `cells` bumps across the picture."""
    count = max(2, round(cells))
    coarse = rng.normal(size=(count + 1, count + 1)).astype(np.float32)
    return np.asarray(cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC), np.float32)


def _plain(colour: npt.ArrayLike, size: tuple[int, int]) -> F32:
    return np.broadcast_to(np.asarray(colour, np.float32), (*size, 3)).copy()


def surgical(sheet: Sheet, rng: np.random.Generator) -> F32:
    """Three or four pleats that bow with the face, a nose wire, a seam at the top."""
    colour = np.array(_SURGICAL[rng.integers(len(_SURGICAL))]) + rng.normal(0, 0.06, 3)
    bow = sheet.v - rng.uniform(0.05, 0.25) * sheet.u**2
    phase, count, depth = rng.uniform(0, 1), rng.uniform(2.5, 5), rng.uniform(0.0, 0.12)
    fold = (bow * count + phase) % 1.0
    shade = 1.0 - depth * np.exp(-(((fold - 0.5) / rng.uniform(0.06, 0.2)) ** 2))
    wire_at = rng.uniform(0.2, 0.4)
    wire = np.exp(-(((bow - wire_at) / 0.018) ** 2)) * (np.abs(sheet.u) < rng.uniform(0.25, 0.5))
    shade += rng.normal(0, 0.08) * wire
    return np.asarray(_plain(colour, shade.shape) * shade[..., None], np.float32)


def respirator(sheet: Sheet, rng: np.random.Generator) -> F32:
    """A stiff cup (N95, FFP2): a ridge down the middle or across, sometimes a valve and printed lines."""
    colour = np.array(_N95[rng.integers(len(_N95))]) + rng.normal(0, 0.03, 3)
    ridge = sheet.u if rng.random() < 0.6 else sheet.v - rng.uniform(0.4, 0.7)
    shade = 1.0 + rng.normal(0, 0.1) * np.tanh(ridge * rng.uniform(2, 8))
    shade -= rng.uniform(0, 0.15) * np.exp(-((ridge / 0.03) ** 2))
    picture = _plain(colour, shade.shape) * shade[..., None]
    if rng.random() < 0.35:
        at_u, at_v, radius = rng.uniform(-0.35, 0.35), rng.uniform(0.4, 0.7), rng.uniform(0.1, 0.18)
        distance = np.hypot(sheet.u - at_u, (sheet.v - at_v) * 1.2) / radius
        disc = 0.5 - 0.5 * np.tanh((distance - 1) * 10)
        valve = np.array(_N95[rng.integers(len(_N95))]) * (0.9 + 0.15 * np.cos(distance * 9))[..., None]
        picture += disc[..., None] * (valve - picture)
    if rng.random() < 0.3:
        line = (np.abs(sheet.u - rng.uniform(-0.3, 0.3)) < 0.2) & (np.abs(sheet.v - rng.uniform(0.4, 0.8)) < 0.04)
        picture -= line[..., None] * 0.3 * (noise(rng, shade.shape, 60)[..., None] > 0)
    return np.asarray(picture, np.float32)


def cloth(sheet: Sheet, rng: np.random.Generator) -> F32:
    """Any colour, plain, in halves, stripes, checks, dots or blotches, with a seam down the middle or soft folds."""
    size = sheet.u.shape
    if rng.random() < 0.45:
        grey = rng.choice([0.05, 0.1, 0.2, 0.5, 0.9])
        colours = np.clip(grey + rng.normal(0, 0.03, (2, 3)), 0, 1)
    else:
        colours = rng.uniform(0, 1, (2, 3))
    if rng.random() < 0.15:  # the hardest to tell: the colours of skin
        colours = np.array([0.8, 0.6, 0.5]) * rng.uniform(0.4, 1.2) + rng.normal(0, 0.05, (2, 3))
    kind = rng.choice(["plain", "halves", "stripes", "checks", "dots", "blotches"], p=[0.45, 0.1, 0.1, 0.1, 0.1, 0.15])
    turn, pitch = rng.uniform(0, np.pi), rng.uniform(4, 16)
    a = np.sin(pitch * (np.cos(turn) * sheet.u + np.sin(turn) * sheet.v))
    b = np.sin(pitch * (np.cos(turn) * sheet.v - np.sin(turn) * sheet.u))
    level = {
        "plain": np.zeros(size),
        "halves": sheet.u > 0,
        "stripes": a > rng.uniform(-0.5, 0.5),
        "checks": 0.5 * (a > 0) + 0.5 * (b > 0),
        "dots": (a * b) > rng.uniform(0.5, 0.8),
        "blotches": noise(rng, size, rng.uniform(6, 30)) > rng.uniform(-0.5, 1),
    }[str(kind)]
    picture = colours[0] + np.asarray(level, np.float32)[..., None] * (colours[1] - colours[0])
    shade = 1 + rng.uniform(0, 0.06) * noise(rng, size, rng.uniform(3, 10))
    if rng.random() < 0.5:
        shade -= rng.uniform(0, 0.25) * np.exp(-((sheet.u / 0.02) ** 2))
        shade += rng.normal(0, 0.06) * np.sign(sheet.u)
    return np.asarray(picture * shade[..., None], np.float32)


def seamed(picture: F32, sheet: Sheet, rng: np.random.Generator) -> F32:
    """(H, W, 3) in and out: soft folds, and the pleats or the seam that a mask is sewn with."""
    shade = 1 + rng.uniform(0, 0.08) * noise(rng, sheet.u.shape, rng.uniform(3, 10))
    if rng.random() < 0.4:
        bow = sheet.v - rng.uniform(0.05, 0.25) * sheet.u**2
        fold = (bow * rng.uniform(2, 5) + rng.uniform(0, 1)) % 1.0
        shade -= rng.uniform(0.02, 0.25) * np.exp(-(((fold - 0.5) / rng.uniform(0.04, 0.2)) ** 2))
    elif rng.random() < 0.7:
        shade -= rng.uniform(0, 0.25) * np.exp(-((sheet.u / 0.02) ** 2))
        shade += rng.normal(0, 0.06) * np.sign(sheet.u)
    return np.asarray(picture * shade[..., None], np.float32)


def _light(rgb: F32, coverage: F32, eye: float, rng: np.random.Generator) -> F32:
    """How the face's own light falls on the mask: (H, W), about 1 on average."""
    luma = rgb @ np.array([0.299, 0.587, 0.114], np.float32)
    soft = cv2.GaussianBlur(luma, (0, 0), max(1.0, 0.22 * eye))
    mean = float((soft * coverage).sum() / (coverage.sum() + 1e-6)) + 1e-3
    return np.asarray(np.power(np.clip(soft / mean, 0.3, 2.0), rng.uniform(0.3, 1.1)), np.float32)


def _exposure(rgb: F32, rng: np.random.Generator) -> float:
    """How bright a white mask would be in this picture, judged by its bright parts."""
    bright = float(np.percentile(rgb.max(axis=2), 85))
    return float(np.clip(bright * rng.uniform(0.85, 1.35), 0.15, 1.1))


def _compose(rgb: F32, material: F32, coverage: F32, eye: float, rng: np.random.Generator) -> F32:
    """Light the material, throw its shadow onto the skin, and lay it over the face."""
    light = _light(rgb, coverage, eye, rng) * _exposure(rgb, rng)
    edge = coverage - cv2.erode(coverage, np.ones((3, 3), np.uint8), iterations=max(1, round(0.02 * eye)))
    light = light * (1 - rng.uniform(-0.08, 0.2) * edge)
    reach = max(0.8, rng.uniform(0.01, 0.08) * eye)
    shadow = cv2.GaussianBlur(coverage, (0, 0), reach) * rng.uniform(0, 0.45)
    offset = np.array([[1, 0, rng.normal(0, 0.02) * eye], [0, 1, rng.normal(0.02, 0.02) * eye]])
    shadow = cv2.warpAffine(shadow, offset, shadow.shape[::-1])
    skin = rgb * (1 - shadow * (1 - coverage))[..., None]
    lit = np.clip(material, 0, 1) * light[..., None]
    soft = cv2.GaussianBlur(coverage, (0, 0), rng.uniform(0.3, 1.2))[..., None]
    return np.asarray(np.clip(skin + soft * (lit - skin), 0, 1), np.float32)


_LOWERED_SHARE: Final = 0.1
"""How many drawn masks are pulled down under the chin."""
_RAISED_SHARE: Final = 0.04
_LOOSE_SHARE: Final = 0.25
"""Of those worn well: how many cover the eyes, and how many stand off the face."""
_LIPS: Final = (61, 40, 37, 0, 267, 270, 291, 321, 314, 17, 84, 91)
Material = Callable[[Sheet, np.random.Generator], F32]


class Kind(NamedTuple):
    """A kind of mask.

    Args:
        make: what it is made of.
        share: of all masks that are drawn, 0..1.
        own_loops: whether its ear loops may be of its cloth; else they are grey.
    """

    make: Material
    share: float
    own_loops: bool


MATERIALS: Final = {
    "surgical": Kind(surgical, 0.4, own_loops=False),
    "n95": Kind(respirator, 0.2, own_loops=False),
    "cloth": Kind(cloth, 0.4, own_loops=True),
}


def draw_mask(
    rgb: F32,
    landmarks: F32,
    rng: np.random.Generator,
    kind: str | Material | None = None,
    outline: Outline | None = None,
    *,
    varied: bool = False,
) -> Masked:
    """Draw a mask onto a bare face.

    Args:
        rgb: (H, W, 3) float32, 0..1.
        landmarks: (468, 3) float32 px.
        rng: where chance comes from; the same state draws the same mask.
        kind: a key of `MATERIALS`, or what it is made of; random if None.
        outline: how it sits; random if None.
        varied: whether random ones include masks too large for the face, and over the eyes.
    """
    size = rgb.shape[:2]
    kind = kind or str(rng.choice(list(MATERIALS), p=[one.share for one in MATERIALS.values()]))
    drawn = MATERIALS[kind] if isinstance(kind, str) else Kind(kind, 0.0, own_loops=True)
    lowered = outline is None and rng.random() < _LOWERED_SHARE
    if lowered:
        coverage = lowered_coverage(landmarks, rng, size)
    else:
        outline = outline or (varied_outline(rng) if varied else random_outline(rng, random_wearing(rng)))
        coverage = mask_coverage(landmarks, outline, size)
    sheet = _sheet(landmarks, size)
    material = drawn.make(sheet, rng)
    full = coverage.astype(np.float32) / np.float32(255)
    under = Masked(rgb, np.zeros(size, np.float32))
    if rng.random() < 0.8:
        loops = material if drawn.own_loops and rng.random() < 0.5 else None
        under = _with_loops(rgb, landmarks, full, loops, rng, lowered)
    return Masked(_compose(under.rgb, material, full, sheet.eye, rng), np.maximum(full, under.coverage))


def _with_loops(
    rgb: F32, landmarks: F32, mask: F32, material: F32 | None, rng: np.random.Generator, lowered: bool = False
) -> Masked:
    """A face with the ear loops of a mask that covers (H, W) `mask`; grey ones if no material is given."""
    size = mask.shape[:2]
    band = np.clip(straps(landmarks, rng, size, lowered).astype(np.float32) / np.float32(255) - mask, 0, 1)
    eye = float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2])) + 1e-6
    loops = _plain(rng.uniform(0, 1) * np.ones(3), size) if material is None else material
    return Masked(_compose(rgb, loops, band, eye, rng), band)


def varied_outline(rng: np.random.Generator) -> Outline:
    """How a drawn mask sits: some are too large for the face, a few cover the eyes."""
    worn = random_wearing(rng)
    outline, chance = random_outline(rng, worn), rng.random()
    if worn == "well" and chance < _RAISED_SHARE:
        return raised(outline, rng)
    return loosened(outline, rng) if worn == "well" and chance > 1 - _LOOSE_SHARE else outline


_LOOP_COLOURS: Final = ((0.97, 0.97, 0.97), (0.85, 0.86, 0.88), (0.06, 0.06, 0.07))


def add_long_loops(masked: Masked, landmarks: F32, rng: np.random.Generator) -> Masked:
    """Ear loops from the rear corners of a mask across the cheek, as they are seen from the side.

    Args:
        masked: a face and its mask, which may be turned.
        landmarks: (468, 3) float32 px, those of the face as it is seen; only ears that look at the camera get a loop.
        rng: where chance comes from.
    """
    size = masked.coverage.shape[:2]
    p, depth = landmarks[:, :2], landmarks[:, 2]
    eye = float(np.linalg.norm(landmarks[33] - landmarks[263])) + 1e-6
    up = (p[10] - p[152]) / (np.linalg.norm(p[10] - p[152]) + 1e-6)
    solid = (masked.coverage > 0.5).astype(np.uint8)
    outlines, _ = cv2.findContours(solid, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    if not outlines:
        return masked
    outline = max(outlines, key=len)[:, 0].astype(np.float32)
    width = max(2, round(eye * float(rng.choice([rng.uniform(0.012, 0.035), rng.uniform(0.035, 0.09)]))))
    picture = np.zeros(size, np.uint8)
    for ear, other in ((234, 454), (454, 234)):
        if depth[ear] - depth[other] > 0.5 * eye:
            continue  # on the far side of the head
        behind = p[ear] - outline.mean(axis=0)
        behind = behind / (np.linalg.norm(behind) + 1e-6)
        top = p[ear] + (p[ear] - p[1]) * rng.uniform(-0.05, 0.2) + rng.uniform(0.0, 0.25) * eye * up
        bottom = top if rng.random() < 0.15 else top - rng.uniform(0.2, 0.6) * eye * up
        for end, way in ((top, behind + rng.uniform(0.6, 1.4) * up), (bottom, behind - rng.uniform(0.6, 1.4) * up)):
            corner = outline[int((outline @ way).argmax())]
            _draw_loop(picture, corner, np.asarray(end, np.float32), width, rng)
    band = np.clip(picture.astype(np.float32) / np.float32(255) - masked.coverage, 0, 1)
    known = len(_LOOP_COLOURS)
    colour = rng.uniform(0, 1, 3) if rng.random() < 0.2 else np.array(_LOOP_COLOURS[int(rng.integers(known))])
    rgb = _compose(masked.rgb, _plain(colour + rng.normal(0, 0.02, 3), size), band, eye, rng)
    return Masked(rgb, np.maximum(masked.coverage, band))


def _draw_loop(picture: npt.NDArray[np.uint8], begin: F32, end: F32, width: int, rng: np.random.Generator) -> None:
    """A line that bends a little; its end may lie under hair."""
    along = end - begin
    bend = (begin + end) / 2 + float(rng.normal(0, 0.07)) * np.array([-along[1], along[0]], np.float32)
    t = np.linspace(0, 1.0 if rng.random() < 0.6 else rng.uniform(0.5, 1.0), 16, dtype=np.float32)[:, None]
    curve = (1 - t) ** 2 * begin + 2 * t * (1 - t) * bend + t**2 * end
    cv2.polylines(picture, [np.round(curve * 16).astype(np.int32)], False, 255, width, cv2.LINE_AA, shift=4)


def random_wearing(rng: np.random.Generator) -> Worn:
    """Mostly as it should be, sometimes under the nose or the mouth."""
    wearing: tuple[Worn, ...] = ("well", "under-nose", "under-mouth")
    return wearing[int(rng.choice(3, p=[0.84, 0.1, 0.06]))]


@dataclass(frozen=True, slots=True)
class Template:
    """A picture of a mask with alpha.

    Attributes:
        name: from the configuration.
        rgba: (H, W, 4) float32, 0..1.
        anchors: (6, 2) float32 px: upper edge left, middle, right; lower edge left, middle, right.
    """

    name: str
    rgba: F32
    anchors: F32


def load_templates(folder: Path) -> list[Template]:
    """Read the mask pictures that `masks.cfg` in a folder lists (the format of MaskTheFace).

    Raises:
        UserError: the folder or a picture is missing.
    """
    config = configparser.ConfigParser()
    if not config.read(folder / "masks.cfg"):
        raise UserError(f"no masks.cfg in '{folder}'")
    templates = []
    for name in (n for n in config.sections() if "template" in config[n]):
        section = config[name]
        bgra = cv2.imread(str(folder / section["template"]), cv2.IMREAD_UNCHANGED)
        if bgra is None or bgra.shape[2] != 4:
            raise UserError(f"'{folder / section['template']}' is not a picture with alpha")
        rgba = cv2.cvtColor(bgra, cv2.COLOR_BGRA2RGBA).astype(np.float32) / 255
        anchors = np.array([[float(v) for v in section[f"mask_{c}"].split(",")] for c in "abcdef"], np.float32)
        templates.append(Template(name, rgba, anchors))
    return templates


def wear_template(
    rgb: F32, landmarks: F32, template: Template, rng: np.random.Generator, jitter: float = 1.0
) -> Masked:
    """Warp a mask picture onto a face by six points on the mask's outline.

    Args:
        rgb, landmarks, rng: as for `draw_mask`.
        template: which picture.
        jitter: how far the points stray from a textbook fit.
    """
    size = rgb.shape[:2]
    outline = Outline(nose=0.3 + jitter * rng.uniform(-0.15, 0.15), chin=0.03 + jitter * rng.uniform(-0.03, 0.1))
    corners = outline_corners(landmarks, outline)
    nose, right, chin, left = corners[0], corners[1:7], corners[7], corners[8:][::-1]
    wanted = np.array([left[2], nose, right[2], _along(left[3:5], 0.5), chin, _along(right[3:5], 0.5)], np.float32)
    eye = float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2])) + 1e-6
    wanted += (rng.normal(0, 0.03 * jitter, wanted.shape) * eye).astype(np.float32)
    scale = eye * 1.7 / max(template.rgba.shape[1], 1)
    source, anchors = template.rgba, template.anchors
    if scale < 0.6:  # shrink first, or the warp aliases
        source = cv2.resize(source, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        anchors = anchors * scale
    matrix, _ = cv2.findHomography(anchors, wanted)
    if matrix is None:
        return draw_mask(rgb, landmarks, rng)
    warped = cv2.warpPerspective(source, matrix, size[::-1], flags=cv2.INTER_LINEAR)
    if not _fits(warped[..., 3], mask_coverage(landmarks, outline, size)):
        return draw_mask(rgb, landmarks, rng)  # six points of a head turned far away can fold the picture over
    alpha = np.asarray(warped[..., 3], np.float32).copy()
    under = Masked(rgb, np.zeros(size, np.float32))
    if jitter and rng.random() < 0.4:
        under = _with_loops(rgb, landmarks, alpha, None, rng)
    return Masked(_compose(under.rgb, warped[..., :3], alpha, eye, rng), np.maximum(alpha, under.coverage))


def _fits(alpha: F32, coverage: npt.NDArray[np.uint8]) -> bool:
    """Whether a warped picture covers about the face's own outline (IoU above a half)."""
    a, b = alpha > 0.5, coverage > 127
    return bool(2 * (a & b).sum() > (a | b).sum())


def grow_beard(rgb: F32, landmarks: F32, rng: np.random.Generator) -> F32:
    """A beard around mouth and chin, which a segmenter must not take for a mask worn there. (H, W, 3) in and out."""
    size = rgb.shape[:2]
    eye = float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2])) + 1e-6
    outline = Outline(
        nose=rng.uniform(0.92, 1.3), cheek=rng.uniform(1.0, 1.5), side_top=rng.uniform(0.1, 0.4), chin=0.0
    )
    cover = mask_coverage(landmarks, outline, size).astype(np.float32) / np.float32(255)
    lips = fill_polygon(landmarks[list(_LIPS), :2], size).astype(np.float32) / np.float32(255)
    cover = cv2.GaussianBlur(np.clip(cover - lips, 0, 1), (0, 0), max(0.5, rng.uniform(0.02, 0.08) * eye))
    hair = np.array([0.35, 0.22, 0.14]) * rng.uniform(0.15, 1.8) + rng.uniform(0, 0.3)
    strands = noise(rng, size, rng.uniform(40, 90)) * rng.uniform(0.1, 0.35)
    cover = cover * np.clip(rng.uniform(0.35, 0.95) + strands, 0, 1)
    lit = np.clip(hair * (1 + strands)[..., None], 0, 1) * _exposure(rgb, rng)
    return np.asarray(np.clip(rgb + cover[..., None] * (lit - rgb), 0, 1), np.float32)


def wear_collar(rgb: F32, landmarks: F32, rng: np.random.Generator) -> F32:
    """A turtleneck, scarf or collar up to the chin, sometimes over it, which a segmenter must not take for a mask worn
    there. (H, W, 3) in and out."""
    size = rgb.shape[:2]
    p = landmarks[:, :2]
    sheet = _sheet(landmarks, size)
    across = (p[397] - p[172]) / 2
    down = sheet.eye * (p[152] - p[168]) / (np.linalg.norm(p[152] - p[168]) + 1e-6)
    if rng.random() < 0.5:
        top = p[152] + rng.uniform(-0.15, 0.4) * down
        wide, raised = rng.uniform(0.9, 1.9), rng.uniform(-0.1, 0.3)
        ends = [top + side * wide * across - raised * down for side in (-1, 1)]
        edge = [ends[0], top - 0.4 * across, top + 0.4 * across, ends[1]]
    else:  # along the jaw, as hoods and shawls lie
        skipped = int(rng.integers(2, len(JAW) // 2 - 2))
        jaw = p[list(JAW[skipped : len(JAW) - skipped])]
        edge = list(jaw + rng.uniform(-0.05, 0.15) * (jaw - p[1]))
        edge = edge if np.dot(edge[-1] - edge[0], across) > 0 else edge[::-1]
    hems = [edge[-1 if side > 0 else 0] + side * rng.uniform(0.0, 0.8) * across + 4 * down for side in (1, -1)]
    corners = np.array([*edge, *hems], np.float32)
    cover = fill_polygon(smooth_outline(corners, rng.uniform(0.2, 0.9)), size).astype(np.float32) / np.float32(255)
    return _compose(rgb, cloth(sheet, rng), cover, sheet.eye, rng)


class _Thing:
    """Something in front of the face, drawn bit by bit.

    Attributes:
        cover: (H, W) uint8 0..255, where it is.
        shade: (H, W) float32, how light falls on it.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        self.cover = np.zeros(size, np.uint8)
        self.shade = np.ones(size, np.float32)

    def finger(self, tip: npt.NDArray[np.float64], base: npt.NDArray[np.float64], width: float) -> None:
        """A rounded stroke, lit from the front and dark at its sides, so that neighbours can be told apart."""
        cv2.line(self.cover, _px(tip), _px(base), 255, max(1, round(width)), cv2.LINE_AA)
        for share, light in ((1.1, 0.72), (0.85, 0.88), (0.55, 1.0)):
            cv2.line(self.shade, _px(tip), _px(base), light, max(1, round(share * width)), cv2.LINE_AA)


def _draw_hand(thing: _Thing, target: npt.NDArray[np.float64], eye: float, rng: np.random.Generator) -> None:
    """A hand that holds the mask: a palm, four fingers side by side with tips near `target`, perhaps a thumb."""
    turn = rng.uniform(0, 2 * np.pi)
    along, across = np.array([np.cos(turn), np.sin(turn)]), np.array([-np.sin(turn), np.cos(turn)])
    width, length = rng.uniform(0.16, 0.34) * eye, rng.uniform(0.6, 1.4) * eye
    palm = target + along * (length + 1.5 * width)
    thing.finger(palm, palm + along * 4 * eye, 3.2 * width)
    axes = (round(2.2 * width), round(2.4 * width))
    for where, colour in ((thing.cover, 255.0), (thing.shade, 0.95)):
        cv2.ellipse(where, _px(palm + along * width), axes, float(np.degrees(turn)), 0, 360, colour, -1, cv2.LINE_AA)
    for k in rng.permutation(4):
        tip = target + across * (k - 1.5) * width * rng.uniform(0.95, 1.3) + along * rng.uniform(0, 0.35) * length
        thing.finger(tip, palm + across * (k - 1.5) * width * 0.9, width)
    if rng.random() < 0.5:
        side = 2.2 * width * (1 if rng.random() < 0.5 else -1)
        thing.finger(
            palm + across * 1.8 * side - along * 0.3 * length, palm + across * 0.6 * side + along * width, width
        )


def _draw_fingers(thing: _Thing, target: npt.NDArray[np.float64], eye: float, rng: np.random.Generator) -> None:
    """One to four fingers side by side."""
    turn, width = rng.uniform(0, 2 * np.pi), max(2.0, eye * rng.uniform(0.13, 0.28))
    for k in range(int(rng.integers(1, 5))):
        tip = target + k * width * 1.05 * np.array([-np.sin(turn), np.cos(turn)])
        base = tip + rng.uniform(1.0, 2.2) * eye * np.array([np.cos(turn + 0.05 * k), np.sin(turn + 0.05 * k)])
        thing.finger(tip, base, width)


def put_in_front(masked: Masked, bare: F32, landmarks: F32, rng: np.random.Generator) -> Masked:
    """Put something in front of the face: a hand or fingers of its own skin colour, a microphone, a flat thing."""
    size = bare.shape[:2]
    p = landmarks[:, :2]
    eye = float(np.linalg.norm(p[33] - p[263])) + 1e-6
    thing = _Thing((size[0], size[1]))
    target = p[[1, 13, 152, 205, 425, 58, 288][rng.integers(7)]] + rng.normal(0, 0.15, 2) * eye
    kind = rng.choice(["hand", "fingers", "microphone", "flat"], p=[0.5, 0.2, 0.12, 0.18])
    x, y = np.clip(p[151], 0, np.array(size[::-1]) - 1).astype(int)
    colour = bare[y, x] * rng.uniform(0.8, 1.15)
    if kind == "hand":
        _draw_hand(thing, target, eye, rng)
    elif kind == "fingers":
        _draw_fingers(thing, target, eye, rng)
    elif kind == "microphone":
        colour = rng.uniform(0, 0.35) * np.ones(3)
        radius = max(2, round(eye * rng.uniform(0.15, 0.35)))
        target = target + np.array([0, 0.4 * eye])
        cv2.circle(thing.cover, _px(target), radius, 255, -1, cv2.LINE_AA)
        base = target + np.array([rng.normal(0, 0.5), 2.5]) * eye
        cv2.line(thing.cover, _px(target), _px(base), 255, max(1, radius), cv2.LINE_AA)
    else:
        colour = rng.uniform(0, 1, 3)
        box = cv2.boxPoints((tuple(map(float, target)), tuple(rng.uniform(0.2, 1.0, 2) * eye), rng.uniform(0, 180)))
        cv2.fillPoly(thing.cover, [np.round(box).astype(np.int32)], 255, cv2.LINE_AA)
    cover = thing.cover.astype(np.float32) / np.float32(255)
    shade = np.power(cv2.blur(thing.shade, (3, 3)), rng.uniform(0.5, 1.5)) + 0.1 * noise(rng, size, rng.uniform(4, 16))
    shade += rng.uniform(-0.2, 0.2) * (cv2.blur(cover, (9, 9)) - 0.5)
    picture = masked.rgb + cover[..., None] * (np.clip(colour * shade[..., None], 0, 1) - masked.rgb)
    return Masked(np.asarray(picture, np.float32), np.asarray(masked.coverage * (1 - cover), np.float32))


def _px(point: npt.NDArray[np.float64] | F32) -> tuple[int, int]:
    return round(float(point[0])), round(float(point[1]))


def cut_off(masked: Masked, rng: np.random.Generator) -> Masked:
    """A face at the border of the picture, beyond which the last pixels are repeated."""
    height, width = masked.coverage.shape
    left, right = (int(v * width) for v in rng.uniform(0.0, 0.3, 2))
    top, bottom = (int(v * height) for v in rng.uniform(0.0, 0.3, 2))
    inner = np.s_[top : height - bottom, left : width - right]
    rgb, coverage = (
        cv2.copyMakeBorder(np.ascontiguousarray(x[inner]), top, bottom, left, right, cv2.BORDER_REPLICATE)
        for x in (masked.rgb, masked.coverage)
    )
    return Masked(rgb, coverage)


def degrade(rgb: F32, rng: np.random.Generator) -> F32:
    """What cameras and codecs do: blur, low resolution, noise, sharpening, JPEG. (H, W, 3) float32 0..1 in and out."""
    size = rgb.shape[:2]
    if rng.random() < 0.35:
        rgb = cv2.GaussianBlur(rgb, (0, 0), rng.uniform(0.3, 0.012 * size[0]))
    if rng.random() < 0.35:
        factor = rng.uniform(0.25, 0.9)
        small = np.asarray(cv2.resize(rgb, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.float32)
        if rng.random() < 0.3:
            small = _sharpened(small, rng)
        if rng.random() < 0.5:  # compressed while it was small: colours bleed over several pixels
            small = _compressed(small, rng)
        rgb = np.asarray(cv2.resize(small, size[::-1], interpolation=cv2.INTER_LINEAR), np.float32)
    if rng.random() < 0.4:
        rgb = rgb + rng.uniform(0.005, 0.05) * rng.standard_normal(rgb.shape, np.float32)
    if rng.random() < 0.25:
        rgb = _sharpened(rgb, rng)
    if rng.random() < 0.5:
        return _compressed(rgb, rng)
    return np.clip(rgb * 255, 0, 255).astype(np.uint8).astype(np.float32) / np.float32(255)


def _sharpened(rgb: F32, rng: np.random.Generator) -> F32:
    """As phones and websites do it, too strongly: unsharp masking."""
    blurred = cv2.GaussianBlur(rgb, (0, 0), float(rng.uniform(0.002, 0.008)) * rgb.shape[0])
    return np.asarray(np.clip(rgb + rng.uniform(0.3, 1.5) * (rgb - blurred), 0, 1), np.float32)


def _compressed(rgb: F32, rng: np.random.Generator) -> F32:
    picture = np.clip(rgb * 255, 0, 255).astype(np.uint8)
    _, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(20, 95))])
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.float32) / np.float32(255)
