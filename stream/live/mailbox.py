"""A bounded hand-over between two threads. What happens when it is full is decided where it is made."""

import threading
import time
from collections import deque
from enum import StrEnum
from typing import Generic, TypeVar

T = TypeVar("T")


class WhenFull(StrEnum):
    """What `put` does where there is no room."""

    BLOCK = "block"
    DROP_OLDEST = "drop oldest"


class Mailbox(Generic[T]):
    """First in, first out, between threads.

    Args:
        places: how many items it holds at most, at least 1.
        when_full: BLOCK makes the sender wait; DROP_OLDEST never does, and the newest item wins.
    """

    def __init__(self, places: int, when_full: WhenFull) -> None:
        self._places = places
        self._when_full = when_full
        self._items: deque[T] = deque()
        self._changed = threading.Condition()
        self._closed = False

    def put(self, item: T) -> int:
        """Hand over an item; returns how many were dropped for it. After `close` the item itself is dropped: 1."""
        with self._changed:
            if self._when_full is WhenFull.BLOCK:
                self._changed.wait_for(lambda: self._closed or len(self._items) < self._places)
            if self._closed:
                return 1
            dropped = len(self._items) >= self._places
            if dropped:
                self._items.popleft()
            self._items.append(item)
            self._changed.notify_all()
            return int(dropped)

    def get(self, seconds: float) -> T | None:
        """The oldest item, waited for up to `seconds`; None where there is none. Items left at `close` still come."""
        deadline = time.monotonic() + seconds
        with self._changed:
            while not self._items and not self._closed:
                left = deadline - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
            return item

    def close(self) -> None:
        """No more items follow; whoever waits goes on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        """True once it is closed and empty."""
        with self._changed:
            return self._closed and not self._items
