"""The benchmarks measure what they say, on clips with as many masked faces as they say."""

import importlib.util
import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import av
import numpy as np
import pytest
from fake_tensorrt import FakeDevice
from typer.testing import CliRunner

from unmask.bench_cli import table
from unmask.cli import app
from unmask.errors import UnmaskError, UserError
from unmask.models.engines import device
from unmask.stream.bench import inside, run
from unmask.stream.bench.clip import write_clip
from unmask.stream.bench.figures import (
    findings,
    over_slowest,
    overhead,
    running_seconds,
    slowest_stage,
    work_ms,
)
from unmask.stream.bench.plots import draw
from unmask.stream.bench.run import Case, Result, family, full_cases, measure, quick_cases
from unmask.stream.frame import Frame, Layout
from unmask.stream.stage import Context, Stage
from unmask.stream.stills import crops_of_faces


@pytest.mark.parametrize("faces", [0, 1, 4])
def test_clip_holds_the_faces_it_should(faces: int, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 854, 480, faces, 3)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    assert frames[0].shape == (480, 854, 3)
    found = len(crops_of_faces(np.asarray(frames[0], np.uint8)))
    # x264's pictures differ a little with the number of cores, and among many faces one more may be seen.
    assert faces <= found <= faces + (faces > 1)


def measured(cases: Sequence[Case]) -> list[Result]:
    left_out: list[str] = []
    results = list(measure(cases, "cpu", "auto", lambda case: None, left_out.append, left_out.append))
    assert left_out == []
    return results


def test_cases_are_measured_with_the_program_itself(tmp_path: Path) -> None:
    cases = (
        Case(name="one face", lines=480, frames=4),
        Case(name="no face", lines=480, faces=0, frames=4),
        Case(name="decode and encode alone", kind="floor", lines=480, frames=4),
        Case(name="stages called directly", kind="direct", lines=480, frames=4),
    )
    results = measured(cases)
    one, none, floor, direct = results
    assert [result.case for result in results] == list(cases)
    assert one.masks_removed == direct.masks_removed == 4
    assert none.masks_removed == floor.masks_removed == 0
    assert list(one.stages) == list(direct.stages) == ["decode", "track", "segment", "inpaint", "smooth", "encode"]
    assert list(floor.stages) == ["decode", "encode"]
    assert 0 < direct.work_seconds < direct.cpu_seconds
    for result in results:
        assert 0 < result.outside_seconds < result.wall_seconds
        assert result.fps == pytest.approx(4 / running_seconds(result), rel=0.01)
        assert 50 < result.memory_mb < 2000
        assert result.cpu_seconds > 0
    text = table(results).splitlines()
    assert len(text) == 5
    assert len({len(line) for line in text}) == 1
    assert {path.name for path in draw(results, tmp_path / "plots")} == {"stages.png", "cost.png"}


def test_loops_that_people_write_do_the_same_work_in_the_same_run() -> None:
    cases = [Case(name=kind, kind=kind, lines=480, frames=4) for kind in ("eager", "onnx", "telea")]  # type: ignore[arg-type]
    for result in measured(cases):
        assert result.masks_removed == 4
        assert result.fps == pytest.approx(3 / running_seconds(result), rel=0.01)


def test_live_latency_comes_with_its_distribution(tmp_path: Path) -> None:
    (live,) = measured([Case(name="live", kind="live", lines=480, frames=40)])
    assert 0 < live.latency_ms["p50"] <= live.latency_ms["p95"] <= live.latency_ms["p99"]
    assert len(live.latency_percentiles_ms) == 101
    assert live.latency_percentiles_ms == sorted(live.latency_percentiles_ms)
    assert live.latency_percentiles_ms[50] == pytest.approx(live.latency_ms["p50"])
    assert "latency p50" in table([live])
    assert (tmp_path / "latency.png") in draw([live], tmp_path)


def test_memory_of_processes_counts_all_of_them_and_codecs_are_chosen() -> None:
    processes, hevc = measured(
        [
            Case(name="processes", lines=480, frames=10, processes=True, codec="h264"),
            Case(name="hevc", lines=480, frames=4, codec="hevc"),
        ]
    )
    assert (processes.encoder, hevc.encoder) == ("libx264", "libx265")
    assert processes.memory_mb > 300


