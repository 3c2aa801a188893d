"""`unmask live`, as a user meets it: real files, real encoders, real sockets that are cut."""

import json
import multiprocessing
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from faces import Portrait
from live_sources import (
    HEIGHT,
    RATE,
    WIDTH,
    QuietHandler,
    Relay,
    codes_in,
    flash_clip,
    flashes_and_beeps,
    free_port,
    receive,
    sending,
    serving_http,
    wait_for_listener,
)

from unmask import cli
from unmask.errors import UnmaskError
from unmask.models.engine import EngineChoice
from unmask.stream.frame import Frame, Layout
from unmask.stream.live import push, session, state
from unmask.stream.live.feed import CameraFeed, FeedInfo, UrlFeed
from unmask.stream.live.output import Output, Showing
from unmask.stream.live.session import LiveDone, LiveSettings, OutputMaker, make_feed, run_live
from unmask.stream.pipeline import Settings
from unmask.stream.stage import Context
from unmask.stream.supervisor import Cancel

CPU = Settings("cpu")
SPAWN = multiprocessing.get_context("spawn")


@pytest.fixture(scope="session")
def flashes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return flash_clip(tmp_path_factory.mktemp("flashes") / "clip.mp4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flashes: Path) -> Path:
    """The current folder, holding clip.mp4 (3 s with flashes and beeps)."""
    (tmp_path / "clip.mp4").write_bytes(flashes.read_bytes())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def live(line: str) -> int:
    """Run `unmask live` with these arguments on the CPU."""
    return cli.main(["live", *line.split(), "--device", "cpu"])


def assert_in_step(flashes: list[float], beeps: list[float]) -> None:
    """Each flash begins with its beep; where its first pictures were dropped, up to its length of 0.2 s later."""
    assert flashes
    for flash in flashes:
        assert any(-0.06 < flash - beep < 0.26 for beep in beeps), (flashes, beeps)


class Run(threading.Thread):
    """A live run in the background, with what it says."""

    def __init__(self, settings: LiveSettings, makers: Sequence[OutputMaker] = ()) -> None:
        super().__init__(daemon=True)
        self.settings, self.makers = settings, makers
        self.cancel = Cancel()
        self.lines: list[str] = []
        self.frames = 0
        self.done: LiveDone | None = None
        self.error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            feed = make_feed(self.settings)
            self.done = run_live(feed, self.settings, self.makers, self.cancel, self.lines.append, self._see)
        except BaseException as error:
            self.error = error

    def _see(self, figures: Any) -> None:
        self.frames = figures.frames

    def wait_for(self, what: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not what():
            assert time.monotonic() < deadline, (self.lines, self.frames)
            assert self.is_alive(), (self.error, self.lines)
            time.sleep(0.02)

    def says(self, text: str) -> bool:
        return any(text in line for line in self.lines)

    def end(self) -> LiveDone:
        self.cancel.drain()
        self.join(30)
        assert self.error is None
        assert self.done is not None
        return self.done


# --- files ------------------------------------------------------------------------------------------------------------


def test_file_at_its_own_pace(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert live("clip.mp4 --record out.mp4 --latency --report r.json") == 0
    report = json.loads(Path("r.json").read_text())
    assert sorted(path.name for path in here.iterdir()) == ["clip.mp4", "out.mp4", "r.json"]
    assert report["received"] == report["frames"] + report["dropped"] == 3 * RATE
    assert report["unreadable"] == 0
    assert report["latency_from"] == "time code"
    assert 0 < report["latency_ms"]["p50"] <= report["latency_ms"]["p95"] <= report["latency_ms"]["p99"]
    codes = codes_in(Path("out.mp4"))
    assert len(codes) == report["frames"]
    assert codes == sorted(codes)
    assert codes[-1] - codes[0] > 2.0  # it was not read as fast as the disk gives it
    with av.open("out.mp4") as container:
        assert "not evidence of identity" in container.metadata["comment"]
    out, err = capfd.readouterr()
    assert "latency p50" in out
    assert "recording out.mp4: libx264, sound as AAC" in err


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
def test_sound_stays_in_step_through_loops(here: Path, suffix: str) -> None:
    out = f"out{suffix}"
    assert live(f"clip.mp4 --loop --duration 5 --record {out} --quiet") == 0
    flashes, beeps = flashes_and_beeps(Path(out))
    assert_in_step(flashes, beeps)
    assert beeps[0] < 0.06


def test_mask_is_taken_off(here: Path, portrait: Portrait) -> None:
    height, width = (side & ~1 for side in portrait.masked.shape[:2])
    with av.open("masked.mp4", "w") as container:
        stream = container.add_stream("libx264", rate=5, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(10):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(portrait.masked[:height, :width]), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())
    assert live("masked.mp4 --record out.mkv --report r.json --quiet") == 0
    report = json.loads(Path("r.json").read_text())
    assert report["masks_removed"] == report["frames"] > 0
    assert report["faces"] == 1


def test_report_counts_every_picture_of_a_source_that_is_too_fast(here: Path) -> None:
    """Noise at 120 pictures a second: what cannot be done in time is dropped and counted, and latency stays bounded."""
    noise = np.random.default_rng(0).integers(0, 256, (8, 1080, 1280), np.uint8)
    with av.open("fast.mkv", "w") as container:
        stream = container.add_stream("libx264", rate=120, options={"preset": "ultrafast", "crf": "45"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for index in range(240):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(noise[index % 8], format="yuv420p")))
        container.mux(stream.encode())
    assert live("fast.mkv --latency --record out.mkv --report r.json --quiet") == 0
    report = json.loads(Path("r.json").read_text())
    assert report["received"] == report["frames"] + report["dropped"]
    assert report["received"] <= 240
    assert report["unreadable"] == 0
    codes = codes_in(Path("out.mkv"))
    assert codes == sorted(set(codes))


# --- sources that go away ---------------------------------------------------------------------------------------------


def test_cut_stream_is_waited_for(tmp_path: Path) -> None:
    url = f"udp://127.0.0.1:{free_port()}"
    settings = LiveSettings(source=url, record=tmp_path / "out.mp4", latency=True, pipeline=CPU)
    with sending(f"{url}?pkt_size=1316"):
        run = Run(settings)
        run.wait_for(lambda: run.frames > 20)
    run.wait_for(lambda: run.says("trying again"))
    before = run.frames
    with sending(f"{url}?pkt_size=1316"):
        run.wait_for(lambda: run.frames > before + 20)
        done = run.end()
    assert run.says("back")
    assert done.lost == 1
    codes = codes_in(tmp_path / "out.mp4")
    assert codes == sorted(codes)
    assert max(np.diff(codes)) > 1.0  # the cut is in the file, at its own length
    with av.open(str(tmp_path / "out.mp4")) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert video.duration is not None
        assert audio.duration is not None
        assert video.duration * video.time_base == pytest.approx(float(audio.duration * audio.time_base), abs=0.2)


def test_once_ends_with_the_source(tmp_path: Path) -> None:
    url = f"udp://127.0.0.1:{free_port()}"
    with sending(f"{url}?pkt_size=1316"):
        run = Run(LiveSettings(source=url, record=tmp_path / "out.mkv", once=True, pipeline=CPU))
        run.wait_for(lambda: run.frames > 5)
    run.join(30)
    assert run.done is not None, run.error
    assert run.says("as --once asks")
    with av.open(str(tmp_path / "out.mkv")) as container:
        assert sum(1 for _ in container.decode(video=0)) == run.done.frames


def test_recording_on_a_web_server_is_paced_and_ends(here: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(here))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/clip.mp4"
        assert live(f"{url} --latency --record out.mkv --quiet") == 0
        server.shutdown()
    codes = codes_in(here / "out.mkv")
    assert codes[-1] - codes[0] > 2.0


def test_hls_is_paced_though_whole_segments_come_at_once(here: Path) -> None:
    segments = {"hls_time": "1", "hls_list_size": "0"}
    with av.open("clip.mp4") as source, av.open("live.m3u8", "w", format="hls", options=segments) as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(source.streams.video[0]):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(QuietHandler, directory=str(here))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_address[1]}/live.m3u8"
        assert live(f"{url} --latency --record out.mkv --once --quiet") == 0
        server.shutdown()
    codes = codes_in(here / "out.mkv")
    assert codes[-1] - codes[0] > 1.5


def test_cut_http_stream_is_taken_up_again(tmp_path: Path) -> None:
    port = free_port()
    with serving_http(port):
        run = Run(LiveSettings(source=f"http://127.0.0.1:{port}/live.ts", record=tmp_path / "out.mkv", pipeline=CPU))
        run.wait_for(lambda: run.frames > 5)
    run.wait_for(lambda: run.says("trying again"))
    before = run.frames
    with serving_http(port):
        run.wait_for(lambda: run.frames > before + 5)
        assert run.end().lost == 1
    assert run.says("back")


def test_camera_that_is_unplugged(tmp_path: Path, flashes: Path) -> None:
    """OpenCV opens a file as it opens a device; its end is the pulled plug."""
    device = tmp_path / "camera.mp4"
    device.write_bytes(flashes.read_bytes())
    run = Run(LiveSettings(camera=str(device), record=tmp_path / "out.mkv", pipeline=CPU))
    run.wait_for(lambda: run.says("gives no more pictures; trying again"))
    device.unlink()
    time.sleep(0.5)
    device.write_bytes(flashes.read_bytes())
    run.wait_for(lambda: run.says("back"))
    assert run.end().lost >= 1


# --- pushing ----------------------------------------------------------------------------------------------------------


def test_push_over_udp_keeps_sound_in_step(here: Path) -> None:
    port = free_port()
    url = f"udp://127.0.0.1:{port}"
    receiver = SPAWN.Process(target=receive, args=(url, here / "got.ts", {}))
    receiver.start()
    wait_for_listener(port, "udp")
    assert live(f"clip.mp4 --loop --duration 6 --push {url} --latency --report r.json --quiet") == 0
    receiver.join(30)
    assert receiver.exitcode == 0
    codes = codes_in(here / "got.ts")
    assert codes == sorted(codes)
    assert len(codes) > 10
    pushed = json.loads(Path("r.json").read_text())["outputs"][f"push {url}"]
    assert pushed["frames"] >= len(codes)
    assert pushed["not_sent"] == 0
    flashes, beeps = flashes_and_beeps(here / "got.ts")
    assert_in_step(flashes[1:-1], beeps)


SERVERS = [
    ("rtmp://127.0.0.1:{}/live/x", {"listen": "1"}),
    ("rtsp://127.0.0.1:{}/x", {"rtsp_flags": "listen", "listen_timeout": "60"}),
]


@pytest.mark.parametrize(("url", "options"), SERVERS, ids=["rtmp", "rtsp"])
def test_push_to_a_server(here: Path, url: str, options: dict[str, str]) -> None:
    port = free_port()
    receiver = SPAWN.Process(target=receive, args=(url.format(port), here / "got.mkv", options))
    receiver.start()
    wait_for_listener(port)
    relay = Relay(port)
    target = url.format(relay.port)
    assert live(f"clip.mp4 --push {target} --latency --report r.json --quiet") == 0
    relay.cut()
    receiver.join(30)
    assert receiver.exitcode == 0
    codes = codes_in(here / "got.mkv")
    assert codes == sorted(codes)
    assert len(codes) > 10
    with av.open("got.mkv") as container:
        assert [stream.type for stream in container.streams] == ["video", "audio"]


def test_push_goes_on_after_a_cut_and_never_stops_the_recording(here: Path) -> None:
    """The server goes away in the middle: it is said, the recording misses nothing, and every frame is counted."""
    port = free_port()
    options = {"listen": "1"}
    receiver = SPAWN.Process(target=receive, args=(f"rtmp://127.0.0.1:{port}/live/x", here / "got.mkv", options))
    receiver.start()
    wait_for_listener(port)
    relay = Relay(port)
    url = f"rtmp://127.0.0.1:{relay.port}/live/x"
    threading.Timer(4.0, relay.cut).start()
    assert live(f"clip.mp4 --loop --duration 9 --push {url} --record out.mkv --report r.json --quiet") == 0
    report = json.loads(Path("r.json").read_text())
    pushed = report["outputs"][f"push {url}"]
    assert pushed["lost"] == 1
    assert pushed["frames"] + pushed["not_sent"] == report["frames"] == report["outputs"]["record"]["frames"]
    assert pushed["not_sent"] > 0
    assert any("trying again" in line for line in report["notices"])
    receiver.join(30)


def test_push_that_is_closed_connects_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """It had not sent all when the run ended: the rest is given up, and no other process is started for it."""
    monkeypatch.setattr(push, "_END_SECONDS", 0.3)
    layout, said, live_state = Layout(WIDTH, HEIGHT), [], state.LiveState("clip", Cancel())
    output = push.Push(f"udp://127.0.0.1:{free_port()}", live_state, FeedInfo(layout))
    output.open(Context(layout, notice=said.append))
    try:
        assert output._line is not None
        pid = output._line._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGSTOP)  # as a process that waits for a receiver
        buffer = np.zeros(layout.slot_bytes(1), np.uint8)
        for number in range(30):
            output.show(Showing(Frame(number, 3600 * number, state.TIME_BASE, layout, buffer, 0), []))
        output.finish()
    finally:
        output.close()
    assert not output._thread.is_alive()
    assert [child for child in multiprocessing.active_children() if child.name == "unmask-push"] == []
    assert live_state.take_notices() == []


# --- Ctrl-C -----------------------------------------------------------------------------------------------------------


def _start(folder: Path, *more: str) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "unmask.cli", "live", "clip.mp4", "--loop", "--record", "out.mp4", *more]
    program = subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size > 5000 for path in folder.glob(".out.*")):
        assert time.monotonic() < deadline
        assert program.poll() is None, program.communicate()
        time.sleep(0.05)
    return program


