"""The client of `unmask serve`: NumPy in, NumPy out.

    from unmask.stream import Client

    with Client("tcp://127.0.0.1:5555") as unmask:
        out = unmask(frame)                    # one frame
        for out in unmask.stream(frames):      # many, several on their way at a time
            ...

What is painted is a plausible face, never evidence of who someone is.
"""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import AsyncIterable, AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final, Self, cast

import msgspec
import numpy as np
import numpy.typing as npt
import zmq
import zmq.asyncio

from unmask.errors import NoAnswerError, RefusedError, UserError
from unmask.stream.keys import read_pair, read_public
from unmask.stream.protocol import (
    CODED_FORMATS,
    FORMATS,
    MAX_SECONDS,
    VERSION,
    Bye,
    Error,
    Format,
    FoundFace,
    FrameRequest,
    Goodbye,
    Hello,
    Result,
    Share,
    Shared,
    Welcome,
    decode_reply,
    encode,
    raw_bytes,
    shape_of,
    too_large,
)
from unmask.stream.served_memory import OpenedMemory

U8 = npt.NDArray[np.uint8]
Parts = list[bytes | memoryview]

_PROBE_SECONDS: Final = 0.5
"""How long to wait for an answer before asking whether the server still knows us."""

_LEAST_STEP: Final = 1e-4
"""Seconds between two frames at least, for clocks that stand still between them."""


class Unmasked(npt.NDArray[np.uint8]):
    """An answer: an array like any other, with the faces that were found.

    What is made of it (copies, parts, pickles) keeps them, as they are in the whole picture.

    Attributes:
        faces: the largest first, by the distance of the eyes; those shown before count 15 % larger.
        size_px: (width, height) of the picture.
        server_seconds: how long the server worked on it.
    """

    faces: tuple[FoundFace, ...] = ()
    size_px: tuple[int, int] = (0, 0)
    server_seconds: float = 0.0

    def __array_finalize__(self, source: npt.NDArray[Any] | None) -> None:
        if isinstance(source, Unmasked):
            self.faces, self.size_px, self.server_seconds = source.faces, source.size_px, source.server_seconds

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments, state = cast(tuple[Any, ...], super().__reduce__())
        return rebuild, arguments, (state, self.faces, self.size_px, self.server_seconds)

    def __setstate__(self, state: Any) -> None:
        array, self.faces, self.size_px, self.server_seconds = state
        super().__setstate__(array)


@dataclass(slots=True)
class _Pending:
    """A frame on its way."""

    request: FrameRequest
    picture: U8
    memory: OpenedMemory | None = None
    slot: int | None = None
    is_sent: bool = False
    is_wanted: bool = True