def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run.importlib.util, "find_spec", lambda name: None)
    left_out: list[str] = []
    cases = [Case(name="PyTorch loop", kind="eager")]
    assert list(measure(cases, "cpu", "auto", lambda case: None, left_out.append, left_out.append)) == []
    assert left_out == ["PyTorch loop: left out, torch and safetensors not installed"]


def test_the_family_of_a_process_holds_its_grandchildren() -> None:
    code = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '30']);"
        "print(p.pid, flush=True); sys.stdin.read(); p.kill()"
    )
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdin=pipe, stdout=pipe, text=True) as child:
        assert child.stdout is not None
        grandchild = int(child.stdout.readline())
        assert {os.getpid(), child.pid, grandchild} <= family(os.getpid())
        assert family(child.pid) == {child.pid, grandchild}
        child.communicate("")


def test_a_failed_run_is_an_error_with_its_line_after_all_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, width: int, height: int, faces: int, frames: int) -> None:
        write_clip(path, width, height, faces, frames) if frames == 2 else path.write_bytes(b"no video")

    monkeypatch.setattr(run, "write_clip", write)
    cases = (Case(name="broken", lines=480, frames=1), Case(name="sound", kind="floor", lines=480, frames=2))
    monkeypatch.setattr(run, "quick_cases", lambda: cases)
    done = CliRunner().invoke(app, ["bench", "--device", "cpu", "--report", str(tmp_path / "r.json")])
    assert isinstance(done.exception, UnmaskError)
    assert str(done.exception).startswith("the benchmark 'broken' failed: unmask")
    names = [case["case"]["name"] for case in json.loads((tmp_path / "r.json").read_text())["results"]]
    assert names == ["sound"]


def test_a_report_is_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = [Case(name=name, kind="floor", lines=480, frames=2) for name in ("first", "second")]
    report = tmp_path / "r.json"
    announced: list[str] = []
    monkeypatch.setattr("unmask.bench_cli._announce", lambda case: announced.append(case.name))
    for known in (cases[:1], cases):
        monkeypatch.setattr(run, "quick_cases", lambda known=known: tuple(known))
        command = ["bench", "--device", "cpu", "--report", str(report), "--resume"]
        assert CliRunner().invoke(app, command).exit_code == 0
    assert announced == ["first", "second"]
    assert [one["case"]["name"] for one in json.loads(report.read_text())["results"]] == ["first", "second"]
    report.write_text(report.read_text().replace('"cores"', '"kernels"'))
    again = CliRunner().invoke(app, ["bench", "--report", str(report), "--resume"])
    assert isinstance(again.exception, UserError)
    assert "another machine" in str(again.exception)


def test_every_case_has_a_name_of_its_own() -> None:
    for cases in (quick_cases(), full_cases()):
        assert len(set(cases)) == len(cases)


def test_command_prints_a_table_and_writes_json(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "quick_cases", lambda: (Case(name="one face", lines=480, frames=2),))
    result = CliRunner().invoke(app, ["bench", "--device", "cpu", "--report", str(tmp_path / "r.json")])
    assert result.exit_code == 0, result.output
    assert "480p, one face" in result.stdout
    data = json.loads((tmp_path / "r.json").read_text())
    assert data["results"][0]["masks_removed"] == 2
    assert data["machine"]["cores"] >= 1


def test_report_in_a_missing_folder_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["bench", "--report", str(tmp_path / "none" / "r.json")])
    assert isinstance(result.exception, UserError)


def test_report_of_another_suffix_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "quick_cases", lambda: ())
    result = CliRunner().invoke(app, ["bench", "--device", "cpu", "--report", str(tmp_path / "bench.txt")])
    assert isinstance(result.exception, UserError)
    assert "must be named FILE.json" in str(result.exception)


# --- arithmetic -------------------------------------------------------------------------------------------------------


