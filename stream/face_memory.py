"""What a mask hides of a face that was seen a moment ago, moved along with the face and in its present light.

While a mask is put on it moves, is blurred and stands off the face: what a network makes of that looks like glass. So
the face that was bare just before goes on being shown, and gives way to what is painted within a second or so. Where a
mask hides eyes, a network paints closed ones, or none: there those that were seen last are shown for longer, and the
network paints around them.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, fit_affine, transform_points
from unmask.models.outline import Shown, disc, hull
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


_BARE: Final = 0.3
"""Of `mask_score`: a face that shows more of a mask, under its chin for instance, is not remembered as bare."""
_EVERY_SECONDS: Final = 0.1
_BEFORE_SECONDS: Final = (0.3, 0.6)
"""How long before its mask a bare face is remembered from: the second at most, as a hand and the mask come into the
last frames; the first at least where it wore one before, which may have been missed for some frames."""
_PUT_ON_SECONDS: Final = (1.5, 3.0)
"""So long after a mask has come the bare face is shown; then it fades until the second."""
_BEND_PX: Final = 5.0
"""How far the landmarks may move, beyond what an affine map explains, until the bare face has faded to 1/e: a head that
turns looks different."""
_ALIKE: Final = 45.0
"""Mean difference (of 255) between what was seen and what is painted up to which both can be skin (28 at most in a clip
of four people): a mask that was missed for some frames must not be shown as the bare face."""
_EDGE_PX: Final = 9
"""Width of the soft edge within the hidden part."""


class _Seen(NamedTuple):
    """A face as it was: its canonical crop, its landmarks (468, 2) in px of that, and when."""

    crop: U8
    points: F32
    seconds: float


@dataclass(slots=True)
class _Person:
    """What is remembered of a track.

    Attributes:
        eyes: when they were seen last, and how far they were open.
        bare: the face in the last frames without a mask, the oldest first.
        masked_since: when a mask came; None while there is none, and where the track came with one.
        worn: whether it has ever worn a mask.
        again: whether it had before that one came.
    """

    eyes: tuple[_Seen, float] | None = None
    bare: deque[_Seen] = field(default_factory=deque)
    masked_since: float | None = None
    worn: bool = False
    again: bool = False


class FaceMemory:
    """What was seen of the faces of a video, by track."""

    def __init__(self) -> None:
        self._people: dict[int, _Person] = {}

    def look(self, faces: Sequence[Face], seconds: float) -> None:
        """Remember what can be seen of faces, and forget those of tracks that have ended.

        Args:
            faces: all of a frame, with `crop`, `mask`, `mask_score` and `masked`.
            seconds: the time of the frame.
        """
        self._people = {face.track_id: self._people.get(face.track_id, _Person()) for face in faces}
        for face in faces:
            person = self._people[face.track_id]
            if face.masked and person.bare and person.masked_since is None:
                person.masked_since, person.again = seconds, person.worn
            person.worn |= face.masked
            if face.still or face.score < _CERTAIN:
                continue
            points = transform_points(face.crop_from_frame, face.landmarks_px)
            if not face.masked:
                _remember_bare(person, face, points, seconds)
            if not face.masked or max(_covered(face.pictures.mask, zone) for zone in _zones(points)) <= _FREE:
                _remember_eyes(person, face, points, seconds)

    def forget(self) -> None:
        """Forget everything, as after a cut."""
        self._people.clear()

    def with_eyes(self, face: Face, shown: Shown, seconds: float) -> Shown:
        """Put eyes that the mask hides into what the network is shown, if they were seen a moment ago."""
        person = self._people.get(face.track_id, _Person())
        if person.eyes is None or seconds - person.eyes[0].seconds > _SECONDS:
            return shown
        points = transform_points(face.crop_from_frame, face.landmarks_px)
        zones = [zone for zone in _zones(points) if _covered(shown.hidden, zone) > _HIDDEN]
        if not zones:
            return shown
        given = cv2.bitwise_and(np.asarray(np.maximum.reduce(zones), np.uint8), shown.hidden)
        eyes, _ = _as_now(person.eyes[0], shown, points)
        return Shown(
            np.where(given[..., None] > 0, eyes, shown.rgb).astype(np.uint8),
            cv2.bitwise_and(shown.hidden, cv2.bitwise_not(given)),
            cv2.bitwise_or(shown.given, given),
        )

    def is_put_on(self, face: Face, seconds: float) -> bool:
        """Whether the mask of a face came a moment ago, where there was none."""
        since = self._people.get(face.track_id, _Person()).masked_since
        return since is not None and seconds - since < _PUT_ON_SECONDS[1]

    def keep_bare(self, face: Face, shown: Shown, painted: U8, seconds: float) -> None:
        """While a mask is being put on, paint the face that was bare before over what the network has `painted`
        (S, S, 3) of its hidden part; written in place. The less so the more of the eyes it covers: then landmarks are
        guesses."""
        person = self._people.get(face.track_id, _Person())
        if person.masked_since is None or not person.bare:
            return
        before, since = person.masked_since - person.bare[0].seconds, seconds - person.masked_since
        share = float(np.interp(since, _PUT_ON_SECONDS, (1.0, 0.0)))
        least = _BEFORE_SECONDS[0] if person.again else 0.0
        if share <= 0.0 or not least <= before <= 2 * _BEFORE_SECONDS[1]:
            return
        points = transform_points(face.crop_from_frame, face.landmarks_px)
        bare, bend = _as_now(person.bare[0], shown, points)
        blind = max(_covered(face.pictures.mask, zone) for zone in _zones(points))
        share *= float(np.exp(-((bend / _BEND_PX) ** 2))) * max(0.0, 1.0 - 1.5 * blind)
        inside = cv2.bitwise_and(hull(points, CROP_SIZE), face.pictures.hidden)
        if float(cv2.absdiff(bare, painted)[inside > 0].mean() if inside.any() else 0.0) > _ALIKE:
            return
        depth = cv2.distanceTransform(inside, cv2.DIST_L2, 3)
        weight = share * np.minimum(depth / _EDGE_PX, 1.0)[..., None].astype(np.float32)
        painted[:] = np.clip(painted + weight * (bare.astype(np.float32) - painted) + 0.5, 0, 255).astype(np.uint8)


def _remember_bare(person: _Person, face: Face, points: F32, seconds: float) -> None:
    if person.masked_since is not None:  # a mask has come off
        person.masked_since = None
        person.bare.clear()
    if face.mask_score > _BARE or (person.bare and seconds - person.bare[-1].seconds < _EVERY_SECONDS):
        return
    person.bare.append(_Seen(face.pictures.crop.copy(), points, seconds))
    while seconds - person.bare[0].seconds > _BEFORE_SECONDS[1]:
        person.bare.popleft()


def _remember_eyes(person: _Person, face: Face, points: F32, seconds: float) -> None:
    opening = _opening(points)
    if person.eyes is not None:
        before, opened = person.eyes
        if opening < _BLINK * opened and seconds - before.seconds < _BLINK_SECONDS:
            return
    person.eyes = _Seen(face.pictures.crop.copy(), points, seconds), opening


def _as_now(before: _Seen, shown: Shown, points: F32) -> tuple[U8, float]:
    """(S, S, 3) uint8: a face as it was, where it is now, in its present light; and how far its landmarks have moved
    besides, px."""
    matrix, bend = fit_affine(before.points, points)
    size, flags = (CROP_SIZE, CROP_SIZE), cv2.INTER_CUBIC
    warped = cv2.warpAffine(before.crop, matrix, size, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    lit = warped * _gain(np.asarray(warped, np.uint8), shown, points)
    return np.asarray(np.clip(lit + 0.5, 0, 255), np.uint8), bend


def _zones(points: F32) -> list[U8]:
    """(S, S) uint8 0 or 255 for each eye, of (468, 2) px of the crop."""
    around = disc(_AROUND_PX)
    return [np.asarray(cv2.dilate(hull(points[list(zone)], CROP_SIZE), around), np.uint8) for zone in _ZONES]


def _covered(mask: U8, zone: U8) -> float:
    """Share of a zone where a mask is."""
    return cv2.countNonZero(cv2.bitwise_and(mask, zone)) / max(1, cv2.countNonZero(zone))


def _opening(points: F32) -> float:
    """How far the eyes are open, px."""
    return float(np.mean([np.linalg.norm(points[upper] - points[lower]) for upper, lower in _LIDS]))


def _gain(before: U8, shown: Shown, points: F32) -> F32:
    """(3,) how much brighter each colour of the face is now, by what can be seen of it."""
    seen = hull(points, CROP_SIZE)
    seen[shown.hidden > 0] = 0
    now, then = (np.array(cv2.mean(x, mask=seen)[:3], np.float32) for x in (shown.rgb, before))
    return np.asarray(np.clip((now + 1) / (then + 1), *_GAIN), np.float32)
