"""Shared memory between the server and a client on the same host, for pictures only.

The server makes it, so that no client can shrink it under the server's hands, and names it by a path under /proc that
only processes of the same user can open. It has no name of its own: whoever is killed, nothing is left behind.
"""

import fcntl
import mmap
import os
import secrets
from typing import Final

import numpy as np

from unmask.stream.frame import U8
from unmask.stream.protocol import Shared

_PAGE: Final = 4096
_NAME: Final = "unmask-serve"
TOKEN_BYTES: Final = 16


def can_share() -> bool:
    """Whether this system has the memory that is needed (Linux)."""
    return hasattr(os, "memfd_create")


class ServedMemory:
    """The server's side.

    Args:
        slots: number of slots.
        slot_bytes: size of each.
        number: tells it from others of the same client.

    Raises:
        OSError: the system gives none.
    """

    def __init__(self, slots: int, slot_bytes: int, number: int) -> None:
        stride = -(-slot_bytes // _PAGE) * _PAGE
        size = _PAGE + slots * stride
        self._descriptor = os.memfd_create(_NAME, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self._descriptor, size)  # pages are taken when they are written, not now
        fcntl.fcntl(self._descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        self._memory = np.frombuffer(mmap.mmap(self._descriptor, size), np.uint8)
        token = secrets.token_bytes(TOKEN_BYTES)
        self._memory[:TOKEN_BYTES] = np.frombuffer(token, np.uint8)
        path = f"/proc/{os.getpid()}/fd/{self._descriptor}"
        self.message = Shared(path, token, slots, slot_bytes, _PAGE, stride, number)

    def slot(self, number: int) -> U8:
        """The (slot_bytes,) uint8 memory of a slot. Raises IndexError where there is no such slot."""
        return _slot(self._memory, self.message, number)

    def close(self) -> None:
        """Let no one open it any more. The memory goes when the last view of it does."""
        os.close(self._descriptor)


class OpenedMemory:
    """The client's side.

    Args:
        message: what the server said.

    Raises:
        OSError: it cannot be opened: another user, another container, another host.
    """

    def __init__(self, message: Shared) -> None:
        self.message = message
        # The path may mean another file here, where the server is reached through a tunnel: nothing is opened, let
        # alone written, before that is ruled out.
        if _NAME not in os.readlink(message.path):
            raise OSError(f"{message.path} is not the server's memory")
        descriptor = os.open(message.path, os.O_RDWR | os.O_CLOEXEC)
        try:
            if os.pread(descriptor, TOKEN_BYTES, 0) != message.token:
                raise OSError(f"{message.path} is the memory of another server")
            size = message.first + message.slots * message.stride
            self._memory = np.frombuffer(mmap.mmap(descriptor, size), np.uint8)
        finally:
            os.close(descriptor)

    def slot(self, number: int) -> U8:
        """The (slot_bytes,) uint8 memory of a slot. Raises IndexError where there is no such slot."""
        return _slot(self._memory, self.message, number)


def _slot(memory: U8, message: Shared, number: int) -> U8:
    if not 0 <= number < message.slots:
        raise IndexError(f"slot {number} does not exist, there are {message.slots}")
    start = message.first + number * message.stride
    return memory[start : start + message.slot_bytes]