def test_interrupting_once_finishes_the_recording(here: Path) -> None:
    with _start(here, "--device", "cpu") as program:
        program.send_signal(signal.SIGINT)
        out, err = program.communicate(timeout=60)
    assert program.returncode == 0, err
    assert sorted(os.listdir(here)) == ["clip.mp4", "out.mp4"]
    with av.open("out.mp4") as container:
        frames = sum(1 for _ in container.decode(video=0))
    assert f"{frames} frames" in out


def test_waiting_for_a_server_that_says_nothing_can_be_stopped(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/live.ts"
        run = Run(LiveSettings(source=url, record=tmp_path / "out.mp4", pipeline=CPU))
        run.join(0.5)
        assert run.is_alive()
        run.cancel.drain()
        run.join(3)
    assert not run.is_alive()
    assert "stopped; nothing was written" in str(run.error)
    assert list(tmp_path.iterdir()) == []


def test_interrupting_twice_leaves_nothing(here: Path) -> None:
    with _start(here, "--device", "cpu") as program:
        program.send_signal(signal.SIGINT)
        program.send_signal(signal.SIGTERM)
        _, err = program.communicate(timeout=60)
    assert program.returncode == 130, err
    assert "stopped; nothing was written" in err
    assert "Traceback" not in err
    assert sorted(os.listdir(here)) == ["clip.mp4"]


def test_disk_full_is_one_line_and_leaves_nothing(here: Path) -> None:
    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))

    command = [sys.executable, "-m", "unmask.cli", "live", "clip.mp4", "--loop", "--record", "out.mp4"]
    done = subprocess.run(
        [*command, "--device", "cpu"], cwd=here, capture_output=True, text=True, preexec_fn=small_disk, timeout=100
    )
    assert done.returncode == 1, done.stderr
    assert "no space left for out.mp4; free some" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(os.listdir(here)) == ["clip.mp4"]


