"""Whole moments: the sources they stack, and what cannot be added."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.moments.state import GROUPS, Dimensions, Moments
from tests.agent.moments.raw_rows import SHAPE, take
from tests.agent.moments.table import (
    CASES,
    Case,
    arrays_of,
    assert_close,
    assert_same_bits,
    every_case,
)

SCORER, MOMENTS = CASES[0], CASES[-1]


def test_sources_hold_the_rows_of_their_own_groups() -> None:
    rows = MOMENTS.rows(np.random.default_rng(1), 300)
    moments = MOMENTS.of([rows])
    for source, part in enumerate((moments.obs, moments.exp, moments.exp_weighted)):
        mine = take(rows, rows["source"] == source)
        assert_close(part, SCORER.of([mine]))
        assert part.count.sum() == len(mine["group"]) > 0


def test_sources_are_views_that_see_later_rows() -> None:
    moments = Moments.empty(SHAPE)
    obs = moments.obs
    MOMENTS.update(moments, MOMENTS.rows(np.random.default_rng(2), 30))
    assert obs.count.sum() > 0
    assert all(
        np.shares_memory(view, array)
        for view, array in zip(
            arrays_of(obs).values(), arrays_of(moments.scorers).values(), strict=True
        )
    )


def test_dimensions_give_the_shapes() -> None:
    moments = Moments.empty(Dimensions(models=5, context=3, features=7))
    assert GROUPS == 20
    shapes = {name: array.shape for name, array in arrays_of(moments).items()}
    assert shapes["scorers.mean"] == (60, 5, 7)
    assert shapes["scorers.scatter"] == (60, 7, 7)
    assert shapes["arms.sim_sum"] == (20, 5, 6)
    assert shapes["arms.live_sum"] == (20, 5, 3)
    assert shapes["simulation.scatter"] == (20, 5, 6, 6)
    assert shapes["routing.mean"] == (20,)


@pytest.mark.parametrize("name", ["models", "context", "features", "groups"])
def test_moments_of_other_dimensions_are_not_added(name: str) -> None:
    other = replace(SHAPE, **{name: getattr(SHAPE, name) + 1})
    for a, b in ((SHAPE, other), (other, SHAPE)):
        with pytest.raises(ValueError, match=rf"{name}={getattr(a, name)}"):
            Moments.empty(a) + Moments.empty(b)


@every_case
@pytest.mark.parametrize("groups", [1, 2])
def test_other_numbers_of_groups_are_not_added(case: Case, groups: int) -> None:
    """One group least of all, which numpy would spread over all the others."""
    moments = case.of([case.rows(np.random.default_rng(3), 30)])
    before = moments.copy()
    for a, b in ((moments, case.empty(groups)), (case.empty(groups), moments)):
        with pytest.raises(ValueError, match=r"4.*[12]|[12].*4"):
            a + b
    assert_same_bits(moments, before)


@every_case
def test_moments_are_not_added_to_other_things(case: Case) -> None:
    with pytest.raises(TypeError):
        case.empty(1) + 0
    for other in CASES:
        if other is not case:
            with pytest.raises(TypeError):
                case.empty(1) + other.empty(1)


def test_a_renewed_model_starts_afresh_and_shards_still_add_up():
    rows = MOMENTS.rows(np.random.default_rng(6), 400)
    parts = np.arange(400) < 150, np.arange(400) >= 150
    first, second = (MOMENTS.of([take(rows, part)]) for part in parts)
    whole, apart = (first + second).renewed(1), first.renewed(1) + second.renewed(1)
    assert_close(whole, apart)
    assert whole.dimensions.former == 1
    assert not whole.arms.count[:, 1].any()
    assert not whole.simulation.count[:, 1].any()
    assert not whole.routing.count.any()
    both = first + second
    np.testing.assert_array_equal(whole.former.mean[:, 0], both.arms.mean[:, 1])
    np.testing.assert_array_equal(whole.scorers.mean[:, -1], both.scorers.mean[:, 1])
    # Slopes over models lose no row.
    np.testing.assert_array_equal(whole.scorers.scatter, both.scorers.scatter)
    assert whole.scorers.count.sum() == both.scorers.count.sum()
    assert both.arms.count[:, 1].any(), "the sums it was made from are as they were"
