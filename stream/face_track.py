"""One face over time: where it is, where it will be, and its filtered points and crop."""

import math
from typing import Final

import numpy as np

from unmask.models.geometry import CropPose, crop_pose, transform_landmarks
from unmask.stream.face_finder import Box, Sighting, box_size, points_box
from unmask.stream.frame import F32, F64
from unmask.stream.likeness import Likeness
from unmask.stream.one_euro import OneEuro, OneEuroSettings

FORGET_SECONDS: Final = 1.0
"""How long a face that is not found may come back as the same one."""

_MAX_JUMP: Final = 0.35
"""Of the crop from one frame to the next, in distances of the outer eye corners, in radians, and in log scale."""

_CERTAIN_SCORE: Final = 0.85
"""Frontal faces with a mask score 0.9 and more, profiles 0.5 to 0.8, and there the mesh soon slips off the face."""

_SIZE_TOLERANCE: Final = 0.4
_SIZE_MEMORY: Final = {True: 0.1, False: 0.03}
"""Share of the newest size in the usual one, where the newest close look was certain, and where it was not."""

_SIZE_ELSEWHERE: Final = 0.5
"""The same for a face that is found again elsewhere, beyond doubt: it may have come nearer meanwhile."""

_APPEARANCE_MEMORY: Final = np.float32(0.3)
"""Share of the newest look in the usual one."""

_FRAMING_MEMORY: Final = 0.3
"""Share of the newest close look in how much of the head the box of a face takes in."""
_WEARS_MEMORY: Final = 0.5
"""The same for whether the face wears a mask."""

_BOX_SHARE: Final = 0.5
"""Weight of a detector's box in that of a face, where the points have the rest: either may be off."""

_PROOFS: Final = 4
"""Close looks in a row that make a face out of what may be a hand or an emblem."""

_SETTLED: Final = 8
"""Close looks in a row that found a face which leaves some doubt, after which it may be moved along as others are."""

_LEAN_SCORE: Final = 0.9
_LEAN_SHARE: Final = (0.06, 0.3)
"""Share of a frame in how a head leans and how large it is, where the face is in doubt: in profile points slip, and a
crop that lies turned is neither segmented nor painted well."""
_BACK_SHARE: Final = 0.4
"""Of both, where the doubt is small, and where the face is certain again."""
_LEANS_AS_SEEN: Final = 0.1
"""In radians and in log scale: from there on it follows a face that is certain again."""

_CROP_FILTER: Final = OneEuroSettings(min_cutoff_hz=0.5, beta=45.0, speed_cutoff_hz=2.0)
_POINT_FILTER: Final = OneEuroSettings(min_cutoff_hz=1.0, beta=45.0, speed_cutoff_hz=2.0)


