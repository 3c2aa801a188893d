"""Segment: cuts the canonical crop of each face, finds the mask in it, and decides whether the face wears one."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2
import numpy as np
import numpy.typing as npt

from unmask.models.engine import Engine, choose
from unmask.models.geometry import CROP_SIZE, head_pose, transform_points
from unmask.models.mask_region import NO_MASK, mask_region
from unmask.models.placement import USUAL, Shift, better_shift, placed
from unmask.stream.canvas import canvas_for, compose, inverse_affine
from unmask.stream.frame import F64, U8, Face, Frame
from unmask.stream.stage import Context, Stage

F32 = npt.NDArray[np.float32]

_PIXELS: Final = CROP_SIZE * CROP_SIZE
_WEARS_AREA: Final = 0.03
"""Share of the crop that a mask covers at least; one worn well covers a fifth, one under the chin about a tenth."""
_KEEPS_AREA: Final = 0.015
_KEEPS_FRAMES: Final = 12
"""The same for a face that wore one in the frame before, or, where it is in doubt itself, so few frames before: between
both areas nothing changes, so nothing flickers."""
_GONE: Final = 0.3
_HELD_FRAMES: Final = 3
"""A mask of which so little is left from one frame to the next, on a face that is in doubt itself, is believed to be
there for so many frames: in full profile crops jump, and the network misses it in one or two."""
_WHOLE_AREA: Final = 0.1
"""A mask that covers less of the crop is partly hidden, or only half of it was found."""
_CLOSER: Final = cv2.getRotationMatrix2D((CROP_SIZE / 2, CROP_SIZE / 2), 0.0, 1.2)
"""The closer view of a crop in which no whole mask was found at first."""
_CLOSER_EVERY: Final = 4
"""Frames between closer looks that show no mask, where the work is spread over frames."""
_CERTAIN_FACE: Final = 0.9
_CERTAIN_MASK: Final = 0.93
"""On what has never been a certain face, only a mask beyond doubt counts: emblems on flags and jackets get less."""
_BARE_LOOKS: Final = 5
"""After so many looks that showed no mask on it, not even that one: a mask may pass before an emblem."""
_CERTAIN_BELOW: Final = 0.9
"""A mask that leaves the mouth free must be surer than others: scarves and collars look like one under the chin."""
_LIPS: Final = (61, 37, 267, 291, 314, 84)
"""Landmarks around the lips."""
_MIDDLE_PX: Final = (60.0, 95.0)
"""How far from the middle column, and how far down at least, the middle of a worn mask lies in the crop."""
_SPECK_AREA_PX: Final = 40
"""Spots smaller than this are mistakes. Narrow parts stay: they may be ear loops."""
_GROW_PX: Final = 3
"""How far the painted region reaches beyond the mask: its shadow and its fibres lie there."""
_FRINGE_PX: Final = 1
"""How far beyond the mask nothing of the face can be seen."""
_FEATHER_PX: Final = 3
"""Width of the soft edge."""
_GAP_PX: Final = 5
"""Half the width of what is narrow: there the painted region does not reach beyond the mask."""
_EYES: Final = (
    (33, 246, 161, 160, 159, 158, 157, 173, 133, 155, 154, 153, 145, 144, 163, 7),
    (263, 466, 388, 387, 386, 385, 384, 398, 362, 382, 381, 380, 374, 373, 390, 249),
)
"""Landmarks around the openings of the eyes."""
_LID_PX: Final = 3
"""How far the rims of the eyes reach beyond their openings."""
_SURE: Final = 127.5
"""Of 255: more likely mask than not."""
_HIDES_EYE: Final = 217
"""Of 255: how likely mask must be for an eye to be painted over, as where a mask is being put on."""
_PUT_ON_FRAMES: Final = 12
"""So long after a face was bare its crop stays where it is: a mask that is being put on crosses the crop's border."""
_ASIDE: Final = 0.5
"""Radians from which on a head looks aside: 29 degrees."""
_STEADY: Final = 0.5
"""Weight of the frame before in the probability of a mask that keeps still in the crop."""
_AGREES: Final = (0.85, 0.95)
"""Overlap (soft IoU) of two frames' probabilities: from the second on a mask keeps still; up to the first it moves, and
the frame before says nothing. Worn masks have 0.95 to 0.99; while one is put on, or a hand moves before it, 0.55 to
0.92."""
_FADES: Final = 0.8
"""Where so little of the frame before is left, the mask has not moved, but the network doubts."""


