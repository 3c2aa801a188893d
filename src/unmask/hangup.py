"""The signals that end the program, and the terminal that was closed (SIGHUP)."""

import os
import signal
from typing import Final

HANGUP: Final[int | None] = getattr(signal, "SIGHUP", None)
"""None where the system does not have it."""


def ending_signals() -> tuple[int, ...]:
    """The signals that end the work: SIGHUP only where the system has it, and not under `nohup`, which ignores it."""
    if HANGUP is None or signal.getsignal(HANGUP) is signal.SIG_IGN:
        return (signal.SIGINT, signal.SIGTERM)
    return (signal.SIGINT, signal.SIGTERM, HANGUP)


def terminals() -> list[int]:
    """Which of stdout and stderr go to a terminal."""
    return [number for number in (1, 2) if os.isatty(number)]


def leave(terminals: list[int]) -> None:
    """Write to nowhere what went to a terminal that is closed, where every line would be an error from now on."""
    for number in terminals:
        if not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, number)
            os.close(nowhere)
