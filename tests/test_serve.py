"""`unmask serve` and its clients over real sockets, with the networks that ship."""

import asyncio
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import msgspec
import numpy as np
import numpy.typing as npt
import pytest
import zmq
from faces import Portrait
from served import RawClient, ServerProgram, server_program

from unmask import cli
from unmask.errors import NoAnswerError, RefusedError, UserError
from unmask.stream import AsyncClient, Client
from unmask.stream import server as server_module
from unmask.stream.client import Unmasked
from unmask.stream.face_stream import FaceStream, SharedEngines
from unmask.stream.metrics import Metrics, MetricsPage
from unmask.stream.pipeline import Settings
from unmask.stream.protocol import FrameRequest, Limits, Welcome, encode
from unmask.stream.server import ServeOptions, Server, is_local, serving
from unmask.train.masks import Outline
from unmask.train.materials import draw_mask

U8 = npt.NDArray[np.uint8]
ROOT = Path(__file__).resolve().parents[1]
SETTINGS = Settings("cpu")
FPS = 25.0
MESSAGES = 10_000


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with serving(ServeOptions(bind="tcp://127.0.0.1:0", settings=SETTINGS, max_clients=16)) as server:
        yield server


@pytest.fixture(scope="module")
def clips(portrait: Portrait) -> list[list[U8]]:
    """Eight clips of 10 frames, no two alike: masks, light, place, size and direction differ."""
    return [_clip(portrait, number) for number in range(8)]


def _clip(portrait: Portrait, number: int) -> list[U8]:
    rng = np.random.default_rng(number)
    kind = ("surgical", "n95", "cloth")[number % 3]
    rgb = portrait.bare.astype(np.float32) / np.float32(255)
    drawn = draw_mask(rgb, portrait.landmarks, rng, kind, Outline()).rgb if number != 5 else rgb
    still = np.rint(drawn * (0.7 + 0.04 * number) * 255).astype(np.uint8)
    still = still[:, ::-1] if number % 2 else still
    still = np.asarray(cv2.resize(still, None, fx=0.8 + 0.05 * number, fy=0.8 + 0.05 * number), np.uint8)
    frames = []
    for index in range(10):
        shift = np.array([[1.0, 0, (number - 4) * index / 2], [0, 1, index / (1 + number)]])
        moved = cv2.warpAffine(still, shift, still.shape[1::-1], borderMode=cv2.BORDER_REPLICATE)
        frames.append(np.asarray(moved, np.uint8))
    return frames


@pytest.fixture(scope="module")
def references(clips: list[list[U8]]) -> list[list[Any]]:
    """What the stages make of each clip in this process, alone."""
    engines = SharedEngines(SETTINGS, print)
    results = []
    for frames in clips:
        stream = FaceStream(SETTINGS, engines, Limits(), lambda step, seconds: None)
        answers = []
        for index, frame in enumerate(frames):
            height, width = frame.shape[:2]
            request = FrameRequest(index, "", "rgb24", frame.size, index / FPS, width, height, reset=index == 0)
            answers.append(stream.process(request, frame.reshape(-1).data))
        results.append(answers)
    return results


def assert_same(outs: list[Unmasked], answers: list[Any]) -> None:
    assert len(outs) == len(answers)
    for out, answer in zip(outs, answers, strict=True):
        np.testing.assert_array_equal(out.reshape(-1), answer.picture)
        assert [_without_track(face) for face in out.faces] == [_without_track(face) for face in answer.faces]


def _without_track(face: Any) -> tuple[Any, ...]:
    return face.box_px, face.score, face.mask_score, face.unmasked


# --- what a client gets -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shared", [True, False])
def test_mask_comes_off_and_nothing_else_changes(server: Server, portrait: Portrait, shared: bool) -> None:
    with Client(server.endpoint, shared_memory=shared) as unmask:
        out = unmask(portrait.masked)
        again = unmask(portrait.masked)
        assert unmask.uses_shared_memory is shared
        assert (unmask.why_not_shared is None) is shared
    (face,) = out.faces
    assert face.unmasked
    assert face.mask_score > 0.9
    assert face.looks_masked
    assert out.shape == portrait.masked.shape
    inside = portrait.coverage > 0.5
    changed = (out != portrait.masked).any(axis=2)
    assert changed[inside].mean() > 0.97
    assert changed[~inside].mean() < 0.05
    assert again.faces[0].track == face.track
    out[:] = 0  # it is the user's own


def test_stream_is_what_the_stages_give_in_process(
    server: Server, clips: list[list[U8]], references: list[list[Any]]
) -> None:
    with Client(server.endpoint) as unmask:
        assert_same(list(unmask.stream(clips[0], FPS)), references[0])
        # A second stream on the same connection begins anew, and uses no track twice.
        again = list(unmask.stream(clips[0], FPS))
    assert_same(again, references[0])


