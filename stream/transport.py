"""What stages say to each other over ZeroMQ, and the sockets they say it through.

Every worker has one inbox, and so has the supervisor. Frames come from the stage before, credits (for the source) from
the sink, orders from the supervisor, all into that one inbox: a worker that waits for a frame also hears that it must
stop, and never has to watch several sockets. Messages of one sender arrive in order, those of several
senders in any. Nothing limits the length of an
inbox, because the number of slots limits what can be on its way.

A frame travels as a header; its pixels and the pictures of its faces stay in their slot.
"""

from fractions import Fraction
from types import TracebackType
from typing import Annotated, Any, Final, Self, TypeAlias

import msgspec
import numpy as np
import zmq
from msgspec import Meta

from unmask.stream.frame import FACE_BYTES, Face, Frame, Layout
from unmask.stream.pool import SlotPool
from unmask.stream.timing import StageTiming

_LANDMARKS_SHAPE: Final = (468, 3)
_LANDMARKS_BYTES: Final = 468 * 3 * 4
_MATRIX_SHAPE: Final = (2, 3)
_MATRIX_BYTES: Final = 2 * 3 * 8

Count = Annotated[int, Meta(ge=0)]

ZmqContext: TypeAlias = "zmq.Context[zmq.Socket[bytes]]"


class Message(msgspec.Struct, frozen=True, array_like=True, tag=True, forbid_unknown_fields=True):
    """Anything that goes into an inbox."""


