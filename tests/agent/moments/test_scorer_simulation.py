"""Simulation moments: regressions of outputs on contexts, and prices that may be unknown."""

from __future__ import annotations

import numpy as np

from tests.agent.moments.raw_rows import SHAPE, take
from tests.agent.moments.table import CASES, assert_close, assert_same_bits

SIMULATION = CASES[2]
D = SHAPE.context


def test_moments_give_the_regression_of_outputs_on_contexts() -> None:
    rows = SIMULATION.rows(np.random.default_rng(1), 300)
    mine = take(rows, (rows["group"] == 1) & (rows["model"] == 2))
    moments = SIMULATION.of([rows])
    scatter, mean = moments.scatter[1, 2], moments.mean[1, 2]
    slopes = np.linalg.solve(scatter[:D, :D], scatter[:D, D:])
    intercept = mean[D:] - mean[:D] @ slopes
    z = np.hstack([np.ones((len(mine["v"]), 1)), mine["v"][:, :D]])
    expected = np.linalg.lstsq(z, mine["v"][:, D:-1], rcond=None)[0]
    np.testing.assert_allclose(np.vstack([intercept, slopes]), expected, rtol=1e-11)


def test_unknown_prices_leave_price_and_count_of_prices_alone() -> None:
    rows = SIMULATION.rows(np.random.default_rng(2), 60)
    moments = SIMULATION.of([rows])
    before = moments.copy()
    for unknown in (np.nan, np.inf, -np.inf):
        SIMULATION.update(moments, rows | {"cost": np.full(60, unknown)})
    assert moments.cost.tobytes() == before.cost.tobytes()
    assert moments.priced.tobytes() == before.priced.tobytes()
    np.testing.assert_array_equal(moments.count, 4 * before.count)


def test_prices_do_not_move_the_other_moments() -> None:
    rows = SIMULATION.rows(np.random.default_rng(3), 60)
    free = SIMULATION.of([rows | {"cost": np.zeros(60)}])
    priced = SIMULATION.of([rows])
    free.priced[...], free.cost[...] = priced.priced, priced.cost
    assert_same_bits(free, priced)


def test_mean_price_of_a_model() -> None:
    rows = SIMULATION.rows(np.random.default_rng(4), 200)
    rows["cost"] = np.where(np.arange(200) % 2, np.nan, 0.25 * (1 + rows["model"]))
    moments = SIMULATION.of([rows])
    expected = np.where(moments.priced > 0, 0.25 * np.arange(1, 4), 0.0)
    np.testing.assert_allclose(moments.cost, expected, rtol=1e-14)
    assert moments.priced.sum() == 100
    assert_close(moments + SIMULATION.empty(SHAPE.groups), moments)
