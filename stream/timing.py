"""How long a stage works, kept in bounded memory however long the run."""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Final

_STEP: Final = math.log(1.01)
"""Durations within 1 % of each other share a bucket, so a percentile is right to about half a per cent."""


@dataclass(frozen=True, slots=True)
class StageTiming:
    """What a stage spent on its frames.

    Attributes:
        count: calls of `process`.
        mean_ms: mean duration of such a call in milliseconds, exact.
        p50_ms, p95_ms, p99_ms: percentiles of it, to within 1 %.
    """

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float


class Durations:
    """A histogram with logarithmic buckets."""

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self._count = 0
        self._total = 0.0
        self._longest = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration, > 0 s."""
        self._buckets[round(math.log(max(seconds, 1e-9)) / _STEP)] += 1
        self._count += 1
        self._total += seconds
        self._longest = max(self._longest, seconds)

    def timing(self) -> StageTiming:
        """The figures so far."""
        mean = self._total / self._count if self._count else 0.0
        p50, p95, p99 = (1000 * self._percentile(share) for share in (0.50, 0.95, 0.99))
        return StageTiming(self._count, 1000 * mean, p50, p95, p99)

    def percentiles_ms(self) -> list[float]:
        """The 0th to the 100th percentile in milliseconds, to within 1 %: 101 figures; none of no durations."""
        return [round(1000 * self._percentile(n / 100), 3) for n in range(101)] if self._count else []

    def _percentile(self, share: float) -> float:
        """The smallest duration, in seconds, that at least `share` of all durations do not exceed (nearest rank)."""
        missing = share * self._count
        for bucket, count in sorted(self._buckets.items()):
            missing -= count
            if missing <= 0:
                return min(math.exp(bucket * _STEP), self._longest)
        return self._longest
