"""Both clients over real sockets, with a stand-in for the networks: memories, order and times of frames."""

import asyncio
import copy
import itertools
import pickle
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, cast

import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import zmq
from served import RawClient

from unmask.errors import RefusedError, UserError
from unmask.stream import AsyncClient, Client
from unmask.stream import server as server_module
from unmask.stream.client import Conversation, Unmasked
from unmask.stream.face_stream import Answer, SharedEngines
from unmask.stream.metrics import Metrics
from unmask.stream.protocol import Error, FoundFace, FrameRequest, Reply, Result, Share, Welcome, encode
from unmask.stream.server import ServeOptions, Server

U8 = npt.NDArray[np.uint8]
RNG = np.random.default_rng(0)


class Negative:
    """Stands in for the networks: answers with the negative, so nobody takes what was sent for the answer."""

    requests: list[FrameRequest]
    may_go_on: threading.Event

    def __init__(self, *_: object) -> None:
        pass

    def process(self, request: FrameRequest, data: memoryview) -> Answer:
        self.requests.append(request)
        self.may_go_on.wait(10)
        return Answer(255 - np.frombuffer(data, np.uint8), request.width or 1, request.height or 1, ())

    def close(self) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """Answers at once; `Negative.requests` are the frames that it worked on."""
    Negative.requests, Negative.may_go_on = [], threading.Event()
    Negative.may_go_on.set()
    monkeypatch.setattr(server_module, "FaceStream", Negative)
    options = ServeOptions(bind="tcp://127.0.0.1:0", workers=1)
    server = Server(options, cast(SharedEngines, None), Metrics("none"), lambda event, **fields: None)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield server
    finally:
        Negative.may_go_on.set()
        server.drain()
        thread.join()


def picture(height: int = 20) -> U8:
    return RNG.integers(1, 255, (height, 30, 3), np.uint8)


def kept(client: Client | AsyncClient) -> int:
    """Answers that the client holds for somebody to take."""
    return len(client._conversation._finished)


# --- shared memory ----------------------------------------------------------------------------------------------------


def shares_of(server: Server, monkeypatch: pytest.MonkeyPatch, held_until: int) -> list[int]:
    """Sizes asked for. The first is answered once so many frames were taken, the next ones before the next frame."""
    sizes: list[int] = []
    held: list[Callable[[], None]] = []
    share, accept, frames = server._share, server._accept, [0]

    def hold(client: Any, request: Share) -> None:
        sizes.append(request.bytes)
        held.append(lambda: share(client, request))
        if frames[0] >= held_until and len(held) == 1:
            held.pop()()

    def take(client: Any, request: FrameRequest, payload: memoryview) -> None:
        frames[0] += 1
        if frames[0] > held_until:
            while held:
                held.pop(0)()
        accept(client, request, payload)
        if frames[0] == held_until and held:
            held.pop(0)()

    monkeypatch.setattr(server, "_share", hold)
    monkeypatch.setattr(server, "_accept", take)
    return sizes


