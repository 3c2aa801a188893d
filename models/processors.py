"""How much of this machine a process may use."""

import os


def usable_processors() -> int:
    """The processors that this process may run on: those of the machine, or fewer in a container or under taskset."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
