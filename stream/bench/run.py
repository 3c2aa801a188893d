"""Measures cases one after the other, each in a process of its own, on clips made for it.

What the timers cover: `wall_seconds` is the whole command, from its start to its end; `fps` is frames over the time in
which all stages were open, decoding and encoding included; stages are milliseconds of their own work per frame, waiting
for processor time included, waiting for frames not; `latency_ms` is from a picture of a source that keeps its own pace
to the output. Memory is the largest resident set of the process; with a process per stage, the sum of their
proportional set sizes (shared pages counted once), looked at several times a second.
"""

import importlib.util
import json
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from unmask import __version__
from unmask.errors import UnmaskError
from unmask.models.processors import usable_processors
from unmask.stream.bench.clip import write_clip

SIZES: Final = {480: (854, 480), 720: (1280, 720), 1080: (1920, 1080), 2160: (3840, 2160)}
FACES: Final = (0, 1, 2, 4, 8)
_FULL_FRAMES: Final = {480: 100, 720: 100, 1080: 60, 2160: 30}
"""Length of the clips of the sweep, by height: large frames take long, and a second of them is as telling."""
Kind = Literal["video", "live", "floor", "direct", "eager", "onnx", "telea"]
_NEEDS: Final[dict[str, tuple[str, ...]]] = {
    "eager": ("torch", "safetensors"),
    "onnx": ("onnxruntime",),
    "telea": ("onnxruntime",),
}
_INSIDE: Final = "import sys, unmask.cli; from unmask.stream.bench.inside import main; main(*sys.argv[1:])"
"""With the command line loaded, as the commands have it: what that costs is then no difference between cases."""
_LOOK_SECONDS: Final = 0.2


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        name: for the table.
        kind: "video" and "live" are the commands; "floor" is decode and encode alone; "direct" calls the stages one
            after the other, without workers or messages; the others are the loops of
            `unmask.stream.bench.baselines`.
        lines: height of the picture in px: 480, 720, 1080 or 2160.
        faces: masked faces in each frame.
        frames: length of the clip.
        processes: a process per stage instead of a thread.
        cold: with no compiled networks in the cache.
        codec: of the output; None for the one that `unmask video` chooses.
    """

    name: str
    kind: Kind = "video"
    lines: int = 720
    faces: int = 1
    frames: int = 150
    processes: bool = False
    cold: bool = False
    codec: str | None = None


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a case gave.

    Attributes:
        case: which.
        fps: frames per second while the pipeline ran, opening not counted.
        wall_seconds: of the whole command.
        outside_seconds: of these, what was not spent with all stages open: start, loading networks, closing.
        memory_mb: most memory held at once, in MB of 10^6 bytes.
        cpu_seconds: processor time of the command and its processes.
        masks_removed: to see that the work was done.
        engine, encoder: what was used.
        stages: per stage, milliseconds per frame: mean, p50, p95, p99.
        work_seconds: of "direct", processor time spent in the stages; else 0.
        dropped: of "live", pictures passed over because a newer one had come.
        latency_ms: of "live", mean, p50, p95 and p99.
        latency_percentiles_ms: of "live", the 0th to the 100th.
    """

    case: Case
    fps: float
    wall_seconds: float
    outside_seconds: float
    memory_mb: float
    cpu_seconds: float
    masks_removed: int
    engine: str
    encoder: str
    stages: dict[str, dict[str, float]]
    work_seconds: float = 0.0
    dropped: int = 0
    latency_ms: dict[str, float] = {}
    latency_percentiles_ms: list[float] = []


def quick_cases() -> tuple[Case, ...]:
    """About two minutes on two processor cores."""
    return (
        Case(name="start, networks not compiled yet", frames=1, cold=True),
        Case(name="start, one frame", frames=1),
        Case(name="decode and encode alone", kind="floor"),
        Case(name="no face", faces=0),
        Case(name="one face"),
        Case(name="one face, stages called directly", kind="direct", frames=100),
        Case(name="one face, PyTorch loop", kind="eager", frames=60),
        Case(name="one face, ONNX Runtime loop", kind="onnx", frames=60),
        Case(name="one face, live at 25 fps", kind="live"),
        Case(name="four faces", faces=4),
        Case(name="one face, a process per stage", processes=True),
        Case(name="one face", lines=1080, frames=100),
    )


def full_cases() -> tuple[Case, ...]:
    """Every size with every number of faces, each size's floor; processes, encoders and baselines where they differ."""
    sizes = _FULL_FRAMES.items()
    sweep = [
        Case(name=f"{faces} faces", lines=lines, faces=faces, frames=frames)
        for lines, frames in sizes
        for faces in FACES
    ]
    floors = [Case(name="decode and encode alone", kind="floor", lines=lines, frames=frames) for lines, frames in sizes]
    processes = [
        Case(name=f"{faces} faces, a process per stage", lines=lines, faces=faces, frames=frames, processes=True)
        for lines, frames in sizes
        for faces in (1, 4)
    ]
    codecs = [Case(name=f"one face, {codec}", frames=100, codec=codec) for codec in ("h264", "hevc", "av1")]
    live = [
        Case(name=f"{faces} faces, live at 25 fps", kind="live", lines=lines, faces=faces)
        for lines in (720, 1080)
        for faces in (1, 4)
    ]
    telea = Case(name="one face, ONNX Runtime loop with Telea", kind="telea", frames=60)
    return (*quick_cases(), telea, *floors, *sweep, *processes, *codecs, *live)


