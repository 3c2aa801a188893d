"""The last stage for files: frames in, a whole video file out, with everything that the source had beside its video.

Frames are upright, so the file is written upright, without a display matrix: a player shows it the same way up, and
its coded width and height are swapped against those of a source that was turned by 90 degrees.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Final

import av
import numpy as np
from av.container import OutputContainer
from av.format import ContainerFormat
from av.packet import Packet
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat
from av.video.frame import VideoFrame
from av.video.reformatter import ColorRange
from av.video.stream import VideoStream

from unmask.errors import StageError, UserError
from unmask.stream.encoders import (
    Choice,
    Codec,
    EncodeOptions,
    VideoSettings,
    choose_encoder,
    configure,
    keep_ordinary_priority,
)
from unmask.stream.frame import Frame, Layout, Plane
from unmask.stream.media import FULL_RANGE, STEREO_3D, Color, MediaInfo, goes_on_after, open_input, told_duration
from unmask.stream.naming import NO_SPACE
from unmask.stream.nvcodec import configure_for_gpu, encoder_hardware, nvenc_problem
from unmask.stream.remux import MOV_FORMATS, StreamCopy, output_tags, stream_tags
from unmask.stream.stage import Context, Sink
from unmask.stream.stages.decode import plane_views

_DTS_IS_PTS: Final = frozenset({"avi", "flv", "mpegts", "h264", "hevc"})
"""Containers that cannot say that decoding begins before time 0: B-frames would shift everything in them."""

_CONSTANT_RATE: Final = frozenset({"avi", "h264", "hevc"})
"""Containers that hold no times, only a rate."""

_EVERY_CODEC: Final = frozenset(Codec)
_HELD: Final = {
    "mp4": _EVERY_CODEC,
    "mov": _EVERY_CODEC,
    "ipod": _EVERY_CODEC - {Codec.AV1},
    "3gp": frozenset({Codec.H264}),
    "matroska": _EVERY_CODEC,
    "webm": frozenset({Codec.AV1}),
    "mpegts": frozenset({Codec.H264, Codec.HEVC}),
    "flv": frozenset({Codec.H264}),
    "avi": frozenset({Codec.H264}),
    "h264": frozenset({Codec.H264}),
    "hevc": frozenset({Codec.HEVC}),
}
"""The containers that are written, by FFmpeg's names, and the codecs that common players find in them."""

_APPLE_TAGS: Final = "com.apple.quicktime."
"""What tags of telephones and cameras begin with, which .mov holds in a table of its own, together with all others."""

_WITHIN_DELAY: Final = 2
"""Pictures of a video that ends before the delay of its B-frames: libx265 then tells times of decoding at random."""

_PLAYED_BEYOND: Final = 2.0
"""Seconds of video that must be missing at the end before the sound is cut there too."""


