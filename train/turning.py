"""Turns a frontal face, with the mask it wears, towards profile: pictures of profiles are rare in face data sets.

The picture is taken for a surface whose depth the landmarks give, turned, and drawn again point by point, far ones
first. What was not seen from the front (the side of the head, hair) is stretched or guessed: good enough to learn from
where a mask ends; nose, mouth and jaw are good enough to paint from up to some 65 degrees.
"""

from dataclasses import dataclass
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.train.masks import fill_polygon
from unmask.train.materials import Masked

F32 = npt.NDArray[np.float32]

_LEFT_EAR, _RIGHT_EAR, _FOREHEAD, _CHIN, _NOSE_TIP = 234, 454, 10, 152, 1
_GRID: Final = 48
_FINER: Final = (2, 4)
"""How many points are drawn per px down and across: the side of the head is stretched when it turns to the front."""


@dataclass(frozen=True, slots=True)
class Turn:
    """How far a head is turned, in radians.

    Attributes:
        yaw: positive towards the right of the picture.
        pitch: positive downwards, of the head as it is seen.
        nod: positive downwards, of the head before it turns: what leans the profile.
        puff: how far the mask stands off the face, in distances of the outer eye corners.
        axis: where between the tip of the nose (0) and the ears (1) the head turns.
    """

    yaw: float
    pitch: float = 0.0
    nod: float = 0.0
    puff: float = 0.1
    axis: float = 0.5


_UPRIGHT: Final = -8.0
"""Degrees: as the landmarks have it, people on pictures lean their heads forward by that, and their chins recede."""


def random_turn(rng: np.random.Generator, most: float = 82.0) -> Turn:
    """Anything from a fifth turned to `most` degrees, by default almost full profile, under a mask that is flat or
    stands out."""
    yaw = float(np.radians(rng.uniform(20, most))) * (1 if rng.random() < 0.5 else -1)
    puff = rng.uniform(0.0, 0.3) if rng.random() < 0.5 else rng.uniform(0.3, 0.6)
    pitch, nod = (float(np.radians(rng.normal(mean, deviation))) for mean, deviation in ((0, 7), (_UPRIGHT, 5)))
    return Turn(yaw, pitch, nod, puff, rng.uniform(0.4, 0.8))


def _depth(points: F32, size: int) -> F32:
    """(S, S) float32 px, larger is farther: that of the landmarks near each pixel."""
    at = (np.arange(_GRID, dtype=np.float32) + 0.5) * size / _GRID
    dx, dy = at[None, :, None] - points[:, 0], at[:, None, None] - points[:, 1]
    squares = (dx**2 + dy**2) / (2 * (0.03 * size) ** 2)
    weight = np.exp(-(squares - squares.min(axis=2, keepdims=True)))
    coarse = (weight @ points[:, 2]) / weight.sum(axis=2)
    return np.asarray(cv2.resize(coarse.astype(np.float32), (size, size), interpolation=cv2.INTER_LINEAR))


def _head(points: F32, size: int) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.uint8]]:
    """(S, S) uint8 0/255 each: the face with hair and neck, and the face alone."""
    p = points[:, :2]
    middle, across = (p[_LEFT_EAR] + p[_RIGHT_EAR]) / 2, p[_RIGHT_EAR] - p[_LEFT_EAR]
    width, up = float(np.linalg.norm(across)), p[_FOREHEAD] - p[_CHIN]
    angle = np.linspace(0, 2 * np.pi, 48, endpoint=False, dtype=np.float32)[:, None]
    centre = (p[_FOREHEAD] + p[_CHIN]) / 2 + 0.12 * up
    around = centre + 0.57 * np.cos(angle) * across + 0.62 * np.sin(angle) * up
    head = fill_polygon(around.astype(np.float32), (size, size))
    sides = (-0.4, 0.4)
    neck = [middle + s * across for s in sides] + [p[_CHIN] - 2 * up + s * across * 1.3 for s in sides[::-1]]
    np.maximum(head, fill_polygon(np.array(neck, np.float32), (size, size)), out=head)
    face = fill_polygon(cv2.convexHull(p.astype(np.float32))[:, 0], (size, size))
    return head, np.asarray(cv2.erode(face, np.ones((3, 3), np.uint8), iterations=max(1, round(0.01 * width))))


def _surface(masked: Masked, points: F32, puff: float) -> F32:
    """(S, S) float32 px: the depth of the face, its head and its mask."""
    size = masked.coverage.shape[0]
    eye = float(np.linalg.norm(points[33, :2] - points[263, :2])) + 1e-6
    _, face = _head(points, size)
    depth = _depth(points, size)
    beyond = cv2.distanceTransform(255 - face, cv2.DIST_L2, 3)
    depth = depth + np.minimum(1.2 * beyond, 0.8 * eye)
    mask = (masked.coverage > 0.5).astype(np.uint8)
    inner = cv2.distanceTransform(mask, cv2.DIST_L2, 3) / (0.35 * eye)
    bridged = np.minimum(depth, cv2.GaussianBlur(depth, (0, 0), 0.12 * eye))
    return np.asarray(np.where(mask > 0, bridged - puff * eye * np.minimum(inner, 1), depth), np.float32)