class Stuck(Output):
    """An output that takes no picture until it is let go."""

    name = "stuck camera"

    def __init__(self) -> None:
        self.let_go = threading.Event()

    def open(self, context: Context) -> None:
        pass

    def show(self, showing: Showing) -> None:
        self.let_go.wait(60)


def test_output_that_hangs_is_named(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state, "STALL_SECONDS", 0.5)
    output = Stuck()
    run = Run(LiveSettings(source="clip.mp4", loop=True, pipeline=CPU), [lambda state, info: output])
    run.wait_for(lambda: run.says("stuck: stuck camera has kept a picture"))
    output.let_go.set()
    run.wait_for(lambda: run.says("stuck camera goes on"))
    run.end()
    assert sum("stuck:" in line for line in run.lines) == 1


# --- what the user gets wrong -----------------------------------------------------------------------------------------


def _nothing() -> None:
    pass


def _existing() -> None:
    Path("out.mp4").write_bytes(b"dear to me")


BAD_USE: list[tuple[Callable[[], None], str, str]] = [
    (_nothing, "live", "name one source"),
    (_nothing, "live clip.mp4 --camera 0 --latency", "name one source"),
    (_nothing, "live clip.mp4", "name an output"),
    (_nothing, "live none.mp4 --record out.mp4", "none.mp4: no such file"),
    (_nothing, "live clip.mp4 --record out.avi", "out.avi: a recording must end in .mp4"),
    (_nothing, "live clip.mp4 --record missing/out.mp4", "missing: no such folder"),
    (_nothing, "live clip.mp4 --record clip.mp4 --overwrite", "would overwrite the source"),
    (_existing, "live clip.mp4 --record out.mp4", "out.mp4: exists and is kept"),
    (_nothing, "live clip.mp4 --latency --report r.txt", "must be named FILE.json"),
    (_nothing, "live --camera 97 --record out.mp4", "video97 is not there"),
    (_nothing, "live --camera 0 --camera-size big --latency", "give width and height"),
    (_nothing, "live --camera 0 --loop --latency", "--loop is for files"),
    (_nothing, "live http://127.0.0.1:9/ --record out.mp4", "check the address"),
    (_nothing, "live clip.mp4 --push ftp://host/x", "give rtsp://, rtmp://"),
    (_nothing, "live clip.mp4 --push udp://127.0.0.1", "udp://127.0.0.1: give a port too, such as udp://"),
    (_nothing, "live clip.mp4 --push udp://127.0.0.1:many", "its port is no number"),
    (_nothing, "live clip.mp4 --record a.mp4 --record b.mp4", "--record can be given once"),
    (_nothing, "live clip.mp4 --push rtmp://me:secret@127.0.0.1:9/x", "push rtmp://127.0.0.1:9/x: Connection refused"),
    (_nothing, "live nonsense://here --record out.mp4", "check the address"),
    (_nothing, "live clip.mp4 --latency --device cuda:999", "cuda:999"),
]


