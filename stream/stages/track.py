"""The stage that finds the faces of each frame, tells who is who, and places their canonical crops."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from unmask.models.detections import Detection
from unmask.stream.canvas import Canvas, canvas_for
from unmask.stream.face_finder import Box, Finder, Sighting, View, box_centre, box_size, points_box
from unmask.stream.face_track import FORGET_SECONDS, FaceTrack
from unmask.stream.frame import F32, Face, Frame, Layout
from unmask.stream.likeness import Likeness
from unmask.stream.masked_finder import MaskedFinder
from unmask.stream.mediapipe_finder import MediaPipeFinder
from unmask.stream.scene_cut import SceneCuts
from unmask.stream.stage import Context, Stage
from unmask.stream.trackers import DEFAULT_TRACKER, Tracker

_NEW_SCORE: Final = 0.7
_FIRST_SCORE: Final = 0.5
"""In the search at the beginning of a scene, which may be a single frame."""

_EMBLEM_SIZE: Final = 0.45
_CHEST: Final = (0.6, 2.5, 1.2)
"""What leaves doubt, is that small beside a sure face, and lies on its chest is an emblem or a print: so far below the
middle of the face, from and to, and so far aside at most, all in sizes of the face."""

_PASSING_FRAMES: Final = 10
"""What looked like a face in the first frame of a scene, never beyond doubt, and was gone before, is not counted."""

_KEEP_SCORE: Final = 0.4
"""A face that was certain needs less evidence than a new one: it may have turned, or have put on a mask."""

_DOUBTFUL_SCORE: Final = 0.2
"""From here on up to `_FIRST_SCORE`, what another view proposes for the same face is looked at too, in that search."""

_SURE_SCORE: Final = 0.9
"""A face found with this score is given at once, others after `unmask.stream.face_track` has seen a few proofs."""

_BELIEVED: Final = 0.7
"""Below this a close look is followed by a wider search."""

_NETWORKS_EVERY: Final = 12
_SETTLES_FRAMES: Final = 2
"""Frames after a face was found, or has changed, in which networks go on looking at it: crop and mask settle."""

_RESTLESS: Final = 8
_TRY_EVERY: Final = 4
"""Once a face was not found to keep still so many times in a row, that is tried only so often."""

_TURNS_APART: Final = 5
"""Frames between the turns of one face and the next; has no divisor in common with the numbers of frames around."""

_LOOK_EVERY: Final = 4
_STEADY_SCORE: Final = 0.95
_LOOK_EVERY_STEADY: Final = 8
_LOOK_EVERY_QUIET: Final = 24
"""Frames between close looks at a face that moves as expected; fewer where the last one left a little doubt, more where
it has kept still since."""

_APPEARANCE_EVERY: Final = 4
"""Close looks between those that note how a face looks."""

_MAX_MISSES: Final = 5
"""A face is still given in so many frames in a row in which a close look did not find it: blur, a hand passing by."""

_MAX_MISSES_IN_DOUBT: Final = 2
"""The same for a face that had been beyond doubt and was in doubt when it was seen last: it has turned away. Points
that slip leave doubt that says nothing."""

_STAYS: Final = 1.15
"""How much larger a face must be to take the turn of another where there are more than are to be given: of two of one
size neither is to flicker."""

_FAR_APART: Final = 0.08
"""Seconds between two frames from which on a face may have gone anywhere meanwhile, and nothing can be put off."""

_SEARCH_EVERY_EMPTY: Final = 2
"""Frames between searches while no face is in sight, or one was lost."""

_LOST_REACH: Final = 2.0
"""How far from where it was lost a face may be taken for the same one, in sizes of the face."""

_RETRY_EVERY: Final = 60
"""Frames before a place is tried again where a proposal turned out not to be a face."""

_SAME_PROPOSAL: Final = 0.3
_FITS_PER_SEARCH: Final = 1
"""Closer looks at what a search proposed, each of six runs of a network, nine where two looks leave doubt; they fall
into the frames after it."""

_ROUNDS: Final = 2
"""How often at most a view is searched while the search at the beginning of a scene is spread over frames."""

_RUNS_PER_FRAME: Final = 4
"""Runs of detectors after which a frame begins no close look, where the work is spread over frames. A search, or the
closer look at what it proposed, needs a frame of its own; both at once, at the beginning of a scene, take up to five.
The frames after it save what that was too much."""

_SAME_FACE: Final = 0.5
"""Overlap of boxes from which on they are one face."""

FINDERS: Final[dict[Tracker, Callable[[Layout, Canvas], Finder]]] = {
    Tracker.UNMASK: MaskedFinder,
    Tracker.MEDIAPIPE: MediaPipeFinder,
}


class Track(Stage):
    """Fills `Frame.faces`, largest first, and sets `Frame.discontinuity` at scene cuts.

    Landmarks follow every face from frame to frame; a closer look checks it at intervals, and at once where it moves
    strangely. A face that keeps still is moved along, and `Face.still` spares it the networks of all stages, until it
    changes or their turn has come. New faces are searched for at intervals, in the whole picture and in tiles of it in
    turn, and everywhere at the beginning of a scene.

    Args:
        max_faces: how many faces to give at most; the largest ones are given.
        detect_every: frames between searches while all known faces are in sight.
        spread: False does in each frame all that it asks for, and searches everywhere in the first frame of a scene.
            True spreads that over frames, so that none takes much longer than others: the search goes view by view, the
            whole picture first, and close looks wait for their turn, while the landmarks go on. Small faces are
            found some frames later, and so is what happens to several doubtful ones at once.
        tracker: whose networks find the faces and their points.
        networks_every: frames between two in which networks look at a face that keeps still; those of several faces
            fall into different frames. With 1 they look at every face in every frame.
    """

    name: ClassVar[str] = "track"

    def __init__(
        self,
        max_faces: int = 8,
        detect_every: int = 10,
        *,
        spread: bool = False,
        tracker: Tracker = DEFAULT_TRACKER,
        networks_every: int = _NETWORKS_EVERY,
    ) -> None:
        self._max_faces = max_faces
        self._tracker = tracker
        self._detect_every = detect_every
        self._spread = spread
        self._networks_every = networks_every

    def open(self, context: Context) -> None:
        self._canvas = canvas_for(context.layout)
        self._finder = FINDERS[self._tracker](context.layout, self._canvas)
        self._is_cut = SceneCuts(self._canvas)
        self._limit = min(self._max_faces, context.max_faces)
        self._tracks: list[FaceTrack] = []
        self._new_ids = itertools.count()
        self._given: Counter[int] = Counter()
        self._counted: set[int] = set()
        self._shown: set[int] = set()
        self._most_at_once = 0
        self._cuts = 0
        self._put_off = self._moved_along = 0
        self._runs_before = self._run_limit = 0
        self._seconds, self._far_apart = 0.0, False
        self._seen: list[Detection] | None = None
        self._begin_scene()

    def process(self, frame: Frame) -> Iterable[Frame]:
        cut = self._is_cut(frame)
        self._cuts += cut
        frame.discontinuity = frame.discontinuity or cut
        if frame.discontinuity:
            self._begin_scene()
        self._far_apart = frame.pts_seconds - self._seconds > _FAR_APART
        self._seconds, self._seen = frame.pts_seconds, None
        self._runs_before = self._finder.detector_runs
        self._run_limit = min(self._run_limit, self._runs_before) + _RUNS_PER_FRAME
        for track in sorted(self._tracks, key=lambda track: -track.waits):
            if not self._move_along(track, frame):
                self._follow(track, frame)
        self._forget(frame)
        self._search(frame)
        self._remember_looks(frame)
        self._give(frame)
        return (frame,)

    def summary(self) -> dict[str, Any]:
        return {
            "tracker": str(self._tracker),
            "tracks": len(self._counted),
            "most_at_once": self._most_at_once,
            "detector_runs": self._finder.detector_runs,
            "looks_put_off": self._put_off,
            "moved_along": self._moved_along,
            "scene_cuts": self._cuts,
        }

    def _begin_scene(self) -> None:
        self._tracks.clear()
        self._views = _in_turn(self._finder.overviews, self._finder.tiles)
        self._rejected: list[tuple[Box, int]] = []
        self._opening = [*self._finder.overviews, *self._finder.margins, *self._finder.tiles]
        self._opening_frames = _ROUNDS * len(self._opening)
        self._proposed: list[Detection] = []
        self._search_in = 0
        self._search_waits = False
        self._run_limit = self._finder.detector_runs

    def _may_run(self, *, alone: bool) -> bool:
        """Whether what can wait may begin in this frame; `alone` where it takes a whole frame's share."""
        runs = self._finder.detector_runs
        within = runs < self._run_limit and not (alone and runs > self._runs_before)
        return within or not self._spread or self._far_apart

    def _may_look(self, track: FaceTrack, *, around: bool) -> bool:
        """Whether a close look at a face, or a search around it, may begin. If not, the face is the first to have one.

        A search for new faces that had to wait goes before all others, or known ones could keep it waiting for ever.
        """
        may = self._may_run(alone=around) and not self._search_waits
        track.waits = 0 if may else track.waits + 1
        self._put_off += not may
        return may

    def _move_along(self, track: FaceTrack, frame: Frame) -> bool:
        """Move a face along, if it has kept still and it is not the turn of the networks."""
        likeness, track.likeness, track.still = track.likeness, None, False
        movement = likeness.follow(frame) if likeness is not None else None
        if likeness is not None:
            track.restless = track.restless + 1 if movement is None else 0
        track.calm = 0 if movement is None else track.calm + 1
        track.quiet = track.quiet and track.calm > 0
        due = _turn(track, frame) % self._networks_every == 0 or self._look_is_due(track, frame)
        if movement is None or due or track.calm <= _SETTLES_FRAMES:
            return False
        track.carry(movement, frame.pts_seconds)
        track.likeness = likeness
        self._moved_along += 1
        return True

    def _remember_looks(self, frame: Frame) -> None:
        """Note how the faces look that the networks have just looked at, and that leave no doubt to be settled; less
        often those that never keep still."""
        for track in self._tracks:
            if (
                (track.doubtful and not self._is_settled(track))
                or track.waits
                or track.unsure is not None
                or self._networks_every == 1
            ):
                track.likeness = None
            elif track.likeness is None and (track.restless < _RESTLESS or _turn(track, frame) % _TRY_EVERY == 0):
                track.likeness = Likeness(self._canvas, frame, track.raw_px)

    def _is_settled(self, track: FaceTrack) -> bool:
        """Whether doubt about a face is nothing new, and its points are where they were all the same."""
        return track.settled and not self._finder.slips

    def _follow(self, track: FaceTrack, frame: Frame) -> None:
        """Find a known face in the next frame."""
        look = track.waits > 0 or self._look_is_due(track, frame) or self._far_apart
        if track.misses > _MAX_MISSES:
            if look and self._may_look(track, around=True):
                self._find_again(track, frame)
            return
        landmarks_px, there = self._finder.follow(frame, track.predicted_px)
        jumps = not there or track.jumps_to(landmarks_px)
        if not (look or track.doubtful or jumps):
            track.advance(landmarks_px, frame.pts_seconds)
        elif self._may_look(track, around=track.unsure is not None):
            self._look_closely(track, frame, landmarks_px)
        elif track.misses or jumps:
            track.coast()
        else:
            track.advance(landmarks_px, frame.pts_seconds)

    def _look_is_due(self, track: FaceTrack, frame: Frame) -> bool:
        """Whether it is time for a close look at a face that gives no reason for one."""
        turn = _turn(track, frame)
        if track.quiet and track.proven:
            return turn % _LOOK_EVERY_QUIET == 0
        every = _LOOK_EVERY_STEADY if track.score >= _STEADY_SCORE else _LOOK_EVERY
        return turn % every == 0

    def _look_closely(self, track: FaceTrack, frame: Frame, landmarks_px: F32) -> None:
        """Check where a face has been followed to. Where that is in doubt, search around it, at once or later."""
        if track.unsure is None:
            sighting = self._finder.look(frame, landmarks_px)
        else:
            sighting = track.unsure._replace(landmarks_px=landmarks_px)
        track.unsure = None
        if track.belief(sighting) < _BELIEVED and track.trusted:
            if self._may_look(track, around=True):
                sighting = self._look_around(track, frame, sighting)
            else:
                track.unsure = sighting
        if track.belief(sighting) >= _enough(track):
            self._found(track, sighting, frame)
        elif track.unsure is None:
            track.miss()
        else:
            track.coast()

    def _find_again(self, track: FaceTrack, frame: Frame) -> None:
        """Look for a face that was lost."""
        nothing = Sighting(track.raw_px, 0.0, 0.0)
        sighting = self._look_around(track, frame, nothing)
        if track.belief(sighting) >= _enough(track):
            self._found(track, sighting, frame)

    def _look_around(self, track: FaceTrack, frame: Frame, sighting: Sighting) -> Sighting:
        """The better one of a sighting and of what a wider search finds near it."""
        centre = box_centre(points_box(track.raw_px))
        around = self._finder.search_around(frame, centre, track.size_px)
        proposal = next((d for d in around if self._is_free(d.box_px, track)), None)
        if proposal is None and self._far_apart:
            seen = [d for d in self._everywhere(frame) if self._is_free(d.box_px, track)]
            proposal = min(seen, key=lambda d: math.dist(box_centre(d.box_px), centre), default=None)
        if proposal is None:
            return sighting
        return max(sighting, self._finder.fit(frame, proposal), key=track.belief)

    def _everywhere(self, frame: Frame) -> list[Detection]:
        """What may be faces in the whole picture, looked at once in a frame."""
        if self._seen is None:
            self._seen = self._finder.search(frame, self._finder.overviews[0])
        return self._seen

    def _found(self, track: FaceTrack, sighting: Sighting, frame: Frame) -> None:
        """Take a sighting for a known face, smoothly if it is about where it should be."""
        if track.misses > _MAX_MISSES or track.jumps_to(sighting.landmarks_px):
            track.restart(sighting, frame.pts_seconds)
            if self._far_apart:  # jumps are nothing strange there
                track.confirm(sighting)
        else:
            track.confirm(sighting)
            track.advance(sighting.landmarks_px, frame.pts_seconds)
        due = track.proofs % _APPEARANCE_EVERY == 0
        if due and self._is_free(points_box(track.raw_px), track):  # else it may be somebody else's face
            track.looks_like(self._finder.appearance(frame, track.raw_px))

    def _search(self, frame: Frame) -> None:
        """Look for faces that are not known yet, if it is time to."""
        self._search_in -= 1
        lost = self._far_apart and any(track.misses for track in self._tracks)
        if not self._opening and not self._proposed and self._search_in > 0 and not lost:
            return
        self._search_waits = not self._may_run(alone=True)
        if self._search_waits:
            return
        if self._opening:
            self._search_opening(frame)
            return
        if self._proposed:  # one to a frame, which is as much work as a search
            self._fit(frame, [self._proposed.pop(0)], trusted=False)
            self._search_in = self._frames_between_searches()
            return
        anything_lost = any(track.misses for track in self._tracks)
        view = self._finder.overviews[0] if anything_lost else next(self._views)
        self._proposed = self._propose(frame, self._finder.search(frame, view))[:_FITS_PER_SEARCH]
        self._search_in = self._frames_between_searches()

    def _search_opening(self, frame: Frame) -> None:
        """Search everywhere, at the beginning of a scene: at once, or view by view in this and the next frames."""
        views = self._opening[:1] if self._spread else self._opening
        proposals = [d for view in views for d in self._finder.search(frame, view)]
        free = self._propose(frame, proposals)
        if not self._spread:
            self._opening = []
            self._fit(frame, free, trusted=True, others=proposals)
        else:  # a medal may have a surer proposal than the face above it
            free.sort(key=lambda d: -d.score * box_size(d.box_px))
            self._fit(frame, free[:1], trusted=True)
            self._opening_frames -= 1
            again = views if len(free) > 1 else []
            self._opening = [*self._opening[1:], *again] if self._opening_frames else []
        self._search_in = self._frames_between_searches()

    def _frames_between_searches(self) -> int:
        in_sight = sum(1 for track in self._tracks if not track.misses)
        quiet = in_sight and in_sight == len(self._tracks)
        return self._detect_every if quiet else min(self._detect_every, _SEARCH_EVERY_EMPTY)

    def _propose(self, frame: Frame, proposals: list[Detection]) -> list[Detection]:
        """What may be faces that are not known yet, best first."""
        self._rejected = [(box, index) for box, index in self._rejected if frame.index - index < _RETRY_EVERY]
        return [d for d in distinct(proposals) if self._is_free(d.box_px) and self._is_new(d.box_px)]

    def _fit(
        self, frame: Frame, proposals: list[Detection], *, trusted: bool, others: Sequence[Detection] = ()
    ) -> None:
        """Look closer at proposals, and begin tracks; `others` are those for the same faces, asked where that leaves
        doubt."""
        fits: list[tuple[Sighting, Box]] = []
        for proposal in proposals:
            if not self._is_free(proposal.box_px):
                continue  # a better proposal has turned out to be this face, beyond doubt
            sighting = self._finder.fit(frame, proposal)
            if _DOUBTFUL_SCORE < sighting.score < _FIRST_SCORE:
                sighting = self._fit_another(frame, proposal, others, sighting)
            if sighting.score < _SURE_SCORE or not self._meet(sighting, frame, trusted=trusted):
                fits.append((sighting, proposal.box_px))
        # The closer look knows better than the search which of two overlapping proposals is the face.
        for sighting, box in sorted(fits, key=lambda fit: -fit[0].score):
            if not self._meet(sighting, frame, trusted=trusted) and sighting.score < _FIRST_SCORE:
                self._rejected.append((box, frame.index))

    def _fit_another(
        self, frame: Frame, proposal: Detection, others: Sequence[Detection], sighting: Sighting
    ) -> Sighting:
        """What another view proposes for the same face, where the closer look at one proposal leaves doubt."""
        same = [d for d in others if d is not proposal and _near(d.box_px, proposal.box_px, _SAME_PROPOSAL)]
        if not same:
            return sighting
        return max(sighting, self._finder.fit(frame, max(same, key=lambda d: d.score)), key=lambda s: s.score)

    def _meet(self, sighting: Sighting, frame: Frame, trusted: bool) -> bool:
        """Begin a track, or take one up again that was lost nearby. False where the sighting is no face, or known."""
        box = points_box(sighting.landmarks_px)
        if not self._is_free(box) or (sighting.score < _SURE_SCORE and self._is_on_a_chest(box)):
            return False
        lost = [
            track
            for track in self._tracks
            if track.misses > _MAX_MISSES
            and _near(points_box(track.raw_px), box, _LOST_REACH)
            and track.belief(sighting) >= _enough(track)
        ]
        if not lost and sighting.score < (_FIRST_SCORE if trusted else _NEW_SCORE):
            return False
        looks = self._finder.appearance(frame, sighting.landmarks_px)
        if lost:
            max(lost, key=lambda track: float(track.appearance @ looks)).restart(sighting, frame.pts_seconds)
            return True
        trusted = trusted or sighting.score >= _SURE_SCORE
        self._tracks.append(FaceTrack(next(self._new_ids), sighting, frame.pts_seconds, trusted, looks))
        return True

    def _is_new(self, box: Box) -> bool:
        """True where no proposal was rejected lately."""
        return not any(_near(box, rejected, 0.4) for rejected, _ in self._rejected)

    def _is_free(self, box: Box, besides: FaceTrack | None = None) -> bool:
        """True where no face in sight, other than `besides`, is in the box."""
        others = (track for track in self._tracks if track is not besides and track.misses <= _MAX_MISSES)
        return all(_overlap(points_box(track.raw_px), box) < _SAME_FACE for track in others)

    def _is_on_a_chest(self, box: Box) -> bool:
        """True where somebody whose face is in sight beyond doubt has the box on the chest."""
        low, high, aside = _CHEST
        for track in (t for t in self._tracks if t.score >= _SURE_SCORE and not t.misses):
            face = points_box(track.raw_px)
            x, y = (box_centre(box) - box_centre(face)) / box_size(face)
            sin, cos = np.sin(track.crop.roll), np.cos(track.crop.roll)
            below, beside = y * cos - x * sin, x * cos + y * sin
            if box_size(box) < _EMBLEM_SIZE * box_size(face) and low < below < high and abs(beside) < aside:
                return True
        return False

    def _forget(self, frame: Frame) -> None:
        """Drop the faces that are gone. Of two tracks that have come to follow one face, it belongs to the one that
        looks like it; the other is lost, or dropped if it was not known well."""
        kept: list[FaceTrack] = []
        for track in self._tracks:
            gone = (track.misses > 0 and not track.trusted) or frame.pts_seconds - track.seen_seconds > FORGET_SECONDS
            if gone:
                continue
            rival = next((other for other in kept if _on_one_face(track, other)), None)
            if rival is not None:
                looks = self._finder.appearance(frame, rival.raw_px)
                loser = min(track, rival, key=lambda t: (t.proven, float(t.appearance @ looks)))
                if not loser.proven:
                    kept = [other for other in (*kept, track) if other is not loser]
                    continue
                loser.misses = _MAX_MISSES + 1
            kept.append(track)
        self._tracks = kept

    def _given_misses(self, track: FaceTrack) -> int:
        """How many looks in a row may miss a face that is given all the same."""
        if self._far_apart:
            return 0
        turns_away = track.proven and track.score < _NEW_SCORE and not self._finder.slips
        return _MAX_MISSES_IN_DOUBT if turns_away else _MAX_MISSES

    def _give(self, frame: Frame) -> None:
        in_sight = [track for track in self._tracks if track.trusted and track.misses <= self._given_misses(track)]
        in_sight.sort(key=lambda track: -track.crop.scale * (_STAYS if track.track_id in self._shown else 1.0))
        self._shown = {track.track_id for track in in_sight[: self._limit]}
        for position, track in enumerate(in_sight[: self._limit]):
            face = Face(
                track_id=track.track_id,
                box_px=track.box_px,
                score=track.score,
                landmarks_px=track.landmarks_px,
                crop_from_frame=track.steady_crop.matrix(),
                reset=track.fresh,
                pictures=frame.face_pictures(position),
                still=track.still,
                wears=track.wears,
            )
            frame.faces.append(face)
            track.fresh = False
            self._given[track.track_id] += 1
            if track.score >= _NEW_SCORE or self._given[track.track_id] >= _PASSING_FRAMES:
                self._counted.add(track.track_id)
        self._most_at_once = max(self._most_at_once, len(frame.faces))


