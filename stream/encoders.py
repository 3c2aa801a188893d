"""Which encoder writes the video, in which pixel format, and how it is set up.

An encoder is chosen by opening it with the very settings of the run: a list of codecs promises NVENC on machines
that have none, and the sizes that an encoder takes depend on the pixel format.

Defaults, by measurement at 1280x720 on two shared cores, so indicative. Processor time per frame on two clips, of which
the second was coded with a slightly worse crf for x265 and SVT-AV1; luma PSNR and size of 150 frames of the first, a
talking head: x264 veryfast 11 and 17 ms, 48.8 dB, 0.54 MB (superfast 6 and 10 ms, at about twice the size); x265
ultrafast 19 and 29 ms, 46.0 dB, 0.23 MB (superfast 23 and 47 ms, 47.8 dB, 0.31 MB); SVT-AV1 preset 9 10 and 15 ms,
47.7 dB, 0.33 MB.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Final

import av
from av.codec.codec import UnknownCodecError, find_best_pix_fmt_of_list
from av.video.codeccontext import VideoCodecContext
from av.video.format import VideoFormat

from unmask.errors import UserError
from unmask.stream.frame import PIXEL_FORMATS, Layout
from unmask.stream.media import UNTAGGED, Color, ContentLight, MasteringDisplay


class Codec(StrEnum):
    """What the user can ask for."""

    H264 = "h264"
    HEVC = "hevc"
    AV1 = "av1"


@dataclass(frozen=True, slots=True)
class EncodeOptions:
    """How the output is coded.

    Args:
        codec: None chooses by depth and size: H.264 for 8 bits, HEVC for 10, AV1 for odd sizes in 4:2:0 and WebM.
        crf: constant quality, lower is better and larger; None is the encoder's default.
        preset: speed, by the encoder's own names; None is the encoder's default.
        compare: write the source on the left and the result on the right.
        gpu: try the GPU's decoder (NVDEC) and encoder (NVENC) first; each falls back alone, and says so.
    """

    codec: Codec | None = None
    crf: float | None = None
    preset: str | None = None
    compare: bool = False
    gpu: bool = False


_X26_PRESETS: Final = (
    *("ultrafast", "superfast", "veryfast", "faster", "fast"),
    *("medium", "slow", "slower", "veryslow", "placebo"),
)
_STORED_FORMATS: Final = (*(name for name in PIXEL_FORMATS if name != "rgb24"), "p010le")
_MOST_THREADS: Final = 8
_HIGHEST_RATE: Final = Fraction(240)
"""SVT-AV1 refuses more; the rate only steers the encoder, the times are exact."""


@dataclass(frozen=True, slots=True)
class Encoder:
    """One of FFmpeg's encoders.

    Args:
        name: FFmpeg's name.
        codec: what it writes.
        presets: the names or numbers it knows, fastest or best first.
        preset, crf: defaults.
        max_crf: the worst quality.
        min_crf: the best quality.
        odd_sizes: True where a subsampled format may have an odd width or height.
    """

    name: str
    codec: Codec
    presets: tuple[str, ...]
    preset: str
    crf: float
    max_crf: int = 51
    min_crf: int = 0
    odd_sizes: bool = False


_NVENC: Final = tuple(
    Encoder(f"{codec}_nvenc", codec, tuple(f"p{number}" for number in range(1, 8)), "p4", 20) for codec in Codec
)
_SOFTWARE: Final = (
    Encoder("libx264", Codec.H264, _X26_PRESETS, "veryfast", 18),
    Encoder("libx265", Codec.HEVC, _X26_PRESETS, "ultrafast", 18),
    # FFmpeg leaves SVT-AV1 its own default where the crf is 0.
    Encoder("libsvtav1", Codec.AV1, tuple(str(number) for number in range(14)), "9", 22, 63, 1, odd_sizes=True),
)


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """Everything an encoder is told.

    Args:
        width, height: in px.
        time_base: seconds per unit of the pictures' pts.
        fps: pictures per second, for rate control only.
        sample_aspect_ratio: None where unknown.
        color: tags.
        mastering_display, content_light: HDR10 metadata.
        b_frames: False where the container needs each packet's time of decoding to be its time of showing.
    """

    width: int
    height: int
    time_base: Fraction
    fps: Fraction
    sample_aspect_ratio: Fraction | None = None
    color: Color = UNTAGGED
    mastering_display: MasteringDisplay | None = None
    content_light: ContentLight | None = None
    b_frames: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """An encoder that opens.

    Args:
        encoder: the encoder.
        pixel_format: the format it takes.
        options: FFmpeg options for it.
        refused: why each better encoder was passed over.
    """

    encoder: Encoder
    pixel_format: str
    options: dict[str, str] = field(default_factory=dict)
    refused: tuple[str, ...] = ()


def choose_encoder(
    options: EncodeOptions, settings: VideoSettings, layout: Layout, held: frozenset[Codec], container: str
) -> Choice:
    """The first encoder, in order of preference, that opens and whose codec the container holds.

    Args:
        layout: of the frames that come; its pixel format is kept where the encoder can.
        held: the codecs that the container holds.
        container: its name, for messages.

    Raises:
        UserError: there is none.
    """
    # SVT-AV1 writes its greeting and its errors to the terminal, past FFmpeg's logging, which reports the errors too.
    os.environ.setdefault("SVT_LOG", "0")
    refused: list[str] = []
    wanted = f"--codec {options.codec}" if options.codec else "the video"
    for encoder in _candidates(options, settings, layout):
        if encoder.codec not in held:
            continue
        reason = _wrong_option(encoder, options)
        if reason and encoder not in _NVENC:
            raise UserError(f"{encoder.name} {reason}")
        choice = _choice(encoder, options, settings, layout.format)
        reason = reason or _trial(choice, settings)
        if reason is None:
            return replace(choice, refused=tuple(refused))
        refused.append(f"{encoder.name} {reason}")
    if not refused:
        raise UserError(f"{wanted} cannot be written to {container}, which does not hold it; use .mp4 or .mkv")
    raise UserError(f"{wanted} cannot be written: {refused[-1]}; choose another --codec")


def _candidates(options: EncodeOptions, settings: VideoSettings, layout: Layout) -> Iterator[Encoder]:
    order: tuple[Codec, ...] = (Codec.H264, Codec.HEVC, Codec.AV1)
    if layout.pixel_format.bits > 8:
        order = (Codec.HEVC, Codec.AV1, Codec.H264)
    elif layout.pixel_format.planar and not _fits(layout.format, settings):
        order = (Codec.AV1, Codec.H264, Codec.HEVC)
    if options.codec:
        order = (options.codec,)
    for encoders in (_NVENC, _SOFTWARE) if options.gpu else (_SOFTWARE,):
        for codec in order:
            yield from (encoder for encoder in encoders if encoder.codec == codec)


def _wrong_option(encoder: Encoder, options: EncodeOptions) -> str | None:
    if options.preset is not None and options.preset not in encoder.presets:
        return f"has no --preset {options.preset}, only {', '.join(encoder.presets)}"
    if options.crf is not None and not 0 <= options.crf <= encoder.max_crf:
        return f"takes --crf 0 to {encoder.max_crf}, not {options.crf:g}"
    return None


def _fits(pixel_format: str, settings: VideoSettings) -> bool:
    """Whether the chroma planes divide the picture without a rest."""
    sx, sy = (1, 1) if pixel_format == "p010le" else PIXEL_FORMATS[pixel_format].subsampling
    return settings.width % (1 << sx) == 0 and settings.height % (1 << sy) == 0


def _choice(encoder: Encoder, options: EncodeOptions, settings: VideoSettings, wanted: str) -> Choice:
    """The encoder with the format nearest to `wanted` that it takes at this size; "" where this build lacks it."""
    try:
        taken: list[VideoFormat] = av.Codec(encoder.name, "w").video_formats or []
    except UnknownCodecError:
        taken = []
    names = [form.name for form in taken if form.name in _STORED_FORMATS]
    fitting = [name for name in names if encoder.odd_sizes or _fits(name, settings)]
    nearest, _ = find_best_pix_fmt_of_list(fitting, wanted)
    return Choice(encoder, nearest.name if nearest else "", _options(encoder, options, settings))


def _trial(choice: Choice, settings: VideoSettings) -> str | None:
    """Open the encoder and let go of it; the reason why it does not open, or None."""
    if not choice.pixel_format:
        return "is not in this build of FFmpeg"
    context = av.CodecContext.create(choice.encoder.name, "w")
    assert isinstance(context, VideoCodecContext)
    configure(context, choice, settings)
    context.options = choice.options
    try:
        context.open()
    except av.FFmpegError as error:
        return f"does not open at {settings.width}x{settings.height} px ({error.strerror})"
    finally:
        keep_ordinary_priority()
    return None


def configure(context: VideoCodecContext, choice: Choice, settings: VideoSettings) -> None:
    """Set up an encoder's context, except for its options."""
    context.width, context.height = settings.width, settings.height
    context.pix_fmt = choice.pixel_format
    context.time_base = settings.time_base
    context.framerate = min(settings.fps, _HIGHEST_RATE)
    if settings.sample_aspect_ratio:
        context.sample_aspect_ratio = settings.sample_aspect_ratio
    context.color_primaries, context.color_trc, context.colorspace, context.color_range = settings.color
    if choice.encoder.name == "libx264":
        context.thread_count = min(os.cpu_count() or 1, _MOST_THREADS)


