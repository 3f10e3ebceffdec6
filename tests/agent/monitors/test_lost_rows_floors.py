"""Floors: rows counted by hand, weights against what configuration allows."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.monitors import Floors
from equipoise.store.batches import Closure

YES, NO = True, False


def test_rows_are_counted_once_each():
    monitor = Floors(("a", "b"), rate_min=0.1, largest_weight=100.0)
    monitor.update(
        rate=np.array([0.0, 0.05, 0.2, 0.2, 0.5]),
        propensity=np.array([0.5, 0.5, 0.5, 0.1, 0.5]),
        randomized=np.array([NO, YES, YES, YES, NO]),
        closed_by=np.array([Closure.SEGMENT, 0, 0, 0, 0]),
        open_to_all=np.array([NO, NO, NO, YES, YES]),
    )
    check = monitor.result()
    figures = check.figures
    assert [figures[name] for name in ("rows", "capped", "below", "closed")] == [5, 1, 1, 1]
    assert figures["certified"] == pytest.approx(0.4)
    assert figures["largest"] == pytest.approx(50.0)
    assert figures["effective_rows"] == pytest.approx(1.0)
    assert check.status == "watch"
    assert "40.0% of 5 requests" in check.sentence
    assert "20.0% beyond the limit of a segment" in check.sentence


@pytest.mark.parametrize(("floor", "status"), [(0.025, "ok"), (0.0249, "alarm")])
def test_a_weight_beyond_the_declared_one_is_an_alarm(floor, status):
    monitor = Floors(("a", "b"), rate_min=0.1, largest_weight=1 / (0.1 * 0.025))
    one = np.ones(1, dtype=bool)
    monitor.update(np.array([0.1]), np.array([floor]), one, np.zeros(1, dtype=np.int64), one)
    assert monitor.result().status == status
