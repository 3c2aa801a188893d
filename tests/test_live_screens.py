"""The window and the virtual camera of `unmask live`."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
import pytest
from live_sources import HEIGHT, WIDTH, flash_clip

from unmask import cli
from unmask.stream.live.session import LiveDone, LiveSettings, OutputMaker, make_feed, run_live
from unmask.stream.pipeline import Settings
from unmask.stream.supervisor import Cancel

os.environ["PYGAME_HIDE_SUPPORT_PROMPT"] = "1"


def wait_until(what: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def run_in_background(clip: Path, maker: OutputMaker) -> tuple[threading.Thread, list[LiveDone], list[str]]:
    settings = LiveSettings(source=str(clip), loop=True, pipeline=Settings("cpu"))
    done: list[LiveDone] = []
    lines: list[str] = []

    def work() -> None:
        done.append(run_live(make_feed(settings), settings, [maker], Cancel(), lines.append, lambda _: None))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread, done, lines


# --- window -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """SDL's own screen without a display; the window is drawn all the same."""
    monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
    pygame = pytest.importorskip("pygame", reason="the window needs pygame-ce: pip install 'unmask[live]'")
    yield pygame
    pygame.quit()


def test_window_hears_its_keys(tmp_path: Path, screen: Any) -> None:
    from unmask.stream.live.window import Window

    clip = flash_clip(tmp_path / "clip.mp4")
    thread, done, lines = run_in_background(clip, lambda state, info: Window(state, tmp_path))
    wait_until(lambda: any("window:" in line for line in lines))
    wait_until(lambda: screen.display.get_init() and screen.display.get_surface() is not None)

    def brightest() -> int:
        return int(screen.surfarray.array3d(screen.display.get_surface())[:, -40:].max())

    wait_until(lambda: brightest() > 200)  # a flash of the clip
    assert screen.display.get_surface().get_size() == (WIDTH, HEIGHT)
    for key in (screen.K_SPACE, screen.K_f, screen.K_s):
        screen.event.post(screen.event.Event(screen.KEYDOWN, key=key))
    wait_until(lambda: any(line.startswith("snapshot: ") for line in lines))
    screen.event.post(screen.event.Event(screen.KEYDOWN, key=screen.K_q))
    thread.join(30)
    assert done
    assert done[0].outputs["window"]["snapshots"] == 1
    assert done[0].outputs["window"]["drawn"] > 1
    (snapshot,) = tmp_path.glob("unmask-*.png")
    picture = cv2.imread(str(snapshot))
    assert picture is not None
    assert picture.shape == (HEIGHT, WIDTH, 3)
    assert b"not evidence of identity" in snapshot.read_bytes()


def test_window_without_a_screen_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pygame", reason="the window needs pygame-ce: pip install 'unmask[live]'")
    for name in ("SDL_VIDEODRIVER", "DISPLAY", "WAYLAND_DISPLAY", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    if Path("/dev/dri").exists():
        pytest.skip("SDL can draw on this machine's screen without a desktop")
    monkeypatch.chdir(tmp_path)
    flash_clip(tmp_path / "clip.mp4")
    assert cli.main(["live", "clip.mp4", "--window"]) == 2
    assert "is there a screen? Without one use --http 8080" in capfd.readouterr().err


# --- virtual camera ---------------------------------------------------------------------------------------------------


class FakeDevice:
    """A backend of pyvirtualcam that keeps what it is sent."""

    sent: ClassVar[list[np.ndarray]] = []
    told: ClassVar[dict[str, Any]] = {}

    def __init__(self, **told: Any) -> None:
        FakeDevice.told = told
        FakeDevice.sent = []

    def send(self, frame: np.ndarray) -> None:
        self.sent.append(frame.copy())

    def device(self) -> str:
        return "fake0"

    def native_fourcc(self) -> None:
        return None

    def close(self) -> None:
        pass


def test_virtual_camera_gets_every_frame(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pyvirtualcam = pytest.importorskip("pyvirtualcam", reason="needs pyvirtualcam: pip install 'unmask[live]'")
    from unmask.stream.live.virtual_camera import VirtualCamera

    monkeypatch.setitem(pyvirtualcam.camera.BACKENDS, "fake", FakeDevice)
    settings = LiveSettings(source=str(flash_clip(tmp_path / "clip.mp4")), pipeline=Settings("cpu"))
    lines: list[str] = []
    maker = partial(VirtualCamera, backend="fake")
    done = run_live(make_feed(settings), settings, [maker], Cancel(), lines.append, lambda _: None)
    assert (FakeDevice.told["width"], FakeDevice.told["height"], FakeDevice.told["fps"]) == (WIDTH, HEIGHT, 25.0)
    assert len(FakeDevice.sent) == done.frames == done.outputs["virtual camera"]["frames"]
    luma = [int(frame.ravel()[: WIDTH * HEIGHT].mean()) for frame in FakeDevice.sent]
    assert min(luma) < 60 < 180 < max(luma)  # dark, and flashes
    assert "virtual camera: fake0 (fake)" in lines


def test_missing_virtual_camera_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("pyvirtualcam", reason="needs pyvirtualcam: pip install 'unmask[live]'")
    if any(Path("/dev").glob("video*")):
        pytest.skip("this machine has cameras, one of which may be virtual")
    monkeypatch.chdir(tmp_path)
    flash_clip(tmp_path / "clip.mp4")
    assert cli.main(["live", "clip.mp4", "--virtual-camera"]) == 2
    err = capfd.readouterr().err
    assert "sudo modprobe v4l2loopback" in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("option", "module"), [("--window", "pygame"), ("--virtual-camera", "pyvirtualcam")])
def test_missing_package_says_what_to_install(
    option: str, module: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    find_spec = cli.live_cli.importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == module else find_spec(name))
    assert cli.main(["live", "clip.mp4", option]) == 2
    assert f"{option} needs {module}: pip install 'unmask[live]'" in capfd.readouterr().err
