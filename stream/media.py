"""What a video file holds: `probe` opens it, decodes its first picture, and says what the pipeline has to know.

Headers lie (frame rates of 1000, frame counts of a fragment, sizes that change), so the size, the pixel format and the
colours are taken from the first decoded picture, and the frame rate from the times of the first packets.
"""

import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Final, NamedTuple, cast

import av
import numpy as np
from av.codec.codec import find_best_pix_fmt_of_list
from av.container import InputContainer
from av.packet import Packet
from av.sidedata.sidedata import SideData
from av.sidedata.sidedata import Type as SideDataType
from av.stream import Disposition, Stream
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from unmask.errors import UserError
from unmask.stream.frame import PIXEL_FORMATS, Layout, Matrix

FULL_RANGE: Final = 2
"""FFmpeg's AVCOL_RANGE_JPEG: samples from 0 to 255."""

UNSPECIFIED: Final = 2
"""FFmpeg's number for primaries, transfer and matrix that the file does not tell."""

_MATRICES: Final = {
    1: Matrix.BT709,
    4: Matrix.BT601,
    5: Matrix.BT601,
    6: Matrix.BT601,
    9: Matrix.BT2020,
    10: Matrix.BT2020,
}
_PICTURE_STREAMS: Final = Disposition.attached_pic | Disposition.timed_thumbnails
_TIMED_PACKETS: Final = 64
_PACKETS_WITHOUT_PICTURE: Final = 1000
_PLAUSIBLE_FPS: Final = 1000
_DEFAULT_FPS: Final = Fraction(25)

_NEW_PART_SECONDS: Final = 1
"""A clock that goes back by so much begins anew; by less, it is damaged."""

_MPEG_CLOCK_SECONDS: Final = Fraction(1 << 33, 90_000)
_RUNS_OVER_WITHIN: Final = 60
_CLOCK_BEGINS_ANEW: Final = cast(int, av.format.Flags.ts_discont.value)
"""Of formats whose clock may; how long a file is, FFmpeg guesses there from its last times."""


class Orientation(NamedTuple):
    """How a coded picture is made upright: first transposed, then mirrored. The eight orientations of EXIF.

    Attributes:
        transpose: swap rows and columns.
        mirror_x: then mirror left and right.
        mirror_y: then mirror top and bottom.
    """

    transpose: bool = False
    mirror_x: bool = False
    mirror_y: bool = False

    @classmethod
    def from_display_matrix(cls, matrix: bytes) -> "Orientation":
        """The nearest of the eight orientations to FFmpeg's display matrix.

        Args:
            matrix: nine int32, rows (a, b, u), (c, d, v), (x, y, w), that map a point as (x', y') = (ax + cy, bx + dy).
        """
        a, b, _, c, d, *_ = (int(value) for value in np.frombuffer(matrix, np.int32, 9))
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)


UPRIGHT: Final = Orientation()


class Color(NamedTuple):
    """Colour tags as numbers of ISO/IEC 23091-2, as FFmpeg uses them; 2 is unspecified, for the range 0 is.

    Attributes:
        primaries, transfer, matrix: 1 is BT.709, 9 (matrix, primaries) is BT.2020, 16 and 18 (transfer) PQ and HLG.
        range: 1 limited, 2 full, 0 unspecified.
    """

    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED
    matrix: int = UNSPECIFIED
    range: int = 0


UNTAGGED: Final = Color()


class MasteringDisplay(NamedTuple):
    """SMPTE ST 2086: CIE 1931 xy of the primaries and the white point, luminance in cd/m2."""

    red: tuple[float, float]
    green: tuple[float, float]
    blue: tuple[float, float]
    white: tuple[float, float]
    min_luminance: float
    max_luminance: float


class ContentLight(NamedTuple):
    """CTA-861.3: the brightest pixel and the brightest frame average, in cd/m2."""

    max_content: int
    max_average: int


