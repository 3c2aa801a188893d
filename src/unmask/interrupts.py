"""What Ctrl-C and SIGTERM mean while a pipeline runs."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Final

from unmask.progress import say

if TYPE_CHECKING:
    from unmask.stream.supervisor import Cancel

STOPPED: Final = 130
"""Exit code after Ctrl-C, as shells give it: 128 + SIGINT."""


@contextmanager
def interruptible(cancel: "Cancel") -> Iterator[Event]:
    """Ctrl-C and SIGTERM drain the run the first time, stop it the second time, and end the program the third time.

    Yields an event that is set from the first time on.
    """
    interrupted = Event()

    def on_signal(number: int, _: object) -> None:
        if not interrupted.is_set():
            interrupted.set()
            say("stopping: finishing the frames under way; once more to stop now and keep nothing")
            cancel.drain()
        else:
            signal.signal(number, signal.SIG_DFL)
            cancel.stop_now()

    before = {number: signal.signal(number, on_signal) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield interrupted
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
