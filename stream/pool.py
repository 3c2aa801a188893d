"""Frame slots: a fixed number of buffers that all frames of a run share.

A slot belongs to whoever holds its frame, and to nobody else; only the holder may read or write it. The source takes a
free slot for each frame, the slot travels with the frame's header from stage to stage, and is free again when the sink
has given the frame back and the credit for it has reached the source. The number of slots thus bounds both the memory
of a run and the frames in flight.
"""

import mmap
import os
from collections.abc import Sequence
from multiprocessing.reduction import DupFd
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from unmask.stream.frame import U8

if TYPE_CHECKING:
    from torch import Tensor

_ALIGNMENT: Final = 4096
"""Slots begin on a page, so that two processes never write to the same cache line."""


class SlotPool:
    """A number of slots of one size.

    Args:
        memory: (pool_bytes(count, slot_bytes),) uint8 that the slots are cut from.
        count: number of slots.
        slot_bytes: size of each.
        tensors: the picture of each slot, where pictures lie in tensors.
    """

    def __init__(self, memory: U8, count: int, slot_bytes: int, tensors: "Sequence[Tensor]" = ()) -> None:
        self.count = count
        self._slot_bytes = slot_bytes
        self._memory = memory
        self._tensors = tensors

    def buffer(self, slot: int) -> U8:
        """The (slot_bytes,) uint8 memory of a slot. Raises IndexError where there is no such slot."""
        if not 0 <= slot < self.count:
            raise IndexError(f"slot {slot} does not exist, the pool has {self.count}")
        start = slot * _stride(self._slot_bytes)
        return self._memory[start : start + self._slot_bytes]

    def nv12(self, slot: int) -> "Tensor | None":
        """The picture of a slot where pictures lie in tensors, else None."""
        return self._tensors[slot] if self._tensors else None


def pool_bytes(count: int, slot_bytes: int) -> int:
    """Bytes of memory that a pool needs."""
    return count * _stride(slot_bytes)


def heap_pool(count: int, slot_bytes: int, tensors: "Sequence[Tensor]" = ()) -> SlotPool:
    """Slots in the memory of this process, for stages that run in threads."""
    return SlotPool(np.zeros(pool_bytes(count, slot_bytes), np.uint8), count, slot_bytes, tensors)


class SharedSlots:
    """Slots for several processes. An argument of a child's `Process`, it arrives there as a `SlotPool`.

    The memory is anonymous (memfd_create(2)): it has no name that could be left behind, and the kernel frees it when
    the last process that maps it ends, however it ends. Nor does the size of /dev/shm (64 MB in a container by default)
    limit it.

    Args:
        count: number of slots.
        slot_bytes: size of each.
    """

    def __init__(self, count: int, slot_bytes: int) -> None:
        self._count = count
        self._slot_bytes = slot_bytes
        self._descriptor = os.memfd_create("unmask-slots")
        os.ftruncate(self._descriptor, pool_bytes(count, slot_bytes))

    def close(self) -> None:
        """Let go of the file descriptor. Children that have started keep the memory."""
        os.close(self._descriptor)

    def __reduce__(self) -> tuple[Any, ...]:
        return _received, (DupFd(self._descriptor), self._count, self._slot_bytes)


def _received(sent: Any, count: int, slot_bytes: int) -> SlotPool:
    descriptor = sent.detach()
    memory = mmap.mmap(descriptor, pool_bytes(count, slot_bytes))  # has a descriptor of its own
    os.close(descriptor)
    return SlotPool(np.frombuffer(memory, np.uint8), count, slot_bytes)


def _stride(slot_bytes: int) -> int:
    return -(-slot_bytes // _ALIGNMENT) * _ALIGNMENT
