"""One network for many callers."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest

from unmask.models.batching import MOST_AT_ONCE, BatchingEngine
from unmask.models.engine import Engine

U8 = npt.NDArray[np.uint8]


class Gated(Engine):
    """Inverts pictures once it is let to; notes how many it was given in each call, and uses its result again."""

    description = "a network"

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)
        self._result = np.zeros((64, 4), np.uint8)

    def __call__(self, *inputs: U8) -> U8:
        self.sizes.append(len(inputs[0]))
        self.entered.release()
        self.gate.acquire()
        if (inputs[0] == 13).any():
            raise ValueError("thirteen")
        result = self._result[: len(inputs[0])]
        result[...] = np.invert(inputs[0])
        return result


def picture(value: int) -> U8:
    return np.full((1, 4), value, np.uint8)


def test_one_caller_is_served_at_once_and_alone() -> None:
    inner = Gated()
    inner.gate.release(2)
    engine = BatchingEngine(inner)
    first = engine(picture(1))
    second = engine(picture(2))
    assert (inner.sizes, engine.description) == ([1, 1], "a network")
    np.testing.assert_array_equal(first, np.invert(picture(1)))  # it outlives the next call
    np.testing.assert_array_equal(second, np.invert(picture(2)))


def _start(pool: ThreadPoolExecutor, engine: BatchingEngine, inner: Gated, values: range) -> list["Future[U8]"]:
    """The first caller is inside the network, all others wait."""
    futures = [pool.submit(engine, picture(values[0]))]
    assert inner.entered.acquire(timeout=10)
    futures += [pool.submit(engine, picture(value)) for value in values[1:]]
    while len(engine._waiting) < len(values) - 1:
        threading.Event().wait(0.001)
    return futures


def test_those_who_wait_go_together_and_each_gets_its_own() -> None:
    inner, values = Gated(), range(40, 48)
    engine = BatchingEngine(inner)
    with ThreadPoolExecutor(len(values)) as pool:
        futures = _start(pool, engine, inner, values)
        inner.gate.release(2)
        for value, future in zip(values, futures, strict=True):
            np.testing.assert_array_equal(future.result(10), np.invert(picture(value)))
    assert inner.sizes == [1, len(values) - 1]


def test_batches_have_a_limit() -> None:
    inner, values = Gated(), range(100, 100 + MOST_AT_ONCE + 4)
    engine = BatchingEngine(inner)
    with ThreadPoolExecutor(len(values)) as pool:
        futures = _start(pool, engine, inner, values)
        inner.gate.release(3)
        for value, future in zip(values, futures, strict=True):
            np.testing.assert_array_equal(future.result(10), np.invert(picture(value)))
    assert inner.sizes == [1, MOST_AT_ONCE, 3]


def test_a_failure_reaches_all_who_were_in_the_call_and_nobody_else() -> None:
    inner = Gated()
    engine = BatchingEngine(inner)
    with ThreadPoolExecutor(3) as pool:
        futures = _start(pool, engine, inner, range(12, 15))
        inner.gate.release(3)
        futures[0].result(10)
        for future in futures[1:]:
            with pytest.raises(ValueError, match="thirteen"):
                future.result(10)
    np.testing.assert_array_equal(engine(picture(1)), np.invert(picture(1)))