class FaceHeader(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A `Face` without its pictures, which are those at `place` in the slot. Arrays are little-endian bytes."""

    place: Count
    track_id: int
    box_px: tuple[float, float, float, float]
    score: float
    landmarks_px: Annotated[bytes, Meta(min_length=_LANDMARKS_BYTES, max_length=_LANDMARKS_BYTES)]
    crop_from_frame: Annotated[bytes, Meta(min_length=_MATRIX_BYTES, max_length=_MATRIX_BYTES)]
    reset: bool
    mask_score: float
    masked: bool
    still: bool
    wears: float | None


class FrameHeader(Message, frozen=True):
    """A `Frame` without its pixels. To the next stage."""

    index: Count
    pts: int
    time_base: tuple[int, Annotated[int, Meta(gt=0)]]
    slot: Count
    discontinuity: bool
    faces: tuple[FaceHeader, ...]


class End(Message, frozen=True):
    """No more frames follow. To the next stage; `complete` is False where the run was cancelled."""

    complete: bool


class Credit(Message, frozen=True):
    """A slot is free again. From the sink to the source."""

    slot: Count


class Open(Message, frozen=True):
    """Open the stage, then say `Ready`. From the supervisor."""


class Go(Message, frozen=True):
    """Every stage is open: start. From the supervisor to the source; the others start when a frame reaches them."""


class Drain(Message, frozen=True):
    """Read no more frames, and let those on their way reach the sink. From the supervisor to the source."""


class Stop(Message, frozen=True):
    """Drop everything: do not flush, close. From the supervisor."""


class Dismiss(Message, frozen=True):
    """Nobody needs your sockets any more. From the supervisor, in answer to `Done`."""


class Ready(Message, frozen=True):
    """The stage is open. To the supervisor."""

    position: Count


class Holding(Message, frozen=True):
    """The stage keeps back more frames than ever before in this run. To the supervisor."""

    position: Count
    frames: Count


class Progress(Message, frozen=True):
    """How far the sink is. To the supervisor; not for every frame."""

    frames: Count
    pts_seconds: float


class Notice(Message, frozen=True):
    """A line for the user. To the supervisor."""

    text: str


class Summary(Message, frozen=True):
    """What the stage has to say about the run, after `flush`. To the supervisor."""

    position: Count
    values: dict[str, Any]


class Failed(Message, frozen=True):
    """The stage raised. To the supervisor; `Done` still follows.

    Attributes:
        error: name of the class, as far as `unmask.errors` has it, otherwise empty.
        reason: the message, one line.
        detail: the traceback.
    """

    position: Count
    error: str
    reason: str
    detail: str


class Done(Message, frozen=True):
    """The stage is closed; the worker waits to be dismissed. To the supervisor.

    Attributes:
        frames: that the stage gave.
        complete: True where every frame of the source was carried.
        flushed: True where the stage went through `flush`; False where it failed or was stopped.
    """

    position: Count
    frames: Count
    complete: bool
    flushed: bool
    timing: StageTiming


AnyMessage = (
    FrameHeader
    | End
    | Credit
    | Open
    | Go
    | Drain
    | Stop
    | Dismiss
    | Ready
    | Holding
    | Progress
    | Notice
    | Summary
    | Failed
    | Done
)


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as plain ones: stages put them into their summaries without thinking."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} cannot travel in a message")


_encoder: Final = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder: Final[msgspec.msgpack.Decoder[AnyMessage]] = msgspec.msgpack.Decoder(AnyMessage)


def encode(message: Message) -> bytes:
    """The message as MessagePack. Raises TypeError where a summary holds anything but plain values."""
    return _encoder.encode(message)


def decode(data: bytes) -> AnyMessage:
    """The message in `data`. Raises ValueError where it is not one, or holds values out of range."""
    try:
        return _decoder.decode(data)
    except msgspec.DecodeError as error:
        raise ValueError(f"not a message of the pipeline: {error}") from error


def header_of(frame: Frame) -> FrameHeader:
    """The header that `frame_from` makes the same frame of.

    Raises:
        ValueError: an array of a face has the wrong shape, or its pictures do not lie in the frame's slot.
    """
    start = _address(frame.buffer) + frame.layout.pixel_bytes
    faces = tuple(_face_header(face, start, frame.max_faces) for face in frame.faces)
    time_base = (frame.time_base.numerator, frame.time_base.denominator)
    return FrameHeader(frame.index, int(frame.pts), time_base, frame.slot, bool(frame.discontinuity), faces)


def frame_from(header: FrameHeader, layout: Layout, pool: SlotPool) -> Frame:
    """The frame of a header, with views of its slot.

    Raises:
        IndexError: the slot, or the place of a face in it, does not exist.
    """
    frame = Frame(
        index=header.index,
        pts=header.pts,
        time_base=Fraction(*header.time_base),
        layout=layout,
        buffer=pool.buffer(header.slot),
        slot=header.slot,
        discontinuity=header.discontinuity,
        nv12=pool.nv12(header.slot),
    )
    frame.faces = [_face(face, frame) for face in header.faces]
    return frame


def _face_header(face: Face, pictures_start: int, max_faces: int) -> FaceHeader:
    place, rest = divmod(_address(face.pictures.crop) - pictures_start, FACE_BYTES)
    if rest or not 0 <= place < max_faces:
        raise ValueError(f"the pictures of face {face.track_id} are not those of its frame")
    x0, y0, x1, y1 = face.box_px
    return FaceHeader(
        place=place,
        track_id=int(face.track_id),
        box_px=(float(x0), float(y0), float(x1), float(y1)),
        score=float(face.score),
        landmarks_px=_array_bytes(face.landmarks_px, "<f4", _LANDMARKS_SHAPE),
        crop_from_frame=_array_bytes(face.crop_from_frame, "<f8", _MATRIX_SHAPE),
        reset=bool(face.reset),
        mask_score=float(face.mask_score),
        masked=bool(face.masked),
        still=bool(face.still),
        wears=None if face.wears is None else float(face.wears),
    )


def _face(header: FaceHeader, frame: Frame) -> Face:
    return Face(
        track_id=header.track_id,
        box_px=header.box_px,
        score=header.score,
        landmarks_px=np.frombuffer(header.landmarks_px, "<f4").reshape(_LANDMARKS_SHAPE).copy(),
        crop_from_frame=np.frombuffer(header.crop_from_frame, "<f8").reshape(_MATRIX_SHAPE).copy(),
        reset=header.reset,
        pictures=frame.face_pictures(header.place),
        mask_score=header.mask_score,
        masked=header.masked,
        still=header.still,
        wears=header.wears,
    )


def _array_bytes(array: np.ndarray[Any, Any], dtype: str, shape: tuple[int, ...]) -> bytes:
    if array.shape != shape:
        raise ValueError(f"an array of a face has shape {array.shape} instead of {shape}")
    return array.astype(dtype).tobytes()


def _address(array: np.ndarray[Any, Any]) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


class _Port:
    """A socket that is closed with its `with` block, without waiting for what was not delivered."""

    def __init__(self, context: ZmqContext, kind: int) -> None:
        self._socket = context.socket(kind)
        for option in (zmq.LINGER, zmq.SNDHWM, zmq.RCVHWM):
            self._socket.setsockopt(option, 0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()


class Inbox(_Port):
    """Where messages arrive, from several senders. Used by one thread.

    Args:
        context: of ZeroMQ; for "inproc://" the same one at both ends.
        endpoint: where the senders find it.
    """

    def __init__(self, context: ZmqContext, endpoint: str) -> None:
        super().__init__(context, zmq.PULL)
        self._socket.bind(endpoint)

    def receive(self) -> AnyMessage:
        """The next message, waited for. Raises ValueError where it cannot be decoded."""
        return decode(self._socket.recv())

    def receive_within(self, seconds: float) -> AnyMessage | None:
        """The next message, or None where there is none after `seconds`. Raises ValueError as `receive` does."""
        if not self._socket.poll(round(1000 * seconds)):
            return None
        return decode(self._socket.recv())


class Outbox(_Port):
    """The way to one inbox, which may come into being later. Used by one thread. Sending never blocks.

    Args:
        context: of ZeroMQ.
        endpoint: that of the inbox.
    """

    def __init__(self, context: ZmqContext, endpoint: str) -> None:
        super().__init__(context, zmq.PUSH)
        self._socket.setsockopt(zmq.RECONNECT_IVL, 10)  # ms; a process takes its time until its inbox is there
        self._socket.connect(endpoint)

    def send(self, message: Message) -> None:
        """Send a message. It is lost where either end closes before it is received."""
        self._socket.send(encode(message))