def _appearing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Have a file of this name come to be while the run is under way."""
    real = session.run

    def run_meanwhile(*arguments: Any, **options: Any) -> Any:
        Path(name).write_bytes(b"dear to me")
        return real(*arguments, **options)

    monkeypatch.setattr(session, "run", run_meanwhile)


def test_recording_whose_name_was_taken_meanwhile_is_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _appearing(monkeypatch, "out.mp4")
    assert live("clip.mp4 --record out.mp4") == 2
    assert sorted(os.listdir(here)) == ["clip.mp4", "out.mp4", "out.partial.mp4"]
    assert Path("out.mp4").read_bytes() == b"dear to me"
    with av.open("out.partial.mp4") as container:
        assert next(container.decode(video=0))
    said = "unmask: out.mp4: this name was taken in the meantime; the recording is out.partial.mp4"
    assert capfd.readouterr().err.splitlines()[-1] == said


def test_nvenc_is_tried_where_the_networks_run_on_a_gpu_by_themselves(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `--device auto` too, where it is `choose` that finds the GPU."""
    asked: list[tuple[bool, bool]] = []

    def run_never(_: object, settings: LiveSettings, makers: Sequence[Any], *__: object) -> Any:
        asked.append((settings.gpu, makers[0].keywords["gpu"]))
        raise UnmaskError("enough")

    monkeypatch.setattr(session, "run_live", run_never)
    for place in ("cuda:0", "cpu"):
        choice = EngineChoice("torch" if place != "cpu" else "openvino", place)
        monkeypatch.setattr("unmask.models.engine.choose", lambda *_, choice=choice: choice)
        assert cli.main(["live", "clip.mp4", "--record", "out.mp4", "--push", "udp://127.0.0.1:9"]) == 1
    assert asked == [(True, True), (False, False)]


