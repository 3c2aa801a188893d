"""The parts of a live run that can be tested without one."""

import io
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from av.container import InputContainer
from live_sources import flash_clip

from unmask.errors import UserError
from unmask.models.engine import Engine, EngineChoice, NetworkName, load
from unmask.stream.frame import Layout
from unmask.stream.live import feed as feeds
from unmask.stream.live import time_code
from unmask.stream.live.feed import (
    CameraFeed,
    Connection,
    Feed,
    FeedInfo,
    FeedLost,
    FileFeed,
    Shot,
    UrlFeed,
    connect_first,
    without_password,
)
from unmask.stream.live.mailbox import Mailbox, WhenFull
from unmask.stream.live.reader import Arrival, Reader
from unmask.stream.live.sound_track import SoundTrack
from unmask.stream.live.state import SOUND_RATE, LiveState, Sound
from unmask.stream.media import open_input
from unmask.stream.pipeline import Settings, face_stages, live_frames
from unmask.stream.stage import Context
from unmask.stream.stages.inpaint import Inpaint
from unmask.stream.stages.segment import Segment
from unmask.stream.supervisor import Cancel

# --- pace -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("processors", "frames", "threads"), [(1, 1, [1, 1]), (2, 2, [1, 1]), (4, 3, [1, 2]), (8, 3, [2, 6])]
)
def test_frames_under_way_share_the_processors(
    processors: int, frames: int, threads: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def load_and_note(network: NetworkName, choice: EngineChoice, notice: Callable[[str], None]) -> Engine:
        asked.append(choice.threads)
        return load(network, choice, notice)

    context = Context(Layout(64, 64), load=load_and_note)
    with monkeypatch.context() as machine:
        machine.setattr("os.sched_getaffinity", lambda pid: set(range(processors)), raising=False)
        assert live_frames() == frames
        stages = (*face_stages(Settings("cpu"), live=True), *face_stages(Settings("cpu")))
    for stage in stages:
        if isinstance(stage, Segment | Inpaint):
            stage.open(context)
    assert asked == [*threads, 0, 0]


# --- time codes -------------------------------------------------------------------------------------------------------


def planes_of(width: int, height: int, level: int) -> list[np.ndarray]:
    return [np.full((height, width), level, np.uint8), *np.full((2, height // 2, width // 2), 128, np.uint8)]


@pytest.mark.parametrize("seconds", [0.0, 0.0001, 12.3456, 86_400.0, 429_496.7295])
def test_time_code_survives_the_encoder(seconds: float) -> None:
    planes = planes_of(160, 120, 90)
    time_code.burn(planes, seconds)
    coded = io.BytesIO()
    with av.open(coded, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": "35", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        picture = av.VideoFrame(160, 120, "yuv420p")
        for plane, target in zip(planes, picture.planes, strict=True):
            rows = np.zeros((plane.shape[0], target.line_size), np.uint8)
            rows[:, : plane.shape[1]] = plane
            target.update(rows.tobytes())
        container.mux(stream.encode(picture))
        container.mux(stream.encode())
    coded.seek(0)
    with av.open(coded) as container:
        shown = next(container.decode(video=0)).to_ndarray(format="gray")
    assert time_code.read(shown) == pytest.approx(seconds, abs=1e-6)


@pytest.mark.parametrize("level", [0, 16, 128, 235, 255])
def test_plain_pictures_hold_no_time_code(level: int) -> None:
    assert time_code.read(planes_of(160, 120, level)[0]) is None


def test_damaged_time_code_is_not_read() -> None:
    planes = planes_of(160, 120, 0)
    time_code.burn(planes, 5.0)
    planes[0][:8, :8] = 255 - planes[0][:8, :8]
    assert time_code.read(planes[0]) is None


def test_small_pictures_have_no_room_for_a_time_code() -> None:
    assert time_code.read(np.zeros((20, 20), np.uint8)) is None
    with pytest.raises(UserError, match="80x32"):
        time_code.check_size(Layout(64, 64))


# --- mailboxes --------------------------------------------------------------------------------------------------------


def test_newest_wins_and_what_is_dropped_is_counted() -> None:
    box: Mailbox[int] = Mailbox(2, WhenFull.DROP_OLDEST)
    assert [box.put(number) for number in range(5)] == [0, 0, 1, 1, 1]
    assert [box.get(0), box.get(0), box.get(0)] == [3, 4, None]


def test_blocking_mailbox_loses_nothing() -> None:
    box: Mailbox[int] = Mailbox(2, WhenFull.BLOCK)

    def send() -> None:
        for number in range(100):
            box.put(number)
        box.close()

    sender = threading.Thread(target=send)
    sender.start()
    got = []
    while not box.ended:
        number = box.get(1.0)
        if number is not None:
            got.append(number)
    sender.join()
    assert got == list(range(100))
    assert box.put(1) == 1


# --- sound ------------------------------------------------------------------------------------------------------------


def piece(seconds: float, length: float, level: float) -> Sound:
    return Sound(seconds, np.full((2, round(length * SOUND_RATE)), level, np.float32))


def laid(track: SoundTrack, sounds: list[Sound], end: float = float("inf")) -> np.ndarray:
    frames = [frame for sound in sounds for frame in track.add(sound, end)]
    place = 0
    for frame in frames:
        assert frame.pts == place
        place += frame.samples
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def test_gaps_become_silence_and_overlaps_are_cut() -> None:
    sounds = [piece(9.5, 1.0, 0.1), piece(10.5, 0.5, 0.2), piece(13.0, 0.5, 0.3), piece(13.25, 0.5, 0.4)]
    track = laid(SoundTrack(10.0), sounds)
    at = [round(second * SOUND_RATE) for second in (0.25, 0.75, 1.5, 2.5, 3.25, 3.6)]
    np.testing.assert_allclose(track[at], [0.1, 0.2, 0.0, 0.0, 0.3, 0.4], atol=1e-6)
    assert len(track) == pytest.approx(3.75 * SOUND_RATE, abs=2)


def test_rounded_times_leave_no_gaps() -> None:
    track = laid(SoundTrack(0.0), [piece(round(0.021 * n + 0.001 * (n % 3), 3), 0.021, 0.5) for n in range(100)])
    assert track.min() == track.max()


def test_sound_ends_with_the_picture() -> None:
    assert len(laid(SoundTrack(0.0), [piece(0.0, 1.0, 0.5), piece(1.0, 1.0, 0.5)], end=1.25)) == 1.25 * SOUND_RATE


@pytest.mark.parametrize("threads", [1, 4])
def test_every_pass_of_a_loop_sounds_alike(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    """To the sample, and from its first one on, though a decoder with threads gives the first picture late."""

    def with_threads(path: Path) -> InputContainer:
        container = open_input(path)
        container.streams.video[0].codec_context.thread_count = threads
        return container

    monkeypatch.setattr(feeds, "open_input", with_threads)
    feed, state = FileFeed(flash_clip(tmp_path / "clip.mp4", seconds=1), loop=True), LiveState("clip", Cancel())
    box: Mailbox[Arrival] = Mailbox(1000, WhenFull.DROP_OLDEST)
    reader = Reader(feed, feed.connect(), box, state, sound=True, once=False)
    reader.start()
    begins: dict[int, float] = {}
    while len(begins) < 4:
        arrival = box.get(60)
        assert arrival is not None
        begins.setdefault(arrival.scene, arrival.seconds)
    reader.stop()
    reader.join(10)
    heard = np.zeros(round(begins[4] * SOUND_RATE) + SOUND_RATE, np.float32)
    for sound in state.take_sounds():
        place = round(sound.seconds * SOUND_RATE)
        assert not heard[place : place + sound.samples.shape[1]].any()
        heard[place : place + sound.samples.shape[1]] = sound.samples[0]
    first, *others = (heard[round(begins[scene] * SOUND_RATE) :][:SOUND_RATE] for scene in (1, 2, 3))
    assert np.abs(first[:480]).max() > 0.3
    assert all(np.abs(first - other).max() < 1e-6 for other in others)


class ShortFeed(Feed):
    """A paced source of five pictures, 0.05 s apart. It begins anew at its end, and stalls once, in the first pass."""

    name, finite, loops = "short", True, True

    def __init__(self) -> None:
        self.passes = 0

    def connect(self) -> Connection:
        self.passes += 1
        return ShortConnection(stalls=self.passes == 1)


class ShortConnection(Connection):
    paced = True
    info = FeedInfo(Layout(64, 64), fps=Fraction(20))

    def __init__(self, *, stalls: bool) -> None:
        self._stalls = stalls

    def items(self) -> Iterator[Shot | Sound]:
        for number in range(5):
            if number == 2 and self._stalls:
                time.sleep(1.0)
            yield Shot(av.VideoFrame(64, 64, "yuv420p"), number / 20, time.monotonic())

    def close(self) -> None:
        pass


def test_one_delay_is_no_freeze_at_every_beginning() -> None:
    feed, state = ShortFeed(), LiveState("short", Cancel())
    box: Mailbox[Arrival] = Mailbox(1000, WhenFull.DROP_OLDEST)
    reader = Reader(feed, feed.connect(), box, state, sound=False, once=False)
    reader.start()
    arrivals: list[tuple[float, Arrival]] = []
    while len(arrivals) < 25:
        arrival = box.get(10)
        assert arrival is not None
        arrivals.append((time.monotonic(), arrival))
    reader.stop()
    reader.join(10)
    assert state.behind_seconds > 0.8
    assert arrivals[2][0] - arrivals[1][0] > 0.8
    for (before, early), (now, late) in pairwise(arrivals[2:]):
        assert now - before < 0.5
        assert late.seconds - early.seconds == pytest.approx(0.05, abs=0.4)
    assert arrivals[-1][1].scene == 5


# --- figures ----------------------------------------------------------------------------------------------------------


def test_figures_count_what_was_taken_and_dropped() -> None:
    state = LiveState("clip", Cancel(), coded=True)
    for index in range(10):
        state.took(index, state.now())
        state.count_dropped(index % 2)
        state.shown(index, None if index == 3 else state.now() - 0.05, faces=2, masks=1)
    figures = state.figures()
    assert (figures.frames, figures.dropped, state.received, state.unreadable) == (10, 5, 15, 1)
    assert (figures.faces, figures.masks) == (2, 1)
    assert state.latency().count == 9
    assert 45 < figures.p50_ms < 1000
    assert [minute.count for minute in state.latency_by_minute()] == [9]


# --- sources that are not there ---------------------------------------------------------------------------------------


def test_source_whose_pictures_turn_to_nonsense_is_lost(tmp_path: Path) -> None:
    path = tmp_path / "nonsense.mkv"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", 30, options={"tune": "zerolatency"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for index in range(1000):
            for packet in stream.encode(av.VideoFrame(64, 64, "yuv420p")):
                sent = packet if index < 20 else av.Packet(b"\0\0\0\1\x65\xff\xff\xff")
                sent.pts, sent.dts, sent.time_base, sent.stream = packet.pts, packet.dts, packet.time_base, stream
                container.mux(sent)
    connection = FileFeed(path, loop=False).connect()
    items = connection.items()
    for _ in range(15):
        assert isinstance(next(items), Shot)
    with pytest.raises(FeedLost, match="cannot be decoded"):
        list(items)
    connection.close()


def test_urls_are_shown_without_passwords() -> None:
    assert without_password("rtsp://me:secret@camera.local:554/a/b@2") == "rtsp://camera.local:554/a/b@2"
    assert UrlFeed("http://me:secret@host/").name == "http://host/"


@pytest.mark.parametrize("device", ["97", "/dev/no-such-camera"])
def test_missing_camera_says_which_there_are(device: str) -> None:
    with pytest.raises(UserError, match=r"is not there; (cameras here: /dev/|there is no camera here)"):
        connect_first(CameraFeed(device, (640, 480), 30))


def test_refused_url_is_lost() -> None:
    with pytest.raises(FeedLost, match="refused"):
        UrlFeed("http://127.0.0.1:9/clip.mp4").connect()
