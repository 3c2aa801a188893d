"""Messages and the sockets that carry them."""

import dataclasses
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.stream.frame import Face, FacePictures, Frame, Layout
from unmask.stream.pool import SlotPool, heap_pool
from unmask.stream.transport import (
    Credit,
    End,
    FaceHeader,
    FrameHeader,
    Inbox,
    Outbox,
    Progress,
    Summary,
    ZmqContext,
    decode,
    encode,
    frame_from,
    header_of,
)

LAYOUT = Layout(20, 11)
MAX_FACES = 3
SLOTS = 4


@pytest.fixture(scope="module")
def pool() -> SlotPool:
    return heap_pool(SLOTS, LAYOUT.slot_bytes(MAX_FACES))


@pytest.fixture
def context() -> Iterator[ZmqContext]:
    with zmq.Context() as context:
        yield context


def make_frame(pool: SlotPool, places: list[int], seed: int = 0, **changes: Any) -> Frame:
    values: dict[str, Any] = {"index": 5, "pts": -2, "time_base": Fraction(1, 90000), "slot": 1} | changes
    frame = Frame(layout=LAYOUT, buffer=pool.buffer(values["slot"]), **values)
    noise = np.random.default_rng(seed)
    for place in places:
        landmarks = noise.normal(size=(468, 3)).astype(np.float32)
        matrix = noise.normal(size=(2, 3))
        box = tuple(noise.normal(size=4))
        pictures = frame.face_pictures(place)
        frame.faces.append(
            Face(10 + place, box, noise.random(), landmarks, matrix, place == 1, pictures, 0.25, True, place == 0, 0.75)
        )
    return frame


def assert_same(left: Frame, right: Frame) -> None:
    for name in ("index", "pts", "time_base", "layout", "slot", "discontinuity", "pts_seconds"):
        assert getattr(left, name) == getattr(right, name)
    assert np.shares_memory(left.buffer, right.buffer)
    assert len(left.faces) == len(right.faces)
    for one, other in zip(left.faces, right.faces, strict=True):
        for name in ("track_id", "box_px", "score", "reset", "mask_score", "masked", "still", "wears"):
            assert getattr(one, name) == getattr(other, name)
        for array, twin in ((one.landmarks_px, other.landmarks_px), (one.crop_from_frame, other.crop_from_frame)):
            assert (array.dtype, array.tobytes()) == (twin.dtype, twin.tobytes())
        for picture, twin_picture in zip(one.pictures, other.pictures, strict=True):
            assert picture.shape == twin_picture.shape
            assert np.shares_memory(picture, twin_picture)


@settings(max_examples=60, deadline=None)
@given(
    index=st.integers(0, 2**40),
    pts=st.integers(-(2**63), 2**63 - 1),
    time_base=st.fractions(min_value=Fraction(1, 10**9), max_value=100, max_denominator=10**9),
    slot=st.integers(0, SLOTS - 1),
    discontinuity=st.booleans(),
    places=st.permutations(range(MAX_FACES)),
    faces=st.integers(0, MAX_FACES),
    seed=st.integers(0, 2**32 - 1),
)
def test_a_frame_survives_its_header(
    pool: SlotPool, places: list[int], faces: int, seed: int, **values: int | Fraction
) -> None:
    frame = make_frame(pool, places[:faces], seed, **values)
    header = decode(encode(header_of(frame)))
    assert isinstance(header, FrameHeader)
    assert_same(frame_from(header, LAYOUT, pool), frame)


def test_every_field_of_a_face_travels() -> None:
    """All but its pictures, which lie at its place in the slot."""
    fields = {field.name for field in dataclasses.fields(Face)}
    assert fields - {"pictures"} == set(FaceHeader.__struct_fields__) - {"place"}


