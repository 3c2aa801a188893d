"""Probing and decoding: what PyAV decodes must arrive to the bit, upright, with its times, from any kind of file."""

import io
import pickle
from collections.abc import Iterable, Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.video.reformatter import ColorRange

from unmask.errors import UserError
from unmask.models.engine import has_nvidia_gpu
from unmask.stream.frame import Frame, Layout, Matrix
from unmask.stream.media import MediaInfo, Orientation, nearest_format, probe, with_source
from unmask.stream.nvcodec import nvdec_problem
from unmask.stream.stage import Context
from unmask.stream.stages.decode import Clock, Decode, fill

LOSSLESS = {"qp": "0", "preset": "ultrafast"}


def picture(number: int, width: int, height: int, form: str) -> av.VideoFrame:
    """A picture in which every sample differs from its neighbours, different for every number."""
    made = av.VideoFrame(width, height, form)
    for index, plane in enumerate(made.planes):
        samples = np.frombuffer(memoryview(plane), np.uint16 if "10" in form else np.uint8)
        samples[:] = (np.arange(samples.size) * (7 + index) + 31 * number) % 199 + 20
    return made


def write_clip(
    path: Path,
    pts: Sequence[int] = tuple(range(6)),
    *,
    size: tuple[int, int] = (64, 48),
    form: str = "yuv420p",
    codec: str = "libx264",
    options: dict[str, str] | None = None,
    time_base: Fraction = Fraction(1, 25),
    rotation: tuple[float, bool, bool] | None = None,
    container: dict[str, str] | None = None,
) -> Path:
    with av.open(str(path), "w", container_options=container or {}) as output:
        stream = output.add_stream(codec, rate=25, options=LOSSLESS if options is None else options)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = form
        stream.codec_context.time_base = stream.time_base = time_base
        if rotation:
            stream.set_display_rotation(*rotation)
        for number, time in enumerate(pts):
            made = picture(number, *size, form)
            made.pts, made.time_base = time, time_base
            output.mux(stream.encode(made))
        output.mux(stream.encode(None))
    return path


def decode(
    info: MediaInfo, notices: list[str] | None = None, gpu: int | None = None
) -> tuple[list[Frame], dict[str, Any]]:
    """All frames, each on a buffer of its own, and the summary."""
    stage = pickle.loads(pickle.dumps(Decode(info, gpu)))
    stage.open(Context(info.layout, 1, (notices if notices is not None else []).append))
    frames: list[Frame] = []
    while True:
        buffer = np.zeros(info.layout.slot_bytes(1), np.uint8)
        given = list(stage.process(Frame(len(frames), 0, Fraction(1), info.layout, buffer, 0)))
        if not given:
            break
        frames += given
    summary = stage.summary()
    stage.close()
    return frames, summary


def pyav_planes(path: Path) -> list[list[bytes]]:
    """The samples of every picture as PyAV gives them, row by row without padding."""
    found = []
    with av.open(str(path)) as source:
        for frame in source.decode(video=0):
            size = 2 if "10" in frame.format.name else 1
            found.append([_rows(plane, plane.width * size) for plane in frame.planes])
    return found


def _rows(plane: Any, width: int) -> bytes:
    data = bytes(plane)
    return b"".join(data[row * plane.line_size :][:width] for row in range(plane.height))


def raw(frames: Iterable[Frame]) -> list[list[bytes]]:
    return [[plane.tobytes() for plane in frame.planes] for frame in frames]