def test_larger_frame_while_memory_is_being_set_up_comes_back_unmasked(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [picture(), picture(60)] + [picture() for _ in range(4)]
    sizes = shares_of(server, monkeypatch, held_until=2)
    with Client(server.endpoint) as unmask:
        outs = [*unmask.stream(frames[:2]), *(unmask(frame) for frame in frames[2:])]
        assert unmask.uses_shared_memory
    for frame, out in zip(frames, outs, strict=True):
        np.testing.assert_array_equal(out, 255 - frame)
    assert len(sizes) == 2
    assert Negative.requests[-1].slot is not None


def test_larger_frame_right_behind_the_first_does_not_switch_sharing_off(server: Server) -> None:
    frames = [picture(), picture(60)] + [picture() for _ in range(10)]
    with Client(server.endpoint) as unmask:
        for frame, out in zip(frames, unmask.stream(frames), strict=True):
            np.testing.assert_array_equal(out, 255 - frame)
        unmask(frames[0])
        assert (unmask.uses_shared_memory, unmask.why_not_shared) == (True, None)


def test_coded_frames_of_many_sizes_ask_for_memory_a_few_times(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = shares_of(server, monkeypatch, held_until=0)
    with Client(server.endpoint, format="jpeg") as unmask:
        for size in range(1000, 2000, 50):
            unmask(bytes(size))
    assert len(sizes) == 2
    assert sum(request.slot is not None for request in Negative.requests) >= 16


def test_slot_of_a_memory_that_was_replaced_is_refused(server: Server) -> None:
    with RawClient(server.endpoint) as raw:
        raw.hello()
        memories = []
        for _ in range(2):
            raw.send({"type": "share", "session": raw.session, "bytes": 64 * 48})
            memories.append(raw.receive()[0]["memory"])
        header = {"type": "frame", "session": raw.session, "format": "gray8", "bytes": 64 * 48, "slot": 0}
        header |= {"width": 64, "height": 48}
        raw.send(header | {"id": 1, "seconds": 1.0, "memory": memories[0]})
        refused, _ = raw.receive()
        assert (refused["type"], refused["code"], refused["id"]) == ("error", "shared", 1)
        raw.send(header | {"id": 2, "seconds": 2.0, "memory": memories[1]})
        assert raw.receive()[0]["slot"] == 0
        raw.send(header | {"id": 3, "seconds": 3.0})  # clients that name none mean the newest
        assert raw.receive()[0]["slot"] == 0
        raw.frame(4, seconds=4.0, memory=memories[1])  # with a payload
        assert raw.receive()[0]["code"] == "malformed"


def test_frame_has_no_field_that_early_servers_of_this_version_refuse() -> None:
    request = FrameRequest(1, "s", "rgb24", 24, 0.5, 4, 2, slot=3)
    assert msgspec.msgpack.decode(encode(request)).keys() == {
        *("type", "id", "session", "format", "bytes", "seconds", "width", "height", "slot")
    }


# --- many tasks -------------------------------------------------------------------------------------------------------


def test_more_tasks_than_credits_send_theirs_in_order(server: Server) -> None:
    async def use() -> None:
        async with AsyncClient(server.endpoint) as unmask:

            async def call(frame: U8) -> None:
                for _ in range(8):
                    np.testing.assert_array_equal(await unmask(frame), 255 - frame)

            await asyncio.gather(*(call(picture()) for _ in range(8)))
            await asyncio.gather(*(unmask(picture(), seconds=1000.0 + n) for n in range(20)))

    asyncio.run(use())
    seconds = [request.seconds for request in Negative.requests]
    assert len(seconds) == 84
    assert seconds == sorted(set(seconds))


def test_answers_to_cancelled_calls_are_not_kept(server: Server) -> None:
    async def use() -> None:
        async with AsyncClient(server.endpoint, shared_memory=False) as unmask:
            for _ in range(3):
                Negative.may_go_on.clear()
                calls = [asyncio.create_task(unmask(picture())) for _ in range(6)]
                while len(unmask._conversation._pending) < 4:  # two more wait for credit
                    await asyncio.sleep(0.001)
                for call in calls:
                    call.cancel()
                outcomes = await asyncio.gather(*calls, return_exceptions=True)
                assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
                Negative.may_go_on.set()
                frame = picture()
                np.testing.assert_array_equal(await unmask(frame), 255 - frame)
            assert kept(unmask) == 0

    asyncio.run(use())
    assert len(Negative.requests) == 3 * 5


@contextmanager
def busy_once() -> Iterator[str]:
    """A server that is busy when the first frame comes, and answers both it and the second with the second."""
    ids: list[int] = []

    def answers(message: dict[str, Any]) -> list[Reply]:
        if message["type"] == "hello":
            return [Welcome(1, "moody", "s", 4, 10**6, 10**6, False)]
        if message["type"] == "frame":
            ids.append(message["id"])
            results: list[Reply] = [Result(id, "gray8", 2, 1, 2, (), 0.0) for id in ids]
            return [Error("busy", "try again later")] if len(ids) == 1 else results
        return []

    def serve(router: "zmq.Socket[bytes]", end: threading.Event) -> None:
        while not end.is_set():
            if router.poll(20):
                peer, header, *_ = router.recv_multipart()
                for reply in answers(msgspec.msgpack.decode(header)):
                    payload = [b"ab"] if isinstance(reply, Result) else []
                    router.send_multipart([peer, encode(reply), *payload])

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port, end = router.bind_to_random_port("tcp://127.0.0.1"), threading.Event()
        thread = threading.Thread(target=serve, args=(router, end))
        thread.start()
        try:
            yield f"tcp://127.0.0.1:{port}"
        finally:
            end.set()
            thread.join()


def test_answer_to_a_call_that_a_refusal_has_ended_is_not_kept() -> None:
    frame = np.zeros((1, 2), np.uint8)
    with busy_once() as address, Client(address, format="gray8") as unmask:
        with pytest.raises(RefusedError, match="try again later"):
            unmask(frame)
        assert unmask(frame).tolist() == [list(b"ab")]
        assert kept(unmask) == 0


def test_answer_to_a_task_that_a_refusal_has_ended_is_not_kept() -> None:
    async def use(address: str) -> None:
        frame = np.zeros((1, 2), np.uint8)
        async with AsyncClient(address, format="gray8") as unmask:
            with pytest.raises(RefusedError, match="try again later"):
                await unmask(frame)
            assert (await unmask(frame)).tolist() == [list(b"ab")]
            assert kept(unmask) == 0

    with busy_once() as address:
        asyncio.run(use(address))


# --- times ------------------------------------------------------------------------------------------------------------


def check_times(fps: float) -> None:
    """Frames 10 px high are those of the stream; others come before, between and after them."""
    requests = Negative.requests
    seconds = np.array([request.seconds for request in requests])
    assert (np.diff(seconds) > 0).all()
    of_stream = np.array([request.height == 10 for request in requests])
    np.testing.assert_allclose(np.diff(seconds[of_stream]), 1 / fps, rtol=1e-6)
    first = int(np.flatnonzero(of_stream)[0])
    last = int(np.flatnonzero(of_stream)[-1])
    assert not any(request.reset for request in requests[first + 1 : last + 1])
    assert requests[first].reset
    assert requests[-1].reset  # a frame after the stream is none of it


@pytest.mark.parametrize("fps", [0.1, 25.0, 1000.0])
def test_single_frames_between_those_of_a_stream(server: Server, fps: float) -> None:
    with Client(server.endpoint) as unmask:
        unmask(picture())
        for index, out in enumerate(unmask.stream((picture(10) for _ in range(12)), fps)):
            assert out.shape == (10, 30, 3)
            if index % 3 == 1:
                frame = picture()
                np.testing.assert_array_equal(unmask(frame), 255 - frame)
        unmask(picture())
    check_times(fps)


@pytest.mark.parametrize("fps", [0.1, 1000.0])
def test_single_frames_of_other_tasks_between_those_of_a_stream(server: Server, fps: float) -> None:
    async def use() -> None:
        async with AsyncClient(server.endpoint) as unmask:
            await unmask(picture())
            tasks = []
            index = 0
            async for out in unmask.stream((picture(10) for _ in range(12)), fps):
                assert out.shape == (10, 30, 3)
                if index % 3 == 1:
                    tasks.append(asyncio.create_task(unmask(picture())))
                    await asyncio.sleep(0)
                index += 1
            await asyncio.gather(*tasks)
            await unmask(picture())

    asyncio.run(use())
    assert len(Negative.requests) == 18
    check_times(fps)


def test_times_grow_after_whatever_was_given(server: Server) -> None:
    with Client(server.endpoint) as unmask:
        frames = unmask.stream((picture(10) for _ in range(8)), 25.0)
        next(frames)
        unmask(picture(), seconds=5.0)  # later than the stream is: it goes on from there
        assert len(list(frames)) == 7
        unmask(picture(), seconds=2.0, reset=True)
        unmask(picture())
        with pytest.raises(RefusedError, match="seconds must be"):
            unmask(picture(), seconds=1e12)
        unmask(picture())
        assert len(list(unmask.stream([picture(10)] * 2))) == 2
    seconds = [request.seconds for request in Negative.requests if not request.reset]
    assert seconds == sorted(set(seconds))


def test_stream_that_nobody_ends_does_not_hold_up_the_clock(server: Server) -> None:
    with Client(server.endpoint) as unmask:
        left = unmask.stream((picture(10) for _ in range(8)), 25.0)
        next(left)
        for _ in range(30):
            unmask(picture())
        assert len(list(left)) == 7
    seconds = [request.seconds for request in Negative.requests]
    assert seconds == sorted(set(seconds))


def test_client_that_is_not_connected_says_so(server: Server) -> None:
    unmask, later = Client(server.endpoint), AsyncClient(server.endpoint)
    with pytest.raises(UserError, match=r"use it in `with Client"):
        unmask(picture())
    with unmask:
        unmask(picture())
        with pytest.raises(UserError, match="fps is 0"):
            next(unmask.stream([picture()], fps=0))
    with pytest.raises(UserError, match="not connected"):
        unmask(picture())
    with pytest.raises(UserError, match=r"use it in `async with AsyncClient"):
        asyncio.run(later(picture()))  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, np.array, Fraction, int])
