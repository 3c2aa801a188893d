"""What every training run shares: the schedule, averaged weights, checkpoints that resume, the log."""

import ctypes
import json
import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.errors import UnmaskError
from unmask.train.config import Phase, Recipe
from unmask.train.data import FaceCrops, prefetch
from unmask.train.materials import load_templates
from unmask.train.tracking import Tracking

Indices = npt.NDArray[np.int64]

REPORT_EVERY = 100
VALIDATION_PICTURES = 192


def learning_rate(phase: Phase, step: int) -> float:
    """Rises over the first 3 % of the steps, then falls along a cosine to a twentieth of the peak."""
    warm = max(1, round(0.03 * phase.steps))
    if step < warm:
        return phase.lr * (step + 1) / warm
    along = (step - warm) / max(1, phase.steps - warm)
    return phase.lr * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * along)))


M = TypeVar("M", bound=nn.Module)


def keep_memory() -> None:
    """Have glibc keep freed memory instead of giving it back to the system at every step.

    Without it a training step on two threads spends 80 % of its time in page faults (measured: 11 against 79
    pictures/s). Other C libraries are left alone.
    """
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "mallopt"):
        return
    trim_threshold, mmap_threshold, arena_max = -1, -3, -8  # names in malloc.h, after M_
    for option, value in ((mmap_threshold, 1 << 30), (trim_threshold, (1 << 31) - 1), (arena_max, 1)):
        libc.mallopt(option, value)


def channels_last(model: M) -> M:
    """Lay the weights out channel by channel within each pixel: twice as fast on a processor in bfloat16."""
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model


class Averaged:
    """Exponential moving average of a network's weights and buffers; what is validated and shipped.

    Args:
        model: the network in training.
        decay: share of the old average that each step keeps, reached gradually.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self.steps = 0
        self.state = {k: v.detach().clone() for k, v in model.state_dict().items()}

    def update(self, model: nn.Module) -> None:
        self.steps += 1
        keep = min(self.decay, (1 + self.steps) / (10 + self.steps))
        for name, value in model.state_dict().items():
            if value.is_floating_point():
                self.state[name].lerp_(value.detach(), 1 - keep)
            else:
                self.state[name].copy_(value)


def schedule(recipe: Recipe, done: int) -> Iterator[tuple[Phase, int, int]]:
    """(phase, step within it, seed of its batch) for every step after the first `done`."""
    count = 0
    for phase in recipe.phases:
        for step in range(phase.steps):
            if count >= done:
                yield phase, step, recipe.seed * 1_000_003 + count
            count += 1


B = TypeVar("B")


class Steps(Generic[B]):
    """The steps still to do, each with its batch, which a thread makes ahead.

    Args:
        recipe: the phases.
        done: steps to leave out.
        make: makes the batch of a phase from a seed.
    """

    def __init__(self, recipe: Recipe, done: int, make: Callable[[Phase, int], B]) -> None:
        self._plan = schedule(recipe, done)
        self._ahead = schedule(recipe, done)
        self._make = make

    def __iter__(self) -> Iterator[tuple[Phase, int, B]]:
        def next_batch() -> B | None:
            entry = next(self._ahead, None)
            return None if entry is None else self._make(entry[0], entry[2])

        for (phase, step, _), batch in zip(self._plan, prefetch(next_batch), strict=False):
            assert batch is not None
            yield phase, step, batch


class Run:
    """The files of a run: `state.pt` to resume from, `log.jsonl` with a line a report, and the same in MLflow.

    Args:
        network: what is trained.
        recipe: what is run.
        parts: everything with a `state_dict`, by name.
        ema: the averaged weights.
    """

    def __init__(self, network: str, recipe: Recipe, parts: dict[str, Any], ema: Averaged) -> None:
        self.folder = Path(recipe.out)
        self._tracking = Tracking(network, recipe)
        self.parts, self.ema = parts, ema
        self.done = 0
        self._every = recipe.checkpoint_minutes * 60
        self._saved = time.monotonic()
        self._sums: dict[str, float] = {}
        self._counted = 0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "state.pt"

    def resume(self) -> bool:
        """Load the last checkpoint, if there is one."""
        if not self.checkpoint.exists():
            return False
        state = torch.load(self.checkpoint, weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        print(f"resuming after {state['done']} steps", flush=True)
        self.ema.state, self.ema.steps = state["ema"], state["ema_steps"]
        self.done = state["done"]
        torch.set_rng_state(state["rng"])
        return True

    def save(self) -> None:
        """Write the checkpoint; the old one is replaced only when the new one is whole."""
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"ema": self.ema.state, "ema_steps": self.ema.steps, "done": self.done, "rng": torch.get_rng_state()}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)
        self._saved = time.monotonic()

    def finish(self, **figures: float) -> None:
        """Save and report for the last time."""
        self.save()
        self.log(**figures)
        self._tracking.finished()

    def add(self, figures: dict[str, float]) -> None:
        """Add a step's figures to the means of the next report."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._counted += 1

    def step_done(self, report_every: int) -> bool:
        """Count a step, report and save when it is time; True when it saved."""
        self.done += 1
        if self.done % report_every == 0:
            self.log(**{name: total / self._counted for name, total in self._sums.items()})
            self._sums, self._counted = {}, 0
        if time.monotonic() - self._saved < self._every:
            return False
        self.save()
        return True

    def log(self, **figures: float | int | str) -> None:
        """Add a line to the log and print it."""
        line = {"step": self.done, **figures}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._tracking.log(self.done, figures)
        shown = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items())
        print("  ".join(shown), flush=True)