def result(name: str = "x", *, stages: dict[str, float] | None = None, **figures: object) -> Result:
    """A result with stages of so many milliseconds; the rest as given."""
    case = Case(name=name, **{key: figures.pop(key) for key in list(figures) if key in Case.__struct_fields__})  # type: ignore[arg-type]
    known: dict[str, object] = {
        "fps": 10.0, "wall_seconds": 2.0, "outside_seconds": 1.0, "memory_mb": 100.0, "cpu_seconds": 3.0,
        "masks_removed": 7, "engine": "e", "encoder": "c",
        "stages": {key: dict.fromkeys(("mean", "p50", "p95", "p99"), value) for key, value in (stages or {}).items()},
    }  # fmt: skip
    return Result(case=case, **(known | figures))  # type: ignore[arg-type]


def test_work_and_slowest_stage_are_sums_and_maxima() -> None:
    one = result(stages={"decode": 5.0, "track": 7.5})
    assert (work_ms(one), slowest_stage(one)) == (12.5, ("track", 7.5))
    assert table([one]).splitlines()[1].endswith("12.5, track 7.5")


def test_overhead_is_what_the_pipeline_takes_beyond_the_stages_work() -> None:
    # Two seconds to start, 30 ms of work per frame, and 3 ms of messages per frame in the pipeline.
    direct = result(kind="direct", frames=100, cpu_seconds=2 + 100 * 0.030, work_seconds=100 * 0.030)
    piped = result(frames=200, cpu_seconds=2 + 200 * 0.033)
    assert overhead(piped, direct) == pytest.approx(0.1)


@pytest.mark.parametrize(("stage_ms", "cpu_seconds", "expected"), [(8.0, 11.0, 1.25), (5.0, 17.0, 1.25)])
def test_wall_is_compared_with_the_slowest_stage_or_with_all_cores(
    stage_ms: float, cpu_seconds: float, expected: float
) -> None:
    """Ten seconds for 1000 frames on two cores: a stage busy for 8 s, or cores busy for 16 s together."""
    one = result(frames=1000, wall_seconds=11.0, cpu_seconds=cpu_seconds, stages={"a": 1.0, "b": stage_ms})
    start = result(frames=1, cpu_seconds=1.0)
    assert over_slowest(one, start, 2) == pytest.approx(expected)


def test_comparisons_are_made_of_the_cases_that_belong_together() -> None:
    results = [
        result("cold", frames=1, cold=True, cpu_seconds=9.0),
        result("start", frames=1, cpu_seconds=1.0),
        result("floor", kind="floor", fps=120.0),
        result("one", fps=60.0, frames=100, wall_seconds=2.7, stages={"a": 10.0}, cpu_seconds=4.0),
        result("one, processes", fps=50.0, processes=True),
        result("one, 1080p", fps=30.0, lines=1080),
        result("four", faces=4, fps=30.0),
        result("loop", kind="eager", fps=15.0),
        result("direct", kind="direct", frames=100, cpu_seconds=3.6, work_seconds=2.6),
    ]
    assert findings(results, cores=2) == {
        "overhead of pipeline and transport over the stages' own work": round((4.0 - 3.6) / 2.6, 3),
        "wall over the slowest resource": round(1.7 / 1.5, 3),
        "time of four faces over one": 2.0,
        "time over decode and encode alone": 2.0,
        "times as fast as the PyTorch loop": 4.0,
    }
    assert findings(results[:3], cores=2) == {}


def test_known_sleeps_give_known_percentiles() -> None:
    """A stage that sleeps 2 ms, and 20 ms at every tenth frame, measured by the loop of the benchmark itself."""

    class Sleeper(Stage):
        name = "sleeper"

        def process(self, frame: Frame) -> list[Frame]:
            time.sleep(0.020 if frame.index % 10 == 9 else 0.002)
            return [frame] if frame.index < 60 else []

    durations = inside._carry([Sleeper()], Context(Layout(16, 16), 1))
    timing = durations["sleeper"].timing()
    assert timing.count == 60
    assert 2.0 <= timing.p50_ms < 10.0  # sleeps take longer on a busy machine, never less
    assert timing.p95_ms >= 20.0
    assert timing.mean_ms >= 0.9 * 2.0 + 0.1 * 20.0
    ordered = durations["sleeper"].percentiles_ms()
    assert ordered[50] == pytest.approx(timing.p50_ms, abs=0.001)
    assert ordered[100] >= ordered[95] >= 20.0


# --- benchmarks/gpu.py ------------------------------------------------------------------------------------------------

GPU_SCRIPT = Path(__file__).resolve().parents[1] / "benchmarks" / "gpu.py"


