"""The histogram of durations against exact figures."""

import numpy as np
import pytest

from unmask.stream.timing import Durations


def test_percentiles_are_within_one_per_cent_of_exact_ones() -> None:
    seconds = np.random.default_rng(3).lognormal(-5, 1.5, 5000)
    durations = Durations()
    for duration in seconds:
        durations.add(duration)
    timing = durations.timing()
    exact_ms = 1000 * np.percentile(seconds, [50, 95, 99], method="inverted_cdf")
    np.testing.assert_allclose([timing.p50_ms, timing.p95_ms, timing.p99_ms], exact_ms, rtol=0.01)
    assert timing.count == 5000
    assert timing.mean_ms == pytest.approx(1000 * seconds.mean())


def test_no_percentile_exceeds_the_longest_duration() -> None:
    durations = Durations()
    durations.add(0.0123)
    timing = durations.timing()
    assert timing.p50_ms == timing.p99_ms <= 12.3


def test_a_stage_that_never_ran_took_no_time() -> None:
    timing = Durations().timing()
    assert (timing.count, timing.mean_ms, timing.p99_ms) == (0, 0, 0)
