"""The pace: the time that as many requests took last, whatever came before or between."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from equipoise.agent.budget.ledger import Arrivals
from equipoise.agent.planning.pace import Pace

NIGHT = 1_700_000_000.0 // 86_400.0 * 86_400.0


def pace(times, now=None, held=4096, entering=1.0):
    """Of requests at these times, of which the newest `held` are open decisions."""
    times = np.sort(np.asarray(times)) + NIGHT
    arrivals = Arrivals()
    arrivals.take(times)
    table = SimpleNamespace(at=times[-held:], size=min(held, len(times)))
    return Pace.of(table, arrivals, times[-1] if now is None else NIGHT + now, entering)


def band(made, rows, seed=0):
    return np.quantile(
        made.hours(np.full(400, float(rows)), np.random.default_rng(seed)), [0.1, 0.5, 0.9]
    )


def test_an_idle_start_is_no_part_of_it():
    """Eight requests, 22 silent minutes, then ten a second: 3,000 more take five minutes."""
    times = np.concatenate([np.arange(8.0), 1_320.0 + np.arange(600) / 10.0])
    low, median, high = band(pace(times), 3_000)
    assert median == pytest.approx(300 / 3600, rel=0.05)
    assert 0.8 * median < low <= high < 1.25 * median


@pytest.mark.parametrize("held", [50, 4096])
def test_open_decisions_and_bins_say_the_same(held):
    """One request a second for three hours; of the older ones only bins of ten minutes are kept."""
    made = pace(np.arange(10_800.0), held=held)
    assert made.per_hour(5_000.0) == pytest.approx(3_600.0, rel=0.02)
    assert band(made, 3_600)[1] == pytest.approx(1.0, rel=0.1)
    assert band(pace(np.arange(10_800.0), entering=0.25), 900)[1] == pytest.approx(1.0, rel=0.1)


def test_a_burst_is_not_taken_for_the_rule():
    """A hundred requests in a minute of every twenty, and we stand at the end of such a minute."""
    turns = np.arange(12) * 1_200.0
    times = (turns[:, None] + np.linspace(0.0, 60.0, 100)).ravel()
    low, median, high = band(pace(times), 600)
    assert median == pytest.approx(2.0, rel=0.35), "six turns of twenty minutes"
    assert high > 1.2 * low


def test_a_night_is_known_once_a_day_was_seen():
    """Ten requests a minute by day, one by night; it is nine in the evening of the second day."""
    hours = np.arange(45)
    counts = np.where((hours % 24 >= 8) & (hours % 24 < 20), 600, 60)
    times = np.concatenate(
        [h * 3600.0 + np.arange(n) * 3600.0 / n for h, n in zip(hours, counts, strict=True)]
    )
    made = pace(times, now=45 * 3600.0, held=500)
    # Eleven hours of night bring 660, and then a morning comes.
    true = 11.0 + (1_800 - 660) / 600
    low, median, high = band(made, 1_800)
    assert median == pytest.approx(true, rel=0.2)
    assert low <= true * 1.05
    assert high >= true * 0.95


def test_hours_that_were_not_seen_widen_the_band_only_far_ahead():
    made = pace(np.arange(4 * 3_600.0))
    near, far = band(made, 600), band(made, 40_000)
    assert near[2] / near[0] < 1.2
    assert far[2] / far[0] > 1.5
    assert far[0] < 40_000 / 3_600 < far[2]


def test_silence_is_no_traffic_after_twenty_gaps_and_a_minute():
    fast, slow = pace(np.arange(300.0) / 10.0), pace(np.arange(300.0) * 30.0)
    assert fast.quiet_after == 60.0
    assert slow.quiet_after == pytest.approx(600.0, rel=0.05)
    assert pace(np.arange(300.0), now=1_000.0).silent == pytest.approx(701.0)


def test_too_few_requests_say_nothing():
    made = pace([0.0, 1.0, 2.0])
    assert made.hours(np.ones(3), np.random.default_rng(0)) is None
    assert made.per_hour(100.0) is None
