"""The command `unmask live`. Imported by `unmask.cli`, and as lazy as its other commands."""

import importlib.util
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from unmask.errors import UnmaskError, UserError
from unmask.interrupts import FINISHING, STOPPED, interruptible
from unmask.options import (
    DeviceOption,
    EngineOption,
    MaxFacesOption,
    MemoryOption,
    PersonOption,
    QuietOption,
    TrackerOption,
    personal,
)
from unmask.progress import say
from unmask.stream.trackers import DEFAULT_TRACKER

if TYPE_CHECKING:
    from unmask.stream.live.feed import Feed
    from unmask.stream.live.session import OutputMaker
    from unmask.stream.live.state import Figures

_LINE_EVERY_SECONDS: Final = 10.0
_SHORTEST_TOKEN: Final = 12
_SOURCE: Final = "Source"
_OUTPUTS: Final = "Outputs, any number at once"
_MEASURING: Final = "Measuring"


# Not a docstring: Typer would break its lines both where they end here and where the terminal does.
LIVE_HELP: Final = "\n\n".join(
    (
        "Take the masks off the faces in a live picture: a camera, a stream, or a file at its own pace.",
        "What is painted is a plausible face, never evidence of who someone is. Recordings and streams say so in their "
        "comment tag.",
        "  unmask live --camera 0 --window --virtual-camera",
        "  unmask live --camera 0 --http 8080 --record talk.mp4",
        "  unmask live --page-camera --http 8080 --http-host 192.168.1.5",
        "  unmask live rtsp://camera.local/stream --push rtmp://127.0.0.1/live/x",
        "  unmask live clip.mp4 --loop --latency --duration 600 --report r.json",
        "PACE. The newest picture wins. Where the machine is too slow, pictures are dropped at the source, counted and "
        "shown; the picture never falls behind. No picture takes much longer than others: what can wait is spread over "
        "several. So small faces, and the last ones of a group, are found about a second after a scene begins; checks "
        "of several doubtful faces take turns; and a mask that hands hide for the most part can be noticed four "
        "pictures later, for each bare face beside it one more. `unmask video` does all of that in each frame.",
        "LOSS. A source that goes away is waited for, and said, and so is the receiver of --push; --once ends instead.",
        "PAGE. --http prints an address with a token, without which nobody gets in. Other machines reach it only where "
        "--http-host names an address of this one, and then over HTTPS, with a certificate that is made for the run: "
        "browsers ask once.",
        "LATENCY. --latency writes a time code into the corner of each source picture and reads it back at the "
        "outputs. p50, p95 and p99 are printed at the end and stand in --report, for each minute too.",
        "END. Ctrl-C ends the run in good order and finishes the recording (exit code 0). A second one stops at once "
        "and keeps nothing (130).",
    )
)