class Encode(Sink):
    """Writes a video file.

    Every frame keeps its time, to the tick of the container (1 ms in Matroska, WebM and FLV; AVI and raw streams have
    only a constant rate). Size, sample aspect ratio, colour tags, depth and HDR10 metadata are those of the source. An
    odd size in 4:2:0, which H.264 and HEVC cannot hold, becomes AV1, or 4:4:4 where another codec is asked for.
    With `options.compare` source and result stand side by side, each padded to an even size.

    Args:
        output: where to write; removed again unless the run comes to its end.
        info: the source, from which all other streams are copied.
        options: codec, quality, speed.
        suffix: decides the container, such as ".mp4"; None takes that of `output`.
    """

    name: ClassVar[str] = "encode"

    def __init__(
        self, output: Path, info: MediaInfo, options: EncodeOptions | None = None, suffix: str | None = None
    ) -> None:
        self._output = output
        self._info = info
        self._options = options or EncodeOptions()
        self._suffix = suffix or output.suffix

    def open(self, context: Context) -> None:
        self._notice = context.notice
        self._layout = context.layout
        self._left_out: list[str] = []
        self._frames = self._bytes = 0
        self._finished = False
        self._waiting: Packet[VideoStream] | None = None
        self._times = _Times()
        self._format = container_format(self._suffix)
        self._settings = self._video_settings()
        self._choice = self._choose_encoder()
        self._out_of_tensors = self._leave_tensors()
        self._source = open_input(self._info.path)
        self._container = self._open_container()
        try:
            self._begin()
        except BaseException:
            self.close()
            raise

    def process(self, frame: Frame) -> Iterable[Frame]:
        with self._faults():
            self._write(self._stream.encode(self._picture(frame)))
        if not self._frames:  # the encoder has opened
            keep_ordinary_priority()
        self._frames += 1
        return (frame,)

    def flush(self) -> Iterable[Frame]:
        if not self._frames:
            raise StageError(self.name, "not one picture arrived, so there is nothing to write")
        with self._faults():
            last = float(self._times.last_pts * self._settings.time_base)
            cut_short = goes_on_after(self._info, last + _PLAYED_BEYOND)
            self._finish_video(self._step if cut_short else self._last_step())
            # A run that was cut short must not carry the sound of the rest of the source.
            self._copy.advance(last + float(self._step * self._settings.time_base) if cut_short else None)
            self._container.close()
        self._bytes = self._output.stat().st_size
        self._left_out += self._copy.left_out + self._lost_in_container()
        self._finished = True
        for line in self._left_out:
            self._notice(f"left out: {line}")
        return ()

    def close(self) -> None:
        self._source.close()
        if not self._finished:
            # The file is thrown away, so it does not matter whether its end can still be written.
            with suppress(av.FFmpegError):
                self._container.close()
            self._output.unlink(missing_ok=True)

    def summary(self) -> dict[str, Any]:
        on_cpu = self._out_of_tensors is None or self._out_of_tensors.problem is not None
        return {
            "encoder": self._choice.encoder.name,
            "pix_fmt": self._choice.pixel_format if on_cpu else "nv12",
            "input": "the processor's memory" if on_cpu else self._layout.tensors,
            "frames": self._frames,
            "bytes": self._bytes,
            "left_out": list(self._left_out),
        }

    # --- opening ------------------------------------------------------------------------------------------------------

    def _video_settings(self) -> VideoSettings:
        info, layout = self._info, self._layout
        constant = self._format.name in _CONSTANT_RATE
        width, height = layout.width, layout.height
        if self._options.compare:
            width, height = 2 * _even(width), _even(height)
        return VideoSettings(
            width=width,
            height=height,
            time_base=1 / info.fps if constant else info.time_base,
            fps=info.fps,
            sample_aspect_ratio=info.sample_aspect_ratio,
            color=_coded_color(info, layout),
            mastering_display=info.mastering_display,
            content_light=info.content_light,
            b_frames=self._format.name not in _DTS_IS_PTS,
        )

    def _choose_encoder(self) -> Choice:
        held = _HELD[self._format.name]
        choice = choose_encoder(self._options, self._settings, self._layout, held, self._suffix)
        name, stored, wanted = choice.encoder.name, choice.pixel_format, self._layout.format
        size = f"{self._settings.width}x{self._settings.height} px"
        if self._options.gpu:
            self._notice(f"encoder {name}" + "".join(f"; {reason}" for reason in choice.refused))
        if stored not in {wanted, "p010le"}:
            self._notice(f"colours are stored as {stored}: {name} cannot store {wanted} at {size}")
        if choice.encoder.codec is Codec.H264 and self._layout.pixel_format.bits > 8:
            self._notice("10-bit H.264 is shown by few players; --codec hevc or av1 is shown by more")
        if self._info.interlaced:
            self._notice("the video is interlaced; it is written as whole pictures")
        if self._format.name in _CONSTANT_RATE:
            step = 1 / float(self._info.fps)
            self._notice(f"{self._suffix} holds no times: pictures are {step:.4f} s apart, and sound begins with them")
        return choice

    def _leave_tensors(self) -> "_OutOfTensors | None":
        if not self._layout.tensors:
            return None
        way = _OutOfTensors(self._layout, self._choice, self._settings)
        if way.problem:
            self._notice(f"frames are copied from {self._layout.tensors}: {way.problem}")
        return way

    def _open_container(self) -> OutputContainer:
        """The output, of which nothing is written yet: the file is made with its header."""
        return av.open(
            f"file:{self._output}",
            "w",
            format=self._format.name,
            container_options=self._muxer_options(),
            metadata_errors="surrogateescape",
        )

    def _begin(self) -> None:
        """Add all streams in the order of the source and write the header."""
        self._copy = StreamCopy(self._source, self._info, self._container)
        for stream in self._source.streams:
            if stream.index == self._info.stream_index:
                assert isinstance(stream, VideoStream)
                self._stream = self._add_video(stream)
            else:
                self._copy.add(stream)
        self._tags = output_tags(self._source.metadata)
        self._container.metadata.update(self._tags)
        self._container.set_chapters(self._source.chapters())
        self._left_out += self._lost_with_the_old_coding()
        try:
            self._container.start_encoding()
        except OSError as error:
            raise UserError(f"{self._output}: cannot be written ({error.strerror}); choose another with -o") from error
        except av.FFmpegError as error:
            raise UserError(f"{self._suffix}: cannot hold this video ({error.strerror}); try .mp4 or .mkv") from error
        self._copy.start()

    def _lost_with_the_old_coding(self) -> list[str]:
        """Data inside the coded pictures; that they are 3D, Matroska says in a tag too, which is kept."""
        tagged = "stereo_mode" in self._stream.metadata and self._format.name in {"matroska", "webm"}
        return [what for what in self._info.embedded if not (tagged and what == STEREO_3D)]

    def _muxer_options(self) -> dict[str, str]:
        if self._format.name in MOV_FORMATS:
            # The index in front lets a player start early. A late start is written in units of the movie's timescale,
            # 1 ms unless said otherwise.
            flags = "+faststart"
            if self._format.name == "mov" and any(key.startswith(_APPLE_TAGS) for key in self._source.metadata):
                flags += "+use_metadata_tags"
            return {"movflags": flags, "movie_timescale": str(self._settings.time_base.denominator)}
        return {"default_mode": "passthrough"} if self._format.name == "matroska" else {}

    def _add_video(self, source: VideoStream) -> VideoStream:
        encoder = self._choice.encoder
        on_gpu = {} if self._out_of_tensors is None else self._out_of_tensors.hardware()
        stream = self._container.add_stream(
            encoder.name, rate=self._settings.fps, options=self._choice.options, **on_gpu
        )
        assert isinstance(stream, VideoStream)
        assert isinstance(stream.codec_context, VideoCodecContext)
        set_up = configure_for_gpu if on_gpu else configure
        set_up(stream.codec_context, self._choice, self._settings)
        stream.time_base = self._settings.time_base
        stream.metadata.update(stream_tags(source.metadata))
        stream.disposition = source.disposition
        if encoder.codec is Codec.HEVC and self._format.name in MOV_FORMATS:
            stream.codec_context.codec_tag = "hvc1"  # the only tag of the two that Apple's players take
        return stream

    # --- running ------------------------------------------------------------------------------------------------------

    def _picture(self, frame: Frame) -> VideoFrame:
        """The frame as the encoder wants it."""
        tensors = self._out_of_tensors
        if tensors is None:
            picture = self._filled(frame, frame.planes)
        elif tensors.problem is None:
            picture = tensors.mover.for_encoder(frame)
        else:
            picture = self._filled(frame, tensors.mover.download(frame))
        picture.pts = self._times.next(frame.pts * frame.time_base / self._settings.time_base)
        picture.time_base = self._settings.time_base
        return picture

    def _filled(self, frame: Frame, planes: Sequence[Plane]) -> VideoFrame:
        """A picture with the planes of a frame, in the encoder's format."""
        picture = VideoFrame(self._settings.width, self._settings.height, self._layout.format)
        views = plane_views(picture, self._layout)
        if self._options.compare:
            for view, left, right in zip(views, frame.source_planes, planes, strict=True):
                _put_side_by_side(view, left, right)
        else:
            for view, plane in zip(views, planes, strict=True):
                np.copyto(view, plane)
        return picture if self._choice.pixel_format == self._layout.format else self._converted(picture)

    def _converted(self, picture: VideoFrame) -> VideoFrame:
        from_rgb = not self._layout.pixel_format.planar
        limited = ColorRange.MPEG if from_rgb or not self._layout.full_range else ColorRange.JPEG
        return picture.reformat(
            format=self._choice.pixel_format,
            dst_colorspace="ITU709" if from_rgb else None,
            src_color_range=ColorRange.JPEG if from_rgb else limited,
            dst_color_range=limited,
        )

    def _write(self, packets: Sequence["Packet[VideoStream]"], last_step: int | None = None) -> None:
        """Write all packets but the newest, whose duration may have to be mended, and the sound up to there."""
        for packet in packets:
            packet.duration = last_step if last_step and packet.pts == self._times.last_pts else self._step
            self._times.see(packet)
            if self._waiting is not None:
                self._container.mux_one(self._waiting)
            self._waiting = packet
            if packet.dts is not None:
                self._copy.advance(float(packet.dts * self._settings.time_base))

    def _finish_video(self, last_step: int) -> None:
        """Write what the encoder still holds, with durations that add up to the length of the video.

        MP4 also counts time in the order of decoding, which ends earlier than the order of showing: unless the last
        packet in it makes up for that, a video of uneven steps is declared too short.

        Args:
            last_step: how long the last picture is shown, in units of the encoder's time base.
        """
        if self._waiting is not None and self._waiting.pts == self._times.last_pts:
            self._waiting.duration = last_step
        packets = self._stream.encode(None)
        if self._choice.encoder.name == "libx265" and self._frames <= _WITHIN_DELAY:
            decode_in_order(packets)
        self._write(packets, last_step)
        assert self._waiting is not None
        if self._format.name in MOV_FORMATS:
            self._waiting.duration = self._times.last_duration(last_step)
        self._container.mux_one(self._waiting)

    @property
    def _step(self) -> int:
        return max(1, round(1 / (self._settings.fps * self._settings.time_base)))

    def _last_step(self) -> int:
        """From the last picture to the end of the source's video, else as long as its packet says, where it does."""
        if self._info.end_pts is None:
            told = told_duration(self._info, float(self._times.last_pts * self._settings.time_base))
            # FFmpeg gives some pictures half a step, as if they were fields.
            return max(self._step, round((told or 0) / self._settings.time_base))
        end = round(self._info.end_pts * self._info.time_base / self._settings.time_base)
        return max(1, end - self._times.last_pts)

    def _lost_in_container(self) -> list[str]:
        """What cannot be found again in the finished file."""
        with open_input(self._output) as written:
            found = {key.lower() for key in written.metadata}
            chapters = len(written.chapters())
            video = written.streams.video[0]
            ratio, start = video.sample_aspect_ratio, video.start_time
            late = float(start * video.time_base) - self._start if start is not None and video.time_base else 0.0
        lost = [f"{self._info.chapters} chapters: {self._suffix} cannot hold them"] * (chapters < self._info.chapters)
        tags = sorted(key for key in self._tags if key.lower() not in found)
        if tags:
            lost.append(f"tags {', '.join(tags)}: {self._suffix} cannot hold them")
        wanted = self._info.sample_aspect_ratio or 1
        if (ratio or 1) != wanted:
            lost.append(f"sample aspect ratio {wanted}: {self._suffix} cannot hold it with this codec; try .mp4")
        if self._format.name not in _CONSTANT_RATE and abs(late) > 0.002:
            self._notice(f"{self._suffix} cannot hold sound that begins before 0: everything comes {late:.3f} s later")
        return lost

    @property
    def _start(self) -> float:
        """When the first picture is shown, in seconds."""
        return float((self._times.first_pts or 0) * self._settings.time_base)

    @contextmanager
    def _faults(self) -> Iterator[None]:
        """Turn FFmpeg's errors into one line for the user."""
        try:
            yield
        except av.FFmpegError as error:
            advice = "" if self._suffix in {".mp4", ".mkv"} else "; try .mp4 or .mkv"
            reason = f"the video cannot be written to {self._suffix} ({error.strerror}){advice}"
            if error.errno in NO_SPACE:
                reason = f"no space left for {self._output}; free some, or choose another folder with -o"
            raise StageError(self.name, reason) from error


