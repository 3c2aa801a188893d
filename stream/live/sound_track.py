"""One unbroken track of sound out of pieces that overlap or leave gaps where a source was cut."""

from collections.abc import Iterator
from fractions import Fraction
from typing import Final

import numpy as np
import numpy.typing as npt
from av.audio.frame import AudioFrame

from unmask.stream.live.state import SOUND_RATE, Sound

_TOLERANCE: Final = SOUND_RATE // 25
"""Pieces that are off by less, in samples (40 ms), are joined: their times are rounded, and nobody hears it."""

_PIECE: Final = SOUND_RATE
"""Silence is made in pieces of so many samples, so that a long gap takes no memory."""

F32 = npt.NDArray[np.float32]


class SoundTrack:
    """Puts pieces of sound where they belong: silence fills gaps, what overlaps is cut, what is early is let go.

    Args:
        start: the time that becomes 0, seconds on the clock of the pieces.
    """

    def __init__(self, start: float) -> None:
        self._start = start
        self._length = 0

    def add(self, sound: Sound, end: float = float("inf")) -> Iterator[AudioFrame]:
        """The frames that a piece gives, stereo float planes at `SOUND_RATE`; nothing after `end` (seconds)."""
        place = round((sound.seconds - self._start) * SOUND_RATE)
        samples = sound.samples
        if abs(place - self._length) > _TOLERANCE:
            if place < self._length:
                samples = samples[:, self._length - place :]
            yield from self._silence(min(place, self._samples_until(end)) - self._length)
        samples = samples[:, : max(0, self._samples_until(end) - self._length)]
        if samples.shape[1]:
            yield self._frame(samples)

    def _samples_until(self, end: float) -> int:
        return 1 << 60 if end == float("inf") else round((end - self._start) * SOUND_RATE)

    def _silence(self, missing: int) -> Iterator[AudioFrame]:
        while missing > 0:
            length = min(missing, _PIECE)
            yield self._frame(np.zeros((2, length), np.float32))
            missing -= length

    def _frame(self, samples: F32) -> AudioFrame:
        frame = AudioFrame.from_ndarray(np.ascontiguousarray(samples), format="fltp", layout="stereo")
        frame.sample_rate, frame.time_base, frame.pts = SOUND_RATE, Fraction(1, SOUND_RATE), self._length
        self._length += samples.shape[1]
        return frame