@pytest.mark.parametrize("form", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"])
def test_planes_are_those_of_pyav_to_the_bit(tmp_path: Path, form: str) -> None:
    path = write_clip(tmp_path / "clip.mp4", form=form, size=(70, 46))
    info = probe(path)
    frames, summary = decode(info)
    assert info.layout.format == form
    assert raw(frames) == pyav_planes(path)
    assert summary == {"frames": 6, "lost": 0, "codec": "h264", "decoder": "CPU", "pix_fmt": form, "notes": []}


def test_to_ndarray_agrees(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4")
    frames, _ = decode(probe(path))
    with av.open(str(path)) as source:
        for mine, theirs in zip(frames, source.decode(video=0), strict=True):
            flat = np.concatenate([plane.ravel() for plane in mine.planes])
            np.testing.assert_array_equal(flat, theirs.to_ndarray().ravel())


def test_odd_sizes_keep_every_sample(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mkv", size=(35, 27), codec="ffv1", options={})
    info = probe(path)
    frames, _ = decode(info)
    assert (info.layout.width, info.layout.height) == (35, 27)
    assert raw(frames) == pyav_planes(path)


def test_full_range_is_kept_and_told(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mov", form="yuvj420p", codec="mjpeg", options={})
    info = probe(path)
    assert (info.pixel_format, info.layout.format, info.layout.full_range) == ("yuvj420p", "yuv420p", True)
    assert raw(decode(info)[0]) == pyav_planes(path)


def test_grey_keeps_its_levels(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mov", form="gray", codec="png", options={})
    info = probe(path)
    frames, _ = decode(info)
    assert info.layout.format == "yuv420p"
    assert [planes[0] for planes in raw(frames)] == [planes[0] for planes in pyav_planes(path)]
    assert all((plane == 128).all() for frame in frames for plane in frame.planes[1:])


@pytest.mark.parametrize(("form", "codec"), [("gray", "libx265"), ("gray10le", "libx265"), ("gray", "ffv1")])
def test_grey_of_limited_range_keeps_its_levels(tmp_path: Path, form: str, codec: str) -> None:
    options = {"x265-params": "log-level=none:range=limited"} if codec == "libx265" else {}
    path = write_clip(tmp_path / "clip.mkv", form=form, codec=codec, options=options)
    info = probe(path)
    assert not info.layout.full_range
    assert [planes[0] for planes in raw(decode(info)[0])] == [planes[0] for planes in pyav_planes(path)]


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize("told", [ColorRange.UNSPECIFIED, ColorRange.MPEG, ColorRange.JPEG])
def test_another_range_is_converted_to_that_of_the_layout(full_range: bool, told: ColorRange) -> None:
    layout = Layout(64, 48, "yuv420p", full_range=full_range)
    frame = Frame(0, 0, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(0), np.uint8), 0)
    given = picture(3, 64, 48, "yuv420p")
    given.color_range = told
    before = np.frombuffer(bytes(given.planes[0]), np.uint8).reshape(48, 64).astype(float)
    fill(frame, given, Orientation())
    if told == ColorRange.MPEG and full_range:
        before = np.clip((before - 16) * 255 / 219, 0, 255)
    elif told == ColorRange.JPEG and not full_range:
        before = before * 219 / 255 + 16
    np.testing.assert_allclose(frame.planes[0], before, atol=1)


def test_rgb_keeps_its_levels(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", form="bgr24", codec="rawvideo", options={})
    info = probe(path)
    frames, _ = decode(info)
    assert info.layout.format == "rgb24"
    with av.open(str(path)) as source:
        for mine, theirs in zip(frames, source.decode(video=0), strict=True):
            np.testing.assert_array_equal(mine.planes[0], theirs.to_ndarray(format="rgb24"))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("yuvj422p", "yuv422p"),
        ("nv12", "yuv420p"),
        ("gray", "yuv420p"),
        ("gray12le", "yuv420p10le"),
        ("yuva420p", "yuv420p"),
        ("pal8", "rgb24"),
        ("bgr0", "rgb24"),
        ("gbrp10le", "yuv444p10le"),
        ("yuv420p12le", "yuv420p10le"),
        ("yuv440p", "yuv444p"),
        ("p010le", "yuv420p10le"),
        ("yuyv422", "yuv422p"),
    ],
)
def test_nearest_format(name: str, expected: str) -> None:
    assert nearest_format(name) == expected


@pytest.mark.parametrize("degrees", [0, 90, 180, -90])
@pytest.mark.parametrize("mirror", [(False, False), (True, False), (False, True)])
def test_every_orientation_comes_upright(tmp_path: Path, degrees: int, mirror: tuple[bool, bool]) -> None:
    path = write_clip(tmp_path / "clip.mp4", size=(64, 48), rotation=(degrees, *mirror))
    info = probe(path)
    frames, _ = decode(info)
    coded = [np.frombuffer(planes[0], np.uint8).reshape(48, 64) for planes in pyav_planes(path)]
    for frame, image in zip(frames, coded, strict=True):
        upright = np.rot90(image, degrees // 90)
        upright = np.fliplr(upright) if mirror[0] else upright
        upright = np.flipud(upright) if mirror[1] else upright
        np.testing.assert_array_equal(frame.planes[0], upright)
    turned = degrees in {90, -90}
    assert (info.layout.width, info.layout.height) == ((48, 64) if turned else (64, 48))


def test_display_matrix_that_is_slightly_off() -> None:
    one = 1 << 16
    matrix = np.array([3, one - 1, 0, -one + 2, -5, 0, 0, 0, 1 << 30], np.int32)
    assert Orientation.from_display_matrix(matrix.tobytes()) == Orientation(True, True, False)


def test_turned_422_becomes_444(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "clip.mp4", form="yuv422p", rotation=(90, False, False)))
    frames, _ = decode(info)
    assert info.layout.format == "yuv444p"
    assert frames[0].planes[1].shape == (64, 48)


def test_uneven_times_are_kept(tmp_path: Path) -> None:
    times = (90, 3093, 6096, 96186, 96187, 200001)
    info = probe(write_clip(tmp_path / "clip.mp4", times, time_base=Fraction(1, 90000)))
    frames, _ = decode(info)
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(time, 90000) for time in times]
    assert not any(frame.discontinuity for frame in frames)


def test_source_copy(tmp_path: Path) -> None:
    info = with_source(probe(write_clip(tmp_path / "clip.mp4")))
    frame = decode(info)[0][2]
    for plane, source in zip(frame.planes, frame.source_planes, strict=True):
        np.testing.assert_array_equal(plane, source)
    frame.planes[0][:] = 0
    assert frame.source_planes[0].any()


def test_raw_stream_takes_its_times_from_the_rate(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "clip.h264"))
    frames, summary = decode(info)
    assert [frame.pts_seconds for frame in frames] == pytest.approx([number / 25 for number in range(6)])
    assert summary["notes"] == []


def test_another_size_is_scaled_to_the_first(tmp_path: Path) -> None:
    small, large = write_clip(tmp_path / "a.h264", size=(64, 48)), write_clip(tmp_path / "b.h264", size=(128, 96))
    path = tmp_path / "both.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    notices: list[str] = []
    frames, _ = decode(probe(path), notices)
    assert [frame.discontinuity for frame in frames] == [False] * 6 + [True] + [False] * 5
    assert {frame.planes[0].shape for frame in frames} == {(48, 64)}
    assert len(notices) == 1
    assert "128x96" in notices[0]


def test_damaged_packets_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(40), options={"qp": "10", "bf": "0", "g": "5"})
    with av.open(str(path)) as source:
        packets = [(packet.pos, packet.size) for packet in source.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in (packets[12], packets[38]):
        assert position is not None
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    notices: list[str] = []
    frames, summary = decode(probe(path), notices)
    assert summary["lost"] == 40 - len(frames) == 2
    assert notices == summary["notes"] == ["clip.mp4: damaged, 2 of 40 pictures could not be decoded"]
    assert all(early.pts < late.pts for early, late in pairwise(frames))


def test_file_that_was_cut_short(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4", range(40), container={"movflags": "+faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    notices: list[str] = []
    frames, summary = decode(probe(path), notices)
    assert 0 < len(frames) < 40
    assert summary["lost"] == 40 - len(frames)
    assert "damaged" in notices[0]


def test_what_an_edit_list_hides_is_not_damage(tmp_path: Path) -> None:
    """A cut within a group of pictures: those from the key picture on are in the file, and not shown."""
    whole = write_clip(tmp_path / "whole.mp4", range(40), options={**LOSSLESS, "g": "20"})
    path = tmp_path / "cut.mp4"
    with av.open(str(whole)) as source, av.open(str(path), "w") as cut:
        stream = cut.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.pts is not None and packet.dts is not None:
                ticks = round(Fraction(13, 25) / packet.time_base)
                packet.pts, packet.dts, packet.stream = packet.pts - ticks, packet.dts - ticks, stream
                cut.mux(packet)
    info, notices = probe(path), []
    frames, summary = decode(info, notices)
    assert (notices, summary["lost"], frames[0].pts) == ([], 0, 0)
    assert len(frames) == info.frames_expected == 27
    assert raw(frames) == pyav_planes(path) == pyav_planes(whole)[13:]


# --- times ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected", "repaired"),
    [
        ([5, 45, 85], [5, 45, 85], 0),
        ([None, None, None], [0, 40, 80], 0),
        ([0, None, 90], [0, 40, 90], 1),
        ([0, 40, 40, 80], [0, 40, 41, 80], 1),
        ([0, 40, 30, 80], [0, 40, 41, 80], 1),
        ([9000, 9040, 0, 40, 80], [9000, 9040, 9080, 9120, 9160], 1),
    ],
)
def test_clock(tmp_path: Path, given: list[int | None], expected: list[int], repaired: int) -> None:
    info = probe(write_clip(tmp_path / "clip.mkv"))
    assert (info.time_base, info.frame_step) == (Fraction(1, 1000), 40)
    clock = Clock(info)
    assert [clock.stamp(pts) for pts in given] == expected
    assert clock.repaired == repaired


@pytest.mark.parametrize(
    ("codec", "options"),
    [
        ("libx264", {**LOSSLESS, "bf": "0"}),
        ("libx264", {"preset": "slow", "bf": "2"}),
        ("libx264", {"preset": "slow", "bf": "3", "b-pyramid": "strict"}),
        ("mpeg4", {"bf": "2"}),
        ("mjpeg", {}),
    ],
)
def test_pictures_in_avi_come_one_a_slot_from_the_first(tmp_path: Path, codec: str, options: dict[str, str]) -> None:
    form = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    info = probe(write_clip(tmp_path / "clip.avi", range(24), codec=codec, options=options, form=form))
    notices: list[str] = []
    frames, _ = decode(info, notices)
    assert [frame.pts * frame.time_base for frame in frames] == [Fraction(number, 25) for number in range(24)]
    assert raw(frames) == pyav_planes(info.path)
    assert notices == []


@pytest.mark.parametrize("b_frames", ["0", "2"])
def test_empty_slots_of_avi_stay_where_they_are(tmp_path: Path, b_frames: str) -> None:
    options = {"qp": "10", "preset": "ultrafast", "bf": b_frames}
    info = probe(write_clip(tmp_path / "clip.avi", [*range(12), *range(30, 42)], options=options))
    frames, _ = decode(info)
    pause = max(late.pts - early.pts for early, late in pairwise(frames))
    assert (len(frames), frames[0].pts, frames[-1].pts, pause) == (24, 0, 41, 19)


def test_damage_in_avi_moves_no_other_picture(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.avi", range(40), options={"qp": "10", "bf": "0", "g": "5"})
    with av.open(str(path)) as source:
        packets = [bytes(packet) for packet in source.demux(video=0)]
    data = path.read_bytes()
    for number in (12, 38):
        data = data.replace(packets[number], bytes(len(packets[number])))
    path.write_bytes(data)
    frames, summary = decode(probe(path))
    assert summary["lost"] == 2
    assert [frame.pts for frame in frames] == [number for number in range(40) if number not in {12, 38}]


# --- probing ----------------------------------------------------------------------------------------------------------


def test_what_probe_tells(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "clip.mp4"))
    assert (info.codec, info.bits, info.stream_index) == ("h264", 8, 0)
    assert info.fps == Fraction(25)
    assert info.frames_expected == 6
    assert info.duration_seconds == pytest.approx(0.24)
    assert info.layout.matrix is Matrix.BT601  # no tag and fewer than 576 lines
    assert pickle.loads(pickle.dumps(info)) == info


def test_a_cover_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as output:
        cover = output.add_stream("mjpeg", rate=1)
        assert isinstance(cover, av.VideoStream)
        cover.width = cover.height = 16
        cover.pix_fmt = "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        video = output.add_stream("libx264", rate=25)
        assert isinstance(video, av.VideoStream)
        video.width, video.height = 64, 48
        output.mux(cover.encode(picture(0, 16, 16, "yuvj420p")))
        for number in range(3):
            output.mux(video.encode(picture(number, 64, 48, "yuv420p")))
        output.mux(video.encode(None))
    info = probe(path)
    assert (info.layout.width, info.layout.height, info.codec) == (64, 48, "h264")


def _sound(path: Path) -> Path:
    with av.open(str(path), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=8000)
        assert isinstance(stream, av.AudioStream)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 1600), np.int16), "s16", "stereo")
        samples.sample_rate = 8000
        output.mux(stream.encode(samples))
        output.mux(stream.encode(None))
    return path


