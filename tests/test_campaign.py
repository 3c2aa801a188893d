"""Overfitting, cross-validation, tuning, comparison and evaluation, through the command line, on drawn faces."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

import cv2
import msgspec
import numpy as np
import pytest
import yaml
from training_faces import small_recipe
from typer.testing import CliRunner

from unmask.cli import app
from unmask.errors import UnmaskError, UserError
from unmask.train.compare import best_of
from unmask.train.detector import DetectorTrainer
from unmask.train.inpainter import PaintTrainer
from unmask.train.landmarker import LandmarkerTrainer
from unmask.train.registry import trainer_of
from unmask.train.segmenter import SegmentTrainer
from unmask.train.unmasker import UnmaskTrainer


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training") / "data"


def write_recipe(name: str, data: Path, folder: Path, *overrides: str, **more: Any) -> Path:
    """A small recipe as a file."""
    recipe = json.loads(msgspec.json.encode(small_recipe(name, data, folder / "run", *overrides))) | more
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def call(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.output


def test_a_segmenter_learns_a_few_pictures_by_heart(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe("segmenter", data, tmp_path, "sizes.width=8", "phases.3.lr=5e-3")
    output = call("overfit", recipe, "--pictures", "2", "--steps", "120")
    first, last = (float(output.split(word)[0].split()[-1]) for word in (" at first", " after"))
    assert last < 0.25 * first
    assert list((tmp_path / "run" / "overfit" / "samples").glob("*.jpg"))


def test_learning_by_heart_begins_anew_with_other_data(data: Path, tmp_path: Path) -> None:
    small_recipe("segmenter", data, tmp_path)
    shutil.copytree(data / "crops", tmp_path / "crops")
    recipe = write_recipe("segmenter", data, tmp_path)
    command = ("overfit", recipe, f"crops={tmp_path}/crops", "--pictures", "2", "--steps", "10")
    for value in (200, 100):
        np.save(tmp_path / "crops" / "crops.npy", np.full((8, 256, 256, 3), value, np.uint8))
        with pytest.raises(UnmaskError, match="did not learn"):
            call(*command)
    lines = (tmp_path / "run" / "overfit" / "log.jsonl").read_text().splitlines()
    assert len(lines) == 1, "nothing of the run before"
    call("train", recipe, "phases.0.steps=1", f"out={tmp_path}/mine/overfit")
    with pytest.raises(UserError, match="is a training run, which would be lost"):
        call(*command, f"out={tmp_path}/mine")
    assert (tmp_path / "mine" / "overfit" / "state.pt").exists()


def test_a_recipe_is_trained_from_the_command_line(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe("segmenter", data, tmp_path)
    store = (tmp_path / "elsewhere").as_uri()
    call("train", recipe, "phases.0.steps=2", "ema=0.5", "--tracking-uri", store)
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["ema"] == 0.5
    assert (tmp_path / "run" / "state.pt").exists()
    assert list((tmp_path / "elsewhere").rglob("metrics/validation_iou")), "and is recorded where it was told to"
    assert not (tmp_path / "mlruns").exists()


def test_a_network_that_cannot_learn_is_found_out(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe("segmenter", data, tmp_path, "optimizer={name: sgd, momentum: 0}", "clip=1e-9")
    with pytest.raises(UnmaskError, match="did not learn"):
        call("overfit", recipe, "--pictures", "2", "--steps", "10")


def test_progress_is_said(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("unmask.progress.LINE_EVERY_SECONDS", 0)
    output = call("train", write_recipe("segmenter", data, tmp_path), "phases.0.steps=2")
    assert "steps: 1 of 2\nsteps: 2 of 2\n" in output


@pytest.mark.parametrize("command", ["overfit", "crossval", "tune"])
def test_torchrun_is_for_training(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="run this command without it"):
        call(command, "segmenter")


def test_each_fold_is_validated_once(data: Path, tmp_path: Path) -> None:
    recipe = write_recipe("segmenter", data, tmp_path)
    output = call("crossval", recipe, "phases.0.steps=2", "-k", "2")
    figures = json.loads((tmp_path / "run" / "crossval.json").read_text())
    values = figures["validation_iou"]["folds"]
    assert len(values) == 2
    assert figures["validation_iou"]["mean"] == pytest.approx(np.mean(values))
    assert f"{np.mean(values):.4f} +- " in output
    parts = [json.loads((tmp_path / "run" / f"fold-{i}" / "recipe.json").read_text())["split"] for i in range(2)]
    assert [(p["fold"], p["folds"]) for p in parts] == [(0, 2), (1, 2)]
    with pytest.raises(UserError, match="has no folds"):
        call("crossval", recipe, "split.by=file")


def test_tuning_goes_on_where_it_stopped(data: Path, tmp_path: Path) -> None:
    space = {"phases.0.lr": {"low": 1e-4, "high": 1e-2, "log": True}, "optimizer.name": {"choices": ["adamw", "sgd"]}}
    recipe = write_recipe("segmenter", data, tmp_path, tune=space)
    short = ["phases.0.steps=2", "epoch=1"]
    assert "best of 2 trials" in call("tune", recipe, *short, "--trials", "2")
    assert "best of 3 trials" in call("tune", recipe, *short, "--trials", "3")
    result = json.loads((tmp_path / "run" / "tune.json").read_text())
    assert set(result["settings"]) == set(space)
    trials = [json.loads(p.read_text()) for p in sorted((tmp_path / "run").glob("trial-*/recipe.json"))]
    assert len({trial["phases"][0]["lr"] for trial in trials}) == 3
    for more, message in (("tune={}", "nothing to tune"), ("tune={phases.0.lr: {low: 1}}", "low below high")):
        with pytest.raises(UserError, match=message):
            call("tune", recipe, *short, more)
    with pytest.raises(UserError, match="did you mean 'lr'"):
        call("tune", recipe, *short, "tune={phases.0.lt: {low: 0.1, high: 1}}")


def test_runs_are_compared_and_measured(data: Path, tmp_path: Path) -> None:
    for name in ("gated", "oagan", "segmenter"):
        trainer_of(small_recipe(name, data, tmp_path / name, "phases.0.steps=2", "epoch=1")).fit()
    page = tmp_path / "runs.html"
    call("compare", tmp_path / "gated", tmp_path / "oagan", "-o", page)
    text = page.read_text()
    assert text.count("data:image/jpeg;base64,") == 2
    assert text.count("<svg") >= 3
    assert "<td>model</td><td>gated</td><td>oagan</td>" in text
    assert "validation_psnr" in text
    call("compare", tmp_path / "gated", tmp_path / "oagan", "-o", tmp_path / "curves.png")
    assert cv2.imread(str(tmp_path / "curves.png")).shape[1] == 3 * 450 + 200, "PSNR, sharpness and IoU side by side"
    with pytest.raises(UserError, match=r"give a \.html, \.svg or \.png"):
        call("compare", tmp_path / "gated", "-o", tmp_path / "curves.txt")
    with pytest.raises(UserError, match=r"no training run: recipe\.json is missing"):
        call("compare", tmp_path, "-o", page)

    for name, figures in (
        ("gated", {"psnr", "ssim", "mse", "psnr_in_mask"}),
        ("oagan", {"iou", "dice", "psnr", "ssim", "mse", "psnr_in_mask"}),
        ("segmenter", {"iou", "dice"}),
    ):
        report, sheet = tmp_path / f"{name}.json", tmp_path / f"{name}.jpg"
        call("evaluate", "run", tmp_path / name, "--report", report, "--sheet", sheet)
        found = next(iter(json.loads(report.read_text()).values()))
        assert set(found) == figures | {"pictures"}
        assert found["pictures"] == 2
        columns = 2 if name == "segmenter" else 4
        assert cv2.imread(str(sheet)).shape == (22 + 2 * 64, columns * 64, 3)
        if "psnr" in found:  # the mean of logarithms is not the logarithm of the mean
            assert found["psnr"] == pytest.approx(-10 * np.log10(found["mse"]), abs=1.5)
    with pytest.raises(UserError, match=r"state\.pt is missing|recipe\.json is missing"):
        call("evaluate", "run", tmp_path)


def test_the_best_run_is_marked() -> None:
    better = {"error": 0.03, "accurate": 0.9, "box": 0.2, "giou": 0.8, "sharpness": 1.1, "psnr": 21.0}
    worse = {"error": 0.3, "accurate": 0.1, "box": 0.4, "giou": 0.6, "sharpness": 1.4, "psnr": 20.0}
    assert all(best_of(f"validation_{k}", [worse[k], math.nan, better[k]]) == better[k] for k in better)
    assert math.isnan(best_of("validation_psnr", [math.nan]))
    for trainer in (PaintTrainer, SegmentTrainer, UnmaskTrainer, DetectorTrainer, LandmarkerTrainer):
        assert best_of(trainer.figure, [1, 2]) == 2, "of these the higher is better"


def test_damaged_files_of_a_run_are_said(data: Path, tmp_path: Path) -> None:
    trainer_of(small_recipe("segmenter", data, tmp_path / "run", "phases.0.steps=1")).fit()
    trainer_of(small_recipe("din2020", data, tmp_path / "other", "phases.0.steps=1")).fit()
    damages = {"recipe.json": b"{bad", "log.jsonl": b"{}\n{", "data.json": b"", "state.pt": b"no checkpoint"}
    damages |= {"state.pt of another": (tmp_path / "other" / "state.pt").read_bytes()}
    for name, content in damages.items():
        file = tmp_path / "run" / name.removesuffix(" of another")
        whole = file.read_bytes()
        file.write_bytes(content)
        command = ["compare", tmp_path / "run", "-o", tmp_path / "x.html"]
        with pytest.raises(UserError, match=rf"{file.name}' is (damaged|no checkpoint|of another model)"):
            call(*(command if name == "log.jsonl" else ["evaluate", "run", tmp_path / "run"]))
        if name == "recipe.json":
            with pytest.raises(UserError, match="is damaged"):
                call(*command)
        file.write_bytes(whole)


@pytest.mark.shared
def test_instruments_measure_likeness(data: Path, shared: Path, tmp_path: Path) -> None:
    trainer_of(small_recipe("gated", data, tmp_path / "run", "phases.0.steps=1")).fit()
    report = tmp_path / "report.json"
    call("evaluate", "run", tmp_path / "run", "--instruments", shared / "instruments", "--report", report)
    assert 0 < next(iter(json.loads(report.read_text()).values()))["lpips"] < 1