def test_times_may_be_numbers_of_any_kind(server: Server, kind: Callable[[int], Any]) -> None:
    with Client(server.endpoint) as unmask:
        for second in range(6):
            unmask(picture(), seconds=kind(second), reset=cast(bool, np.bool_(second == 3)))
        assert len(list(unmask.stream([picture(), picture()], fps=kind(25)))) == 2
    assert [request.seconds for request in Negative.requests[:6]] == [0, 1, 2, 3, 4, 5]
    assert [request.reset for request in Negative.requests[:6]] == [True, False, False, True, False, False]


@pytest.mark.parametrize("wrong", ["1", b"1", [1], 1j, 10**400], ids=["str", "bytes", "list", "complex", "huge"])
def test_times_that_are_no_numbers_are_one_line_and_cost_no_credit(server: Server, wrong: Any) -> None:
    with Client(server.endpoint) as unmask:
        for _ in range(6):
            with pytest.raises(UserError, match="seconds must be a number"):
                unmask(picture(), seconds=wrong)
        with pytest.raises(UserError, match="fps must be a number"):
            next(unmask.stream([picture()], fps=wrong))
        unmask(picture())


def test_frame_that_cannot_be_posted_costs_no_credit_and_no_slot(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*_: object) -> None:
        raise KeyboardInterrupt

    with Client(server.endpoint) as unmask:
        unmask(picture())
        for _ in range(6):
            with monkeypatch.context() as patch:
                patch.setattr("unmask.stream.client.encode", fails)
                with pytest.raises(KeyboardInterrupt):
                    unmask(picture())
        unmask(picture())
    assert Negative.requests[-1].slot is not None


