"""Everything of a file but its video: sound, subtitles, attachments, covers and tags, copied as they are."""

import io
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
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
from unmask.stream.media import MediaInfo, Part, Timeline, begins_anew, is_cover, open_input

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
_EQUAL_TIMES: Final = cast(int, av.format.Flags.ts_nonstrict.value)
"""Of muxers that take two packets of the same time."""

_MOST_APART: Final = 3
"""Seconds between packets of two streams that lie side by side in a file."""

_MOST_AHEAD: Final = 2000
"""Packets to be read ahead, most of a minute of sound, to see whether the clock of the video begins anew too."""

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
    tags = {
        key: value
        for key, value in source.items()
        if key.lower() not in _STALE_TAGS and not key.upper().startswith(("_STATISTICS", "NUMBER_OF_", "BPS"))
    }
    if "name" in tags:  # as FFmpeg's reader of MP4 calls the title, which its writer does not know
        tags.setdefault("title", tags.pop("name"))
    return tags


@dataclass(slots=True)
class _Track:
    """How far the copy of a stream has come.

    Attributes:
        source, target: the streams.
        part: of the timeline, to which its packets belong.
        shift: seconds to be added to their times.
        newest: the last time in the source, in seconds; None before the first packet of a part.
        written: the last time in the target, in its ticks; None before the first packet.
        hidden: the last packet, where an edit list hides it.
        begins: True until the first packet of another part than the first is written.
        overlap: seconds of sound that were left out for the part before.
        damaged: packets that the muxer refused, as those of which a part is missing.
    """

    source: Stream
    target: Stream
    part: int = 0
    shift: Fraction = Fraction(0)
    newest: Fraction | None = None
    written: int | None = None
    hidden: "Packet[Stream] | None" = None
    begins: bool = False
    overlap: Fraction = Fraction(0)
    damaged: int = 0


