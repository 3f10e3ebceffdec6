"""Arm moments: which rows count where, and that unknown predictions never leak."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.moments.arms import ArmMoments
from tests.agent.moments.raw_rows import SHAPE
from tests.agent.moments.table import CASES, arrays_of, assert_same_bits

ARMS = CASES[1]


def test_by_hand() -> None:
    """Two rows of model 1 in group 0, weights 2 and 6, rewards 1 and 5; one with a SIM row."""
    moments = ArmMoments.empty(groups=1, models=2, features=3, context=1)
    moments.update(
        group=np.array([0, 0]),
        model=np.array([1, 1]),
        weight=np.array([2.0, 6.0]),
        reward=np.array([1.0, 5.0]),
        simulated=np.array([True, False]),
        predicted=np.array([[10.0, 20.0], [np.nan, np.nan]]),
        x=np.array([[0.5], [0.25]]),
    )
    expected = {
        "count": 2.0,
        "weight": 8.0,
        "weight_sq": 40.0,
        "mean": 4.0,
        "scatter": 2.0 * 9.0 + 6.0 * 1.0,
        "plain_mean": 3.0,
        "plain_scatter": 8.0,
        "sim_weight": 2.0,
        "sim_sum": [20.0, 40.0],
        "live_weight": 6.0,
        "live_sum": [1.5],
    }
    for name, array in arrays_of(moments).items():
        np.testing.assert_array_equal(array[0, 1], expected[name], err_msg=name)
        assert not array[0, 0].any()


@pytest.mark.parametrize("ignored", [np.nan, np.inf, 1e300])
def test_predictions_of_rows_without_a_sim_row_are_ignored(ignored: float) -> None:
    rows = ARMS.rows(np.random.default_rng(1), 60)
    other = rows | {"predicted": np.where(rows["simulated"][:, None], rows["predicted"], ignored)}
    assert_same_bits(ARMS.of([other]), ARMS.of([rows]))


def test_every_weight_is_either_simulated_or_live() -> None:
    moments = ARMS.of([ARMS.rows(np.random.default_rng(2), 200)])
    np.testing.assert_allclose(moments.sim_weight + moments.live_weight, moments.weight, rtol=1e-13)


def test_weight_one_makes_weighted_and_plain_equal() -> None:
    rows = ARMS.rows(np.random.default_rng(3), 200)
    rows["weight"][:] = 1.0
    moments = ARMS.of([rows])
    for name in ("weight", "weight_sq"):
        np.testing.assert_array_equal(getattr(moments, name), moments.count)
    for name in ("mean", "scatter"):
        np.testing.assert_array_equal(getattr(moments, name), getattr(moments, f"plain_{name}"))


def test_weights_do_not_move_the_plain_moments() -> None:
    rows = ARMS.rows(np.random.default_rng(4), 200)
    once, doubled = (
        arrays_of(ARMS.of([rows | {"weight": factor * rows["weight"]}])) for factor in (1.0, 2.0)
    )
    for name in ("count", "plain_mean", "plain_scatter", "mean"):
        assert once[name].tobytes() == doubled[name].tobytes(), name
    np.testing.assert_array_equal(doubled["weight_sq"], 4.0 * once["weight_sq"])
    assert once["count"].sum() == 200
    assert once["count"].shape == (SHAPE.groups, SHAPE.models)