@dataclass(frozen=True, slots=True)
class MediaInfo:
    """What `probe` found out about a video file.

    Args:
        path: the file.
        container: FFmpeg's name of the format, such as "mov,mp4,m4a,3gp,3g2,mj2".
        stream_index: the video stream that is processed.
        codec: its codec, such as "h264".
        pixel_format: FFmpeg's name of the format in which it is decoded; `layout.format` is the nearest one of ours.
        bits: bits per sample as decoded.
        layout: of the upright picture.
        orientation: how the coded picture becomes upright.
        sample_aspect_ratio: width by height of a pixel of the upright picture; None where the file does not tell.
        fps: frames per second, measured on the first packets: an estimate where the rate varies.
        time_base: seconds per unit of the frames' pts; 1/fps where the file has no times.
        duration_seconds: of the video; None where the file does not tell.
        end_pts: when the last picture ends, in units of `time_base`; None where the file does not tell.
        frames_expected: for a progress bar; None where there is nothing to estimate it from.
        color: colour tags.
        mastering_display, content_light: HDR10 metadata of the first picture, where it has them.
        embedded: kinds of data inside the coded pictures that are lost when they are coded anew.
        interlaced: True where the first picture is made of two fields.
        audio, subtitles, attachments: indexes of the streams of each kind.
        chapters: how many chapters there are.
    """

    path: Path
    container: str
    stream_index: int
    codec: str
    pixel_format: str
    bits: int
    layout: Layout
    orientation: Orientation = UPRIGHT
    sample_aspect_ratio: Fraction | None = None
    fps: Fraction = _DEFAULT_FPS
    time_base: Fraction = 1 / _DEFAULT_FPS
    duration_seconds: float | None = None
    end_pts: int | None = None
    frames_expected: int | None = None
    color: Color = UNTAGGED
    mastering_display: MasteringDisplay | None = None
    content_light: ContentLight | None = None
    embedded: tuple[str, ...] = ()
    interlaced: bool = False
    audio: tuple[int, ...] = ()
    subtitles: tuple[int, ...] = ()
    attachments: tuple[int, ...] = ()
    chapters: int = 0

    @property
    def frame_step(self) -> int:
        """Units of `time_base` from one frame to the next at the estimated rate, at least 1."""
        return max(1, round(1 / (self.fps * self.time_base)))


def open_input(path: Path) -> InputContainer:
    """Open a media file for reading; close it, or use it in a `with`.

    Raises:
        UserError: it is missing, empty, unreadable or no media file.
    """
    _check_file(path)
    try:
        # "file:" keeps a colon in the name from being read as a protocol; odd bytes in tags must survive a copy.
        return av.open(f"file:{path}", metadata_errors="surrogateescape")
    except PermissionError as error:
        raise UserError(f"{path}: may not be read; check its rights") from error
    except av.FFmpegError as error:
        raise UserError(f"{path}: not a readable video; it is of another kind, or was cut short") from error


def _check_file(path: Path) -> None:
    """Raise UserError where there is no file with something in it."""
    try:
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a video file")
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: is empty; copy or download it again")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check its name and rights") from error


def is_cover(stream: Stream) -> bool:
    """Whether a video stream is a cover picture or a row of thumbnails, and no video."""
    return bool(stream.disposition & _PICTURE_STREAMS)


def probe(path: Path) -> MediaInfo:
    """Say what a video file holds. Decodes its first picture.

    The video stream is the first in the file that has a picture which can be decoded, as in a player; a cover is none.

    Raises:
        UserError: there is no such file, it is no video, or none of its pictures can be decoded.
    """
    with open_input(path) as container:
        if container.format.name.endswith("_pipe") or container.format.name == "image2":
            raise UserError(f"{path}: is a picture, not a video; use `unmask image`")
        streams = _decodable_streams(path, container)
        indexes = [stream.index for stream in streams]
    for index in indexes:
        # A stream is read from the start of the file, which not every format can return to.
        with open_input(path) as container:
            stream = container.streams[index]
            assert isinstance(stream, VideoStream)
            found = _first_picture(container, stream)
            if found is not None:
                return _describe(path, container, stream, *found)
    raise UserError(f"{path}: no picture in it can be decoded; it is damaged, or of a kind not supported here")


def _decodable_streams(path: Path, container: InputContainer) -> list[VideoStream]:
    videos = [stream for stream in container.streams.video if not is_cover(stream)]
    if not videos and container.streams.audio:
        raise UserError(f"{path}: holds sound but no video; name a file with pictures")
    if not videos:
        raise UserError(f"{path}: holds no video; it is of another kind, or was cut short")
    known = [stream for stream in videos if _has_decoder(stream)]
    if not known:
        raise UserError(f"{path}: its video codec is not known here; convert it to H.264 or HEVC first")
    return known


