"""What a mask hides of a face that was seen before, as it is now.

A network paints somebody's mouth; a face that was bare before its mask came is known, and is shown: its nearest view,
turned as the head has turned, in its present light. Where the head looks elsewhere than in any view, what is painted
shows instead. A face that was not seen bare may be that of somebody who was, before a cut or before they left the
picture, or that of a personal model, which holds views of another day. Where a mask hides eyes, a network paints closed
ones, or none: there those that were seen last are shown for some seconds, and the network paints around them. Landmarks
slip up with such a mask, and are put right before.
"""

import math
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.geometry import CROP_SIZE, transform_landmarks
from unmask.models.outline import Shown, disc, hull
from unmask.models.seen import EYES_AND_BROWS, Seen, Views, degrees_between, direction
from unmask.stream.face_track import FORGET_SECONDS
from unmask.stream.face_views import Then, as_now, eyes_likeness, followed, in_light_of, resemblance
from unmask.stream.frame import U8, Face
from unmask.stream.later_views import Who
from unmask.stream.mask_shape import EYES

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]

_LIDS: Final = ((159, 145), (386, 374))
"""Landmarks of the upper and lower lid."""
_AROUND_PX: Final = 6
"""How far around the landmarks an eye is remembered."""
_CERTAIN: Final = 0.9
"""How sure a face must be to be remembered."""
_FREE: Final = 0.04
_HIDDEN: Final = 0.2
"""Share of an eye that a mask may cover to be remembered, and that it must to be shown from memory."""
_SECONDS: Final = 6.0
"""How long eyes are remembered."""
_LOST_SECONDS: Final = 0.6
"""After that what was followed may be anywhere."""
_RESEMBLES: Final = (0.94, 0.8)
_BETTER: Final = (0.05, 0.01)
"""Correlation of what was seen above the eyes to what is, from which on landmarks that were followed are believed, and
under which they are not; and by how much it must be more than with those of the tracker, the same way."""
_AGREE_PX: Final = (3.0, 8.0)
"""How far from each other both may lie for the tracker's to be as sure, and from where on they are not."""
_SURE: Final = 0.5
_HALF: Final = 0.3
"""Share of the opening of an eye that a mask must cover, where landmarks are known."""
_LID_PX: Final = 2
_FEWEST_PX: Final = 20
_OTHER: Final = 30.0
"""Mean difference (of 255) of what can be seen of the eyes, lids and all, from what is remembered, from which on they
are others: closed, or looking elsewhere. Fewer pixels say nothing."""
_TOUCHED: Final = 0.03
"""Share of an eye that a mask covers from which on landmarks are guesses; they slip up with it."""
_BLINK: Final = 0.8
_BLINK_SECONDS: Final = 1.5
"""Eyes that are open less than that, compared with what is remembered, may blink: for so long the others are kept."""

