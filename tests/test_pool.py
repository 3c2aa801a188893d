"""Frame slots on the heap and shared between processes."""

import multiprocessing
from fractions import Fraction

import numpy as np
import pytest
from pipeline_stages import fill_slot, send_slot_sums, shared_memory_descriptors

from unmask.stream.frame import FACE_BYTES, Frame, Layout
from unmask.stream.pool import SharedSlots, heap_pool


def test_slots_are_as_large_as_asked_and_do_not_overlap() -> None:
    pool = heap_pool(4, 10_001)
    for slot in range(4):
        pool.buffer(slot)[:] = slot + 1
    assert [pool.buffer(slot).size for slot in range(4)] == [10_001] * 4
    assert [set(pool.buffer(slot).tolist()) for slot in range(4)] == [{1}, {2}, {3}, {4}]


def test_a_slot_fits_the_frame_and_its_faces_exactly() -> None:
    layout = Layout(33, 17, "yuv420p10le", keep_source=True)
    pool = heap_pool(2, layout.slot_bytes(3))
    frame = Frame(0, 0, Fraction(1), layout, pool.buffer(1), 1)
    assert frame.max_faces == 3
    assert frame.buffer.size == layout.pixel_bytes + 3 * FACE_BYTES
    assert [plane.dtype for plane in frame.planes] == [np.uint16] * 3


@pytest.mark.parametrize("slot", [-1, 2])
def test_a_slot_that_does_not_exist_is_refused(slot: int) -> None:
    with pytest.raises(IndexError, match="does not exist"):
        heap_pool(2, 100).buffer(slot)


def test_processes_share_slots_that_have_no_name() -> None:
    shared = SharedSlots(3, 5_000)
    spawn = multiprocessing.get_context("spawn")
    writer = spawn.Process(target=fill_slot, args=(shared, 1, 77))
    writer.start()
    writer.join()
    answer, question = spawn.Pipe(duplex=False)
    reader = spawn.Process(target=send_slot_sums, args=(shared, question))
    reader.start()
    sums = answer.recv()
    reader.join()
    assert sums == [0, 77 * 5_000, 0]
    assert len(shared_memory_descriptors()) == 1
    shared.close()
    assert shared_memory_descriptors() == []
    answer.close()
    question.close()
