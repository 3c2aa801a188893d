"""Pictures of benchmark results, drawn with Matplotlib where it is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.stream.bench.run import SIZES, Result


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write `stages.png` (work per frame and stage) and `cost.png` (time per frame by size and by faces) of files, and
    `latency.png` (its cumulative distribution) of live runs, where there are any.

    Raises:
        UserError: Matplotlib is missing, or the folder cannot be written to.
    """
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise UserError("plots need Matplotlib: pip install matplotlib") from error
    pyplot.switch_backend("agg")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
    live = [result for result in results if result.case.kind == "live"]
    others = [result for result in results if result.case.kind != "live" and result.stages]
    drawn = [_latencies(pyplot, live, folder / "latency.png")] if live else []
    if others:
        drawn += [_stages(pyplot, others, folder / "stages.png"), _costs(pyplot, others, folder / "cost.png")]
    return drawn


def label(result: Result) -> str:
    """What a row of a table or plot is called."""
    return f"{result.case.lines}p, {result.case.name}"


def _stages(pyplot: Any, results: Sequence[Result], path: Path) -> Path:
    figure, axes = pyplot.subplots(figsize=(9, 0.4 * len(results) + 1.5), layout="constrained")
    names = [name for result in results for name in result.stages]
    left = [0.0] * len(results)
    for name in dict.fromkeys(names):
        widths = [result.stages.get(name, {}).get("mean", 0.0) for result in results]
        axes.barh([label(r) for r in results], widths, left=left, label=name)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("milliseconds of work per frame, mean")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path


def _costs(pyplot: Any, results: Sequence[Result], path: Path) -> Path:
    """Milliseconds from frame to frame: against the picture's size, and against the number of faces."""
    figure, (by_size, by_faces) = pyplot.subplots(1, 2, figsize=(10, 4), layout="constrained", sharey=True)
    shown = [r for r in results if r.case.frames > 1 and not r.case.processes and not r.case.codec]
    videos = [r for r in shown if r.case.kind == "video"]
    for faces in sorted({r.case.faces for r in videos}):
        points = sorted({_megapixels(r): 1000 / r.fps for r in videos if r.case.faces == faces}.items())
        by_size.plot(*zip(*points, strict=True), marker="o", label=f"{faces} face{'' if faces == 1 else 's'}")
    floors = sorted({_megapixels(r): 1000 / r.fps for r in shown if r.case.kind == "floor"}.items())
    if floors:
        by_size.plot(*zip(*floors, strict=True), marker="x", linestyle=":", label="decode and encode alone")
    for lines in sorted({r.case.lines for r in videos}):
        points = sorted({r.case.faces: 1000 / r.fps for r in videos if r.case.lines == lines}.items())
        by_faces.plot(*zip(*points, strict=True), marker="o", label=f"{lines}p")
    by_size.set_xlabel("megapixels")
    by_faces.set_xlabel("masked faces in the frame")
    by_size.set_ylabel("milliseconds per frame, file to file")
    by_size.set_yscale("log")
    by_size.legend()
    by_faces.legend()
    figure.savefig(path, dpi=120)
    return path


def _megapixels(result: Result) -> float:
    width, height = SIZES[result.case.lines]
    return width * height / 1e6


def _latencies(pyplot: Any, results: Sequence[Result], path: Path) -> Path:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    for result in results:
        axes.plot(result.latency_percentiles_ms, [n / 100 for n in range(101)], label=label(result))
    axes.set_xlabel("milliseconds from the source's picture to the output")
    axes.set_ylabel("share of pictures")
    axes.set_xlim(left=0)
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
