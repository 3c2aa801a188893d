"""Keeps a record of every run with MLflow, on a server or in a folder beside the runs; `mlflow ui --backend-store-uri
FOLDER` shows it."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from unmask.train.config import Recipe

STORE = "mlruns"


class MlflowLog:
    """One MLflow run for one training run, however often that is interrupted.

    Args:
        network: what is trained; the MLflow experiment.
        recipe: logged as parameters; its `out` names the run, and the store lies beside it unless it names a server.
        hashes: of its data, logged as tags.
    """

    def __init__(self, network: str, recipe: Recipe, hashes: Mapping[str, str]) -> None:
        # MLflow asks for consent to its older store of plain files, which is what needs no server and no database.
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        import mlflow

        folder = Path(recipe.out)
        folder.mkdir(parents=True, exist_ok=True)
        self._client = mlflow.MlflowClient(recipe.tracking_uri or (folder.parent / STORE).resolve().as_uri())
        known = folder / "mlflow_run"
        if known.exists():
            self._run = known.read_text()
            return
        experiment = self._client.get_experiment_by_name(network)
        experiment_id = experiment.experiment_id if experiment else self._client.create_experiment(network)
        self._run = self._client.create_run(experiment_id, run_name=folder.name).info.run_id
        known.write_text(self._run)
        for name, value in _flat(msgspec.to_builtins(recipe)).items():
            self._client.log_param(self._run, name, value)
        for name, value in hashes.items():
            self._client.set_tag(self._run, f"data.{name}", value)

    def log(self, step: int, figures: dict[str, float | int | str]) -> None:
        """Add figures at a step; words are left out."""
        for name, value in figures.items():
            if not isinstance(value, str):
                self._client.log_metric(self._run, name, float(value), step=step)

    def finished(self) -> None:
        """Mark the run as done."""
        self._client.set_terminated(self._run)


def _flat(recipe: dict[str, Any]) -> dict[str, Any]:
    """A recipe as parameters: the fields of each phase are named phase0.steps, phase0.size and so on."""
    flat = {name: value for name, value in recipe.items() if name != "phases"}
    for number, phase in enumerate(recipe["phases"]):
        flat |= {f"phase{number}.{name}": value for name, value in phase.items()}
    return flat
