"""What every training run shares: the schedule, averaged weights, checkpoints that resume, samples, the log."""

import ctypes
import json
import math
import os
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from pathlib import Path
from threading import Event
from typing import Any, ClassVar, Generic, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from unmask.errors import UnmaskError, UserError
from unmask.hangup import HANGUP, ending_signals, leave, terminals
from unmask.train import pins, processes
from unmask.train.config import Phase, Recipe
from unmask.train.data import Draw, FaceCrops, draws, prefetch
from unmask.train.materials import load_templates
from unmask.train.mlflow_log import MlflowLog
from unmask.train.sheets import write_sheet

Indices = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

REPORT_EVERY = 100
VALIDATION_PICTURES = 192


def learning_rate(phase: Phase, step: int) -> float:
    """Rises over the warm-up, then falls to a twentieth of the peak as the phase's schedule says."""
    warm = max(1, round(phase.warm_up * phase.steps))
    if step < warm:
        return phase.lr * (step + 1) / warm
    if phase.schedule == "constant":
        return phase.lr
    along = (step - warm) / max(1, phase.steps - warm)
    left = 1 - along if phase.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * along))
    return phase.lr * (0.05 + 0.95 * left)


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
                yield phase, step, recipe.seed * 1_000_003 + (count % recipe.repeat if recipe.repeat else count)
            count += 1


B = TypeVar("B")


class Steps(Generic[B]):
    """The steps still to do, each with its batch, which a thread makes ahead.

    PyTorch's chance (augmentation, windows, penalties) is set anew for each step, so that a run that goes on needs no
    more than the number of steps done.

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

        for (phase, step, seed), batch in zip(self._plan, prefetch(next_batch), strict=False):
            assert batch is not None
            torch.manual_seed(seed * 4096 + processes.rank())
            yield phase, step, batch


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint holds, on the processor.

    Raises:
        OSError: there is no such file.
        UserError: it is no checkpoint, or a damaged one.
    """
    state: Any = None
    reason: Exception | None = None
    try:
        state = torch.load(path, weights_only=True, map_location="cpu")
    except OSError:
        raise
    except Exception as error:  # which one depends on the bytes of what is no checkpoint
        reason = error
    if not isinstance(state, dict) or not isinstance(state.get("ema"), dict):
        raise UserError(f"'{path}' is no checkpoint, or a damaged one; give the state.pt of a training run") from reason
    return state


def remove_run(folder: Path) -> None:
    """Remove the files of a run, as `Run` writes them, and nothing else."""
    shutil.rmtree(folder / "samples", ignore_errors=True)
    for name in ("state.pt", "state.tmp", "recipe.json", "data.json", "log.jsonl", "log.tmp", "mlflow_run"):
        (folder / name).unlink(missing_ok=True)


class Run:
    """The files of a run: `state.pt` to resume from, `recipe.json`, `data.json` with hashes, `log.jsonl` with a line a
    report, `samples/` with sheets of pictures; figures and recipe in MLflow too. Of several processes the first writes.

    Args:
        network: what is trained.
        recipe: what is run.
        parts: everything with a `state_dict`, by name.
        ema: the averaged weights.

    Raises:
        UserError: the run began with other data.
    """

    def __init__(self, network: str, recipe: Recipe, parts: dict[str, Any], ema: Averaged) -> None:
        self.folder = Path(recipe.out)
        self.network, self.recipe = network, msgspec.to_builtins(recipe)
        self._mlflow: MlflowLog | None = None
        if processes.rank() == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            hashes = pins.data_hashes(recipe)
            pins.pin(self.folder, hashes)
            self._mlflow = MlflowLog(network, recipe, hashes)
            (self.folder / "recipe.json").write_text(json.dumps(self.recipe, indent=2) + "\n")
        self.parts, self.ema = parts, ema
        self.done = 0
        self._device = torch.device(recipe.device)
        self._every = recipe.checkpoint_minutes * 60
        self._saved = time.monotonic()
        self._sums: dict[str, float] = {}
        self._counted = 0

    @property
    def checkpoint(self) -> Path:
        return self.folder / "state.pt"

    def resume(self) -> bool:
        """Load the last checkpoint, if there is one. The log forgets steps after it, which are done again."""
        if not self.checkpoint.exists():
            self._forget_steps_after(0)
            return False
        state = read_state(self.checkpoint)
        try:
            for name, part in self.parts.items():
                part.load_state_dict(state[name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise UserError(
                f"'{self.checkpoint}' is of another model or optimizer than the recipe's; give another out="
            ) from error
        if processes.rank() == 0:
            print(f"resuming after {state['done']} steps", flush=True)
        for name, value in state["ema"].items():
            self.ema.state[name].copy_(value)
        self.ema.steps, self.done = state["ema_steps"], state["done"]
        self._sums, self._counted = state["sums"], state["counted"]
        self._forget_steps_after(self.done)
        return True

    def _forget_steps_after(self, done: int) -> None:
        """Take the lines of later steps out of the log, and one that was not written to its end."""
        log = self.folder / "log.jsonl"
        if processes.rank() or not log.exists():
            return
        lines = log.read_text().splitlines(keepends=True)
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= done]
        if len(kept) < len(lines):
            temporary = log.with_suffix(".tmp")
            temporary.write_text("".join(kept))
            os.replace(temporary, log)

    def save(self) -> None:
        """Write the checkpoint; the old one is replaced only when the new one is whole."""
        if processes.rank():
            return
        state = {name: part.state_dict() for name, part in self.parts.items()}
        state |= {"ema": self.ema.state, "ema_steps": self.ema.steps, "done": self.done}
        state |= {"sums": self._sums, "counted": self._counted, "network": self.network, "recipe": self.recipe}
        temporary = self.checkpoint.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.checkpoint)
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Save for the last time."""
        self.save()
        if self._mlflow is not None:
            self._mlflow.finished()

    def add(self, figures: dict[str, float]) -> None:
        """Add a step's figures to the means of the next report."""
        for name, value in figures.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._counted += 1

    def step_done(self, report_every: int) -> None:
        """Count a step, report and save when it is time."""
        self.done += 1
        if self.done % report_every == 0:
            means = torch.tensor([total / self._counted for total in self._sums.values()], device=self._device)
            processes.average([means])
            self.log(**dict(zip(self._sums, means.tolist(), strict=True)))
            self._sums, self._counted = {}, 0
        if time.monotonic() - self._saved >= self._every:
            self.save()

    def sample(self, sheet: U8) -> None:
        """Write a sheet of samples, (H, W, 3) uint8 RGB."""
        folder = self.folder / "samples"
        folder.mkdir(exist_ok=True)
        write_sheet(folder / f"{self.done:07}.jpg", sheet)

    def log(self, **figures: float | int | str) -> None:
        """Add a line to the log and print it."""
        if self._mlflow is None:
            return
        line = {"step": self.done, **figures}
        with (self.folder / "log.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")
        self._mlflow.log(self.done, figures)
        shown = (f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in line.items())
        print("  ".join(shown), flush=True)