class FaceTrack:
    """The state of one face.

    Args:
        track_id: its identity.
        sighting: the first one.
        seconds: presentation time.
        trusted: whether this one sighting is enough.
        appearance: at the first sighting.

    Attributes:
        raw_px: (468, 3) float32, the newest points, unfiltered.
        score: 0..1, of the newest close look that found the face.
        seen_seconds: when the face was last in sight.
        misses: close looks in a row that did not find it.
        waits: frames for which a close look has been put off.
        unsure: the last close look, where a wider search is to follow in a later frame.
        trusted: True once it has proved to be a face. Until then it is not given, and a miss ends it.
        proofs: close looks that found it.
        wears: how likely the face wears a mask, by what the detector said in the last close looks, 0..1; None where it
            does not know.
        found_in_a_row: how many of the last ones did, without a miss or a jump.
        size_px: usual size of the face. In profile the mesh is prone to shrink.
        fresh: True until the face has been given once since it was found, or found again elsewhere.
        likeness: how it looked when networks last looked at it; None where it has not kept still since.
        still: True where it has only been moved along since the frame before.
        quiet: True where it has kept still since the last close look.
        calm: frames in a row in which it has kept still.
        restless: how often in a row it was tried whether it keeps still, and it did not.
        landmarks_px: (468, 3) float32, filtered.
        crop: filtered.
        steady_crop: the same, leaning no more from one frame to the next than heads do. This is the one that is given.
        appearance: (N,) float32, usual colours of the head (`unmask.stream.face_finder.Finder.appearance`).
    """

    def __init__(self, track_id: int, sighting: Sighting, seconds: float, trusted: bool, appearance: F32) -> None:
        self.track_id = track_id
        self.trusted = trusted
        self.appearance = appearance
        self._certain = int(sighting.score >= _CERTAIN_SCORE)
        self.steady_crop = crop_pose(sighting.landmarks_px)
        self.proofs = 1
        self.waits = 0
        self.unsure: Sighting | None = None
        self.size_px = box_size(points_box(sighting.landmarks_px))
        self.restart(sighting, seconds)

    def restart(self, sighting: Sighting, seconds: float) -> None:
        """Begin anew where the face was found again; nothing remembered is used."""
        self.raw_px, self.score = sighting.landmarks_px, sighting.score
        if self.score >= _CERTAIN_SCORE:
            self.size_px += _SIZE_ELSEWHERE * (box_size(points_box(self.raw_px)) - self.size_px)
        self.misses, self.fresh, self.seen_seconds = 0, True, seconds
        self.found_in_a_row = 1
        self.likeness: Likeness | None = None
        self.still, self.quiet, self.calm, self.restless = False, True, 0, 0
        self._posed = self.raw_px, crop_pose(self.raw_px)
        self.landmarks_px, self.crop = self._posed
        if self.score >= _LEAN_SCORE:
            self.steady_crop = self.crop
        self._lean()
        self._framing = np.zeros(4)
        self._frame(sighting, 1.0)
        self.wears = sighting.wears
        self._pose, self._step = self.crop, np.zeros(2)
        self._filtered_points = OneEuro(_POINT_FILTER, self.raw_px.astype(np.float64), seconds)
        self._filtered_crop = OneEuro(_CROP_FILTER, _vector(self.crop), seconds)

    def _lean(self) -> None:
        """Follow how the head leans and how large it is: at once where the face is certain, and was before."""
        old = self.steady_crop
        turned, larger = math.remainder(self.crop.roll - old.roll, math.tau), math.log(self.crop.scale / old.scale)
        share = _LEAN_SHARE if self.score < _CERTAIN_SCORE else (_BACK_SHARE, _BACK_SHARE)
        if self.score >= _LEAN_SCORE:
            back = max(abs(turned), abs(larger)) > _LEANS_AS_SEEN
            share = (_BACK_SHARE, _BACK_SHARE) if back else (1.0, 1.0)
        roll, scale = old.roll + share[0] * turned, old.scale * math.exp(share[1] * larger)
        self.steady_crop = self.crop._replace(roll=roll, scale=scale)

    def confirm(self, sighting: Sighting) -> None:
        """Note that a close look has found the face."""
        score = sighting.score
        self._frame(sighting, _FRAMING_MEMORY)
        if sighting.wears is not None:
            before = sighting.wears if self.wears is None else self.wears
            self.wears = before + _WEARS_MEMORY * (sighting.wears - before)
        self.score, self.misses, self.quiet = score, 0, True
        self.proofs += 1
        self.found_in_a_row += 1
        self.trusted = self.trusted or self.proofs >= _PROOFS
        self._certain += score >= _CERTAIN_SCORE

    def _frame(self, sighting: Sighting, share: float) -> None:
        """Note how far the box of the face reaches beyond its points, in sizes of the face."""
        if sighting.box_px is not None:
            points = points_box(sighting.landmarks_px)
            newest = _BOX_SHARE * np.subtract(sighting.box_px, points) / box_size(points)
            self._framing += share * (newest - self._framing)

    @property
    def box_px(self) -> Box:
        """Around the face: half way from the points to what the detector last took for the face."""
        box = points_box(self.landmarks_px)
        x0, y0, x1, y1 = np.array(box) + box_size(box) * self._framing
        return float(x0), float(y0), float(x1), float(y1)

    def looks_like(self, appearance: F32) -> None:
        """Note how the face looks now."""
        self.appearance = self.appearance + _APPEARANCE_MEMORY * (appearance - self.appearance)

    def belief(self, sighting: Sighting) -> float:
        """How far to believe that a sighting is of this face, 0..1: less if it is of another size."""
        score = max(sighting.score, sighting.agreement) if self.proven else sighting.score
        ratio = box_size(points_box(sighting.landmarks_px)) / self.size_px
        return score * math.exp(-((math.log(ratio) / _SIZE_TOLERANCE) ** 2))

    def miss(self) -> None:
        """Note that a close look has not found the face."""
        self.misses += 1
        self.found_in_a_row = 0
        self.coast()

    def coast(self) -> None:
        """Go on unseen for a frame: as the face did, ever more slowly."""
        self.raw_px, self.landmarks_px = self._ahead(self.raw_px), self._ahead(self.landmarks_px)
        x, y = self._step
        self.crop = self.crop._replace(x=self.crop.x + x, y=self.crop.y + y)
        self._pose = self._pose._replace(x=self._pose.x + x, y=self._pose.y + y)
        self._step = 0.8 * self._step
        self._lean()

    def carry(self, movement: F64, seconds: float) -> None:
        """Go on with the face where it only moves: points and crop go with it.

        Args:
            movement: (2, 3) float64, a similarity from px of the frame before to px of this one.
            seconds: presentation time.
        """
        self.raw_px, self.landmarks_px = (transform_landmarks(movement, x) for x in (self.raw_px, self.landmarks_px))
        before = self.crop
        self.crop, self._pose = _carried_pose(self.crop, movement), _carried_pose(self._pose, movement)
        self._step = np.array([self.crop.x - before.x, self.crop.y - before.y])
        self.steady_crop = _carried_pose(self.steady_crop, movement)
        self._filtered_crop.carry(_vector(self._pose), _vector(self.crop), seconds)
        self._filtered_points.carry(self.raw_px.astype(np.float64), self.landmarks_px.astype(np.float64), seconds)
        self.still, self.seen_seconds = True, seconds

    def _ahead(self, landmarks_px: F32) -> F32:
        ahead = landmarks_px.copy()
        ahead[:, :2] += self._step
        return ahead

    @property
    def predicted_px(self) -> F32:
        """Where the points should be in the next frame, if the face goes on as it does."""
        return self._ahead(self.landmarks_px)

    @property
    def proven(self) -> bool:
        """True once close looks have been certain of the face a few times: later ones need less."""
        return self._certain >= _PROOFS

    @property
    def doubtful(self) -> bool:
        """True where every frame in which networks look at the face deserves a close look."""
        return bool(self.misses) or not self.trusted or self.score < _CERTAIN_SCORE

    @property
    def settled(self) -> bool:
        """True where close looks have found the face so often in a row that doubt about it is nothing new."""
        return self.trusted and self.found_in_a_row >= _SETTLED

    def jumps_to(self, landmarks_px: F32) -> bool:
        """True where the points are so far from the prediction that they may be of something else."""
        pose, old = self._pose_of(landmarks_px), self._pose
        moved = math.hypot(pose.x - old.x - self._step[0], pose.y - old.y - self._step[1]) / old.scale
        turned = abs(math.remainder(pose.roll - old.roll, math.tau))
        return max(moved, turned, abs(math.log(pose.scale / old.scale))) > _MAX_JUMP

    def _pose_of(self, landmarks_px: F32) -> CropPose:
        """Where the crop of some points lies; worked out once for the points of a frame."""
        if self._posed[0] is not landmarks_px:
            self._posed = landmarks_px, crop_pose(landmarks_px)
        return self._posed[1]

    def advance(self, landmarks_px: F32, seconds: float) -> None:
        """Take the points of the next frame."""
        pose = self._pose_of(landmarks_px)
        pose = pose._replace(roll=self._pose.roll + math.remainder(pose.roll - self._pose.roll, math.tau))
        share = _SIZE_MEMORY[self.score >= _CERTAIN_SCORE]
        self.size_px += share * (box_size(points_box(landmarks_px)) - self.size_px)
        self.raw_px, self._pose, self.seen_seconds = landmarks_px, pose, seconds
        before = self.crop
        self.crop = _crop(self._filtered_crop(_vector(pose), seconds, np.array([1.0, 1.0, pose.scale, pose.scale])))
        self._step = np.array([self.crop.x - before.x, self.crop.y - before.y])
        self._lean()
        points = self._filtered_points(landmarks_px.astype(np.float64), seconds, np.array(pose.scale))
        self.landmarks_px = points.astype(np.float32)


def _vector(pose: CropPose) -> F64:
    return np.array([math.log(pose.scale), pose.roll, pose.x, pose.y])


def _crop(vector: F64) -> CropPose:
    log_scale, roll, x, y = (float(v) for v in vector)
    return CropPose(math.exp(log_scale), roll, x, y)


def _carried_pose(pose: CropPose, movement: F64) -> CropPose:
    """A crop through a similarity (2, 3)."""
    x, y = (float(v) for v in movement @ (pose.x, pose.y, 1.0))
    return CropPose(pose.scale * _magnification(movement), pose.roll + math.atan2(movement[1, 0], movement[0, 0]), x, y)


def _magnification(movement: F64) -> float:
    return math.hypot(movement[0, 0], movement[1, 0])