class Trainer(ABC, Generic[B]):
    """A network in training: its data, optimizers, averaged weights and files. Subclasses make batches and losses.

    Args:
        network: what is trained; names the record in MLflow.
        recipe: what to do.
        model: the network; starts from the recipe's `start`, if it names a file.
        optimizer: of its weights.
        others: whatever else a checkpoint must hold, by name.
    """

    def __init__(
        self, network: str, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, **others: Any
    ) -> None:
        self.recipe, self.model, self.optimizer = recipe, model, optimizer
        if recipe.start:
            model.load_state_dict(load_file(recipe.start))
        self.faces = FaceCrops.open(Path(recipe.crops))
        self.training, self.validation = self.faces.split(False), self.faces.split(True)
        self.templates = load_templates(Path(recipe.textures)) if recipe.textures else []
        self.ema = Averaged(model, recipe.ema)
        self.run = Run(network, recipe, {"model": model, "opt": optimizer} | others, self.ema)

    @abstractmethod
    def batch(self, phase: Phase, seed: int) -> B:
        """The training batch of a seed."""

    @abstractmethod
    def step(self, phase: Phase, step: int, batch: B) -> dict[str, float]:
        """One optimizer step. Returns the losses."""

    @abstractmethod
    def validate(self, size: int) -> dict[str, float]:
        """Figures of the averaged weights on fixed validation pictures."""

    def fit(self) -> None:
        """Run to the end of the recipe, from the last checkpoint if there is one."""
        self.run.resume()
        for phase, step, batch in Steps(self.recipe, self.run.done, self.batch):
            self.run.add(self.step(phase, step, batch))
            if self.run.step_done(REPORT_EVERY):
                self.run.log(**self.validate(phase.size))
        self.run.finish(**self.validate(self.recipe.phases[-1].size))

    def chosen(self, phase: Phase, seed: int) -> Indices:
        """The training faces of a batch."""
        return np.random.default_rng(seed).choice(self.training, phase.batch)

    def validation_groups(self) -> Iterator[tuple[int, Indices]]:
        """A seed and up to 16 faces at a time, spread over the validation split; always the same."""
        spread = self.validation[:: max(1, len(self.validation) // VALIDATION_PICTURES)]
        for start in range(0, len(spread), 16):
            yield start, spread[start : start + 16]

    def descend(self, loss: Tensor) -> None:
        """Update the weights, and their average. Raises UnmaskError where the loss is broken."""
        check_finite(loss, self.run.done)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.ema.update(self.model)


def check_finite(loss: Tensor, step: int) -> None:
    """Stop before a broken loss reaches the weights. Raises UnmaskError."""
    if not torch.isfinite(loss):
        raise UnmaskError(
            f"the loss is {loss.item()} at step {step}: lower the learning rate; the last checkpoint is good"
        )
