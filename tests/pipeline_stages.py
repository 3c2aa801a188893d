"""Small stages for the tests of the pipeline, in a module that spawned processes can import."""

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterable
from fractions import Fraction
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from unmask.stream.frame import Face, Frame
from unmask.stream.pool import SlotPool
from unmask.stream.stage import Context, Sink, Source, Stage


class Numbers(Source):
    """Gives `count` frames of noise, seeded by their number."""

    name = "numbers"

    def __init__(self, count: int, cuts: Iterable[int] = ()) -> None:
        self._count = count
        self._cuts = frozenset(cuts)

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.index >= self._count:
            return
        noise = np.random.default_rng(frame.index)
        for plane in frame.planes:
            plane[...] = noise.integers(0, 256, plane.shape, np.uint8)
        frame.pts = 7 * frame.index - 3
        frame.time_base = Fraction(1001, 30000)
        frame.discontinuity = frame.index in self._cuts
        yield frame

    def summary(self) -> dict[str, Any]:
        return {"process": os.getpid(), "thread": threading.get_ident(), "figures": {"numpy": np.float32(0.5)}}


class Endless(Numbers):
    """Never comes to its end by itself; keeps how many frames it has given."""

    name = "endless"

    def __init__(self) -> None:
        super().__init__(10**9)
        self.given = 0

    def process(self, frame: Frame) -> Iterable[Frame]:
        self.given += 1
        return super().process(frame)


class AddFaces(Stage):
    """Adds index % 3 faces, the second one out of the slot's order, and paints their pictures."""

    name = "add_faces"

    def process(self, frame: Frame) -> Iterable[Frame]:
        noise = np.random.default_rng(1000 + frame.index)
        for place in list(range(frame.index % 3))[::-1]:
            pictures = frame.face_pictures(place)
            for picture in pictures:
                picture[...] = noise.integers(0, 256, picture.shape, np.uint8)
            landmarks = noise.normal(size=(468, 3)).astype(np.float32)
            x, y = noise.normal(size=2)
            frame.faces.append(
                Face(place, (x, y, x + 1, y + 1), noise.random(), landmarks, noise.normal(size=(2, 3)), True, pictures)
            )
        return [frame]


class Invert(Stage):
    """Changes the first plane and every face, as segment and inpaint do."""

    name = "invert"

    def process(self, frame: Frame) -> Iterable[Frame]:
        np.invert(frame.planes[0], out=frame.planes[0])
        for face in frame.faces:
            np.invert(face.pictures.painted, out=face.pictures.painted)
            face.landmarks_px += 1
            face.masked = np.bool_(face.score > 0.5)  # type: ignore[assignment]
            face.mask_score = np.float32(face.score)  # type: ignore[assignment]
        return [frame]


class HoldBack(Stage):
    """Gives each frame `frames` frames later; keeps the sizes of what was flushed."""

    name = "hold_back"

    def __init__(self, frames: int) -> None:
        self._frames = frames
        self._held: deque[Frame] = deque()
        self._flushed: list[int] = []

    def process(self, frame: Frame) -> Iterable[Frame]:
        self._held.append(frame)
        while len(self._held) > self._frames:
            yield self._held.popleft()

    def flush(self) -> Iterable[Frame]:
        self._flushed.append(len(self._held))
        while self._held:
            yield self._held.popleft()

    def summary(self) -> dict[str, Any]:
        return {"flushed": self._flushed}


class HoldBackToo(HoldBack):
    name = "hold_back_too"


class Pass(Stage):
    """Does nothing; `name` can be chosen."""

    def __init__(self, name: str = "pass") -> None:
        self.name = name  # type: ignore[misc]

    def process(self, frame: Frame) -> Iterable[Frame]:
        return [frame]


class Swap(Stage):
    """Breaks the order of frames."""

    name = "swap"

    def __init__(self) -> None:
        self._first: Frame | None = None

    def process(self, frame: Frame) -> Iterable[Frame]:
        if self._first is None:
            self._first = frame
            return []
        first, self._first = self._first, None
        return [frame, first]


