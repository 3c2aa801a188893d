"""`unmask bench`: how fast this machine takes masks off, measured with the program as users run it."""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from unmask.errors import UnmaskError, UserError
from unmask.options import DeviceOption, EngineOption
from unmask.progress import say

if TYPE_CHECKING:
    from unmask.stream.bench.run import Case, Result


def bench(
    full: Annotated[bool, typer.Option("--full", help="480p to 4K with 0 to 8 faces; takes long.")] = False,
    device: DeviceOption = "auto",
    engine: EngineOption = "auto",
    report: Annotated[Path | None, typer.Option(metavar="FILE.json", help="Write all figures as JSON.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep what the report already holds, and measure the rest.")
    ] = False,
    plots: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Draw stages.png, cost.png and latency.png (needs Matplotlib)."),
    ] = None,
) -> None:
    """Measure speed and memory on this machine, in about two minutes.

    Clips with masked faces are made on the spot, and `unmask video` is run on each in a process of its own. `fps` is
    file to file with everything loaded; `outside` is what a command takes besides: start, loading networks, closing.
    `work` is the sum of what the stages do for one frame, which several cores share. "Decode and encode alone" is the
    floor: no face is looked for. The loops are what people write without unmask, on the same clip.

    Let nothing else run meanwhile.
    """
    from unmask.models.engine import choose
    from unmask.stream.bench.figures import findings
    from unmask.stream.bench.run import full_cases, machine, measure, quick_cases

    choose(device, engine)
    if report is not None and report.suffix.lower() != ".json":
        raise UserError(f"{report}: a report must be named FILE.json")
    if report is not None and not report.absolute().parent.is_dir():
        raise UserError(f"{report}: its folder does not exist; make it first")
    about = machine()
    print(", ".join(f"{name}: {value}" for name, value in about.items()))
    cases = full_cases() if full else quick_cases()
    results = _earlier(report, about, cases) if resume else []
    done = {result.case for result in results}
    failed: list[str] = []
    for result in measure([case for case in cases if case not in done], device, engine, _announce, say, failed.append):
        results.append(result)
        if report is not None:  # after each case: what was measured is not lost where the rest is cut short
            _write(report, about, results, findings(results, int(about["cores"])))
    print(table(results))
    for name, value in findings(results, int(about["cores"])).items():
        print(f"{name}: {value:.2f}")
    if plots is not None:
        from unmask.stream.bench.plots import draw

        for path in draw(results, plots):
            print(path)
    if failed:
        raise UnmaskError("; ".join(failed))


def _earlier(report: Path | None, about: dict[str, str | int], cases: "Sequence[Case]") -> "list[Result]":
    """The results of these cases that a report holds.

    Raises:
        UserError: there is none to read, or it is of another machine or version.
    """
    import msgspec

    from unmask.stream.bench.run import Result

    if report is None:
        raise UserError("--resume: name the report that is to be gone on with, by --report FILE.json")
    if not report.exists():
        return []
    try:
        known = msgspec.json.decode(report.read_bytes())
        results = msgspec.convert(known["results"], list[Result])
    except (OSError, KeyError, TypeError, msgspec.MsgspecError) as error:
        raise UserError(f"{report}: no report of `unmask bench`; name another") from error
    if known.get("machine") != about:
        raise UserError(f"{report}: measured on another machine or version; name another, or leave --resume out")
    return [result for result in results if result.case in cases]


def _announce(case: "Case") -> None:
    say(f"measuring {case.lines}p, {case.name}")


def table(results: "Sequence[Result]") -> str:
    """The figures as text, a row for each case."""
    from unmask.stream.bench.figures import slowest_stage, work_ms

    rows = [("case", "fps", "wall s", "outside s", "memory MB", "cpu s", "masks", "work ms, slowest stage")]
    for r in results:
        name, slowest = slowest_stage(r)
        work = f"{work_ms(r):.1f}, {name} {slowest:.1f}" if r.stages else "-"
        if r.latency_ms:
            work = "latency p50 {p50:.0f}, p95 {p95:.0f}, p99 {p99:.0f}".format(**r.latency_ms)
        fps = f"{r.fps:.1f}" if r.case.frames > 1 else "-"
        start = (f"{r.case.lines}p, {r.case.name}", fps, f"{r.wall_seconds:.2f}", f"{r.outside_seconds:.2f}")
        rows.append((*start, f"{r.memory_mb:.0f}", f"{r.cpu_seconds:.1f}", str(r.masks_removed), work))
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = []
    for row in rows:
        first = row[0].ljust(widths[0])
        lines.append("  ".join((first, *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)))))
    return "\n".join(lines)


def _write(report: Path, about: dict[str, str | int], results: "Sequence[Result]", compared: dict[str, float]) -> None:
    import msgspec

    command = shlex.join(["unmask", *sys.argv[1:]])
    data = msgspec.json.encode({"machine": about, "command": command, "compared": compared, "results": results})
    report.write_bytes(msgspec.json.format(data, indent=2) + b"\n")