_BARE: Final = 0.3
"""Of `mask_score`: a face that shows more of a mask, under its chin for instance, is not remembered as bare."""
_WEARS: Final = 0.75
"""Nor is one of which the tracker thinks that it wears a mask: the mask may have been missed, or a hand hide the mouth.
Of real masks it says 0.84 at the least, of a full beard up to 0.62."""
_EVERY_SECONDS: Final = 0.1
_BEFORE_SECONDS: Final = 0.6
"""How long a view waits until it is known that no mask came after it: a hand and the mask are in the last frames."""
_AFTER_SECONDS: Final = 0.3
"""How long a face must have been bare to be believed: a mask may have been missed for so long."""
_BODY_SECONDS: Final = (1.5, 3.0)
"""So long what a mask that is put on hides beside the face is what was seen there, hair, neck and clothes; and so long
until none of it is."""
_PUT_ON_SECONDS: Final = 3.0
"""How long a mask is being put on."""
_DEGREES: Final = (14.0, 34.0)
"""A head may look elsewhere than in a view by so much, and by so much until nothing of the view is shown."""
_DEGREES_ANOTHER_DAY: Final = (10.0, 26.0)
"""The same for views of another day, which fit less well, whoever it is."""
_NEARER_DEGREES: Final = 4.0
"""Another view is shown once it is nearer by that much."""
_CHANGE_SECONDS: Final = 0.6
"""How long it takes until another view, or what is painted, is shown instead."""
_LIKE: Final = (0.55, 0.4)
"""Likeness from which on a view is believed to be of the same person, and under which it is not. The track says that it
is, so doubt takes time: hands and hair come before eyes, too."""
_LIKE_ANOTHER_DAY: Final = (0.5, 0.3)
"""The same of eyes and brows, for views of another day: of one photo to another of the same person they have 0.69 at
the median, and 0.39 and more in nine of ten; 0.4 at the median for somebody else."""
_KNOWN: Final = -1
"""The number of those views. Those of people who are gone have numbers from 0 on."""
_SAME: Final = (0.92, 0.9)
_OFTEN: Final = 5
"""Likeness of the same kind from which on a face is taken for somebody who was seen bare in another scene, or before
they left the picture: at once, and if they were compared so often. Of 6,349 pairs of other people one look gave 0.893
at most."""
_HOPELESS: Final = 0.7
"""Who is less like them than that then is not compared any more."""
_MOST_LOOKS: Final = 8
"""Comparisons with people who are gone in a frame; each takes 3 ms."""
_MOST_GONE: Final = 8
"""People who are gone that are remembered, the last ones."""
_LIKER: Final = 0.1
"""By how much somebody else must be more like it to be taken for the person of those views instead."""
_SHOWN: Final = (0.35, 0.5)
"""Of those shares, multiplied, what a view of another day must have to go on being shown, and to be shown at first.
Mixed with what is painted it would be a face with two mouths for as long as the head keeps still."""
_DOUBT_SECONDS: Final = 1.0
_BLIND: Final = (0.3, 0.75)
"""Share of an eye that a mask covers, the same way: there landmarks are guesses."""
_ALIKE: Final = (40.0, 55.0)
"""Mean difference (of 255) of a view to what is painted, the same way (28 at most in a clip of four people): a mask
that was missed for some frames must not be shown as the bare face."""
_BESIDE_PX: Final = 10
_INSIDE_PX: Final = 6
"""How far beside its landmarks a face is shown as it was; and how far within them where that was another day or scene,
whose hair and background lie beside it."""
_SIDE_PX: Final = 25
_HAIR: Final = (45.0, 80.0)
"""At the sides of a face hair may have hung that has moved since: within so many px from its outline a view gives way
where it differs so much from what is painted, and is gone from the second difference on. A beard further in stays."""
_EDGE_PX: Final = 5
"""Width of the soft edge within the hidden part."""


@dataclass(slots=True)
class _Showing:
    """Which view of a face is shown, and how much of it; both change slowly.

    Attributes:
        view: what is shown; None where nothing is.
        former: what was shown before it, and gives way.
        change: how much of `view` is shown instead of `former`, 0..1.
        share: how much of both is shown instead of what is painted, 0..1.
        seconds: the time of the frame.
        step: how much may change since the one before, 0..1.
        likeness: of the person to what is shown, over the last second or so.
        begun: whether what is painted has been shown, or a share of the view; before that it is shown at once.
    """

    view: Seen | None = None
    former: Seen | None = None
    change: float = 1.0
    share: float = 0.0
    seconds: float | None = None
    step: float = 0.0
    likeness: float = 1.0
    begun: bool = False

    def turn_to(self, views: Views, ahead: F64, seconds: float) -> float:
        """Show another view where it is clearly nearer to the direction, little by little. Returns by how many degrees
        the shown one differs from it."""
        self.step = 0.0 if self.seconds is None else abs(seconds - self.seconds) / _CHANGE_SECONDS
        self.change, self.seconds = min(1.0, self.change + self.step), seconds
        if self.change >= 1.0:
            self.former = None
        nearest, angle = views.nearest(ahead)
        if self.view is None:
            self.view = nearest
        shown = degrees_between(self.view.ahead, ahead)
        if self.former is not None or shown - angle < _NEARER_DEGREES:
            return shown
        self.view, self.former, self.change = nearest, self.view, 0.0
        return angle

    def meet(self, likeness: float | None) -> None:
        """Note how like the person is to the view; None where that cannot be told."""
        if likeness is not None:
            self.likeness += min(1.0, self.step * _CHANGE_SECONDS / _DOUBT_SECONDS) * (likeness - self.likeness)

    def come_near(self, wanted: float) -> None:
        """Bring the share as near to the wanted one as the time since the frame before allows."""
        step = self.step if self.begun else 1.0
        self.begun, self.share = True, self.share + float(np.clip(wanted - self.share, -step, step))

    def picture(self, rgb: U8, known: U8, points: F32, wanted: U8) -> Then:
        """What is to be shown; arguments as of `as_now`."""
        assert self.view is not None
        now = as_now(self.view, rgb, known, points, wanted)
        if self.former is None:
            return now
        before = as_now(self.former, rgb, known, points, wanted).rgb
        return now._replace(
            rgb=np.asarray(cv2.addWeighted(now.rgb, self.change, before, 1.0 - self.change, 0), np.uint8)
        )