@dataclass(slots=True)
class _Memory:
    """What was found in the crop of a face in the frame before; names are those of `Face` and its pictures.

    `probability` is (S, S) float32 0..255, that each pixel is mask; None where the crop has been placed anew since.
    `since` counts frames since a mask was worn, `held` those for which one was kept that was not found.
    """

    probability: F32 | None
    mask: U8
    hidden: U8
    mask_score: float
    masked: bool
    crop_from_frame: F64
    since: int
    held: int


def _disc(radius: int) -> U8:
    return np.asarray(cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * radius + 1, 2 * radius + 1)), np.uint8)


def _border_window() -> F32:
    """(S, S) float32, 1 inside, falling to 0 at the border of the crop, beyond which nothing can be painted."""
    ramp = np.clip(np.minimum(np.arange(CROP_SIZE), np.arange(CROP_SIZE)[::-1]) / 8.0, 0, 1)
    return np.asarray(np.minimum.outer(ramp, ramp), np.float32)


def _sits_on_a_face(solid: U8) -> bool:
    """Whether the middle of a mask lies where a mask can be worn, from the nose to the neck."""
    moments = cv2.moments(solid, binaryImage=True)
    x, y = moments["m10"] / moments["m00"], moments["m01"] / moments["m00"]
    aside, down = _MIDDLE_PX
    return bool(abs(x - CROP_SIZE / 2) < aside and y > down)


def _weight_of_before(now: F32, before: F32) -> float:
    """How much the probability of the frame before counts, 0..1."""
    seen, seen_before = cv2.sumElems(now)[0], cv2.sumElems(before)[0]
    if seen < _FADES * seen_before:
        return _STEADY
    both = cv2.sumElems(cv2.min(now, before))[0]
    low, high = _AGREES
    return _STEADY * float(np.clip((both / max(seen + seen_before - both, 1e-6) - low) / (high - low), 0, 1))


def _carried(probability: F32, crop_from_frame: F64, face: Face) -> F32:
    """What was found in a crop of the frame before, in the crop as it lies now: heads move less than crops may jump."""
    moved = compose(face.crop_from_frame, inverse_affine(crop_from_frame))
    return np.asarray(cv2.warpAffine(probability, moved, probability.shape), np.float32)


def _has_gone(now: F32, before: F32) -> bool:
    """Whether next to nothing is left of a mask."""
    return bool(cv2.sumElems(now)[0] < _GONE * cv2.sumElems(before)[0])


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


class MaskShape:
    """From a probability to the region that is painted."""

    def __init__(self) -> None:
        self._grow, self._fringe, self._gap = _disc(_GROW_PX), _disc(_FRINGE_PX), _disc(_GAP_PX)
        self._window = _border_window()

    def solid(self, probability: F32) -> U8:
        """(S, S) uint8 0 or 255: where mask is, without specks. `probability` is 0..255."""
        return mask_region(probability, _SPECK_AREA_PX)

    def regions(self, solid: U8, probability: F32, points: F32) -> tuple[U8, U8]:
        """The mask grown by its shadow, with a soft edge, but not over eyes that can be seen, nor over rims of glasses
        and the like, which the growth from both sides would cover.

        Args:
            solid: from `solid`.
            probability: (S, S) float32 0..255.
            points: (468, 2) float32, the landmarks in crop px.

        Returns:
            `mask` and `hidden` as in `FacePictures`.
        """
        eyes = np.zeros_like(solid)
        for eye in _EYES:
            contour = np.round(points[list(eye)]).astype(np.int32)
            cv2.fillPoly(eyes, [contour], 255)
            cv2.polylines(eyes, [contour], True, 255, 2 * _LID_PX)
        eyes[probability >= _HIDES_EYE] = 0
        gaps = cv2.morphologyEx(solid, cv2.MORPH_CLOSE, self._gap) & ~solid
        seen = eyes | (gaps & cv2.compare(probability, NO_MASK, cv2.CMP_LT))
        grown = cv2.blur(cv2.dilate(solid, self._grow) & ~seen, (_FEATHER_PX, _FEATHER_PX))
        return np.asarray(grown * self._window, np.uint8), np.asarray(cv2.dilate(solid, self._fringe) & ~seen, np.uint8)


