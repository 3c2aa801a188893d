"""`unmask serve`: a ZeroMQ ROUTER that takes frames from many clients and gives them back without masks.

One thread owns the socket and all that is known of clients; workers own nothing but the one frame they work on. A
client is one connection and one stream. It has one frame in work at most, so its answers stay in order, and those that
have frames waiting take turns, so that nobody who sends more gets more.
"""

import errno
import os
import secrets
import socket
import stat
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from queue import SimpleQueue
from typing import Any, Final
from urllib.parse import urlsplit

import zmq
from zmq.auth.thread import ThreadAuthenticator

from unmask import __version__
from unmask.errors import UnmaskError, UserError
from unmask.stream.face_stream import Answer, FaceStream, SharedEngines
from unmask.stream.keys import KeyPair
from unmask.stream.metrics import Metrics
from unmask.stream.pipeline import Settings
from unmask.stream.protocol import (
    VERSION,
    Bye,
    Error,
    FrameRequest,
    Goodbye,
    Hello,
    Limits,
    Ping,
    ProtocolError,
    Reply,
    Result,
    Share,
    Welcome,
    decode_request,
    encode,
)
from unmask.stream.served_memory import ServedMemory, can_share

_PING_SECONDS: Final = 2.0
"""How often each client is sent a `Ping`: a message that cannot be routed says that its client has gone."""

_HEARTBEAT_MS: Final = 5_000
_HEARTBEAT_TIMEOUT_MS: Final = 15_000
"""ZeroMQ's own heartbeat closes the connection of a host that has gone without a word."""

_TICK_MS: Final = 200
_BLOCKED_TICK_MS: Final = 10
"""How long to wait for messages where an answer waits for its client to read."""

_MESSAGES_AT_ONCE: Final = 64
"""Messages taken before answers have their turn again."""

_MOST_KEPT: Final = 256
"""Answers kept for a client that does not read, nearly all of them small: credits bound those with pictures."""

_LINGER_MS: Final = 2_000
"""How long answers may take to leave after the server has ended."""

_LAST_SECONDS: Final = 5.0
"""How long an ending server waits for clients that do not read, and a stopped one for frames in work."""

_HANG_SECONDS: Final = 30.0
"""A worker that has been at one frame for so long is taken to hang."""

Log = Callable[..., None]
"""Takes the name of an event and its fields."""


@dataclass(frozen=True, slots=True)
class Curve:
    """Who may connect, by key.

    Args:
        own: the server's keys.
        allowed: public keys of clients.
    """

    own: KeyPair
    allowed: frozenset[str]


@dataclass(frozen=True, slots=True)
class ServeOptions:
    """How to serve.

    Args:
        bind: a ZeroMQ endpoint, tcp:// or ipc://.
        settings: about the faces.
        limits: of pictures, and of frames on their way per client.
        max_clients: at once.
        workers: frames worked on at once.
        shared_memory: whether clients on this host may use it; they may only where the endpoint is local.
        curve: None to let everybody in who can connect.
    """

    bind: str = "tcp://127.0.0.1:5555"
    settings: Settings = field(default_factory=Settings)
    limits: Limits = field(default_factory=Limits)
    max_clients: int = 32
    workers: int = field(default_factory=lambda: max(2, min(8, os.cpu_count() or 2)))
    shared_memory: bool = True
    curve: Curve | None = None


def is_local(bind: str) -> bool:
    """Whether only this host can reach an endpoint.

    Raises:
        UserError: it is none that can be served.
    """
    try:
        parts = urlsplit(bind)
        if parts.scheme == "ipc" and len(bind) > len("ipc://"):
            return True
        host, port = parts.hostname or "", parts.port
    except ValueError:
        host, port = "", None
    if not bind.startswith("tcp://") or not host or port is None:
        raise UserError(f"--bind {bind}: use tcp://ADDRESS:PORT or ipc://PATH, such as tcp://127.0.0.1:5555")
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # "*", or the name of a network interface or host
        return False


def is_abstract(bind: str) -> bool:
    """Whether an endpoint is an abstract socket: it has no file, so that no file mode keeps other users out."""
    return bind.startswith("ipc://@")


