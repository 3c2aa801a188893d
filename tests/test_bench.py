"""The benchmarks measure what they say, on clips with as many masked faces as they say."""

import json
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from unmask.bench_cli import table
from unmask.cli import app
from unmask.errors import UnmaskError, UserError
from unmask.stream.bench import run
from unmask.stream.bench.clip import write_clip
from unmask.stream.bench.plots import draw
from unmask.stream.bench.run import Case, Result, full_cases, measure, quick_cases
from unmask.stream.stills import crops_of_faces


@pytest.mark.parametrize("faces", [0, 1, 4])
def test_clip_holds_the_faces_it_should(faces: int, tmp_path: Path) -> None:
    write_clip(tmp_path / "clip.mp4", 854, 480, faces, 3)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3
    assert frames[0].shape == (480, 854, 3)
    assert len(crops_of_faces(np.asarray(frames[0], np.uint8))) == faces


def test_cases_are_measured_with_the_program_itself(tmp_path: Path) -> None:
    cases = (
        Case(name="one face", lines=480, frames=4),
        Case(name="no face", lines=480, faces=0, frames=4),
        Case(name="decode and encode alone", lines=480, frames=4, floor=True),
    )
    announced: list[Case] = []
    one, none, floor = measure(cases, "cpu", announced.append)
    assert announced == list(cases)
    assert one.masks_removed == 4
    assert none.masks_removed == floor.masks_removed == 0
    assert list(one.stages) == ["decode", "track", "segment", "inpaint", "smooth", "encode"]
    assert list(floor.stages) == ["decode", "encode"]
    for result in (one, none, floor):
        assert 0 < result.outside_seconds < result.wall_seconds
        assert result.fps == pytest.approx(4 / (result.wall_seconds - result.outside_seconds), rel=0.01)
        assert 50 < result.memory_mb < 2000
    text = table([one, none, floor]).splitlines()
    assert len(text) == 4
    assert len({len(line) for line in text}) == 1
    assert {path.name for path in draw([one, none, floor], tmp_path / "plots")} == {"stages.png", "fps.png"}


def test_a_failed_run_is_an_error_with_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "write_clip", lambda path, *_: path.write_bytes(b"no video"))
    with pytest.raises(UnmaskError, match="'broken' failed: unmask"):
        list(measure([Case(name="broken", lines=480, frames=1)], "cpu", lambda case: None))


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


def test_work_and_slowest_stage_are_sums_and_maxima() -> None:
    stage = {"mean": 5.0, "p50": 5.0, "p95": 5.0, "p99": 5.0}
    result = Result(
        case=Case(name="x"), fps=10, wall_seconds=2, outside_seconds=1, memory_mb=100, cpu_seconds=3, masks_removed=7,
        engine="e", encoder="c", stages={"decode": stage, "track": stage | {"mean": 7.5}},
    )  # fmt: skip
    assert table([result]).splitlines()[1].endswith("12.5, track 7.5")