class Segment(Stage):
    """Writes `crop`, `mask`, `mask_score` and `masked` of each face. On one that keeps still, what was found stays.

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
        self._memory: dict[int, _Memory] = {}
        self._shifts: dict[int, Shift] = {}
        self._closer: dict[int, tuple[int, bool]] = {}  # by track: when it was last looked at closer; was there mask
        self._certain: set[int] = set()
        self._bare: Counter[int] = Counter()
        self._worn: Counter[int] = Counter()  # by track: frames since it put on a mask, 0 where it came with one
        self._faces_unmasked = 0
        self._tracks_unmasked: set[int] = set()

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._memory.clear()
            self._shifts.clear()
            self._closer.clear()
        for face in frame.faces:
            face.crop_from_frame = placed(face.crop_from_frame, self._shifts.get(face.track_id, USUAL))
        changed = [face for face in frame.faces if not self._recall(face)]
        if changed:
            self._find(frame, changed)
        masked = [face.track_id for face in frame.faces if face.masked]
        self._faces_unmasked += len(masked)
        self._tracks_unmasked.update(masked)
        present = {face.track_id for face in frame.faces}
        self._memory = {track: m for track, m in self._memory.items() if track in present}
        for track in self._shifts.keys() - set(masked):
            self._place(track, USUAL)
        self._closer = {track: look for track, look in self._closer.items() if track in present}
        return (frame,)

    def _recall(self, face: Face) -> bool:
        """Write what is remembered of a face that has kept still. False where it is to be looked at."""
        memory = self._memory.get(face.track_id)
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
            solid, shift = self._segment(face, probability), self._shifts.get(face.track_id, USUAL)
            sure = cv2.bitwise_and(solid, cv2.compare(probability, _SURE, cv2.CMP_GT))
            better = better_shift(sure, face.crop_from_frame, self._size, shift) if face.masked else shift
            if better[0] and not _looks_aside(face):
                better = 0, better[1]
            self._worn[face.track_id] = (
                self._worn[face.track_id] + 1 if face.masked and self._bare[face.track_id] else 0
            )
            if better == shift or 0 < self._worn[face.track_id] <= _PUT_ON_FRAMES:
                continue
            self._place(face.track_id, better)
            if not _goes_back(shift, better):
                step = better[0] - shift[0], better[1] - shift[1]
                face.crop_from_frame = placed(face.crop_from_frame, step)
                cut_off.append(face)
        if cut_off:
            self._canvas.crop_all(frame, [(face.crop_from_frame, face.pictures.crop) for face in cut_off])
            for face, probability in zip(cut_off, self._look(frame.index, cut_off), strict=True):
                self._segment(face, probability, again=True)

    def _place(self, track_id: int, shift: Shift) -> None:
        """Have the crops of a face lie elsewhere from now on."""
        self._shifts[track_id] = shift
        if shift == USUAL:
            del self._shifts[track_id]
        if track_id in self._memory:
            self._memory[track_id].probability = None

    def _segment(self, face: Face, probability: F32, *, again: bool = False) -> U8:
        """Decide whether a face wears a mask, and write its pictures; `again` for the second time in a frame.

        Returns:
            Where mask is, (S, S) uint8 0 or 255.
        """
        memory, now = self._memory.get(face.track_id), probability
        held = 0
        if memory is not None and memory.probability is not None:
            slips = memory.masked and self._is_a_slip(face, memory, again)
            if slips and _has_gone(now, memory.probability):
                probability, held = _carried(memory.probability, memory.crop_from_frame, face), memory.held + 1
            elif again or not face.reset:
                weight = _weight_of_before(now, memory.probability)
                probability = cv2.addWeighted(now, 1 - weight, memory.probability, weight, 0)
        solid = self._shape.solid(probability)
        points = transform_points(face.crop_from_frame, face.landmarks_px)
        face.masked = self._wears(face, solid, probability, points)
        if face.masked:
            likely = cv2.max(now, probability)  # a mask that rises is over an eye at once
            face.pictures.mask[:], face.pictures.hidden[:] = self._shape.regions(solid, likely, points)
        else:
            face.pictures.mask[:] = face.pictures.hidden[:] = 0
        regions = face.pictures.mask.copy(), face.pictures.hidden.copy()
        since = 0 if face.masked else _KEEPS_FRAMES if memory is None else memory.since + 1
        self._memory[face.track_id] = _Memory(
            probability, *regions, face.mask_score, face.masked, face.crop_from_frame, since, held
        )
        return solid

    def _is_a_slip(self, face: Face, memory: _Memory, again: bool) -> bool:
        """Whether a mask that is gone all at once is more likely to be missed, as in profile, where crops jump."""
        return not again and face.score < _CERTAIN_FACE and memory.held < _HELD_FRAMES

    def _wears(self, face: Face, solid: U8, probability: F32, points: F32) -> bool:
        """Whether what was found is a mask that the face wears; writes `mask_score`."""
        area = cv2.countNonZero(solid) / _PIXELS
        core = cv2.bitwise_and(solid, cv2.compare(probability, _SURE, cv2.CMP_GT))
        sure = cv2.mean(probability, mask=core)[0] / 255.0
        face.mask_score = sure * min(1.0, area / _WEARS_AREA)
        memory = self._memory.get(face.track_id)
        if memory is not None and memory.since < (_KEEPS_FRAMES if face.score < _CERTAIN_FACE else 1):
            return area >= _KEEPS_AREA
        self._bare[face.track_id] += area < _KEEPS_AREA
        as_found = self._bare[face.track_id] < _BARE_LOOKS
        if face.score >= _CERTAIN_FACE or (as_found and sure >= _CERTAIN_MASK):
            self._certain.add(face.track_id)
        return (
            area >= _WEARS_AREA
            and face.track_id in self._certain
            and _sits_on_a_face(solid)
            and (sure >= _CERTAIN_BELOW or not _leaves_the_mouth_free(solid, points))
        )

    def _look(self, index: int, faces: Sequence[Face]) -> list[F32]:
        """(S, S) float32 0..255 for each face: how likely each pixel of its crop is mask.

        Where hands cover most of a mask the network misses the rest, and finds it in a closer view; bare faces stay
        bare in both. So a crop with no mask in it, or part of one, is looked at twice.
        """
        crops = np.stack([face.pictures.crop for face in faces])
        found = [np.asarray(probability, np.float32) for probability in self._engine(crops)]
        doubtful = [i for i, one in enumerate(found) if not self._shows_a_whole_mask(one)]
        if self._spread:
            doubtful = self._whose_turn(index, faces, doubtful)
        if doubtful:
            size = (CROP_SIZE, CROP_SIZE)
            border = cv2.BORDER_REPLICATE
            closer = [
                cv2.warpAffine(crops[i], _CLOSER, size, flags=cv2.INTER_LINEAR, borderMode=border) for i in doubtful
            ]
            for i, again in zip(doubtful, self._engine(np.stack(closer).astype(np.uint8, copy=False)), strict=True):
                back = cv2.warpAffine(
                    again.astype(np.float32), _CLOSER, size, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
                )
                found[i] = np.asarray(np.maximum(found[i], back), np.float32)
                shows_mask = cv2.countNonZero(cv2.compare(back, _SURE, cv2.CMP_GT)) >= _KEEPS_AREA * _PIXELS
                self._closer[faces[i].track_id] = index, shows_mask
        return found

    def _whose_turn(self, index: int, faces: Sequence[Face], doubtful: list[int]) -> list[int]:
        """Of the faces without a whole mask, by position, those to look at closer in this frame."""
        never = -_CLOSER_EVERY, False
        looks = {i: self._closer.get(faces[i].track_id, never) for i in doubtful}
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
            "people_unmasked": len(self._tracks_unmasked),
        }
