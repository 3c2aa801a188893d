"""The stage that finds the faces of each frame, tells who is who, and places their canonical crops."""

import itertools
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Final

import numpy as np

from unmask.stream.canvas import Canvas
from unmask.stream.face_finder import Box, FaceFinder, Sighting, View, box_centre, points_box
from unmask.stream.face_track import FaceTrack
from unmask.stream.frame import Face, Frame
from unmask.stream.scene_cut import SceneCuts
from unmask.stream.stage import Context, Stage

_NEW_SCORE: Final = 0.6
_KEEP_SCORE: Final = 0.2
"""A face that was there a moment ago needs less evidence than a new one."""

_LOOK_EVERY: Final = 4
"""Frames between close looks at a face that moves as expected."""

_MAX_MISSES: Final = 3
"""A face is still given in so many frames in a row in which a close look did not find it: blur, a hand passing by."""

_FORGET_SECONDS: Final = 1.0
_SEARCH_EVERY_EMPTY: Final = 2
"""Frames between searches while no face is in sight, or one was lost."""

_FITS_PER_FRAME: Final = 2
_SAME_FACE: Final = 0.5
"""Overlap of boxes from which on they are one face."""


class Track(Stage):
    """Fills `Frame.faces`, largest first, and sets `Frame.discontinuity` at scene cuts.

    The mesh follows every face from frame to frame; a closer look checks it at intervals, and at once where it moves
    strangely. New faces are searched for at intervals, in the whole picture and in tiles of it in turn, and everywhere
    in the first frame of a scene.

    Args:
        max_faces: how many faces to give at most; the largest ones are given.
        detect_every: frames between searches while all known faces are in sight.
    """

    name: ClassVar[str] = "track"

    def __init__(self, max_faces: int = 8, detect_every: int = 8) -> None:
        self._max_faces = max_faces
        self._detect_every = detect_every

    def open(self, context: Context) -> None:
        canvas = Canvas(context.layout)
        self._finder = FaceFinder(context.layout, canvas)
        self._is_cut = SceneCuts(canvas)
        self._limit = min(self._max_faces, context.max_faces)
        self._tracks: list[FaceTrack] = []
        self._new_ids = itertools.count()
        self._given: set[int] = set()
        self._most_at_once = 0
        self._cuts = 0
        self._begin_scene()

    def process(self, frame: Frame) -> Iterable[Frame]:
        cut = self._is_cut(frame)
        self._cuts += cut
        frame.discontinuity = frame.discontinuity or cut
        if frame.discontinuity:
            self._begin_scene()
        for position, track in enumerate(self._tracks):
            self._follow(track, frame, look=(frame.index + position) % _LOOK_EVERY == 0)
        self._forget(frame.pts_seconds)
        self._search(frame)
        self._give(frame)
        return (frame,)

    def summary(self) -> dict[str, Any]:
        return {
            "tracks": len(self._given),
            "most_at_once": self._most_at_once,
            "detector_runs": self._finder.detector_runs,
            "scene_cuts": self._cuts,
        }

    def _begin_scene(self) -> None:
        self._tracks.clear()
        self._views = _in_turn(self._finder.overviews, self._finder.tiles)
        self._views_due = [*self._finder.overviews, *self._finder.tiles]
        self._search_in = 0

    def _follow(self, track: FaceTrack, frame: Frame, look: bool) -> None:
        """Find a known face in the next frame."""
        if track.misses > _MAX_MISSES:
            self._find_again(track, frame)
            return
        landmarks_px = self._finder.follow(frame, track.predicted_px)
        if look or track.misses or track.jumps_to(landmarks_px):
            landmarks_px, score = self._finder.look(frame, landmarks_px)
            if score < _KEEP_SCORE:
                track.misses += 1
                self._find_again(track, frame)
                return
            track.misses, track.score = 0, score
        track.advance(landmarks_px, frame.pts_seconds)

    def _find_again(self, track: FaceTrack, frame: Frame) -> None:
        """Search where a face was. What is found is taken for it, smoothly if it is about where it should be."""
        around = self._finder.search_around(frame, track.predicted_px)
        free = [proposal for proposal in around if self._is_free(proposal.box_px, track)]
        fits = [self._finder.fit(frame, proposal) for proposal in free[:_FITS_PER_FRAME]]
        best = max(fits, key=lambda fit: fit.score, default=None)
        if best is None or best.score < _NEW_SCORE:
            return
        if track.misses > _MAX_MISSES or track.jumps_to(best.landmarks_px):
            track.restart(best, frame.pts_seconds)
        else:
            track.misses, track.score = 0, best.score
            track.advance(best.landmarks_px, frame.pts_seconds)

    def _search(self, frame: Frame) -> None:
        """Look for faces that are not known yet, if it is time to."""
        if not self._views_due:
            self._search_in -= 1
            if self._search_in > 0:
                return
            self._views_due = [next(self._views)]
        proposals = [d for view in self._views_due for d in self._finder.search(frame, view)]
        thorough = len(self._views_due) > 1
        self._views_due = []
        tried = 0
        for proposal in sorted(proposals, key=lambda d: -d.score):
            if (thorough or tried < _FITS_PER_FRAME) and self._is_free(proposal.box_px):
                self._meet(self._finder.fit(frame, proposal), frame.pts_seconds)
                tried += 1
        in_sight = [track for track in self._tracks if not track.misses]
        quiet = in_sight and len(in_sight) == len(self._tracks)
        self._search_in = self._detect_every if quiet else min(self._detect_every, _SEARCH_EVERY_EMPTY)

    def _meet(self, sighting: Sighting, seconds: float) -> None:
        """Begin a track, or take one up again that was lost nearby."""
        box = points_box(sighting.landmarks_px)
        if sighting.score < _NEW_SCORE or not self._is_free(box):
            return
        for track in self._tracks:
            if track.misses > _MAX_MISSES and _near(points_box(track.raw_px), box):
                track.restart(sighting, seconds)
                return
        self._tracks.append(FaceTrack(next(self._new_ids), sighting, seconds))

    def _is_free(self, box: Box, besides: FaceTrack | None = None) -> bool:
        """True where no face in sight, other than `besides`, is in the box."""
        others = (track for track in self._tracks if track is not besides and track.misses <= _MAX_MISSES)
        return all(_overlap(points_box(track.raw_px), box) < _SAME_FACE for track in others)

    def _forget(self, seconds: float) -> None:
        """Drop the faces that are gone, and the later of two tracks that have come to follow one face."""
        kept: list[FaceTrack] = []
        for track in self._tracks:
            box = points_box(track.raw_px)
            gone = seconds - track.seen_seconds > _FORGET_SECONDS
            if not gone and all(_overlap(points_box(other.raw_px), box) < _SAME_FACE for other in kept):
                kept.append(track)
        self._tracks = kept

    def _give(self, frame: Frame) -> None:
        in_sight = [track for track in self._tracks if track.misses <= _MAX_MISSES]
        in_sight.sort(key=lambda track: -track.crop.scale)
        for position, track in enumerate(in_sight[: self._limit]):
            face = Face(
                track_id=track.track_id,
                box_px=points_box(track.landmarks_px),
                score=track.score,
                landmarks_px=track.landmarks_px,
                crop_from_frame=track.crop.matrix(),
                reset=track.fresh,
                pictures=frame.face_pictures(position),
            )
            frame.faces.append(face)
            track.fresh = False
            self._given.add(track.track_id)
        self._most_at_once = max(self._most_at_once, len(frame.faces))


def _in_turn(overviews: list[View], tiles: list[View]) -> Iterator[View]:
    """The views of the regular search, for ever: every second one shows the whole picture."""
    if not tiles:
        return itertools.cycle(overviews)
    pairs = zip(itertools.cycle(overviews), itertools.cycle(tiles))
    return itertools.chain.from_iterable(pairs)


def _overlap(a: Box, b: Box) -> float:
    """The share of the smaller box that lies in the other one: detectors like to see a small face within a face."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    smaller = min((box[2] - box[0]) * (box[3] - box[1]) for box in (a, b))
    return max(width, 0.0) * max(height, 0.0) / max(smaller, 1e-6)


def _near(a: Box, b: Box) -> bool:
    """True where the boxes are about as large as each other and no further apart than their size."""
    size_a, size_b = a[2] - a[0], b[2] - b[0]
    apart = np.linalg.norm(box_centre(a) - box_centre(b))
    return bool(apart < max(size_a, size_b) and 0.6 < size_a / size_b < 1 / 0.6)
