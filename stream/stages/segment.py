"""Segment: cuts the canonical crop of each face, finds the mask in it, and decides whether the face wears one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.engine import Engine, choose
from unmask.models.geometry import CROP_SIZE, head_pose, transform_points
from unmask.models.mask_region import narrow_parts
from unmask.models.placement import USUAL, Shift, better_shift, placed
from unmask.stream.canvas import canvas_for, inverse_affine
from unmask.stream.face_track import FORGET_SECONDS
from unmask.stream.frame import F64, U8, Face, Frame
from unmask.stream.mask_memory import Memory, carried, has_gone, near_before, steadied
from unmask.stream.mask_shape import MaskShape
from unmask.stream.rims import rims_in_front
from unmask.stream.stage import Context, Stage

F32 = npt.NDArray[np.float32]

_PIXELS: Final = CROP_SIZE * CROP_SIZE
_WEARS_AREA: Final = 0.03
"""Share of the crop that a mask covers at least; one worn well covers a fifth, one under the chin about a tenth."""
_KEEPS_AREA: Final = 0.015
_KEEPS_FRAMES: Final = 12
"""The same for a face that wore one in the frame before, or, where it is in doubt itself, so few frames before: between
both areas nothing changes, so nothing flickers."""
_HELD_FRAMES: Final = 3
"""A mask that has gone from one frame to the next, on a face that is in doubt itself, is believed to be there for so
many frames: in full profile crops jump, and the network misses it in one or two."""
_WHOLE_AREA: Final = 0.1
"""A mask that covers less of the crop is partly hidden, or only half of it was found."""
_CLOSER: Final = cv2.getRotationMatrix2D((CROP_SIZE / 2, CROP_SIZE / 2), 0.0, 1.2)
"""The closer view of a crop in which no whole mask was found at first."""
_LOWERED: Final = tuple(cv2.getRotationMatrix2D((CROP_SIZE / 2, CROP_SIZE / 2), turn, 1.0) for turn in (15.0, -15.0))
"""Views of a crop in which a head that looks to the picture's left, or right, looks down."""
_UNSURE: Final = 0.85
"""What is mask by so little on a face that is in doubt itself is looked at in such a view, too."""
_ASIDE_PX: Final = 12
"""How far from the middle column the middle of a mask lies on a head in profile."""
_CLOSER_EVERY: Final = 4
"""Frames between closer looks that show no mask, where the work is spread over frames."""
_CERTAIN_FACE: Final = 0.9
_CERTAIN_MASK: Final = 0.93
"""On what has never been a certain face, only a mask beyond doubt counts: emblems on flags and jackets get less."""
_TOLD: Final = 0.65
"""Where the tracker sees a mask, this is enough in both cases, and of less than a certain face. Where it is not sure of
one, no less will do: beards and food have less."""
_LOOKS_BARE: Final = 0.25
_CERTAIN_THOUGH_BARE: Final = 0.9
"""Of what the tracker takes for a bare face by so much, that must be mask by so much: it sees a mask that is being put
on some frames late. Cups, dummies and the hands of others have less."""
_BARE_LOOKS: Final = 5
"""After so many looks that showed no mask on it, not even that one: a mask may pass before an emblem."""
_CERTAIN_BELOW: Final = ((300, 0.85), (150, 0.89), (0, 0.9))
"""A mask that leaves the mouth free must be surer than others: scarves and collars look like one under the chin. Less
so with ear loops of so many pixels, which those seldom seem to have."""
_LIPS: Final = (61, 37, 267, 291, 314, 84)
"""Landmarks around the lips."""
_MIDDLE_PX: Final = (60.0, 95.0)
"""How far from the middle column, and how far down at least, the middle of a worn mask lies in the crop."""
_SURE: Final = 127.5
"""Of 255: more likely mask than not."""
_PUT_ON_FRAMES: Final = 12
"""So long after a face was bare its crop stays where it is, as a mask that is being put on crosses the crop's border;
and so long at most it is left alone while it does."""
_CUT_OFF_PX: Final = 12
"""What reaches the lower border of the crop on so many pixels goes on beyond it."""
_ASIDE: Final = 0.5
"""Radians from which on a head looks aside: 29 degrees."""