def _has_decoder(stream: Stream) -> bool:
    # The annotation of PyAV leaves out that a stream of an unknown codec has no context.
    context: object = stream.codec_context
    return context is not None


def _first_picture(container: InputContainer, stream: VideoStream) -> tuple[VideoFrame, list[int]] | None:
    """The first picture that can be decoded, and the pts of the first packets; None where there is no picture."""
    for other in container.streams:
        if other is not stream:
            other.discard = av.stream.Discard.all
    picture: VideoFrame | None = None
    times: list[int] = []
    for count, packet in enumerate(_readable(container, stream)):
        if packet.pts is not None and len(times) < _TIMED_PACKETS:
            times.append(packet.pts)
        if picture is None:
            picture = next(iter(decode_packet(packet)), None)
        if count >= (_PACKETS_WITHOUT_PICTURE if picture is None else _TIMED_PACKETS):
            break
    return None if picture is None else (picture, times)


def _readable(container: InputContainer, stream: VideoStream) -> "Iterator[Packet[VideoStream]]":
    """The packets of a stream, as far as the file can be read."""
    try:
        yield from container.demux(stream)
    except av.FFmpegError:
        return


def decode_packet(packet: "av.Packet[VideoStream]") -> list[VideoFrame]:
    """The pictures of a packet, none where it is damaged."""
    try:
        return packet.decode()
    except av.FFmpegError:
        return []


def _describe(
    path: Path, container: InputContainer, stream: VideoStream, picture: VideoFrame, times: list[int]
) -> MediaInfo:
    side_data = _side_data(picture)
    orientation = orientation_of(picture)
    color = color_of(picture)
    fps = _frame_rate(stream, times)
    time_base = stream.time_base if times and stream.time_base else 1 / fps
    duration = _duration(container, stream)
    told = times and stream.duration and not container.format.flags & _CLOCK_BEGINS_ANEW
    return MediaInfo(
        path=path,
        container=container.format.name,
        stream_index=stream.index,
        codec=stream.codec_context.codec.canonical_name,
        pixel_format=picture.format.name,
        bits=max(component.bits for component in picture.format.components),
        layout=layout_of(picture, orientation),
        orientation=orientation,
        sample_aspect_ratio=aspect_ratio(stream, orientation),
        fps=fps,
        time_base=time_base,
        duration_seconds=duration,
        end_pts=(stream.start_time or 0) + (stream.duration or 0) if told else None,
        frames_expected=_frames_expected(stream, duration, fps),
        color=color,
        mastering_display=_mastering_display(side_data),
        content_light=_content_light(side_data),
        embedded=tuple(name for kind, name in _EMBEDDED.items() if kind in side_data),
        interlaced=picture.interlaced_frame,
        audio=tuple(other.index for other in container.streams.audio),
        subtitles=tuple(other.index for other in container.streams.subtitles),
        attachments=tuple(other.index for other in container.streams.attachments),
        chapters=len(container.chapters()),
    )


# --- pixels -----------------------------------------------------------------------------------------------------------


def orientation_of(picture: VideoFrame) -> Orientation:
    """How a decoded picture becomes upright."""
    matrix = _side_data(picture).get(SideDataType.DISPLAYMATRIX)
    return UPRIGHT if matrix is None else Orientation.from_display_matrix(matrix)


def color_of(picture: VideoFrame) -> Color:
    """The colour tags of a decoded picture."""
    return Color(picture.color_primaries, picture.color_trc, picture.colorspace, picture.color_range)


def layout_of(picture: VideoFrame, orientation: Orientation) -> Layout:
    """The layout that keeps most of a decoded picture once it is upright."""
    width, height = picture.width, picture.height
    if orientation.transpose:
        width, height = height, width
    return Layout(
        width=width,
        height=height,
        format=nearest_format(picture.format.name, transposed=orientation.transpose),
        matrix=_matrix(picture, color_of(picture)),
        full_range=is_full_range(picture),
    )


def _matrix(picture: VideoFrame, color: Color) -> Matrix:
    """The tagged matrix; without a tag, that of standard-definition television up to 576 lines, as players guess."""
    if picture.format.is_rgb:
        return Matrix.BT709
    return _MATRICES.get(color.matrix, Matrix.BT601 if picture.height <= 576 else Matrix.BT709)


def is_full_range(picture: VideoFrame) -> bool:
    """Whether a picture's samples go from 0 to 255. The "yuvj" formats say so by their name alone."""
    return picture.color_range == FULL_RANGE or picture.format.name.startswith("yuvj")


