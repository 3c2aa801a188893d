"""The one message loop that carries frames through a stage, in a thread or in a process of its own.

    stage     inbox gets                                   sends on
    first     credits (from the last), orders              frames, then End
    middle    frames, then End (from before), orders       frames, then End
    last      frames, then End (from before), orders       credits (to the first), Progress

Every worker tells the supervisor Ready, Failed, Done and the like, and keeps its sockets open until it is dismissed, so
that nothing it sent is lost.
"""

import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from typing import Final

from unmask.errors import EngineError, StageError, UnmaskError, UserError
from unmask.stream.frame import Frame, Layout
from unmask.stream.pool import SlotPool
from unmask.stream.stage import Context, Stage
from unmask.stream.timing import Durations
from unmask.stream.transport import (
    AnyMessage,
    Credit,
    Dismiss,
    Done,
    Drain,
    End,
    Failed,
    FrameHeader,
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
    ZmqContext,
    frame_from,
    header_of,
)

KEPT_ERRORS: Final = {error.__name__: error for error in (UserError, EngineError)}
"""What leaves a run as the class that a stage raised; anything else becomes a StageError."""

_PROGRESS_SECONDS: Final = 0.02
"""Progress is for eyes: more often than this it would only cost time."""


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a worker must know of the run.

    Args:
        position: of its stage in the pipeline.
        inboxes: the endpoint of every worker's inbox, by position.
        supervisor: the endpoint of the supervisor's inbox.
        layout, max_faces: of every frame.
    """

    position: int
    inboxes: tuple[str, ...]
    supervisor: str
    layout: Layout
    max_faces: int


class _Stopped(Exception):  # noqa: N818 - not an error
    """The supervisor wants no more."""


def work(load_stage: Callable[[], Stage], assignment: Assignment, pool: SlotPool, context: ZmqContext) -> None:
    """Carry frames through a stage until the stream has ended or the supervisor stops the run.

    Args:
        load_stage: gives the stage; what it raises is reported as the stage's failure.
        assignment: which stage of which run.
        pool: the slots of the run.
        context: for the sockets.
    """
    position, count = assignment.position, len(assignment.inboxes)
    kinds = {0: _SourceWorker, count - 1: _SinkWorker}
    with (
        Inbox(context, assignment.inboxes[position]) as inbox,
        Outbox(context, assignment.inboxes[(position + 1) % count]) as onward,
        Outbox(context, assignment.supervisor) as upward,
    ):
        kinds.get(position, _MiddleWorker)(assignment, pool, inbox, onward, upward).run(load_stage)


class _Worker(ABC):
    """What all workers do. `_carry` is the loop; `_deliver` says where a frame goes when the stage gives it."""

    def __init__(self, assignment: Assignment, pool: SlotPool, inbox: Inbox, onward: Outbox, upward: Outbox) -> None:
        self._position = assignment.position
        self._layout = assignment.layout
        self._max_faces = assignment.max_faces
        self._pool = pool
        self._inbox = inbox
        self._onward = onward
        self._upward = upward
        self._stage: Stage | None = None
        self._held: deque[int] = deque()  # the slots of the frames that the stage has, oldest first
        self._most_held = 0
        self._given = 0
        self._complete = False
        self._flushed = False
        self._durations = Durations()

    def run(self, load_stage: Callable[[], Stage]) -> None:
        """Open, carry, flush, close; whatever goes wrong is told to the supervisor."""
        with self._reporting_failure():
            self._serve(load_stage())
        with self._reporting_failure():
            if self._stage is not None:
                self._stage.close()
        self._upward.send(self._done())
        while not isinstance(self._inbox.receive(), Dismiss):
            pass

    def _serve(self, stage: Stage) -> None:
        self._wait_for(Open)
        stage.open(Context(self._layout, self._max_faces, self._notice))
        self._stage = stage
        self._upward.send(Ready(self._position))
        self._complete = self._carry(stage)
        self._give(stage, self._flush(stage))
        if self._held:
            raise StageError(stage.name, f"it kept {len(self._held)} frames at the end of the stream")
        self._upward.send(Summary(self._position, stage.summary()))
        self._flushed = True
        self._end()

    @abstractmethod
    def _carry(self, stage: Stage) -> bool:
        """Take frames through `process` until there are no more; False where the run was cancelled."""

    def _deliver(self, frame: Frame) -> None:
        """Pass on a frame that the stage gave."""
        self._onward.send(header_of(frame))

    def _end(self) -> None:
        """Tell the next stage that no more frames follow."""
        self._onward.send(End(self._complete))

    def _receive(self) -> AnyMessage:
        message = self._inbox.receive()
        if isinstance(message, Stop):
            raise _Stopped
        return message

    def _wait_for(self, kind: type[Message]) -> None:
        while not isinstance(self._receive(), kind):
            pass

    def _notice(self, line: str) -> None:
        self._upward.send(Notice(line))

    def _process(self, stage: Stage, frame: Frame) -> list[Frame]:
        self._held.append(frame.slot)
        given, seconds = _timed(stage.process, frame)
        self._durations.add(seconds)
        return given

    def _flush(self, stage: Stage) -> list[Frame]:
        return list(stage.flush())

    def _give(self, stage: Stage, frames: Iterable[Frame]) -> None:
        """Deliver what the stage gave, once it is certain that these are the next of the frames it has."""
        for frame in frames:
            if not self._held or frame.index != self._given or frame.slot != self._held[0]:
                raise StageError(stage.name, f"it gave frame {frame.index} where frame {self._given} was due")
            self._deliver(frame)
            self._held.popleft()
            self._given += 1
        if len(self._held) > self._most_held:
            self._most_held = len(self._held)
            self._upward.send(Holding(self._position, self._most_held))

    def _done(self) -> Done:
        return Done(self._position, self._given, self._complete, self._flushed, self._durations.timing())

    @contextmanager
    def _reporting_failure(self) -> Iterator[None]:
        try:
            yield
        except _Stopped:
            pass
        except Exception as error:
            self._upward.send(_failure(self._position, error))


class _SourceWorker(_Worker):
    """Hands free slots to the source."""

    def _carry(self, stage: Stage) -> bool:
        self._wait_for(Go)
        free = deque(range(self._pool.count))
        while self._refill(free):
            given, seconds = _timed(stage.process, self._empty_frame(free[0]))
            if not given:
                return True
            self._durations.add(seconds)
            self._held.append(free.popleft())
            self._give(stage, given)
        return False

    def _refill(self, free: deque[int]) -> bool:
        """Take in credits, waiting for one where no slot is free. False where the run is to drain."""
        while True:
            message = self._receive() if not free else self._inbox.receive_within(0)
            match message:
                case None:
                    return True
                case Credit(slot=slot):
                    free.append(slot)
                case Drain():
                    return False
                case Stop():
                    raise _Stopped

    def _empty_frame(self, slot: int) -> Frame:
        buffer, nv12 = self._pool.buffer(slot), self._pool.nv12(slot)
        return Frame(self._given, 0, Fraction(1), self._layout, buffer, slot, nv12=nv12)


class _MiddleWorker(_Worker):
    """Takes frames from one neighbour to the other."""

    def _carry(self, stage: Stage) -> bool:
        while True:
            match self._receive():
                case FrameHeader() as header:
                    self._give(stage, self._before(stage, header))
                    self._give(stage, self._process(stage, frame_from(header, self._layout, self._pool)))
                case End(complete=complete):
                    return complete

    def _before(self, stage: Stage, header: FrameHeader) -> list[Frame]:
        """What the stage still holds must not meet what comes after a discontinuity."""
        return self._flush(stage) if header.discontinuity and self._held else []


class _SinkWorker(_MiddleWorker):
    """Gives the slots of finished frames back to the source."""

    def __init__(self, assignment: Assignment, pool: SlotPool, inbox: Inbox, onward: Outbox, upward: Outbox) -> None:
        super().__init__(assignment, pool, inbox, onward, upward)
        self._progress = Progress(0, 0.0)
        self._next_progress = 0.0

    def _before(self, stage: Stage, header: FrameHeader) -> list[Frame]:
        return []  # the output goes on, and flushing a sink finishes it

    def _deliver(self, frame: Frame) -> None:
        self._onward.send(Credit(frame.slot))
        self._progress = Progress(frame.index + 1, frame.pts_seconds)
        if time.monotonic() >= self._next_progress:
            self._next_progress = time.monotonic() + _PROGRESS_SECONDS
            self._upward.send(self._progress)

    def _end(self) -> None:
        self._upward.send(self._progress)


def _timed(step: Callable[..., Iterable[Frame]], *arguments: Frame) -> tuple[list[Frame], float]:
    """What a step of a stage gives (it may be a generator), and the seconds it took."""
    start = time.perf_counter()
    given = list(step(*arguments))
    return given, time.perf_counter() - start


def _failure(position: int, error: Exception) -> Failed:
    kept = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in KEPT_ERRORS), "")
    if isinstance(error, StageError):
        reason = error.reason
    elif isinstance(error, UnmaskError):
        reason = str(error)
    else:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
    return Failed(position, kept, reason, "".join(traceback.format_exception(error)))
