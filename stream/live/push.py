"""The output that is another program or server on the network."""

import multiprocessing
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import urlsplit

import av
from av.video.frame import VideoFrame

from unmask.errors import UserError
from unmask.stream.crew import interrupts_blocked
from unmask.stream.frame import U8
from unmask.stream.live.feed import FeedInfo, without_password
from unmask.stream.live.mailbox import Mailbox, WhenFull
from unmask.stream.live.output import Output, Showing
from unmask.stream.live.state import TIME_BASE, LiveState, Sound
from unmask.stream.live.writer import Coding, StreamWriter, choose_coding
from unmask.stream.stage import Context

if TYPE_CHECKING:
    from multiprocessing.connection import Connection
    from multiprocessing.sharedctypes import Synchronized

_FORMATS: Final = {"rtsp": "rtsp", "rtmp": "flv", "rtmps": "flv", "udp": "mpegts"}
_PORTS: Final = {"rtsp": 554, "rtmp": 1935, "rtmps": 443}
"""Of the schemes over TCP, where somebody must be listening."""

_REACH_SECONDS: Final = 3.0
_FIRST_WAIT: Final = 0.2
_LONGEST_WAIT: Final = 2.0
_PLACES: Final = 30
"""About a second: more would only be late."""

_CONNECT_SECONDS: Final = 15.0
_END_SECONDS: Final = 2.0
_SPAWN: Final = multiprocessing.get_context("spawn")  # a fork copies locks, but not the threads that hold them


def check_push(url: str) -> None:
    """Raise UserError where a URL cannot be pushed to."""
    if url.partition("://")[0].lower() not in _FORMATS or "://" not in url:
        raise UserError(f"--push {without_password(url)}: give rtsp://, rtmp://, rtmps:// or udp:// (MPEG-TS)")
    try:
        port = urlsplit(url).port
    except ValueError as error:
        raise UserError(f"--push {without_password(url)}: its port is no number from 1 to 65535") from error
    if not port and url.lower().startswith("udp:"):
        raise UserError(f"--push {without_password(url)}: give a port too, such as udp://127.0.0.1:5000")


class Push(Output):
    """Sends every frame to a URL. A receiver that stalls loses frames, which are counted, and holds up nobody else; one
    that goes away is tried again.

    Pictures are coded and sent by a process of its own: while FFmpeg connects, or a server does not answer, it lets no
    other thread of its process run.

    Args:
        url: rtsp://, rtmp://, rtmps:// or udp://.
        state: of the run, for lines to the user.
        info: of the source.
        gpu: try NVENC first.
    """

    wants_sound = True

    def __init__(self, url: str, state: LiveState, info: FeedInfo, *, gpu: bool = False) -> None:
        self.name = f"push {without_password(url)}"
        self._url, self._state, self._info, self._gpu = url, state, info, gpu

    def open(self, context: Context) -> None:
        self._shown = self._lost = 0
        self._line: _Line | None = None
        self._over = threading.Event()  # what is still to be sent is given up
        self._counter = _SPAWN.Value("L", 0)
        self._box: Mailbox[Load] = Mailbox(_PLACES, WhenFull.DROP_OLDEST)
        self._coding = choose_coding(self._info, context.layout, "a stream", gpu=self._gpu, push=True)
        for reason in self._coding.choice.refused:
            context.notice(f"{self.name}: {reason}")
        try:
            self._line = self._connect()
        except OSError as error:
            raise UserError(f"--{self.name}: {_reason(error)}; start the server, or check the address") from error
        context.notice(f"{self.name}: {self._coding}")
        self._thread = threading.Thread(target=self._work, name="unmask-push", daemon=True)
        self._thread.start()

    def show(self, showing: Showing) -> None:
        self._shown += 1
        self._box.put(Load(showing.frame.pts, showing.i420(), showing.sounds))

    def finish(self) -> None:
        self._box.close()
        self._thread.join(_END_SECONDS)

    def close(self) -> None:
        if hasattr(self, "_thread"):
            self._over.set()
            self._box.close()
            line = self._line  # which the thread may forget meanwhile
            if line is not None:
                line.kill()
            self._thread.join(1.0)

    def summary(self) -> dict[str, Any]:
        sent = self._counter.value
        return {
            "encoder": self._coding.choice.encoder.name,
            "frames": sent,
            "not_sent": self._shown - sent,
            "lost": self._lost,
        }

    def _work(self) -> None:
        wait, again_at = _FIRST_WAIT, 0.0
        while not (self._box.ended or self._over.is_set()):
            if self._line is None and time.monotonic() >= again_at:
                self._line = self._reconnect()
                wait = _FIRST_WAIT if self._line else min(2 * wait, _LONGEST_WAIT)
                again_at = time.monotonic() + wait
            load = self._box.get(_FIRST_WAIT)
            if load is not None and self._line is not None and not self._over.is_set():
                self._send(self._line, load)
        if self._line is None:
            return
        if self._over.is_set():  # it may have been connected after `close` looked for one to end
            self._line.kill()
        else:
            self._line.finish()

    def _send(self, line: "_Line", load: "Load") -> None:
        try:
            line.send(load)
        except OSError as error:
            self._line = None
            if not self._over.is_set():
                self._state.notice(f"{self.name}: {_reason(error)}; trying again")
                self._lost += 1

    def _reconnect(self) -> "_Line | None":
        try:
            line = self._connect()
        except OSError:
            return None
        if not self._over.is_set():
            self._state.notice(f"{self.name}: back")
        return line

    def _connect(self) -> "_Line":
        """Raises OSError where nobody answers."""
        scheme = self._url.partition("://")[0].lower()
        if scheme in _PORTS:  # a process that finds nobody would be started in vain
            socket.create_connection(_place(self._url, _PORTS[scheme]), timeout=_REACH_SECONDS).close()
        return _Line(self._url, scheme, self._coding, self._counter)


