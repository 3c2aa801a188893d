"""The page of `unmask live --http`, in a real browser without a screen."""

import asyncio
import json
import os
import re
import shutil
import signal
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from faces import Portrait
from live_sources import flash_clip

from unmask import cli
from unmask.stream.frame import Frame, Layout
from unmask.stream.live.output import Showing
from unmask.stream.live.state import LiveState
from unmask.stream.stage import Context
from unmask.stream.supervisor import Cancel

aiohttp = pytest.importorskip("aiohttp", reason="the page needs aiohttp: pip install 'unmask[live]'")
aiortc = pytest.importorskip("aiortc", reason="the page needs aiortc: pip install 'unmask[live]'")
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

from unmask.stream.live import page_rtc, web  # noqa: E402
from unmask.stream.live.page_camera import PageFeed  # noqa: E402

CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or shutil.which("google-chrome")
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
FAKE_CAMERA = ["--use-fake-device-for-media-stream", "--use-fake-ui-for-media-stream"]

CHANGES = """() => {
  const canvas = document.getElementById("picture"), pen = canvas.getContext("2d");
  const slider = document.getElementById("slider");
  const look = value => {
    slider.value = value;
    slider.dispatchEvent(new Event("input"));
    return pen.getImageData(0, 0, canvas.width - 4, canvas.height).data;
  };
  // One picture, drawn twice within one turn of the page's loop, so that no newer one comes between.
  const before = look(100).slice(), after = look(0);
  let changed = 0;
  for (let i = 0; i < before.length; i += 4) changed += Math.abs(before[i + 1] - after[i + 1]) > 40;
  return changed / (before.length / 4);
}"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("there is no chromium on the PATH, and CHROMIUM does not name one")
    with playwright.sync_playwright() as player:
        opened = player.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS + FAKE_CAMERA)
        yield opened
        opened.close()


class Program:
    """`unmask live --http 0` in a process of its own, from the moment that its page is up."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        command = [sys.executable, "-m", "unmask.cli", "live", *arguments, "--http", "0", "--device", "cpu"]
        log = folder / "log.txt"
        with log.open("w") as target:
            self.process = subprocess.Popen(command, cwd=folder, stdout=target, stderr=target)
        wait_until(lambda: "page: http" in log.read_text() or self.process.poll() is not None)
        found = re.search(r"page: (http\S+)", log.read_text())
        assert found, log.read_text()
        self.url = found[1]

    def end(self) -> None:
        self.process.send_signal(signal.SIGINT)
        assert self.process.wait(30) == 0


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Program]]:
    programs: list[Program] = []

    def begin(*arguments: str) -> Program:
        programs.append(Program(tmp_path, *arguments))
        return programs[-1]

    yield begin
    for program in programs:
        if program.process.poll() is None:
            program.process.kill()
        program.process.wait(10)


