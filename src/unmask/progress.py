"""What the user sees while a job runs: a bar on a terminal, plain lines elsewhere, nothing when quiet."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from unmask.stream.naming import Job, shown

LINE_EVERY_SECONDS: Final = 5.0
"""How often a line is written where there is no terminal."""


class Quiet:
    """Shows nothing; what stages have to say is in the report."""

    def started(self, job: Job, expected_frames: int | None, doing: str = "") -> None:
        pass

    def progress(self, frames: int, pts_seconds: float) -> None:
        pass

    def notice(self, line: str) -> None:
        pass

    def finished(self) -> None:
        pass


class Lines:
    """Writes a line to stderr every few seconds."""

    def __init__(self) -> None:
        self._name = ""
        self._expected = ""
        self._began = self._written = time.monotonic()

    def started(self, job: Job, expected_frames: int | None, doing: str = "") -> None:
        self._name = _named(job, doing)
        self._expected = f" of about {expected_frames}" if expected_frames else ""
        self._began = self._written = time.monotonic()

    def progress(self, frames: int, pts_seconds: float) -> None:
        now = time.monotonic()
        if now - self._written < LINE_EVERY_SECONDS:
            return
        self._written = now
        rate = frames / (now - self._began)
        say(f"{self._name}: {frames}{self._expected} frames, {rate:.1f} fps, at {pts_seconds:.1f} s")

    def notice(self, line: str) -> None:
        say(_about(self._name, line))

    def finished(self) -> None:
        pass


class Bar:
    """Shows a progress bar on stderr, with frames per second and the time left."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._name = ""
        self._task = TaskID(0)
        self._began = 0.0

    def started(self, job: Job, expected_frames: int | None, doing: str = "") -> None:
        self.finished()
        self._name = _named(job, doing)
        self._bar = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            TextColumn("{task.completed}{task.fields[of]} {task.fields[fps]:.1f} fps"),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
        )
        of = f"/{expected_frames}" if expected_frames else ""
        self._task = self._bar.add_task(self._name, total=expected_frames, fps=0.0, of=of)
        self._began = time.monotonic()
        self._bar.start()

    def progress(self, frames: int, pts_seconds: float) -> None:
        if self._bar is not None:
            rate = frames / max(time.monotonic() - self._began, 1e-3)
            self._bar.update(self._task, completed=frames, fps=rate)

    def notice(self, line: str) -> None:
        self._console.print(_about(self._name, line), markup=False, highlight=False, soft_wrap=True)

    def finished(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def choose_display(*, quiet: bool) -> Quiet | Lines | Bar:
    """A bar where stderr is a terminal, else lines; nothing when quiet."""
    if quiet:
        return Quiet()
    return Bar() if sys.stderr.isatty() else Lines()


@contextmanager
def counting(what: str) -> Iterator[Callable[[int, int], None]]:
    """What is told how many of how many are done: shows a bar on a terminal, elsewhere a line every few seconds."""
    if sys.stderr.isatty():
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
            task = bar.add_task(what, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)
        return
    written = time.monotonic()

    def line(done: int, total: int) -> None:
        nonlocal written
        if time.monotonic() - written >= LINE_EVERY_SECONDS:
            written = time.monotonic()
            say(f"{what}: {done} of {total}")

    yield line


def _named(job: Job, doing: str) -> str:
    name = shown(job.source.name)
    return f"{name}, {doing}" if doing else name


def _about(name: str, line: str) -> str:
    """The line with the name of the file that it is about in front."""
    line = shown(line)
    return line if not name or line.startswith(name) else f"{name}: {line}"


def say(line: str) -> None:
    """Write one line to stderr."""
    with suppress(OSError):  # a terminal that was closed hears nothing more; what is under way goes on
        print(shown(line), file=sys.stderr, flush=True)