# --- what cannot go as it should --------------------------------------------------------------------------------------

TOO_LARGE = (4000, 6000, 3)
"""More than twice what the server takes: it closes the connection of whoever sends that."""


def test_frame_that_is_too_large_is_refused_at_once_and_alone(server: Server) -> None:
    frames = [picture(), np.zeros(TOO_LARGE, np.uint8), picture()]
    with Client(server.endpoint) as unmask:
        unmask(picture())
        answers = unmask.stream(frames)
        np.testing.assert_array_equal(next(answers), 255 - frames[0])
        with pytest.raises(RefusedError, match="72000000 bytes") as caught:
            next(answers)
        assert caught.value.code == "limit"
        with pytest.raises(RefusedError, match="8193x1 px"):
            unmask(np.zeros((1, 8193, 3), np.uint8), seconds=1000.0, reset=True)
        np.testing.assert_array_equal(unmask(frames[2]), 255 - frames[2])
    assert [request.reset for request in Negative.requests] == [True, True, True]
    assert Negative.requests[-1].seconds < 1000


def test_task_whose_frame_is_too_large_takes_no_other_down(server: Server) -> None:
    async def use() -> None:
        async with AsyncClient(server.endpoint) as unmask:
            frames = [picture(), np.zeros(TOO_LARGE, np.uint8), picture()]
            outs = await asyncio.gather(*(unmask(frame) for frame in frames), return_exceptions=True)
            assert [type(out) for out in outs] == [Unmasked, RefusedError, Unmasked]

    asyncio.run(use())


