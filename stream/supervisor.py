"""Starts the workers of a run, watches them, cancels them, and sees that nothing of them is left."""

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final

from unmask.errors import StageError, UnmaskError
from unmask.stream.crew import Crew, ProcessCrew, ThreadCrew
from unmask.stream.frame import Layout
from unmask.stream.stage import Sink, Source, Stage
from unmask.stream.timing import StageTiming
from unmask.stream.transport import (
    AnyMessage,
    Dismiss,
    Done,
    Drain,
    Failed,
    Go,
    Holding,
    Inbox,
    Message,
    Notice,
    Open,
    Outbox,
    Progress,
    Ready,
    Stop,
    Summary,
)
from unmask.stream.worker import KEPT_ERRORS

_LOOK_ROUND_SECONDS: Final = 0.1
"""How often, at least, to look for a request to cancel and for workers that died."""

_STOP_SECONDS: Final = 3.0
"""How long a stopped stage may take to finish its frame and close."""

_JOIN_SECONDS: Final = 0.7
"""How long a dismissed worker may take to end; with the above, a failed run is over within 5 s."""


class Cancel:
    """Ends a run from outside: from another thread, or from a signal handler. It takes effect within 0.1 s."""

    def __init__(self) -> None:
        self._draining = False  # plain attributes: a lock could be held by the very code that a signal interrupts
        self._stopping = False

    def drain(self) -> None:
        """Read no more frames, finish those on their way, and flush: the output is whole as far as it goes.

        While stages are being opened, this waits until they are.
        """
        self._draining = True

    def stop_now(self) -> None:
        """Drop all frames and do not flush: there is no output."""
        self._stopping = True

    @property
    def draining(self) -> bool:
        return self._draining

    @property
    def stopping(self) -> bool:
        return self._stopping


@dataclass(frozen=True, slots=True)
class RunReport:
    """What became of a run.

    Attributes:
        frames: that the sink gave back.
        cancelled: True where the source was not read to its end.
        flushed: True where every stage was flushed, so that the output can be used; False after `Cancel.stop_now`.
        open_seconds: from the call until every stage was open, or until the end where that came first.
        wall_seconds: from the call to the end.
        stages: how long each stage worked, by name. A stage that had to be abandoned is missing.
        summaries: `Stage.summary` of each flushed stage, by name; tuples have become lists.
    """

    frames: int
    cancelled: bool
    flushed: bool
    open_seconds: float
    wall_seconds: float
    stages: dict[str, StageTiming]
    summaries: dict[str, dict[str, Any]]


def run(
    stages: Sequence[Stage],
    layout: Layout,
    *,
    max_faces: int = 8,
    slots: int = 12,
    processes: bool = False,
    on_progress: Callable[[int, float], None] | None = None,
    on_notice: Callable[[str], None] | None = None,
    on_idle: Callable[[], None] | None = None,
    cancel: Cancel | None = None,
) -> RunReport:
    """Carry every frame of the source through all stages, in order, each stage working at the same time.

    First the source and the sink are opened, then the stages between them: a mistake of the user shows before networks
    are loaded. Nothing is left when this returns or raises, save threads of stages that hang.

    Args:
        stages: a `Source`, any number of other stages, a `Sink`; their names differ. With `processes` they are pickled
            and the caller's objects stay untouched, otherwise they are used as they are.
        layout: of every frame.
        max_faces: how many faces a frame has room for.
        slots: how many frames can be on their way. All stages together may hold back fewer than that.
        processes: run each stage in a process of its own instead of a thread.
        on_progress: called now and then, and at the end, with the number of frames that are done and the pts of the
            last one in seconds. Like `on_notice`, it is called in the caller's thread.
        on_notice: called with each line that a stage has for the user.
        on_idle: called in the caller's thread every 0.1 s in which no stage has said anything.
        cancel: to end the run early.

    Raises:
        UserError, EngineError: a stage raised it.
        StageError: a stage raised anything else, gave frames it should not, or its process was killed.
        ValueError: the stages do not make a pipeline.
    """
    _check(stages, slots)
    crew_kind = ProcessCrew if processes else ThreadCrew
    crew = crew_kind(stages, layout, max_faces, slots)
    with ExitStack() as stack:
        stack.callback(crew.close)
        supervisor = _Supervisor(stages, slots, crew, stack, cancel or Cancel(), on_progress, on_notice, on_idle)
        return supervisor.run()


class _StopNow(Exception):  # noqa: N818 - not an error
    """`Cancel.stop_now` was called."""