def is_grey(form: VideoFormat) -> bool:
    """Whether pictures in this format have no colours, with or without transparency."""
    return not (form.is_rgb or form.has_palette) and sum(not part.is_alpha for part in form.components) == 1


def nearest_format(name: str, *, transposed: bool = False) -> str:
    """The one of `PIXEL_FORMATS` that loses least of a picture in FFmpeg's format `name`.

    Args:
        transposed: rows and columns will be swapped, after which 4:2:2 would have to be 4:4:0: it becomes 4:4:4.
    """
    form = VideoFormat(name)
    if name.startswith("yuvj"):
        name = name.replace("yuvj", "yuv")
    if is_grey(form):
        # Grey pictures: FFmpeg would choose RGB or 4:4:4, which few players show and which costs twice the time.
        name = "yuv420p" if max(part.bits for part in form.components) <= 8 else "yuv420p10le"
    nearest, _ = find_best_pix_fmt_of_list(list(PIXEL_FORMATS), name)
    assert nearest is not None, name
    return nearest.name.replace("422", "444") if transposed else nearest.name


def aspect_ratio(stream: VideoStream, orientation: Orientation) -> Fraction | None:
    """Width by height of a pixel of the upright picture; None where the stream does not tell."""
    ratio = stream.sample_aspect_ratio
    if not ratio:
        return None
    return 1 / ratio if orientation.transpose else ratio


# --- time -------------------------------------------------------------------------------------------------------------


def _frame_rate(stream: VideoStream, times: list[int]) -> Fraction:
    """The rate in the header that agrees with the first packets, or the rate of those.

    FLV and Matroska headers written by some programs say 1000 frames per second, the ticks of their clock.
    """
    steps = [late - early for early, late in zip(sorted(times), sorted(times)[1:], strict=False) if late > early]
    told = [rate for rate in (stream.guessed_rate, stream.average_rate, stream.base_rate) if rate]
    if not steps or not stream.time_base:
        return next((rate for rate in told if rate < _PLAUSIBLE_FPS), _DEFAULT_FPS)
    measured = 1 / (Fraction(statistics.fmean(_middle(steps))).limit_denominator(1000) * stream.time_base)
    agreeing = (rate for rate in told if abs(rate / measured - 1) < 0.05)
    return next(agreeing, min(measured, Fraction(_PLAUSIBLE_FPS)).limit_denominator(1001))


def _middle(steps: list[int]) -> list[int]:
    """The middle half of the steps: a pause must not count, yet steps of 33 and 34 ms must be averaged."""
    steps = sorted(steps)
    quarter = len(steps) // 4
    return steps[quarter : len(steps) - quarter]