@contextmanager
def stopped_between_steps(said: str) -> Iterator[Event]:
    """Ctrl-C and SIGTERM set the event that this yields, and a line is said; the second one stops at once.

    A closed terminal sets it too, and no more than that: shells pass its SIGHUP on, so that it may come twice.
    """
    stop = Event()
    shown_on = terminals()

    def on_signal(number: int, _: object) -> None:
        if number == HANGUP:
            leave(shown_on)
        else:
            signal.signal(number, before[number])
        if said and not stop.is_set():
            with suppress(OSError):  # whoever read it may have gone
                print(said, flush=True)
        stop.set()

    before = {int(number): signal.getsignal(number) for number in ending_signals()}
    for number in before:
        signal.signal(number, on_signal)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def load_start(model: nn.Module, path: Path, key: str = "start") -> None:
    """Load the weights that a recipe names under `key`. Raises UserError where they are not of this model."""
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{key}: '{path}' holds no weights of this model: {reason}") from error


def load_encoder(model: nn.Module, path: Path) -> None:
    """Load what a model has in common with another one, which it starts from. Raises UserError where that is nothing,
    or does not fit."""
    wanted = {name: value.shape for name, value in model.state_dict().items()}
    try:
        known = {name: value for name, value in load_file(path).items() if name in wanted}
        fitting = bool(known) and all(value.shape == wanted[name] for name, value in known.items())
    except (OSError, SafetensorError) as error:
        raise UserError(f"encoder: cannot read '{path}': {' '.join(str(error).split())[:160]}") from error
    if not fitting:
        raise UserError(f"encoder: '{path}' holds no weights that fit this model's encoder")
    model.load_state_dict(known, strict=False)