def test_async_twins(server: Server, clips: list[list[U8]], references: list[list[Any]]) -> None:
    async def frames() -> Any:
        for frame in clips[1]:
            yield frame

    async def use() -> list[list[Unmasked]]:
        async with AsyncClient(server.endpoint) as unmask:
            asynchronous = [out async for out in unmask.stream(frames(), FPS)]
            plain = [out async for out in unmask.stream(clips[1], FPS)]
            single = [await unmask(clips[1][0], reset=True)]
            many = await asyncio.gather(*(unmask(frame) for frame in clips[1]))
            assert len(many) == len(clips[1])
            return [asynchronous, plain, single]

    asynchronous, plain, single = asyncio.run(use())
    assert_same(asynchronous, references[1])
    assert_same(plain, references[1])
    assert_same(single, references[1][:1])


def test_eight_clients_at_once_get_their_own_and_nothing_of_each_other(
    server: Server, clips: list[list[U8]], references: list[list[Any]]
) -> None:
    outs: dict[int, list[Unmasked]] = {}

    def use(number: int) -> None:
        with Client(server.endpoint, shared_memory=number % 2 == 0, timeout_seconds=120) as unmask:
            outs[number] = list(unmask.stream(clips[number], FPS))

    threads = [threading.Thread(target=use, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert_same(outs[number], references[number])
    assert any(face.unmasked for out in outs[0] for face in out.faces)
    assert not any(face.unmasked for out in outs[5] for face in out.faces)  # the bare one


def _encoded(format: str, rgb: U8) -> Any:
    bgr = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), np.uint8)
    match format:
        case "rgb24":
            return rgb
        case "bgr24":
            return bgr
        case "gray8":
            return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)
        case "nv12":
            i420 = np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2YUV_I420), np.uint8)
            height, width = rgb.shape[:2]
            chroma = i420[height:].reshape(2, -1).T.reshape(height // 2, width)
            return np.concatenate([i420[:height], chroma])
    return bytes(cv2.imencode({"jpeg": ".jpg"}.get(format, f".{format}"), bgr)[1].tobytes())


@pytest.mark.parametrize("format", ["rgb24", "bgr24", "gray8", "nv12"])
def test_raw_format_without_a_mask_comes_back_to_the_bit(server: Server, portrait: Portrait, format: str) -> None:
    sent = _encoded(format, portrait.bare)
    with Client(server.endpoint, format=format) as unmask:
        out = unmask(sent)
    assert len(out.faces) == 1
    np.testing.assert_array_equal(out, sent)


@pytest.mark.parametrize("format", ["rgb24", "bgr24", "gray8", "nv12", "jpeg", "png", "webp"])
@pytest.mark.parametrize("answer", ["rgb24", "nv12", "png", "jpeg", "webp", "gray8", "bgr24"])
def test_answer_comes_in_the_format_asked_for(server: Server, portrait: Portrait, format: str, answer: str) -> None:
    with Client(server.endpoint, format=format, answer=answer) as unmask:
        out = unmask(_encoded(format, portrait.masked))
    assert len(out.faces) == 1
    assert out.size_px == portrait.masked.shape[1::-1]
    shown = _shown(answer, np.asarray(out)).astype(int)
    grey = cv2.cvtColor(portrait.masked, cv2.COLOR_RGB2GRAY)
    expected = np.repeat(np.asarray(grey)[..., None], 3, axis=2) if "gray8" in (format, answer) else portrait.masked
    outside = cv2.dilate((portrait.coverage > 0).astype(np.uint8), np.ones((31, 31))) == 0
    assert np.abs(shown - expected)[outside].mean() < 6  # the same picture, right way round and in its own colours
    if answer in {"png", "jpeg", "webp"} and out.faces[0].unmasked:
        assert b"synthetic" in out.tobytes()


def _shown(format: str, picture: U8) -> U8:
    conversions = {"bgr24": cv2.COLOR_BGR2RGB, "gray8": cv2.COLOR_GRAY2RGB, "nv12": cv2.COLOR_YUV2RGB_NV12}
    if format in conversions:
        return np.asarray(cv2.cvtColor(picture, conversions[format]), np.uint8)
    if format == "rgb24":
        return picture
    return np.asarray(cv2.cvtColor(np.asarray(cv2.imdecode(picture, cv2.IMREAD_COLOR)), cv2.COLOR_BGR2RGB), np.uint8)


def test_frames_may_change_their_size_and_tracks_are_never_used_twice(server: Server, portrait: Portrait) -> None:
    half = np.ascontiguousarray(portrait.masked[::2, ::2])
    with Client(server.endpoint) as unmask:
        outs = [unmask(frame) for frame in (half, portrait.masked, portrait.masked, half)]
    assert [out.shape for out in outs] == [frame.shape for frame in (half, portrait.masked, portrait.masked, half)]
    tracks = [out.faces[0].track for out in outs if out.faces]
    assert tracks[1] == tracks[2]
    assert len(set(tracks)) == 3


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2), (17, 31)])
def test_tiny_pictures(server: Server, size: tuple[int, int]) -> None:
    picture = np.full((*size, 3), 77, np.uint8)
    with Client(server.endpoint) as unmask:
        np.testing.assert_array_equal(unmask(picture), picture)