def _picture_file(path: Path) -> Path:
    picture(0, 32, 32, "rgb24").save(path)
    return path


def _unknown_codec(path: Path) -> Path:
    path.write_bytes(write_clip(path).read_bytes().replace(b"avc1", b"zzzz"))
    return path


def _no_picture(path: Path) -> Path:
    data = bytearray(write_clip(path).read_bytes())
    start = data.index(b"mdat") + 4
    data[start : data.index(b"moov") - 4] = bytes(data.index(b"moov") - 4 - start)
    path.write_bytes(data)
    return path


def _unreadable(path: Path) -> Path:
    """An animated PNG whose first frame says that it is wider than a PNG can be."""
    data = bytearray(write_clip(path, codec="apng", form="rgb24", options={}).read_bytes())
    start = data.index(b"fcTL")
    data[start + 8 : start + 16] = b"\xff" * 8
    path.write_bytes(data)
    return path


def _text(path: Path) -> Path:
    path.write_text("no video\n" * 100)
    return path


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("missing.mp4", lambda path: path, "no such file"),
        ("folder.mp4", lambda path: path.mkdir() or path, "is a folder"),
        ("empty.mp4", lambda path: path.touch() or path, "is empty"),
        ("text.mp4", _text, "not a readable video"),
        ("sound.wav", _sound, "sound but no video"),
        ("picture.png", _picture_file, "unmask image"),
        ("codec.mp4", _unknown_codec, "codec is not known"),
        ("unreadable.apng", _unreadable, "no picture in it can be decoded"),
        ("blank.mp4", _no_picture, "no picture in it can be decoded"),
    ],
)
def test_what_cannot_be_used_is_said_in_one_line(tmp_path: Path, name: str, make: Any, says: str) -> None:
    path = make(tmp_path / name)
    with pytest.raises(UserError, match=says) as caught:
        probe(path)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_a_colon_in_the_name(tmp_path: Path) -> None:
    path = write_clip(tmp_path / "clip.mp4").rename(tmp_path / "a:b ü.mp4")
    assert len(decode(probe(path))[0]) == 6


