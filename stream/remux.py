"""Everything of a file but its video: sound, subtitles, attachments, covers and tags, copied as they are."""

import io
from collections.abc import Iterator
from fractions import Fraction
from typing import Final, cast

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.stream import AttachmentStream, Stream
from av.subtitles.stream import SubtitleStream
from av.video.stream import VideoStream

import unmask
from unmask.stream.media import MediaInfo, is_cover

MOV_FORMATS: Final = frozenset({"mp4", "mov", "ipod", "3gp", "3g2", "psp", "ismv"})
"""FFmpeg's muxers of the ISO base media family."""

_TS_CODECS: Final = frozenset(
    {"aac", "ac3", "dts", "eac3", "mp2", "mp3", "opus", "s302m", "truehd"}
    | {"aribcaption", "dvb_subtitle", "dvb_teletext", "hdmv_pgs_subtitle"}
)
"""What can be found again in an MPEG transport stream; FFmpeg writes anything else to it as unnamed private data."""

_STALE_TAGS: Final = frozenset(
    {"encoder", "software", "major_brand", "minor_version", "compatible_brands"}
    | {"duration", "alpha_mode", "rotate", "vendor_id"}
)
"""Tags that describe the old coding, which the muxer writes anew."""

_NO_TIMES: Final = cast(int, av.format.Flags.no_timestamps.value)

_COVER_NAMES: Final = {"mjpeg": ("cover.jpg", "image/jpeg"), "png": ("cover.png", "image/png")}


def output_tags(source: dict[str, str]) -> dict[str, str]:
    """The tags of the source, and a comment that says what was done; an older comment stands behind it."""
    tags = {key: value for key, value in source.items() if key.lower() not in _STALE_TAGS}
    mark = f"Face regions in this video are synthetic (unmask {unmask.__version__}); not evidence of identity."
    old = next((tags.pop(key) for key in list(tags) if key.lower() == "comment"), "")
    tags["comment"] = old if old.startswith(mark) else f"{mark} {old}".strip()
    return tags


def stream_tags(source: dict[str, str]) -> dict[str, str]:
    """The tags of a stream that stay true when it is coded anew: language, title, handler."""
    return {
        key: value
        for key, value in source.items()
        if key.lower() not in _STALE_TAGS and not key.upper().startswith(("_STATISTICS", "NUMBER_OF_", "BPS"))
    }