def _sits_on_a_face(solid: U8) -> bool:
    """Whether the middle of a mask lies where a mask can be worn, from the nose to the neck."""
    moments = cv2.moments(solid, binaryImage=True)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    aside, down = _MIDDLE_PX
    return bool(abs(x - CROP_SIZE / 2) < aside and y > down)


def _looks_aside(face: Face) -> bool:
    """Whether a mask may go on to the side because the head is turned, and not because a hand takes it away."""
    return abs(head_pose(face.landmarks_px).yaw) > _ASIDE


def _goes_back(shift: Shift, better: Shift) -> bool:
    """Whether a crop only goes back to where it usually lies, from one side or both."""
    return all(b in (0, a) for a, b in zip(shift, better, strict=True))


def _leaves_the_mouth_free(solid: U8, points: F32) -> bool:
    """Whether a mask covers less than half of the landmarks (468, 2) px around the lips."""
    x, y = np.clip(np.round(points[list(_LIPS)]), 0, CROP_SIZE - 1).astype(int).T
    return bool((solid[y, x] > 0).mean() < 0.5)


def _certain_below_the_mouth(solid: U8, sure: float) -> bool:
    """Whether what lies below the mouth, mask by `sure` of 1, is no scarf."""
    loops = cv2.countNonZero(narrow_parts(solid))
    return sure >= next(enough for px, enough in _CERTAIN_BELOW if loops >= px)


def _least_sure(face: Face) -> float:
    """How surely mask must be seen on a face, by what the tracker says of it."""
    if face.wears is None or face.looks_masked:
        return 0.0
    return _CERTAIN_THOUGH_BARE if face.wears < _LOOKS_BARE else _TOLD


def _show_rims(face: Face, points: F32) -> None:
    """Take rims of glasses in front of a mask out of what is replaced; what is under them stays unknown (not 0)."""
    seen = face.pictures
    rims = rims_in_front(seen.crop, seen.hidden, points)
    if rims is not None:
        less = cv2.multiply(seen.mask, cv2.bitwise_not(rims), scale=1 / 255)
        seen.mask[:] = cv2.max(less, cv2.min(seen.mask, 1))


def _sureness(probability: F32) -> float:
    """Mean of what is more likely mask than not, 0..1; 0 where nothing is."""
    return cv2.mean(probability, mask=cv2.compare(probability, _SURE, cv2.CMP_GT))[0] / 255.0


def _certain_mask(probability: F32) -> float:
    """How much mask is seen, each pixel by how much likelier it is mask than not."""
    return float(cv2.sumElems(cv2.max(probability, _SURE) - _SURE)[0])


@dataclass(slots=True)
class _Wearer:
    """What is known of a track, and of the mask that it may wear.

    Attributes:
        seen_at: when the face was given last, s.
        memory: what was found in the frame before; None where the face was not in it.
        shift: where its crops lie instead of where they usually do.
        closer: the frame in which it was looked at closer last, and whether that showed mask.
        certain: whether it has been a certain face, or has worn a mask beyond doubt.
        bare: looks that showed no mask.
        worn: looks that showed its mask since it put that on; 0 where it came with it.
        coming: looks in a row in which a mask came from below its bare face.
    """

    seen_at: float = 0.0
    memory: Memory | None = None
    shift: Shift = USUAL
    closer: tuple[int, bool] = (-_CLOSER_EVERY, False)
    certain: bool = False
    bare: int = 0
    worn: int = 0
    coming: int = 0

    def place(self, shift: Shift) -> None:
        """Have its crops lie elsewhere from now on."""
        self.shift = shift
        if self.memory is not None:
            self.memory.probability = None

    def is_absent(self) -> None:
        """The face was not given."""
        self.memory, self.closer = None, (-_CLOSER_EVERY, False)