@dataclass(slots=True)
class _Followed:
    """Landmarks that are told by what is seen above the eyes.

    Attributes:
        seconds: the time of the frame.
        expected: where they were, (468, 3) float32 px of the frame and px of the crop; None where they are not known.
        sure: how far those that are written can be believed, 0..1.
    """

    seconds: float = -math.inf
    expected: tuple[F32, F32] | None = None
    sure: float = 0.0

    def go_along(self, eyes: Seen, face: Face, seconds: float) -> None:
        """Look for them in another frame, from the face as it was when its `eyes` were seen last, and write them as far
        as they fit better to what is seen than those of the tracker."""
        found, crop, known = self._look_for(eyes, face, seconds), face.pictures.crop, _trusted(face)
        self.seconds, self.expected, self.sure = seconds, None, 0.0
        if found is None:
            return
        tracked = transform_landmarks(face.crop_from_frame, face.landmarks_px)
        then, now = (resemblance(eyes, crop, known, points) for points in (tracked, found))
        believed, better = _share(now, *_RESEMBLES), _share(now - then, *_BETTER)
        apart = float(np.linalg.norm((found - tracked)[:, :2], axis=1).mean())
        self.sure = believed * max(better, _share(apart, *_AGREE_PX))
        if believed > 0:
            back = np.asarray(cv2.invertAffineTransform(face.crop_from_frame), np.float64)
            self.expected = transform_landmarks(back, found), found
            shown = tracked + np.float32(believed * better) * (found - tracked)
            face.landmarks_px = transform_landmarks(back, shown)

    def _look_for(self, eyes: Seen, face: Face, seconds: float) -> F32 | None:
        """The landmarks in px of the crop, near where they were; a crop of a face that keeps still goes along with it,
        any other may slip."""
        expected = [eyes.points]
        if self.expected is not None and seconds - self.seconds < _LOST_SECONDS:
            in_frame, in_crop = self.expected
            expected = [transform_landmarks(face.crop_from_frame, in_frame), in_crop]
        for points in expected:
            if (found := followed(eyes, face.pictures.crop, _trusted(face), points)) is not None:
                return found
        return None

    def sure_at(self, seconds: float) -> bool:
        """Whether those of the frame of that time can be believed."""
        return self.seconds == seconds and self.sure > _SURE


@dataclass(slots=True)
class _Likeness:
    """How like a face is to views of another day or scene.

    Attributes:
        mean: over the last second or so, -1..1; -1 before that is known.
        count: how often both were compared.
        seconds: when they were last.
        tried: when that was asked for last; it may not have been possible.
    """

    mean: float = -1.0
    count: int = 0
    seconds: float = -math.inf
    tried: float = -math.inf

    def compare(self, face: Face, views: Views, seconds: float) -> None:
        """Compare them, if that was not done just before, eyes and brows are free, and it looks that way."""
        if abs(seconds - self.tried) < _EVERY_SECONDS:
            return
        self.tried = seconds
        points = transform_landmarks(face.crop_from_frame, face.landmarks_px)
        view, angle = views.nearest(direction(points))
        if (
            angle > _DEGREES_ANOTHER_DAY[1]
            or max(_covered(face.pictures.mask, zone) for zone in _zones(points)) > _BLIND[0]
        ):
            return
        likeness = eyes_likeness(view, face.pictures.crop, _trusted(face), points)
        share = max(1.0 / (self.count + 1), min(1.0, abs(seconds - self.seconds) / _DOUBT_SECONDS))
        self.mean, self.count, self.seconds = self.mean + share * (likeness - self.mean), self.count + 1, seconds