def wait_until(what: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def number(page: Any, name: str) -> float:
    found = re.match(r"[\d.]+", page.inner_text(f"#{name}"))
    return float(found[0]) if found else 0.0


def masked_clip(path: Path, portrait: Portrait) -> None:
    height, width = (side & ~1 for side in portrait.masked.shape[:2])
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for _ in range(30):
            picture = av.VideoFrame.from_ndarray(np.ascontiguousarray(portrait.masked[:height, :width]), "rgb24")
            container.mux(stream.encode(picture))
        container.mux(stream.encode())


def test_page_shows_before_and_after(
    tmp_path: Path, portrait: Portrait, browser: Any, start: Callable[..., Program]
) -> None:
    masked_clip(tmp_path / "masked.mp4", portrait)
    program = start("masked.mp4", "--loop")
    page = browser.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.goto(program.url)
    page.locator("#waiting").wait_for(state="hidden", timeout=60_000)
    wait_until(lambda: number(page, "fps") > 0 and number(page, "p50") > 0)
    assert "never evidence of who someone is" in page.inner_text("body")
    assert page.inner_text("#faces") == "1 / 1"
    assert not page.locator("#camera").is_visible()
    changed = page.evaluate(CHANGES)
    assert 0.005 < changed < 0.3  # the mask, and nothing else
    page.close()
    program.end()
    assert errors == []


def test_page_stops_and_starts(tmp_path: Path, browser: Any, start: Callable[..., Program]) -> None:
    flash_clip(tmp_path / "clip.mp4")
    program = start("clip.mp4", "--loop")
    page = browser.new_page()
    page.goto(program.url)
    wait_until(lambda: number(page, "frames") > 0)
    page.click("#toggle")
    wait_until(lambda: page.inner_text("#state") == "stopped")
    time.sleep(1.0)
    held = number(page, "frames")
    time.sleep(1.0)
    assert number(page, "frames") == held
    assert page.inner_text("#toggle") == "Start"
    page.click("#toggle")
    wait_until(lambda: number(page, "frames") > held)
    page.close()
    program.end()


def test_own_camera_goes_there_and_back(browser: Any, start: Callable[..., Program]) -> None:
    program = start("--page-camera", "--camera-size", "320x240")
    page = browser.new_page()
    page.goto(program.url)
    assert page.inner_text("#state") in {"–", "waiting for the source"}
    page.click("#camera")
    page.locator("#mine").wait_for(state="visible", timeout=60_000)
    wait_until(lambda: number(page, "frames") > 20)
    wait_until(lambda: page.evaluate("document.getElementById('mine').currentTime") > 0.5)
    assert page.evaluate("[mine.videoWidth, mine.videoHeight]") == [320, 240]
    assert page.inner_text("#error") == ""
    page.close()
    # The next page takes over where the first one left.
    again = browser.new_page()
    again.goto(program.url)
    wait_until(lambda: again.inner_text("#state") == "waiting for the source")
    before = number(again, "frames")
    again.click("#camera")
    wait_until(lambda: number(again, "frames") > before + 10)
    assert again.inner_text("#state") == "live"
    again.close()
    program.end()


def test_camera_is_offered_again_once_a_call_is_over(browser: Any, start: Callable[..., Program]) -> None:
    program = start("--page-camera", "--camera-size", "320x240")
    first, second = browser.new_page(), browser.new_page()
    for page in (first, second):
        page.goto(program.url)
        page.click("#camera")
        page.locator("#mine").wait_for(state="visible", timeout=60_000)
        wait_until(lambda page=page: page.evaluate("mine.currentTime") > 0.5)
    first.locator("#camera").wait_for(state="visible", timeout=20_000)  # the second page has taken over
    assert not first.locator("#mine").is_visible()
    assert not second.locator("#camera").is_visible()
    program.end()
    second.locator("#camera").wait_for(state="visible", timeout=20_000)
    first.close()
    second.close()


def test_nothing_is_served_without_the_token(tmp_path: Path, start: Callable[..., Program]) -> None:
    flash_clip(tmp_path / "clip.mp4")
    program = start("clip.mp4", "--loop")
    place = program.url.partition("?")[0]
    for url in (place, f"{place}?token=wrong", f"{place}live", f"{place}live?token="):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=10)
        assert refused.value.code == 403
        refused.value.close()
    with urllib.request.urlopen(program.url, timeout=10) as answer:
        assert b"unmask live" in answer.read()


def test_any_token_can_stand_in_the_address(tmp_path: Path, start: Callable[..., Program]) -> None:
    flash_clip(tmp_path / "clip.mp4")
    program = start("clip.mp4", "--loop", "--http-token", "aa&bb#cc dd+ee%41", "--report", "r.json", "--duration", "4")
    with urllib.request.urlopen(program.url, timeout=10) as answer:
        assert b"unmask live" in answer.read()
    assert program.process.wait(60) == 0
    (line,) = (one for one in json.loads((tmp_path / "r.json").read_text())["notices"] if one.startswith("page: "))
    assert line.endswith("/?token=...")


