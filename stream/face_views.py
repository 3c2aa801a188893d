"""A face as it was seen, where it is now: turned as the head has turned since, in its present light."""

from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, fit_affine, transform_landmarks, transform_points
from unmask.models.outline import disc, hull, spread
from unmask.models.seen import EYES_AND_BROWS, Seen, above
from unmask.stream.frame import U8

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_CELLS: Final = 32
"""Cells along a side of the crop, for what changes slowly from pixel to pixel: how far a face turns, and its light."""
_SMOOTH_CELLS: Final = 1.5
_FAINT: Final = 0.05
"""Landmarks per cell under which nothing is known: the face ends there."""
_GAIN: Final = (0.7, 1.4)
"""How far the light may have changed as a whole."""
_SHADE: Final = 40.0
"""And by how much more (of 255) in one place."""
_BROAD_PX: Final = 14.0
"""Of a face of another day, what is broader (standard deviation) is light and colour, what is narrower its shape."""
_COARSER: Final = 4
_OUTLIER: Final = (25.0, 2.0)
_OUTLIER_PX: Final = 9
"""Hair, background and beards are no light: what differs by more than that (mean of 9x9 px, of 255), and by more than
twice as much as most of it."""
_FEWEST: Final = 150
"""Px of the crop at half size by which a likeness can be told."""
_COARSE_PX: Final = 33
"""What is broader than that at half size is light, not shape."""
_EYES_PX: Final = 6
"""How far around their landmarks eyes and brows are compared."""
_EYES_COARSE_PX: Final = 17
"""The same for eyes and brows of another day, whose light was another."""
_FIT_STEPS: Final = 2
_FIT_PX: Final = 8.0
_SMOOTH_SLOPE: Final = 1.0
"""What is seen beside a mask says to a fraction of a pixel where the face is. Landmarks say it better where that would
be far off, and where slopes (mean square, in grey levels per px) are as small as on a forehead."""
_WINDOW: Final = (21, 21)
_LEVELS: Final = 3
_BACK_PX: Final = 1.0
"""How near a feature that is followed there and back must come to where it was."""
_AGREES_PX: Final = 3.0
_AGREE: Final = (10, 0.4)
"""How many features, and what share of those that are found again, must move as one similarity says to within
`_AGREES_PX`."""
_LARGER: Final = 1.2
_TILTED: Final = 0.3
"""By how much a head is larger or smaller at most than a moment before, and tilted, radians."""


def followed(before: Seen, rgb: U8, known: U8, expected: F32) -> F32 | None:
    """Where the landmarks of a face are that was seen a moment before, told by what is seen of it above its eyes: the
    optical flow of features there (Lucas and Kanade 1981, in Bouguet's pyramids) and the similarity that they agree on.

    Args:
        before: the face as it was seen.
        rgb: (S, S, 3) uint8, its canonical crop now, which may lie beside where it should.
        known: (S, S) uint8, above 0 where that can be trusted.
        expected: (468, 3) float32, where the landmarks are, to some 20 px of the crop.

    Returns:
        (468, 3) float32 px of the crop; None where too little is seen, or it does not agree.
    """
    if len(before.features) < _AGREE[0]:
        return None
    grey, now = (cv2.cvtColor(x, cv2.COLOR_RGB2GRAY) for x in (before.crop, rgb))
    ahead, _ = fit_affine(before.points[:, :2], expected[:, :2])
    there = transform_points(ahead, before.features[:, 0]).copy().reshape(-1, 1, 2)
    there, found, _ = _flow(grey, now, before.features, there)
    back, again, _ = _flow(now, grey, there, before.features.copy())
    x, y = np.clip(np.rint(there[:, 0]), 0, CROP_SIZE - 1).astype(int).T
    good = (found[:, 0] & again[:, 0] & (known[y, x] > 0)) > 0
    good &= np.linalg.norm((back - before.features)[:, 0], axis=1) < _BACK_PX
    if good.sum() < _AGREE[0]:
        return None
    there = there[good]
    matrix, agreeing = cv2.estimateAffinePartial2D(before.features[good], there, ransacReprojThreshold=_AGREES_PX)
    if matrix is None or agreeing.sum() < _AGREE[0] or agreeing.mean() < _AGREE[1]:
        return None
    zoom = float(np.hypot(*matrix[:, 0]))
    if not 1 / _LARGER < zoom < _LARGER or abs(np.arctan2(matrix[1, 0], matrix[0, 0])) > _TILTED:
        return None
    return transform_landmarks(np.asarray(matrix, np.float64), before.points)