@dataclass(slots=True)
class _Person:
    """What is remembered of a track.

    Attributes:
        who: whose it is.
        seen_at: when the face was given last, s.
        views: the face without a mask, as it was seen, or will be where that is known.
        bare: whether it has been seen without a mask.
        unknown: in how many frames its mask had been seen until then.
        eyes: the face when they were seen last, and how far they were open.
        waiting: the face in the last frames without a mask, the oldest first: not yet in `views`.
        masked_since: when a mask came last; None where the face had never been seen without one.
        masked_until: when one was seen last; None before the first.
        followed: its landmarks while a mask hides eyes.
        showing: what is shown in place of the mask.
        recalled: views of somebody from another scene for whom this person is taken.
        likeness: to views of another day or scene, by their number.
    """

    who: Who = (-1, 0)
    seen_at: float = -math.inf
    views: Views = field(default_factory=Views)
    bare: bool = False
    unknown: int = 0
    eyes: tuple[Seen, float] | None = None
    waiting: deque[Seen] = field(default_factory=deque)
    masked_since: float | None = None
    masked_until: float | None = None
    followed: _Followed = field(default_factory=_Followed)
    showing: _Showing = field(default_factory=_Showing)
    recalled: Views = field(default_factory=Views)
    likeness: defaultdict[int, _Likeness] = field(default_factory=lambda: defaultdict(_Likeness))

    def is_certainly(self, number: int) -> float:
        """How like somebody who is gone the person is, if they can be taken for them; else -1."""
        like = self.likeness.get(number)
        if like is None or self.views or self.recalled:
            return -1.0
        return like.mean if like.mean > _SAME[like.count >= _OFTEN] else -1.0