def test_other_machines_are_served_over_tls_only(tmp_path: Path, start: Callable[..., Program]) -> None:
    flash_clip(tmp_path / "clip.mp4")
    program = start("clip.mp4", "--loop", "--http-host", "0.0.0.0", "--http-token", "abcdefghijkl")
    assert program.url.startswith("https://")
    assert program.url.endswith("?token=abcdefghijkl")
    url = program.url.replace("0.0.0.0", "127.0.0.1")
    trusting = ssl.create_default_context()
    trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
    with urllib.request.urlopen(url, timeout=10, context=trusting) as answer:
        assert answer.status == 200
    with pytest.raises((urllib.error.URLError, ConnectionError)):
        urllib.request.urlopen(url.replace("https", "http"), timeout=10)


def test_viewers_share_each_coded_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    viewers, wanted, layout = 3, 5, Layout(64, 48, keep_source=True)
    coded: list[bytes] = []
    code = web._jpeg

    def code_and_keep(pair: Any, layout: Layout) -> bytes:
        coded.append(code(pair, layout))
        return coded[-1]

    monkeypatch.setattr(web, "_jpeg", code_and_keep)
    lines: list[str] = []
    page = web.WebPage(web.Address(0), LiveState("a clip", Cancel()))
    page.open(Context(layout, notice=lines.append))
    seen: list[list[bytes]] = [[] for _ in range(viewers)]

    async def view(session: aiohttp.ClientSession, pictures: list[bytes]) -> None:
        async with session.ws_connect(lines[0].removeprefix("page: ").replace("/?", "/live?")) as socket:
            await socket.send_str("next")
            async for message in socket:
                if message.type is aiohttp.WSMsgType.BINARY:
                    pictures.append(message.data)
                    if len(pictures) == wanted:
                        return
                    await socket.send_str("next")

    async def view_all() -> None:
        async with aiohttp.ClientSession() as session:
            await asyncio.gather(*(view(session, pictures) for pictures in seen))

    watching = threading.Thread(target=lambda: asyncio.run(view_all()))
    watching.start()
    frame = Frame(0, 0, Fraction(1, 25), layout, np.zeros(layout.slot_bytes(1), np.uint8), 0)
    for shown in range(1, wanted + 1):
        wait_until(lambda: page._asking == viewers)  # all have drawn the picture before
        frame.planes[0][:] = 20 * shown
        page.show(Showing(frame, []))
        wait_until(lambda sent=shown * viewers: page.summary()["pictures_sent"] == sent)
    watching.join(20)
    page.close()
    assert len(coded) == wanted
    assert seen == [coded] * viewers
    assert len(set(coded)) == wanted


def test_refused_call_leaves_nothing_open(monkeypatch: pytest.MonkeyPatch) -> None:
    peers: list[Any] = []

    class Peer(aiortc.RTCPeerConnection):  # type: ignore[misc,unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            peers.append(self)

    async def call(kind: str) -> None:
        caller = aiortc.RTCPeerConnection()
        caller.addTransceiver(kind)
        await caller.setLocalDescription(await caller.createOffer())
        offer = {"sdp": caller.localDescription.sdp, "type": caller.localDescription.type}
        calls = page_rtc.PageCalls(PageFeed((640, 480)))
        try:
            await calls.answer(offer if kind == "audio" else offer | {"type": "x"})
        finally:
            await caller.close()

    monkeypatch.setattr(page_rtc, "RTCPeerConnection", Peer)
    with ThreadPoolExecutor(1) as aside:  # while a browser is open, Playwright's loop runs in this thread
        with pytest.raises(ValueError, match="no video"):
            aside.submit(lambda: asyncio.run(call("audio"))).result()
        with pytest.raises(ValueError, match="type"):
            aside.submit(lambda: asyncio.run(call("video"))).result()
    assert [peer.connectionState for peer in peers] == ["closed", "closed"]