def test_arrays_of_a_received_face_can_be_written(pool: SlotPool) -> None:
    frame = frame_from(header_of(make_frame(pool, [0])), LAYOUT, pool)
    frame.faces[0].landmarks_px += 1
    frame.faces[0].crop_from_frame[:] = 0


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("landmarks_px", np.zeros((467, 3), np.float32), "shape"),
        ("crop_from_frame", np.eye(3), "shape"),
        ("pictures", FacePictures(*np.zeros((4, 1), np.uint8)), "not those"),
    ],
)
def test_a_face_that_does_not_belong_to_its_frame_is_refused(
    pool: SlotPool, name: str, value: object, reason: str
) -> None:
    frame = make_frame(pool, [0, 1])
    setattr(frame.faces[1], name, value)
    with pytest.raises(ValueError, match=reason):
        header_of(frame)


def test_pictures_of_another_frame_are_refused(pool: SlotPool) -> None:
    frame = make_frame(pool, [0])
    frame.faces[0].pictures = make_frame(pool, [0], slot=2).faces[0].pictures
    with pytest.raises(ValueError, match="not those of its frame"):
        header_of(frame)


@pytest.mark.parametrize(
    ("field", "value"),
    [(1, -1), (3, [1, 0]), (4, -1), (4, 1.5), (5, 1), (6, [[0, 1, [0, 0, 1, 1], 1.0, b"short", b"", True, 0.0, True]])],
)
def test_a_header_out_of_range_is_refused(pool: SlotPool, field: int, value: object) -> None:
    header = msgspec.msgpack.decode(encode(header_of(make_frame(pool, []))))
    header[field] = value
    with pytest.raises(ValueError, match="not a message of the pipeline"):
        decode(msgspec.msgpack.encode(header))


@pytest.mark.parametrize("data", [b"", b"\x00", b"\x91\xa5Bogus", encode(Credit(3))[:-1], encode(Credit(3)) + b"\x00"])
def test_what_is_not_a_message_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match="not a message of the pipeline"):
        decode(data)


def test_slots_and_places_that_do_not_exist_are_refused(pool: SlotPool) -> None:
    header = header_of(make_frame(pool, [2]))
    with pytest.raises(IndexError, match="slot"):
        frame_from(msgspec.structs.replace(header, slot=SLOTS), LAYOUT, pool)
    face = msgspec.structs.replace(header.faces[0], place=MAX_FACES)
    with pytest.raises(IndexError, match="does not fit"):
        frame_from(msgspec.structs.replace(header, faces=(face,)), LAYOUT, pool)


def test_a_summary_may_hold_numpy_values_and_arrives_plain() -> None:
    sent = Summary(1, {"a": np.float32(0.5), "b": [np.int64(3)], "c": np.arange(3), "d": {"e": np.bool_(True)}})
    received = decode(encode(sent))
    assert isinstance(received, Summary)
    assert received.values == {"a": 0.5, "b": [3], "c": [0, 1, 2], "d": {"e": True}}
    assert type(received.values["b"][0]) is int


def test_a_summary_of_anything_else_is_refused() -> None:
    with pytest.raises(TypeError, match="Fraction"):
        encode(Summary(1, {"a": Fraction(1, 2)}))


@pytest.mark.parametrize("scheme", ["inproc", "ipc"])
def test_messages_sent_before_the_inbox_exists_arrive_in_order(
    context: ZmqContext, tmp_path_factory: pytest.TempPathFactory, scheme: str
) -> None:
    endpoint = "inproc://inbox" if scheme == "inproc" else f"ipc://{tmp_path_factory.mktemp('s')}/inbox"
    sent = [Progress(number, number / 10) for number in range(2000)]
    with Outbox(context, endpoint) as outbox:
        for message in sent:
            outbox.send(message)
        outbox.send(End(complete=False))
        with Inbox(context, endpoint) as inbox:
            assert [inbox.receive() for _ in sent] == sent
            assert inbox.receive() == End(complete=False)
            assert inbox.receive_within(0) is None


def test_ports_close_at_once_though_nobody_receives(context: ZmqContext) -> None:
    with Outbox(context, "ipc:///nonexistent/inbox") as outbox:
        outbox.send(Credit(1))
