"""Pictures of benchmark results, drawn with Matplotlib where it is installed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unmask.errors import UserError
from unmask.stream.bench.run import Result


def draw(results: Sequence[Result], folder: Path) -> list[Path]:
    """Write `stages.png` (milliseconds per frame and stage) and `fps.png` (frames per second by size and faces).

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
    return [_stages(pyplot, results, folder / "stages.png"), _rates(pyplot, results, folder / "fps.png")]


def label(result: Result) -> str:
    """What a row of a table or plot is called."""
    return f"{result.case.lines}p, {result.case.name}"


def _stages(pyplot: Any, results: Sequence[Result], path: Path) -> Path:
    figure, axes = pyplot.subplots(figsize=(9, 0.5 * len(results) + 1.5), layout="constrained")
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


def _rates(pyplot: Any, results: Sequence[Result], path: Path) -> Path:
    figure, axes = pyplot.subplots(figsize=(7, 4), layout="constrained")
    shown = [r for r in results if r.case.frames > 1 and not r.case.processes]
    for lines in sorted({r.case.lines for r in shown}):
        points = sorted({r.case.faces: r.fps for r in shown if r.case.lines == lines and not r.case.floor}.items())
        axes.plot([faces for faces, _ in points], [fps for _, fps in points], marker="o", label=f"{lines}p")
        for floor in (r.fps for r in shown if r.case.lines == lines and r.case.floor):
            axes.axhline(floor, linestyle=":", label=f"{lines}p, decode and encode alone")
    axes.set_xlabel("masked faces in the frame")
    axes.set_ylabel("frames per second, file to file")
    axes.set_yscale("log")
    axes.legend()
    figure.savefig(path, dpi=120)
    return path