def resemblance(before: Seen, rgb: U8, known: U8, points: F32) -> float:
    """Correlation (-1..1) of what was seen of a face above its eyes to what is, if its landmarks lie at `points`;
    arguments as of `as_now`. 0 where too little can be seen."""
    ahead, _ = fit_affine(before.points[:, :2], points[:, :2])
    moved = cv2.warpAffine(before.crop, ahead, 2 * (CROP_SIZE,), borderMode=cv2.BORDER_REPLICATE)
    where = _at_half(cv2.bitwise_and(above(points), known)) == 255
    if where.sum() < _FEWEST:
        return 0.0
    then, now = (
        _shapes(cv2.cvtColor(_at_half(x), cv2.COLOR_RGB2GRAY), where) for x in (np.asarray(moved, np.uint8), rgb)
    )
    return _correlation(then[where], now[where])


def _flow(before: U8, now: U8, points: F32, guess: F32) -> tuple[F32, U8, F32]:
    flags = cv2.OPTFLOW_USE_INITIAL_FLOW
    return cv2.calcOpticalFlowPyrLK(before, now, points, guess, winSize=_WINDOW, maxLevel=_LEVELS, flags=flags)


class Then(NamedTuple):
    """A face as it was, where it is now.

    Attributes:
        rgb: (S, S, 3) uint8, the face around where it was asked for, and the present picture elsewhere.
        likeness: correlation (-1..1) of shapes around eyes and brows, then and now: 0.87 to 0.98 at the median of four
            people, 0.4 for somebody else. 1 where too little can be seen.
    """

    rgb: U8
    likeness: float


def as_now(before: Seen, rgb: U8, known: U8, points: F32, wanted: U8) -> Then:
    """Move a face that was seen before to where it is now, and into its present light.

    Args:
        before: the face as it was seen.
        rgb: (S, S, 3) uint8, its canonical crop now.
        known: (S, S) uint8, above 0 where that can be trusted: not where a mask and its shadow are.
        points: (468, 3) float32, its landmarks in px of that crop.
        wanted: (S, S) uint8, above 0 where it is asked for.
    """
    source, back = _turned(before.points, points)
    then, now = _at_half(before.crop), _at_half(rgb)
    known = _at_half(cv2.bitwise_and(hull(points, CROP_SIZE), cv2.compare(known, 0, cv2.CMP_GT)))
    known = np.asarray(cv2.compare(known, 255, cv2.CMP_EQ), np.uint8)  # nothing of the mask's border
    maps = cv2.resize(source, known.shape[::-1]) / 2 - 0.25
    move, likeness = _fit(then, maps, now, known > 0)
    shift = (back[:, :2] @ move).astype(np.float32)
    then = _looked_up(then, maps + shift / 2, cv2.INTER_LINEAR)
    gain, shade = _light(then, now, known)
    x, y, width, height = cv2.boundingRect(wanted)
    part, moved = np.s_[y : y + height, x : x + width], rgb.copy()
    if width:
        warped = _looked_up(before.crop, source[part] + shift, cv2.INTER_CUBIC)
        lit = cv2.add(cv2.multiply(warped, (*gain.tolist(), 0.0), dtype=cv2.CV_32F), shade[part])
        moved[part] = cv2.convertScaleAbs(np.maximum(lit, 0.0))
    return Then(moved, likeness)


