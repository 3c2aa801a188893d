"""The One-Euro filter: steady when the signal rests, quick when it moves (Casiez et al., CHI 2012,
doi:10.1145/2207676.2208639)."""

from dataclasses import dataclass

import numpy as np

from unmask.stream.frame import F64


@dataclass(frozen=True, slots=True)
class OneEuroSettings:
    """How strongly to filter.

    Args:
        min_cutoff_hz: cutoff at rest; lower is steadier.
        beta: Hz added to the cutoff per unit and second of speed; higher follows faster.
        speed_cutoff_hz: cutoff of the filter on the speed itself.
    """

    min_cutoff_hz: float
    beta: float
    speed_cutoff_hz: float = 1.0


class OneEuro:
    """Filters an array of values element by element.

    Args:
        settings: see `OneEuroSettings`.
        value: the first value, of any shape.
        seconds: its time.
    """

    def __init__(self, settings: OneEuroSettings, value: F64, seconds: float) -> None:
        self._settings = settings
        self._value = value
        self._raw = value
        self._speed = np.zeros_like(value)
        self._seconds = seconds

    def __call__(self, value: F64, seconds: float, unit: F64 | float = 1.0) -> F64:
        """Filter the next value.

        Args:
            value: of the same shape as the first one.
            seconds: its time; where it is not later than the one before, the value is passed over and the last result
                given again.
            unit: what the values are measured in, one number or one per value: speeds are divided by it before `beta`
                applies.

        Returns:
            The filtered value.
        """
        dt = seconds - self._seconds
        if dt <= 0:
            return self._value
        self._take(value, seconds)
        cutoff = self._settings.min_cutoff_hz + self._settings.beta * np.abs(self._speed) / unit
        self._value = self._value + _smoothing(cutoff, dt) * (value - self._value)
        return self._value

    def carry(self, value: F64, filtered: F64, seconds: float) -> None:
        """Go on where the movement since the value before is known, so that there is nothing to filter.

        Args:
            value: the value before, moved.
            filtered: what was given for it, moved.
            seconds: the time of both.
        """
        self._take(value, seconds)
        self._value = filtered

    def _take(self, value: F64, seconds: float) -> None:
        """Note a value and its speed."""
        dt = seconds - self._seconds
        if dt > 0:
            speed = (value - self._raw) / dt
            self._speed = self._speed + _smoothing(self._settings.speed_cutoff_hz, dt) * (speed - self._speed)
            self._seconds = seconds
        self._raw = value


def _smoothing(cutoff_hz: F64 | float, dt: float) -> F64:
    """The share of the new value in a first-order low-pass filter."""
    return np.asarray(1.0 / (1.0 + 1.0 / (2.0 * np.pi * np.asarray(cutoff_hz) * dt)))