def live(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="[FILE|URL]",
            help="A video file, given at its own pace; or a URL: rtsp://, http(s):// (also HLS), rtmp://, "
            "udp://127.0.0.1:5000 (MPEG-TS).",
            show_default=False,
        ),
    ] = None,
    camera: Annotated[
        str | None,
        typer.Option(metavar="N|DEVICE", help="A camera of this machine: 0, or /dev/video0.", rich_help_panel=_SOURCE),
    ] = None,
    page_camera: Annotated[
        bool,
        typer.Option(
            "--page-camera",
            help="The camera of the laptop or phone that opens the page of --http: see yourself without the mask.",
            rich_help_panel=_SOURCE,
        ),
    ] = False,
    camera_size: Annotated[
        str | None,
        typer.Option(
            metavar="WxH",
            help="Picture to ask the camera for. Default: 1280x720; 640x480 for the page's camera.",
            rich_help_panel=_SOURCE,
            show_default=False,
        ),
    ] = None,
    camera_fps: Annotated[
        float, typer.Option(metavar="N", min=1, max=240, help="Rate to ask it for.", rich_help_panel=_SOURCE)
    ] = 30.0,
    loop: Annotated[
        bool, typer.Option("--loop", help="Begin a file again at its end.", rich_help_panel=_SOURCE)
    ] = False,
    once: Annotated[
        bool,
        typer.Option("--once", help="End when the source goes away, instead of trying again.", rich_help_panel=_SOURCE),
    ] = False,
    duration: Annotated[
        float | None, typer.Option(metavar="SECONDS", min=0.1, help="End after so long.", rich_help_panel=_SOURCE)
    ] = None,
    window: Annotated[
        bool,
        typer.Option(
            "--window",
            help="A window on this screen. Space: before or after; s: snapshot to the current folder; f: figures; "
            "q: quit.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = False,
    virtual_camera: Annotated[
        bool,
        typer.Option(
            "--virtual-camera",
            help="A camera that video calls can choose: v4l2loopback on Linux, OBS elsewhere.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = False,
    virtual_device: Annotated[
        str | None,
        typer.Option(
            metavar="DEVICE",
            help="Which one, such as /dev/video2. Default: the first that is free.",
            rich_help_panel=_OUTPUTS,
            show_default=False,
        ),
    ] = None,
    record: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="Record to .mp4, .mov, .mkv, .ts or .flv, with the source's sound. The file appears when it is whole.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace a recording or report that exists.", rich_help_panel=_OUTPUTS)
    ] = False,
    push: Annotated[
        list[str] | None,
        typer.Option(
            metavar="URL",
            help="Send to rtsp://, rtmp://, rtmps:// or udp:// (MPEG-TS), with the source's sound. Can be given again.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = None,
    http: Annotated[
        int | None,
        typer.Option(
            metavar="PORT",
            min=0,
            max=65535,
            help="Serve a page with the picture before and after, figures, stop and start. Its address, with a token "
            "that nobody can guess, is printed. 0 takes any free port.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = None,
    http_host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Address to serve the page on. 0.0.0.0 lets other machines in: with the token, and over HTTPS.",
            rich_help_panel=_OUTPUTS,
        ),
    ] = "127.0.0.1",
    http_token: Annotated[
        str,
        typer.Option(
            metavar="TOKEN",
            help="Token of the page, at least 12 characters. Default: a new one for each run.",
            envvar="UNMASK_HTTP_TOKEN",
            rich_help_panel=_OUTPUTS,
            show_default=False,
        ),
    ] = "",
    latency: Annotated[
        bool,
        typer.Option(
            "--latency",
            help="Write a time code into each source picture and read it back at the outputs.",
            rich_help_panel=_MEASURING,
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="Write what was done, as JSON.", rich_help_panel=_MEASURING),
    ] = None,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    max_faces: MaxFacesOption = 8,
    person: PersonOption = None,
    memory: MemoryOption = True,
    tracker: TrackerOption = DEFAULT_TRACKER,
    quiet: QuietOption = False,
) -> None:
    """Carry out `unmask live`; `LIVE_HELP` is what users read."""
    from unmask.models.engine import choose
    from unmask.stream.jobs import write_report
    from unmask.stream.live.session import LiveSettings, make_feed, run_live
    from unmask.stream.naming import Job, check_report
    from unmask.stream.pipeline import Settings
    from unmask.stream.supervisor import Cancel

    gpu = choose(device, engine).device != "cpu"
    if [source is not None, camera is not None, page_camera].count(True) != 1:
        raise UserError("name one source: a file, a URL, --camera 0 or --page-camera")
    if page_camera and http is None:
        raise UserError("--page-camera needs the page: add --http 8080")
    if http is not None and quiet and not http_token:
        raise UserError("--quiet would hide the page's address: add --http-token TOKEN")
    if len(record or ()) > 1:
        raise UserError("--record can be given once: one file is recorded")
    recording = record[0] if record else None
    display = _Display(quiet=quiet)
    known = personal(person, display.notice)
    settings = LiveSettings(
        source=source,
        camera=camera,
        page_camera=page_camera,
        camera_size=_size(camera_size or ("640x480" if page_camera else "1280x720")),
        camera_fps=camera_fps,
        loop=loop,
        once=once,
        seconds=duration,
        record=recording,
        overwrite=overwrite,
        latency=latency,
        gpu=gpu,
        pipeline=Settings(device, max_faces=max_faces, engine=engine, person=known, tracker=tracker, memory=memory),
    )
    _check_loop(settings.source, loop=loop)
    if report is not None:
        jobs = [Job(Path(source), Path(source))] if source and Path(source).is_file() else []
        check_report(report, jobs, overwrite=overwrite)
    feed = make_feed(settings)
    makers = [
        *_windows(window),
        *_virtual_cameras(virtual_camera, virtual_device),
        *_pages(http, http_host, http_token, feed),
        *_pushes(push or [], gpu=gpu),
    ]
    if not makers and recording is None and not latency:
        raise UserError("name an output, such as --window, --http 8080 or --record FILE; or --latency to measure only")
    cancel = Cancel()
    with interruptible(cancel, FINISHING) as interrupted:
        try:
            done = run_live(feed, settings, makers, cancel, display.notice, display.figures)
        except UnmaskError as error:
            if not interrupted:
                raise
            display.clear()
            say(f"unmask: {error}")
            raise typer.Exit(STOPPED) from error
    display.clear()
    try:
        if report is not None:  # first, as nobody may read the line any more
            write_report(report, [done], as_list=False, overwrite=overwrite)
    finally:
        if not quiet:
            print(done.summary(), flush=True)


def _need(option: str, *modules: str) -> None:
    """Raise UserError where a module that an option needs is not installed."""
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise UserError(f"{option} needs {' and '.join(missing)}: pip install 'unmask[live]'")


def _windows(wanted: bool) -> "Iterator[OutputMaker]":
    if not wanted:
        return
    _need("--window", "pygame")
    from unmask.stream.live.window import Window

    yield lambda state, info: Window(state, Path())


def _virtual_cameras(wanted: bool, device: str | None) -> "Iterator[OutputMaker]":
    if not wanted:
        return
    _need("--virtual-camera", "pyvirtualcam")
    from unmask.stream.live.virtual_camera import VirtualCamera

    yield partial(VirtualCamera, device=device)


def _pages(port: int | None, host: str, token: str, feed: "Feed") -> "Iterator[OutputMaker]":
    if port is None:
        return
    if token and len(token) < _SHORTEST_TOKEN:
        raise UserError(f"--http-token: at least {_SHORTEST_TOKEN} characters, or leave it out for a random one")
    _need("--http", "aiohttp", "aiortc")
    from unmask.stream.live.page_camera import PageFeed
    from unmask.stream.live.web import Address, WebPage

    page_feed = feed if isinstance(feed, PageFeed) else None
    yield lambda state, info: WebPage(Address(port, host, token), state, page_feed)


def _pushes(urls: list[str], *, gpu: bool) -> "Iterator[OutputMaker]":
    from unmask.stream.live.push import Push, check_push

    for url in urls:
        check_push(url)
        yield partial(Push, url, gpu=gpu)


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdecimal() and height.isdecimal() and int(width) > 0 and int(height) > 0):
        raise UserError(f"--camera-size {text}: give width and height, such as 1280x720")
    return int(width), int(height)


def _check_loop(source: str | None, *, loop: bool) -> None:
    if loop and (source is None or "://" in source):
        raise UserError("--loop is for files; cameras and URLs have no end to begin again at")


class _Display:
    """What the user sees on stderr: lines as they come, and the figures on a terminal, or now and then elsewhere."""

    def __init__(self, *, quiet: bool) -> None:
        self._quiet = quiet
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self._terminal else _LINE_EVERY_SECONDS)
        self._shown = False
        self._frames = 0

    def notice(self, line: str) -> None:
        if not self._quiet:
            self.clear()
            say(line)

    def figures(self, figures: "Figures") -> None:
        if self._quiet or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + (0.5 if self._terminal else _LINE_EVERY_SECONDS)
        line = f"{figures.seconds:.0f} s: {figures.line()}"
        if self._terminal:
            # The cursor goes back, so that whatever is said next takes the place of the figures.
            _draw(f"\x1b[K{line}\r")
            self._shown = True
        elif figures.frames > self._frames:  # a log is not to fill up while the source is away
            say(line)
        self._frames = figures.frames

    def clear(self) -> None:
        """Take the figures off the terminal."""
        if self._shown:
            _draw("\x1b[K")
            self._shown = False


def _draw(text: str) -> None:
    with suppress(OSError):  # a terminal that was closed shows nothing more; the recording is still to be finished
        print(text, end="", file=sys.stderr, flush=True)