class _Supervisor:
    """One run."""

    def __init__(
        self,
        stages: Sequence[Stage],
        slots: int,
        crew: Crew,
        stack: ExitStack,
        cancel: Cancel,
        on_progress: Callable[[int, float], None] | None,
        on_notice: Callable[[str], None] | None,
        on_idle: Callable[[], None] | None,
    ) -> None:
        self._names = [stage.name for stage in stages]
        self._slots = slots
        self._crew = crew
        self._cancel = cancel
        self._on_progress = on_progress
        self._on_notice = on_notice
        self._on_idle = on_idle
        self._inbox = stack.enter_context(Inbox(crew.context, crew.assignments[0].supervisor))
        self._outboxes = [
            stack.enter_context(Outbox(crew.context, endpoint)) for endpoint in crew.assignments[0].inboxes
        ]
        self._ready: set[int] = set()
        self._holding: dict[int, int] = {}
        self._summaries: dict[int, dict[str, Any]] = {}
        self._done: dict[int, Done] = {}
        self._frames = 0
        self._can_drain = False
        self._started = time.perf_counter()
        self._open_seconds = 0.0

    def run(self) -> RunReport:
        everyone = range(len(self._names))
        try:
            self._crew.start()
            self._watch(everyone)
        except _StopNow:
            self._stop(everyone)
        except BaseException:
            self._stop(everyone)
            raise
        finally:
            self._tell(everyone, Dismiss())
            self._crew.end(_JOIN_SECONDS)
        return self._report()

    def _watch(self, everyone: range) -> None:
        """See the run through to its end."""
        ends = (everyone[0], everyone[-1])
        self._tell(ends, Open())
        self._look_after(lambda: self._ready.issuperset(ends))
        self._tell(everyone[1:-1], Open())
        self._look_after(lambda: self._ready.issuperset(everyone))
        self._open_seconds = self._seconds()
        self._tell([0], Go())
        self._can_drain = True
        self._look_after(lambda: len(self._done) == len(everyone))

    def _look_after(self, finished: Callable[[], bool]) -> None:
        """Deal with messages, cancellation and deaths until `finished`."""
        while not finished():
            self._heed_cancel()
            message = self._inbox.receive_within(_LOOK_ROUND_SECONDS)
            if message is None:
                self._find_dead()
                if self._on_idle:
                    self._on_idle()
            else:
                self._note(message)
                self._react(message)

    def _note(self, message: AnyMessage) -> None:
        """Remember what the report or the supervisor itself will need."""
        match message:
            case Ready(position=position):
                self._ready.add(position)
            case Holding(position=position, frames=frames):
                self._holding[position] = frames
            case Progress(frames=frames):
                self._frames = frames
            case Summary(position=position, values=values):
                self._summaries[position] = values
            case Done(position=position) as done:
                self._done[position] = done

    def _react(self, message: AnyMessage) -> None:
        """Tell the caller what it asked to be told, and raise what ends the run."""
        match message:
            case Progress(frames=frames, pts_seconds=seconds) if self._on_progress:
                self._on_progress(frames, seconds)
            case Notice(text=text) if self._on_notice:
                self._on_notice(text)
            case Failed() as failed:
                raise self._error(failed)
            case Holding(position=position):
                self._check_held(position)

    def _check_held(self, position: int) -> None:
        """Frames kept back for good would leave the source without a slot, and the run without an end."""
        held = sum(self._holding.values())
        if held >= self._slots:
            raise StageError(
                self._names[position],
                f"it holds back {self._holding[position]} frames, with other stages {held}; "
                f"with {self._slots} slots it can be {self._slots - 1} at most",
            )

    def _error(self, failed: Failed) -> UnmaskError:
        kept = KEPT_ERRORS.get(failed.error)
        return kept(failed.reason) if kept else StageError(self._names[failed.position], failed.reason, failed.detail)

    def _find_dead(self) -> None:
        for position, name in enumerate(self._names):
            cause = self._crew.cause_of_death(position)
            if cause is not None and position not in self._done:
                raise StageError(name, cause)

    def _heed_cancel(self) -> None:
        if self._cancel.stopping:
            raise _StopNow
        if self._cancel.draining and self._can_drain:
            self._can_drain = False
            self._tell([0], Drain())

    def _stop(self, everyone: range) -> None:
        """Stop whoever still works, and wait until they have closed their stages."""
        self._tell(everyone, Stop())
        deadline = time.monotonic() + _STOP_SECONDS
        while time.monotonic() < deadline and any(self._is_working(position) for position in everyone):
            message = self._inbox.receive_within(_LOOK_ROUND_SECONDS)
            if message is not None:
                self._note(message)

    def _is_working(self, position: int) -> bool:
        return position not in self._done and self._crew.cause_of_death(position) is None

    def _tell(self, positions: Iterable[int], message: Message) -> None:
        for position in positions:
            self._outboxes[position].send(message)

    def _seconds(self) -> float:
        return time.perf_counter() - self._started

    def _report(self) -> RunReport:
        done = [self._done.get(position) for position in range(len(self._names))]
        sink = done[-1]
        return RunReport(
            frames=sink.frames if sink else self._frames,
            cancelled=sink is None or not sink.complete,
            flushed=all(one is not None and one.flushed for one in done),
            open_seconds=self._open_seconds or self._seconds(),
            wall_seconds=self._seconds(),
            stages={name: one.timing for name, one in zip(self._names, done, strict=True) if one},
            summaries={self._names[position]: self._summaries[position] for position in sorted(self._summaries)},
        )


def _check(stages: Sequence[Stage], slots: int) -> None:
    kinds = [Source if isinstance(stage, Source) else Sink if isinstance(stage, Sink) else Stage for stage in stages]
    if len(kinds) < 2 or kinds != [Source, *[Stage] * (len(kinds) - 2), Sink]:
        raise ValueError("a pipeline is a source, any number of stages, and a sink")
    if len({stage.name for stage in stages}) < len(stages):
        raise ValueError("the stages of a pipeline need different names")
    if slots < 1:
        raise ValueError(f"a pipeline needs at least 1 slot, got {slots}")