def eyes_likeness(before: Seen, rgb: U8, known: U8, points: F32) -> float:
    """Correlation (-1..1) of shapes of eyes and brows, on another day and now; arguments as of `as_now`. 0 where too
    little can be seen. On pairs of photos (`benchmarks/photos.py`, heads less than 15 degrees apart) it tells the same
    person from others in 85 of 100 cases, the likeness of `as_now` in 78, which is for the same day."""
    source, back = _turned(before.points, points)
    then, now = _at_half(before.crop), _at_half(rgb)
    seen = _at_half(cv2.bitwise_and(hull(points, CROP_SIZE), cv2.compare(known, 0, cv2.CMP_GT))) == 255
    eyes = [cv2.dilate(hull(points[list(eye)], CROP_SIZE), disc(_EYES_PX)) for eye in EYES_AND_BROWS]
    where = seen & (_at_half(cv2.bitwise_or(*eyes)) == 255)
    if where.sum() < _FEWEST:
        return 0.0
    maps = cv2.resize(source, seen.shape[::-1]) / 2 - 0.25
    move, _ = _fit(then, maps, now, seen)
    moved = _looked_up(then, maps + (back[:, :2] @ move).astype(np.float32) / 2, cv2.INTER_LINEAR)
    shapes = (_shapes(cv2.cvtColor(x, cv2.COLOR_RGB2GRAY), seen, _EYES_COARSE_PX) for x in (moved, now))
    one, other = (x[where] for x in shapes)
    return _correlation(one, other)