def _socket_path(bind: str) -> str | None:
    """The file of an ipc endpoint; None where it has none, or ZeroMQ makes one of its own and removes it."""
    path = bind.removeprefix("ipc://")
    return None if path in (bind, "*") or is_abstract(bind) else os.path.abspath(path)


def _check_free(bind: str, path: str) -> None:
    """Raise UserError where something lies at a path that is to be bound: ZeroMQ would remove whatever it is.

    A socket that nobody listens at was left behind by a server that was killed, and may be replaced.
    """
    try:
        mode = os.lstat(path).st_mode
    except OSError:
        return  # nothing there, or what binding itself will say
    if not stat.S_ISSOCK(mode):
        raise UserError(f"--bind {bind}: there is something else at {path}; choose another path")
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)  # one that listens and is busy counts as answered
        try:
            probe.connect(path)
            reason = os.strerror(errno.EADDRINUSE)
        except (ConnectionRefusedError, FileNotFoundError):
            return
        except BlockingIOError:
            reason = os.strerror(errno.EADDRINUSE)
        except OSError as error:
            reason = error.strerror or str(error)
    raise UserError(f"--bind {bind}: {reason}; choose another path")


class _Client:
    """What the server knows of a client. Only the server's thread touches it, save `stream`, which the worker has."""

    def __init__(self, identity: bytes, number: int, stream: FaceStream) -> None:
        self.identity = identity
        self.number = number
        self.stream = stream
        self.session = secrets.token_hex(8)
        self.waiting: deque[_Job] = deque()
        self.outbox: deque[Sequence[bytes | memoryview]] = deque()  # answers that the client has no room for yet
        self.memory: ServedMemory | None = None
        self.memories = 0  # how many it was given so far: each has a number of its own
        self.last_seconds: float | None = None
        self.slots_in_use: set[int] = set()
        self.is_active = False
        self.is_gone = False
        self.refusals = 0

    @property
    def held(self) -> int:
        return len(self.waiting) + self.is_active + len(self.outbox)


@dataclass(slots=True)
class _Job:
    """A frame on its way.

    Args:
        client: whose.
        request: its header.
        data: the picture; for one in shared memory a view of the slot, which `memory` keeps alive.
        memory: where the answer may go.
        arrived: `time.monotonic()`.
        answer: what became of it: header and payload.
        faces: how many were painted.
        left: how many seem to wear a mask and were not.
    """

    client: _Client
    request: FrameRequest
    data: memoryview
    memory: ServedMemory | None
    arrived: float
    answer: list[bytes | memoryview] = field(default_factory=list)
    refused: ProtocolError | None = None
    faces: int = 0
    left: int = 0


