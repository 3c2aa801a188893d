"""Encoding: what is in the file stays in the file, or a line says what was left out; failures leave nothing behind."""

import os
import pickle
import resource
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from live_sources import flash_clip, flashes_and_beeps

import unmask
from unmask.errors import StageError, UserError
from unmask.models.engine import has_nvidia_gpu
from unmask.stream.encoders import Codec, EncodeOptions
from unmask.stream.frame import Frame
from unmask.stream.media import Color, ContentLight, MasteringDisplay, MediaInfo, probe, with_source
from unmask.stream.stage import Context
from unmask.stream.stages.decode import Decode
from unmask.stream.stages.encode import Encode, decode_in_order

FAST = EncodeOptions(preset="ultrafast")
UNEVEN = (90, 3093, 6096, 96186, 97187, 99189, 200001)
MARK = f"Face regions in this video are synthetic (unmask {unmask.__version__}); not evidence of identity."


class Clip:
    """A video file made for a test: moving stripes, and whatever else is added before `write`."""

    def __init__(self, path: Path, container: str | None = None, options: dict[str, str] | None = None) -> None:
        self.path = path
        self.output = av.open(str(path), "w", format=container, container_options=options or {})
        self.others: list[av.Packet[Any]] = []

    def video(
        self,
        pts: Sequence[int] = tuple(range(25)),
        *,
        size: tuple[int, int] = (64, 48),
        form: str = "yuv420p",
        codec: str = "libx264",
        options: dict[str, str] | None = None,
        time_base: Fraction = Fraction(1, 25),
        color: Color | None = None,
        ratio: Fraction | None = None,
    ) -> "Clip":
        stream = self.output.add_stream(codec, rate=25, options={"preset": "ultrafast"} if options is None else options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = form
        context = stream.codec_context
        context.time_base = stream.time_base = time_base
        if color:
            context.color_primaries, context.color_trc, context.colorspace, context.color_range = color
        if ratio:
            context.sample_aspect_ratio = ratio
        self.stream, self.pts = stream, pts
        return self

    def sound(self, language: str = "eng", start: int = 0, seconds: float = 1.0, codec: str = "aac") -> "Clip":
        stream = self.output.add_stream(codec, rate=48000)
        assert isinstance(stream, av.AudioStream)
        stream.metadata["language"] = language
        for number in range(int(seconds * 48000 / 1024)):
            tone = np.sin(np.arange(1024) * (0.02 + 0.001 * number)).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(np.stack([tone, tone]), "fltp", "stereo")
            samples.sample_rate, samples.pts = 48000, start + 1024 * number
            self.others += stream.encode(samples)
        self.others += stream.encode(None)
        return self

    def subtitles(self) -> "Clip":
        stream = self.output.add_mux_stream("subrip")
        stream.metadata.update(language="fra", title="Sous-titres")
        stream.time_base = Fraction(1, 1000)
        for number in range(3):
            packet = av.Packet(f"ligne {number}".encode())
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = 300 * number
            packet.duration = 200
            self.others.append(packet)
        return self

    def write(self) -> Path:
        with self.output as output:
            size = self.stream.width, self.stream.height, str(self.stream.pix_fmt)
            packets: list[av.Packet[Any]] = []
            for number, time in enumerate(self.pts):
                made = av.VideoFrame(*size)
                for index, plane in enumerate(made.planes):
                    data = np.frombuffer(memoryview(plane), np.uint16 if "10" in size[2] else np.uint8)
                    data[:] = (np.arange(data.size) // 5 * (3 + index) + 9 * number) % 180 + 30
                made.pts, made.time_base = time, self.stream.codec_context.time_base
                packets += self.stream.encode(made)
            packets += self.stream.encode(None)
            # In the order of their times, as a camera would have written them.
            output.mux(sorted(packets + self.others, key=lambda one: (one.dts or 0) * one.time_base))
        return self.path


def transcode(
    info: MediaInfo,
    output: Path,
    options: EncodeOptions = FAST,
    *,
    frames: int | None = None,
    notices: list[str] | None = None,
    finish: bool = True,
) -> tuple[list[Fraction], dict[str, Any]]:
    """Decode and encode on one buffer, which both stages must be done with at once; the times and the summary."""
    context = Context(info.layout, 1, (notices if notices is not None else []).append)
    source, sink = Decode(info), pickle.loads(pickle.dumps(Encode(output, info, options)))
    buffer = np.zeros(info.layout.slot_bytes(1), np.uint8)
    times: list[Fraction] = []
    source.open(context)
    try:
        sink.open(context)
        try:
            while len(times) != frames:
                given = list(source.process(Frame(len(times), 0, Fraction(1), info.layout, buffer, 0)))
                if not given:
                    break
                times.append(given[0].pts * given[0].time_base)
                assert list(sink.process(given[0])) == given
                buffer[:] = 0
            if finish:
                assert list(sink.flush()) == []
            return times, sink.summary()
        finally:
            sink.close()
    finally:
        source.close()


def times_in(path: Path) -> tuple[list[Fraction], Fraction]:
    """When each picture is shown, and the tick of the clock."""
    with av.open(str(path)) as source:
        stream = source.streams.video[0]
        tick = stream.time_base
        assert tick is not None
        return [picture.pts * tick for picture in source.decode(stream) if picture.pts is not None], tick


def copied(path: Path) -> list[tuple[str, list[tuple[bytes, float]]]]:
    """Type and packets, with their times in seconds, of all streams but the video."""
    with av.open(str(path), metadata_errors="surrogateescape") as source:
        kept = [stream for stream in source.streams if stream.type in {"audio", "subtitle"}]
        packets: dict[int, list[tuple[bytes, float]]] = {stream.index: [] for stream in kept}
        for packet in source.demux(kept) if kept else ():
            if packet.size and packet.pts is not None:
                packets[packet.stream_index].append((bytes(packet), float(packet.pts * packet.time_base)))
        return [(stream.type, packets[stream.index]) for stream in kept]


def assert_same_copies(source: Path, output: Path) -> None:
    for (kind, packets), (new_kind, new_packets) in zip(copied(source), copied(output), strict=True):
        assert kind == new_kind
        assert [data for data, _ in packets] == [data for data, _ in new_packets]
        assert [time for _, time in new_packets] == pytest.approx([time for _, time in packets], abs=0.001)


# --- pictures and times -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".m4v", ".mkv", ".webm", ".flv", ".ts"])
def test_every_time_is_kept(tmp_path: Path, suffix: str) -> None:
    info = probe(Clip(tmp_path / "in.mp4").video(UNEVEN, time_base=Fraction(1, 90000)).write())
    output = tmp_path / f"out{suffix}"
    times, summary = transcode(info, output, EncodeOptions())
    written, tick = times_in(output)
    assert times == [Fraction(time, 90000) for time in UNEVEN]
    assert len(written) == len(times) == summary["frames"]
    assert max(abs(new - old) for new, old in zip(written, times, strict=True)) <= tick
    assert summary["bytes"] == output.stat().st_size


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_short_hevc_has_times_of_decoding_near_its_pictures(tmp_path: Path, suffix: str, count: int) -> None:
    """libx265 left them to chance, so that only some of several videos came out."""
    info = probe(Clip(tmp_path / "in.mkv").video(range(count), size=(256, 144), codec="ffv1", options={}).write())
    for _ in range(6):
        times, _ = transcode(info, tmp_path / f"out{suffix}", EncodeOptions(codec=Codec.HEVC))
        assert times_in(tmp_path / f"out{suffix}")[0] == times
        with av.open(str(tmp_path / f"out{suffix}")) as written:
            packets = [packet for packet in written.demux(video=0) if packet.pts is not None]
            assert all(abs((one.dts or 0) - (one.pts or 0)) * one.time_base <= Fraction(1, 5) for one in packets)


@pytest.mark.parametrize(("shown", "expected"), [([5], [5]), ([0, 40], [0, 40]), ([1, 0], [-1, 0]), ([3, 4], [3, 4])])
def test_times_of_decoding_grow_and_are_never_later_than_their_pictures(shown: list[int], expected: list[int]) -> None:
    packets: list[av.Packet[Any]] = [av.Packet(b"x") for _ in shown]
    for packet, pts in zip(packets, shown, strict=True):
        packet.pts, packet.dts = pts, -171798691880
    decode_in_order(packets)
    assert [packet.dts for packet in packets] == expected


@pytest.mark.parametrize("suffix", [".avi", ".h264"])
def test_containers_without_times_say_so(tmp_path: Path, suffix: str) -> None:
    notices: list[str] = []
    info = probe(Clip(tmp_path / "in.mp4").video().write())
    transcode(info, tmp_path / f"out{suffix}", notices=notices)
    with av.open(str(tmp_path / f"out{suffix}")) as written:
        assert sum(1 for _ in written.decode(video=0)) == 25
    assert any("holds no times" in line for line in notices)


def test_the_last_picture_lasts_as_long_as_before(tmp_path: Path) -> None:
    path = Clip(tmp_path / "in.mkv").video(UNEVEN, time_base=Fraction(1, 90000)).write()
    info = replace(probe(path), end_pts=5000)
    transcode(info, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as written:
        stream = written.streams.video[0]
        assert stream.duration is not None
        assert stream.time_base is not None
        assert float(stream.duration * stream.time_base) == pytest.approx(5.0 - 0.001, abs=0.002)


def test_the_last_picture_lasts_as_long_as_its_packet_says(tmp_path: Path) -> None:
    """WebM tells no length of the video."""
    path = tmp_path / "in.webm"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libvpx", rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = [packet for _ in range(6) for packet in stream.encode(av.VideoFrame(64, 48, "yuv420p"))]
        packets += stream.encode(None)
        packets[-1].duration = round(5 / packets[-1].time_base)
        output.mux(packets)
    info = probe(path)
    assert info.end_pts is None
    transcode(info, tmp_path / "out.mp4")
    with av.open(str(tmp_path / "out.mp4")) as written:
        assert written.duration == pytest.approx(5.2 * av.time_base, abs=2000)


def test_lossless_output_is_the_source_to_the_bit(tmp_path: Path) -> None:
    path = Clip(tmp_path / "in.mp4").video(size=(70, 46)).write()
    transcode(probe(path), tmp_path / "out.mp4", EncodeOptions(crf=0, preset="ultrafast"))
    with av.open(str(path)) as source, av.open(str(tmp_path / "out.mp4")) as written:
        for old, new in zip(source.decode(video=0), written.decode(video=0), strict=True):
            np.testing.assert_array_equal(old.to_ndarray(), new.to_ndarray())


@pytest.mark.parametrize(
    ("form", "codec", "stored", "encoder"),
    [
        ("yuv420p", None, "yuv420p", "libx264"),
        ("yuv422p", None, "yuv422p", "libx264"),
        ("yuv444p", Codec.HEVC, "yuv444p", "libx265"),
        ("yuv420p10le", None, "yuv420p10le", "libx265"),
        ("yuv420p10le", Codec.AV1, "yuv420p10le", "libsvtav1"),
        ("yuv420p10le", Codec.H264, "yuv420p10le", "libx264"),
        ("yuv422p", Codec.AV1, "yuv420p", "libsvtav1"),
    ],
)
def test_depth_and_chroma_are_kept_where_the_codec_can(
    tmp_path: Path, form: str, codec: Codec | None, stored: str, encoder: str
) -> None:
    notices: list[str] = []
    info = probe(Clip(tmp_path / "in.mkv").video(range(4), form=form, codec="ffv1", options={}).write())
    _, summary = transcode(info, tmp_path / "out.mp4", EncodeOptions(codec=codec), notices=notices)
    assert (summary["encoder"], probe(tmp_path / "out.mp4").pixel_format) == (encoder, stored)
    assert any(stored in line for line in notices) == (stored != form)


@pytest.mark.skipif(not hasattr(os, "sched_getscheduler"), reason="this system has no scheduling classes to look at")
def test_no_encoder_makes_this_process_a_real_time_one(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.mkv").video(range(4), codec="ffv1", options={}).write())
    transcode(info, tmp_path / "out.mp4", EncodeOptions(codec=Codec.AV1))
    threads = [int(thread.name) for thread in Path("/proc/self/task").glob("*")]
    assert {os.sched_getscheduler(thread) for thread in threads} == {os.SCHED_OTHER}


@pytest.mark.parametrize(("codec", "stored"), [(None, "yuv420p"), (Codec.H264, "yuv444p"), (Codec.HEVC, "yuv444p")])
def test_odd_sizes_are_kept(tmp_path: Path, codec: Codec | None, stored: str) -> None:
    info = probe(Clip(tmp_path / "in.mkv").video(range(4), size=(161, 121), codec="ffv1", options={}).write())
    transcode(info, tmp_path / "out.mp4", EncodeOptions(codec=codec))
    written = probe(tmp_path / "out.mp4")
    assert (written.layout.width, written.layout.height, written.pixel_format) == (161, 121, stored)


def test_rgb_becomes_tagged_yuv_of_the_same_colours(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.avi").video(range(3), form="bgr24", codec="rawvideo", options={}).write())
    transcode(info, tmp_path / "out.mp4", EncodeOptions(crf=0))
    assert probe(tmp_path / "out.mp4").color == Color(matrix=1, range=1)
    with av.open(str(info.path)) as source, av.open(str(tmp_path / "out.mp4")) as written:
        for old, new in zip(source.decode(video=0), written.decode(video=0), strict=True):
            expected = old.to_ndarray(format="rgb24").astype(int)
            found = new.to_ndarray(format="rgb24", src_colorspace="ITU709", src_color_range="MPEG").astype(int)
            assert abs(found - expected).mean() < 2


def test_deep_rgb_is_tagged_with_the_matrix_it_was_converted_with(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.mkv").video(range(3), form="gbrp10le", codec="ffv1", options={}).write())
    transcode(replace(info, color=Color()), tmp_path / "out.mkv")
    assert probe(tmp_path / "out.mkv").color.matrix == 1


def test_best_quality_of_av1_is_better_than_its_default(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.mp4").video(range(8), size=(256, 256)).write())
    sizes = {}
    for crf in (None, 0, 1):
        _, summary = transcode(info, tmp_path / "out.mkv", EncodeOptions(codec=Codec.AV1, crf=crf))
        sizes[crf] = summary["bytes"]
    assert sizes[0] == sizes[1] > sizes[None]


def test_no_encoder_writes_to_the_terminal(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """SVT-AV1 reads how much it says once in a process."""
    info = probe(Clip(tmp_path / "in.mkv").video(range(1), size=(16640, 64), codec="ffv1", options={}).write())
    with pytest.raises(UserError, match="libsvtav1 does not open"):
        transcode(info, tmp_path / "out.mkv", EncodeOptions(codec=Codec.AV1))
    assert "".join(capfd.readouterr()) == ""


def test_shape_of_pixels_and_colour_tags(tmp_path: Path) -> None:
    color = Color(9, 16, 9, 2)
    info = probe(Clip(tmp_path / "in.mp4").video(color=color, ratio=Fraction(4, 3)).write())
    assert (info.color, info.sample_aspect_ratio, info.layout.full_range) == (color, Fraction(4, 3), True)
    for name in ("out.mp4", "out.mkv", "out.flv"):
        transcode(info, tmp_path / name)
        written = probe(tmp_path / name)
        assert (written.color, written.sample_aspect_ratio) == (color, Fraction(4, 3))
    notices: list[str] = []
    transcode(info, tmp_path / "out.webm", EncodeOptions(), notices=notices)
    assert any("sample aspect ratio 4/3" in line for line in notices)


@pytest.mark.parametrize("codec", [Codec.HEVC, Codec.AV1])
def test_hdr10_metadata(tmp_path: Path, codec: Codec) -> None:
    params = "G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50)"
    options = {"preset": "ultrafast", "x265-params": f"log-level=none:master-display={params}:max-cll=1000,400"}
    clip = Clip(tmp_path / "in.mp4").video(
        range(4), form="yuv420p10le", codec="libx265", options=options, color=Color(9, 16, 9, 1)
    )
    info = probe(clip.write())
    expected = MasteringDisplay((0.68, 0.32), (0.265, 0.69), (0.15, 0.06), (0.3127, 0.329), 0.005, 1000)
    assert (info.mastering_display, info.content_light) == (expected, ContentLight(1000, 400))
    transcode(info, tmp_path / "out.mp4", EncodeOptions(codec=codec))
    written = probe(tmp_path / "out.mp4")
    assert (written.content_light, written.color) == (info.content_light, info.color)
    assert written.mastering_display is not None
    for new, old in zip(written.mastering_display, expected, strict=True):
        assert new == pytest.approx(old, abs=1e-4)


def test_turned_video_is_written_upright(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mp4").video(ratio=Fraction(2, 1))
    clip.stream.set_display_rotation(90)
    transcode(probe(clip.write()), tmp_path / "out.mp4")
    written = probe(tmp_path / "out.mp4")
    assert (written.layout.width, written.layout.height) == (48, 64)
    assert (written.orientation, written.sample_aspect_ratio) == ((False, False, False), Fraction(1, 2))


@pytest.mark.parametrize("size", [(64, 48), (35, 27)])
def test_before_and_after_side_by_side(tmp_path: Path, size: tuple[int, int]) -> None:
    path = Clip(tmp_path / "in.mkv").video(range(3), size=size, codec="ffv1", options={}).write()
    info = with_source(probe(path))
    transcode(info, tmp_path / "out.mp4", EncodeOptions(crf=0, compare=True))
    width, height = size
    half = width + width % 2
    with av.open(str(path)) as source, av.open(str(tmp_path / "out.mp4")) as written:
        for old, new in zip(source.decode(video=0), written.decode(video=0), strict=True):
            assert (new.width, new.height) == (2 * half, height + height % 2)
            before = np.frombuffer(bytes(old.planes[0]), np.uint8).reshape(height, -1)[:, :width]
            both = np.frombuffer(bytes(new.planes[0]), np.uint8).reshape(new.height, -1)
            np.testing.assert_array_equal(both[:height, :width], before)
            np.testing.assert_array_equal(both[:height, half : half + width], before)


# --- everything else in the file --------------------------------------------------------------------------------------


def test_sound_is_copied_and_stays_in_step(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mp4").video(range(3, 28)).sound("deu", start=9600).sound("jpn", seconds=1.4)
    path = clip.write()
    times, summary = transcode(probe(path), tmp_path / "out.mp4")
    assert_same_copies(path, tmp_path / "out.mp4")
    assert times_in(tmp_path / "out.mp4")[0] == times
    assert summary["left_out"] == []
    with av.open(str(tmp_path / "out.mp4")) as written:
        assert [stream.language for stream in written.streams.audio] == ["deu", "jpn"]


def test_titles_of_sound_are_kept_in_mp4(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mp4").video().sound("deu")
    clip.output.streams.audio[0].metadata["title"] = "Kommentar"
    transcode(probe(clip.write()), tmp_path / "out.mp4")
    with av.open(str(tmp_path / "in.mp4")) as source, av.open(str(tmp_path / "out.mp4")) as written:
        assert written.streams.audio[0].metadata == source.streams.audio[0].metadata
        assert "Kommentar" in written.streams.audio[0].metadata.values()


def test_sound_lies_beside_its_pictures(tmp_path: Path) -> None:
    path = Clip(tmp_path / "in.mp4").video(range(500)).sound(seconds=20).write()
    transcode(probe(path), tmp_path / "out.mkv")
    reached = {"video": 0.0, "audio": 0.0}
    with av.open(str(tmp_path / "out.mkv")) as written:
        for packet in written.demux():
            if packet.pts is not None:
                reached[packet.stream.type] = float(packet.pts * packet.time_base)
                assert abs(reached["video"] - reached["audio"]) < 0.5


def test_matroska_keeps_subtitles_chapters_attachments_and_tags(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mkv").video().sound(codec="libopus").subtitles()
    clip.output.add_attachment("font.ttf", "application/x-truetype-font", b"\0\1\2" * 50)
    clip.output.metadata.update(title="A title", comment="old words", director="Someone")
    chapters: Any = [
        {"id": 1, "start": 0, "end": 400, "time_base": Fraction(1, 1000), "metadata": {"title": "one"}},
        {"id": 2, "start": 400, "end": 1000, "time_base": Fraction(1, 1000), "metadata": {"title": "two"}},
    ]
    clip.output.set_chapters(chapters)
    path = clip.write()
    _, summary = transcode(probe(path), tmp_path / "out.mkv")
    assert summary["left_out"] == []
    assert_same_copies(path, tmp_path / "out.mkv")
    with av.open(str(tmp_path / "out.mkv")) as written:
        tags = {key.lower(): value for key, value in written.metadata.items()}
        assert (tags["title"], tags["director"]) == ("A title", "Someone")
        assert tags["comment"] == f"{MARK} old words"
        assert [chapter["metadata"]["title"] for chapter in written.chapters()] == ["one", "two"]
        assert [stream.data for stream in written.streams.attachments] == [b"\0\1\2" * 50]
        (subtitles,) = written.streams.subtitles
        assert (subtitles.language, subtitles.metadata["title"]) == ("fra", "Sous-titres")


def test_what_the_container_cannot_hold_is_said(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mkv").video().sound().subtitles()
    clip.output.metadata.update(director="Someone")
    notices: list[str] = []
    _, summary = transcode(probe(clip.write()), tmp_path / "out.mp4", notices=notices)
    assert [kind for kind, _ in copied(tmp_path / "out.mp4")] == ["audio"]
    assert len(summary["left_out"]) == 2
    assert "subtitle stream 2 (srt): mp4 cannot hold it" in summary["left_out"][0]
    assert "director" in summary["left_out"][1].lower()
    assert [line for line in notices if line.startswith("left out: ")] == [
        f"left out: {x}" for x in summary["left_out"]
    ]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_damaged_sound_is_left_out_and_counted(tmp_path: Path, suffix: str) -> None:
    path, sound = Clip(tmp_path / "in.ts").video().sound().write(), 0x101
    data = path.read_bytes()
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    inner = [i for i, p in enumerate(packets) if p[1] & 0x5F == sound >> 8 and p[2] == sound & 0xFF]  # none that begins
    path.write_bytes(b"".join(packets[: inner[20]] + packets[inner[20] + 1 :]))
    times, summary = transcode(probe(path), tmp_path / f"out{suffix}")
    assert summary["left_out"] == ["audio stream 1 (aac): 2 damaged packets"]
    assert len(times_in(tmp_path / f"out{suffix}")[0]) == len(times) == 25
    assert len(copied(tmp_path / f"out{suffix}")[0][1]) == len(copied(path)[0][1]) - 2


def test_only_one_video_is_written(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mkv").video()
    second = clip.output.add_stream("libx264", rate=25)
    assert isinstance(second, av.VideoStream)
    second.width, second.height = 32, 32
    clip.others += second.encode(av.VideoFrame(32, 32, "yuv420p")) + second.encode(None)
    _, summary = transcode(probe(clip.write()), tmp_path / "out.mkv")
    assert summary["left_out"] == ["video stream 1 (h264): only one video is processed"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_cover_is_kept(tmp_path: Path, suffix: str) -> None:
    clip = Clip(tmp_path / "in.mp4").video()
    cover = clip.output.add_stream("mjpeg", rate=1)
    assert isinstance(cover, av.VideoStream)
    cover.width = cover.height = 16
    cover.pix_fmt = "yuvj420p"
    cover.disposition = av.stream.Disposition.attached_pic
    clip.others += cover.encode(av.VideoFrame(16, 16, "yuvj420p"))
    data = bytes(clip.others[0])
    _, summary = transcode(probe(clip.write()), tmp_path / f"out{suffix}")
    assert summary["left_out"] == []
    with av.open(str(tmp_path / f"out{suffix}")) as written:
        covers = [one for one in written.streams.video if one.disposition & av.stream.Disposition.attached_pic]
        assert [bytes(next(iter(written.demux(one)))) for one in covers] == [data]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_tags_of_unknown_encoding_lose_no_sound(tmp_path: Path, suffix: str) -> None:
    clip = Clip(tmp_path / f"in{suffix}").video().sound()
    clip.output.streams.audio[0].metadata["title"] = "Latin"
    path = clip.write()
    path.write_bytes(path.read_bytes().replace(b"Latin", b"L\xe4tin").replace(b"SoundHandler", b"SoundHandl\xe9r"))
    output = tmp_path / f"out{suffix}"
    _, summary = transcode(probe(path), output)
    assert summary["left_out"] == []
    assert_same_copies(path, output)
    assert b"L\xe4tin" in output.read_bytes()


def test_tags_of_unknown_encoding_lose_no_cover(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mkv").video()
    with av.open(str(tmp_path / "cover.jpg"), "w") as picture:
        stream = picture.add_stream("mjpeg", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 16, 16, "yuvj420p"
        data = bytes(stream.encode(av.VideoFrame(16, 16, "yuvj420p"))[0])
    clip.output.add_attachment("cover.jpg", "image/jpeg", data)
    clip.output.add_attachment("typeface.ttf", "application/x-truetype-font", b"\0\1\2" * 50)
    clip.output.metadata["title"] = "cafes"
    path = clip.write()
    odd = path.read_bytes().replace(b"cover.jpg", b"c\xf6ver.jpg").replace(b"typeface", b"typef\xe4ce")
    path.write_bytes(odd.replace(b"cafes", b"caf\xe9s"))
    _, summary = transcode(probe(path), tmp_path / "out.mkv")
    assert summary["left_out"] == []
    written = (tmp_path / "out.mkv").read_bytes()
    assert all(part in written for part in (data, b"c\xf6ver.jpg", b"typef\xe4ce", b"caf\xe9s"))


def test_tags_of_telephones_are_kept_in_mov_with_all_others(tmp_path: Path) -> None:
    tags = {"com.apple.quicktime.make": "Apple", "com.apple.quicktime.location.ISO6709": "+48.85+002.29/"}
    clip = Clip(tmp_path / "in.mov", options={"movflags": "use_metadata_tags"}).video().sound()
    clip.output.metadata.update(tags, title="A title", comment="old words")
    path = clip.write()
    _, summary = transcode(probe(path), tmp_path / "out.mov")
    assert summary["left_out"] == []
    with av.open(str(tmp_path / "out.mov")) as written:
        assert tags.items() <= written.metadata.items()
        assert (written.metadata["title"], written.metadata["comment"]) == ("A title", f"{MARK} old words")
        assert written.streams.audio[0].language == "eng"
    _, summary = transcode(probe(path), tmp_path / "out.mp4")
    assert "com.apple.quicktime.make" in summary["left_out"][0]


def inserted(path: Path, box: bytes) -> Path:
    """An MP4 file with another box at the end of the description of its video; the index stands at its end."""
    data = bytearray(path.read_bytes())
    start = 0
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"stsd", b"avc1"):
        start = data.index(name, start)
        (size,) = struct.unpack(">I", data[start - 4 : start])
        data[start - 4 : start] = struct.pack(">I", size + len(box))
    end = start - 4 + size
    path.write_bytes(data[:end] + box + data[end:])
    return path


def box(name: bytes, *parts: bytes) -> bytes:
    data = b"".join(parts)
    return struct.pack(">I", 8 + len(data)) + name + data


def test_marks_of_360_degree_and_3d_video_are_not_lost_in_silence(tmp_path: Path) -> None:
    projection = box(b"proj", box(b"prhd", bytes(16)), box(b"equi", bytes(20)))
    path = inserted(Clip(tmp_path / "in.mp4").video().write(), box(b"sv3d", box(b"svhd", b"\0\0\0\0me\0"), projection))
    inserted(path, box(b"st3d", b"\0\0\0\0\2"))
    _, summary = transcode(probe(path), tmp_path / "out.mp4")
    assert summary["left_out"] == ["the mark of 360-degree video", "the mark of 3D video"]


@pytest.mark.parametrize(("suffix", "lost"), [(".mkv", []), (".mp4", ["the mark of 3D video"])])
def test_the_tag_of_3d_video_stays_in_matroska(tmp_path: Path, suffix: str, lost: list[str]) -> None:
    clip = Clip(tmp_path / "in.mkv").video()
    clip.stream.metadata["stereo_mode"] = "left_right"
    _, summary = transcode(probe(clip.write()), tmp_path / f"out{suffix}")
    assert summary["left_out"] == lost
    with av.open(str(tmp_path / f"out{suffix}")) as written:
        assert (written.streams.video[0].metadata.get("stereo_mode") == "left_right") == (not lost)


def test_processing_twice_marks_once(tmp_path: Path) -> None:
    transcode(probe(Clip(tmp_path / "in.mp4").video().write()), tmp_path / "once.mp4")
    transcode(probe(tmp_path / "once.mp4"), tmp_path / "twice.mp4")
    with av.open(str(tmp_path / "twice.mp4")) as written:
        assert written.metadata["comment"] == MARK


# --- clocks that begin anew, and edit lists ---------------------------------------------------------------------------


def moved(source: Path, target: Path, seconds: float | Fraction, kinds: str = "video, audio") -> Path:
    """The same packets at times that are later, or earlier, which MP4 tells by an edit list."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        streams = {stream.index: new.add_stream_from_template(stream) for stream in old.streams}
        for packet in old.demux():
            if packet.pts is not None and packet.dts is not None:
                ticks = round(Fraction(seconds) / packet.time_base) if packet.stream.type in kinds else 0
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = streams[packet.stream_index]
                new.mux(packet)
    return target


def joined(folder: Path, first: Path, second: Path, *, kept: float = 1.0, skipped: float = 0.0) -> Path:
    """Two transport streams end to end: so much of the first one, and the second one without its beginning."""
    one, two = first.read_bytes(), second.read_bytes()
    path = folder / "joined.ts"
    end, begin = int(len(one) / 188 * kept) * 188, int(len(two) / 188 * skipped) * 188
    path.write_bytes(one[:end] + two[: 3 * 188] + two[max(begin, 3 * 188) :])  # the first three name the streams
    return path


def assert_flashes_beep(path: Path, count: int) -> None:
    """Each flash, `count` of them, begins with its beep."""
    flashes, beeps = flashes_and_beeps(path)
    assert len(flashes) == count, (flashes, beeps)
    for flash in flashes:
        assert min(abs(flash - beep) for beep in beeps) < 0.045, (flashes, beeps)


@pytest.mark.parametrize(
    ("suffix", "clock", "kept", "skipped", "flashes"),
    [
        (".mp4", 0.0, 1.0, 0.0, 5),
        (".mkv", 1000.0, 1.0, 0.0, 5),  # FFmpeg takes a clock that is set so far back for one that has run over
        (".ts", 0.0, 0.9, 0.1, 4),  # cut somewhere, and begun without a key picture
    ],
)
def test_sound_stays_in_step_where_the_clock_begins_anew(
    tmp_path: Path, suffix: str, clock: float, kept: float, skipped: float, flashes: int
) -> None:
    part = flash_clip(tmp_path / "part.ts")
    first = moved(part, tmp_path / "first.ts", clock) if clock else part
    path, output = joined(tmp_path, first, part, kept=kept, skipped=skipped), tmp_path / f"out{suffix}"
    notices: list[str] = []
    times, _ = transcode(probe(path), output, notices=notices)
    assert "joined.ts: its clock begins anew once; all goes on where it was" in notices
    assert times[-1] - times[0] < 6
    assert_flashes_beep(output, flashes)
    ((_, sound),) = copied(output)
    assert sound[-1][1] == pytest.approx(float(times_in(output)[0][-1]), abs=0.1)
    with av.open(str(output)) as written:
        steps = [late - early for early, late in pairwise(time for _, time in sound)]
        assert min(steps) > 0.01
        assert written.duration is not None
        assert written.duration / av.time_base - float(times[0]) < 6.5


def test_sound_whose_clock_alone_begins_anew_goes_on(tmp_path: Path) -> None:
    part = flash_clip(tmp_path / "part.ts")
    first, second = moved(part, tmp_path / "first.ts", 10), moved(part, tmp_path / "second.ts", 13, "video")
    transcode(probe(joined(tmp_path, first, second)), tmp_path / "out.mp4")
    assert_flashes_beep(tmp_path / "out.mp4", 5)


def test_packets_that_do_not_go_forward_are_no_reason_to_fail(tmp_path: Path) -> None:
    """A step of one tick in the source, of 1/90000 s, may be none in MP4, of 1/48000 s."""
    part = Clip(tmp_path / "part.ts").video(range(20), options={"preset": "ultrafast", "bf": "0"}).sound(seconds=0.8)
    part.write()
    path = joined(tmp_path, part.path, part.path)
    transcode(probe(path), tmp_path / "out.mp4")
    ((_, sound),), ((_, before),) = copied(tmp_path / "out.mp4"), copied(path)
    assert len(sound) == len(before)
    assert all(late > early for early, late in pairwise(time for _, time in sound))


def test_packets_shorter_than_a_tick_do_not_drift(tmp_path: Path) -> None:
    clip = Clip(tmp_path / "in.mkv").video()
    stream = clip.output.add_stream("pcm_s16le", rate=48000, layout="mono")
    for number in range(1200):
        packet = av.Packet(bytes(80))
        packet.stream, packet.time_base, packet.duration = stream, Fraction(1, 48000), 40
        packet.pts = packet.dts = 40 * number
        clip.others.append(packet)
    transcode(probe(clip.write()), tmp_path / "out.mkv")
    assert_same_copies(clip.path, tmp_path / "out.mkv")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_what_an_edit_list_hides_stays_hidden(tmp_path: Path, suffix: str) -> None:
    path, output = moved(flash_clip(tmp_path / "in.mp4"), tmp_path / "cut.mp4", -1.5), tmp_path / f"out{suffix}"
    notices: list[str] = []
    times, _ = transcode(probe(path), output, notices=notices)
    assert not any("damaged" in line for line in notices)
    assert (times[0], len(times)) == (0, probe(path).frames_expected)
    assert_flashes_beep(output, 1)
    flashes, _ = flashes_and_beeps(output)
    assert flashes == pytest.approx([0.5], abs=0.045)  # as a player shows the source
    ((_, sound),) = copied(output)
    assert sound[0][1] > -0.05


def test_edit_list_of_two_pieces(tmp_path: Path) -> None:
    """From 0.5 to 1.5 s, and from 2.8 s on: the pictures in between, which decoding needs, are no jump of the clock."""
    path = moved(flash_clip(tmp_path / "in.mp4", seconds=5), tmp_path / "cut.mp4", Fraction(1, 2))
    data, place = bytearray(path.read_bytes()), 0
    for scale in (12800, 48000):
        place = data.index(b"elst", place) + 4
        _, number, _, nothing, _, _, begin, _ = struct.unpack_from(">IIIiIIiI", data, place)
        assert (number, nothing) == (2, -1)  # half a second of nothing, then all: made two pieces in its stead
        pieces = (1000, begin + scale // 2, 1 << 16, 1500, begin + round(2.8 * scale), 1 << 16)
        struct.pack_into(">IiIIiI", data, place + 8, *pieces)
    path.write_bytes(data)
    notices: list[str] = []
    times, _ = transcode(probe(path), tmp_path / "out.mp4", notices=notices)
    assert notices == []
    assert float(times[-1] - times[0]) == pytest.approx(2.45, abs=0.05)
    assert_flashes_beep(tmp_path / "out.mp4", 3)


# --- ends -------------------------------------------------------------------------------------------------------------


def test_a_run_that_was_cut_short_ends_its_sound_too(tmp_path: Path) -> None:
    path = Clip(tmp_path / "in.mp4").video(range(250)).sound(seconds=10).write()
    times, _ = transcode(probe(path), tmp_path / "out.mp4", frames=50)
    ((_, sound),) = copied(tmp_path / "out.mp4")
    assert len(times) == len(times_in(tmp_path / "out.mp4")[0]) == 50
    assert sound[-1][1] == pytest.approx(2.0, abs=0.05)


def test_sound_that_is_longer_than_the_video_is_kept(tmp_path: Path) -> None:
    path = Clip(tmp_path / "in.mp4").video().sound(seconds=5).write()
    transcode(probe(path), tmp_path / "out.mp4")
    assert_same_copies(path, tmp_path / "out.mp4")


def test_closing_without_an_end_leaves_nothing(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.mp4").video().sound().write())
    transcode(info, tmp_path / "out.mp4", frames=10, finish=False)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_no_picture_is_an_error(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.mp4").video().write())
    with pytest.raises(StageError, match="not one picture"):
        transcode(info, tmp_path / "out.mp4", frames=0)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """What a full disk does to a program: writing beyond `size` bytes fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.mkv").video(range(60), size=(640, 480)).sound().write())
    with largest_file(50_000), pytest.raises(StageError, match="no space left") as caught:
        transcode(info, tmp_path / "out.mkv", EncodeOptions(crf=0, preset="ultrafast"))
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mkv"]


@pytest.mark.parametrize(
    ("output", "options", "says"),
    [
        ("missing/out.mp4", FAST, "cannot be written"),
        ("out.wmv", FAST, "'.wmv' files cannot be written"),
        ("out.jpg", FAST, "'.jpg' files cannot be written"),
        ("out", FAST, "'' files cannot be written"),
        ("out.webm", EncodeOptions(codec=Codec.H264), "--codec h264 cannot be written to .webm"),
        ("out.mp4", EncodeOptions(preset="warp"), "no --preset warp, only ultrafast"),
        ("out.mp4", EncodeOptions(crf=52), "--crf 0 to 51, not 52"),
    ],
)
def test_what_cannot_be_written_is_said_in_one_line(
    tmp_path: Path, output: str, options: EncodeOptions, says: str
) -> None:
    info = probe(Clip(tmp_path / "in.mp4").video().write())
    with pytest.raises(UserError, match=says) as caught:
        transcode(info, tmp_path / output, options)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["in.mp4"]


def test_asking_for_a_gpu_names_the_encoder(tmp_path: Path) -> None:
    notices: list[str] = []
    info = probe(Clip(tmp_path / "in.mp4").video(size=(256, 256)).write())
    _, summary = transcode(info, tmp_path / "out.mp4", EncodeOptions(gpu=True), notices=notices)
    assert notices[0].startswith(f"encoder {summary['encoder']}")
    assert "nvenc" in notices[0]
    if not has_nvidia_gpu():  # FFmpeg lists the encoder everywhere; opening it raises PermissionError
        assert notices[0] == (
            "encoder libx264; h264_nvenc does not open at 256x256 px (Operation not permitted); "
            "hevc_nvenc does not open at 256x256 px (Operation not permitted); "
            "av1_nvenc does not open at 256x256 px (Operation not permitted)"
        )


def test_a_refused_picture_names_the_container_and_no_draft(tmp_path: Path) -> None:
    pause = (*range(12), *range(90_000, 90_012))
    info = probe(Clip(tmp_path / "in.mp4").video(pause).write())
    with pytest.raises(StageError, match=r"the video cannot be written to \.avi \(Invalid argument\)") as caught:
        transcode(info, tmp_path / ".p.6359ca18.avi")
    assert "6359ca18" not in str(caught.value)


def test_suffix_decides_the_container(tmp_path: Path) -> None:
    info = probe(Clip(tmp_path / "in.mp4").video().write())
    sink = Encode(tmp_path / "draft", info, suffix=".mkv")
    sink.open(Context(info.layout))
    buffer = np.zeros(info.layout.slot_bytes(1), np.uint8)
    list(sink.process(Frame(0, 0, info.time_base, info.layout, buffer, 0)))
    list(sink.flush())
    sink.close()
    assert "matroska" in probe(tmp_path / "draft").container