def rotation_of(turn: Turn) -> npt.NDArray[np.float64]:
    """(3, 3): of x to the right, y down, z away from the camera."""

    def down(angle: float) -> npt.NDArray[np.float64]:
        c, s = np.cos(angle), np.sin(angle)
        return np.array([[1, 0, 0], [0, c, -s], [0, s, c]])

    c, s = np.cos(turn.yaw), np.sin(turn.yaw)
    return np.asarray(down(turn.pitch) @ np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]]) @ down(turn.nod))


def turn_head(masked: Masked, points: F32, behind: F32, turn: Turn) -> tuple[Masked, F32]:
    """Draw a masked (or bare) frontal face as it looks when turned.

    Args:
        masked: the face and where its mask is; (S, S, 3) and (S, S).
        points: (468, 3) float32 landmarks in px of it.
        behind: (S, S, 3) float32, what is seen behind the head.
        turn: how far.

    Returns:
        The turned face, and its landmarks (468, 3) float32.
    """
    size = masked.coverage.shape[0]
    head, _ = _head(points, size)
    axis_z = points[_NOSE_TIP, 2] + turn.axis * (points[[_LEFT_EAR, _RIGHT_EAR], 2].mean() - points[_NOSE_TIP, 2])
    pivot = np.array([*points[[_LEFT_EAR, _RIGHT_EAR], :2].mean(axis=0), axis_z])
    rotation, surface = rotation_of(turn), _surface(masked, points, turn.puff)
    # What is splatted is where each pixel comes from, so that points may lie half as dense as pixels.
    finer = (size * _FINER[1] // 2, size * _FINER[0] // 2)
    depth, inside = (cv2.resize(x, finer, interpolation=cv2.INTER_LINEAR) for x in (surface, head))
    rows, columns = np.nonzero(inside > 127)
    source = np.stack([columns * (size / finer[0]), rows * (size / finer[1])], axis=1)
    where = (np.column_stack([source, depth[rows, columns]]) - pivot) @ rotation.T + pivot
    came_from, seen = _splat(where, source.astype(np.float32), size)
    came_from = cv2.medianBlur(came_from, 5)  # where the surface is stretched, what is behind it shows through as dots
    rgb, coverage = (
        cv2.remap(x, came_from[..., 0], came_from[..., 1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        for x in (masked.rgb, masked.coverage)
    )
    ground = _back_of_head(behind, masked.rgb, points, turn)
    shown = ground + seen[..., None] * (rgb - ground)
    turned = ((points - pivot) @ rotation.T + pivot).astype(np.float32)
    return Masked(np.clip(shown, 0, 1).astype(np.float32), np.asarray(coverage * seen, np.float32)), turned


def _splat(where: npt.NDArray[np.float64], values: F32, size: int) -> tuple[F32, F32]:
    """Draw points into a picture, far ones first.

    Args:
        where: (N, 3) x, y in px, z depth.
        values: (N, C) float32.
        size: of the picture.

    Returns:
        (S, S, C) float32, and (S, S) float32 0..1: how much of each pixel was drawn, soft at the outline.
    """
    x, y = (np.round(where[:, i]).astype(np.int64) for i in (0, 1))
    kept = (x >= 0) & (x < size) & (y >= 0) & (y < size)
    depth = where[kept, 2]
    span = np.ptp(depth) + 1e-6
    order = np.argsort((65535 * (1 - (depth - depth.min()) / span)).astype(np.uint16), kind="stable")
    at = (y[kept] * size + x[kept])[order]
    picture = np.zeros((size * size, values.shape[1]), np.float32)
    drawn = np.zeros(size * size, np.float32)
    picture[at], drawn[at] = values[kept][order], 1
    return _without_holes(picture.reshape(size, size, -1), drawn.reshape(size, size))


def _without_holes(picture: F32, drawn: F32) -> tuple[F32, F32]:
    """Fill pixels (S, S, C) between points that were `drawn` (S, S); give both, the latter soft at the outline."""
    for _ in range(2):
        weight = cv2.blur(drawn, (3, 3))
        holes = (drawn == 0) & (weight > 0.3)  # between points, not beside them
        picture[holes] = (cv2.blur(picture, (3, 3)) / np.maximum(weight, 1e-6)[..., None])[holes]
        drawn[holes] = 1
    return picture, np.minimum(drawn, cv2.blur(drawn, (3, 3)))


def _back_of_head(behind: F32, rgb: F32, points: F32, turn: Turn) -> F32:
    """What is behind the face with the back of the head drawn into it, in the colour above the forehead."""
    size = behind.shape[0]
    p = points[:, :2]
    width = float(np.linalg.norm(p[_RIGHT_EAR] - p[_LEFT_EAR]))
    up = p[_FOREHEAD] - p[_CHIN]
    hair_at = np.clip(p[_FOREHEAD] + 0.2 * up, 0, size - 1).astype(int)
    hair = rgb[hair_at[1], hair_at[0]]
    centre = (p[_LEFT_EAR] + p[_RIGHT_EAR]) / 2 + 0.22 * up - np.array([0.55 * np.sin(turn.yaw) * width, 0])
    picture = behind.copy()
    axes = (round(0.55 * width), round(0.6 * float(np.linalg.norm(up))))
    at = (round(float(centre[0])), round(float(centre[1])))
    cv2.ellipse(picture, at, axes, 0, 0, 360, tuple(map(float, hair)), -1, cv2.LINE_AA)
    return picture