class Server:
    """Binds when it is made; serves while `run` runs.

    Args:
        options: how.
        engines: the networks.
        metrics: counts what happens.
        log: told what happens; called from several threads.

    Raises:
        UserError: the endpoint cannot be had.

    Attributes:
        endpoint: where it listens, with the port that the system chose for port 0.
    """

    def __init__(self, options: ServeOptions, engines: SharedEngines, metrics: Metrics, log: Log) -> None:
        self._options = options
        self._engines = engines
        self._metrics = metrics
        self._log = log
        self._shares = options.shared_memory and is_local(options.bind) and can_share()
        self._clients: dict[bytes, _Client] = {}
        self._numbers = 0
        self._jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self._done: deque[_Job] = deque()
        self._in_work = 0
        self._begun: dict[int, float] = {}  # by worker: since when it is at its frame
        self._draining = False
        self._stopping = False
        self._give_up: float | None = None
        self._hangs = False
        self._is_closed = False
        self._bound: tuple[str, int, int] | None = None  # the file of an ipc socket: path, device, inode
        self._closing = threading.RLock()  # a signal may ask for the end in the thread that is closing
        self._wake_read, self._wake_write = os.pipe()
        os.set_blocking(self._wake_read, False)
        os.set_blocking(self._wake_write, False)
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._authenticator: ThreadAuthenticator | None = None
        try:
            self._bind()
        except BaseException:
            self.close()
            raise
        self.endpoint = self._socket.getsockopt_string(zmq.LAST_ENDPOINT)

    def run(self) -> None:
        """Serve until `drain` or `stop_now`. Returns when every worker has ended and every socket is closed."""
        workers = [
            threading.Thread(target=self._work, args=(n,), name=f"unmask-worker-{n}", daemon=True)
            for n in range(self._options.workers)
        ]
        for worker in workers:
            worker.start()
        try:
            self._serve()
        finally:
            for _ in workers:
                self._jobs.put(None)
            deadline = time.monotonic() + _LAST_SECONDS
            for worker in workers:
                worker.join(max(0.0, deadline - time.monotonic()))
            if any(worker.is_alive() for worker in workers):
                self._log("abandoned", reason="a worker does not end")
            for client in list(self._clients.values()):
                self._forget(client, "the server ends")
            self.close()

    def close(self) -> None:
        """Close every socket; `run` does so at its end. A second call does nothing."""
        with self._closing:
            if self._is_closed:
                return
            self._is_closed = True
        self._remove_file()  # before the socket is closed: until then no other file can have its inode
        self._socket.close()
        if self._authenticator is not None:
            self._authenticator.stop()
        self._context.term()
        os.close(self._wake_read)
        os.close(self._wake_write)

    def _remove_file(self) -> None:
        if self._bound is None:
            return
        path, device, inode = self._bound
        with suppress(OSError):
            there = os.lstat(path)
            if (there.st_dev, there.st_ino) == (device, inode):
                os.unlink(path)

    def drain(self) -> None:
        """Take no more frames, answer those that are here, end. From any thread, or a signal handler."""
        self._draining = True
        self._wake()

    def stop_now(self) -> None:
        """End after the frames in work, without answering those that wait."""
        self._stopping = True
        self._wake()

    def trouble(self) -> str | None:
        """Why frames are not taken, or not answered; None where all is well. From any thread."""
        return "ending" if self._draining or self._stopping else self._hanging()

    # --- the socket ---------------------------------------------------------------------------------------------------

    def _bind(self) -> None:
        bind, limits, router = self._options.bind, self._options.limits, self._socket
        if self._options.curve is not None:
            self._authenticator = _authenticator(self._context, self._options.curve)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        router.setsockopt(zmq.LINGER, _LINGER_MS)
        # ZeroMQ closes the connection of whoever sends more, before memory is taken. What is only a little too large
        # gets an answer that says so.
        router.setsockopt(zmq.MAXMSGSIZE, 2 * limits.max_bytes)
        router.setsockopt(zmq.RCVHWM, 2 * limits.credits)
        router.setsockopt(zmq.SNDHWM, 2 * limits.credits)
        router.setsockopt(zmq.HEARTBEAT_IVL, _HEARTBEAT_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, _HEARTBEAT_TIMEOUT_MS)
        router.setsockopt(zmq.IPV6, "[" in bind)
        if self._options.curve is not None:
            router.setsockopt(zmq.CURVE_SERVER, 1)
            router.setsockopt_string(zmq.CURVE_PUBLICKEY, self._options.curve.own.public)
            router.setsockopt_string(zmq.CURVE_SECRETKEY, self._options.curve.own.secret)
        path = _socket_path(bind)
        if path is not None:
            _check_free(bind, path)
        before = os.umask(0o177)  # an ipc socket is for its owner
        try:
            router.bind(bind)
        except zmq.ZMQError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise UserError(f"--bind {bind}: {reason}; choose another address or port") from error
        finally:
            os.umask(before)
        if path is not None:
            with suppress(OSError):  # somebody has removed it already
                made = os.lstat(path)
                self._bound = path, made.st_dev, made.st_ino

    def _serve(self) -> None:
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._wake_read, zmq.POLLIN)
        next_ping = time.monotonic() + _PING_SECONDS
        said_goodbye = False
        while not self._stopping:
            blocked = any(client.outbox for client in self._clients.values())
            ready = dict(poller.poll(_BLOCKED_TICK_MS if blocked else _TICK_MS))
            if self._wake_read in ready:
                os.read(self._wake_read, 4096)
            self._finish()
            if self._socket in ready:
                self._take()
            if blocked:
                self._send_blocked()
            if time.monotonic() >= next_ping:
                next_ping = time.monotonic() + _PING_SECONDS
                self._tell_all(Ping())
                self._tell_if_it_hangs()
            if self._draining and not said_goodbye:
                said_goodbye = True
                self._log("ending", frames=self._in_work)
                self._tell_all(Goodbye())
            if self._draining and self._is_drained():
                return

    def _is_drained(self) -> bool:
        """Whether all is answered; clients that do not read are waited for only so long."""
        if self._in_work:
            return False
        if self._give_up is None:
            self._give_up = time.monotonic() + _LAST_SECONDS
        return time.monotonic() >= self._give_up or not any(client.outbox for client in self._clients.values())

    def _hanging(self) -> str | None:
        """What hangs; None where nothing does."""
        now = time.monotonic()
        seconds = now - min(list(self._begun.values()), default=now)
        return None if seconds < _HANG_SECONDS else f"a frame has been worked on for {seconds:.0f} s"

    def _tell_if_it_hangs(self) -> None:
        reason = self._hanging()
        if reason is not None and not self._hangs:
            self._log("hanging", reason=reason)
        self._hangs = reason is not None

    def _wake(self) -> None:
        with self._closing:  # a worker that hung may end now, and the pipe's number be that of another file
            if not self._is_closed:
                with suppress(BlockingIOError):  # full of reasons to wake up
                    os.write(self._wake_write, b"\0")

    # --- messages -----------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        for _ in range(_MESSAGES_AT_ONCE):
            try:
                identity, *parts = self._socket.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            peer = bytes(identity.buffer)
            try:
                self._react(peer, [part.buffer for part in parts])
            except ProtocolError as error:
                self._refuse(peer, error)

    def _react(self, peer: bytes, parts: Sequence[memoryview]) -> None:
        request = decode_request(parts, self._options.limits)
        client = self._clients.get(peer)
        match request:
            case Hello():
                self._greet(client or self._admit(peer))
                return
            case Bye():
                if client is not None:
                    self._forget(client, "it said goodbye")
                return
        if client is None or request.session != client.session:
            frame = request.id if isinstance(request, FrameRequest) else None
            raise ProtocolError("hello", "the value of session is unknown here: say hello first", frame)
        if isinstance(request, Share):
            self._share(client, request)
        else:
            self._accept(client, request, parts[-1])

    def _admit(self, peer: bytes) -> _Client:
        if self._draining:
            raise ProtocolError("ending", "the server is ending")
        if len(self._clients) >= self._options.max_clients:
            raise ProtocolError("busy", f"the server has its {self._options.max_clients} clients; try again later")
        stream = FaceStream(self._options.settings, self._engines, self._options.limits, self._metrics.timed)
        self._numbers += 1
        client = self._clients[peer] = _Client(peer, self._numbers, stream)
        self._metrics.clients.set(len(self._clients))
        self._log("client", client=client.number)
        return client

    def _greet(self, client: _Client) -> None:
        limits = self._options.limits
        welcome = Welcome(
            version=VERSION,
            server=f"unmask {__version__}",
            session=client.session,
            credits=limits.credits,
            max_pixels=limits.max_pixels,
            max_bytes=limits.max_bytes,
            shared=self._shares,
        )
        self._send(client, [encode(welcome)])

    def _share(self, client: _Client, request: Share) -> None:
        if not self._shares:
            raise ProtocolError("shared", "this server shares no memory; send pictures in messages")
        if client.memory is not None:
            client.memory.close()
            client.memory = None
        client.memories += 1
        try:
            client.memory = ServedMemory(self._options.limits.credits, request.bytes, client.memories)
        except OSError as error:
            raise ProtocolError("shared", f"no shared memory ({error.strerror}); send pictures in messages") from error
        client.slots_in_use = set()
        self._send(client, [encode(client.memory.message)])

    def _accept(self, client: _Client, request: FrameRequest, payload: memoryview) -> None:
        """Put a frame into its client's queue."""
        if self._draining:
            raise ProtocolError("ending", "the server is ending and takes no more frames", request.id)
        if client.held >= self._options.limits.credits:
            most = self._options.limits.credits
            raise ProtocolError("credits", f"{most} frames are on their way; wait for an answer first", request.id)
        last = client.last_seconds
        if last is not None and request.seconds <= last and not request.reset:
            text = f"seconds must grow: {request.seconds} after {last}; set reset to begin anew"
            raise ProtocolError("malformed", text, request.id)
        data = payload if request.slot is None else self._slot(client, request)
        client.last_seconds = request.seconds
        memory = None if request.slot is None else client.memory
        client.waiting.append(_Job(client, request, data, memory, time.monotonic()))
        self._in_work += 1
        self._metrics.waiting.set(self._in_work)
        self._next(client)

    def _slot(self, client: _Client, request: FrameRequest) -> memoryview:
        number, memory = request.slot or 0, client.memory
        if memory is None:
            raise ProtocolError("shared", "there is no shared memory: ask for it with share", request.id)
        if request.memory not in (None, memory.message.memory):
            text = f"memory {request.memory} is not used any more, but {memory.message.memory}"
            raise ProtocolError("shared", text, request.id)
        if number >= memory.message.slots or request.bytes > memory.message.slot_bytes:
            raise ProtocolError("shared", f"slot {number} does not exist or is too small", request.id)
        if number in client.slots_in_use:
            raise ProtocolError("shared", f"slot {number} is in use", request.id)
        client.slots_in_use.add(number)
        return memory.slot(number)[: request.bytes].data

    def _next(self, client: _Client) -> None:
        """Let a worker have the client's next frame. The workers' queue is in order: clients take turns."""
        if client.waiting and not client.is_active:
            client.is_active = True
            self._jobs.put(client.waiting.popleft())

    def _refuse(self, peer: bytes, error: ProtocolError) -> None:
        self._metrics.refused.labels(error.code).inc()
        client = self._clients.get(peer)
        if client is not None:
            client.refusals += 1
            count = client.refusals
            if count & (count - 1) == 0:  # the 1st, 2nd, 4th, ...: nobody can fill the log
                self._log("refused", client=client.number, code=error.code, reason=error.text, times=count)
        answer = [encode(Error(error.code, error.text, error.id))]
        if client is None:
            self._send_or_fail(peer, answer)
        elif len(client.outbox) < _MOST_KEPT:
            self._send(client, answer)

    # --- answers ------------------------------------------------------------------------------------------------------

    def _finish(self) -> None:
        """Send what the workers have done."""
        while self._done:
            job = self._done.popleft()
            client = job.client
            self._in_work -= 1
            client.is_active = False
            self._metrics.waiting.set(self._in_work)
            if job.request.slot is not None and job.memory is client.memory:
                client.slots_in_use.discard(job.request.slot)
            if client.is_gone:
                self._metrics.dropped.inc()
                client.stream.close()
                continue
            self._count(job)
            self._next(client)
            self._send(client, job.answer)

    def _count(self, job: _Job) -> None:
        if job.refused is None:
            self._metrics.frames.inc()
            self._metrics.faces.inc(job.faces)
            self._metrics.left.inc(job.left)
            self._metrics.latency.observe(time.monotonic() - job.arrived)
        else:
            self._metrics.refused.labels(job.refused.code).inc()
            self._log("refused", client=job.client.number, code=job.refused.code, reason=job.refused.text, times=1)

    def _send(self, client: _Client, parts: Sequence[bytes | memoryview]) -> None:
        """Send, or keep until the client reads. What is kept counts against its credits."""
        if (client.outbox or not self._send_or_fail(client.identity, parts)) and not client.is_gone:
            client.outbox.append(parts)

    def _send_or_fail(self, peer: bytes, parts: Sequence[bytes | memoryview]) -> bool:
        """Send without waiting. False where the client has no room, or has gone, and is forgotten then."""
        try:
            self._socket.send_multipart([peer, *parts], zmq.NOBLOCK, copy=False)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            if client := self._clients.get(peer):
                self._forget(client, "it has gone")
            return False
        return True

    def _send_blocked(self) -> None:
        for client in list(self._clients.values()):
            while client.outbox and self._send_or_fail(client.identity, client.outbox[0]):
                client.outbox.popleft()

    def _tell_all(self, message: Reply) -> None:
        for client in list(self._clients.values()):
            if not client.outbox:
                self._send_or_fail(client.identity, [encode(message)])

    def _forget(self, client: _Client, reason: str) -> None:
        del self._clients[client.identity]
        client.is_gone = True
        self._in_work -= len(client.waiting)
        self._metrics.dropped.inc(len(client.waiting))
        self._metrics.clients.set(len(self._clients))
        self._metrics.waiting.set(self._in_work)
        client.waiting.clear()
        client.outbox.clear()
        if client.memory is not None:
            client.memory.close()
        if not client.is_active:
            client.stream.close()
        self._log("forgotten", client=client.number, reason=reason)

    # --- workers ------------------------------------------------------------------------------------------------------

    def _work(self, number: int) -> None:
        while self._work_on_next(number):
            pass

    def _work_on_next(self, number: int) -> bool:
        """Wait for a frame and work on it. False where there will be no more.

        A worker that waits must hold nothing of the frame before: that keeps the shared memory of a client that has
        left. So nothing is named outside of this function, and no exception is kept, whose traceback names it all.
        """
        job = self._jobs.get()
        if job is None or self._stopping:
            return job is not None
        self._begun[number] = time.monotonic()
        start = time.perf_counter()
        try:
            answer = job.client.stream.process(job.request, job.data)
            job.answer = _answer_parts(job, answer, time.perf_counter() - start)
            job.faces = sum(face.unmasked for face in answer.faces)
            job.left = sum(face.looks_masked and not face.unmasked for face in answer.faces)
        except ProtocolError as error:
            job.refused = ProtocolError(error.code, error.text)
        except Exception as error:
            job.refused = self._fault(job, error)
        if job.refused is not None:
            job.answer = [encode(Error(job.refused.code, job.refused.text, job.request.id))]
        job.data = memoryview(b"")
        del self._begun[number]
        self._done.append(job)
        self._wake()
        return True

    def _fault(self, job: _Job, error: Exception) -> ProtocolError:
        """A stage failed: this frame comes to nothing, its stream begins anew, and all others go on."""
        reason = str(error) if isinstance(error, UnmaskError) else f"{type(error).__name__}: {error}"
        self._log("fault", client=job.client.number, reason=reason)
        return ProtocolError("failed", f"the server failed on this frame: {' '.join(reason.split())[:200]}")


