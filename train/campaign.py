"""Several runs of one recipe: the overfitting check, cross-validation, the search for better settings."""

import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
import numpy.typing as npt
import torch

from unmask.errors import UnmaskError, UserError
from unmask.train.augmentation import Augmenter
from unmask.train.config import Loss, Range, Recipe, with_value
from unmask.train.files import json_of
from unmask.train.loop import Steps, Trainer, keep_memory, remove_run
from unmask.train.objectives import kind_of
from unmask.train.registry import trainer_of
from unmask.train.sheets import batch_sheet

Say = Callable[[str], None]

_NEAR_ZERO: Final = 0.25
"""The loss that is left over the first one, below which a network has learnt its few pictures."""


@dataclass(frozen=True, slots=True)
class Overfitted:
    """What `overfit` found: the loss without adversaries at first and at last."""

    first: float
    last: float

    @property
    def learnt(self) -> bool:
        """Whether the network can learn these pictures by heart."""
        return self.last < _NEAR_ZERO * self.first


def overfit(recipe: Recipe, pictures: int, steps: int, say: Say) -> Overfitted:
    """Train on the same few pictures over and over. A network or a loss that is broken cannot learn them.

    Adversarial losses are left out: they have no zero to go to. Nothing is augmented. The run is written to
    OUT/overfit, and begins anew each time, with whatever data there is then.

    Args:
        recipe: of which the first phase's size is used.
        pictures: how many, in one batch.
        steps: optimizer steps.
        say: takes a line of progress.

    Raises:
        UserError: OUT/overfit is another training run.
    """
    phase = recipe.phases[0]
    named = phase.losses or recipe.losses
    plain = {label: x for label, x in named.items() if kind_of(label, _loss(x)) not in {"adversarial", "kept"}}
    phase = msgspec.structs.replace(
        phase, steps=steps, batch=pictures, losses=plain, schedule="constant", lr=max(phase.lr, 1e-3)
    )
    out = Path(recipe.out) / "overfit"
    small = msgspec.structs.replace(
        recipe, out=str(out), phases=(phase,), repeat=1, accumulate=1, augmentation=(), real="", ema=0.9
    )
    _clear(out)
    keep_memory()
    trainer = trainer_of(small)
    totals = []
    for done, (_, step, batch) in enumerate(Steps(small, 0, trainer.batch)):
        figures = trainer.step(phase, step, batch)
        totals.append(sum(figures.values()))
        if done % max(1, steps // 10) == 0:
            say(f"step {done}: loss {totals[-1]:.4f}")
    trainer.run.done = steps
    trainer.end_epoch(phase.size)
    trainer.run.finish()
    return Overfitted(totals[0], float(np.mean(totals[-5:])))


def _clear(out: Path) -> None:
    """Remove what an earlier call left. Raises UserError where that is the work of `unmask train`."""
    if (record := out / "recipe.json").exists() and json_of(record).get("repeat") != 1:
        raise UserError(f"'{out}' is a training run, which would be lost; give another out=")
    remove_run(out)


def preview_sheet(recipe: Recipe, seed: int) -> npt.NDArray[np.uint8]:
    """A batch of the first phase, (H, W, 3) uint8 RGB; nothing is left of the run that it takes."""
    with tempfile.TemporaryDirectory(prefix="unmask-preview-") as folder:
        trainer = trainer_of(msgspec.structs.replace(recipe, out=str(Path(folder) / "run")))
        torch.manual_seed(seed)
        return batch_sheet(trainer.batch(recipe.phases[0], seed), Augmenter(recipe.augmentation))


def _loss(value: float | Loss) -> Loss:
    return value if isinstance(value, Loss) else Loss(weight=value)


def crossval(recipe: Recipe, folds: int, say: Say) -> dict[str, Any]:
    """Train once for each part of the data with that part for validation; interrupted, it goes on where it stopped.

    Writes the runs to OUT/fold-0 and so on, and the figures to OUT/crossval.json.

    Returns:
        By figure: the value of each fold, their mean and standard deviation.
    """
    if recipe.split.by not in {"hash", "identity"}:
        raise UserError(f"split.by={recipe.split.by} has no folds; use hash or identity")
    rows = []
    for fold in range(folds):
        split = msgspec.structs.replace(recipe.split, folds=folds, fold=fold)
        part = msgspec.structs.replace(recipe, split=split, out=str(Path(recipe.out) / f"fold-{fold}"))
        say(f"fold {fold + 1} of {folds}")
        rows.append(trainer_of(part).fit())
    figures = {name: _spread([row[name] for row in rows]) for name in rows[0]}
    (Path(recipe.out) / "crossval.json").write_text(json.dumps(figures, indent=2) + "\n")
    return figures


def _spread(values: list[float]) -> dict[str, Any]:
    return {"folds": values, "mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1))}


def tune(recipe: Recipe, trials: int, say: Say) -> dict[str, Any]:
    """Search for better values of the keys that the recipe names under `tune`, with Optuna.

    Trials that lag behind the median of the others are pruned at the end of an epoch. All is kept in OUT/tune.db: the
    same command goes on until there are `trials`.

    Returns:
        The best trial: its number, value and settings.

    Raises:
        UserError: the recipe names nothing to tune, or no trial came to its end.
    """
    import optuna

    if not recipe.tune:
        raise UserError("nothing to tune: name keys and what to try under tune, such as phases.0.lr: {low: 1e-4, ...}")
    _check_ranges(recipe)
    out = Path(recipe.out)
    out.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=f"sqlite:///{out / 'tune.db'}",
        study_name=recipe.model,
        direction="maximize",
        pruner=optuna.pruners.MedianPruner(n_startup_trials=4),
        load_if_exists=True,
    )
    # What was drawn before must not be drawn again when the search goes on.
    study.sampler = optuna.samplers.TPESampler(seed=recipe.seed + len(study.trials))

    def objective(trial: Any) -> float:
        value = _try(recipe, trial)
        say(f"trial {trial.number}: {value:.4f} with {trial.params}")
        return value

    ended = [t for t in study.trials if t.state.is_finished()]
    study.optimize(objective, n_trials=max(0, trials - len(ended)), catch=(UnmaskError,))
    complete = [t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE]
    if not complete:
        raise UserError(f"none of {len(study.trials)} trials came to its end; look into {out}")
    pruned = sum(t.state == optuna.trial.TrialState.PRUNED for t in study.trials)
    best = study.best_trial
    result = {"trials": len(study.trials), "pruned": pruned, "best": best.number, "value": best.value}
    (out / "tune.json").write_text(json.dumps(result | {"settings": best.params}, indent=2) + "\n")
    return result | {"settings": best.params}


def _check_ranges(recipe: Recipe) -> None:
    for key, choice in recipe.tune.items():
        if not choice.choices and not choice.low < choice.high:
            raise UserError(f"tune: {key} needs choices, or low below high")
        with_value(recipe, key, choice.choices[0] if choice.choices else choice.low)


def _try(recipe: Recipe, trial: Any) -> float:
    import optuna

    chosen = recipe
    for key, choice in recipe.tune.items():
        chosen = with_value(chosen, key, _suggest(trial, key, choice))
    chosen = msgspec.structs.replace(chosen, out=str(Path(recipe.out) / f"trial-{trial.number:03}"), tune={})
    trainer: Trainer[Any] = trainer_of(chosen)

    def on_epoch(done: int, figures: dict[str, float]) -> None:
        trial.report(figures[trainer.figure], done)
        if done < sum(phase.steps for phase in chosen.phases) and trial.should_prune():
            raise optuna.TrialPruned

    trainer.on_epoch = on_epoch
    return float(trainer.fit()[trainer.figure])


def _suggest(trial: Any, key: str, choice: Range) -> Any:
    if choice.choices:
        return trial.suggest_categorical(key, list(choice.choices))
    return trial.suggest_float(key, choice.low, choice.high, log=choice.log)
