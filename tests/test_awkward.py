"""The files that break naive programs, through decoding and encoding, and compared with what comes out."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
import pytest

from unmask.errors import UserError
from unmask.stream.encoders import EncodeOptions
from unmask.stream.frame import Frame
from unmask.stream.media import FULL_RANGE, MediaInfo, probe
from unmask.stream.stage import Context
from unmask.stream.stages.decode import Decode
from unmask.stream.stages.encode import Encode

pytestmark = pytest.mark.shared


class Expected(NamedTuple):
    """What a file gives: pictures, size of the upright picture, pictures lost, what the output leaves out."""

    frames: int
    size: tuple[int, int]
    lost: int = 0
    left_out: tuple[str, ...] = ()


USABLE = {
    "chapters.mp4": Expected(30, (1080, 720)),
    "corrupted.mp4": Expected(49, (1280, 720), lost=1),
    "empty-second-video.mp4": Expected(30, (1080, 720), left_out=("video stream 1", "tags com.android.version")),
    "flv-rate-1000.flv": Expected(30, (1080, 720)),
    "fragmented.mp4": Expected(30, (1080, 720)),
    "hdr-hlg10.mp4": Expected(9, (1920, 1080), left_out=("tags com.android.version",)),
    "hdr10-av1.mp4": Expected(127, (720, 1280)),
    "hevc-10bit.mp4": Expected(30, (200, 200)),
    "invalid-nalu.mp4": Expected(29, (1080, 720), lost=1),
    "no-duration.webm": Expected(74, (1280, 720)),
    "odd-161x121.webm": Expected(30, (161, 121)),
    "resolution-change.h264": Expected(96, (848, 464), left_out=("tags comment",)),
    "rotate-and-reflect.mp4": Expected(30, (720, 1080)),
    "rotated-90.mov": Expected(3, (320, 568)),
    "sar-2x1.mp4": Expected(150, (640, 360)),
    "subtitles-srt.mkv": Expected(30, (1080, 720)),
    "two-audio-two-subtitles.mp4": Expected(325, (320, 180), left_out=("video stream 3",)),
    "vfr-extreme.mp4": Expected(63, (3026, 1386)),
    "video-only.mp4": Expected(30, (1080, 720)),
}

REFUSED = {
    "258-bytes.mp4": "holds no video",
    "audio-only.mp4": "sound but no video",
    "truncated.mp4": "not a readable video",  # its index, at the end of MP4, is missing: no picture can be found
    "zero-bytes.mp4": "is empty",
}


def transcode(info: MediaInfo, output: Path, options: EncodeOptions) -> tuple[list[Fraction], dict[str, Any]]:
    """Decode and encode; the times of the frames and the summaries of both stages."""
    source, sink, context = Decode(info), Encode(output, info, options), Context(info.layout, 1)
    buffer = np.zeros(info.layout.slot_bytes(1), np.uint8)
    times: list[Fraction] = []
    source.open(context)
    sink.open(context)
    while given := list(source.process(Frame(len(times), 0, Fraction(1), info.layout, buffer, 0))):
        times.append(given[0].pts * given[0].time_base)
        sink.process(given[0])
    sink.flush()
    summary = {"decode": source.summary(), "encode": sink.summary()}
    source.close()
    sink.close()
    return times, summary


def contents(path: Path) -> dict[str, Any]:
    """Everything beside the video that must survive."""
    with av.open(str(path)) as source:
        kept = [stream for stream in source.streams if stream.type in {"audio", "subtitle"}]
        packets: dict[int, list[bytes]] = {stream.index: [] for stream in kept}
        starts: dict[int, float] = {}
        for packet in source.demux(kept) if kept else ():
            if packet.size:
                packets[packet.stream_index].append(bytes(packet))
                starts.setdefault(packet.stream_index, float((packet.pts or 0) * packet.time_base))
        return {
            "types": [stream.type for stream in kept],
            "languages": [stream.language for stream in kept],
            "titles": [stream.metadata.get("title") for stream in kept],
            "dispositions": [stream.disposition for stream in kept],
            "packets": list(packets.values()),
            "starts": [round(start, 2) for start in starts.values()],
            "chapters": [
                (chapter["metadata"].get("title"), round(float(chapter["start"] * (chapter["time_base"] or 0)), 3))
                for chapter in source.chapters()
            ],
            # MP4 holds numbers, which come back with other noughts.
            "location": [float(number) for number in re.findall(r"[+-][\d.]+", source.metadata.get("location", ""))],
        }


def assert_times(path: Path, expected: list[Fraction]) -> None:
    """Every picture is there, at its time to the tick; a raw stream has no times."""
    with av.open(str(path)) as written:
        stream = written.streams.video[0]
        pictures = list(written.decode(stream))
        assert len(pictures) == len(expected)
        for picture, time in zip(pictures, expected, strict=True):
            if path.suffix != ".h264":
                assert picture.pts is not None
                assert stream.time_base is not None
                assert abs(picture.pts * stream.time_base - time) <= stream.time_base


def assert_video(source: MediaInfo, written: MediaInfo) -> None:
    assert written.layout == source.layout
    assert written.bits == source.bits
    assert (written.sample_aspect_ratio or 1) == (source.sample_aspect_ratio or 1)
    assert written.color[:3] == source.color[:3]
    # An unspecified range means the limited one, and some codecs can only say that.
    assert (written.color.range == FULL_RANGE) == (source.color.range == FULL_RANGE)


def test_all_files_are_tested(shared: Path) -> None:
    assert {path.name for path in (shared / "data/videos/awkward").iterdir()} == USABLE.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", USABLE)
def test_what_is_in_the_file_stays_in_the_file(shared: Path, tmp_path: Path, name: str) -> None:
    path, expected = shared / "data/videos/awkward" / name, USABLE[name]
    info = probe(path)
    assert (info.layout.width, info.layout.height) == expected.size
    fast = None if path.suffix == ".webm" else "ultrafast"
    times, summary = transcode(info, tmp_path / name, EncodeOptions(preset=fast))
    assert summary["decode"]["frames"] == summary["encode"]["frames"] == expected.frames
    assert summary["decode"]["lost"] == expected.lost
    for left_out, start in zip(summary["encode"]["left_out"], expected.left_out, strict=True):
        assert left_out.startswith(start)
    assert_times(tmp_path / name, times)
    assert_video(info, probe(tmp_path / name))
    assert contents(tmp_path / name) == contents(path)


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_used_is_refused_in_one_line(shared: Path, name: str) -> None:
    with pytest.raises(UserError, match=REFUSED[name]) as caught:
        probe(shared / "data/videos/awkward" / name)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["phone-rotated-720p.mp4", "glasses-vfr-audio-720p.mp4"])
def test_real_clips(shared: Path, tmp_path: Path, name: str) -> None:
    path = shared / "data/videos/masked" / name
    info = probe(path)
    times, _ = transcode(info, tmp_path / name, EncodeOptions(preset="ultrafast"))
    assert len(times) == info.frames_expected
    assert_times(tmp_path / name, times)
    assert_video(info, probe(tmp_path / name))
    assert contents(tmp_path / name) == contents(path)


@pytest.mark.parametrize(
    ("name", "rate"), [("flv-rate-1000.flv", 30), ("subtitles-srt.mkv", 30), ("fragmented.mp4", 30)]
)
def test_rates_in_headers_are_not_believed(shared: Path, name: str, rate: float) -> None:
    assert float(probe(shared / "data/videos/awkward" / name).fps) == pytest.approx(rate, rel=0.02)