def _answer_parts(job: _Job, answer: Answer, seconds: float) -> list[bytes | memoryview]:
    """Header and payload; the picture goes into the request's slot where it fits."""
    request, picture = job.request, answer.picture
    slot = None
    if job.memory is not None and request.slot is not None and picture.size <= job.memory.message.slot_bytes:
        slot = request.slot
        job.memory.slot(slot)[: picture.size] = picture
    header = Result(
        id=request.id,
        format=request.answer or request.format,
        width=answer.width,
        height=answer.height,
        bytes=picture.size,
        faces=answer.faces,
        seconds=round(seconds, 6),
        slot=slot,
    )
    return [encode(header)] if slot is not None else [encode(header), picture.data]


class _Allowed:
    """Tells ZeroMQ whether a key may connect."""

    def __init__(self, keys: frozenset[str]) -> None:
        self._keys = keys

    def callback(self, domain: str, key: bytes) -> bool:
        del domain
        return key.decode() in self._keys


def _authenticator(context: "zmq.Context[Any]", curve: Curve) -> ThreadAuthenticator:
    authenticator = ThreadAuthenticator(context)
    authenticator.start()
    authenticator.configure_curve_callback("*", _Allowed(curve.allowed))
    return authenticator


@contextmanager
def serving(options: ServeOptions, log: Log = lambda event, **fields: None) -> Iterator[Server]:
    """A server in a thread of this process, drained at the end of the block: for tests and for programs of one piece.

    Raises:
        UserError, EngineError: it cannot start.
    """
    engines = SharedEngines(options.settings, lambda line: log("notice", text=line))
    with ExitStack() as stack:
        server = Server(options, engines, Metrics(engines.description), log)
        thread = threading.Thread(target=server.run, name="unmask-serve")
        thread.start()
        stack.callback(thread.join)
        stack.callback(server.drain)
        yield server
