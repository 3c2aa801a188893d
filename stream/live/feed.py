"""Where live pictures come from: a file at its own pace, a URL, a camera. A feed can be connected to again."""

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple

import av
import cv2
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream
from av.codec.context import Flags
from av.container import InputContainer
from av.packet import Packet
from av.stream import Stream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from unmask.errors import UnmaskError, UserError
from unmask.stream.frame import Layout
from unmask.stream.live.state import SOUND_RATE, Sound
from unmask.stream.media import (
    UNTAGGED,
    UPRIGHT,
    Color,
    Orientation,
    aspect_ratio,
    color_of,
    is_cover,
    layout_of,
    open_input,
    orientation_of,
    probe,
)

_OPEN_SECONDS: Final = 8.0
_LOOK_SECONDS: Final = 0.1
_READ_SECONDS: Final = 2.5
"""A source that sends nothing for so long is taken for cut."""

_SLOW_READ_SECONDS: Final = 15.0
"""The same over HTTP, where whole segments of several seconds come at once."""

_ANALYSE_MICROSECONDS: Final = 1_000_000
_PACKETS_WITHOUT_PICTURE: Final = 1500
_DAMAGED_PACKETS: Final = 900
"""So many packets of video without a picture, about half a minute, are more than what is lost between key pictures."""

_PACED_FORMATS: Final = frozenset({"hls", "dash"})
"""Whole segments lie ready, and come as fast as they are read."""

_DEFAULT_FPS: Final = Fraction(30)


class FeedLost(Exception):  # noqa: N818 - what a live source does, not a fault
    """The source cannot be reached, or went away. The message says how, in a few words."""


class Shot(NamedTuple):
    """A picture from a source.

    Attributes:
        image: as decoded.
        seconds: its time on the clock of the connection; None where the source gives none.
        captured: when it arrived, on `time.monotonic`.
    """

    image: VideoFrame
    seconds: float | None
    captured: float


@dataclass(frozen=True, slots=True)
class FeedInfo:
    """What the pictures of a source are like.

    Args:
        layout: of the upright picture: yuv420p, of even size.
        orientation: how the coded picture becomes upright.
        color: colour tags; those of the layout where the source has none.
        sample_aspect_ratio: width by height of a pixel; None where the source does not tell.
        fps: estimate, for encoders and virtual cameras.
        sound: True where the source has sound.
        coded_as: codec and container, for the user.
    """

    layout: Layout
    orientation: Orientation = UPRIGHT
    color: Color = UNTAGGED
    sample_aspect_ratio: Fraction | None = None
    fps: Fraction = _DEFAULT_FPS
    sound: bool = False
    coded_as: str = "raw pictures"


class Connection(ABC):
    """One connection to a source, used by one thread.

    Attributes:
        info: what comes.
        paced: True where pictures can be read faster than they are to be shown, so that the reader has to wait.
    """

    info: FeedInfo
    paced: bool = False

    @abstractmethod
    def items(self) -> Iterator[Shot | Sound]:
        """Pictures and sound as they come, until the source ends. Raises FeedLost where it goes away."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the source."""


class Feed(ABC):
    """A source.

    Attributes:
        name: for the user.
        finite: True where the end of a connection is the end of the source, and no loss.
        loops: True where the source begins again at its end.
    """

    name: str
    finite: bool = False
    loops: bool = False

    @abstractmethod
    def connect(self) -> Connection:
        """Connect, and look at the first picture. Raises FeedLost; UserError where the user can mend it."""


def live_layout(picture: VideoFrame, orientation: Orientation = UPRIGHT) -> Layout:
    """The layout of a live run: encoders and players everywhere take 8-bit 4:2:0 of even size."""
    layout = layout_of(picture, orientation)
    return replace(layout, format="yuv420p", width=max(2, layout.width & ~1), height=max(2, layout.height & ~1))


# --- files and URLs ---------------------------------------------------------------------------------------------------


class FileFeed(Feed):
    """A video file, given at its own pace.

    Args:
        path: the file.
        loop: begin again at its end.
    """

    finite = True

    def __init__(self, path: Path, *, loop: bool) -> None:
        self.name = path.name
        self.loops = loop
        self._path = path
        self._index: int | None = None

    def connect(self) -> Connection:
        if self._index is None:
            self._index = probe(self._path).stream_index
        container = open_input(self._path)
        return MediaConnection(container, self._index, paced=True)


