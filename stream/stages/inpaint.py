"""Inpaint: paints the hidden part of each masked face, in its canonical crop."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import cv2
import numpy as np

from unmask.models.engine import Engine, choose
from unmask.models.geometry import transform_landmarks
from unmask.models.outline import Shown, beside_face, beyond_outline, fill_beyond
from unmask.stream import naming
from unmask.stream.face_memory import FaceMemory
from unmask.stream.frame import U8, Face, Frame
from unmask.stream.later_views import LaterViews
from unmask.stream.mask_rests import fill_rests
from unmask.stream.monochrome import tint
from unmask.stream.stage import Context, Stage


def _shown(face: Face, *, put_on: bool) -> Shown:
    """The crop of a masked face, with background where the mask stands off it or, being put on, lies beside it."""
    seen, points = face.pictures, transform_landmarks(face.crop_from_frame, face.landmarks_px)
    beyond = beyond_outline(points, seen.hidden)
    if beyond is None and put_on:
        beyond = beside_face(points, seen.hidden)
    if beyond is None:
        return Shown(seen.crop, seen.hidden, np.zeros_like(seen.hidden))
    return fill_beyond(seen.crop, seen.hidden, seen.mask, beyond)


class _Painting(NamedTuple):
    """What was painted of a face (S, S, 3) uint8, and whether most of it is the face as it was seen."""

    rgb: U8
    as_seen: bool


class Inpaint(Stage):
    """Writes `painted` of each masked face. On one that keeps still, what was painted stays.

    Args:
        device: "auto", "cpu", "cuda" or "cuda:N".
        engine: "auto" or the name of one.
        person: file with a personal model, whose views are shown, too; empty for the general one.
        threads: CPU threads of the network; 0 leaves it to the engine.
        memory: whether a face that was seen without a mask, before or for the personal model, is shown as it was.
        later: file that `Remember` wrote in a first pass through the video; empty for none.
    """

    name: ClassVar[str] = "inpaint"

    def __init__(
        self,
        device: str = "auto",
        engine: str = "auto",
        person: str = "",
        threads: int = 0,
        *,
        memory: bool = True,
        later: str = "",
    ) -> None:
        self._device, self._engine_name, self._person, self._threads = device, engine, person, threads
        self._remembers, self._later = memory, later

    def open(self, context: Context) -> None:
        self._later_views: LaterViews | None = None  # `close` looks at it however far this comes
        choice = choose(self._device, self._engine_name, threads=self._threads, person=self._person)
        self._engine: Engine = context.load("inpainter", choice, context.notice)
        self._paintings: dict[int, _Painting] = {}
        known = context.views(self._person) if self._person and self._remembers else None
        self._later_views = LaterViews(Path(self._later)) if self._later else None
        self._memory = FaceMemory(self._later_views, known=known)
        self._knows = bool(known)
        self._painted = self._kept = self._as_seen = 0

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.discontinuity:
            self._memory.forget()
        if self._remembers:
            self._memory.look(frame.faces, frame.pts_seconds)
        masked = [face for face in frame.faces if face.masked]
        changed = [face for face in masked if not self._recall(face)]
        if changed:
            self._paint(changed, frame.pts_seconds)
        self._kept += len(masked) - len(changed)
        self._paintings = {face.track_id: self._paintings[face.track_id] for face in masked}
        self._as_seen += sum(painting.as_seen for painting in self._paintings.values())
        return (frame,)

    def _recall(self, face: Face) -> bool:
        """Write what was painted of a face that has kept still. False where it is to be painted."""
        painting = self._paintings.get(face.track_id)
        if not face.still or painting is None:
            return False
        face.pictures.painted[:] = painting.rgb
        return True

    def _paint(self, faces: Sequence[Face], seconds: float) -> None:
        """Paint faces anew, all in one call of the network."""
        shown = [self._prepare(face, seconds) for face in faces]
        pictures = self._engine(np.stack([one.rgb for one in shown]), np.stack([one.hidden for one in shown]))
        for face, one, picture in zip(faces, shown, pictures, strict=True):
            self._finish(face, one, picture, seconds)
        self._painted += len(faces)

    def _prepare(self, face: Face, seconds: float) -> Shown:
        """What the network is shown of a face, whose landmarks are put right before. What is hidden from it ends
        before the soft edge does: between the two it gives skin back, and tones down the mask's faint edge."""
        self._memory.place(face, seconds)
        background = _shown(face, put_on=self._memory.is_put_on(face, seconds))
        return self._memory.with_eyes(face, background, seconds)

    def _finish(self, face: Face, shown: Shown, picture: U8, seconds: float) -> None:
        """Write what the network has painted (S, S, 3), and over it what is known better."""
        painted = face.pictures.painted
        painted[:] = picture
        tint(shown.rgb, cv2.compare(face.pictures.mask, 0, cv2.CMP_EQ), painted)
        if (given := shown.given > 0).any():
            painted[given] = shown.rgb[given]
        fill_rests(shown.rgb, shown.hidden, painted)
        share = self._memory.show_bare(face, shown, painted, seconds)
        self._paintings[face.track_id] = _Painting(painted.copy(), as_seen=share > 0.5)

    def close(self) -> None:
        if self._later_views is not None:
            self._later_views.close()

    def summary(self) -> dict[str, Any]:
        counts = {"painted": self._painted, "kept": self._kept, "as_seen": self._as_seen}
        counts |= {"too_late": 0 if self._later else self._memory.too_late}
        known = {"person": naming.shown(self._person), "person_shown": self._memory.known_shown} if self._knows else {}
        return {"engine": self._engine.description, **counts, **known}
