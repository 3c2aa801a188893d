"""What Ctrl-C, SIGTERM and a closed terminal (SIGHUP) mean while a pipeline or a server runs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from unmask.hangup import HANGUP, ending_signals, leave, terminals
from unmask.progress import say

STOPPED: Final = 130
"""Exit code after Ctrl-C, as shells give it: 128 + SIGINT."""

FINISHING: Final = "stopping: finishing the frames under way; once more to stop now and keep nothing"


FINISHING_PICTURE: Final = "stopping: finishing the picture under way; once more to stop now and do without it"


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
    shown_on = terminals()

    def on_signal(number: int, _: object) -> None:
        if number == HANGUP:
            leave(shown_on)
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

    before = {number: signal.signal(number, on_signal) for number in ending_signals()}
    try:
        yield came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