class Segment(Stage):
    """Writes `crop`, `mask`, `hidden`, `mask_score` and `masked` of each face. On one that keeps still, what was found
    stays.

    Where a mask goes on beyond the crop of a face, the crop (`crop_from_frame`) is moved to that side, for as long as
    the mask needs it.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        engine: "auto" or the name of one.
        threads: CPU threads of the network; 0 leaves it to the engine.
        spread: False looks closer at every face without a whole mask, in each frame. True goes on doing so only while
            it shows mask; else one face a frame has its turn, and each only now and then: what only a closer look
            shows is found some frames later.
    """

    name: ClassVar[str] = "segment"

    def __init__(self, device: str = "auto", engine: str = "auto", threads: int = 0, *, spread: bool = False) -> None:
        self._device, self._engine_name, self._threads = device, engine, threads
        self._spread = spread

    def open(self, context: Context) -> None:
        self._canvas = canvas_for(context.layout)
        self._size = context.layout.width, context.layout.height
        choice = choose(self._device, self._engine_name, threads=self._threads)
        for reason in choice.why_not_better:
            context.notice(reason)
        self._engine: Engine = context.load("segmenter", choice, context.notice)
        self._shape = MaskShape()
        self._wearers: dict[int, _Wearer] = {}
        self._faces_unmasked = self._masks_left = 0
        self._tracks_unmasked: set[int] = set()

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._wearers.clear()
        self._meet(frame)
        for face in frame.faces:
            face.crop_from_frame = placed(face.crop_from_frame, self._wearers[face.track_id].shift)
        changed = [face for face in frame.faces if not self._recall(face)]
        if changed:
            self._find(frame, changed)
        masked = {face.track_id for face in frame.faces if face.masked}
        self._faces_unmasked += len(masked)
        self._masks_left += frame.masks_left
        self._tracks_unmasked |= masked
        for track, wearer in self._wearers.items():
            if wearer.shift != USUAL and track not in masked:
                wearer.place(USUAL)
        return (frame,)

    def _meet(self, frame: Frame) -> None:
        """Begin with new tracks, and forget those that have ended."""
        seconds, given = frame.pts_seconds, {face.track_id for face in frame.faces}
        self._wearers = {t: w for t, w in self._wearers.items() if t in given or seconds - w.seen_at <= FORGET_SECONDS}
        for track in given:
            self._wearers.setdefault(track, _Wearer()).seen_at = seconds
        for track in self._wearers.keys() - given:
            self._wearers[track].is_absent()

    def _recall(self, face: Face) -> bool:
        """Write what is remembered of a face that has kept still. False where it is to be looked at."""
        memory = self._wearers[face.track_id].memory
        if memory is not None and memory.probability is None:
            face.still = False  # its crop does not lie where it did
        if not face.still or memory is None:
            return False
        face.pictures.mask[:], face.pictures.hidden[:] = memory.mask, memory.hidden
        face.mask_score, face.masked = memory.mask_score, memory.masked
        return True

    def _find(self, frame: Frame, faces: Sequence[Face]) -> None:
        """Find the masks of faces, and once more those that are cut off by their crops, in crops further to that side.
        One that no longer needs that goes back in the next frame."""
        self._canvas.crop_all(frame, [(face.crop_from_frame, face.pictures.crop) for face in faces])
        cut_off = []
        for face, probability in zip(faces, self._look(frame.index, faces), strict=True):
            wearer = self._wearers[face.track_id]
            solid = self._segment(face, probability)
            sure = cv2.bitwise_and(solid, cv2.compare(probability, _SURE, cv2.CMP_GT))
            shift = wearer.shift
            better = better_shift(sure, face.crop_from_frame, self._size, shift) if face.masked else shift
            if better[0] and not _looks_aside(face):
                better = 0, better[1]
            wearer.worn = wearer.worn + 1 if face.masked and wearer.bare else 0
            if better == shift or 0 < wearer.worn <= _PUT_ON_FRAMES:
                continue
            wearer.place(better)
            if not _goes_back(shift, better):
                step = better[0] - shift[0], better[1] - shift[1]
                face.crop_from_frame = placed(face.crop_from_frame, step)
                cut_off.append(face)
        if cut_off:
            self._canvas.crop_all(frame, [(face.crop_from_frame, face.pictures.crop) for face in cut_off])
            for face, probability in zip(cut_off, self._look(frame.index, cut_off), strict=True):
                self._segment(face, probability, again=True)

    def _segment(self, face: Face, probability: F32, *, again: bool = False) -> U8:
        """Decide whether a face wears a mask, and write its pictures; `again` for the second time in a frame.

        Returns:
            Where mask is, (S, S) uint8 0 or 255.
        """
        wearer, now, held = self._wearers[face.track_id], probability, 0
        memory = wearer.memory
        if memory is not None and memory.probability is not None:
            if memory.masked and not again and not face.reset and _looks_aside(face):
                now = probability = near_before(now, carried(memory.probability, memory.crop_from_frame, face))
            slips = memory.masked and self._is_a_slip(face, memory, again)
            if slips and has_gone(now, memory.probability):
                probability, held = carried(memory.probability, memory.crop_from_frame, face), memory.held + 1
            elif again or not face.reset:
                probability = steadied(now, memory.probability)
        solid = self._shape.solid(probability)
        points = transform_points(face.crop_from_frame, face.landmarks_px)
        face.masked = self._wears(face, wearer, solid, probability, points)
        if face.masked:
            likely = cv2.max(now, probability)  # a mask that rises is over an eye at once
            face.pictures.mask[:], face.pictures.hidden[:] = self._shape.regions(solid, likely, points)
            _show_rims(face, points)
        else:
            face.pictures.mask[:] = face.pictures.hidden[:] = 0
        regions = face.pictures.mask.copy(), face.pictures.hidden.copy()
        since = 0 if face.masked else _KEEPS_FRAMES if memory is None else memory.since + 1
        wearer.memory = Memory(probability, *regions, face.mask_score, face.masked, face.crop_from_frame, since, held)
        return solid

    def _is_a_slip(self, face: Face, memory: Memory, again: bool) -> bool:
        """Whether a mask that is gone all at once is more likely to be missed, as in profile, where crops jump."""
        return not again and face.score < _CERTAIN_FACE and memory.held < _HELD_FRAMES

    def _wears(self, face: Face, wearer: _Wearer, solid: U8, probability: F32, points: F32) -> bool:
        """Whether what was found is a mask that the face wears; writes `mask_score`."""
        area = cv2.countNonZero(solid) / _PIXELS
        core = cv2.bitwise_and(solid, cv2.compare(probability, _SURE, cv2.CMP_GT))
        sure = cv2.mean(probability, mask=core)[0] / 255.0
        face.mask_score = sure * min(1.0, area / _WEARS_AREA)
        memory = wearer.memory
        if memory is not None and memory.since < (_KEEPS_FRAMES if face.score < _CERTAIN_FACE else 1):
            return area >= _KEEPS_AREA
        wearer.bare += area < _KEEPS_AREA
        if self._comes_from_below(face, wearer, solid):
            return False
        as_found = wearer.bare < _BARE_LOOKS
        told = face.looks_masked and sure >= _TOLD
        if face.score >= _CERTAIN_FACE or (as_found and (told or sure >= _CERTAIN_MASK)):
            wearer.certain = True
        return (
            area >= _WEARS_AREA
            and sure >= _least_sure(face)
            and wearer.certain
            and _sits_on_a_face(solid)
            and (told or not _leaves_the_mouth_free(solid, points) or _certain_below_the_mouth(solid, sure))
        )

    def _comes_from_below(self, face: Face, wearer: _Wearer, solid: U8) -> bool:
        """Whether a mask is on its way to a face that has been bare for a while: one half of it would come off, and the
        other, beyond the crop, stay."""
        memory = wearer.memory
        bare = memory is not None and memory.since >= _KEEPS_FRAMES and wearer.bare > 0
        cut_off = bare and cv2.countNonZero(solid[-1:]) > _CUT_OFF_PX and self._goes_on_below(face)
        wearer.coming = wearer.coming + 1 if cut_off else 0
        return 0 < wearer.coming <= _PUT_ON_FRAMES

    def _goes_on_below(self, face: Face) -> bool:
        """Whether the picture goes on below the crop."""
        middle = np.array([[CROP_SIZE / 2, CROP_SIZE]], np.float32)
        bottom = transform_points(inverse_affine(face.crop_from_frame), middle)
        return bool(bottom[0, 1] < self._size[1])

    def _look(self, index: int, faces: Sequence[Face]) -> list[F32]:
        """(S, S) float32 0..255 for each face: how likely each pixel of its crop is mask.

        Where hands cover most of a mask the network misses the rest, and finds it in a closer view; bare faces stay
        bare in both. So a crop with no mask in it, or part of one, is looked at twice.
        """
        crops = np.stack([face.pictures.crop for face in faces])
        found = [np.asarray(probability, np.float32) for probability in self._engine(crops)]
        for i, face in enumerate(faces):
            if face.score < _CERTAIN_FACE and 0 < _sureness(found[i]) < _UNSURE:
                found[i] = self._lowered(face, crops[i], found[i])
        doubtful = [i for i, one in enumerate(found) if not self._shows_a_whole_mask(one)]
        if self._spread:
            doubtful = self._whose_turn(index, faces, doubtful)
        for i, closer in zip(doubtful, self._views([(crops[i], _CLOSER) for i in doubtful]), strict=True):
            found[i] = np.asarray(np.maximum(found[i], closer), np.float32)
            shows_mask = cv2.countNonZero(cv2.compare(closer, _SURE, cv2.CMP_GT)) >= _KEEPS_AREA * _PIXELS
            self._wearers[faces[i].track_id].closer = index, shows_mask
        return found

    def _lowered(self, face: Face, crop: U8, found: F32) -> F32:
        """What is mask in profile, where the landmarks, and with them the crop, may lie turned so far that the network
        is hardly sure of any: that, or what it finds where the head looks down, whichever shows more."""
        memory = self._wearers[face.track_id].memory
        if memory is None or not memory.masked:
            return found
        moments = cv2.moments(memory.mask, binaryImage=True)
        aside = moments["m10"] / max(moments["m00"], 1.0) - CROP_SIZE / 2
        if abs(aside) < _ASIDE_PX:
            return found
        return max(found, *self._views([(crop, _LOWERED[aside > 0])]), key=_certain_mask)

    def _views(self, views: Sequence[tuple[U8, F64]]) -> list[F32]:
        """(S, S) float32 0..255 each: how likely each pixel of crops is mask, as seen in other views of them."""
        if not views:
            return []
        size, border, back = (CROP_SIZE, CROP_SIZE), cv2.BORDER_REPLICATE, cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
        seen = [cv2.warpAffine(crop, m, size, flags=cv2.INTER_LINEAR, borderMode=border) for crop, m in views]
        return [
            np.asarray(cv2.warpAffine(found.astype(np.float32), m, size, flags=back), np.float32)
            for (_, m), found in zip(views, self._engine(np.stack(seen).astype(np.uint8, copy=False)), strict=True)
        ]

    def _whose_turn(self, index: int, faces: Sequence[Face], doubtful: list[int]) -> list[int]:
        """Of the faces without a whole mask, by position, those to look at closer in this frame."""
        looks = {i: self._wearers[faces[i].track_id].closer for i in doubtful}
        shown = [i for i, (_, shows_mask) in looks.items() if shows_mask]
        others = [i for i in doubtful if i not in shown and index - looks[i][0] >= _CLOSER_EVERY]
        return [*shown, *sorted(others, key=lambda i: looks[i][0])[:1]]

    def _shows_a_whole_mask(self, probability: F32) -> bool:
        enough = _WHOLE_AREA * _PIXELS
        # Mostly the sure part alone is large enough, which costs a tenth of finding what hangs together with it.
        if cv2.countNonZero(cv2.compare(probability, _SURE, cv2.CMP_GT)) >= enough:
            return True
        return cv2.countNonZero(self._shape.solid(probability)) >= enough

    def summary(self) -> dict[str, Any]:
        return {
            "engine": self._engine.description,
            "masks_removed": self._faces_unmasked,
            "masks_left": self._masks_left,
            "people_unmasked": len(self._tracks_unmasked),
        }