class StreamCopy:
    """Copies the streams beside the video, packet by packet, as far as the video has come: nothing piles up.

    Args:
        source: opened for this object alone.
        info: what `probe` said of it.
        output: not yet begun.

    Attributes:
        left_out: what the container cannot hold, with the reason.
    """

    def __init__(self, source: InputContainer, info: MediaInfo, output: OutputContainer) -> None:
        self._source, self._info, self._output = source, info, output
        self._targets: dict[int, Stream] = {}
        self._last_dts: dict[int, int] = {}
        self._packets: Iterator[Packet[Stream]] = iter(())
        self._waiting: Packet[Stream] | None = None
        self.left_out: list[str] = []

    def __bool__(self) -> bool:
        return bool(self._targets)

    def add(self, stream: Stream) -> None:
        """Give the output a stream like this one, or note why not."""
        if stream.type == "data" and self._is_written_anew(stream):
            return
        reason = self._refusal(stream)
        if reason:
            self.left_out.append(f"{_describe(stream)}: {reason}")
        elif isinstance(stream, VideoStream) and self._output.format.name == "matroska":
            self._attach_cover(stream)
        elif isinstance(stream, AttachmentStream):
            self._output.add_stream_from_template(stream)
        else:
            self._targets[stream.index] = _add_like(self._output, stream)

    def start(self) -> None:
        """Begin to read; call once all streams are added."""
        for stream in self._source.streams:
            if stream.index not in self._targets:
                stream.discard = av.stream.Discard.all
        if self._targets:
            self._packets = self._source.demux([self._source.streams[index] for index in self._targets])

    def advance(self, seconds: float | None) -> None:
        """Copy all packets up to this time; None copies the rest."""
        while True:
            packet = self._waiting or self._next()
            if packet is None:
                return
            if seconds is not None and _seconds(packet) > seconds:
                self._waiting = packet
                return
            self._waiting = None
            self._write(packet)

    def _next(self) -> "Packet[Stream] | None":
        try:
            # The packets without data at the end are for draining decoders.
            return next((packet for packet in self._packets if packet.size), None)
        except av.FFmpegError as error:
            self.left_out.append(f"the rest of sound and subtitles: the file cannot be read further ({error.strerror})")
            return None

    def _write(self, packet: "Packet[Stream]") -> None:
        index = packet.stream_index
        _make_later(packet, self._last_dts.get(index))
        if packet.dts is not None:
            self._last_dts[index] = packet.dts
        packet.stream = self._targets[index]
        self._output.mux_one(packet)

    def _is_written_anew(self, stream: Stream) -> bool:
        """Chapter titles and timecodes of MP4 are tracks of their own, which the muxer makes from chapters and tags."""
        if self._output.format.name not in MOV_FORMATS:
            return bool(self._info.chapters) and stream.name == "bin_data"
        return "timecode" in stream.metadata or (bool(self._info.chapters) and stream.name == "bin_data")

    def _refusal(self, stream: Stream) -> str | None:
        """Why the output cannot have this stream; None where it can."""
        container = self._output.format
        if isinstance(stream, VideoStream) and not is_cover(stream):
            return "only one video is processed"
        if stream.type == "data":
            return "data streams are not copied"
        if container.flags & _NO_TIMES:
            return f"{container.name} holds video only"
        if isinstance(stream, VideoStream):
            held = container.name in MOV_FORMATS or container.name == "matroska"
            return None if held and stream.name in _COVER_NAMES else f"{container.name} cannot hold this picture"
        if isinstance(stream, AttachmentStream):
            return None if container.name == "matroska" else f"{container.name} cannot hold attachments"
        if not isinstance(stream, AudioStream | SubtitleStream) or not _can_hold(container.name, stream):
            return f"{container.name} cannot hold it without coding it anew"
        return None

    def _attach_cover(self, stream: VideoStream) -> None:
        name, mimetype = _COVER_NAMES[stream.codec_context.codec.canonical_name]
        with av.open(self._source.name) as source:
            packet = next(source.demux(source.streams[stream.index]))
            self._output.add_attachment(stream.metadata.get("filename", name), mimetype, bytes(packet))


def _describe(stream: Stream) -> str:
    context: object = stream.codec_context
    codec = stream.name if context is not None or stream.type in {"data", "attachment"} else None
    return f"{stream.type} stream {stream.index} ({codec or 'unknown codec'})"


def _add_like(output: OutputContainer, stream: Stream) -> Stream:
    added = output.add_stream_from_template(stream, opaque=True)
    added.metadata.update(stream_tags(stream.metadata))
    added.disposition = stream.disposition
    return added


def _can_hold(container: str, stream: Stream) -> bool:
    """Ask the muxer, by letting it write a header for this stream alone."""
    context: object = stream.codec_context
    if context is None or (container == "mpegts" and stream.codec_context.codec.canonical_name not in _TS_CODECS):
        return False
    output = av.open(io.BytesIO(), "w", format=container)
    try:
        _add_like(output, stream)
        output.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _seconds(packet: "Packet[Stream]") -> float:
    """When a packet is due. One without a time is due at once."""
    ticks = packet.dts if packet.dts is not None else packet.pts
    return float("-inf") if ticks is None else float(ticks * Fraction(packet.time_base))


def _make_later(packet: "Packet[Stream]", last_dts: int | None) -> None:
    """Muxers refuse packets that do not go forward in time, which damaged files have."""
    if packet.dts is None:
        packet.dts = packet.pts
    if packet.dts is not None and last_dts is not None and packet.dts <= last_dts:
        packet.dts = last_dts + 1
        packet.pts = max(packet.dts, packet.pts if packet.pts is not None else packet.dts)