class Conversation:
    """What a client knows of its server, without a socket: messages come out of `outgoing`, and go into `receive`.

    Args:
        format: of the pictures that are sent.
        answer: of those that come back.
        share: whether to ask for shared memory.
        ids: of the frames, never used twice by a client: whoever waits for one must not be given another.

    Attributes:
        outgoing: messages to send, oldest first.
        welcome: what the server said; None before.
        why_not_shared: why frames travel in messages; None while shared memory is used, or not known yet.
        refusal: what the server refused that was no frame; None where it refused nothing.
    """

    def __init__(self, format: Format, answer: Format, share: bool, ids: Iterator[int]) -> None:
        self._format: Format = format
        self._answer: Format = answer
        self._wants_memory = share
        self._ids = ids
        self._pending: dict[int, _Pending] = {}
        self._finished: dict[int, Unmasked | RefusedError] = {}
        self._memory: OpenedMemory | None = None
        self._free_slots: list[int] = []
        self._largest = 0  # bytes of a slot that the frames so far would need
        self._share_asked = 0  # bytes of a slot that were asked for last
        self._is_sharing = False  # whether that is still to be answered
        self.outgoing: deque[Parts] = deque([[encode(Hello(VERSION))]])
        self.welcome: Welcome | None = None
        self.why_not_shared: str | None = None if share else "the client does not ask for it"
        self.refusal: RefusedError | None = None

    def probe(self) -> None:
        """Ask whether the server still knows us."""
        hello = encode(Hello(VERSION))
        if not any(parts[0] == hello for parts in self.outgoing):
            self.outgoing.append([hello])

    def leave(self) -> None:
        """Say goodbye."""
        self.outgoing.append([encode(Bye())])

    @property
    def has_credit(self) -> bool:
        return self.welcome is not None and len(self._pending) < self.welcome.credits

    @property
    def shares(self) -> bool:
        return self._memory is not None

    def submit(self, frame: npt.NDArray[Any] | bytes, seconds: float, reset: bool) -> int:
        """Put a frame on its way; there must be credit.

        One that is larger than the server takes is refused at once, as the server would: the connection of whoever
        sends much more is closed, and other frames would be lost with it.

        Returns:
            Its number, for `is_finished` and `take`.

        Raises:
            UserError: it is no picture of the client's format.
        """
        picture, width, height = _picture(frame, self._format)
        request = FrameRequest(
            id=next(self._ids),
            session="",
            format=self._format,
            bytes=picture.size,
            seconds=seconds,
            width=width,
            height=height,
            answer=self._answer,
            reset=reset,
        )
        pending = _Pending(request, picture)
        if self._is_too_large(pending):
            return request.id
        self._ask_for_memory(max(picture.size, raw_bytes(self._answer, width, height)))
        self._pending[request.id] = pending
        try:
            self._post(pending)
        except BaseException:
            self._release(self._pending.pop(request.id))  # else it would take credit for ever
            raise
        return request.id

    def is_finished(self, id: int) -> bool:
        return id in self._finished

    def is_pending(self, id: int) -> bool:
        """Whether a frame is on its way. One of an earlier conversation never is."""
        return id in self._pending

    def take(self, id: int) -> Unmasked:
        """The answer to a frame that is finished. Raises RefusedError where the server refused it."""
        outcome = self._finished.pop(id)
        if isinstance(outcome, RefusedError):
            raise outcome
        return outcome

    def abandon(self, id: int) -> None:
        """Nobody waits for this frame any more."""
        self._finished.pop(id, None)
        if id in self._pending:
            self._pending[id].is_wanted = False

    def receive(self, parts: Sequence[memoryview | bytes]) -> None:
        """Take in a message of the server; those of later versions are passed over."""
        try:
            message = decode_reply(bytes(parts[0]))
        except ValueError:
            return
        match message:
            case Welcome():
                self._welcomed(message)
            case Shared():
                self._open(message)
            case Result():
                self._finish(message, parts)
            case Error():
                self._refused(message)
            case Goodbye():
                pass  # what is on its way is still answered

    def _welcomed(self, message: Welcome) -> None:
        before, self.welcome = self.welcome, message
        if not message.shared and self._wants_memory:
            self._wants_memory, self.why_not_shared = False, "the server does not allow it"
        if before is not None and before.session == message.session:
            return
        self._memory, self._free_slots, self._largest, self._share_asked, self._is_sharing = None, [], 0, 0, False
        self.outgoing.clear()
        unanswered, self._pending = self._pending, {}
        begins = True  # the server knows nothing of earlier frames, so what is sent again begins a stream
        for id, pending in unanswered.items():
            pending.memory, pending.slot = None, None
            begins = begins or pending.request.reset
            if pending.is_wanted and not self._is_too_large(pending):
                self._pending[id] = pending
                self._post(pending, begins)
                begins = False

    def _is_too_large(self, pending: _Pending) -> bool:
        """Whether the server would refuse a frame for its size; then that is its outcome."""
        assert self.welcome is not None
        request = pending.request
        reason = too_large(request.width, request.height, request.bytes, self.welcome)
        if reason is not None:
            self._finished[request.id] = RefusedError(reason, "limit")
        return reason is not None

    def _post(self, pending: _Pending, begins: bool = False) -> None:
        request = pending.request
        if self._memory is not None and self._free_slots and request.bytes <= self._memory.message.slot_bytes:
            pending.memory, pending.slot = self._memory, self._free_slots.pop()
            self._memory.slot(pending.slot)[: request.bytes] = pending.picture
        assert self.welcome is not None
        header = msgspec.structs.replace(
            request,
            session=self.welcome.session,
            reset=request.reset or begins,
            slot=pending.slot,
            memory=None if pending.memory is None else pending.memory.message.memory,
        )
        self.outgoing.append([encode(header)] if pending.slot is not None else [encode(header), pending.picture.data])

    def _ask_for_memory(self, size: int) -> None:
        """Ask for slots where there are none yet, or they are too small; until they come, frames go in messages.

        One request is under way at a time, so it is clear which one an answer belongs to. Slots have room to spare:
        coded frames of a video differ in size, and each new memory means frames in messages.
        """
        if not self._wants_memory or self.welcome is None:
            return
        most = self.welcome.max_bytes
        self._largest = max(self._largest, min(size, most))
        if self._is_sharing or self._largest <= self._share_asked:
            return
        self._memory, self._free_slots, self._is_sharing = None, [], True
        self._share_asked = min(self._largest * 3 // 2, most)
        self.outgoing.append([encode(Share(self.welcome.session, self._share_asked))])

    def _open(self, message: Shared) -> None:
        if not self._is_sharing:
            return
        self._is_sharing = False
        if self._largest > self._share_asked:  # larger frames have come meanwhile
            self._ask_for_memory(self._largest)
            return
        try:
            self._memory = OpenedMemory(message)
        except OSError as error:
            self._wants_memory, self.why_not_shared = False, str(error)
            return
        self._free_slots = list(range(message.slots))

    def _finish(self, message: Result, parts: Sequence[memoryview | bytes]) -> None:
        pending = self._pending.pop(message.id, None)
        if pending is None:
            return
        try:
            outcome: Unmasked | RefusedError = _unmasked(_answered(message, pending, parts), message)
        except (ValueError, IndexError):
            outcome = RefusedError("its answer is not one of this protocol", "malformed")
        self._release(pending)
        if pending.is_wanted:
            self._finished[message.id] = outcome

    def _refused(self, message: Error) -> None:
        if message.code == "hello":
            self.probe()  # a new server: its welcome sends everything again
        elif message.code == "ending":
            pass  # the next server gets it
        elif message.code == "shared" and message.id is None:
            self._wants_memory, self._is_sharing, self.why_not_shared = False, False, message.text
        elif message.id in self._pending:
            pending = self._pending.pop(message.id)
            self._release(pending)
            if pending.is_wanted:
                self._finished[message.id] = RefusedError(message.text, message.code)
        elif message.id is None:
            self.refusal = RefusedError(message.text, message.code)

    def _release(self, pending: _Pending) -> None:
        if pending.slot is not None and pending.memory is self._memory:
            self._free_slots.append(pending.slot)


def _picture(frame: npt.NDArray[Any] | bytes, format: Format) -> tuple[U8, int, int]:
    """A frame as (N,) uint8 in memory of its own, and its width and height in px (0 where it is coded)."""
    if format in CODED_FORMATS:
        data = np.frombuffer(frame, np.uint8) if isinstance(frame, bytes) else np.asarray(frame)
        if data.dtype != np.uint8 or data.ndim != 1 or data.size == 0:
            raise UserError(f"a {format} picture is given as bytes, or as a 1-dimensional uint8 array of them")
        return data.copy(), 0, 0
    array = np.asarray(frame)
    height, width = array.shape[:2] if array.ndim >= 2 else (0, 0)
    if format == "nv12":
        height = height * 2 // 3
    if array.dtype != np.uint8 or 0 in (width, height) or array.shape != shape_of(format, width, height):
        wanted = {"gray8": "(H, W)", "nv12": "(H * 3 / 2, W) with even H and W"}.get(format, "(H, W, 3)")
        raise UserError(f"a {format} frame is a uint8 array of shape {wanted}, not {array.dtype} of {array.shape}")
    return np.array(array, np.uint8, order="C").reshape(-1), width, height


def _number(value: Any, name: str) -> float:
    """A number of whatever type as a float. Raises UserError where it is none."""
    try:
        if isinstance(value, str | bytes):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise UserError(f"{name} must be a number that fits into a float, not {type(value).__name__}") from error


def _check_address(address: Any) -> None:
    """Raise UserError for what ZeroMQ would take for an address though it is none."""
    port = address.rpartition(":")[2] if isinstance(address, str) and address.startswith("tcp://") else "0"
    if not isinstance(address, str) or (port.isdecimal() and (len(port) > 5 or int(port) > 65535)):
        raise _no_address(address)


def _no_address(address: Any) -> UserError:
    return UserError(f"'{address}' is no address: use tcp://HOST:PORT or ipc://PATH")


def _answered(message: Result, pending: _Pending, parts: Sequence[memoryview | bytes]) -> U8:
    """The picture of an answer as (N,) uint8. Raises ValueError or IndexError where there is none."""
    if message.slot is None:
        return np.frombuffer(parts[1], np.uint8).copy()
    if pending.memory is None:
        raise ValueError("no shared memory")
    return pending.memory.slot(message.slot)[: message.bytes].copy()


def _unmasked(picture: U8, message: Result) -> Unmasked:
    if message.format not in CODED_FORMATS:
        picture = picture.reshape(shape_of(message.format, message.width, message.height))
    out = picture.view(Unmasked)
    out.faces, out.size_px, out.server_seconds = message.faces, (message.width, message.height), message.seconds
    return out


class _Clock:
    """Times of a client's frames, in s: each later than all before it, whatever kinds of frames are mixed.

    Attributes:
        due: when the next frame of a `stream` is to come; None where none is going on.
    """

    def __init__(self) -> None:
        self.due: float | None = None
        self._last: float | None = None
        self._sent = 0.0  # when that was, by the system's clock

    def single(self) -> float:
        """Time of a single frame: as long after the last one as it truly is, but before a stream's next one."""
        if self._last is None:
            return 0.0
        step = time.monotonic() - self._sent
        if self.due is not None and self.due > self._last:
            step = min(step, (self.due - self._last) / 2)
        return self._last + max(step, _LEAST_STEP)

    def of_stream(self, planned: float, gap: float) -> float:
        """Time of a frame of a `stream`: as planned, or a gap after the last frame where that was not before it."""
        at = planned if self._last is None or planned >= self._last + _LEAST_STEP else self._last + gap
        self.due = at + gap
        return at

    def note(self, seconds: float) -> None:
        """A frame of this time was sent."""
        if abs(seconds) <= MAX_SECONDS:  # others are refused, and no frame could be later
            self._last = seconds if self._last is None else max(self._last, seconds)
            self._sent = time.monotonic()


class _Pace:
    """Gives the times of the frames of a `stream`, one after the other: 1 / fps apart."""

    def __init__(self, clock: _Clock, fps: float) -> None:
        fps = _number(fps, "fps")
        if not 0 < fps < math.inf:
            raise UserError(f"fps is {fps}; give frames per second above 0")
        self._clock, self._fps = clock, fps
        self._begin, self._index = 0.0, 0

    def __call__(self) -> float:
        planned = self._begin + self._index / self._fps
        at = self._clock.of_stream(planned, 1 / self._fps)
        self._begin += at - planned  # where a frame came between that is later, all the rest is put off
        self._index += 1
        return at


class _Connection:
    """What both clients have in common: settings, the socket's options, times.

    Args:
        address: the server's endpoint.
        format: of the frames that are given: "rgb24", "bgr24" (OpenCV's), "gray8", "nv12", "jpeg", "png", "webp".
        answer: of those that come back; None for the same.
        timeout_seconds: how long to wait for an answer before `NoAnswerError`. Until then a server that went away
            may come back: what it had not answered is sent again.
        shared_memory: use it where the server is on this host and allows it.
        key: NAME.key of this client, for a server with keys.
        server_key: the server's public key, or its NAME.pub.

    Raises:
        UserError: an argument cannot be used.
    """

    _opened_by: ClassVar[str]

    def __init__(
        self,
        address: str = "tcp://127.0.0.1:5555",
        *,
        format: str = "rgb24",
        answer: str | None = None,
        timeout_seconds: float = 10.0,
        shared_memory: bool = True,
        key: str | Path | None = None,
        server_key: str | Path | None = None,
    ) -> None:
        for name in (format, answer or format):
            if name not in FORMATS:
                raise UserError(f"unknown format '{name}': use one of {', '.join(FORMATS)}")
        if (key is None) != (server_key is None):
            raise UserError("a server with keys needs both: key='NAME.key' and server_key='SERVER.pub'")
        timeout_seconds = _number(timeout_seconds, "timeout_seconds")
        if not timeout_seconds > 0:
            raise UserError(f"timeout_seconds must be above 0, got {timeout_seconds}")
        _check_address(address)
        self.address = address
        self._format, self._answer = cast(Format, format), cast(Format, answer or format)
        self._timeout = timeout_seconds
        self._wants_memory = shared_memory
        self._keys = None if key is None else read_pair(Path(key))
        self._server_key = None if server_key is None else read_public(str(server_key))
        self._ids = itertools.count(1)
        self._conversation = self._new_conversation()
        self._clock = _Clock()
        self._streams = 0  # how many are going on
        self._begins = True  # whether the next frame begins anew
        self._is_open = False

    @property
    def uses_shared_memory(self) -> bool:
        """Whether frames travel through shared memory; it is set up with the first frame."""
        return self._conversation.shares

    @property
    def why_not_shared(self) -> str | None:
        """Why frames travel in messages; None where they do not, or no frame was sent yet."""
        return self._conversation.why_not_shared

    def _new_conversation(self) -> Conversation:
        return Conversation(self._format, self._answer, self._wants_memory, self._ids)

    def _connect(self, socket: "zmq.Socket[Any]") -> None:
        socket.setsockopt(zmq.LINGER, 200)  # ms for the goodbye
        socket.setsockopt(zmq.RECONNECT_IVL, 50)
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1000)
        socket.setsockopt(zmq.SNDHWM, 100)
        socket.setsockopt(zmq.IPV6, "[" in self.address)
        if self._keys is not None and self._server_key is not None:
            socket.setsockopt_string(zmq.CURVE_PUBLICKEY, self._keys.public)
            socket.setsockopt_string(zmq.CURVE_SECRETKEY, self._keys.secret)
            socket.setsockopt_string(zmq.CURVE_SERVERKEY, self._server_key)
        try:
            socket.connect(self.address)
        except zmq.ZMQError as error:
            socket.close(0)
            raise _no_address(self.address) from error

    def _no_answer(self) -> NoAnswerError:
        keys = "" if self._keys else ", and does it need keys (key=, server_key=)"
        return NoAnswerError(
            f"no answer from {self.address} within {self._timeout:g} s: is `unmask serve --bind {self.address}` "
            f"running{keys}? For a slow server give a larger timeout_seconds"
        )

    def _hand_over(self, frame: npt.NDArray[Any] | bytes, seconds: Callable[[], float], reset: bool) -> int:
        """Put a frame on its way for which there is credit; its time is taken here, so that frames go out in order."""
        at = seconds()
        self._begins = bool(reset) or self._begins  # until a frame has gone out: this one may be refused
        id = self._conversation.submit(frame, at, self._begins)
        if self._conversation.is_pending(id):
            self._clock.note(at)
            self._begins = False
        return id

    def _check_open(self) -> None:
        """Raises UserError before the client is connected, and after."""
        if not self._is_open:
            kind = type(self).__name__
            raise UserError(f"this {kind} is not connected; use it in `{self._opened_by} {kind}(...) as unmask:`")

    def _check_not_open(self) -> None:
        """Raises UserError while the client is connected."""
        if self._is_open:
            raise UserError(
                f"this {type(self).__name__} is connected already; make another one for a second connection"
            )

    def _time_of(self, seconds: float | None) -> Callable[[], float]:
        """Gives the time of a single frame. Raises UserError where it is no number."""
        if seconds is None:
            return self._clock.single
        at = _number(seconds, "seconds")
        return lambda: at

    def _end_stream(self) -> None:
        self._streams -= 1
        if not self._streams:
            self._clock.due, self._begins = None, True