def in_light_of(painted: U8, face: U8, where: U8) -> U8:
    """A face of another day in the light of what is painted in its place. What can be seen of a masked face says too
    little of light that came from elsewhere then.

    Args:
        painted: (H, W, 3) uint8, by the network, which knows how light goes on under a mask.
        face: (H, W, 3) uint8, moved to where it is now.
        where: (H, W) uint8, 255 where that is asked for.

    Returns:
        (H, W, 3) uint8, changed slowly from pixel to pixel, and only there.
    """
    height, width = where.shape
    size = max(1, width // _COARSER), max(1, height // _COARSER)
    difference = cv2.subtract(painted, face, dtype=cv2.CV_32F)
    light = _is_light(difference, where > 0)
    coarse, weight = (
        cv2.GaussianBlur(
            cv2.resize(x, size, interpolation=cv2.INTER_AREA),
            (0, 0),
            _BROAD_PX / _COARSER,
            borderType=cv2.BORDER_CONSTANT,
        )
        for x in (difference * light[..., None], light)
    )
    change = cv2.resize(coarse / (weight[..., None] + 1e-3), (width, height), interpolation=cv2.INTER_LINEAR)
    lit = face.copy()
    lit[where > 0] = np.clip(np.rint(face + change), 0, 255).astype(np.uint8)[where > 0]
    return lit


def _is_light(difference: F32, where: npt.NDArray[np.bool_]) -> F32:
    """(H, W) float32: 1 where a difference (H, W, 3) may be one of light, within an area (H, W) bool, else 0."""
    around = np.abs(cv2.blur(difference, 2 * (_OUTLIER_PX,))).mean(axis=2)
    usual = float(np.median(np.abs(difference[where]).mean(axis=1))) if where.any() else 0.0
    return np.asarray(where & (around < max(_OUTLIER[0], _OUTLIER[1] * usual)), np.float32)


def _looked_up(rgb: U8, at: F32, how: int) -> U8:
    return np.asarray(cv2.remap(rgb, at, None, how, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def _turned(before: F32, points: F32) -> tuple[F32, F64]:
    """(S, S, 2) float32, where each pixel is to be looked up for landmarks to lie where those of a stiff head lie that
    turns (expressions under a mask are guesses), and (2, 3) float64, the affine part of that."""
    ahead, _ = fit_affine(before, points[:, :2])
    now = np.asarray(before @ ahead[:, :3].T + ahead[:, 3], np.float32)
    back, _ = fit_affine(now, before[:, :2])
    rest = np.column_stack([before[:, :2] - transform_points(back, now), np.ones(len(now), np.float32)])
    grid = np.zeros((_CELLS, _CELLS, 3), np.float32)
    at = np.clip((now * _CELLS / CROP_SIZE).astype(int), 0, _CELLS - 1)
    np.add.at(grid, (at[:, 1], at[:, 0]), rest)
    grid = cv2.GaussianBlur(grid, (0, 0), _SMOOTH_CELLS)
    source = cv2.resize(grid[..., :2] / (grid[..., 2:] + _FAINT), (CROP_SIZE, CROP_SIZE))
    along = np.arange(CROP_SIZE)
    for axis, (across, down, offset) in enumerate(back):
        source[..., axis] += (across * along + offset).astype(np.float32)[None]
        source[..., axis] += (down * along).astype(np.float32)[:, None]
    return np.asarray(source, np.float32), back


def _fit(before: U8, maps: F32, rgb: U8, where: npt.NDArray[np.bool_]) -> tuple[F64, float]:
    """(2,) float64, by how many px of the crop a picture at half size (H, W, 3) that is looked up at `maps` (H, W, 2)
    is to be shifted for `rgb` (H, W, 3) to fit where that is known, by Gauss-Newton (Lucas and Kanade 1981); and how
    like both are then."""
    move = np.zeros(2)
    if where.sum() < _FEWEST:
        return move, 1.0
    likeness, now = -1.0, _shapes(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), where)
    grey = np.asarray(cv2.cvtColor(before, cv2.COLOR_RGB2GRAY), np.uint8)
    for _ in range(_FIT_STEPS):
        then = _shapes(_looked_up(grey, maps + np.float32(move / 2), cv2.INTER_LINEAR), where)
        likeness = max(likeness, _correlation(now[where], then[where]))
        slopes = np.stack([cv2.Sobel(then, cv2.CV_32F, *d, ksize=3, scale=1 / 16)[where] for d in ((1, 0), (0, 1))])
        error = (now - then)[where]
        weight = 1.0 / (1.0 + np.square(error / (2.0 * np.median(np.abs(error)) + 1e-3)))  # eyes blink
        normal = (slopes * weight) @ slopes.T + _SMOOTH_SLOPE * len(error) * np.eye(2)
        move += np.linalg.solve(normal, (slopes * weight) @ error)
    return (move if np.abs(move).max() < _FIT_PX else np.zeros(2)), likeness


def _correlation(a: F32, b: F32) -> float:
    a, b = a - a.mean(), b - b.mean()
    return float((a @ b) / (np.linalg.norm(a) * np.linalg.norm(b) + 1e-6))


def _at_half(picture: U8) -> U8:
    return np.asarray(cv2.resize(picture, (CROP_SIZE // 2, CROP_SIZE // 2), interpolation=cv2.INTER_AREA), np.uint8)


def _shapes(grey: U8, where: npt.NDArray[np.bool_], coarse_px: int = _COARSE_PX) -> F32:
    """(H, W) float32, brightness without light and shade, and without noise; of what lies elsewhere nothing gets in."""
    weight = where.astype(np.float32)
    seen = weight * grey
    fine = cv2.GaussianBlur(seen, (0, 0), 1.0) / (cv2.GaussianBlur(weight, (0, 0), 1.0) + 1e-3)
    coarse = cv2.blur(seen, 2 * (coarse_px,)) / (cv2.blur(weight, 2 * (coarse_px,)) + 1e-3)
    return np.asarray(fine - coarse, np.float32)


def _light(then: U8, now: U8, known: U8) -> tuple[F32, F32]:
    """(3,) float32, how much brighter each colour is now, of two pictures (H, W, 3) where they are known (H, W) uint8;
    and (S, S, 3) float32, what that leaves of their difference, and what surrounds it elsewhere."""
    means = [np.array(cv2.mean(x, mask=known)[:3], np.float32) for x in (now, then)]
    gain = np.clip((means[0] + 1) / (means[1] + 1), *_GAIN).astype(np.float32)
    share, here, there = (
        cv2.resize(cv2.bitwise_and(x, x, mask=known), 2 * (_CELLS,), interpolation=cv2.INTER_AREA).astype(np.float32)
        for x in (known, now, then)
    )
    share = share / 255
    difference = (here - gain * there) / np.maximum(share, 1e-6)[..., None]
    share[np.abs(difference).mean(axis=2) > _SHADE] = 0.0  # hair has moved, eyes blink
    whole = spread(np.clip(difference, -_SHADE, _SHADE).astype(np.float32), np.minimum(1.0, 2.0 * share))
    return gain, np.asarray(cv2.resize(whole, (CROP_SIZE, CROP_SIZE), interpolation=cv2.INTER_LINEAR))