@pytest.fixture
def gpu_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmarks_gpu", GPU_SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_gpu_script_runs_where_tensorrt_alone_is_installed(tmp_path: Path) -> None:
    """Not that it is: it is what the others' absence leaves to be measured."""
    np.savez(tmp_path / "crops.npz", nothing=np.zeros(1, np.uint8))
    code = (
        "import runpy, sys; sys.argv = sys.argv[1:];"
        "sys.modules.update(dict.fromkeys(['openvino', 'torch', 'cv2', 'av']));"  # None: cannot be found or imported
        "runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    options = ["--device", "cpu", "--reference", str(tmp_path / "crops.npz"), "--report", str(tmp_path / "report.json")]
    command = [sys.executable, "-c", code, str(GPU_SCRIPT), *options]
    subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    found = json.loads((tmp_path / "report.json").read_text())
    assert [name.partition(", ")[2] for name in found["networks"]] == ["Torch-TensorRT"] * 2 + ["TensorRT"] * 2 + [
        "OpenVINO"
    ] * 2
    assert all(list(figures) == ["skipped"] for figures in found["networks"].values())


def gpu_run(script: ModuleType, report: Path, on: str = "cpu") -> dict[str, Any]:
    script.run_all(Namespace(device=on, report=report, reference=None, repeats=1, frames=2))
    found: dict[str, Any] = json.loads(report.read_text())
    return found


def test_one_fault_does_not_lose_the_other_figures_of_a_gpu(
    gpu_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("what nobody thought of\nand more")

    def pipeline(*_: object) -> Iterator[tuple[str, dict[str, float]]]:
        yield "up to the encoder", {"fps": 1.0}
        broken()

    monkeypatch.setattr(gpu_script, "reference", lambda file: {})
    monkeypatch.setattr(gpu_script, "engines", lambda: iter([("broken", broken), ("whole", lambda *_: None)]))
    monkeypatch.setattr(gpu_script, "measure_network", lambda *_: {"1": {"p50_ms": 1.0}})
    monkeypatch.setattr(gpu_script, "measure_frames", broken)
    monkeypatch.setattr(gpu_script, "measure_pipeline", pipeline)
    found = gpu_run(gpu_script, tmp_path / "report.json")
    failed = {"failed": r"KeyError: 'what nobody thought of\nand more'"}
    assert found["networks"]["inpainter, broken"] == failed
    assert found["networks"]["inpainter, whole"]["1"] == {"p50_ms": 1.0}
    assert found["frames"] == failed
    assert found["pipeline"] == {"up to the encoder": {"fps": 1.0}, "the rest": failed}
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_what_was_measured_on_a_gpu_is_written_at_once(
    gpu_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def networks(*_: object) -> Iterator[tuple[str, dict[str, float]]]:
        yield "segmenter, TensorRT", {"1": 0.5}
        raise KeyboardInterrupt

    monkeypatch.setattr(gpu_script, "reference", lambda file: {})
    monkeypatch.setattr(gpu_script, "measure_networks", networks)
    with pytest.raises(KeyboardInterrupt):
        gpu_run(gpu_script, tmp_path / "report.json")
    assert json.loads((tmp_path / "report.json").read_text())["networks"] == {"segmenter, TensorRT": {"1": 0.5}}


def test_the_gpu_that_is_measured_is_the_current_one(
    gpu_script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyTorch's streams and graphs are those of the current GPU, whatever the tensors lie on."""
    gpu, numbers = FakeDevice(), []

    def networks(*_: object) -> Iterator[tuple[str, dict[str, bool]]]:
        yield "current", {"there": gpu.calls == ["activate"]}

    monkeypatch.setattr(device, "open_device", lambda number: numbers.append(number) or gpu)
    monkeypatch.setattr(gpu_script, "reference", lambda file: {})
    monkeypatch.setattr(gpu_script, "measure_networks", networks)
    monkeypatch.setattr(gpu_script, "has", lambda *_: False)
    found = gpu_run(gpu_script, tmp_path / "report.json", "cuda:1")
    assert numbers == [1]
    assert found["machine"]["gpu"] == "Fake GPU, compute capability 9.0"
    assert found["networks"] == {"current": {"there": True}}