def _turn(track: FaceTrack, frame: Frame) -> int:
    """Counts frames, for each track from elsewhere, so that what is done now and then falls into different ones."""
    return frame.index + _TURNS_APART * track.track_id


def _enough(track: FaceTrack) -> float:
    """The belief that keeps a track."""
    return _KEEP_SCORE if track.proven else _NEW_SCORE


def _on_one_face(a: FaceTrack, b: FaceTrack) -> bool:
    """True where both tracks are in sight, or not known well, and their boxes are of one face."""
    in_sight = all(track.misses <= _MAX_MISSES or not track.proven for track in (a, b))
    return in_sight and _overlap(points_box(a.raw_px), points_box(b.raw_px)) >= _SAME_FACE


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


def distinct(proposals: Iterable[Detection]) -> list[Detection]:
    """Best first, without those that are about where, and about as large as, a better one."""
    kept: list[Detection] = []
    for proposal in sorted(proposals, key=lambda d: -d.score):
        if not any(_near(proposal.box_px, better.box_px, _SAME_PROPOSAL) for better in kept):
            kept.append(proposal)
    return kept


def _near(a: Box, b: Box, reach: float) -> bool:
    """True where the boxes are about as large as each other, and within `reach` times their size."""
    size_a, size_b = box_size(a), box_size(b)
    apart = np.linalg.norm(box_centre(a) - box_centre(b))
    return bool(apart < reach * max(size_a, size_b)) and 0.6 < size_a / size_b < 1 / 0.6
