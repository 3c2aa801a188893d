"""What the threads of a live run tell each other: orders, figures, and lines for the user."""

import threading
import time
from collections import deque
from dataclasses import dataclass
from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
import numpy.typing as npt

from unmask.stream.supervisor import Cancel
from unmask.stream.timing import Durations, StageTiming

TIME_BASE: Final = Fraction(1, 90_000)
"""Of the pts of every live frame: the clock of MPEG-TS and RTP."""

SOUND_RATE: Final = 48_000
"""Samples per second of all sound in a live run; it is stereo."""

_RECENT_SECONDS: Final = 3.0
"""What the figures on screen are about."""

MOST_SOUNDS: Final = 1000
"""Ten seconds and more: longer sound is only there while no picture comes, and belongs to none."""


STALL_SECONDS: Final = 10.0
"""A picture that has been under way for so long is taken to be stuck."""


class Sound(NamedTuple):
    """A piece of sound.

    Attributes:
        seconds: when it begins, on the clock of the pictures' pts.
        samples: (2, N) float32, -1..1, at `SOUND_RATE`.
    """

    seconds: float
    samples: npt.NDArray[np.float32]

    def cut(self, seconds: float) -> "tuple[Sound, Sound]":
        """The parts before and after a time; either may be empty."""
        place = min(max(round((seconds - self.seconds) * SOUND_RATE), 0), self.samples.shape[1])
        after = Sound(self.seconds + place / SOUND_RATE, self.samples[:, place:])
        return Sound(self.seconds, self.samples[:, :place]), after


@dataclass(frozen=True, slots=True)
class Figures:
    """How a run is doing, for people to look at.

    Args:
        source: what is being read.
        connected: False while the source is away.
        paused: True while the user has stopped the picture.
        seconds: since the first picture.
        frames: that have reached the outputs.
        dropped: that were passed over because the pipeline was busy.
        lost: times that the source went away.
        fps: frames per second at the outputs, over the last seconds.
        faces, masks: in the newest frame.
        p50_ms, p95_ms, p99_ms: latency over the last seconds, from the source's picture to the outputs.
    """

    source: str
    connected: bool
    paused: bool
    seconds: float
    frames: int
    dropped: int
    lost: int
    fps: float
    faces: int
    masks: int
    p50_ms: float
    p95_ms: float
    p99_ms: float

    def line(self) -> str:
        """The figures in one line."""
        state = "" if self.connected else "waiting for the source; "
        state = "paused; " if self.paused else state
        return (
            f"{state}{self.fps:.1f} fps, latency {self.p50_ms:.0f} ms (p95 {self.p95_ms:.0f}), {self.dropped} dropped"
        )


