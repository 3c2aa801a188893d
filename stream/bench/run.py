"""Runs `unmask video` on clips of many sizes, in a process of its own each time, and reads what it reports.

What the timer covers: `wall` is the whole command, from its start to its end; `fps` is frames over the time in which
the pipeline ran with all stages open, decoding and encoding included; stages are milliseconds of their own work per
frame, waiting for processor time included, waiting for frames not. Memory is the largest resident set of the process.
"""

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec

from unmask import __version__
from unmask.errors import UnmaskError
from unmask.stream.bench.clip import write_clip

SIZES: Final = {480: (854, 480), 720: (1280, 720), 1080: (1920, 1080), 2160: (3840, 2160)}
_FLOOR: Final = "import sys; from unmask.stream.bench.run import floor; floor(sys.argv[1], sys.argv[2], sys.argv[3])"


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """One measurement.

    Attributes:
        name: for the table.
        lines: height of the picture in px: 480, 720, 1080 or 2160.
        faces: masked faces in each frame.
        frames: length of the clip.
        processes: a process per stage instead of a thread.
        cold: with no compiled networks in the cache.
        floor: decode and encode alone, nothing between them.
    """

    name: str
    lines: int = 720
    faces: int = 1
    frames: int = 150
    processes: bool = False
    cold: bool = False
    floor: bool = False


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a case gave.

    Attributes:
        case: which.
        fps: frames per second while the pipeline ran, opening not counted.
        wall_seconds: of the whole command.
        outside_seconds: of these, what was not spent with all stages open: start, loading networks, closing.
        memory_mb: largest resident set of the process, in MB of 10^6 bytes; children not counted.
        cpu_seconds: processor time of the command.
        masks_removed: to see that the work was done.
        engine, encoder: what was used.
        stages: per stage, milliseconds per frame: mean, p50, p95, p99.
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


def quick_cases() -> tuple[Case, ...]:
    """About two minutes on two processor cores."""
    return (
        Case(name="start, networks not compiled yet", frames=1, cold=True),
        Case(name="start, one frame", frames=1),
        Case(name="decode and encode alone", floor=True),
        Case(name="no face", faces=0),
        Case(name="one face"),
        Case(name="four faces", faces=4, frames=100),
        Case(name="one face, a process per stage", processes=True),
        Case(name="one face", lines=1080, frames=100),
    )


def full_cases() -> tuple[Case, ...]:
    """Every size with every number of faces, and each size's floor."""
    sweep = [
        Case(name=f"{faces} faces", lines=lines, faces=faces, frames=100)
        for lines in SIZES
        for faces in (0, 1, 2, 4, 8)
    ]
    floors = [Case(name="decode and encode alone", lines=lines, frames=100, floor=True) for lines in SIZES]
    return (*quick_cases(), *floors, *sweep)


def measure(cases: Sequence[Case], device: str, started: Callable[[Case], None]) -> Iterator[Result]:
    """Run cases one after the other, each on a clip made for it.

    Args:
        cases: what to measure.
        device: "auto", "cpu", "cuda" or "cuda:N".
        started: is told before each.

    Raises:
        UnmaskError: a run failed.
    """
    with tempfile.TemporaryDirectory(prefix="unmask-bench-") as name:
        folder = Path(name)
        for case in cases:
            started(case)
            width, height = SIZES[case.lines]
            clip = folder / f"{case.lines}-{case.faces}-{case.frames}.mp4"
            if not clip.exists():
                write_clip(clip, width, height, case.faces, case.frames)
            yield _run(case, clip, folder, device)


def _run(case: Case, clip: Path, folder: Path, device: str) -> Result:
    output, report = folder / "out.mp4", folder / "report.json"
    if case.floor:
        command = [sys.executable, "-c", _FLOOR, str(clip), str(output), str(report)]
    else:
        command = [sys.executable, "-m", "unmask.cli", "video", str(clip), "-o", str(output), "--report", str(report)]
        command += ["--overwrite", "--quiet", "--device", device] + ["--processes"] * case.processes
    environment = dict(os.environ)
    if case.cold:
        environment["UNMASK_CACHE"] = tempfile.mkdtemp(dir=folder)
    started = time.perf_counter()
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read().decode(errors="replace")
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    wall = time.perf_counter() - started
    process.stderr.close()
    if process.returncode:
        raise UnmaskError(f"the benchmark '{case.name}' failed: {(errors.strip().splitlines() or ['no message'])[-1]}")
    done = json.loads(report.read_text())
    running = done["seconds"] - done["open_seconds"]
    return Result(
        case=case,
        fps=round(case.frames / running, 2),
        wall_seconds=round(wall, 6),
        outside_seconds=round(wall - running, 6),
        memory_mb=round(usage.ru_maxrss * 1024 / 1e6, 1),
        cpu_seconds=round(usage.ru_utime + usage.ru_stime, 2),
        masks_removed=done["masks_removed"],
        engine=done["engine"],
        encoder=done["encoder"],
        stages=done["stages"],
    )


def floor(clip: str, output: str, report: str) -> None:
    """Decode a clip and encode it again with the pipeline's own ends, and write the report of it."""
    from unmask.stream.encoders import EncodeOptions
    from unmask.stream.media import probe
    from unmask.stream.stages.decode import Decode
    from unmask.stream.stages.encode import Encode
    from unmask.stream.supervisor import run

    source = probe(Path(clip))
    Path(output).unlink(missing_ok=True)
    result = run((Decode(source), Encode(Path(output), source, EncodeOptions())), source.layout)
    stages = {
        name: {"mean": t.mean_ms, "p50": t.p50_ms, "p95": t.p95_ms, "p99": t.p99_ms}
        for name, t in result.stages.items()
    }
    figures = {
        "seconds": result.wall_seconds,
        "open_seconds": result.open_seconds,
        "masks_removed": 0,
        "engine": "none",
        "encoder": result.summaries["encode"]["encoder"],
        "stages": stages,
    }
    Path(report).write_text(json.dumps(figures))


def machine() -> dict[str, str | int]:
    """What the figures were measured on."""
    processor = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        processor = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return {"unmask": __version__, "processor": processor, "cores": usable, "system": platform.platform()}