def _options(encoder: Encoder, options: EncodeOptions, settings: VideoSettings) -> dict[str, str]:
    preset = options.preset or encoder.preset
    crf = f"{encoder.crf if options.crf is None else max(options.crf, encoder.min_crf):g}"
    if encoder in _NVENC:
        return {"preset": preset, "rc": "vbr", "cq": crf, "bf": "0"}
    if encoder.name == "libx265":
        return {"preset": preset, "crf": crf, "x265-params": ":".join(_x265_params(settings))}
    if encoder.name == "libsvtav1":
        params = ":".join(_svtav1_params(settings))
        return {"preset": preset, "crf": crf} | ({"svtav1-params": params} if params else {})
    return {"preset": preset, "crf": crf} | ({} if settings.b_frames else {"bf": "0"})


def _x265_params(settings: VideoSettings) -> Iterator[str]:
    """HDR10 metadata in x265's units of 0.00002 and 0.0001 cd/m2."""
    yield "log-level=none"
    if not settings.b_frames:
        yield "bframes=0"
    if settings.mastering_display:
        red, green, blue, white, low, high = settings.mastering_display
        points = {"G": green, "B": blue, "R": red, "WP": white}
        places = "".join(f"{name}({x * 50000:.0f},{y * 50000:.0f})" for name, (x, y) in points.items())
        yield f"master-display={places}L({high * 10000:.0f},{low * 10000:.0f})"
    if settings.content_light:
        yield "max-cll={},{}".format(*settings.content_light)


def keep_ordinary_priority() -> None:
    """Give every thread of this process an ordinary priority again.

    Run by root, as in many containers, SVT-AV1 makes its own threads and the one that opens it real-time ones of the
    highest priority, which on a small machine stops everything else.
    """
    if not hasattr(os, "sched_setscheduler"):
        return
    for thread in Path("/proc/self/task").glob("*"):
        with suppress(OSError):  # the thread has ended
            if os.sched_getscheduler(int(thread.name)) in (os.SCHED_FIFO, os.SCHED_RR):
                os.sched_setscheduler(int(thread.name), os.SCHED_OTHER, os.sched_param(0))


def _svtav1_params(settings: VideoSettings) -> Iterator[str]:
    if settings.mastering_display:
        red, green, blue, white, low, high = settings.mastering_display
        points = {"G": green, "B": blue, "R": red, "WP": white}
        places = "".join(f"{name}({x:.5f},{y:.5f})" for name, (x, y) in points.items())
        yield f"mastering-display={places}L({high:.4f},{low:.4f})"
    if settings.content_light:
        yield "content-light={},{}".format(*settings.content_light)