class Client(_Connection):
    """A connection to `unmask serve`; used by one thread. See `_Connection` for the arguments.

    Frames given to one client are one stream: faces are followed from one to the next, also where single frames come
    between those of `stream`. A call of `stream` begins anew, and so does the first single frame after it.
    """

    _opened_by: ClassVar[str] = "with"

    def __enter__(self) -> Self:
        self._check_not_open()
        self._context = zmq.Context()
        try:
            self._open()
            self._await(lambda: self._conversation.welcome is not None)
        except BaseException:
            self._close()
            raise
        self._is_open = True
        return self

    def __exit__(self, *_: object) -> None:
        self._is_open = False
        try:
            self._conversation.leave()
            self._send()
        finally:
            self._close()

    def __call__(
        self, frame: npt.NDArray[Any] | bytes, *, seconds: float | None = None, reset: bool = False
    ) -> Unmasked:
        """Take the masks off one frame.

        Args:
            frame: uint8, (H, W, 3) for rgb24 and bgr24, (H, W) for gray8, (H * 3 / 2, W) for nv12; the file's bytes
                for jpeg, png and webp.
            seconds: its time in s, later than that of the frame before; None for as long after the frame before as
                it truly is, and between two frames of `stream` for a time between theirs.
            reset: forget the faces of earlier frames.

        Returns:
            The picture in the answer's format, with `faces`.

        Raises:
            UserError: the frame is none of the client's format.
            NoAnswerError: the server did not answer in time.
            RefusedError: the server refused the frame.
        """
        return self._collect(self._submit(frame, self._time_of(seconds), reset))

    def stream(self, frames: Iterable[npt.NDArray[Any] | bytes], fps: float = 30.0) -> Iterator[Unmasked]:
        """Take the masks off many frames, in order, several on their way at a time.

        Args:
            frames: as for a single one; they begin a stream.
            fps: how many there are per second of video. Single frames may come between them.

        Yields:
            An answer for each.

        Raises:
            UserError, NoAnswerError, RefusedError: as for a single frame.
        """
        waiting: deque[int] = deque()
        pace = _Pace(self._clock, fps)
        self._streams += 1
        try:
            for index, frame in enumerate(frames):
                while waiting and not self._conversation.has_credit:
                    yield self._collect(waiting.popleft())
                waiting.append(self._submit(frame, pace, index == 0))
                self._pump(0)
                while waiting and self._conversation.is_finished(waiting[0]):
                    yield self._collect(waiting.popleft())
            while waiting:
                yield self._collect(waiting.popleft())
        finally:
            self._end_stream()
            for id in waiting:
                self._conversation.abandon(id)

    def _submit(self, frame: npt.NDArray[Any] | bytes, seconds: Callable[[], float], reset: bool) -> int:
        self._check_open()
        self._await(lambda: self._conversation.has_credit)
        return self._hand_over(frame, seconds, reset)

    def _collect(self, id: int) -> Unmasked:
        try:
            self._await(lambda: not self._conversation.is_pending(id))
        except BaseException:
            self._conversation.abandon(id)  # else its answer would be kept for ever
            raise
        if not self._conversation.is_finished(id):  # a single frame between those of a stream has timed out
            raise self._no_answer()
        return self._conversation.take(id)

    def _await(self, is_so: Any) -> None:
        """Carry messages until something is so. After a time-out the next frame begins on a new connection."""
        deadline = time.monotonic() + self._timeout
        while not is_so():
            left = deadline - time.monotonic()
            if left <= 0:
                self._reconnect()
                raise self._no_answer()
            if not self._pump(min(left, _PROBE_SECONDS)):
                self._conversation.probe()
            if self._conversation.refusal is not None and not is_so():
                refusal, self._conversation.refusal = self._conversation.refusal, None
                raise refusal

    def _pump(self, seconds: float) -> bool:
        """Send what is to be sent, and take in what has come, waiting so long. False where nothing came."""
        self._send()
        if not self._socket.poll(round(1000 * seconds)):
            return False
        with self._whole_messages():
            while True:
                self._conversation.receive([p.buffer for p in self._socket.recv_multipart(zmq.NOBLOCK, copy=False)])
        self._send()
        return True

    def _send(self) -> None:
        outgoing = self._conversation.outgoing
        with self._whole_messages():
            while outgoing:
                self._socket.send_multipart(outgoing[0], zmq.NOBLOCK, copy=False)
                outgoing.popleft()

    @contextmanager
    def _whole_messages(self) -> Iterator[None]:
        """Passes over that no message can go or has come.

        After anything else (Ctrl-C) the next frame begins on a new connection: on this one it would be taken for the
        rest of a message that was cut off.
        """
        try:
            yield
        except zmq.Again:
            pass
        except BaseException:
            self._reconnect()
            raise

    def _reconnect(self) -> None:
        self._socket.close(0)
        self._conversation, self._begins = self._new_conversation(), True
        self._open()

    def _open(self) -> None:
        self._socket: zmq.Socket[bytes] = self._context.socket(zmq.DEALER)
        self._connect(self._socket)

    def _close(self) -> None:
        if hasattr(self, "_socket"):
            self._socket.close()
        self._context.term()