def test_slots_have_room_for_as_many_faces_as_are_asked_for(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, rooms = session.run, list[int]()

    def run_and_note(*arguments: Any, **options: Any) -> Any:
        rooms.append(options["max_faces"])
        return real(*arguments, **options)

    monkeypatch.setattr(session, "run", run_and_note)
    assert live("clip.mp4 --record out.mp4 --max-faces 12") == 0
    assert rooms == [12]


def test_report_whose_name_was_taken_meanwhile_costs_only_the_report(
    here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    _appearing(monkeypatch, "r.json")
    assert live("clip.mp4 --record out.ts --report r.json") == 2
    assert sorted(os.listdir(here)) == ["clip.mp4", "out.ts", "r.json"]
    assert Path("r.json").read_bytes() == b"dear to me"
    out, err = capfd.readouterr()
    assert "clip.mp4: " in out
    assert "r.json: exists and is kept" in err
    assert "left out: tags comment: .ts cannot hold them" in err


@pytest.mark.parametrize(("prepare", "line", "says"), BAD_USE, ids=[line for _, line, _ in BAD_USE])
def test_mistakes_get_one_line_and_leave_nothing(
    here: Path, capfd: pytest.CaptureFixture[str], prepare: Callable[[], None], line: str, says: str
) -> None:
    prepare()
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    code = cli.main(line.split())
    _, err = capfd.readouterr()
    assert code == 2, err
    assert says in err
    assert [line.startswith("unmask: ") for line in err.splitlines()] in ([True], [False, True]), err
    assert {path.name: path.read_bytes() for path in here.iterdir()} == before


def test_sizes_of_the_test_clip(flashes: Path) -> None:
    feed = CameraFeed(str(flashes), (640, 480), 30)
    connection = feed.connect()
    try:
        assert (connection.info.layout.width, connection.info.layout.height) == (WIDTH, HEIGHT)
    finally:
        connection.close()
    assert not UrlFeed("http://127.0.0.1/").finite