def test_calls_that_never_connect_take_nothing_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """The page that sends its camera stays the source, and nothing of the other calls stays open."""
    monkeypatch.setattr("aioice.stun.RETRY_MAX", 1)  # a few tenths of a second until a call fails, instead of a minute
    monkeypatch.setattr("aioice.stun.RETRY_RTO", 0.1)
    monkeypatch.setattr(page_rtc, "_CONNECT_SECONDS", 2.0, raising=False)
    feed = PageFeed((320, 240))
    calls = page_rtc.PageCalls(feed)

    async def call(*, with_addresses: bool = True) -> tuple[Any, dict[str, str]]:
        caller = aiortc.RTCPeerConnection()
        caller.addTrack(aiortc.VideoStreamTrack())
        await caller.setLocalDescription(await caller.createOffer())
        lines = caller.localDescription.sdp.splitlines(keepends=True)
        sdp = "".join(line for line in lines if with_addresses or not line.startswith("a=candidate"))
        return caller, await calls.answer({"sdp": sdp, "type": "offer"})

    async def until(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    async def three_calls() -> None:
        good, answer = await call()
        await good.setRemoteDescription(aiortc.RTCSessionDescription(**answer))
        await until(feed.current)
        box, (peer,) = feed.current(), calls._peers
        dead = [(await call())[0], (await call(with_addresses=False))[0]]  # none of them hears the answer
        for caller in dead:
            await caller.close()
        assert len(calls._peers) == 3
        await until(lambda: calls._peers == {peer} and len(calls._tasks) == 1)
        assert box is not None
        assert feed.current() is box
        assert box.get(0) or await asyncio.to_thread(box.get, 5.0)
        assert calls.wanted
        await good.close()
        await until(lambda: not (calls._peers or calls._tasks or calls.wanted))
        box.get(0)  # one may have been left
        assert feed.current() is None
        await calls.end()

    with ThreadPoolExecutor(1) as aside:
        aside.submit(lambda: asyncio.run(three_calls())).result()


def test_call_that_another_takes_over_is_hung_up() -> None:
    """So that its page gives the camera back, and can offer it again."""
    calls = page_rtc.PageCalls(PageFeed((320, 240)))

    async def call() -> Any:
        caller = aiortc.RTCPeerConnection()
        caller.addTrack(aiortc.VideoStreamTrack())
        await caller.setLocalDescription(await caller.createOffer())
        answer = await calls.answer({"sdp": caller.localDescription.sdp, "type": "offer"})
        await caller.setRemoteDescription(aiortc.RTCSessionDescription(**answer))
        return caller

    async def until(what: Callable[[], object]) -> None:
        deadline = time.monotonic() + 20
        while not what():
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)

    async def two_calls() -> None:
        first = await call()
        await until(lambda: calls.wanted)
        second = await call()
        await until(lambda: first.connectionState == "closed")
        assert second.connectionState == "connected"
        assert calls.wanted
        assert len(calls._peers) == 1
        await second.close()
        await until(lambda: not (calls._peers or calls._tasks or calls.wanted))
        await calls.end()

    with ThreadPoolExecutor(1) as aside:
        aside.submit(lambda: asyncio.run(two_calls())).result()


def test_nonsense_for_a_call_is_refused(start: Callable[..., Program]) -> None:
    program = start("--page-camera")
    url = program.url.replace("/?", "/offer?")
    for body in (b"", b"no json", b"[]", b'{"sdp": "x", "type": "offer"}', b'{"sdp": 1, "type": 2}', b'{"sdp": ""}'):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(urllib.request.Request(url, body, method="POST"), timeout=10)
        assert refused.value.code == 400, body
        refused.value.close()
    with urllib.request.urlopen(program.url, timeout=10) as answer:
        assert answer.status == 200


MISTAKES = [
    ("live --page-camera", "add --http 8080"),
    ("live clip.mp4 --http 0 --quiet", "add --http-token"),
    ("live clip.mp4 --http 0 --http-token short", "at least 12 characters"),
    ("live clip.mp4 --http 0 --http-host 203.0.113.7", "choose another port"),
]


@pytest.mark.parametrize(("line", "says"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], line: str, says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    flash_clip(tmp_path / "clip.mp4")
    assert cli.main(line.split()) == 2
    assert says in capfd.readouterr().err
