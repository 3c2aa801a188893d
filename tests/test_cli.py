"""The command line, as a user meets it."""

import dataclasses
import errno
import io
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from rich.console import Console

from unmask import __version__, cli
from unmask.errors import UnmaskError, UserError
from unmask.progress import Bar, Quiet
from unmask.stream import jobs, pipeline
from unmask.stream.encoders import Codec
from unmask.stream.frame import U8, Frame
from unmask.stream.naming import Job
from unmask.stream.supervisor import Cancel
from unmask.stream.trackers import Tracker

WIDTH, HEIGHT = 128, 96

LONG = 300
"""Frames of a clip that takes several seconds."""


def make_clip(path: Path, frames: int = 12, sound: bool = False, pictures: bool = True) -> Path:
    """A grey clip that grows brighter, 25 fps; no faces in it."""
    with av.open(str(path), "w") as container:
        if pictures:
            video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
            video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        if sound or not pictures:
            audio = container.add_stream("aac", rate=48_000, layout="mono")
        if pictures:
            for index in range(frames):
                picture = av.VideoFrame.from_ndarray(np.full((HEIGHT, WIDTH), index % 200, np.uint8), format="gray")
                container.mux(video.encode(picture.reformat(format="yuv420p")))
            container.mux(video.encode())
        if sound or not pictures:
            tone = np.sin(np.arange(frames * 1920) / 20).astype(np.float32)
            samples = av.AudioFrame.from_ndarray(tone[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = 48_000, 0, Fraction(1, 48_000)
            container.mux(audio.encode(samples))
            container.mux(audio.encode())
    return path


def make_noise(path: Path, frames: int) -> Path:
    """A clip that is slow to code and large."""
    noise = np.random.default_rng(0).integers(0, 256, (10, HEIGHT * 3 // 2, WIDTH), np.uint8)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "crf": "40"})
        video.width, video.height, video.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for index in range(frames):
            container.mux(video.encode(av.VideoFrame.from_ndarray(noise[index % len(noise)], format="yuv420p")))
        container.mux(video.encode())
    return path


def count_frames(path: Path) -> int:
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


@pytest.fixture(scope="session")
def clip_bytes(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", sound=True).read_bytes()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, clip_bytes: bytes) -> Path:
    """The current folder, holding clip.mp4 (12 frames with sound)."""
    (tmp_path / "clip.mp4").write_bytes(clip_bytes)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


def start(*arguments: str, **options: object) -> "subprocess.Popen[str]":
    """The real program, in a process of its own."""
    command = [sys.executable, "-m", "unmask.cli", *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)  # type: ignore[call-overload,no-any-return]


# --- help and usage ---------------------------------------------------------------------------------------------------


def test_help_and_version_load_nothing_heavy() -> None:
    code = (
        "import sys; from unmask.cli import main; code = main(['video', '--help']) or main(['--version']);"
        "sys.exit(code or any(name in sys.modules for name in ('cv2', 'av', 'openvino', 'torch', 'numpy')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert "--overwrite" in done.stdout
    assert done.stdout.endswith(f"unmask {__version__}\n")


def test_without_arguments_the_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    assert "Usage: unmask" in capsys.readouterr().out


def test_codecs_are_those_of_the_encoders() -> None:
    assert [codec.value for codec in cli.CodecName] == [codec.value for codec in Codec]


# --- what the user gets wrong -----------------------------------------------------------------------------------------


def _empty() -> None:
    Path("bad.mp4").write_bytes(b"")


def _text() -> None:
    Path("bad.mp4").write_text("this is no video\n" * 100)


def _sound_only() -> None:
    make_clip(Path("sound.m4a"), pictures=False)


def _symbolic_link() -> None:
    Path("link.mp4").symlink_to("clip.mp4")


def _hard_link() -> None:
    Path("link.mp4").hardlink_to("clip.mp4")


def _same_names() -> None:
    for folder in ("a", "b", "out"):
        Path(folder).mkdir()
    for folder in ("a", "b"):
        (Path(folder) / "same.mp4").hardlink_to("clip.mp4")


def _existing() -> None:
    Path("clip.unmasked.mp4").write_text("mine")


def _empty_folder() -> None:
    Path("empty").mkdir()


def _picture() -> None:
    cv2.imwrite("still.png", np.zeros((8, 8, 3), np.uint8))


def _two_stems() -> None:
    for name in ("still.png", "still.jpg"):
        cv2.imwrite(name, np.zeros((8, 8, 3), np.uint8))
    for folder in ("out", "masks"):
        Path(folder).mkdir()


def _report() -> None:
    Path("clip.json").hardlink_to("clip.mp4")


def _report_of_mine() -> None:
    Path("r.json").write_text("mine")


def _bitmap() -> None:
    cv2.imwrite("still.bmp", np.zeros((8, 8, 3), np.uint8))


def _nothing() -> None:
    pass


BAD_USE: Sequence[tuple[Callable[[], None], str, str]] = [
    (_nothing, "video", "Missing argument"),
    (_nothing, "wideo clip.mp4", "No such command 'wideo'"),
    (_nothing, "video clip.mp4 --sharper", "No such option: --sharper"),
    (_nothing, "video clip.mp4 --crf best", "'--crf'"),
    (_nothing, "video clip.mp4 --crf 64", "'--crf'"),
    (_nothing, "video clip.mp4 --codec h264 --crf 60", "--crf 0 to 51"),
    (_nothing, "video clip.mp4 --codec mpeg2", "'--codec'"),
    (_nothing, "video clip.mp4 --preset hasty", "veryfast"),
    (_nothing, "video clip.mp4 --max-faces 0", "'--max-faces'"),
    (_nothing, "video clip.mp4 --device tpu", "unknown device 'tpu'"),
    (_nothing, "video clip.mp4 --device cuda:x", "unknown device 'cuda:x'"),
    (_nothing, "video clip.mp4 --device cuda:999", "cuda:999"),
    (_nothing, "video none.mp4", "none.mp4: no such file"),
    (_nothing, "video none*.mp4", "none*.mp4: no file ending in"),
    (_empty, "video bad.mp4", "bad.mp4: is empty"),
    (_text, "video bad.mp4", "bad.mp4: not a readable video"),
    (_sound_only, "video sound.m4a", "sound.m4a: holds sound but no video"),
    (_picture, "video still.png", "use `unmask image`"),
    (_empty_folder, "video empty", "empty: no file ending in"),
    (_nothing, "video clip.mp4 -o missing/", "missing/: no such folder"),
    (_nothing, "video clip.mp4 -o missing/out.mp4", "missing: no such folder"),
    (_nothing, "video clip.mp4 -o /proc/out.mp4", "/proc: cannot be written to"),
    (_nothing, "video clip.mp4 -o out.xyz", ".xyz"),
    (_nothing, "video clip.mp4 -o clip.mp4 --overwrite", "would overwrite the input"),
    (_symbolic_link, "video clip.mp4 -o link.mp4 --overwrite", "would overwrite the input"),
    (_hard_link, "video clip.mp4 -o link.mp4 --overwrite", "would overwrite the input"),
    (_same_names, "video a b -o out", "would both be written to out/same.mp4"),
    (_same_names, "video a b -o out.mp4", "-o must name a folder"),
    (_existing, "video clip.mp4", "clip.unmasked.mp4: exists and is kept"),
    (_nothing, "video clip.mp4 --report clip.txt", "must be named FILE.json"),
    (_nothing, "video clip.mp4 --report missing/r.json", "missing: no such folder"),
    (_report, "video clip.mp4 --report clip.json", "would overwrite the input"),
    (_report_of_mine, "video clip.mp4 --report r.json", "r.json: exists and is kept; use --overwrite"),
    (_nothing, f"video clip.mp4 -o {'x' * 300}.mp4", "cannot be used (File name too long)"),
    (_nothing, f"video clip.mp4 -o {'x' * 300}/out.mp4", "cannot be used (File name too long)"),
    (_nothing, f"image clip.mp4 --mask-dir {'x' * 300}", "cannot be used (File name too long)"),
    (_nothing, "video /dev/null", "is a pipe or a device"),
    (_nothing, "image clip.mp4", "for videos and animations use `unmask video`"),
    (_bitmap, "image still.bmp", "convert it to PNG first"),
    (_nothing, "image clip.mp4 -o out.png", "neither PNG nor JPEG nor WebP"),
    (_picture, "image still.png -o still.mp4", "the name must end in"),
    (_picture, "image still.png --mask-dir missing", "missing: no such folder"),
    (_picture, "image still.png --mask-dir .", "would overwrite the input"),
    (_two_stems, "image still.png still.jpg -o out --mask-dir masks", "would both be written to masks/still.png"),
]


@pytest.mark.parametrize(("prepare", "line", "says"), BAD_USE, ids=[line for _, line, _ in BAD_USE])
def test_mistakes_get_one_line_and_leave_nothing(
    here: Path, capfd: pytest.CaptureFixture[str], prepare: Callable[[], None], line: str, says: str
) -> None:
    prepare()
    before = snapshot(here)
    code = cli.main(line.split())
    out, err = capfd.readouterr()
    assert code == 2, err
    assert says in err
    assert err.startswith("unmask: ")
    assert err.count("\n") == 1, err
    assert out == ""
    assert snapshot(here) == before


@pytest.mark.parametrize(
    "arguments", [["video", ""], ["video", "clip.mp4", "-o", ""], ["image", ""], ["keys", "new", ""]]
)
def test_empty_names_stand_for_nothing(here: Path, capfd: pytest.CaptureFixture[str], arguments: list[str]) -> None:
    before = snapshot(here)
    assert cli.main(arguments) == 2
    assert capfd.readouterr().err.count("\n") == 1
    assert snapshot(here) == before


@pytest.mark.parametrize("group", ["keys", "data", "evaluate"])
def test_group_without_a_command_shows_its_help_and_no_error(capfd: pytest.CaptureFixture[str], group: str) -> None:
    assert cli.main([group]) == 2
    out, err = capfd.readouterr()
    assert f"Usage: unmask {group}" in out + err
    assert "unmask: " not in err


def test_cache_that_is_a_file_is_refused(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNMASK_CACHE", "clip.mp4")
    assert cli.main(["video", "clip.mp4"]) == 2
    assert "UNMASK_CACHE: 'clip.mp4' is no folder" in capfd.readouterr().err


def test_file_that_the_system_refuses_is_no_fault_of_ours(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", "somewhere")

    monkeypatch.setattr(cli, "find_inputs", fail)
    assert cli.main(["video", "clip.mp4"]) == 2
    assert (
        capfd.readouterr().err
        == "unmask: somewhere: refused by the system (Permission denied); check its name and rights\n"
    )


def test_faults_of_our_own_get_one_line_too(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(cli, "find_inputs", fail)
    assert cli.main(["video", "clip.mp4"]) == 1
    quiet = capfd.readouterr().err
    monkeypatch.setenv("UNMASK_DEBUG", "1")
    assert cli.main(["video", "clip.mp4"]) == 1
    loud = capfd.readouterr().err
    assert quiet.count("\n") == 1
    assert "RuntimeError: boom" in quiet
    assert "Traceback" in loud


# --- what the user gets -----------------------------------------------------------------------------------------------


def test_video_and_its_report(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["video", "clip.mp4", "--report", "report.json"]) == 0
    report = json.loads((here / "report.json").read_text())
    assert sorted(path.name for path in here.iterdir()) == ["clip.mp4", "clip.unmasked.mp4", "report.json"]
    assert count_frames(here / "clip.unmasked.mp4") == report["frames"] == 12
    assert (report["width"], report["height"], report["dropped"], report["cancelled"]) == (WIDTH, HEIGHT, 0, False)
    assert (report["faces"], report["masks_removed"]) == (0, 0)
    assert report["encoder"] == "libx264"
    assert report["engine"]
    assert list(report["stages"]) == ["decode", "track", "segment", "inpaint", "smooth", "encode"]
    for timing in report["stages"].values():
        assert 0 <= timing["p50"] <= timing["p95"] <= timing["p99"]
    assert "clip.mp4 -> clip.unmasked.mp4: 12 frames" in capfd.readouterr().out


def test_other_folder_keeps_the_name_and_sound_is_kept(here: Path) -> None:
    (here / "out").mkdir()
    assert cli.main(["video", "clip.mp4", "-o", "out", "--quiet"]) == 0
    with av.open("out/clip.mp4") as container:
        assert len(container.streams.audio) == 1
        assert "synthetic" in container.metadata["comment"]


def test_quiet_writes_nothing(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["video", "clip.mp4", "--quiet"]) == 0
    assert capfd.readouterr() == ("", "")


def test_overwrite_replaces(here: Path) -> None:
    _existing()
    assert cli.main(["video", "clip.mp4", "--overwrite", "--quiet"]) == 0
    assert count_frames(here / "clip.unmasked.mp4") == 12


def test_one_bad_input_does_not_stop_the_others(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "in").mkdir()
    (here / "out").mkdir()
    (here / "in" / "a.mp4").write_bytes(b"")
    for name in ("b.mp4", "c.unmasked.mp4", "notes.txt"):
        (here / "in" / name).hardlink_to(here / "clip.mp4")
    assert cli.main(["video", "in", "-o", "out", "--report", "report.json"]) == 2
    out, err = capfd.readouterr()
    bad, good = json.loads((here / "report.json").read_text())
    assert sorted(path.name for path in (here / "out").iterdir()) == ["b.mp4"]
    assert (bad["input"], bad["exit_code"], good["input"], good["frames"]) == ("in/a.mp4", 2, "in/b.mp4", 12)
    assert bad["error"] in err
    assert "in/c.unmasked.mp4: passed over" in err
    assert "1 of 2 done" in out


def test_input_that_is_missing_does_not_stop_the_others(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["video", "none.mp4", "clip.mp4", "--report", "report.json"]) == 2
    out, err = capfd.readouterr()
    bad, good = json.loads((here / "report.json").read_text())
    assert (bad["input"], bad["exit_code"], good["frames"]) == ("none.mp4", 2, 12)
    assert err.startswith("unmask: none.mp4: no such file or folder\n")
    assert "1 of 2 done" in out


def test_video_that_cannot_be_written_as_it_came_becomes_mp4(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (here / "in").mkdir()
    make_clip(here / "in" / "a.nut")
    (here / "clip.mp4").rename(here / "in" / "a.mp4")
    assert cli.main(["video", "in", "--report", "r.json"]) == 0
    assert sorted(os.listdir("in")) == ["a.mp4", "a.nut", "a.nut.unmasked.mp4", "a.unmasked.mp4"]
    line = "cannot be written as .nut, so it becomes a.nut.unmasked.mp4"
    assert f"a.nut: {line}\n" in capfd.readouterr().err
    assert line in json.loads(Path("r.json").read_text())[1]["notices"]


def test_names_that_are_not_utf8(here: Path) -> None:
    name = os.fsdecode(b"caf\xe9.mp4")
    try:
        (here / "clip.mp4").rename(here / name)
    except OSError:
        pytest.skip("this file system takes only UTF-8")
    (here / "b.mp4").write_bytes((here / name).read_bytes())
    environment = os.environ | {"PYTHONIOENCODING": "utf-8:strict"}
    arguments = ("video", name, "b.mp4", "--device", "cpu", "--report", "r.json")
    with start(*arguments, cwd=here, env=environment) as program:
        out, err = program.communicate(timeout=120)
    assert program.returncode == 0, err
    assert "caf\\xe9.mp4 -> caf\\xe9.unmasked.mp4: 12 frames" in out
    assert [done["input"] for done in json.loads(Path("r.json").read_text())] == ["caf\\xe9.mp4", "b.mp4"]
    assert (here / os.fsdecode(b"caf\xe9.unmasked.mp4")).exists()


@pytest.mark.parametrize("full", [True, False])
def test_summary_that_nobody_takes_stops_nothing(here: Path, full: bool) -> None:
    (here / "b.mp4").hardlink_to(here / "clip.mp4")
    command = [
        sys.executable,
        "-m",
        "unmask.cli",
        "video",
        "clip.mp4",
        "b.mp4",
        "--device",
        "cpu",
        "--report",
        "r.json",
    ]
    read, write = os.pipe()
    os.close(read)
    stdout = os.open("/dev/full", os.O_WRONLY) if full else write
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, text=True, timeout=120, cwd=here)
    assert done.returncode == (2 if full else 0), done.stderr
    assert done.stderr.startswith("unmask: stdout cannot be written to" if full else "")
    assert done.stderr.count("\n") == full
    assert [one["frames"] for one in json.loads(Path("r.json").read_text())] == [12, 12]
    assert Path("b.unmasked.mp4").exists()


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_other_lines_that_nobody_takes_are_one_line(unbuffered: str) -> None:
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    command = [sys.executable, "-m", "unmask.cli", "--version"]
    with open("/dev/full", "w") as full:
        done = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, timeout=60)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "No space left on device" in done.stderr
    assert "a fault in unmask" not in done.stderr


def test_compare_is_twice_as_wide(here: Path) -> None:
    assert cli.main(["video", "clip.mp4", "--compare", "--quiet"]) == 0
    with av.open("clip.unmasked.mp4") as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (2 * WIDTH, HEIGHT)


def test_processes_give_the_same_file(here: Path) -> None:
    # A program of its own: children of the test's process would import what the test run has imported.
    assert cli.main(["video", "clip.mp4", "-o", "threads.mkv", "--quiet"]) == 0
    with start("video", "clip.mp4", "-o", "processes.mkv", "--quiet", "--processes", "--device", "cpu") as program:
        assert program.wait(timeout=120) == 0
    frames = []
    for name in ("threads.mkv", "processes.mkv"):
        with av.open(name) as container:
            frames.append([frame.to_ndarray() for frame in container.decode(video=0)])
    np.testing.assert_array_equal(frames[0], frames[1])


def test_disk_full_is_one_line_and_leaves_nothing(here: Path) -> None:
    make_noise(Path("noise.mp4"), frames=100)
    before = snapshot(here)

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))

    with start("video", "noise.mp4", "--crf", "0", "--device", "cpu", cwd=here, preexec_fn=small_disk) as program:
        _, err = program.communicate(timeout=120)
    assert program.returncode == 1, err
    assert err.startswith("unmask: ")
    assert err.count("\n") == 1
    assert snapshot(here) == before


def test_video_whose_name_was_taken_meanwhile_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = jobs.run

    def run_meanwhile(*arguments: Any, **options: Any) -> Any:
        Path("clip.unmasked.mp4").write_bytes(b"dear to me")
        return real(*arguments, **options)

    monkeypatch.setattr(jobs, "run", run_meanwhile)
    assert cli.main(["video", "clip.mp4", "--quiet"]) == 2
    assert Path("clip.unmasked.mp4").read_bytes() == b"dear to me"
    assert count_frames(Path("clip.unmasked.partial.mp4")) == 12
    said = "unmask: clip.unmasked.mp4: this name was taken in the meantime; the video is clip.unmasked.partial.mp4"
    assert capsys.readouterr().err.splitlines() == [said]


@pytest.mark.parametrize("command", ["video", "image", "live", "serve"])
def test_every_command_hands_its_options_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    made: list[pipeline.Settings] = []
    settings = pipeline.Settings

    def recorded(*arguments: Any, **named: Any) -> None:
        made.append(settings(*arguments, **named))
        raise UserError("that is enough")

    monkeypatch.setattr(pipeline, "Settings", recorded)
    source = tmp_path / ("in.png" if command == "image" else "in.mp4")
    source.write_bytes(b"x")
    sources, memory = [str(source)] * (command != "serve"), ["--no-memory"] * (command != "image")
    options = ["--device", "cpu", "--engine", "openvino", "--max-faces", "3", "--tracker", "mediapipe", *memory]
    assert cli.main([command, *sources, *options]) != 0
    expected = settings("cpu", max_faces=3, engine="openvino", tracker=Tracker.MEDIAPIPE, memory=command == "image")
    assert made == [expected]


def test_slots_have_room_for_as_many_faces_as_are_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, rooms = jobs.run, list[int]()

    def run_and_note(*arguments: Any, **options: Any) -> Any:
        rooms.append(options["max_faces"])
        return real(*arguments, **options)

    monkeypatch.setattr(jobs, "run", run_and_note)
    assert cli.main(["video", "clip.mp4", "--quiet", "--max-faces", "12"]) == 0
    assert rooms == [12]


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def _start_long_run(folder: Path) -> "subprocess.Popen[str]":
    """A run that will take a while, once it is writing frames."""
    make_noise(folder / "long.mp4", frames=LONG)
    program = start("video", "long.mp4", "--preset", "veryslow", "--device", "cpu", cwd=folder)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 20_000 for path in folder.glob(".long.unmasked.*")):
        assert time.monotonic() < deadline
        assert program.poll() is None, program.communicate()
        time.sleep(0.02)
    return program


def test_interrupting_once_leaves_a_playable_part(tmp_path: Path) -> None:
    with _start_long_run(tmp_path) as program:
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
    assert program.returncode == 130, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "long.unmasked.partial.mp4"]
    assert 0 < count_frames(tmp_path / "long.unmasked.partial.mp4") < LONG
    assert "Traceback" not in err


def test_closed_terminal_leaves_a_playable_part(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # the tests may run under nohup, which the program inherits
    with _start_long_run(tmp_path) as program:
        program.send_signal(signal.SIGHUP)
        program.send_signal(signal.SIGHUP)  # the shell passes it on
        _, err = program.communicate(timeout=60)
    signal.signal(signal.SIGHUP, before)
    assert program.returncode == 130, err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["long.mp4", "long.unmasked.partial.mp4"]
    assert 0 < count_frames(tmp_path / "long.unmasked.partial.mp4") < LONG


def test_part_never_replaces_an_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (here / "clip.mp4").rename(here / "talk.partial.mp4")
    before = (here / "talk.partial.mp4").read_bytes()
    job = Job(Path("talk.partial.mp4"), Path("talk.mp4"))
    real = jobs.run

    def cut_short(*stages: object, **options: object) -> object:
        return dataclasses.replace(real(*stages, **options), cancelled=True)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "run", cut_short)
    done = jobs.unmask_video(job, jobs.VideoSettings(), Quiet(), Cancel())
    assert done.output == "talk.partial-2.mp4"
    assert sorted(os.listdir()) == ["talk.partial-2.mp4", "talk.partial.mp4"]
    assert (here / "talk.partial.mp4").read_bytes() == before


def test_interrupting_before_the_first_picture_is_no_fault(here: Path) -> None:
    cancel = Cancel()
    cancel.drain()
    with pytest.raises(UnmaskError, match=r"clip\.mp4: stopped; nothing was written"):
        jobs.unmask_video(Job(Path("clip.mp4"), Path("out.mp4")), jobs.VideoSettings(), Quiet(), cancel)
    assert os.listdir() == ["clip.mp4"]


@pytest.mark.parametrize("times", [1, 2])
def test_interrupting_pictures_leaves_whole_ones_and_the_report(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    (here / "out").mkdir()
    for name in "abc":
        cv2.imwrite(f"{name}.png", np.zeros((8, 8, 3), np.uint8))
    real = jobs.PictureDesk.process_frame

    def interrupt(desk: jobs.PictureDesk, rgb: U8) -> Frame:
        if len(os.listdir("out")) > 1:  # the first picture, and the draft of the second
            for number in (signal.SIGTERM, signal.SIGINT)[:times]:
                signal.raise_signal(number)
        return real(desk, rgb)

    monkeypatch.setattr(jobs.PictureDesk, "process_frame", interrupt)
    kept = signal.getsignal(signal.SIGINT)
    assert cli.main(["image", "a.png", "b.png", "c.png", "-o", "out", "--report", "r.json"]) == 130
    signal.signal(signal.SIGINT, kept)
    whole = ["a.png", "b.png"][: 3 - times]
    assert sorted(os.listdir("out")) == whole
    report = json.loads(Path("r.json").read_text())
    assert [one["input"] for one in report if "output" in one] == whole
    err = capfd.readouterr().err
    assert err.startswith("stopping: finishing the picture under way")
    assert ("b.png: stopped; nothing was written" in err) == (times == 2)


def test_interrupting_twice_leaves_nothing(tmp_path: Path) -> None:
    with _start_long_run(tmp_path) as program:
        # Two kinds of signal, because two of one kind that come at once are delivered as one.
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGTERM)
        _, err = program.communicate(timeout=30)
    assert program.returncode == 130, err
    assert [path.name for path in tmp_path.iterdir()] == ["long.mp4"]
    assert "Traceback" not in err


def test_bar_on_a_terminal(here: Path) -> None:
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "unmask.cli", "video", "clip.mp4", "--device", "cpu"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=theirs, env=os.environ | {"TERM": "xterm"}
    ) as program:
        os.close(theirs)
        shown = b""
        while chunk := _read(ours):
            shown += chunk
    os.close(ours)
    assert program.returncode == 0, shown
    assert b"fps" in shown


def test_bar_without_a_known_length(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, screen = Bar(), io.StringIO()
    monkeypatch.setattr(bar, "_console", Console(file=screen, force_terminal=True, width=200))
    bar.started(Job(Path("a.webm"), Path("b.webm")), None)
    bar.progress(54, 2.0)
    bar.finished()
    assert "54 " in screen.getvalue()
    assert "None" not in screen.getvalue()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 4096)
    except OSError:  # how Linux says that the other side has gone
        return b""


# --- pictures ---------------------------------------------------------------------------------------------------------


def test_pictures_masks_and_report(here: Path) -> None:
    for folder in ("in", "out", "masks"):
        (here / folder).mkdir()
    picture = np.random.default_rng(0).integers(0, 256, (60, 81, 3), np.uint8)
    for name in ("a.png", "b.jpg", "c.webp"):
        cv2.imwrite(f"in/{name}", picture)
    assert cli.main(["image", "in", "-o", "out", "--mask-dir", "masks", "--report", "r.json", "--quiet"]) == 0
    reports = json.loads(Path("r.json").read_text())
    assert [report["output"] for report in reports] == ["out/a.png", "out/b.jpg", "out/c.webp"]
    assert [(report["width"], report["height"], report["faces"]) for report in reports] == [(81, 60, [])] * 3
    for name in ("a.png", "b.jpg", "c.webp"):
        assert Path("out", name).read_bytes() == Path("in", name).read_bytes()  # no mask: nothing to change
    for stem in "abc":
        mask = cv2.imread(f"masks/{stem}.png", cv2.IMREAD_UNCHANGED)
        assert mask is not None
        assert (mask.shape, mask.dtype, mask.max()) == ((60, 81), np.uint8, 0)


def test_picture_is_converted_to_the_format_asked_for(here: Path) -> None:
    _picture()
    assert cli.main(["image", "still.png", "-o", "still.jpg", "--quiet"]) == 0
    assert Path("still.jpg").read_bytes()[:2] == b"\xff\xd8"