class _OutOfTensors:
    """How frames that lie in tensors reach the encoder: from the GPU's memory where NVENC takes them so, else copied.

    Attributes:
        mover: takes them there.
        problem: why they have to be copied; None where they stay on the GPU.
    """

    def __init__(self, layout: Layout, choice: Choice, settings: VideoSettings) -> None:
        from unmask.stream.nv12 import Mover  # runs without tensors are spared PyTorch

        self.mover = Mover(layout)
        self._layout = layout
        self.problem = self._find_problem(choice, settings)

    def hardware(self) -> dict[str, Any]:
        """What `add_stream` is told besides, where pictures come in the GPU's memory."""
        return {} if self.problem else {"hwaccel": encoder_hardware(self._number)}

    @property
    def _number(self) -> int:
        return int(self._layout.tensors.partition(":")[2] or 0)

    def _find_problem(self, choice: Choice, settings: VideoSettings) -> str | None:
        if not choice.encoder.name.endswith("_nvenc"):
            return f"{choice.encoder.name} encodes on the processor"
        from unmask.stream.nv12 import new_picture, video_frame

        problem = nvenc_problem(choice, settings, self._number, lambda: video_frame(new_picture(self._layout)))
        return problem and f"{choice.encoder.name} takes none from there ({problem})"