class Keep(Stage):
    """Never gives the third frame back."""

    name = "keep"

    def process(self, frame: Frame) -> Iterable[Frame]:
        return [frame] if frame.index < 3 else []


class Slow(Stage):
    """Takes its time."""

    name = "slow"

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def process(self, frame: Frame) -> Iterable[Frame]:
        time.sleep(self._seconds)
        return [frame]


class Kill(Stage):
    """Kills the process that it runs in."""

    name = "kill"

    def __init__(self, at: int) -> None:
        self._at = at

    def process(self, frame: Frame) -> Iterable[Frame]:
        if frame.index == self._at:
            os.kill(os.getpid(), signal.SIGKILL)
        return [frame]


class Hang(Stage):
    """Says so, then never comes back."""

    name = "hang"

    def open(self, context: Context) -> None:
        self._notice = context.notice

    def process(self, frame: Frame) -> Iterable[Frame]:
        self._notice("hanging")
        time.sleep(1000)
        return [frame]


class FailingOpen(Stage):
    """Raises when it is opened."""

    name = "failing_open"

    def __init__(self, error: Exception) -> None:
        self._error = error

    def open(self, context: Context) -> None:
        raise self._error

    def process(self, frame: Frame) -> Iterable[Frame]:
        return [frame]


class Digest(Sink):
    """Keeps a digest of everything in each frame; writes it to `path` when flushed, and a mark when closed."""

    name = "digest"

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._lines: list[str] = []

    def open(self, context: Context) -> None:
        context.notice(f"{context.layout.width} px, {context.max_faces} faces")

    def process(self, frame: Frame) -> Iterable[Frame]:
        content = hashlib.sha256()
        for plane in frame.planes:
            content.update(plane.tobytes())
        for face in frame.faces:
            content.update(repr((face.track_id, face.box_px, face.score, face.reset, face.mask_score)).encode())
            content.update(f"{face.masked is True}".encode())
            for array in (face.landmarks_px, face.crop_from_frame, *face.pictures):
                content.update(array.tobytes())
        self._lines.append(f"{frame.index} {frame.pts} {frame.time_base} {len(frame.faces)} {content.hexdigest()}")
        return [frame]

    def flush(self) -> Iterable[Frame]:
        if self._path is not None:
            self._path.write_text("\n".join(self._lines))
        return ()

    def close(self) -> None:
        if self._path is not None:
            self._path.with_suffix(".closed").touch()

    def summary(self) -> dict[str, Any]:
        return {"lines": self._lines}


class SlowDigest(Digest):
    """Slower than any source."""

    def process(self, frame: Frame) -> Iterable[Frame]:
        time.sleep(0.01)
        return super().process(frame)


class FailingSource(Numbers):
    name = "failing"

    def process(self, frame: Frame) -> Iterable[Frame]:
        _fail_at(5, frame)
        return super().process(frame)


class Failing(Stage):
    name = "failing"

    def process(self, frame: Frame) -> Iterable[Frame]:
        _fail_at(5, frame)
        return [frame]


class FailingSink(Digest):
    name = "failing"

    def process(self, frame: Frame) -> Iterable[Frame]:
        _fail_at(5, frame)
        return super().process(frame)


class FailingFlush(Pass):
    def flush(self) -> Iterable[Frame]:
        raise OSError(28, "No space left on device")


class FailingClose(Pass):
    def close(self) -> None:
        raise OSError(28, "No space left on device")


class BadSummary(Pass):
    def summary(self) -> dict[str, Any]:
        return {"path": Path("x")}


def _fail_at(index: int, frame: Frame) -> None:
    if frame.index == index:
        raise ZeroDivisionError("one line\nand another")


def fill_slot(pool: SlotPool, slot: int, value: int) -> None:
    pool.buffer(slot)[:] = value


def send_slot_sums(pool: SlotPool, to: Connection) -> None:
    to.send([int(pool.buffer(slot).sum()) for slot in range(pool.count)])


def shared_memory_descriptors() -> list[str]:
    """The descriptors of this process that refer to anonymous shared memory."""
    found = []
    for descriptor in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the listing itself
            if "memfd:unmask" in os.readlink(f"/proc/self/fd/{descriptor}"):
                found.append(descriptor)
    return found