@dataclass(frozen=True, slots=True)
class _Wait:
    """Until when a task waits, and in which conversation it began to: that one it gives up, and no later one."""

    deadline: float
    conversation: Conversation


class AsyncClient(_Connection):
    """The twin of `Client` for asyncio: `async with`, `await unmask(frame)`, `async for out in unmask.stream(frames)`.

    See `_Connection` for the arguments. Several tasks may await frames at once; they are one stream.
    """

    _opened_by: ClassVar[str] = "async with"

    async def __aenter__(self) -> Self:
        self._check_not_open()
        self._context = zmq.asyncio.Context()
        self._changed = asyncio.Condition()
        self._submitting = asyncio.Lock()
        self._open()
        self._reader = asyncio.create_task(self._read())
        try:
            await self._await(lambda: self._conversation.welcome is not None)
        except BaseException:
            await self._close()
            raise
        self._is_open = True
        return self

    async def __aexit__(self, *_: object) -> None:
        self._is_open = False
        self._conversation.leave()
        await self._send()
        await self._close()

    async def __call__(
        self, frame: npt.NDArray[Any] | bytes, *, seconds: float | None = None, reset: bool = False
    ) -> Unmasked:
        """Take the masks off one frame; see `Client.__call__`. Frames go out in the order of the calls."""
        return await self._collect(await self._submit(frame, self._time_of(seconds), reset))

    async def stream(
        self,
        frames: Iterable[npt.NDArray[Any] | bytes] | AsyncIterable[npt.NDArray[Any] | bytes],
        fps: float = 30.0,
    ) -> AsyncIterator[Unmasked]:
        """Take the masks off many frames; see `Client.stream`. `frames` may be asynchronous too."""
        waiting: deque[int] = deque()
        pace = _Pace(self._clock, fps)
        self._streams += 1
        is_first = True
        try:
            async for frame in _each(frames):
                while waiting and not self._conversation.has_credit:
                    yield await self._collect(waiting.popleft())
                waiting.append(await self._submit(frame, pace, is_first))
                is_first = False
                while waiting and self._conversation.is_finished(waiting[0]):
                    yield await self._collect(waiting.popleft())
            while waiting:
                yield await self._collect(waiting.popleft())
        finally:
            self._end_stream()
            for id in waiting:
                self._conversation.abandon(id)

    async def _submit(self, frame: npt.NDArray[Any] | bytes, seconds: Callable[[], float], reset: bool) -> int:
        self._check_open()
        wait = _Wait(time.monotonic() + self._timeout, self._conversation)
        async with self._submitting:  # tasks that wait for credit take turns: none overtakes another
            await self._await(lambda: self._conversation.has_credit, wait)
            id = self._hand_over(frame, seconds, reset)
        try:
            await self._send()
        except BaseException:
            self._conversation.abandon(id)
            raise
        return id

    async def _collect(self, id: int) -> Unmasked:
        try:
            await self._await(lambda: not self._conversation.is_pending(id))
        except BaseException:
            self._conversation.abandon(id)  # else its answer would be kept for ever
            raise
        if not self._conversation.is_finished(id):  # another task has given up the connection that it was on
            raise self._no_answer()
        return self._conversation.take(id)

    async def _await(self, is_so: Any, wait: _Wait | None = None) -> None:
        wait = wait or _Wait(time.monotonic() + self._timeout, self._conversation)
        while not is_so():
            left = wait.deadline - time.monotonic()
            if left <= 0:
                if self._conversation is wait.conversation:
                    await self._reconnect()
                raise self._no_answer()
            await self._send()
            try:
                async with asyncio.timeout(min(left, _PROBE_SECONDS)), self._changed:
                    if not is_so():  # it may have become so before the lock was ours
                        await self._changed.wait()
            except TimeoutError:
                self._conversation.probe()
            if self._conversation.refusal is not None and not is_so():
                refusal, self._conversation.refusal = self._conversation.refusal, None
                raise refusal

    async def _read(self) -> None:
        """Take in messages, and tell those who wait."""
        while True:
            parts = await self._socket.recv_multipart()
            self._conversation.receive(parts)
            await self._send()
            async with self._changed:
                self._changed.notify_all()

    async def _send(self) -> None:
        outgoing = self._conversation.outgoing
        while outgoing:
            parts = outgoing.popleft()  # first of all: another task may come by while this one waits
            try:
                await self._socket.send_multipart(parts, zmq.NOBLOCK)
            except zmq.Again:
                outgoing.appendleft(parts)
                return

    def _open(self) -> None:
        self._socket = self._context.socket(zmq.DEALER)
        self._connect(self._socket)

    async def _reconnect(self) -> None:
        self._conversation, self._begins = self._new_conversation(), True  # first, so that no other task does so too
        await self._end_reading()
        self._socket.close(0)
        self._open()
        self._reader = asyncio.create_task(self._read())

    async def _end_reading(self) -> None:
        self._reader.cancel()
        with suppress(asyncio.CancelledError):
            await self._reader

    async def _close(self) -> None:
        await self._end_reading()
        self._socket.close()
        self._context.term()


async def _each(
    frames: Iterable[npt.NDArray[Any] | bytes] | AsyncIterable[npt.NDArray[Any] | bytes],
) -> AsyncIterator[npt.NDArray[Any] | bytes]:
    if isinstance(frames, AsyncIterable):
        async for frame in frames:
            yield frame
    else:
        for frame in frames:
            yield frame