class _Times:
    """The times of pictures and packets, in units of the encoder's time base."""

    def __init__(self) -> None:
        self._first_dts: int | None = None
        self._last_dts = 0
        self.first_pts: int | None = None
        self.last_pts = 0

    def next(self, ticks: Fraction) -> int:
        """The pts nearest to `ticks` that is later than that of the picture before."""
        self.last_pts = round(ticks) if self.first_pts is None else max(round(ticks), self.last_pts + 1)
        if self.first_pts is None:
            self.first_pts = self.last_pts
        return self.last_pts

    def see(self, packet: "Packet[VideoStream]") -> None:
        """Take note of a packet's time of decoding."""
        if packet.dts is not None:
            self._last_dts = packet.dts
            if self._first_dts is None:
                self._first_dts = packet.dts

    def last_duration(self, step: int) -> int:
        """How long the last packet must last for all durations to add up to the time from first to last picture."""
        shown = self.last_pts + step - (self.first_pts or 0)
        return max(1, shown - (self._last_dts - (self._first_dts or 0)))


def decode_in_order(packets: "Sequence[Packet[VideoStream]]") -> None:
    """Give the packets of a whole video times of decoding that grow, none later than its time of showing."""
    following: int | None = None
    for packet in reversed(packets):
        assert packet.pts is not None
        packet.dts = packet.pts if following is None else min(packet.pts, following - 1)
        following = packet.dts


