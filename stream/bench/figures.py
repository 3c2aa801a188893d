"""What the results of a benchmark say together: plain arithmetic, tested by tests/test_bench.py."""

from collections.abc import Sequence

from unmask.stream.bench.run import Case, Result


def running_seconds(result: Result) -> float:
    """How long all stages were open."""
    return result.wall_seconds - result.outside_seconds


def work_ms(result: Result) -> float:
    """What the stages do for one frame together, milliseconds."""
    return sum(stage["mean"] for stage in result.stages.values())


def slowest_stage(result: Result) -> tuple[str, float]:
    """The stage that takes longest for a frame, and its milliseconds; "" and 0 where there are no stages."""
    return max(((name, stage["mean"]) for name, stage in result.stages.items()), key=lambda s: s[1], default=("", 0.0))


def overhead(piped: Result, direct: Result) -> float:
    """Processor time of workers, messages and slots, as a share of the stages' own work.

    Both are whole commands with the same start, so what the start costs falls out.
    """
    work = direct.work_seconds * piped.case.frames / direct.case.frames
    start = direct.cpu_seconds - direct.work_seconds
    return (piped.cpu_seconds - start - work) / work


def over_slowest(result: Result, start: Result, cores: int) -> float:
    """How much longer the run took than its slowest resource was busy: a stage, or all processor cores together.

    Args:
        result: of a run.
        start: of a run with one frame, whose processor time is not the run's.
        cores: of the machine.
    """
    stage = slowest_stage(result)[1] / 1000 * result.case.frames
    cpu = (result.cpu_seconds - start.cpu_seconds) / cores
    return running_seconds(result) / max(stage, cpu)


def findings(results: Sequence[Result], cores: int) -> dict[str, float]:
    """The figures that compare cases, by name, for those whose cases were measured. All are ratios."""
    found: dict[str, float] = {}
    one = _find(results, faces=1)
    four = _find(results, faces=4)
    direct = _find(results, kind="direct")
    start = next((r for r in results if r.case.frames == 1 and not r.case.cold), None)
    floor = _find(results, kind="floor", faces=1)
    if one is None:
        return found
    if direct is not None and direct.work_seconds > 0:
        found["overhead of pipeline and transport over the stages' own work"] = overhead(one, direct)
    if start is not None:
        found["wall over the slowest resource"] = over_slowest(one, start, cores)
    if four is not None:
        found["time of four faces over one"] = one.fps / four.fps
    if floor is not None:
        found["time over decode and encode alone"] = floor.fps / one.fps
    for kind, name in (("eager", "PyTorch loop"), ("onnx", "ONNX Runtime loop"), ("telea", "Telea loop")):
        baseline = _find(results, kind=kind)
        if baseline is not None:
            found[f"times as fast as the {name}"] = one.fps / baseline.fps
    return {name: round(value, 3) for name, value in found.items()}


def _find(results: Sequence[Result], *, kind: str = "video", faces: int = 1) -> Result | None:
    """The first plain case of a kind at 720p."""

    def fits(case: Case) -> bool:
        plain = not (case.processes or case.cold or case.codec) and case.frames > 1
        return plain and case.kind == kind and case.faces == faces and case.lines == 720

    return next((result for result in results if fits(result.case)), None)
