"""One run by several processes: started by torchrun, it does what a single one does."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from training_faces import small_recipe

from unmask.train import processes
from unmask.train.config import Recipe, with_value
from unmask.train.registry import trainer_of

pytestmark = pytest.mark.timeout(900)  # three processes that import PyTorch, twice
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("training") / "data"


def recipe(data: Path, out: Path, steps: int) -> Recipe:
    # A loss that is a plain mean over pictures, and no normalisation over the batch: two halves are exactly the whole.
    general = ["losses={bce: 1}", "optimizer={name: sgd}", "epoch=1000", "checkpoint_minutes=0"]
    general += [f"phases.0.steps={steps}", "phases.0.batch=4"]
    return small_recipe("din2020", data, out, *general)


@contextmanager
def two_processes(recipe: Recipe, folder: Path) -> "Iterator[subprocess.Popen[str]]":
    """`unmask train` by torchrun."""
    file = folder / f"{Path(recipe.out).name}.json"
    file.write_bytes(msgspec.json.encode(recipe))
    command = [*TORCHRUN, "-m", "unmask.cli", "train", str(file)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as process:
        try:
            yield process
        finally:
            process.terminate()  # and with it its workers


def finish(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=400)
    assert process.returncode == 0, output
    return output


def state_of(run: Path) -> dict[str, Any]:
    return dict(torch.load(run / "state.pt", weights_only=True))


def test_two_processes_train_as_one_with_the_whole_batch(data: Path, tmp_path: Path) -> None:
    alone, both = recipe(data, tmp_path / "alone", 12), recipe(data, tmp_path / "both", 12)
    trainer_of(alone).fit()
    with two_processes(both, tmp_path) as process:
        finish(process)
    one, two = state_of(tmp_path / "alone"), state_of(tmp_path / "both")
    assert one["done"] == two["done"] == 12
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-5)
    logs = [(tmp_path / name / "log.jsonl").read_text().splitlines() for name in ("alone", "both")]
    assert [len(log) for log in logs] == [1, 1], "one of them writes"
    figures = [json.loads(log[0]) for log in logs]
    assert figures[1] == pytest.approx(figures[0], rel=1e-3)
    assert len(list((tmp_path / "both" / "samples").iterdir())) == 1
    assert len(list((tmp_path / "mlruns").rglob("tags/data.crops"))) == 2


def test_two_processes_stop_together_and_go_on(data: Path, tmp_path: Path) -> None:
    plan = recipe(data, tmp_path / "run", 400)
    with two_processes(plan, tmp_path) as process:
        while not (tmp_path / "run" / "state.pt").exists():  # it is saved after each step
            assert process.poll() is None
            time.sleep(0.02)
        process.terminate()  # torchrun passes it on
        process.communicate(timeout=400)
    done = state_of(tmp_path / "run")["done"]
    assert 0 < done < 400
    short = with_value(plan, "phases.0.steps", done + 2)
    with two_processes(short, tmp_path) as process:
        assert f"resuming after {done} steps" in finish(process)
    assert state_of(tmp_path / "run")["done"] == done + 2


def test_alone_nothing_is_exchanged() -> None:
    assert (processes.count(), processes.rank()) == (1, 0)
    tensor = torch.ones(3)
    processes.average([tensor])
    assert tensor.tolist() == [1, 1, 1]
    with processes.joined("cuda:1") as device:
        assert device == "cuda:1"