class LiveState:
    """Shared by the threads of one run.

    Args:
        source: how the source is called in lines for the user.
        cancel: ends the run.
        coded: True where latency is read from time codes in the pictures, False where a table keeps the times.

    Attributes:
        paused: set by the user; pictures are then passed over, and not counted as dropped.
        connected: False while the source is away.
        taken, dropped, lost: pictures that the pipeline took, those passed over, and how often the source went away.
        behind_seconds: how much longer a paced source has taken than its own pace.
        unreadable: frames in which no time code could be read at the output.
        serving: the output that is being given a frame; None between frames.
    """

    def __init__(self, source: str, cancel: Cancel, *, coded: bool = False) -> None:
        self.source = source
        self.coded = coded
        self.paused = False
        self.connected = False
        self.taken = self.dropped = self.lost = 0
        self.unreadable = 0
        self.serving: str | None = None
        self.behind_seconds = 0.0
        self._cancel = cancel
        self._started = time.monotonic()
        self._lock = threading.Lock()
        self._notices: deque[str] = deque()
        self._sounds: deque[Sound] = deque(maxlen=MOST_SOUNDS)
        self._captured: dict[int, float] = {}
        self._frames = 0
        self._first: float | None = None
        self._shown: deque[tuple[float, float]] = deque()
        self._faces = self._masks = 0
        self._latency = Durations()
        self._minute = Durations()
        self._minutes: list[StageTiming] = []

    # --- orders and lines ---------------------------------------------------------------------------------------------

    @property
    def ending(self) -> bool:
        """True once the user or an output wants the run to end."""
        return self._cancel.draining or self._cancel.stopping

    @property
    def received(self) -> int:
        """Pictures that the source gave, taken or dropped."""
        return self.taken + self.dropped

    def end(self) -> None:
        """End the run in good order."""
        self._cancel.drain()

    def notice(self, line: str) -> None:
        """Take a line for the user, from any thread."""
        self._notices.append(line)

    def take_notices(self) -> list[str]:
        """The lines that have come since the last call."""
        lines = []
        while self._notices:
            lines.append(self._notices.popleft())
        return lines

    # --- time and sound -----------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds since the run began."""
        return self.at(time.monotonic())

    def at(self, monotonic: float) -> float:
        """A time of `time.monotonic` on the clock of `now`."""
        return monotonic - self._started

    def add_sound(self, sound: Sound) -> None:
        self._sounds.append(sound)

    def take_sounds(self) -> list[Sound]:
        """The pieces of sound that have come since the last call."""
        sounds = []
        while self._sounds:
            sounds.append(self._sounds.popleft())
        return sounds

    # --- figures ------------------------------------------------------------------------------------------------------

    def start_counting(self) -> None:
        """The pipeline is ready: what came before does not count."""
        with self._lock:
            self.taken = self.dropped = 0

    def count_dropped(self, number: int) -> None:
        with self._lock:
            self.dropped += number

    def took(self, index: int, seconds: float) -> None:
        """The pipeline took a picture as frame `index`; it came into being at `seconds`, on the clock of `now`."""
        with self._lock:
            self.taken += 1
            self._captured[index] = seconds

    def shown(self, index: int, coded: float | None, faces: int, masks: int) -> None:
        """A frame has reached the outputs.

        Args:
            index: of the frame.
            coded: the time read from its picture; None where there is none.
            faces, masks: found in it, and taken off.
        """
        now = self.now()
        with self._lock:
            captured = self._captured.pop(index)
            self._first = now if self._first is None else self._first
            self._frames += 1
            self._faces, self._masks = faces, masks
            if self.coded and coded is None:
                self.unreadable += 1
                return
            since = coded if self.coded and coded is not None else captured
            self._latency.add(now - since)
            while now - self._first >= 60 * (len(self._minutes) + 1):  # several after a long time without a picture
                self._minutes.append(self._minute.timing())
                self._minute = Durations()
            self._minute.add(now - since)
            self._shown.append((now, now - since))
            while self._shown[0][0] < now - _RECENT_SECONDS:
                self._shown.popleft()

    def stuck(self) -> str | None:
        """What has kept a picture for more than `STALL_SECONDS`; None where none has been under way for so long."""
        with self._lock:
            oldest = min(self._captured.values(), default=self.now())
        return (self.serving or "a stage before the outputs") if self.now() - oldest > STALL_SECONDS else None

    def figures(self) -> Figures:
        now = self.now()
        with self._lock:
            recent = [latency for at, latency in self._shown if at >= now - _RECENT_SECONDS]
            oldest = self._shown[0][0] if self._shown else now
            span = max(now - max(oldest, now - _RECENT_SECONDS), 0.2)
            p50, p95, p99 = (1000 * np.percentile(recent, (50, 95, 99))).tolist() if recent else (0.0, 0.0, 0.0)
            return Figures(
                source=self.source,
                connected=self.connected,
                paused=self.paused,
                seconds=0.0 if self._first is None else now - self._first,
                frames=self._frames,
                dropped=self.dropped,
                lost=self.lost,
                fps=len(recent) / span,
                faces=self._faces,
                masks=self._masks,
                p50_ms=p50,
                p95_ms=p95,
                p99_ms=p99,
            )

    def latency(self) -> StageTiming:
        """Latency over the whole run."""
        with self._lock:
            return self._latency.timing()

    def latency_percentiles_ms(self) -> list[float]:
        """The 0th to the 100th percentile of the latency over the whole run."""
        with self._lock:
            return self._latency.percentiles_ms()

    def latency_by_minute(self) -> list[StageTiming]:
        """Latency of each minute, in order: whether it grows can be seen here."""
        with self._lock:
            return [*self._minutes, self._minute.timing()]