def measure(
    cases: Sequence[Case],
    device: str,
    engine: str,
    started: Callable[[Case], None],
    left_out: Callable[[str], None],
    failed: Callable[[str], None],
) -> Iterator[Result]:
    """Run cases one after the other.

    Args:
        cases: what to measure.
        device: "auto", "cpu", "cuda" or "cuda:N".
        engine: "auto" or the name of one.
        started: is told before each.
        left_out: is told which baseline cannot run because a package is missing.
        failed: is told which run failed, and its reason; the other cases are measured all the same.
    """
    with tempfile.TemporaryDirectory(prefix="unmask-bench-") as name:
        folder = Path(name)
        for case in cases:
            missing = [package for package in _NEEDS.get(case.kind, ()) if importlib.util.find_spec(package) is None]
            if missing:
                left_out(f"{case.name}: left out, {' and '.join(missing)} not installed")
                continue
            started(case)
            width, height = SIZES[case.lines]
            clip = folder / f"{case.lines}-{case.faces}-{case.frames}.mp4"
            if not clip.exists():
                write_clip(clip, width, height, case.faces, case.frames)
            try:
                yield _run(case, clip, folder, ("--device", device, "--engine", engine))
            except UnmaskError as error:
                failed(str(error))


def _command(case: Case, clip: Path, folder: Path, where: Sequence[str]) -> list[str]:
    output, report = str(folder / "out.mp4"), str(folder / "report.json")
    python = [sys.executable, "-m"]
    if case.kind == "video":
        options = ["--overwrite", "--quiet", *where] + ["--processes"] * case.processes
        options += ["--codec", case.codec] if case.codec else []
        return [*python, "unmask.cli", "video", str(clip), "-o", output, "--report", report, *options]
    if case.kind == "live":
        again = ["--report", report, "--overwrite"]
        return [*python, "unmask.cli", "live", str(clip), "--latency", "--quiet", *again, *where]
    if case.kind in ("floor", "direct"):
        return [sys.executable, "-c", _INSIDE, case.kind, str(clip), output, report, where[1], where[3]]
    return [*python, "unmask.stream.bench.baselines", case.kind, str(clip), report]


def _run(case: Case, clip: Path, folder: Path, where: Sequence[str]) -> Result:
    environment = dict(os.environ)
    if case.cold:
        environment["UNMASK_CACHE"] = tempfile.mkdtemp(dir=folder)
    before = os.times()
    started = time.perf_counter()
    process = subprocess.Popen(
        _command(case, clip, folder, where), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    assert process.stderr is not None
    memory = _MemoryWatch(process.pid) if case.processes else None
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    process.stderr.close()
    if process.returncode:
        raise UnmaskError(f"the benchmark '{case.name}' failed: {(errors.strip().splitlines() or ['no message'])[-1]}")
    after = os.times()
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    most = memory.most() if memory else usage.ru_maxrss * 1024
    return _result(case, json.loads((folder / "report.json").read_text()), wall, cpu, most)


def _result(case: Case, done: dict[str, Any], wall: float, cpu: float, memory: float) -> Result:
    running = done["seconds"] - done.get("open_seconds", 0.0)
    return Result(
        case=case,
        fps=round(done["fps"] if case.kind == "live" else done.get("counted", case.frames) / running, 2),
        wall_seconds=round(wall, 6),
        outside_seconds=round(wall - running, 6),
        memory_mb=round(memory / 1e6, 1),
        cpu_seconds=round(cpu, 2),
        masks_removed=done["masks_removed"],
        engine=done["engine"],
        encoder=done.get("encoder", "none"),
        stages=done["stages"],
        work_seconds=round(done.get("work_seconds", 0.0), 3),
        dropped=done.get("dropped", 0),
        latency_ms=done.get("latency_ms", {}),
        latency_percentiles_ms=done.get("latency_percentiles_ms", []),
    )


class _MemoryWatch:
    """The most memory that a process and its descendants hold together, pages that they share counted once."""

    def __init__(self, pid: int) -> None:
        self._pid, self._most = pid, 0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def most(self) -> int:
        """In bytes, so far; ends the watch."""
        self._over.set()
        self._thread.join()
        return self._most

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            self._most = max(self._most, sum(_proportional_bytes(pid) for pid in family(self._pid)))


def family(pid: int) -> set[int]:
    """A process and all its descendants, from Linux's /proc."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            # The name in brackets may hold anything, blanks and brackets too.
            parents[int(entry.parent.name)] = int(entry.read_text().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            continue  # it has ended
    found = {pid}
    while more := {child for child, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _proportional_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return 0  # it has ended


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    system = platform.platform()
    return {"unmask": __version__, "processor": processor, "cores": usable_processors(), "system": system}
