"""Inpaint: paints the hidden part of each masked face, in its canonical crop."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import cv2
import numpy as np

from unmask.models.engine import Engine, choose
from unmask.models.geometry import CROP_SIZE, fit_affine, transform_points
from unmask.stream.frame import F32, F64, U8, Face, Frame
from unmask.stream.stage import Context, Stage

_PAINT_EVERY: Final = 4
"""Frames between two paintings of a face that keeps still; those of several faces fall into different frames."""
_BEND_PX: Final = 0.75
"""Movement of the points since the painting, beyond what an affine map explains, from which on a face is painted anew
(crop px, root mean square)."""
_LIGHT: Final = 2.0
"""The same for the colour of what can be seen of the face (mean, of 255)."""
_UNCOVERED: Final = 0.01
"""The same for the part of the mask that lies outside of what was painted."""
_FEWEST_POINTS: Final = 12
"""Points whose movement can be seen, below which a face is painted anew."""
_BESIDE_PX: Final = 4
"""How far from the mask such points lie at least: what is nearer moves with its edge."""
_FACE: Final = cv2.ellipse(np.zeros((CROP_SIZE, CROP_SIZE), np.uint8), (128, 124), (60, 90), 0, 0, 360, 255, -1)
"""Where skin is in the canonical crop: 255, elsewhere 0."""


@dataclass(slots=True)
class _Painting:
    """What the network painted, and what it saw.

    Attributes:
        picture: (S, S, 3) uint8 RGB.
        hidden: (S, S) uint8, 255 where it was painted.
        points: (468, 2) float32, the landmarks in crop px.
        grey: (S, S) uint8, brightness of the crop.
        light: (3,) float32, mean colour of what could be seen of the face.
    """

    picture: U8
    hidden: U8
    points: F32
    grey: U8
    light: F32


class Inpaint(Stage):
    """Writes `painted` of each masked face.

    The network runs again when a face has turned, its light has changed, its mask covers what was not painted, or
    the last painting is `every` frames old. In between the last painting is moved along with the face.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        engine: "auto" or the name of one.
        person: file with a personal model; empty for the general one.
        threads: CPU threads of the network; 0 leaves it to the engine.
        every: frames between two paintings of a face that keeps still; 1 paints each frame.
    """

    name: ClassVar[str] = "inpaint"

    def __init__(
        self,
        device: str = "auto",
        engine: str = "auto",
        person: str = "",
        threads: int = 0,
        *,
        every: int = _PAINT_EVERY,
    ) -> None:
        self._device, self._engine_name, self._person, self._threads = device, engine, person, threads
        self._every = every

    def open(self, context: Context) -> None:
        choice = choose(self._device, self._engine_name, threads=self._threads, person=self._person)
        self._engine: Engine = context.load("inpainter", choice, context.notice)
        self._paintings: dict[int, _Painting] = {}
        self._painted = self._moved = 0

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._paintings.clear()
        present: set[int] = set()
        due: list[tuple[Face, _Painting]] = []
        for face in frame.faces:
            if face.masked:
                present.add(face.track_id)
                view = _view(face)
                if (frame.index + face.track_id) % self._every == 0 or not self._move_along(face, view):
                    due.append((face, view))
        if due:
            self._paint(due)
        self._moved += len(present) - len(due)
        self._paintings = {track: p for track, p in self._paintings.items() if track in present}
        return (frame,)

    def _paint(self, due: list[tuple[Face, _Painting]]) -> None:
        painted = self._engine(
            np.stack([face.pictures.crop for face, _ in due]), np.stack([view.hidden for _, view in due])
        )
        for (face, view), picture in zip(due, painted, strict=True):
            view.picture[:] = face.pictures.painted[:] = picture
            self._paintings[face.track_id] = view
        self._painted += len(due)

    def _move_along(self, face: Face, now: _Painting) -> bool:
        """Write the last painting of a face where the face is now. False where it no longer fits."""
        last = None if face.reset else self._paintings.get(face.track_id)
        if last is None or np.abs(now.light - last.light).max() > _LIGHT:
            return False
        matrix = _movement(last, now)
        if matrix is None:
            return False
        size = (CROP_SIZE, CROP_SIZE)
        covered = np.asarray(cv2.warpAffine(last.hidden, matrix, size, flags=cv2.INTER_NEAREST), np.uint8)
        bare = cv2.bitwise_and(face.pictures.mask, cv2.bitwise_not(covered))
        if cv2.sumElems(bare)[0] > _UNCOVERED * cv2.sumElems(face.pictures.mask)[0]:
            return False
        flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
        cv2.warpAffine(last.picture, matrix, size, dst=face.pictures.painted, flags=flags, borderMode=border)
        return True

    def summary(self) -> dict[str, Any]:
        return {"engine": self._engine.description, "painted": self._painted, "moved_along": self._moved}


def _view(face: Face) -> _Painting:
    """What the network sees of a face now; nothing is painted yet."""
    # All that may be replaced is hidden from the network, the soft edge too: it still shows the mask.
    hidden = np.asarray(cv2.compare(face.pictures.mask, 0, cv2.CMP_GT), np.uint8)
    points = transform_points(face.crop_from_frame, face.landmarks_px)
    grey = np.asarray(cv2.cvtColor(face.pictures.crop, cv2.COLOR_RGB2GRAY), np.uint8)
    light = np.array(cv2.mean(face.pictures.crop, mask=_FACE & cv2.bitwise_not(hidden))[:3], np.float32)
    return _Painting(np.empty_like(face.pictures.crop), hidden, points, grey, light)


def _movement(last: _Painting, now: _Painting) -> F64 | None:
    """The similarity (2, 3) that takes the crop of the last painting to the one of now; None where there is none.

    Landmarks are filtered over time, and so a little late: a painting that followed them would swim on the face. They
    say where to look for what can be seen around them, by optical flow (Lucas and Kanade 1981, in Bouguet's pyramids).
    """
    landmarks, bend = fit_affine(last.points, now.points)
    if bend > _BEND_PX:
        return None
    margin = np.ones((2 * _BESIDE_PX + 1, 2 * _BESIDE_PX + 1), np.uint8)
    hidden = cv2.dilate(cv2.bitwise_or(last.hidden, now.hidden), margin)
    low, high = _BESIDE_PX, CROP_SIZE - 1 - _BESIDE_PX
    x, y = np.clip(np.rint(last.points), low, high).astype(int).T
    inside = ((last.points > low) & (last.points < high)).all(axis=1)
    before = np.ascontiguousarray(last.points[inside & (hidden[y, x] == 0)][::2])
    if len(before) < _FEWEST_POINTS:
        return None
    after, found, _ = cv2.calcOpticalFlowPyrLK(
        last.grey,
        now.grey,
        before,
        transform_points(landmarks, before),
        winSize=(11, 11),
        maxLevel=1,
        criteria=(cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 10, 0.03),
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
    )
    seen = found[:, 0] == 1
    if np.count_nonzero(seen) < _FEWEST_POINTS:
        return None
    matrix, _ = cv2.estimateAffinePartial2D(before[seen], after[seen], method=cv2.RANSAC, ransacReprojThreshold=1.0)
    return None if matrix is None else np.asarray(matrix, np.float64)