def test_tags_of_unknown_encoding_do_not_stop_a_run(tmp_path: Path) -> None:
    buffer = io.BytesIO(write_clip(tmp_path / "clip.mkv").read_bytes().replace(b"ENCODER", b"\xffNCODER"))
    path = tmp_path / "odd.mkv"
    path.write_bytes(buffer.getvalue())
    assert probe(path).codec == "h264"


# --- NVDEC ------------------------------------------------------------------------------------------------------------


def test_without_a_driver_the_processor_decodes_and_says_so(tmp_path: Path) -> None:
    if has_nvidia_gpu():
        pytest.skip("this machine has an NVIDIA driver")
    info = probe(write_clip(tmp_path / "in.mp4"))
    expected, _ = decode(info)
    notices: list[str] = []
    frames, summary = decode(info, notices, gpu=0)
    # What FFmpeg really answers: PermissionError, though the file may be read.
    assert notices == ["decoder on the CPU; NVDEC cannot decode this h264 (Operation not permitted)"]
    assert summary["decoder"] == "CPU"
    assert raw(frames) == raw(expected)


@pytest.mark.parametrize(("form", "nv"), [("yuv420p", "nv12"), ("yuv420p10le", "p010le")])
def test_the_formats_of_nvdec_lose_nothing(form: str, nv: str) -> None:
    layout = Layout(64, 48, form)
    frame = Frame(0, 0, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(0), np.uint8), 0)
    planar = picture(3, 64, 48, form)
    fill(frame, planar.reformat(format=nv), Orientation(False, False, False))
    assert raw([frame]) == [[_rows(plane, plane.width * layout.dtype.itemsize) for plane in planar.planes]]


