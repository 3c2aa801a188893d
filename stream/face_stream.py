"""One client's stream: its pictures go through stages of its own, which remember its faces and nobody else's."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np

from unmask.errors import StageError
from unmask.models.batching import BatchingEngine
from unmask.models.engine import NETWORKS, Engine, EngineChoice, NetworkName, choose, load
from unmask.models.person import Person
from unmask.models.seen import Views
from unmask.stream.frame import U8, Face, Frame
from unmask.stream.pipeline import Settings, face_stages
from unmask.stream.protocol import CODED_FORMATS, FoundFace, FrameRequest, Limits, ProtocolError
from unmask.stream.stage import Context
from unmask.stream.wire import decode_picture, fill, layout_of, pack

_TICKS = 1_000_000
"""Units of a frame's time per second."""


class SharedEngines:
    """Each network once, for all streams, and a personal model's views: crops that wait at the same time go through a
    network together.

    Args:
        settings: about the faces, as the streams will have them.
        notice: takes each line that the user should know: which engine is used and why, what is being compiled.

    Raises:
        UserError: the device or the personal model cannot be used.
        EngineError: a network cannot be loaded.
    """

    def __init__(self, settings: Settings, notice: Callable[[str], None]) -> None:
        choice = choose(settings.device, settings.engine, person=settings.person)
        for reason in choice.why_not_better:
            notice(reason)
        self._engines = {network: BatchingEngine(load(network, choice, notice)) for network in NETWORKS}
        self.description = self._engines["inpainter"].description
        self._views = Person.load(Path(settings.person)).views if settings.person else Views()
        # The trackers' networks are loaded by the stages; the first client should not wait for them.
        first = FaceStream(settings, self, Limits(), lambda step, seconds: None)
        first.process(FrameRequest(0, "", "gray8", 64 * 64, 0.0, 64, 64), memoryview(bytes(64 * 64)))
        first.close()

    def load(self, network: NetworkName, choice: EngineChoice, notice: Callable[[str], None]) -> Engine:
        """What stages get in place of a network of their own."""
        del choice, notice  # every stream has the server's device
        return self._engines[network]

    def views(self, person: str) -> Views:
        """Those of the server's personal model. The file may be gone by now."""
        del person
        return self._views


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of a picture.

    Attributes:
        picture: (N,) uint8, in the format asked for.
        width, height: in px.
        faces: the largest first, by the distance of the eyes; those shown before count 15 % larger.
    """

    picture: U8
    width: int
    height: int
    faces: tuple[FoundFace, ...]


class FaceStream:
    """Used by one thread at a time.

    Args:
        settings: about the faces.
        engines: the networks.
        limits: of pictures.
        timed: called with the name of each step and the seconds that it took.
    """

    def __init__(
        self, settings: Settings, engines: SharedEngines, limits: Limits, timed: Callable[[str, float], None]
    ) -> None:
        self._settings = settings
        self._engines = engines
        self._limits = limits
        self._timed = timed
        self._opened = ExitStack()
        self._context: Context | None = None
        self._buffer = np.empty(0, np.uint8)
        self._index = 0
        self._first_track = 0  # stages that are opened again count their tracks from 0
        self._next_track = 0

    def process(self, request: FrameRequest, data: memoryview) -> Answer:
        """Take the masks off one picture.

        Args:
            request: checked by `unmask.stream.protocol`.
            data: the picture; read before anything is worked on.

        Raises:
            ProtocolError: the picture cannot be decoded, or not be given in the format asked for.
            UnmaskError: a stage failed; the stream begins anew with the next picture.
        """
        start = time.perf_counter()
        frame = self._frame(request, data)
        self._timed("decode", time.perf_counter() - start)
        try:
            self._through_stages(frame)
        except Exception:
            self.close()
            raise
        start = time.perf_counter()
        picture = pack(frame, request.answer or request.format)
        self._timed("encode", time.perf_counter() - start)
        faces = tuple(self._found(face) for face in frame.faces)
        return Answer(picture, frame.layout.width, frame.layout.height, faces)

    def close(self) -> None:
        """Forget everything; the stream can go on."""
        self._opened.close()
        self._context = None
        self._index = 0  # the tracker plans its searches by it
        self._first_track = self._next_track

    def _frame(self, request: FrameRequest, data: memoryview) -> Frame:
        width, height = request.width, request.height
        if request.reset:
            self.close()  # now: the picture may be refused, and later ones rely on it
        if request.format in CODED_FORMATS:
            picture = decode_picture(request.format, data, self._limits)
            height, width = picture.shape[:2]
            if request.answer == "nv12" and (width % 2 or height % 2):
                raise ProtocolError("format", f"nv12 needs even sizes, not {width}x{height} px")
        else:
            picture = np.frombuffer(data, np.uint8)
        layout = layout_of(request.format, width, height)
        if self._context is None or self._context.layout != layout:
            self._open(Context(layout, self._settings.max_faces, load=self._engines.load, views=self._engines.views))
        pts = round(request.seconds * _TICKS)
        frame = Frame(self._index, pts, Fraction(1, _TICKS), layout, self._buffer, 0, discontinuity=request.reset)
        self._index += 1
        fill(frame, request.format, picture)
        return frame

    def _open(self, context: Context) -> None:
        self.close()
        self._buffer = np.zeros(context.layout.slot_bytes(context.max_faces), np.uint8)
        self._stages = face_stages(self._settings)
        for stage in self._stages:
            stage.open(context)
            self._opened.callback(stage.close)
        self._context = context

    def _through_stages(self, frame: Frame) -> None:
        for stage in self._stages:
            start = time.perf_counter()
            given = list(stage.process(frame))
            if len(given) != 1 or given[0] is not frame:
                raise StageError(stage.name, f"gave back {len(given)} frames for one")
            self._timed(stage.name, time.perf_counter() - start)

    def _found(self, face: Face) -> FoundFace:
        x0, y0, x1, y1 = (round(float(side), 1) for side in face.box_px)
        track = self._first_track + face.track_id
        self._next_track = max(self._next_track, track + 1)
        scores = round(float(face.score), 4), round(float(face.mask_score), 4)
        return FoundFace((x0, y0, x1, y1), track, *scores, bool(face.masked), face.looks_masked)
