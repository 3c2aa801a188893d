"""What Ctrl-C, SIGTERM and a closed terminal (SIGHUP) mean while a pipeline or a server runs."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from unmask.progress import say

STOPPED: Final = 130
"""Exit code after Ctrl-C, as shells give it: 128 + SIGINT."""

FINISHING: Final = "stopping: finishing the frames under way; once more to stop now and keep nothing"


FINISHING_PICTURE: Final = "stopping: finishing the picture under way; once more to stop now and do without it"

_HANGUP: Final[int | None] = getattr(signal, "SIGHUP", None)


class Interruptible(Protocol):
    """What can be ended from a signal handler: `unmask.stream.supervisor.Cancel`, `unmask.stream.server.Server`."""

    def drain(self) -> None:
        """Take nothing more, finish what is under way."""

    def stop_now(self) -> None:
        """Give up what is under way."""


@contextmanager
def interruptible(work: Interruptible, line: str | None = None) -> Iterator[list[int]]:
    """Ctrl-C and SIGTERM drain the work the first time, stop it the second time, and end the program the third time.

    A closed terminal drains it too, and no more than that: shells pass its SIGHUP on, so that it may come twice.

    Args:
        work: what is running.
        line: said to the user the first time; None where the work itself says so.

    Yields:
        The signals that have come so far.
    """
    came: list[int] = []
    terminals = [number for number in (1, 2) if os.isatty(number)]

    def on_signal(number: int, _: object) -> None:
        if number == _HANGUP:
            _leave(terminals)
            if came:
                return
        came.append(number)
        if len(came) == 1:
            if line is not None:
                say(line)
            work.drain()
        else:
            signal.signal(number, signal.SIG_DFL)
            work.stop_now()

    before = {number: signal.signal(number, on_signal) for number in _heeded()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _heeded() -> tuple[int, ...]:
    """The signals that end the work: SIGHUP only where the system has it, and not under `nohup`, which ignores it."""
    if _HANGUP is None or signal.getsignal(_HANGUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, _HANGUP)


def _leave(terminals: list[int]) -> None:
    """Write to nowhere what went to a terminal that is closed, where every line would be an error from now on."""
    for number in terminals:
        if not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