@pytest.mark.gpu
def test_nvdec_gives_what_the_processor_gives(tmp_path: Path) -> None:
    info = probe(write_clip(tmp_path / "in.mp4"))
    if problem := nvdec_problem(info.path, info.stream_index, 0):
        pytest.skip(f"no NVDEC: {problem}")
    frames, summary = decode(info, gpu=0)
    assert summary["decoder"] == "NVDEC on cuda:0"
    assert raw(frames) == raw(decode(info)[0])  # H.264 leaves a decoder no freedom


def test_transparency_is_not_lost_in_silence(tmp_path: Path) -> None:
    clear = write_clip(tmp_path / "in.mov", form="argb", codec="qtrle", options={})
    notices: list[str] = []
    decode(probe(clear), notices)
    assert notices == ["in.mov: its transparency is left out; the output is opaque"]


@pytest.mark.parametrize("clear", [False, True])
def test_of_transparency_of_gif_is_spoken_only_where_it_has_some(tmp_path: Path, clear: bool) -> None:
    """All of them are decoded to a format with transparency."""
    path = tmp_path / "in.gif"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("gif", rate=10)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 50, 48, "bgr8"
        for number in range(3):
            made = picture(number, 50, 48, "bgr8")
            made.pts = number
            output.mux(stream.encode(made))
        output.mux(stream.encode(None))
    if clear:  # one of the colours of the first picture
        data = bytearray(path.read_bytes())
        start = data.index(b"\x21\xf9\x04")
        data[start + 3] |= 1
        data[start + 6] = 0x49
        path.write_bytes(data)
    info, notices = probe(path), []
    assert info.pixel_format == "bgra"
    decode(info, notices)
    assert notices == ["in.gif: its transparency is left out; the output is opaque"] * clear