def container_format(suffix: str) -> ContainerFormat:
    """FFmpeg's muxer for files that end in `suffix`.

    Raises:
        UserError: it is none that is written here.
    """
    with suppress(ValueError):
        # Opening for writing only guesses the format; a file is made when the header is written.
        guessed = av.open(f"name{suffix}", "w").format
        if guessed.name in _HELD:
            return guessed
    raise UserError(f"'{suffix}' files cannot be written; name the output .mp4, .mov, .mkv or .webm with -o")


def _coded_color(info: MediaInfo, layout: Layout) -> Color:
    """The tags of the source, set right where the pixels were converted from RGB or the range stood in a name only."""
    color = info.color
    if not layout.pixel_format.planar:
        return color._replace(matrix=1, range=1)
    if color.matrix == 0 or VideoFormat(info.pixel_format).is_rgb:
        color = color._replace(matrix=1)
    return color._replace(range=FULL_RANGE) if layout.full_range else color


def _even(length: int) -> int:
    return length + length % 2


def _put_side_by_side(view: Plane, left: Plane, right: Plane) -> None:
    """Fill a plane with two pictures; where it has room for more, the last row and column are repeated."""
    half = view.shape[1] // 2
    height, width = left.shape[:2]
    for part, picture in ((view[:, :half], left), (view[:, half:], right)):
        part[:height, :width] = picture
        part[:height, width:] = picture[:, -1:]
        part[height:] = part[height - 1 : height]
