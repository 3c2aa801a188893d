"""One report of several runs: curves, tables and samples in one HTML file that needs nothing beside it."""

import base64
import html
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from unmask.errors import UserError
from unmask.train.files import json_lines_of, json_of

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0}td,th{border:1px solid #ccc;padding:.3em .7em;text-align:right}
td:first-child,th:first-child{text-align:left}td.best{font-weight:bold;background:#eaf6ea}img{max-width:100%}
svg{max-width:100%;height:auto}h2{margin-top:2em}"""


_LOWER_IS_BETTER: Final = frozenset(
    f"validation_{name}" for name in ("error", "hidden", "anchors", "face", "box", "kind", "points")
)
"""Distances and losses, of landmarker and detector."""
_NEAR_ONE_IS_BETTER: Final = frozenset({"validation_sharpness"})
"""Shares of what the truth has. Of all other figures the higher is better, as of each `Trainer.figure`."""


@dataclass(frozen=True, slots=True)
class RunRecord:
    """What a run left behind.

    Attributes:
        name: of its folder.
        recipe: as it ran.
        log: a row for each report.
        sample: the last sheet of samples, None where there is none.
    """

    name: str
    recipe: dict[str, Any]
    log: list[dict[str, float]]
    sample: Path | None

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Raises UserError where the folder is not of a run, or its files are damaged."""
        try:
            recipe, log = json_of(folder / "recipe.json"), json_lines_of(folder / "log.jsonl")
        except OSError as error:
            raise UserError(f"'{folder}' is no training run: {Path(str(error.filename)).name} is missing") from error
        samples = sorted((folder / "samples").glob("*.jpg"))
        return cls(folder.resolve().name, recipe, log, samples[-1] if samples else None)

    def curve(self, figure: str) -> list[tuple[float, float]]:
        """(step, value) of a figure."""
        return [(row["step"], row[figure]) for row in self.log if figure in row]


def write_report(folders: Sequence[Path], out: Path) -> None:
    """Compare runs.

    Args:
        folders: of the runs.
        out: HTML file to write.

    Raises:
        UserError: a folder is not of a run.
    """
    runs = _named_apart([RunRecord.read(folder) for folder in folders], folders)
    figures = _validated(runs)
    losses = dict.fromkeys(k for run in runs for row in run.log for k in row if k not in figures and k != "step")
    parts = [
        f"<h1>{len(runs)} runs</h1>",
        "<h2>Figures of the last validation</h2>",
        _figures_table(runs, figures),
        "<h2>What differs</h2>",
        _differences_table(runs),
        "<h2>Curves</h2>",
        *(_plot(runs, figure) for figure in (*figures, *losses)),
        "<h2>Samples</h2>",
        *(_sample(run) for run in runs if run.sample is not None),
    ]
    page = f"<!doctype html><meta charset=utf-8><title>Runs compared</title><style>{_STYLE}</style>{''.join(parts)}\n"
    out.write_text(page)


def write_curves(folders: Sequence[Path], out: Path) -> None:
    """Draw the validation figures of runs over their steps, side by side.

    Args:
        folders: of the runs.
        out: SVG or PNG file to write.

    Raises:
        UserError: a folder is not of a run, or the file cannot be written.
    """
    from matplotlib.figure import Figure

    runs = _named_apart([RunRecord.read(folder) for folder in folders], folders)
    figures = _validated(runs)
    drawing = Figure(figsize=(4.5 * len(figures) + 2, 3.4), layout="constrained")
    for axes, figure in zip(drawing.subplots(1, len(figures), squeeze=False)[0], figures, strict=True):
        _draw(axes, runs, figure)
    lines = {str(line.get_label()): line for axes in drawing.axes for line in axes.get_lines()}
    drawing.legend(list(lines.values()), list(lines), loc="outside right upper")
    try:
        drawing.savefig(out, dpi=100)
    except OSError as error:
        raise UserError(f"cannot write '{out}': {error.strerror}") from error


def _validated(runs: Sequence[RunRecord]) -> list[str]:
    """The figures of the validations of runs."""
    return list(dict.fromkeys(k for run in runs for row in run.log for k in row if k.startswith("validation_")))


def _named_apart(runs: list[RunRecord], folders: Sequence[Path]) -> list[RunRecord]:
    """Runs of the same name get the folder before it too."""
    names = [run.name for run in runs]
    return [
        replace(run, name=f"{folder.resolve().parent.name}/{run.name}") if names.count(run.name) > 1 else run
        for run, folder in zip(runs, folders, strict=True)
    ]


def best_of(figure: str, values: Sequence[float]) -> float:
    """The best of the values of a figure; those that are no number, where nothing could be measured, do not count."""
    known = [value for value in values if not math.isnan(value)]
    if figure in _NEAR_ONE_IS_BETTER:
        return min(known, key=lambda value: abs(value - 1), default=math.nan)
    return (min if figure in _LOWER_IS_BETTER else max)(known, default=math.nan)


def _figures_table(runs: Sequence[RunRecord], figures: Sequence[str]) -> str:
    last = {run.name: {f: run.curve(f)[-1][1] for f in figures if run.curve(f)} for run in runs}
    best = {f: best_of(f, [row[f] for row in last.values() if f in row]) for f in figures}
    head = "".join(f"<th>{html.escape(f.removeprefix('validation_'))}</th>" for f in figures)
    rows = []
    for run in runs:
        cells = [
            f"<td class={'best' if last[run.name][f] == best[f] else 'other'}>{last[run.name][f]:.4f}</td>"
            if f in last[run.name]
            else "<td></td>"
            for f in figures
        ]
        steps = int(run.log[-1]["step"]) if run.log else 0
        rows.append(f"<tr><td>{html.escape(run.name)}</td><td>{steps}</td>{''.join(cells)}</tr>")
    return f"<table><tr><th>run</th><th>steps</th>{head}</tr>{''.join(rows)}</table>"


def _differences_table(runs: Sequence[RunRecord]) -> str:
    """The keys whose values are not the same in all recipes."""
    flat = [_flat(run.recipe) for run in runs]
    keys = [k for k in dict.fromkeys(k for row in flat for k in row) if k != "out"]
    keys = [k for k in keys if len({str(row.get(k)) for row in flat}) > 1]
    if not keys:
        return "<p>Nothing: the recipes are the same.</p>"
    head = "".join(f"<th>{html.escape(run.name)}</th>" for run in runs)
    rows = []
    for k in keys:
        cells = "".join(f"<td>{html.escape(str(row.get(k, '')))}</td>" for row in flat)
        rows.append(f"<tr><td>{html.escape(k)}</td>{cells}</tr>")
    return f"<table><tr><th>key</th>{head}</tr>{''.join(rows)}</table>"


def _flat(value: Any, place: str = "") -> dict[str, Any]:
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        return {k: v for name, x in pairs for k, v in _flat(x, f"{place}.{name}" if place else str(name)).items()}
    return {place: value}


def _plot(runs: Sequence[RunRecord], figure: str) -> str:
    """Curves of a figure as SVG."""
    from matplotlib.figure import Figure

    drawing = Figure(figsize=(8, 3), layout="constrained")
    axes = drawing.subplots()
    _draw(axes, runs, figure)
    axes.legend()
    picture = io.StringIO()
    drawing.savefig(picture, format="svg")
    return "<p>" + picture.getvalue()[picture.getvalue().index("<svg") :] + "</p>"


def _draw(axes: Any, runs: Sequence[RunRecord], figure: str) -> None:
    """A curve for each run that has the figure; a run has the same colour in all of them."""
    for number, run in enumerate(runs):
        if curve := run.curve(figure):
            marker = "." if len(curve) < 30 else None
            axes.plot(*zip(*curve, strict=True), label=run.name, marker=marker, color=f"C{number % 10}")
    axes.set_title(figure)
    axes.set_xlabel("step")
    axes.grid(alpha=0.3)


def _sample(run: RunRecord) -> str:
    assert run.sample is not None
    data = base64.b64encode(run.sample.read_bytes()).decode()
    return f"<h3>{html.escape(run.name)}</h3><img alt='samples' src='data:image/jpeg;base64,{data}'>"