# --- what a client does wrong -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"format": "yuyv"}, "unknown format 'yuyv': use one of rgb24"),
        ({"timeout_seconds": 0}, "above 0"),
        ({"timeout_seconds": float("nan")}, "above 0"),
        ({"timeout_seconds": "3"}, "timeout_seconds must be a number"),
        ({"timeout_seconds": None}, "timeout_seconds must be a number"),
        ({"key": "a.key"}, "needs both"),
        ({"key": "nowhere.key", "server_key": "x"}, "nowhere.key"),
    ],
)
def test_wrong_settings_are_one_line_before_anything_is_sent(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        Client("tcp://127.0.0.1:5555", **arguments)


@pytest.mark.parametrize("address", [None, b"tcp://127.0.0.1:5555", "tcp://127.0.0.1:99999", "tcp://[::1]:123456"])
def test_no_address_at_all(address: Any) -> None:
    with pytest.raises(UserError, match="use tcp://HOST:PORT"):
        Client(address)


def test_wrong_address() -> None:
    with pytest.raises(UserError, match="use tcp://HOST:PORT"), Client("localhost:5555"):
        pass


@pytest.mark.parametrize(
    ("format", "frame"),
    [
        ("rgb24", np.zeros((4, 4), np.uint8)),
        ("rgb24", np.zeros((4, 4, 4), np.uint8)),
        ("rgb24", np.zeros((4, 4, 3), np.float32)),
        ("rgb24", np.zeros((0, 4, 3), np.uint8)),
        ("gray8", np.zeros((4, 4, 3), np.uint8)),
        ("nv12", np.zeros((5, 4), np.uint8)),
        ("jpeg", np.zeros((4, 4, 3), np.uint8)),
        ("jpeg", b""),
    ],
)
def test_wrong_frames_never_reach_the_server(server: Server, format: str, frame: Any) -> None:
    with Client(server.endpoint, format=format) as unmask, pytest.raises(UserError, match="uint8"):
        unmask(frame)


def test_refused_frame_is_an_exception_and_the_next_one_works(server: Server, portrait: Portrait) -> None:
    with Client(server.endpoint, format="jpeg", answer="rgb24") as unmask:
        with pytest.raises(RefusedError, match="damaged") as caught:
            unmask(b"this is no picture, not at all")
        assert caught.value.code == "picture"
        assert unmask(_encoded("jpeg", portrait.bare)).shape == portrait.bare.shape


def test_reset_holds_though_its_frame_is_refused(server: Server, portrait: Portrait) -> None:
    sent = _encoded("jpeg", portrait.masked)
    with Client(server.endpoint, format="jpeg") as unmask:
        before = [unmask(sent).faces[0].track for _ in range(2)]
        with pytest.raises(RefusedError, match="cut short"):
            unmask(sent[: len(sent) // 2], reset=True)
        after = unmask(sent).faces[0].track
    assert before == [before[0]] * 2
    assert after != before[0]


def test_no_server_is_said_with_what_to_do() -> None:
    with (
        pytest.raises(NoAnswerError, match="is `unmask serve --bind"),
        Client("tcp://127.0.0.1:1", timeout_seconds=0.5),
    ):
        pass


def test_stream_that_is_left_early_does_no_harm(
    server: Server, clips: list[list[U8]], references: list[list[Any]]
) -> None:
    with Client(server.endpoint) as unmask:
        for _ in unmask.stream(clips[2], FPS):
            break
        assert_same(list(unmask.stream(clips[2], FPS)), references[2])


def test_too_many_clients_are_told_so() -> None:
    options = ServeOptions(bind="tcp://127.0.0.1:0", settings=SETTINGS, max_clients=1)
    with serving(options) as server, Client(server.endpoint) as unmask:
        with pytest.raises(RefusedError, match="has its 1 clients") as caught, Client(server.endpoint):
            pass
        assert caught.value.code == "busy"
        assert unmask(np.zeros((48, 64, 3), np.uint8)).shape == (48, 64, 3)


# --- the bare protocol ------------------------------------------------------------------------------------------------


def test_welcome_says_what_the_server_accepts(server: Server) -> None:
    with RawClient(server.endpoint) as raw:
        welcome = raw.hello()
        assert raw.hello()["session"] == welcome["session"]
    assert (welcome["type"], welcome["version"], welcome["credits"]) == ("welcome", 1, 4)
    assert welcome["max_bytes"] == 3 * 3840 * 2160 + 65_536
    assert "never evidence" in welcome["notice"]


def test_frames_before_hello_and_of_other_sessions_are_refused(server: Server) -> None:
    with RawClient(server.endpoint) as raw:
        raw.frame(1)
        assert raw.receive()[0]["code"] == "hello"
        raw.hello()
        raw.frame(2, session="another")
        header, _ = raw.receive()
        assert (header["code"], header["id"]) == ("hello", 2)


def test_credits_bound_what_is_on_its_way_and_answers_are_in_order(server: Server) -> None:
    with RawClient(server.endpoint) as raw:
        raw.hello()
        for id in range(1, 41):
            raw.frame(id, 640, 480)
        answers = [raw.receive()[0] for _ in range(40)]
    done = [answer["id"] for answer in answers if answer["type"] == "result"]
    too_many = [answer["id"] for answer in answers if answer["type"] == "error"]
    assert {answer["code"] for answer in answers if answer["type"] == "error"} == {"credits"}
    assert sorted(done + too_many) == list(range(1, 41))
    assert done == sorted(done)
    assert done[:4] == [1, 2, 3, 4]


def test_time_must_grow(server: Server) -> None:
    with RawClient(server.endpoint) as raw:
        raw.hello()
        raw.frame(1, seconds=5.0)
        assert raw.receive()[0]["type"] == "result"
        raw.frame(2, seconds=5.0)
        assert "seconds must grow" in raw.receive()[0]["text"]
        raw.frame(3, seconds=1.0, reset=True)
        assert raw.receive()[0]["type"] == "result"


def test_slots_that_are_not_there_or_in_use_are_refused(server: Server) -> None:
    with RawClient(server.endpoint) as raw:
        raw.hello()
        header = {"type": "frame", "session": raw.session, "format": "gray8", "bytes": 64 * 48, "seconds": 1.0}
        header |= {"width": 64, "height": 48}
        raw.send(header | {"id": 1, "slot": 0})
        assert raw.receive()[0]["code"] == "shared"
        raw.send({"type": "share", "session": raw.session, "bytes": 64 * 48})
        shared, _ = raw.receive()
        assert shared["type"] == "shared"
        assert Path(shared["path"]).stat().st_size >= shared["slots"] * shared["stride"]
        with pytest.raises(OSError, match="not permitted"), open(shared["path"], "r+b") as memory:
            os.ftruncate(memory.fileno(), 0)  # a client that shrinks it would kill the server
        raw.send(header | {"id": 2, "slot": 99})
        assert raw.receive()[0]["code"] == "shared"
        raw.send(header | {"id": 3, "slot": 0, "bytes": 65 * 48, "width": 65})
        assert raw.receive()[0]["code"] == "shared"


# --- faults -----------------------------------------------------------------------------------------------------------


class Streaming:
    """A well-behaved client that sends frames all the time; used as a `with` block around what must not disturb it."""

    def __init__(self, address: str, frames: list[U8]) -> None:
        self._address, self._frames = address, frames
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answered = 0
        self.error: BaseException | None = None

    def _endless(self) -> Iterator[U8]:
        while not self._stop.is_set():
            yield from self._frames

    def _run(self) -> None:
        try:
            with Client(self._address, timeout_seconds=60) as unmask:
                for _ in unmask.stream(self._endless(), FPS):
                    self.answered += 1
        except BaseException as error:
            self.error = error

    def wait_for_more(self, frames: int) -> None:
        goal, deadline = self.answered + frames, time.monotonic() + 120
        while self.answered < goal:
            assert self.error is None
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def __enter__(self) -> "Streaming":
        self._thread.start()
        self.wait_for_more(1)
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(120)
        assert self.error is None


def test_ten_thousand_malformed_messages(clips: list[list[U8]]) -> None:
    rng = random.Random(1)
    answers = 0
    with server_program() as program, Streaming(program.address, clips[0]) as other, RawClient(program.address) as raw:
        welcome = raw.hello()
        session = welcome["session"]
        other.wait_for_more(20)
        before = 0.0
        for number in range(MESSAGES):
            size = 64 * 48
            header = {"type": "frame", "id": number, "session": session, "format": "gray8", "bytes": size}
            header |= {"seconds": 1.0, "width": 64, "height": 48}
            match number % 5:
                case 0:
                    raw.send(rng.randbytes(rng.randint(0, 100)), *[b"x"] * rng.randint(0, 3))
                case 1:
                    raw.send(header, bytes(size - 1 - rng.randrange(size)))
                case 2:
                    raw.send(header | {"width": 8192, "height": 8192, "bytes": 8192 * 8192}, bytes(10))
                case 3:
                    raw.send(header | {"format": "png", "width": 0, "height": 0, "bytes": 50}, bytes(49))
                case 4:
                    raw.send(header | {"unknown": "x" * rng.randrange(5000)}, bytes(size))
            if number % 50 == 49:
                for _ in range(50):
                    assert raw.receive()[0]["type"] == "error"
                    answers += 1
            if number == 1000:
                before = program.memory_mb()
        other.wait_for_more(5)
        grown = program.memory_mb() - before
        assert program.process.poll() is None
    assert answers == MESSAGES
    assert grown < 20
    assert len([event for event in program.events if event["event"] == "refused"]) < 100  # nobody fills the log


def test_message_beyond_all_limits_costs_its_sender_the_connection_and_nobody_else(clips: list[list[U8]]) -> None:
    with (
        server_program("--max-size", "640x480") as program,
        Streaming(program.address, [frame[:400, :400].copy() for frame in clips[0]]) as other,
        RawClient(program.address) as raw,
    ):
        raw.hello()
        raw.send({"type": "bye"}, bytes(1_500_000))  # above the limit: told so
        assert raw.receive()[0]["code"] == "malformed"
        before = program.memory_mb()
        raw.send({"type": "bye"}, bytes(200_000_000))
        program.wait_for("forgotten", reason="it has gone")
        assert program.memory_mb() - before < 20
        other.wait_for_more(5)


def test_client_that_never_reads_slows_only_itself(clips: list[list[U8]]) -> None:
    with server_program() as program, Streaming(program.address, clips[0]) as other, RawClient(program.address) as raw:
        raw.hello()
        other.wait_for_more(10)
        before = program.memory_mb()
        for id in range(1, 151):
            raw.frame(id, 1280, 720)
            if id % 10 == 0:
                other.wait_for_more(1)
        other.wait_for_more(10)
        assert program.memory_mb() - before < 150  # two times four pictures of 0.9 MB, the slot, and the sockets
        done = [header["id"] for header in raw.rest(2.0) if header["type"] == "result"]
        assert done == sorted(done)
        raw.frame(1000, 64, 48)  # it goes on once it reads
        assert raw.receive()[0]["id"] == 1000


KILLED_CLIENT = """
import sys, numpy as np
from unmask.stream import Client
with Client(sys.argv[1]) as unmask:
    frames = (np.full((480, 640, 3), n % 256, np.uint8) for n in range(10**6))
    for number, _ in enumerate(unmask.stream(frames)):
        if number == 3:
            print("busy", flush=True)
"""


def test_killed_client_is_forgotten(clips: list[list[U8]]) -> None:
    with server_program() as program, Streaming(program.address, clips[0]) as other:
        command = [sys.executable, "-c", KILLED_CLIENT, program.address]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as client:
            assert client.stdout is not None
            assert client.stdout.readline() == "busy\n"
            client.kill()
        assert program.wait_for("forgotten", reason="it has gone")["client"] == 2
        other.wait_for_more(5)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_server_that_is_started_again_gets_what_the_first_one_had_not_answered(
    portrait: Portrait, number: signal.Signals
) -> None:
    frames = [np.roll(portrait.masked, index, axis=1) for index in range(30)]
    first = ServerProgram()
    second: list[ServerProgram] = []

    def given() -> Iterator[U8]:
        for index, frame in enumerate(frames):
            if index == 10:
                first.end(number)
                second.append(ServerProgram(bind=first.address))
            yield frame

    try:
        with Client(first.address, timeout_seconds=60) as unmask:
            outs = list(unmask.stream(given()))
            assert unmask.uses_shared_memory
    finally:
        codes = [program.end() for program in (first, *second)]
    assert codes == [-signal.SIGKILL if number == signal.SIGKILL else 0, 0]
    assert len(outs) == len(frames)
    for out, frame in zip(outs, frames, strict=True):
        np.testing.assert_array_equal(out[-40:], frame[-40:])  # each its own: nothing is painted down there
        assert out.faces[0].unmasked


def test_client_goes_on_after_a_time_out(portrait: Portrait) -> None:
    program = ServerProgram()
    try:
        with Client(program.address, timeout_seconds=3.0) as unmask:
            unmask(portrait.masked)
            program.process.send_signal(signal.SIGSTOP)
            with pytest.raises(NoAnswerError, match="no answer from"):
                unmask(portrait.masked)
            program.process.send_signal(signal.SIGCONT)
            assert len(unmask(portrait.masked).faces) == 1
    finally:
        program.end(signal.SIGKILL)


def test_time_out_of_one_task_gives_no_other_task_a_wrong_answer() -> None:
    """A server that greets and never answers: frames are never numbered twice, and each task is told."""
    ids: list[int] = []

    async def send(address: str) -> None:
        frame = np.zeros((8, 8, 3), np.uint8)
        async with AsyncClient(address, timeout_seconds=1.0, shared_memory=False) as unmask:
            for _ in range(2):
                outcomes = await asyncio.gather(*(unmask(frame) for _ in range(3)), return_exceptions=True)
                assert [type(outcome) for outcome in outcomes] == [NoAnswerError] * 3

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        port = router.bind_to_random_port("tcp://127.0.0.1")
        client = threading.Thread(target=asyncio.run, args=(send(f"tcp://127.0.0.1:{port}"),))
        client.start()
        while client.is_alive():
            if router.poll(100):
                peer, header, *_ = router.recv_multipart()
                message = msgspec.msgpack.decode(header)
                if message["type"] == "hello":
                    router.send_multipart([peer, encode(Welcome(1, "deaf", peer.hex(), 4, 10**6, 10**6, False))])
                if message["type"] == "frame":
                    ids.append(message["id"])
        client.join()
    assert len(ids) == len(set(ids)) == 6


def test_failing_stage_is_an_error_of_one_frame(
    server: Server, portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.stream.stages.smooth import Smooth

    process: Callable[..., Any] = Smooth.process

    def fails(self: Smooth, frame: Any) -> Any:
        if np.asarray(frame.planes[0])[0, 0, 0] == 251:
            raise ZeroDivisionError("one line\nand another")
        return process(self, frame)

    monkeypatch.setattr(Smooth, "process", fails)
    bad = portrait.masked.copy()
    bad[0, 0, 0] = 251
    with Client(server.endpoint) as unmask:
        assert unmask(portrait.masked).faces[0].unmasked
        with pytest.raises(RefusedError, match="ZeroDivisionError: one line and another") as caught:
            unmask(bad)
        assert caught.value.code == "failed"
        assert unmask(portrait.masked).faces[0].unmasked


# --- operation --------------------------------------------------------------------------------------------------------


def _get(url: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_slow_scraper_does_not_hold_up_the_next() -> None:
    with MetricsPage(0, Metrics("none"), lambda: None) as page:
        idle = [socket.create_connection(("127.0.0.1", page.port)) for _ in range(3)]
        assert _get(f"http://127.0.0.1:{page.port}/healthz") == (200, "ok\n")
        for connection in idle:
            connection.close()


def test_client_that_never_reads_does_not_keep_the_server_from_ending() -> None:
    picture = cv2.imencode(".jpg", np.zeros((1080, 1920, 3), np.uint8))[1].tobytes()
    with server_program() as program, RawClient(program.address) as raw:
        raw.hello()
        for id in range(1, 31):
            raw.send(
                {"type": "frame", "id": id, "session": raw.session, "format": "jpeg", "answer": "rgb24"}
                | {"bytes": len(picture), "seconds": id / 25},
                picture,
            )
            time.sleep(0.1)
        assert program.end() == 0
        program.wait_for("forgotten", reason="the server ends")


def test_worker_that_hangs_is_said_and_does_not_keep_the_server_from_stopping(
    portrait: Portrait, monkeypatch: pytest.MonkeyPatch
) -> None:
    let_go, events = threading.Event(), []
    monkeypatch.setattr(server_module, "_HANG_SECONDS", 0.3)
    monkeypatch.setattr(server_module, "_PING_SECONDS", 0.1)
    monkeypatch.setattr(server_module, "_LAST_SECONDS", 0.3)
    options = ServeOptions(bind="tcp://127.0.0.1:0", settings=SETTINGS)
    with serving(options, lambda event, **fields: events.append(event)) as server, RawClient(server.endpoint) as raw:
        monkeypatch.setattr(FaceStream, "process", lambda *_: let_go.wait(60))
        assert server.trouble() is None
        raw.hello()
        raw.frame(1)
        _wait_until(lambda: "hanging" in events)
        assert "has been worked on" in str(server.trouble())
        server.stop_now()
        _wait_until(lambda: "abandoned" in events)
        let_go.set()


def _wait_until(what: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not what():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_metrics_health_and_a_graceful_end(portrait: Portrait) -> None:
    with server_program("--metrics", "0") as program, RawClient(program.address) as raw:
        base = program.wait_for("metrics")["address"].removesuffix("/metrics")
        with Client(program.address) as unmask:
            for _ in range(3):
                unmask(portrait.masked)
            text = _get(f"{base}/metrics")[1]
        assert "unmask_frames_total 3.0" in text
        assert "unmask_faces_unmasked_total 3.0" in text
        assert "unmask_masks_left_total 0.0" in text
        assert "unmask_clients 1.0" in text
        assert 'unmask_stage_seconds_count{stage="inpaint"} 3.0' in text
        assert "OpenVINO" in text
        assert _get(f"{base}/healthz") == (200, "ok\n")
        assert _get(f"{base}/")[0] == 404
        raw.hello()
        for id in range(1, 5):
            raw.frame(id, 1280, 720)
        raw.frame(5, 8, 8, bytes=1)  # its error says that the four before it have arrived
        while raw.receive()[0]["type"] != "error":
            pass
        raw.frame(6)
        assert program.end() == 0
        assert "goodbye" in {header["type"] for header in raw.rest()}
    assert program.events[-1]["event"] == "ended"
    assert all("time" in event for event in program.events)


def test_keys_let_in_who_is_allowed_and_nobody_else(tmp_path: Path, portrait: Portrait) -> None:
    for name in ("server", "friend", "stranger"):
        assert cli.main(["keys", "new", str(tmp_path / name)]) == 0
    assert (tmp_path / "server.key").stat().st_mode & 0o777 == 0o600
    server_key = tmp_path / "server.pub"
    keys = ("--key", str(tmp_path / "server.key"), "--allow", str(tmp_path / "friend.pub"))
    with server_program(*keys, bind="tcp://0.0.0.0:0") as program:
        address = program.address.replace("0.0.0.0", "127.0.0.1")
        with Client(address, key=tmp_path / "friend.key", server_key=server_key) as unmask:
            assert len(unmask(portrait.masked).faces) == 1
            assert unmask.why_not_shared == "the server does not allow it"
        stranger: dict[str, Any] = {"key": tmp_path / "stranger.key", "server_key": server_key}
        for options in (stranger, {}):
            with pytest.raises(NoAnswerError), Client(address, timeout_seconds=1.5, **options):
                pass


def test_ipc_socket_is_for_its_owner(tmp_path: Path) -> None:
    with serving(ServeOptions(bind=f"ipc://{tmp_path}/unmask", settings=SETTINGS)) as server:
        assert (tmp_path / "unmask").stat().st_mode & 0o077 == 0
        with Client(server.endpoint) as unmask:
            unmask(np.zeros((48, 64, 3), np.uint8))
            unmask(np.zeros((48, 64, 3), np.uint8))
            assert unmask.uses_shared_memory


def bound(path: Path) -> Server:
    """A server that listens and is never run."""
    options = ServeOptions(bind=f"ipc://{path}", settings=SETTINGS)
    return Server(options, cast(SharedEngines, None), Metrics("none"), lambda event, **fields: None)


def test_ipc_takes_no_path_from_a_file_or_another_server(tmp_path: Path) -> None:
    precious, link, path = tmp_path / "precious", tmp_path / "link", tmp_path / "socket"
    precious.write_text("precious")
    link.symlink_to(precious)
    for taken in (precious, link, tmp_path):
        with pytest.raises(UserError, match="there is something else at"):
            bound(taken)
    assert (precious.read_text(), link.is_symlink()) == ("precious", True)
    first = bound(path)
    try:
        with pytest.raises(UserError, match="already in use; choose another path"):
            bound(path)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    finally:
        first.close()
    assert not path.exists()


def test_ipc_replaces_a_dead_socket_and_removes_only_its_own(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    first = bound(path)
    path.unlink()
    second = bound(path)
    first.close()
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))
    second.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--bind", "ipc://@unmask-test"], "every user of this machine can reach it; use ipc:// with a path"),
        (["--bind", "tcp://0.0.0.0:5599"], "--insecure to let anybody in"),
        (["--bind", "tcp://*:5599"], "--insecure to let anybody in"),
        (["--bind", "tcp://[::]:5599"], "--insecure to let anybody in"),
        (["--bind", "localhost:5599"], "use tcp://ADDRESS:PORT"),
        (["--bind", "tcp://127.0.0.1"], "use tcp://ADDRESS:PORT"),
        (["--bind", "tcp://127.0.0.1:99999"], "use tcp://ADDRESS:PORT"),
        (["--bind", "udp://127.0.0.1:1"], "use tcp://ADDRESS:PORT"),
        (["--bind", "ipc:///no/such/folder/socket"], "choose another"),
        (["--max-size", "big"], "use WIDTHxHEIGHT"),
        (["--max-size", "100000x100000"], "use WIDTHxHEIGHT"),
        (["--allow", "nowhere.pub", "--key", "nowhere.key"], "nowhere.key"),
        (["--allow", "nowhere.pub"], "--key NAME.key"),
        (["--key", "nowhere.key"], "--allow"),
        (["--insecure", "--key", "x"], "exclude each other"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--metrics", "70000"], "65535"),
    ],
)
def test_wrong_options_are_one_line_with_exit_code_2(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


def test_port_in_use_is_one_line(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["serve", "--bind", server.endpoint, "--device", "cpu"]) == 2
    assert "in use; choose another address or port" in capsys.readouterr().err


def test_keys_are_never_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["keys", "new", str(tmp_path / "a")]) == 0
    before = (tmp_path / "a.key").read_bytes()
    assert cli.main(["keys", "new", str(tmp_path / "a")]) == 2
    assert "exists; choose another name" in capsys.readouterr().err
    assert (tmp_path / "a.key").read_bytes() == before
    (tmp_path / "a.key").chmod(0o644)
    with pytest.raises(UserError, match="chmod 600"):
        Client(key=tmp_path / "a.key", server_key=tmp_path / "a.pub")


def test_insecure_warns() -> None:
    with server_program("--insecure", bind="tcp://0.0.0.0:0") as program:
        assert "--insecure" in program.wait_for("warning")["text"]


@pytest.mark.parametrize(
    ("bind", "local"),
    [
        ("tcp://127.0.0.1:1", True),
        ("tcp://[::1]:1", True),
        ("tcp://localhost:1", True),
        ("ipc:///tmp/x", True),
        ("ipc://@x", True),
        ("tcp://192.168.1.5:1", False),
        ("tcp://eth0:1", False),
        ("tcp://*:1", False),
    ],
)
def test_local_addresses(bind: str, local: bool) -> None:
    assert is_local(bind) is local


@pytest.mark.parametrize("command", ["serve", "live"])
def test_help_loads_nothing_heavy_and_says_what_the_output_is_not(command: str) -> None:
    code = (
        f"import sys; import unmask.stream; from unmask.cli import main; code = main(['{command}', '--help']);"
        "sys.exit(code or any(name in sys.modules for name in ('cv2', 'av', 'openvino', 'numpy', 'zmq')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8", check=True, timeout=60)
    assert "never evidence" in " ".join(done.stdout.split())


# --- examples ---------------------------------------------------------------------------------------------------------


def test_opencv_example(server: Server, portrait: Portrait, tmp_path: Path) -> None:
    source, target = tmp_path / "in.mp4", tmp_path / "out.mp4"
    size = portrait.masked.shape[1::-1]
    writer = cv2.VideoWriter(str(source), cv2.VideoWriter.fourcc(*"mp4v"), 25, size)
    for _ in range(5):
        writer.write(np.asarray(cv2.cvtColor(portrait.masked, cv2.COLOR_RGB2BGR)))
    writer.release()
    example = ROOT / "examples" / "opencv_loop.py"
    subprocess.run([sys.executable, str(example), str(source), str(target), server.endpoint], check=True, timeout=120)
    read = cv2.VideoCapture(str(target))
    frames: list[U8] = []
    while (frame := read.read()[1]) is not None:
        frames.append(np.asarray(frame, np.uint8))
    assert len(frames) == 5
    inside = portrait.coverage > 0.5
    before = np.asarray(cv2.cvtColor(portrait.masked, cv2.COLOR_RGB2BGR)).astype(int)
    assert np.abs(frames[-1] - before)[inside].mean() > 10


@pytest.mark.parametrize("files", [[], ["missing.mp4", "out.mp4"]])
def test_opencv_example_without_a_video_is_one_line(files: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "opencv_loop.py"), *files]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert list(tmp_path.iterdir()) == []


def test_javascript_example(server: Server, portrait: Portrait, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("Node.js with npm is not installed")
    folder = tmp_path / "javascript"
    shutil.copytree(ROOT / "examples" / "javascript", folder, ignore=shutil.ignore_patterns("node_modules"))
    install = [npm, "install", "--no-audit", "--no-fund"]
    installed = subprocess.run(install, cwd=folder, capture_output=True, text=True, timeout=200)
    if installed.returncode:
        pytest.skip(f"npm install failed: {installed.stderr.strip().splitlines()[-1:]}")
    (tmp_path / "in.png").write_bytes(_encoded("png", portrait.masked))
    command = [node, "unmask.js", str(tmp_path / "in.png"), str(tmp_path / "out.png"), server.endpoint]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    (face,) = json.loads(done.stdout)["faces"]
    assert face["unmasked"]
    with Client(server.endpoint) as unmask:
        expected = unmask(portrait.masked)
    result = cv2.imread(str(tmp_path / "out.png"))
    np.testing.assert_array_equal(cv2.cvtColor(np.asarray(result), cv2.COLOR_BGR2RGB), expected)
    done = subprocess.run([*command[:2], "in.txt"], cwd=folder, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