class FaceMemory:
    """What was seen of the faces of a video, by track.

    In each frame `look` comes first, with all faces; then, for each that is painted anew, `place`, `is_put_on` and
    `with_eyes` before the network paints, in this order and with the same time, and `show_bare` after it. A memory that
    never looks shows nothing.

    Args:
        later: what will be seen of them, where the video was gone through before.
        known: views of a person from another day, who may be one of those that are not seen bare.
        keep: is given what a later pass is to be given of a face that was bare only after it wore a mask, as its track
            ends.
        recalls: whether people who were seen bare are recognised in another scene; a first pass has no use for that.

    Attributes:
        too_late: how many masks were seen on faces that were not seen bare before, and were afterwards.
        known_shown: how many faces were shown with `known` views.
    """

    def __init__(
        self,
        later: Mapping[Who, Views] | None = None,
        *,
        known: Views | None = None,
        keep: Callable[[Who, Views], None] = lambda *_: None,
        recalls: bool = True,
    ) -> None:
        self._recalls = recalls
        self._later, self._known, self._keep = later if later is not None else {}, known or Views(), keep
        self._people: dict[int, _Person] = {}
        self._known_track = -1
        self._gone: dict[int, Views] = {}
        self._ever_gone = 0
        self._begun: Counter[int] = Counter()
        self.too_late = self.known_shown = 0

    def look(self, faces: Sequence[Face], seconds: float) -> None:
        """Remember what can be seen of faces, and forget those of tracks that have ended.

        Args:
            faces: all of a frame, with `crop`, `mask`, `mask_score` and `masked`.
            seconds: the time of the frame.
        """
        jumped = {face.track_id for face in faces if face.reset}  # it may be somebody else
        for track, person in list(self._people.items()):
            if track in jumped or seconds - person.seen_at > FORGET_SECONDS:
                self._end(track)
        for face in faces:
            person = self._people[face.track_id] = self._people.get(face.track_id) or self._begin(face.track_id)
            person.seen_at = seconds
            if face.masked:
                _put_on(person, seconds)
            else:
                self._settle(person, seconds)
            if face.still or face.score < _CERTAIN:
                continue
            seen = Seen(face.pictures.crop, transform_landmarks(face.crop_from_frame, face.landmarks_px), seconds)
            if not face.masked and face.mask_score <= _BARE and (face.wears is None or face.wears < _WEARS):
                _remember_bare(person, seen)
            if not face.masked or max(_covered(face.pictures.mask, zone) for zone in _zones(seen.points)) <= _FREE:
                _remember_eyes(person, seen)
        if self._known:
            self._recognise(faces, seconds)
        if self._recalls:
            self._recall(faces, seconds)

    def _recognise(self, faces: Sequence[Face], seconds: float) -> None:
        """Find out who may be the one of another day: one person is seen once in a frame."""
        for face in faces:
            person = self._people[face.track_id]
            if not face.still:
                person.likeness[_KNOWN].compare(face, self._known, seconds)
        best = max(self._people, key=lambda track: self._people[track].likeness[_KNOWN].mean, default=-1)
        held = self._people.get(self._known_track)
        if held is None or held.likeness[_KNOWN].mean + _LIKER < self._people[best].likeness[_KNOWN].mean:
            self._known_track = best

    def _recall(self, faces: Sequence[Face], seconds: float) -> None:
        """Find out who was there before. Who has not been looked at comes first, then who waits longest."""
        due: list[tuple[float, _Likeness, Face, Views]] = []
        for face in faces:
            person = self._people[face.track_id]
            if person.views or person.recalled or face.still or face.score < _CERTAIN:
                continue
            for number, views in self._gone.items():
                like = person.likeness[number]
                if like.count < _OFTEN or like.mean > _HOPELESS:
                    due.append((like.tried, like, face, views))
        for _, like, face, views in sorted(due, key=lambda look: look[0])[:_MOST_LOOKS]:
            like.compare(face, views, seconds)
        for number in list(self._gone):
            person = max(self._people.values(), key=lambda person: person.is_certainly(number), default=_Person())
            if person.is_certainly(number) > 0.0:
                self._take_for(person, number)

    def _take_for(self, person: _Person, number: int) -> None:
        """Take somebody for a person who is gone, whose views are shown from now on, not those of another day."""
        person.recalled, person.showing = self._gone.pop(number), _Showing(begun=person.showing.begun)
        person.likeness = defaultdict(_Likeness, {_KNOWN: person.likeness[_KNOWN]})

    def _is_known(self, track_id: int) -> float:
        """How far a face can be taken for that of the views of another day, 0..1."""
        if track_id != self._known_track:
            return 0.0
        return _share(self._people[track_id].likeness[_KNOWN].mean, *_LIKE_ANOTHER_DAY)

    def _begin(self, track_id: int) -> _Person:
        who = (track_id, self._begun[track_id])
        self._begun[track_id] += 1
        return _Person(who, views=self._later[who] if who in self._later else Views())

    def _end(self, track_id: int) -> None:
        person = self._people.pop(track_id)
        if person.bare or person.recalled:
            self._remember_gone(person)
        if person.bare and person.unknown:
            self._keep(person.who, person.views)

    def _remember_gone(self, person: _Person) -> None:
        views = Views(dict(person.recalled.views))
        for view in person.views.views.values() if person.bare else ():
            views.add(view)
        self._gone[self._ever_gone] = views
        self._ever_gone += 1
        if len(self._gone) > _MOST_GONE:
            forgotten = next(iter(self._gone))
            self._gone.pop(forgotten)
            for other in self._people.values():
                other.likeness.pop(forgotten, None)

    def finish(self) -> None:
        """Note that the video is over: no mask comes any more."""
        for person in self._people.values():
            self._settle(person, math.inf)
        self.forget()

    def _settle(self, person: _Person, seconds: float) -> None:
        """Believe views after which no mask came."""
        before = person.bare
        while person.waiting and seconds - person.waiting[0].seconds > _BEFORE_SECONDS:
            _add(person, person.waiting.popleft())
        if person.bare and not before and person.unknown:
            self.too_late += person.unknown

    def forget(self) -> None:
        """Forget where everybody is, as after a cut. Who was seen bare may be recognised."""
        for track in list(self._people):
            self._end(track)

    def place(self, face: Face, seconds: float) -> None:
        """Put the landmarks of a face right where its mask touches an eye, as they slip up with it. If the eyes were
        seen a moment ago, they are those of then, gone along with what is seen above the mask."""
        person = self._people.get(face.track_id, _Person())
        if person.eyes is None or seconds - person.eyes[0].seconds > _SECONDS:
            return
        points = transform_landmarks(face.crop_from_frame, face.landmarks_px)
        if max(_covered(face.pictures.hidden, zone) for zone in _zones(points)) > _TOUCHED:
            person.followed.go_along(person.eyes[0], face, seconds)

    def with_eyes(self, face: Face, shown: Shown, seconds: float) -> Shown:
        """Put eyes that the mask hides into what the network is shown, if they were seen a moment ago."""
        person = self._people.get(face.track_id, _Person())
        if person.eyes is None or seconds - person.eyes[0].seconds > _SECONDS:
            return shown
        points, sure = transform_landmarks(face.crop_from_frame, face.landmarks_px), person.followed.sure_at(seconds)
        openings = [cv2.dilate(hull(points[list(eye)], CROP_SIZE), disc(_LID_PX)) for eye in EYES]
        zones = _zones(points)
        hidden = [
            _covered(shown.hidden, eye) > _HALF if sure else _covered(shown.hidden, zone) > _HIDDEN
            for eye, zone in zip(openings, zones, strict=True)
        ]
        if not any(hidden):
            return shown
        eyes = as_now(person.eyes[0], shown.rgb, _trusted(face), points, cv2.bitwise_or(*zones)).rgb
        if _differs(eyes, shown.rgb, cv2.bitwise_and(cv2.bitwise_or(*openings), _trusted(face))):
            return shown
        given = cv2.bitwise_and(
            np.maximum.reduce([z for z, hides in zip(zones, hidden, strict=True) if hides]), shown.hidden
        )
        return Shown(
            np.where(given[..., None] > 0, eyes, shown.rgb).astype(np.uint8),
            cv2.bitwise_and(shown.hidden, cv2.bitwise_not(given)),
            cv2.bitwise_or(shown.given, given),
        )

    def is_put_on(self, face: Face, seconds: float) -> bool:
        """Whether the mask of a face came a moment ago, where there was none."""
        since = self._people.get(face.track_id, _Person()).masked_since
        return since is not None and seconds - since < _PUT_ON_SECONDS

    def show_bare(self, face: Face, shown: Shown, painted: U8, seconds: float) -> float:
        """Show the face that was bare before its mask came over what the network has `painted` (S, S, 3) of its hidden
        part, and what was seen beside it if that was a moment ago; written in place. The less so the further the head
        has turned away from how it was seen, and, where its landmarks are guesses, the more of the eyes its mask
        covers. Returns how much of it is shown, 0..1."""
        person = self._people.get(face.track_id, _Person())
        another_day, views = not person.views, person.views or person.recalled or self._known
        if not views:
            person.showing.begun = True
            return 0.0
        points = transform_landmarks(face.crop_from_frame, face.landmarks_px)
        angle = person.showing.turn_to(views, direction(points), seconds)
        known = another_day and not person.recalled
        wanted = _share(angle, *(_DEGREES_ANOTHER_DAY if known else _DEGREES))
        if known:
            wanted *= self._is_known(face.track_id)
        if wanted == person.showing.share == 0.0:
            person.showing.begun = True
            return 0.0
        area = hull(points, CROP_SIZE)
        if another_day:
            area = np.asarray(cv2.erode(area, disc(_INSIDE_PX)), np.uint8)
        beside = area if another_day else cv2.dilate(area, disc(_BESIDE_PX))
        near = cv2.bitwise_and(beside, face.pictures.hidden)
        recent = _recency(person, seconds)
        inside = face.pictures.hidden if recent else near
        bare, likeness = person.showing.picture(shown.rgb, _trusted(face), points, inside)
        part = _around(inside)
        bare, before, inside, area, near = bare[part], painted[part], inside[part], area[part], near[part]
        if another_day:
            bare = in_light_of(before, bare, inside)
        difference = cv2.transform(cv2.absdiff(bare, before), np.full((1, 3), 1 / 3, np.float32)).astype(np.float32)
        sure = person.followed.sure_at(seconds)
        blind = 0.0 if sure else max(_covered(face.pictures.mask, zone) for zone in _zones(points))
        other = float(difference[near > 0].mean()) if near.any() else 0.0
        person.showing.meet(likeness if blind < _BLIND[0] else None)
        wanted *= _share(other, *_ALIKE)
        if known:
            person.showing.share = float(wanted > _SHOWN[person.showing.share < 0.5])
            self.known_shown += person.showing.share > 0
        else:
            person.showing.come_near(wanted * _share(person.showing.likeness, *_LIKE))
        share = person.showing.share * _share(blind, *_BLIND)  # at once: the face would lie beside itself
        believed = np.where(near > 0, np.maximum(_fade(area, _SIDE_PX), _fitting(difference)), 0.0)
        weight = share * _fade(inside, _EDGE_PX) * np.maximum(believed, np.float32(recent))
        before[:] = cv2.convertScaleAbs(before + weight[..., None] * (bare.astype(np.float32) - before))
        return share