class UrlFeed(Feed):
    """Anything that FFmpeg reads from a URL: RTSP, HTTP, HLS, RTMP, MPEG-TS over UDP.

    Args:
        url: with its scheme.
    """

    def __init__(self, url: str) -> None:
        self.name = without_password(url)
        self._url = url
        self._scheme = url.partition("://")[0].lower()

    def connect(self) -> Connection:
        options = {"analyzeduration": str(_ANALYSE_MICROSECONDS)}
        if self._scheme == "rtsp":
            options["rtsp_transport"] = "tcp"  # UDP loses packets, and most firewalls stop it
        if self._scheme == "udp":
            options["overrun_nonfatal"] = "1"
        read_seconds = _SLOW_READ_SECONDS if self._scheme in {"http", "https"} else _READ_SECONDS
        try:
            container = av.open(self._url, options=options, timeout=(_OPEN_SECONDS, read_seconds))
        except (av.FFmpegError, ValueError) as error:
            raise FeedLost(_reason(error)) from error
        index = next((stream.index for stream in container.streams.video if not is_cover(stream)), None)
        if index is None:
            container.close()
            raise FeedLost("it sends no video")
        self.finite = bool(container.duration and container.duration > 0)  # a recording, on a web server
        in_segments = not _PACED_FORMATS.isdisjoint(container.format.name.split(","))
        return MediaConnection(container, index, paced=self.finite or in_segments)


def without_password(url: str) -> str:
    """The URL as it may be shown: without user name and password."""
    scheme, mark, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{mark}{place.rpartition('@')[2]}{slash}{path}"


class MediaConnection(Connection):
    """Decodes a container.

    Args:
        container: open; closed with the connection.
        index: of the video stream.
        paced: see `Connection`. A source that is not paced is decoded without holding pictures back.

    Raises:
        FeedLost: no picture can be decoded.
    """

    def __init__(self, container: InputContainer, index: int, *, paced: bool) -> None:
        self.paced = paced
        self._container = container
        self._video = container.streams[index]
        assert isinstance(self._video, VideoStream)
        context: object = self._video.codec_context
        if context is None:
            container.close()
            raise FeedLost("its video codec is not known here")
        self._video.thread_type = "AUTO" if paced else "SLICE"
        if not paced:
            self._video.codec_context.flags |= Flags.low_delay
        self._audio = next(iter(container.streams.audio), None)
        self._ears = _Ears()
        self._in_vain = 0  # packets of video since the last picture
        self._read = self._items()
        self._early: list[Sound] = []
        self._first = self._first_picture()
        self.info = self._describe(self._first.image)

    def items(self) -> Iterator[Shot | Sound]:
        yield self._first
        yield from self._early
        yield from self._read

    def close(self) -> None:
        self._read.close()
        self._container.close()

    def _first_picture(self) -> Shot:
        """Read up to the first picture. A decoder with several threads gives it late, so the first sound is kept."""
        try:
            for count, item in enumerate(self._read):
                if isinstance(item, Shot):
                    return item
                self._early.append(item)
                if count > _PACKETS_WITHOUT_PICTURE:
                    break
        except FeedLost:
            self.close()
            raise
        self.close()
        raise FeedLost("none of its pictures can be decoded")

    def _items(self) -> Generator[Shot | Sound]:
        wanted: list[Stream] = [self._video, *([self._audio] if self._audio else [])]
        for stream in self._container.streams:
            if stream not in wanted:
                stream.discard = av.stream.Discard.all
        try:
            for packet in self._container.demux(wanted):
                yield from self._decode(packet)
        except av.FFmpegError as error:
            raise FeedLost(_reason(error)) from error

    def _decode(self, packet: "Packet[Stream]") -> Iterator[Shot | Sound]:
        captured = time.monotonic()
        try:
            decoded = packet.decode()
        except av.FFmpegError:
            decoded = []  # a damaged packet; mostly the next picture comes soon
        self._in_vain += packet.stream is self._video
        for item in decoded:
            if isinstance(item, VideoFrame):
                self._in_vain = 0
                yield Shot(item, item.time, captured)
            elif isinstance(item, AudioFrame):
                yield from self._ears.hear(item)
        if self._in_vain > _DAMAGED_PACKETS:
            raise FeedLost("what it sends cannot be decoded")

    def _describe(self, picture: VideoFrame) -> FeedInfo:
        assert isinstance(self._video, VideoStream)
        orientation = orientation_of(picture)
        layout = live_layout(picture, orientation)
        rates = (self._video.guessed_rate, self._video.average_rate)
        return FeedInfo(
            layout=layout,
            orientation=orientation,
            color=color_of(picture),
            sample_aspect_ratio=aspect_ratio(self._video, orientation),
            fps=next((rate for rate in rates if rate and 1 <= rate <= 240), _DEFAULT_FPS),
            sound=isinstance(self._audio, AudioStream),
            coded_as=f"{self._video.codec_context.codec.canonical_name} in {self._container.format.name}",
        )


