"""How many requests are still to come, against traffic whose law is known."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.budget.ledger import BINS, PERIOD, WIDTH, Arrivals

START = 1_000 * PERIOD


def daily(days: float, per_bin: np.ndarray, start: float = START) -> np.ndarray:
    """Evenly spaced times: per_bin (BINS,) requests in each bin of a day."""
    bins = np.arange(int(days * BINS))
    counts = per_bin[bins % BINS]
    inside = np.concatenate([(np.arange(count) + 0.5) / count for count in counts if count])
    return start + (np.repeat(bins, counts) + inside) * WIDTH


PATTERN = np.where(np.arange(BINS) < BINS // 2, 10, 1)


def test_nothing_is_expected_before_anything_came() -> None:
    assert Arrivals().expected(1e12) == 0.0


def test_the_first_day_is_expected_to_go_on_as_it_began() -> None:
    arrivals = Arrivals()
    arrivals.take(daily(0.25, PATTERN))
    assert arrivals.expected(START + 0.5 * PERIOD) == pytest.approx(360, rel=0.05)


def test_every_time_of_day_is_like_the_day_before() -> None:
    arrivals = Arrivals()
    arrivals.take(daily(1.75, PATTERN))
    day = PATTERN.sum()
    left = PATTERN[108:].sum()
    assert arrivals.expected(START + 2 * PERIOD) == pytest.approx(left, abs=1)
    assert arrivals.expected(START + 5 * PERIOD) == pytest.approx(left + 3 * day, abs=1)
    assert arrivals.expected(START + 2.25 * PERIOD) == pytest.approx(left + 360, abs=1)
    assert arrivals.expected(START + 1.7 * PERIOD) == 0.0


def test_what_has_come_of_the_current_bin_is_not_expected_again() -> None:
    arrivals = Arrivals()
    arrivals.take(daily(1.5, np.full(BINS, 100)))
    arrivals.take(START + 1.5 * PERIOD + np.linspace(0.0, 0.7 * WIDTH, 70))
    end_of_bin = START + 1.5 * PERIOD + WIDTH
    assert arrivals.expected(end_of_bin) == pytest.approx(30, abs=1)
    assert arrivals.expected(end_of_bin - 0.2 * WIDTH) == pytest.approx(10, abs=1)


def test_a_burst_is_not_expected_again() -> None:
    arrivals = Arrivals()
    arrivals.take(daily(2, PATTERN))
    quiet = arrivals.expected(START + 3 * PERIOD)
    at = daily(1, PATTERN, START + 2 * PERIOD)
    burst = START + 2 * PERIOD + 30 * WIDTH + np.arange(600) * WIDTH / 200
    arrivals.take(np.sort(np.concatenate([at, burst])))
    assert arrivals.expected(START + 4 * PERIOD) < quiet + 3 * (10 + 10) + 1


def test_a_day_without_traffic_is_known_as_such() -> None:
    arrivals = Arrivals()
    arrivals.take(daily(1, PATTERN))
    arrivals.take(np.array([START + 4 * PERIOD]))
    assert arrivals.expected(START + 5 * PERIOD) < 2


def test_batches_single_requests_and_late_ones_count_alike() -> None:
    at = daily(3.3, PATTERN)
    whole, single, shuffled = Arrivals(), Arrivals(), Arrivals()
    whole.take(at)
    for each in at:
        single.take(np.array([each]))
    mixed = np.random.default_rng(0).permuted(at[len(at) // 3 :])
    shuffled.take(at[: len(at) // 3])
    for part in np.array_split(mixed, 50):
        shuffled.take(part)
    for other in (single, shuffled):
        assert other.expected(START + 6 * PERIOD) == whole.expected(START + 6 * PERIOD)
        np.testing.assert_array_equal(other.arrays()["arrivals"], whole.arrays()["arrivals"])
    loaded = Arrivals()
    loaded.load(**whole.arrays())
    assert loaded.expected(START + 6 * PERIOD) == whole.expected(START + 6 * PERIOD)
    before = whole.expected(START + 6 * PERIOD)
    whole.take(np.array([START - 9 * PERIOD]))
    assert whole.total == len(at) + 1
    assert whole.expected(START + 6 * PERIOD) == pytest.approx(before)