def _duration(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _frames_expected(stream: VideoStream, duration: float | None, fps: Fraction) -> int | None:
    """The index of MP4 and AVI knows every frame; that of Matroska and FLV only some, the header at times fewer.

    Where an edit list of MP4 hides pictures, the header counts them too, and the index says which they are.
    """
    hidden = sum(entry.is_discard for entry in stream.index_entries)
    counted = len(stream.index_entries) - hidden if hidden else max(stream.frames, len(stream.index_entries))
    if stream.frames and counted:
        return counted
    return round(duration * fps) if duration else None


@dataclass(slots=True)
class Part:
    """A stretch of a file in which its clock runs on.

    Attributes:
        shift: seconds to be added to all times in it.
        first, newest: times of decoding of its video so far, in seconds, as they stand in the file.
    """

    shift: Fraction
    first: Fraction
    newest: Fraction


def begins_anew(before: Fraction, now: Fraction) -> bool:
    """Whether a clock that stood at `before`, in seconds, was set anew when it stands at `now`.

    FFmpeg takes an MPEG clock that was set far back for one that has run over after 26 hours, and adds those.
    """
    ran_over = before < _MPEG_CLOCK_SECONDS <= now
    return before - now >= _NEW_PART_SECONDS or (ran_over and now - before > _RUNS_OVER_WITHIN)


class Timeline:
    """Makes one clock of those of a file whose clock begins anew, as where parts of a recording were joined end to end.

    It goes by the packets of the video alone, in the order of the file. Whoever reads the file, for its pictures or for
    its sound, comes to the same shifts, so that both stay in step, whether or not the first pictures of a part can be
    decoded. A part begins one frame after the part before it.

    Args:
        info: gives the usual step.

    Attributes:
        parts: those that have begun.
    """

    def __init__(self, info: MediaInfo) -> None:
        self._step = info.frame_step * info.time_base
        self._end = Fraction(0)
        self.parts: list[Part] = []

    def see(self, packet: "Packet[VideoStream]") -> None:
        """Take note of the next packet of the video."""
        # Times of showing alone go back with every B-frame, those of hidden packets with every entry of an edit list.
        if packet.dts is None or packet.is_discard:
            return
        tick = Fraction(packet.time_base)
        time, shown = packet.dts * tick, (packet.dts if packet.pts is None else packet.pts) * tick
        if not self.parts:
            self.parts.append(Part(Fraction(0), time, time))
            self._end = shown
        elif begins_anew(self.parts[-1].newest, time):
            self.parts.append(Part(self._end - shown, time, time))
        self.parts[-1].newest = time
        self._end = max(self._end, shown + self.parts[-1].shift + self._step)


# --- side data of the first picture -----------------------------------------------------------------------------------


def _side_data(picture: VideoFrame) -> dict[SideDataType, bytes]:
    # The annotation of PyAV says that this iterates over names.
    return {entry.type: bytes(entry) for entry in cast(Iterable[SideData], picture.side_data)}


STEREO_3D: Final = "the mark of 3D video"

_EMBEDDED: Final = {
    SideDataType.A53_CC: "closed captions inside the video",
    SideDataType.DYNAMIC_HDR_PLUS: "HDR10+ metadata",
    SideDataType.DOVI_METADATA: "Dolby Vision metadata",
    SideDataType.SPHERICAL: "the mark of 360-degree video",
    SideDataType.STEREO3D: STEREO_3D,
}


def _mastering_display(side_data: dict[SideDataType, bytes]) -> MasteringDisplay | None:
    """Read FFmpeg's AVMasteringDisplayMetadata: ten rationals of two int32, then has_primaries and has_luminance."""
    data = side_data.get(SideDataType.MASTERING_DISPLAY_METADATA)
    if data is None:
        return None
    numbers = np.frombuffer(data, np.int32, 22)
    if not (numbers[20] and numbers[21]):
        return None
    red_x, red_y, green_x, green_y, blue_x, blue_y, white_x, white_y, low, high = (
        float(numerator) / float(denominator) for numerator, denominator in numbers[:20].reshape(10, 2)
    )
    return MasteringDisplay((red_x, red_y), (green_x, green_y), (blue_x, blue_y), (white_x, white_y), low, high)


def _content_light(side_data: dict[SideDataType, bytes]) -> ContentLight | None:
    data = side_data.get(SideDataType.CONTENT_LIGHT_LEVEL)
    return None if data is None else ContentLight(*(int(value) for value in np.frombuffer(data, np.uint32, 2)))


def goes_on_after(info: MediaInfo, seconds: float) -> bool:
    """Whether the video has pictures later than `seconds`, found by seeking there; False where it cannot be told."""
    packets = _packets_near(info, seconds)
    return any(packet.pts is not None and packet.pts * packet.time_base > seconds for packet in packets)


def told_duration(info: MediaInfo, seconds: float) -> float | None:
    """How long the picture at `seconds` is shown by what its packet says, in seconds; None where it cannot be told."""
    nearest = info.frame_step * info.time_base / 2
    told: float | None = None
    for packet in _packets_near(info, seconds):
        if packet.pts is not None and packet.duration and abs(packet.pts * packet.time_base - seconds) < nearest:
            told = float(packet.duration * packet.time_base)
    return told


def _packets_near(info: MediaInfo, seconds: float) -> "Iterator[Packet[VideoStream]]":
    """The packets of the video from the key picture before `seconds` on, none where the file cannot be read there."""
    with open_input(info.path) as container:
        stream = container.streams[info.stream_index]
        assert isinstance(stream, VideoStream)
        if stream.time_base is None:
            return
        try:
            container.seek(int(seconds / stream.time_base), stream=stream)
        except av.FFmpegError:
            return
        yield from _readable(container, stream)


def with_source(info: MediaInfo) -> MediaInfo:
    """The same, with a layout that keeps a copy of the source in every frame, for before and after pictures."""
    return replace(info, layout=replace(info.layout, keep_source=True))