class _Ears:
    """Brings sound of any kind to stereo at `SOUND_RATE`."""

    def __init__(self) -> None:
        self._resampler: AudioResampler | None = None
        self._kind: tuple[object, ...] = ()

    def hear(self, frame: AudioFrame) -> Iterator[Sound]:
        if frame.time is None:
            return
        kind = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or kind != self._kind:
            self._resampler, self._kind = AudioResampler("fltp", "stereo", SOUND_RATE), kind
        for piece in self._resampler.resample(frame):
            if piece.time is not None:
                yield Sound(piece.time, np.asarray(piece.to_ndarray(), np.float32))


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return "nothing comes from it"
    return str(getattr(error, "strerror", None) or error)


# --- cameras ----------------------------------------------------------------------------------------------------------


class CameraFeed(Feed):
    """A camera of this machine, through OpenCV.

    Args:
        device: a number, or the path of a device such as /dev/video0.
        size: width and height in px to ask the camera for; it may give others.
        fps: frames per second to ask for.
    """

    def __init__(self, device: str, size: tuple[int, int], fps: float) -> None:
        self.name = f"camera {device}"
        self._device = device
        self._size, self._fps = size, fps

    def connect(self) -> Connection:
        path = Path(f"/dev/video{self._device}" if self._device.isdecimal() else self._device)
        if not path.exists():
            raise FeedLost(f"{path} is not there")
        return CameraConnection(self._device, self._size, self._fps)

    def others(self) -> str:
        """The cameras that are there, for the user."""
        found = sorted(str(path) for path in Path("/dev").glob("video*"))
        return f"cameras here: {', '.join(found)}" if found else "there is no camera here (no /dev/video*)"


class CameraConnection(Connection):
    """An open camera. Arguments are those of `CameraFeed`. Raises FeedLost where it gives no picture."""

    def __init__(self, device: str, size: tuple[int, int], fps: float) -> None:
        # OpenCV would write to the terminal what is said here in one line.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        self._camera = cv2.VideoCapture(int(device) if device.isdecimal() else device)
        if not self._camera.isOpened():
            raise FeedLost("it does not open; another program may be using it")
        wanted = {
            # Over USB 2 most cameras give large pictures at full rate only as JPEG.
            cv2.CAP_PROP_FOURCC: float(cv2.VideoWriter.fourcc(*"MJPG")),
            cv2.CAP_PROP_FRAME_WIDTH: float(size[0]),
            cv2.CAP_PROP_FRAME_HEIGHT: float(size[1]),
            cv2.CAP_PROP_FPS: fps,
            cv2.CAP_PROP_BUFFERSIZE: 1.0,
        }
        for name, value in wanted.items():
            self._camera.set(name, value)
        self._first = self._shot()
        told = Fraction(self._camera.get(cv2.CAP_PROP_FPS)).limit_denominator(1001)
        rate = told if 1 <= told <= 240 else Fraction(fps).limit_denominator(1001)
        self.info = FeedInfo(live_layout(self._first.image), fps=rate)

    def items(self) -> Iterator[Shot | Sound]:
        yield self._first
        while True:
            yield self._shot()

    def close(self) -> None:
        self._camera.release()

    def _shot(self) -> Shot:
        there, picture = self._camera.read()
        if not there:
            self.close()
            raise FeedLost("it gives no more pictures")
        return Shot(VideoFrame.from_ndarray(np.asarray(picture, np.uint8), "bgr24"), None, time.monotonic())


def connect_first(feed: Feed, stopped: Callable[[], bool] = lambda: False) -> Connection:
    """Connect for the first time, when what is wrong is for the user to mend.

    Args:
        feed: the source.
        stopped: whether the run is to end before there is a connection, which may take seconds with a URL.

    Raises:
        UserError: there is nothing at the other end.
        UnmaskError: it was stopped.
    """
    try:
        return _connected_unless(feed, stopped) if isinstance(feed, UrlFeed) else feed.connect()
    except FeedLost as error:
        hint = feed.others() if isinstance(feed, CameraFeed) else "check the address, and that it is being sent"
        raise UserError(f"{feed.name}: {error}; {hint}") from error


def _connected_unless(feed: Feed, stopped: Callable[[], bool]) -> Connection:
    """Connect in a thread of its own: a signal is heard of between two calls of Python only, not while FFmpeg waits."""
    found: Future[Connection] = Future()

    def connect() -> None:
        try:
            connection = feed.connect()
        except Exception as error:
            with suppress(InvalidStateError):
                found.set_exception(error)
            return
        try:
            found.set_result(connection)
        except InvalidStateError:  # nobody waits for it any more
            connection.close()

    threading.Thread(target=connect, name="unmask-connect", daemon=True).start()
    while not found.done():
        if stopped() and found.cancel():
            raise UnmaskError(f"{feed.name}: stopped; nothing was written")
        with suppress(TimeoutError):
            found.exception(_LOOK_SECONDS)
    return found.result()