class Load(NamedTuple):
    """A frame on its way to the sending process.

    Attributes:
        pts: in 1/90000 s.
        i420: see `Showing.i420`.
        sounds: that belong to it.
    """

    pts: int
    i420: U8
    sounds: list[Sound]


class _Line:
    """A process that is connected to the receiver. Raises OSError where it does not come to be.

    Args:
        url, scheme, coding: where and how.
        counter: counts the frames that were sent.
    """

    def __init__(self, url: str, scheme: str, coding: Coding, counter: "Synchronized[int]") -> None:
        self._pipe, theirs = _SPAWN.Pipe()
        arguments = (url, scheme, coding, counter, theirs)
        self._process = _SPAWN.Process(target=_send_all, args=arguments, name="unmask-push", daemon=True)
        with interrupts_blocked():
            self._process.start()
        theirs.close()
        if not self._pipe.poll(_CONNECT_SECONDS):
            self.kill()
            raise TimeoutError(None, "the server does not answer")
        try:
            refusal = self._pipe.recv()
        except EOFError:
            refusal = "the sending process ended"
        if refusal:
            self.kill()
            raise ConnectionError(None, refusal)

    def send(self, load: Load) -> None:
        """Hand a frame over; waits while the receiver takes none. Raises OSError where the receiver has gone."""
        try:
            if self._pipe.poll(0):
                raise ConnectionError(None, self._pipe.recv())
            self._pipe.send(load)
        except EOFError as error:
            self.kill()
            raise ConnectionError(None, "the sending process ended") from error
        except OSError:
            self.kill()
            raise

    def finish(self) -> None:
        """Send what is under way, and the end."""
        with suppress(OSError):
            self._pipe.send(None)
            self._process.join(_END_SECONDS)
        self.kill()

    def kill(self) -> None:
        self._process.kill()
        self._process.join(1.0)


def _send_all(url: str, scheme: str, coding: Coding, counter: "Synchronized[int]", pipe: "Connection") -> None:
    """The sending process. Says "" when it is connected; anything else it says is why it ends."""
    options = {"max_interleave_delta": "500000"}  # microseconds: a picture must not wait for sound that is missing
    if scheme == "rtsp":
        options["rtsp_transport"] = "tcp"
    if scheme == "udp" and "pkt_size=" not in url:
        url += ("&" if "?" in url else "?") + "pkt_size=1316"  # seven packets of MPEG-TS: fits any network
    try:
        writer = StreamWriter(url, _FORMATS[scheme], coding, options)
        pipe.send("")
        while (load := pipe.recv()) is not None:
            picture = VideoFrame.from_ndarray(load.i420, "yuv420p")
            picture.pts, picture.time_base = load.pts, TIME_BASE
            writer.write(picture, load.sounds)
            counter.value += 1
        writer.finish()
    except EOFError:
        pass  # the program that started this process has gone
    except (av.FFmpegError, OSError) as error:
        with suppress(OSError):
            pipe.send(_reason(error))


def _place(url: str, port: int) -> tuple[str, int]:
    place = url.partition("://")[2].partition("/")[0].rpartition("@")[2]
    host, colon, number = place.rpartition(":")
    if colon and number.isdecimal():
        return host.strip("[]"), int(number)
    return place.strip("[]"), port


def _reason(error: av.FFmpegError | OSError) -> str:
    return str(error.strerror or error)
