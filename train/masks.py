"""Synthetic masks: outlines found by a face's landmarks, and the materials that are drawn into them.

All coordinates are px of the picture that the landmarks belong to; nothing here depends on its size.
"""

from dataclasses import dataclass, replace
from typing import Final, Literal

import cv2
import numpy as np
import numpy.typing as npt

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Worn = Literal["well", "under-nose", "under-mouth"]

LOOSE_SHARE: Final = 0.35
"""How many of the well worn masks that the inpainter learns on are wider than the face."""

# Points of MediaPipe's mesh, from the picture's left side of the face (the person's right) to the other side.
JAW: Final = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454)
"""Landmarks along the jaw, from ear to ear."""
_NOSE_LINE: Final = (168, 6, 197, 195, 5, 4, 1, 2, 0)
"""From between the eyes over the tip of the nose to the upper lip."""
_CHEEK_HIGH: Final = (117, 346)
_CHEEK_LOW: Final = (205, 425)
_SIDE_NOSE: Final = (49, 279)
_LOWER_FACE: Final = (4, 1, 2, 0, 17, 152, 48, 278, 61, 291, 50, 280, 205, 425, 195, 5, 175)


@dataclass(frozen=True, slots=True)
class Outline:
    """How a mask sits on a face; the defaults are a well worn surgical mask.

    Attributes:
        nose: where the upper edge crosses the nose, as a position along `_NOSE_LINE` (0 between the eyes, 1 upper lip).
        cheek: height of the upper edge on the cheeks, 0 just under the eye, 1 beside the nostrils.
        ear: how far the sides reach, 1 to the ear, 0.6 to the middle of the cheek.
        side_top, side_bottom: the ends of the side edge along the jaw line, 0 at the ear, 1 at the chin.
        chin: how far the lower edge hangs below the chin, in eye distances.
        puff: how far the mask stands off the face, in eye distances.
        bend: how round the outline is, 0 straight between its corners, 1 a smooth curve.
    """

    nose: float = 0.25
    cheek: float = 0.35
    ear: float = 0.92
    side_top: float = 0.05
    side_bottom: float = 0.35
    chin: float = 0.05
    puff: float = 0.04
    bend: float = 0.5


def random_outline(rng: np.random.Generator, worn: Worn = "well") -> Outline:
    """Draw how a mask sits, over the range seen on real photographs."""
    outline = Outline(
        nose=rng.uniform(0.05, 0.5),
        cheek=rng.uniform(0.0, 0.8),
        ear=rng.uniform(0.7, 1.04),
        side_top=rng.uniform(-0.05, 0.2),
        side_bottom=rng.uniform(0.2, 0.55),
        chin=rng.uniform(-0.06, 0.2),
        puff=rng.uniform(0.0, 0.12),
        bend=rng.uniform(0.0, 1.0),
    )
    if worn == "under-nose":
        return replace(outline, nose=rng.uniform(0.86, 0.97), cheek=rng.uniform(0.8, 1.1))
    if worn == "under-mouth":
        return replace(outline, nose=rng.uniform(1.3, 1.6), cheek=rng.uniform(1.4, 1.8), side_top=rng.uniform(0.2, 0.4))
    return outline


def raised(outline: Outline, rng: np.random.Generator) -> Outline:
    """The outline of a mask that is just being put on, or has slipped up over the eyes."""
    return replace(outline, nose=rng.uniform(-0.25, 0.02), cheek=rng.uniform(-1.2, -0.2), puff=rng.uniform(0.0, 0.15))


def loosened(outline: Outline, rng: np.random.Generator) -> Outline:
    """The outline of a mask that stands off the face, or is too large for it: its edge says little about the jaw."""
    return replace(
        outline,
        nose=max(outline.nose, rng.uniform(0.25, 0.5)),
        cheek=max(outline.cheek, rng.uniform(0.4, 0.9)),
        ear=rng.uniform(0.9, 1.1),
        chin=rng.uniform(0.0, 0.35),
        puff=rng.uniform(0.08, 0.22),
    )


def _along(points: F32, position: float) -> F32:
    """The point at `position` (0..1) along a polyline of (N, 2) points; beyond its ends the line goes on straight."""
    t = position * (len(points) - 1)
    i = int(np.clip(np.floor(t), 0, len(points) - 2))
    return np.asarray(points[i] + (t - i) * (points[i + 1] - points[i]), np.float32)


def smooth_outline(corners: F32, bend: float, steps: int = 8) -> F32:
    """A closed Catmull-Rom curve through (N, 2) corners, mixed with the straight polygon. Returns (N * steps, 2)."""
    t = np.linspace(0, 1, steps, endpoint=False, dtype=np.float32)[:, None]
    curve = []
    for i in range(len(corners)):
        a, b, c, d = (corners[(i + k) % len(corners)] for k in (-1, 0, 1, 2))
        round_ = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
        curve.append(bend * round_ + (1 - bend) * (b + t * (c - b)))
    return np.concatenate(curve).astype(np.float32)