def _recency(person: _Person, seconds: float) -> float:
    """1 where what is shown was seen just before the mask came, 0 where that is long ago: hair and clothes move."""
    view, since = person.showing.view, person.masked_since
    if view is None or since is None:
        return 0.0
    return _share(seconds - since, *_BODY_SECONDS) * _share(abs(since - view.seconds), *_BODY_SECONDS)


def _put_on(person: _Person, seconds: float) -> None:
    """A mask is seen."""
    before, person.masked_until = person.masked_until, seconds
    if before is None or seconds - before > _AFTER_SECONDS:
        first = before is None and not person.bare
        if first and person.waiting and seconds - person.waiting[0].seconds > _AFTER_SECONDS:
            _add(person, person.waiting[0])
        person.masked_since = seconds if person.bare else None
        person.showing = _Showing()
    person.waiting.clear()
    person.unknown += not person.bare


def _add(person: _Person, view: Seen) -> None:
    person.views.add(view)
    person.bare = True


def _remember_bare(person: _Person, seen: Seen) -> None:
    if person.masked_until is not None and seen.seconds - person.masked_until < _AFTER_SECONDS:
        return
    if not (person.waiting and seen.seconds - person.waiting[-1].seconds < _EVERY_SECONDS):
        person.waiting.append(replace(seen, crop=seen.crop.copy()))


