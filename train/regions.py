"""Parts of a face to hide, other than masks, found by its landmarks."""

from collections.abc import Callable
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.train.masks import fill_polygon

U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]
Draw = Callable[[F32, np.random.Generator, tuple[int, int]], U8]

# Points of MediaPipe's mesh. Left and right are those of the picture.
_LIPS: Final = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 267, 0, 37, 40, 185)
_NOSE: Final = (168, 122, 351, 48, 64, 98, 2, 327, 294, 278)
_LEFT_EYE: Final = (33, 145, 133, 159, 70, 63, 105, 66, 107)
_RIGHT_EYE: Final = (263, 374, 362, 386, 300, 293, 334, 296, 336)
_JAW: Final = (234, 93, 132, 58, 172, 136, 150, 149, 176, 148, 152, 377, 400, 378, 379, 365, 397, 288, 361, 323, 454)
_NOSE_RIDGE: Final = 195
_MIDDLE: Final = (10, 152)
_LEFT_EAR: Final = 234


def _hull(points: F32, size: tuple[int, int]) -> U8:
    return fill_polygon(cv2.convexHull(points[:, :2].astype(np.float32))[:, 0], size)


def _grown(region: U8, landmarks: F32, share: float) -> U8:
    """A region with a rim of a share of the distance between the eyes."""
    radius = max(1, round(share * float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2]))))
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1))
    return np.asarray(cv2.dilate(region, disc), np.uint8)


def _part(indices: tuple[int, ...], rim: tuple[float, float]) -> Draw:
    def draw(landmarks: F32, rng: np.random.Generator, size: tuple[int, int]) -> U8:
        return _grown(_hull(landmarks[list(indices)], size), landmarks, float(rng.uniform(*rim)))

    return draw


def _eyes(landmarks: F32, rng: np.random.Generator, size: tuple[int, int]) -> U8:
    both = np.maximum(_hull(landmarks[list(_LEFT_EYE)], size), _hull(landmarks[list(_RIGHT_EYE)], size))
    return _grown(both, landmarks, float(rng.uniform(0.05, 0.15)))


def _half(left: bool) -> Draw:
    def draw(landmarks: F32, rng: np.random.Generator, size: tuple[int, int]) -> U8:
        top, bottom = landmarks[list(_MIDDLE), :2]
        down = bottom - top
        y, x = np.mgrid[: size[0], : size[1]].astype(np.float32)
        side = (x - top[0]) * down[1] - (y - top[1]) * down[0]
        ear = landmarks[_LEFT_EAR, :2] - top
        towards_left = np.sign(ear[0] * down[1] - ear[1] * down[0])
        return np.where((side * towards_left > 0) == left, _hull(landmarks, size), 0).astype(np.uint8)

    return draw


def _freeform(landmarks: F32, rng: np.random.Generator, size: tuple[int, int]) -> U8:
    """Brush strokes that start on the face, after the algorithm of Yu et al. 2019, arXiv:1806.03589."""
    picture = np.zeros(size, np.uint8)
    eye = float(np.linalg.norm(landmarks[33, :2] - landmarks[263, :2]))
    for _ in range(int(rng.integers(2, 6))):
        at = landmarks[rng.integers(len(landmarks)), :2].astype(np.float64)
        angle, width = rng.uniform(0, 2 * np.pi), max(2, round(eye * rng.uniform(0.12, 0.45)))
        for turn in range(int(rng.integers(2, 7))):
            angle += rng.uniform(0.3, 1.2) * (1 if turn % 2 else -1)
            to = at + eye * rng.uniform(0.2, 0.9) * np.array([np.cos(angle), np.sin(angle)])
            ends = [tuple(int(v) for v in np.round(p)) for p in (at, to)]
            cv2.line(picture, ends[0], ends[1], 255, width)
            cv2.circle(picture, ends[1], width // 2, 255, -1)
            at = to
    return picture


REGIONS: Final[dict[str, Draw]] = {
    "lower-face": _part((*_JAW, _NOSE_RIDGE), (0.0, 0.1)),
    "mouth": _part(_LIPS, (0.08, 0.25)),
    "nose": _part(_NOSE, (0.03, 0.12)),
    "eyes": _eyes,
    "left": _half(True),
    "right": _half(False),
    "freeform": _freeform,
}
"""Each draws (H, W) uint8, 255 where it hides, from (468, 2 or 3) landmarks in px."""