class Trainer(ABC, Generic[B]):
    """A network in training: its data, optimizers, averaged weights and files. Subclasses make batches and losses.

    Args:
        network: what is trained; names the record in MLflow.
        recipe: what to do.
        model: the network; starts from the recipe's `start`, if it names a file.
        optimizer: of its weights.
        others: whatever else a checkpoint must hold, by name.

    Attributes:
        figure: the one of `validate`'s figures that tells which run is better; the higher, the better.
        on_step: is told how many of how many steps are done.
        on_epoch: is told the steps done and the figures of each validation.
        stopping: what is said after Ctrl-C; empty for nothing, where the state of the run is not kept.
    """

    figure: ClassVar[str] = ""

    def __init__(
        self, network: str, recipe: Recipe, model: nn.Module, optimizer: torch.optim.Optimizer, **others: Any
    ) -> None:
        self.recipe, self.model, self.optimizer = recipe, model, optimizer
        self.device = torch.device(recipe.device)
        if recipe.start:
            load_start(model, Path(recipe.start))
        self.faces = FaceCrops.open(Path(recipe.crops))
        self.training, self.validation = (self.faces.split(v, recipe.split) for v in (False, True))
        self.templates = load_templates(Path(recipe.textures)) if recipe.textures else []
        self.ema = Averaged(model, recipe.ema)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == "fp16")
        self.on_step: Callable[[int, int], None] = lambda done, total: None
        self.on_epoch: Callable[[int, dict[str, float]], None] = lambda done, figures: None
        self.stopping = "stopping after this step; the same command goes on from there"
        parts = {"model": model, "opt": optimizer, "scaler": self.scaler}
        self.run = Run(network, recipe, parts | others, self.ema)

    @abstractmethod
    def batch(self, phase: Phase, seed: int) -> B:
        """The training batch of a seed."""

    @abstractmethod
    def step(self, phase: Phase, step: int, batch: B) -> dict[str, float]:
        """One optimizer step. Returns the losses."""

    @abstractmethod
    def validate(self, size: int) -> dict[str, float]:
        """Figures of the averaged weights on fixed validation pictures."""

    def sheet(self, size: int) -> U8 | None:
        """A sheet of samples of the averaged weights, (H, W, 3) uint8 RGB; None for a network that has none."""
        return None

    def fit(self) -> dict[str, float]:
        """Run to the end of the recipe, from the last checkpoint if there is one.

        Returns:
            The figures of the last validation.

        Raises:
            KeyboardInterrupt: after Ctrl-C, with the state saved.
        """
        keep_memory()
        self.run.resume()
        total = sum(phase.steps for phase in self.recipe.phases)
        with stopped_between_steps(self.stopping) as stop:
            for phase, step, batch in Steps(self.recipe, self.run.done, self.batch):
                self.run.add(self.step(phase, step, batch))
                self.run.step_done(REPORT_EVERY)
                self.on_step(self.run.done, total)
                if self.run.done % self.epoch(phase) == 0 and self.run.done < total:
                    self.end_epoch(phase.size)
                if processes.any_of(stop.is_set(), self.device):  # all of them stop after the same step
                    self.run.save()
                    raise KeyboardInterrupt
        figures = self.end_epoch(self.recipe.phases[-1].size)
        self.run.finish()
        return figures

    def epoch(self, phase: Phase) -> int:
        """Steps of an epoch."""
        return self.recipe.epoch or max(1, len(self.training) // phase.batch)

    def end_epoch(self, size: int) -> dict[str, float]:
        """Validate, and write a sheet of samples; the first of several processes does, the others get no figures."""
        if processes.rank():
            return {}
        figures = self.validate(size)
        self.run.log(**figures)
        if (sheet := self.sheet(size)) is not None:
            self.run.sample(sheet)
        self.on_epoch(self.run.done, figures)
        return figures

    def draws(self, phase: Phase, seed: int) -> list[Draw]:
        """The training faces of this process's part of a batch."""
        chosen = np.random.default_rng(seed).choice(self.training, phase.batch)
        return draws(chosen, seed, slice(processes.rank(), None, processes.count()))

    def validation_groups(self) -> Iterator[tuple[int, Indices]]:
        """A seed and up to 16 faces at a time, spread over the validation split; always the same."""
        spread = self.validation[:: max(1, len(self.validation) // VALIDATION_PICTURES)]
        for start in range(0, len(spread), 16):
            yield start, spread[start : start + 16]

    def averaged(self) -> nn.Module:
        """The network with the averaged weights, for inference."""
        model = deepcopy(self.model).eval()
        model.load_state_dict(self.ema.state)
        return model

    def autocast(self) -> torch.autocast:
        """The precision of the recipe."""
        kind = torch.float16 if self.recipe.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, kind, enabled=self.recipe.precision != "fp32")

    def begin(self, phase: Phase, step: int, *others: torch.optim.Optimizer) -> None:
        """Set the learning rates and forget the gradients of the step before."""
        for optimizer in (self.optimizer, *others):
            for group in optimizer.param_groups:
                group["lr"] = group["speed"] * learning_rate(phase, step)
            optimizer.zero_grad(set_to_none=True)
        self.model.train()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss. Raises UnmaskError where it is broken."""
        check_finite(loss, self.run.done)
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def update(self) -> None:
        """Update the weights by the gradients of all processes, and their average."""
        share_gradients(self.model)
        self.scaler.unscale_(self.optimizer)
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.recipe.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.ema.update(self.model)


def share_gradients(model: nn.Module) -> None:
    """Average gradients over the processes, and statistics such as those of batch normalisation."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    processes.average([*gradients, *(b for b in model.buffers() if b.is_floating_point())])


def check_finite(loss: Tensor, step: int) -> None:
    """Stop before a broken loss reaches the weights. Raises UnmaskError."""
    if not torch.isfinite(loss):
        raise UnmaskError(
            f"the loss is {loss.item()} at step {step}: lower the learning rate; the last checkpoint is good"
        )