def _remember_eyes(person: _Person, seen: Seen) -> None:
    opening = _opening(seen.points)
    if person.eyes is not None:
        before, opened = person.eyes
        if opening < _BLINK * opened and seen.seconds - before.seconds < _BLINK_SECONDS:
            return
    person.eyes = replace(seen, crop=seen.crop.copy()), opening


def _around(area: U8) -> tuple[slice, slice]:
    """Rows and columns of an area, and of what is near enough to tell how far within a face it lies."""
    x, y, width, height = cv2.boundingRect(area)
    return np.s_[max(0, y - _SIDE_PX) : y + height + _SIDE_PX, max(0, x - _SIDE_PX) : x + width + _SIDE_PX]


def _share(value: float, whole: float, nothing: float) -> float:
    """1 at `whole`, 0 at `nothing`, a straight line between."""
    return float(np.clip((value - nothing) / (whole - nothing), 0.0, 1.0))


def _fade(area: U8, px: float) -> F32:
    """(S, S) float32: 0 at the border of an area, 1 from so many px within it on."""
    return np.asarray(np.minimum(cv2.distanceTransform(area, cv2.DIST_L2, 3) / px, 1.0), np.float32)


def _fitting(difference: F32) -> F32:
    """(S, S) float32, 0..1: where a view differs from what is painted no more than skin does from skin."""
    around = cv2.blur(difference, (_SIDE_PX, _SIDE_PX))
    return np.asarray(np.clip((_HAIR[1] - around) / (_HAIR[1] - _HAIR[0]), 0.0, 1.0), np.float32)


def _trusted(face: Face) -> U8:
    """(S, S) uint8, 255 where neither mask nor its shadow is."""
    return np.asarray(cv2.compare(face.pictures.mask, 0, cv2.CMP_EQ), np.uint8)


def _zones(points: F32) -> list[U8]:
    """(S, S) uint8 0 or 255 for each eye, of (468, 3) px of the crop."""
    around = disc(_AROUND_PX)
    return [np.asarray(cv2.dilate(hull(points[list(zone)], CROP_SIZE), around), np.uint8) for zone in EYES_AND_BROWS]


def _covered(mask: U8, zone: U8) -> float:
    """Share of a zone where a mask is."""
    return cv2.countNonZero(cv2.bitwise_and(mask, zone)) / max(1, cv2.countNonZero(zone))


def _differs(before: U8, now: U8, where: U8) -> bool:
    """Whether what can be seen of eyes (255 there) is not what it was: they may be closed by now."""
    if cv2.countNonZero(where) < _FEWEST_PX:
        return False
    return float(np.mean(cv2.mean(cv2.absdiff(before, now), mask=where)[:3])) > _OTHER


def _opening(points: F32) -> float:
    """How far the eyes are open, px."""
    return float(np.mean([np.linalg.norm(points[upper, :2] - points[lower, :2]) for upper, lower in _LIDS]))
