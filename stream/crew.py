"""The workers of a run, as threads or as processes. They differ in nothing but this."""

import multiprocessing
import os
import pickle
import shutil
import signal
import tempfile
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import TYPE_CHECKING, Final

import zmq

from unmask.stream.frame import Layout
from unmask.stream.pool import SharedSlots, SlotPool, heap_pool
from unmask.stream.stage import Stage
from unmask.stream.transport import ZmqContext
from unmask.stream.worker import Assignment, work

if TYPE_CHECKING:
    from torch import Tensor

_SOCKET_PATH_LIMIT: Final = 107
"""Longest path of a Unix socket on Linux in bytes, unix(7)."""


class Crew(ABC):
    """One worker per stage.

    Attributes:
        context: for the supervisor's own sockets.
        assignments: what each worker is told; the endpoints are in there.
    """

    context: ZmqContext
    assignments: Sequence[Assignment]

    @abstractmethod
    def start(self) -> None:
        """Start the workers. They wait for `Open`."""

    @abstractmethod
    def cause_of_death(self, position: int) -> str | None:
        """Why a worker ended, None while it lives."""

    @abstractmethod
    def end(self, seconds: float) -> None:
        """Wait so long for dismissed workers, and end by force those that can be ended so."""

    @abstractmethod
    def close(self) -> None:
        """Release everything, after `end` and after the supervisor has closed its sockets."""


class ThreadCrew(Crew):
    """Workers as threads of this process; frames lie on the heap, or in tensors where the layout says so.

    Args:
        stages: one per worker.
        layout, max_faces: of every frame.
        slots: number of frame slots.
    """

    def __init__(self, stages: Sequence[Stage], layout: Layout, max_faces: int, slots: int) -> None:
        pool = heap_pool(slots, layout.slot_bytes(max_faces), _tensors(layout, slots))
        self.context = zmq.Context()
        self.assignments = _assignments("inproc://", len(stages), layout, max_faces)
        self._threads = [
            threading.Thread(
                target=work,
                args=(lambda stage=stage: stage, assignment, pool, self.context),
                name=f"unmask-{stage.name}",
                daemon=True,  # a stage that hangs must not keep the program from ending
            )
            for stage, assignment in zip(stages, self.assignments, strict=True)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def cause_of_death(self, position: int) -> str | None:
        return None if self._threads[position].is_alive() else "its thread ended unexpectedly"

    def end(self, seconds: float) -> None:
        _join([thread for thread in self._threads if thread.is_alive()], seconds)

    def close(self) -> None:
        # A thread cannot be killed. One that still hangs keeps the context, whose end would wait for its sockets.
        if not any(thread.is_alive() for thread in self._threads):
            self.context.term()


class ProcessCrew(Crew):
    """Workers as processes of their own; frames lie in shared memory, sockets in a private folder.

    Arguments are those of `ThreadCrew`. Raises what pickling raises where a stage cannot be sent to a process, and
    ValueError for a layout of tensors, which processes do not share.
    """

    def __init__(self, stages: Sequence[Stage], layout: Layout, max_faces: int, slots: int) -> None:
        if layout.tensors:
            raise ValueError("processes share no tensors")
        pickled = [pickle.dumps(stage) for stage in stages]
        self._slots = SharedSlots(slots, layout.slot_bytes(max_faces))
        self._folder = _socket_folder()
        self.context = zmq.Context()
        self.assignments = _assignments(f"ipc://{self._folder.name}/", len(stages), layout, max_faces)
        spawn = multiprocessing.get_context("spawn")  # a fork copies locks, but not the threads that hold them
        self._processes = [
            spawn.Process(
                target=_work_in_process,
                args=(data, assignment, self._slots, self._folder.name),
                name=f"unmask-{stage.name}",
                daemon=True,
            )
            for stage, data, assignment in zip(stages, pickled, self.assignments, strict=True)
        ]

    def start(self) -> None:
        with interrupts_blocked():
            for process in self._processes:
                process.start()

    def cause_of_death(self, position: int) -> str | None:
        process = self._processes[position]
        if process.pid is None:
            return "its process was never started"
        code = process.exitcode
        if code is None:
            return None
        return f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process exited ({code})"

    def end(self, seconds: float) -> None:
        started = [process for process in self._processes if process.pid is not None]
        _join(started, seconds)
        for process in started:
            process.kill()
        _join(started, seconds)

    def close(self) -> None:
        for process in self._processes:
            if process.exitcode is not None:
                process.close()
        self.context.term()
        self._slots.close()
        self._folder.cleanup()


def _tensors(layout: Layout, slots: int) -> "Sequence[Tensor]":
    if not layout.tensors:
        return ()
    from unmask.stream.nv12 import new_picture  # runs without tensors are spared PyTorch

    return [new_picture(layout) for _ in range(slots)]


def _assignments(prefix: str, count: int, layout: Layout, max_faces: int) -> Sequence[Assignment]:
    inboxes = tuple(f"{prefix}{position}" for position in range(count))
    return [Assignment(position, inboxes, f"{prefix}supervisor", layout, max_faces) for position in range(count)]


def _join(workers: Sequence[threading.Thread] | Sequence[SpawnProcess], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for worker in workers:
        worker.join(max(0.0, deadline - time.monotonic()))


def _socket_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder that only this user can enter, with a path short enough for a socket in it."""
    longest = f"{tempfile.gettempdir()}/unmask-12345678/supervisor"
    fits = len(os.fsencode(longest)) <= _SOCKET_PATH_LIMIT
    return tempfile.TemporaryDirectory(prefix="unmask-", dir=None if fits else Path("/tmp"))


@contextmanager
def interrupts_blocked() -> Iterator[None]:
    """Processes started in here never see the terminal's Ctrl-C, nor that it was closed: what that means is for the
    parent to decide."""
    resource_tracker.ensure_running()  # it comes with the first process, and its start unblocks the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGHUP})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work_in_process(data: bytes, assignment: Assignment, pool: SlotPool, folder: str) -> None:
    threading.Thread(target=_end_with_parent, args=(folder,), name="unmask-watch", daemon=True).start()
    with zmq.Context() as context:
        work(partial(pickle.loads, data), assignment, pool, context)


def _end_with_parent(folder: str) -> None:
    """A parent that was killed cannot tidy up: remove the sockets' folder and end at once, whatever the stage does."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(1)