def test_frames_that_the_next_server_finds_too_large_are_not_sent_again() -> None:
    conversation = Conversation("gray8", "gray8", False, itertools.count(1))
    conversation.receive([encode(Welcome(1, "large", "a", 4, 10**6, 10**6, False))])
    small, large = np.zeros((10, 10), np.uint8), np.zeros((100, 100), np.uint8)
    frames = [(large, True), (small, False), (large, True), (small, False)]
    ids = [conversation.submit(frame, float(n), reset) for n, (frame, reset) in enumerate(frames)]
    conversation.outgoing.clear()
    conversation.receive([encode(Welcome(1, "small", "b", 4, 1000, 1000, False))])
    sent = [msgspec.msgpack.decode(parts[0]) for parts in conversation.outgoing]
    assert [(header["id"], header.get("reset")) for header in sent] == [(ids[1], True), (ids[3], True)]
    assert [conversation.is_finished(id) for id in ids] == [True, False, True, False]
    with pytest.raises(RefusedError, match="10000 bytes"):
        conversation.take(ids[0])


@pytest.mark.parametrize("method", ["send", "recv"])
def test_interrupt_in_the_midst_of_a_message_spoils_no_later_call(
    server: Server, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    carry = getattr(zmq.Socket, method)
    ours: list[Any] = []

    def interrupted(self: Any, *arguments: Any, **options: Any) -> Any:
        outcome = carry(self, *arguments, **options)
        flags = next((argument for argument in arguments if isinstance(argument, int)), 0)
        if self is ours[0] and (method == "recv" or flags & zmq.SNDMORE):
            raise KeyboardInterrupt
        return outcome

    with Client(server.endpoint, shared_memory=False, timeout_seconds=5) as unmask:
        unmask(picture())
        for _ in range(5):  # more often than there is credit
            ours[:] = [unmask._socket]
            with monkeypatch.context() as patch:
                patch.setattr(zmq.Socket, method, interrupted)
                with pytest.raises(KeyboardInterrupt):
                    unmask(picture())
            frame = picture()
            np.testing.assert_array_equal(unmask(frame), 255 - frame)


def test_client_that_is_open_is_not_entered_again(server: Server) -> None:
    async def use() -> None:
        async with AsyncClient(server.endpoint) as unmask:
            with pytest.raises(UserError, match="this AsyncClient is connected already"):
                await unmask.__aenter__()
            await unmask(picture())

    with Client(server.endpoint) as unmask:
        with pytest.raises(UserError, match="this Client is connected already"), unmask:
            pass
        unmask(picture())
    asyncio.run(use())


def test_memory_of_a_client_that_has_left_goes(server: Server) -> None:
    with Client(server.endpoint) as unmask:
        for _ in range(3):
            unmask(picture())
        (client,) = server._clients.values()
        assert client.memory is not None
        memory = weakref.ref(client.memory)
        del client
    deadline = time.monotonic() + 10
    while memory() is not None:
        assert time.monotonic() < deadline
        time.sleep(0.02)


# --- answers ----------------------------------------------------------------------------------------------------------


def test_whatever_is_made_of_an_answer_keeps_its_faces() -> None:
    out = np.arange(24, dtype=np.uint8).reshape(2, 4, 3).view(Unmasked)
    assert out.faces == ()
    out.faces, out.size_px, out.server_seconds = (FoundFace((0, 0, 1, 1), 3, 1.0, 1.0, True),), (4, 2), 0.5
    pickles = [pickle.loads(pickle.dumps(out, protocol)) for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]
    for other in (out.copy(), out[:], copy.copy(out), copy.deepcopy(out), *pickles):
        np.testing.assert_array_equal(other, out)
        assert (other.faces, other.size_px, other.server_seconds) == (out.faces, (4, 2), 0.5)
    assert out[:1, ::2].faces == out.faces
    assert type(np.asarray(out)) is np.ndarray
