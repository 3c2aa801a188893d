"""What a stage is. A stage knows nothing of ZeroMQ, threads or processes: tests call it with frames."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from unmask.stream.frame import Frame, Layout

if TYPE_CHECKING:
    from unmask.models.engine import Engine, EngineChoice, NetworkName
    from unmask.models.seen import Views


def _discard(line: str) -> None:
    del line


def _load(network: "NetworkName", choice: "EngineChoice", notice: Callable[[str], None]) -> "Engine":
    from unmask.models.engine import load  # stages without a network are spared OpenVINO

    return load(network, choice, notice)


def _views(person: str) -> "Views":
    from unmask.models.person import Person

    return Person.load(Path(person)).views


@dataclass(frozen=True, slots=True)
class Context:
    """What a stage is told when it opens.

    Args:
        layout: of every frame that will come.
        max_faces: how many faces a slot has room for.
        notice: takes one line for the user (which encoder was chosen and why, how many frames were lost).
        load: gives a network, and tells the third argument what the user should know; by default one of the stage's
            own, in `unmask serve` one that all streams share.
        views: gives those that the file of a personal model holds; in `unmask serve` as it was when the server started.
    """

    layout: Layout
    max_faces: int = 8
    notice: Callable[[str], None] = field(default=_discard)
    load: "Callable[[NetworkName, EngineChoice, Callable[[str], None]], Engine]" = field(default=_load)
    views: "Callable[[str], Views]" = field(default=_views)


class Stage(ABC):
    """Takes frames, gives frames, in order.

    The constructor only stores settings, so that a stage can be pickled and sent to the process that will run it;
    files, networks and codecs are opened in `open`. One thread at a time calls the methods of
    a stage; in `unmask serve` not always the same one.
    """

    name: ClassVar[str]

    def open(self, context: Context) -> None:  # noqa: B027 - a stage without resources has nothing to open
        """Acquire what the stage needs. Raises `unmask.errors.UserError` where the user can mend the cause."""

    @abstractmethod
    def process(self, frame: Frame) -> Iterable[Frame]:
        """Work on one frame. A stage may hold frames back, and must give every frame it was given exactly once; those
        that look at faces may not, as pictures and served frames are answered one by one."""

    def flush(self) -> Iterable[Frame]:
        """Give back the frames still held, at the end of the stream or before a discontinuity."""
        return ()

    def close(self) -> None:  # noqa: B027
        """Release everything; called once after `open`, whether or not the run succeeded."""

    def summary(self) -> dict[str, Any]:
        """Plain figures (numbers, strings, lists, dicts) for the report, read after `flush` and before `close`."""
        return {}


class Source(Stage):
    """The first stage: fills empty frames. `process` is given a frame whose buffer is free to be written.

    It gives the frame back filled, or nothing when there are no more frames; after that it is not called again.
    """


class Sink(Stage):
    """The last stage: gives back each frame once it no longer needs its slot. `flush` finishes the output.

    A sink that raises, or is closed without `flush`, must leave nothing behind under the final name.
    """
