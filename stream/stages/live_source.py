"""The first stage of a live run: the newest picture of a source that does not wait."""

import gc
from collections.abc import Iterable
from typing import Any, ClassVar, Final

from unmask.stream.frame import Frame
from unmask.stream.live import time_code
from unmask.stream.live.feed import Connection, Feed
from unmask.stream.live.mailbox import Mailbox, WhenFull
from unmask.stream.live.reader import Arrival, Reader
from unmask.stream.live.state import TIME_BASE, LiveState
from unmask.stream.stage import Context, Source
from unmask.stream.stages.decode import fill

_LOOK_SECONDS: Final = 0.05
"""How often, at least, to see whether the run is to end."""


class LiveSource(Source):
    """Gives the newest picture of a feed. This is the only place where a live run drops pictures, and it counts them.

    Runs in a thread of the program: the connection is open already, and the state is shared.

    Args:
        feed: the source.
        first: an open connection to it, which is closed with this stage.
        state: of the run. Its `coded` decides whether time codes are burnt in.
        sound: True where an output wants sound.
        once: end with the first loss of the source.
        seconds: end after so long; None for never.
    """

    name: ClassVar[str] = "live_source"

    def __init__(
        self,
        feed: Feed,
        first: Connection,
        state: LiveState,
        *,
        sound: bool = False,
        once: bool = False,
        seconds: float | None = None,
    ) -> None:
        self._state = state
        self._first = first
        self._paced = first.paced
        self._orientation = first.info.orientation
        self._seconds = seconds
        self._box: Mailbox[Arrival] = Mailbox(1, WhenFull.DROP_OLDEST)
        self._reader = Reader(feed, first, self._box, state, sound=sound, once=once)

    def open(self, context: Context) -> None:
        self._notice = context.notice
        self._begun: float | None = None
        self._last_pts = -1
        self._scene = 0
        if not self._paced:
            self._reader.start()  # while networks are loaded, a source that does not wait must be read

    def process(self, frame: Frame) -> Iterable[Frame]:
        if self._begun is None:
            self._begin()
        arrival = self._newest()
        if arrival is None:
            if self._reader.error is not None:
                raise self._reader.error
            return ()
        fill(frame, arrival.image, self._orientation)
        if self._state.coded:
            for planes in (frame.planes, *([frame.source_planes] if frame.layout.keep_source else [])):
                time_code.burn(planes, arrival.captured)
        self._last_pts = max(self._last_pts + 1, round(arrival.seconds / TIME_BASE))
        frame.pts, frame.time_base = self._last_pts, TIME_BASE
        frame.discontinuity = arrival.scene != self._scene
        self._scene = arrival.scene
        self._state.took(frame.index, arrival.captured)
        return (frame,)

    def close(self) -> None:
        gc.unfreeze()
        self._reader.stop()
        if self._reader.ident is None:
            self._first.close()
        elif self._reader.is_alive():
            self._reader.join(0.5)  # a read that hangs cannot be ended; its thread closes the connection when it can

    def summary(self) -> dict[str, Any]:
        return {"received": self._state.received, "dropped": self._state.dropped, "lost": self._state.lost}

    def _begin(self) -> None:
        self._begun = self._state.now()
        self._box.get(0)  # it may be as old as the loading of the networks took
        self._state.start_counting()
        # What is loaded stays until the end: looking through it for garbage would stop all stages for 20 ms and more.
        gc.collect()
        gc.freeze()
        if self._paced:
            self._reader.start()

    def _newest(self) -> Arrival | None:
        """The newest picture, waited for; None where the run is over."""
        while not self._over():
            for line in self._state.take_notices():
                self._notice(line)
            arrival = self._box.get(_LOOK_SECONDS)
            if arrival is not None and not self._state.paused:
                return arrival
            if self._state.paused:
                self._scene = 0  # what follows a pause begins a scene
                self._state.take_sounds()  # a recording is not to hear what it does not show
        for line in self._state.take_notices():
            self._notice(line)
        return None

    def _over(self) -> bool:
        assert self._begun is not None
        timed_out = self._seconds is not None and self._state.now() - self._begun >= self._seconds
        return self._state.ending or self._box.ended or timed_out