class StreamCopy:
    """Copies the streams beside the video, packet by packet, as far as the video has come: nothing piles up.

    Where the clock of the file begins anew, times are shifted as those of the video are (`Timeline`). Sound at the
    beginning of such a part that would lie over the sound of the part before is left out. So is what an edit list
    hides, but for the packet that a decoder needs for the first one to be heard.

    Args:
        source: opened for this object alone.
        info: what `probe` said of it.
        output: not yet begun.
    """

    def __init__(self, source: InputContainer, info: MediaInfo, output: OutputContainer) -> None:
        self._source, self._info, self._output = source, info, output
        self._timeline = Timeline(info)
        self._tracks: dict[int, _Track] = {}
        self._packets: Iterator[Packet[Stream]] = iter(())
        self._waiting: Packet[Stream] | None = None
        self._left_out: list[str] = []

    @property
    def left_out(self) -> list[str]:
        """What the output does not hold, with the reason."""
        lines = list(self._left_out)
        for track in self._tracks.values():
            if track.overlap:
                seconds = f"{float(track.overlap):.2f} s at the beginning of parts, over the parts before"
                lines.append(f"{_describe(track.source)}: {seconds}")
            if track.damaged:
                packets = f"{track.damaged} damaged packet{'' if track.damaged == 1 else 's'}"
                lines.append(f"{_describe(track.source)}: {packets}")
        return lines

    def __bool__(self) -> bool:
        return bool(self._tracks)

    def add(self, stream: Stream) -> None:
        """Give the output a stream like this one, or note why not."""
        if stream.type == "data" and self._is_written_anew(stream):
            return
        reason = self._refusal(stream)
        if reason:
            self._left_out.append(f"{_describe(stream)}: {reason}")
        elif isinstance(stream, VideoStream) and self._output.format.name == "matroska":
            self._attach_cover(stream)
        elif isinstance(stream, AttachmentStream):
            self._output.add_stream_from_template(stream)
        else:
            self._tracks[stream.index] = _Track(stream, _add_like(self._output, stream))

    def start(self) -> None:
        """Begin to read; call once all streams are added."""
        wanted = set(self._tracks)
        if "mp4" not in self._info.container.split(","):  # its clock never begins anew: the index tells all times
            wanted.add(self._info.stream_index)
        for stream in self._source.streams:
            if stream.index not in wanted:
                stream.discard = av.stream.Discard.all
        if self._tracks:
            self._packets = self._in_step([self._source.streams[index] for index in sorted(wanted)])

    def advance(self, seconds: float | None) -> None:
        """Copy all packets up to this time; None copies the rest."""
        while True:
            packet = self._waiting or next(self._packets, None)
            if packet is None:
                return
            time = _seconds(packet)
            if seconds is not None and time is not None and time > seconds:
                self._waiting = packet
                return
            self._waiting = None
            self._write(packet)

    # --- from the clocks of the file to that of the output ------------------------------------------------------------

    def _in_step(self, streams: list[Stream]) -> Iterator["Packet[Stream]"]:
        """The packets to be written, in the time base of their targets and in step with the video.

        In the file, sound may pass to a new part somewhat before or after the video does. What is before it waits: only
        the video tells how far the part is shifted.
        """
        ahead: deque[tuple[Packet[Stream], Fraction | None]] = deque()
        for packet in self._read(streams):
            if packet.stream_index in self._tracks:
                ahead.append((packet, self._timeline.parts[-1].newest if self._timeline.parts else None))
            else:
                self._timeline.see(cast("Packet[VideoStream]", packet))
            while ahead and (len(ahead) > _MOST_AHEAD or not self._waits_for_video(ahead[0][0])):
                yield from self._placed(*ahead.popleft())
        for packet, video in ahead:
            yield from self._placed(packet, video)

    def _read(self, streams: list[Stream]) -> Iterator["Packet[Stream]"]:
        try:
            # The packets without data at the end are for draining decoders.
            yield from (packet for packet in self._source.demux(streams) if packet.size)
        except av.FFmpegError as error:
            self._left_out.append(
                f"the rest of sound and subtitles: the file cannot be read further ({error.strerror})"
            )

    def _waits_for_video(self, packet: "Packet[Stream]") -> bool:
        track, time = self._tracks[packet.stream_index], _seconds(packet)
        if packet.is_discard or time is None or track.newest is None:
            return False
        return track.part + 1 >= len(self._timeline.parts) and begins_anew(track.newest, time)

    def _placed(self, packet: "Packet[Stream]", video: Fraction | None) -> Iterator["Packet[Stream]"]:
        """The packet at its place in the output, behind the hidden one that decoding begins with, or nothing.

        Args:
            packet: with the times of the source.
            video: time of the video's packet that was read before it.
        """
        track = self._tracks[packet.stream_index]
        time = None if packet.is_discard else _seconds(packet)
        if time is not None:
            self._enter_part(track, time)
            if _is_alone(track, time, video):
                track.shift += (track.newest or 0) + _duration(packet) - time  # it goes on where it was
            track.newest = time
        _move(packet, track)
        if packet.is_discard:
            track.hidden = packet
            return
        if track.hidden is not None and track.written is None:
            yield track.hidden
        track.hidden = None
        yield packet

    def _enter_part(self, track: _Track, time: Fraction) -> None:
        """Go on to the newest part of the timeline where a packet belongs to it."""
        parts = self._timeline.parts
        if track.part + 1 < len(parts) and _is_nearer(time, parts[-1], parts[track.part]):
            track.part, track.shift, track.newest, track.begins = len(parts) - 1, parts[-1].shift, None, True

    def _write(self, packet: "Packet[Stream]") -> None:
        track = self._tracks[packet.stream_index]
        if track.begins and _lies_before(packet, track):
            track.overlap += _duration(packet)
            return
        track.begins = False
        self._make_later(packet, track.written)
        time = packet.dts
        packet.stream = track.target
        try:
            self._output.mux_one(packet)
        except av.error.InvalidDataError:  # of the packet; that of a full disk and the like is another
            track.damaged += 1
        else:
            track.written = track.written if time is None else time

    def _make_later(self, packet: "Packet[Stream]", written: int | None) -> None:
        """Muxers refuse packets that do not go forward in time, which damaged files have, in ticks of their own."""
        if packet.dts is None:
            packet.dts = packet.pts
        if packet.dts is not None and written is not None:
            same = packet.dts == written and not self._output.format.flags & _EQUAL_TIMES
            if packet.dts < written or same:
                packet.dts = written + 1
        if packet.dts is not None:
            packet.pts = packet.dts if packet.pts is None else max(packet.pts, packet.dts)

    # --- what the output can hold -------------------------------------------------------------------------------------

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
        with open_input(self._info.path) as source:
            packet = next(source.demux(source.streams[stream.index]))
            attached = self._output.add_attachment(name, mimetype, bytes(packet))
        # As a tag the name may hold odd bytes, as an argument it may not.
        attached.metadata["filename"] = stream.metadata.get("filename", name)


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
    output = av.open(io.BytesIO(), "w", format=container, metadata_errors="surrogateescape")
    try:
        _add_like(output, stream)
        output.start_encoding()
    except (av.FFmpegError, ValueError):
        return False
    return True


def _seconds(packet: "Packet[Stream]") -> Fraction | None:
    """When a packet is due. One without a time is due at once."""
    ticks = packet.dts if packet.dts is not None else packet.pts
    return None if ticks is None else ticks * Fraction(packet.time_base)


def _duration(packet: "Packet[Stream]") -> Fraction:
    return (packet.duration or 0) * Fraction(packet.time_base)


def _is_nearer(time: Fraction, new: Part, old: Part) -> bool:
    """Whether a packet read after the video went from one part to another belongs to the new one."""
    return new.newest - new.first > _MOST_APART or abs(time - new.newest) < abs(time - old.newest)


def _is_alone(track: _Track, time: Fraction, video: Fraction | None) -> bool:
    """Whether the clock of sound began anew and that of the video did not; beside the video, it was wrong before."""
    if video is None or track.newest is None or not isinstance(track.source, AudioStream):
        return False
    return begins_anew(track.newest, time) and abs(time - video) > _MOST_APART


def _lies_before(packet: "Packet[Stream]", track: _Track) -> bool:
    """Whether sound lies before the end of what was written."""
    late = packet.dts is not None and track.written is not None and packet.dts <= track.written
    return late and isinstance(track.target, AudioStream)


def _move(packet: "Packet[Stream]", track: _Track) -> None:
    """Shift a packet's times, and bring them to the time base of the target."""
    assert track.target.time_base is not None
    old, new = Fraction(packet.time_base), Fraction(track.target.time_base)
    packet.pts = None if packet.pts is None else round((packet.pts * old + track.shift) / new)
    packet.dts = None if packet.dts is None else round((packet.dts * old + track.shift) / new)
    packet.duration = round((packet.duration or 0) * old / new)
    packet.time_base = new