def outline_corners(landmarks: F32, outline: Outline) -> F32:
    """Corner points (N, 2) of a mask on a face, clockwise as seen, starting at the nose.

    Args:
        landmarks: (468, 2 or 3) float32 px.
        outline: how the mask sits.
    """
    p = landmarks[:, :2]
    eye = float(np.linalg.norm(p[33] - p[263])) + 1e-6
    down = p[152] - p[168]
    down = down / (np.linalg.norm(down) + 1e-6)
    centre = p[list(_LOWER_FACE)].mean(axis=0)
    jaw = p[list(JAW)]
    nose = _along(p[list(_NOSE_LINE)], outline.nose)

    def side(which: int) -> list[F32]:
        line = jaw[:11] if which == 0 else jaw[:9:-1]
        cheek = _along(p[[_CHEEK_HIGH[which], _CHEEK_LOW[which]]], outline.cheek)
        inner = 0.55 * nose + 0.45 * cheek
        low = _along(line, outline.side_bottom)
        top = _along(line, outline.side_top)
        reach = [centre + outline.ear * (q - centre) for q in (top, low)]
        jaw_mid, jaw_low = (_along(line, x) + 0.5 * outline.chin * eye * down for x in (0.68, 0.86))
        return [inner, cheek, *reach, jaw_mid, jaw_low]

    chin = p[152] + outline.chin * eye * down
    corners = np.array([nose, *side(1), chin, *reversed(side(0))], np.float32)
    outward = corners - centre
    outward /= np.linalg.norm(outward, axis=1, keepdims=True) + 1e-6
    return np.asarray(corners + outline.puff * eye * outward, np.float32)


def fill_polygon(points: F32, size: tuple[int, int]) -> U8:
    """Coverage (H, W) uint8 0..255 of a closed polygon of (N, 2) float32 px, with smooth edges; size is (H, W)."""
    picture = np.zeros(size, np.uint8)
    cv2.fillPoly(picture, [np.round(points * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return picture


def mask_coverage(landmarks: F32, outline: Outline, size: tuple[int, int]) -> U8:
    """Where a mask hides the face: (H, W) uint8 0..255.

    On a turned head the outline is joined with the nose and lips that stick out of it, if the mask covers them.
    """
    curve = smooth_outline(outline_corners(landmarks, outline), outline.bend)
    coverage = fill_polygon(curve, size)
    if outline.nose < 0.6:
        hull = cv2.convexHull(landmarks[list(_LOWER_FACE), :2].astype(np.float32))[:, 0]
        np.maximum(coverage, fill_polygon(hull, size), out=coverage)
    return coverage


def lowered_coverage(landmarks: F32, rng: np.random.Generator, size: tuple[int, int]) -> U8:
    """Where a mask is that has been pulled down under the chin: (H, W) uint8 0..255.

    Its upper edge runs from jaw to jaw over the chin, its lower edge over the neck.
    """
    p = landmarks[:, :2]
    eye = float(np.linalg.norm(p[33] - p[263])) + 1e-6
    down = (p[152] - p[168]) / (np.linalg.norm(p[152] - p[168]) + 1e-6)
    top = p[17] + rng.uniform(0.35, 1.0) * (p[152] - p[17])
    hang = rng.uniform(0.1, 0.75) * eye
    out, end = rng.uniform(0.0, 0.12), rng.uniform(0.4, 0.68)

    def side(line: F32) -> list[F32]:
        tip, low = (q + out * (q - p[1]) for q in (_along(line, end), _along(line, 0.8)))
        inner = top + 0.5 * (_along(line, 0.84) - top) + 0.1 * (top - p[152])
        return [inner, tip, tip + 0.4 * hang * down, low + rng.uniform(0.8, 1.05) * hang * down]

    jaw = p[list(JAW)]
    corners = np.array([top, *side(jaw[:9:-1]), p[152] + hang * down, *reversed(side(jaw[:11]))], np.float32)
    return fill_polygon(smooth_outline(corners, rng.uniform(0.3, 1.0)), size)


def straps(landmarks: F32, rng: np.random.Generator, size: tuple[int, int], lowered: bool = False) -> U8:
    """Coverage (H, W) uint8 of ear loops: thin lines from the sides of the mask, which may be `lowered` under the chin,
    to the ears."""
    picture = np.zeros(size, np.uint8)
    p = landmarks[:, :2]
    share = rng.uniform(0.015, 0.05) if rng.random() < 0.5 else rng.uniform(0.05, 0.14)
    width = max(1, round(float(np.linalg.norm(p[33] - p[263])) * share))
    sides = ((234, 172, 150), (454, 397, 379)) if lowered else ((234, 50, 136), (454, 280, 365))
    for ear, high, low in sides:
        target = p[ear] + (p[ear] - p[1]) * rng.uniform(0.0, 0.12)
        for start in (high, low):
            begin = p[start] + (p[ear] - p[start]) * (0.0 if lowered else rng.uniform(0.2, 0.5))
            ends = [tuple(int(v) for v in np.round(q * 16)) for q in (begin, target)]
            cv2.line(picture, ends[0], ends[1], 255, width, cv2.LINE_AA, shift=4)
    return picture


def hidden_region(landmarks: F32, rng: np.random.Generator, size: tuple[int, int]) -> F32:
    """A random region for the inpainter to learn on: mostly masks as they are worn, dilated as a careful segmenter
    would, sometimes with straps.

    Returns:
        (H, W) float32, 0 or 1.
    """
    worn: Worn = str(rng.choice(["well", "under-nose", "under-mouth"], p=[0.85, 0.1, 0.05]))  # type: ignore[assignment]
    outline = random_outline(rng, worn)
    if worn == "well" and rng.random() < LOOSE_SHARE:
        outline = loosened(outline, rng)
    region = mask_coverage(landmarks, outline, size)
    if rng.random() < 0.3:
        np.maximum(region, straps(landmarks, rng, size), out=region)
    margin = int(rng.integers(0, max(2, round(0.045 * size[0]))))
    if margin:
        region = cv2.dilate(region, cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * margin + 1, 2 * margin + 1)))
    return (region > 127).astype(np.float32)
