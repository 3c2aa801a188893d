"""The thread that reads a feed, for as long as the run lasts and through every loss of the source."""

import threading
from collections import deque
from typing import Final, NamedTuple

from av.video.frame import VideoFrame

from unmask.errors import UserError
from unmask.stream.live.feed import Connection, Feed, FeedLost, Shot
from unmask.stream.live.mailbox import Mailbox
from unmask.stream.live.state import MOST_SOUNDS, LiveState, Sound

_JUMP_SECONDS: Final = 2.0
"""A step in the source's times that is none of its pictures': the sender has begun anew."""

_LATE_SECONDS: Final = 0.5
"""A paced source that is so late has its clock set back, or it would rush to catch up."""

_FIRST_WAIT: Final = 0.1
_LONGEST_WAIT: Final = 0.8
"""Seconds between attempts to reach a source: it is back on screen within 2 s of its return."""

_REMIND_EVERY: Final = 30.0


class Arrival(NamedTuple):
    """A picture on the run's clock.

    Attributes:
        image: as decoded.
        seconds: when it is to be shown, from the source's own times; later than that of the picture before.
        captured: when it came into being, on the clock of `LiveState.now`.
        scene: counts connections and jumps in their times: where it changes, nothing before may be remembered.
    """

    image: VideoFrame
    seconds: float
    captured: float
    scene: int


class Reader(threading.Thread):
    """Puts the pictures of a feed into a mailbox and their sound into the state.

    Args:
        feed: the source.
        first: a connection to it, which this thread closes.
        box: takes the pictures; closed when no more follow.
        state: of the run.
        sound: True where an output wants sound.
        once: end with the first loss of the source.

    Attributes:
        error: what went wrong in the program itself; None where nothing did.
    """

    def __init__(
        self, feed: Feed, first: Connection, box: Mailbox[Arrival], state: LiveState, *, sound: bool, once: bool
    ) -> None:
        super().__init__(name="unmask-reader", daemon=True)  # it may hang in a read that nothing interrupts
        self._feed, self._first, self._box, self._state = feed, first, box, state
        self._sound, self._once = sound, once
        self.error: Exception | None = None
        self._stop_now = threading.Event()
        self._step = float(1 / first.info.fps)
        self._last = -self._step
        self._behind = 0.0
        self._scene = 0
        self._held: deque[Sound] = deque(maxlen=MOST_SOUNDS)

    def stop(self) -> None:
        """Read no more."""
        self._stop_now.set()
        self._box.close()

    def run(self) -> None:
        connection: Connection | None = self._first
        try:
            while connection is not None:
                connection = self._next(self._read(connection))
        except Exception as error:
            self.error = error
        finally:
            self._box.close()

    # --- one connection -----------------------------------------------------------------------------------------------

    def _read(self, connection: Connection) -> str:
        """Read a connection to its end. Returns why it ended, empty where that was its proper end."""
        offset: float | None = None
        before = 0.0
        self._held.clear()
        try:
            for item in connection.items():
                if self._stop_now.is_set():
                    break
                if isinstance(item, Sound):
                    if self._sound:
                        self._held.append(item)
                    continue
                time = self._time_of(item, offset, before)
                if offset is None or self._jumped(time - before, paced=connection.paced):
                    # A paced picture is due `_behind` after its time: this one is due now, or after the one before.
                    offset = max(self._state.now() - self._behind, self._last + self._step) - time
                    self._scene += 1
                    near = [sound for sound in self._held if abs(sound.seconds - time) < _JUMP_SECONDS]
                    self._held = deque(near, maxlen=MOST_SOUNDS)
                before = time
                self._pass_on_sound(time, offset)
                self._pass_on(item, time + offset, paced=connection.paced)
        except FeedLost as lost:
            return str(lost)
        finally:
            connection.close()
        return "" if self._feed.finite or self._stop_now.is_set() else "it has ended"

    def _time_of(self, shot: Shot, offset: float | None, before: float) -> float:
        """The picture's time on the clock of its connection; that of its arrival where it has none."""
        if shot.seconds is not None:
            return shot.seconds
        return self._state.at(shot.captured) if offset is None else max(self._state.at(shot.captured), before)

    @staticmethod
    def _jumped(step: float, *, paced: bool) -> bool:
        return step < -_JUMP_SECONDS or (step > _JUMP_SECONDS and not paced)

    def _pass_on_sound(self, time: float, offset: float) -> None:
        """Pass on the sound up to the end of the picture at `time`.

        What is ahead of its picture waits for it here, on the connection's clock: the picture may turn out to begin a
        new scene, with another offset, or never come, where a file has more sound than pictures and begins anew.
        """
        end = time + self._step
        while self._held and self._held[0].seconds < end:
            ready, ahead = self._held.popleft().cut(end)
            self._state.add_sound(ready._replace(seconds=ready.seconds + offset))
            if ahead.samples.shape[1]:
                self._held.appendleft(ahead)
                return

    def _pass_on(self, shot: Shot, seconds: float, *, paced: bool) -> None:
        captured = self._wait_until(seconds) if paced else self._state.at(shot.captured)
        if not self._state.connected:
            self._state.connected = True
            if self._state.lost:
                self._state.notice(f"{self._feed.name}: back")
        self._last = max(seconds, self._last + 1e-4)
        self._state.count_dropped(self._box.put(Arrival(shot.image, self._last, captured, self._scene)))

    def _wait_until(self, seconds: float) -> float:
        """Wait until a picture of a paced source is due. Returns when it was."""
        due = seconds + self._behind
        late = self._state.now() - due
        if late < 0:
            self._stop_now.wait(-late)
        if late <= _LATE_SECONDS:
            return due
        if not self._behind:
            self._state.notice(f"{self._feed.name}: the machine is too busy to read it at its own pace; it runs late")
        self._behind += late
        self._state.behind_seconds = self._behind
        return due + late

    # --- from one connection to the next ------------------------------------------------------------------------------

    def _next(self, reason: str) -> Connection | None:
        """The next connection; None where the run is over."""
        if self._stop_now.is_set() or (self._feed.finite and not self._feed.loops):
            if reason:
                self._state.notice(f"{self._feed.name}: {reason}; it ends here")
            return None
        if not reason:
            try:
                return self._feed.connect()
            except (FeedLost, UserError) as error:
                reason = str(error)
        if self._once:
            self._state.notice(f"{self._feed.name}: {reason}; ending, as --once asks")
            return None
        return self._reconnect(reason)

    def _reconnect(self, reason: str) -> Connection | None:
        self._state.connected = False
        self._state.lost += 1
        self._state.notice(f"{self._feed.name}: {reason}; trying again")
        wait, reminded = _FIRST_WAIT, self._state.now()
        while not self._stop_now.wait(wait):
            try:
                return self._feed.connect()
            except (FeedLost, UserError) as error:
                wait = min(1.5 * wait, _LONGEST_WAIT)
                if self._state.now() - reminded > _REMIND_EVERY:
                    reminded = self._state.now()
                    self._state.notice(f"{self._feed.name}: still away ({error})")
        return None
