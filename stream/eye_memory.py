"""Eyes that a mask hides for a moment, while it is put on, or worn over them: they were seen a moment ago.

What a network paints there has eyes that are closed, or none. Those that were seen last are shown instead, moved along
with the face, and the network paints around them.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, fit_affine, transform_points
from unmask.models.outline import Shown
from unmask.stream.frame import U8, Face

F32 = npt.NDArray[np.float32]

_ZONES: Final = ((70, 63, 105, 66, 107, 133, 153, 145, 144, 33), (300, 293, 334, 296, 336, 362, 380, 374, 373, 263))
"""Landmarks around each eye and its brow."""
_LIDS: Final = ((159, 145), (386, 374))
"""Landmarks of the upper and lower lid."""
_AROUND_PX: Final = 6
"""How far around the landmarks an eye is remembered."""
_CERTAIN: Final = 0.9
"""How sure a face must be for its eyes to be remembered."""
_FREE: Final = 0.04
_HIDDEN: Final = 0.2
"""Share of an eye that a mask may cover to be remembered, and that it must to be shown from memory."""
_SECONDS: Final = 6.0
"""How long eyes are remembered."""
_BLINK: Final = 0.8
_BLINK_SECONDS: Final = 1.5
"""Eyes that are open less than that, compared with what is remembered, may blink: for so long the others are kept."""
_GAIN: Final = (0.7, 1.4)
"""How far the light may have changed."""


class _Eyes(NamedTuple):
    crop: U8
    points: F32
    open: float
    seconds: float


class EyeMemory:
    """The eyes of the faces of a video."""

    def __init__(self) -> None:
        self._seen: dict[int, _Eyes] = {}

    def look(self, faces: Sequence[Face], seconds: float) -> None:
        """Remember the eyes that can be seen, and forget those of tracks that have ended.

        Args:
            faces: all of a frame, with `crop`, `mask` and `masked`.
            seconds: the time of the frame.
        """
        present = {face.track_id for face in faces}
        self._seen = {track: eyes for track, eyes in self._seen.items() if track in present}
        for face in faces:
            if face.still or face.score < _CERTAIN:
                continue
            points = transform_points(face.crop_from_frame, face.landmarks_px)
            if face.masked and max(_covered(face.pictures.mask, zone) for zone in _zones(points)) > _FREE:
                continue
            opening, before = _opening(points), self._seen.get(face.track_id)
            if before and opening < _BLINK * before.open and seconds - before.seconds < _BLINK_SECONDS:
                continue
            self._seen[face.track_id] = _Eyes(face.pictures.crop.copy(), points, opening, seconds)

    def forget(self) -> None:
        """Forget everything, as after a cut."""
        self._seen.clear()

    def recall(self, face: Face, shown: Shown, seconds: float) -> Shown:
        """Put eyes that the mask hides into what is shown of a face, if they were seen a moment ago."""
        eyes = self._seen.get(face.track_id)
        if eyes is None or seconds - eyes.seconds > _SECONDS:
            return shown
        points = transform_points(face.crop_from_frame, face.landmarks_px)
        zones = [zone for zone in _zones(points) if _covered(shown.hidden, zone) > _HIDDEN]
        if not zones:
            return shown
        matrix, _ = fit_affine(eyes.points, points)
        size = (CROP_SIZE, CROP_SIZE)
        warped = cv2.warpAffine(eyes.crop, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
        given = cv2.bitwise_and(np.asarray(np.maximum.reduce(zones), np.uint8), shown.hidden)
        lit = np.clip(warped * _gain(warped, shown, points) + 0.5, 0, 255).astype(np.uint8)
        return Shown(
            np.where(given[..., None] > 0, lit, shown.rgb).astype(np.uint8),
            cv2.bitwise_and(shown.hidden, cv2.bitwise_not(given)),
            cv2.bitwise_or(shown.given, given),
        )


def _zones(points: F32) -> list[U8]:
    """(S, S) uint8 0 or 255 for each eye, of (468, 2) px of the crop."""
    zones = []
    for zone in _ZONES:
        hull = np.round(cv2.convexHull(points[list(zone)])).astype(np.int32)
        picture = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
        cv2.fillConvexPoly(picture, hull, 255)
        cv2.polylines(picture, [hull], True, 255, 2 * _AROUND_PX)
        zones.append(picture)
    return zones


def _covered(mask: U8, zone: U8) -> float:
    """Share of a zone where a mask is."""
    return cv2.countNonZero(cv2.bitwise_and(mask, zone)) / max(1, cv2.countNonZero(zone))


def _opening(points: F32) -> float:
    """How far the eyes are open, px."""
    return float(np.mean([np.linalg.norm(points[upper] - points[lower]) for upper, lower in _LIDS]))


def _gain(before: U8, shown: Shown, points: F32) -> F32:
    """(3,) how much brighter each colour of the face is now, by what can be seen of it."""
    seen = np.zeros((CROP_SIZE, CROP_SIZE), np.uint8)
    cv2.fillConvexPoly(seen, np.round(cv2.convexHull(points)).astype(np.int32), 255)
    seen[shown.hidden > 0] = 0
    now, then = (np.array(cv2.mean(x, mask=seen)[:3], np.float32) for x in (shown.rgb, before))
    return np.asarray(np.clip((now + 1) / (then + 1), *_GAIN), np.float32)
