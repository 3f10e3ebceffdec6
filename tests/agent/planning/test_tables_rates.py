"""Shares of randomized requests by closed form, held against simulating them."""

import numpy as np
import pytest

from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning.plan import make_plan
from equipoise.agent.planning.problem import Case, Problem
from equipoise.agent.planning.request import read_request
from equipoise.agent.planning.requirement import TOO_LONG
from equipoise.agent.planning.simulation.forward import simulate
from equipoise.agent.planning.tables import Tables

ASKED = {"traffic": 1000.0, "reward_rate": 0.5}


def problem_of(**changes):
    return Problem.of_numbers(read_request({**ASKED, **changes}))


@pytest.mark.parametrize("sequence", [Sequence.BOUNDED, Sequence.PER_MODEL])
@pytest.mark.parametrize(
    ("policy", "models", "effect"), [("uniform", 2, 0.1), ("top-two", 4, 0.05), ("uniform", 9, 0.1)]
)
def test_simulated_ends_follow_the_closed_form(policy, models, effect, sequence):
    problem, paths = problem_of(models=models, effect=effect), 900
    cases = [Case(effect, rate, problem.floor, 0.0) for rate in (0.1, 0.025, 0.4, 1.0)]
    design = problem.design(policy, sequence, cases, paths)
    ends = simulate(design, np.random.default_rng(1)).requests.reshape(len(cases), paths)
    told = np.array(Tables(problem).over_rates(sequence, cases))
    needed = np.quantile(ends, [0.5, problem.request.power], axis=1) / told
    # 900 experiments know such a quantile to 3%.
    np.testing.assert_allclose(needed / needed[:, :1], 1.0, atol=0.1)


@pytest.mark.parametrize(
    ("changes", "closed"),
    [
        ({}, True),
        ({"sequence": "per-model"}, True),
        ({"sequence": "per-model", "explained": 0.3}, True),
        ({"explained": 0.3}, False),
        ({"sequence": "asymptotic"}, False),
    ],
)
def test_a_plan_says_where_it_did_not_simulate(changes, closed):
    plan = make_plan(problem_of(models=2, effect=0.1, **changes), most=20, every=False)
    assert any("closed form" in line for line in plan.assumptions) is closed
    assert len(plan.rates) == 5


def test_another_rate_moves_time_and_everything_that_is_paid_alike():
    asked = {"models": 2, "effect": 0.1, "prices": [0.01, 0.02], "mix": [0.5, 0.5], "window": 24.0}
    plan = make_plan(problem_of(**asked), most=20, every=False)
    own = next(row for row in plan.rates if row.rate == 0.1)
    other = next(row for row in plan.rates if row.rate == 0.2)
    times = other.requests.needed / own.requests.needed
    assert 0.4 < times < 0.6
    assert (other.hours.needed - 24.0) / (own.hours.needed - 24.0) == pytest.approx(times, rel=1e-4)
    for name in ("randomized", "money", "extra", "harm"):
        before, after = getattr(own, name), getattr(other, name)
        assert after.low == pytest.approx(2.0 * times * before.low, rel=1e-4)
        assert after.high == pytest.approx(2.0 * times * before.high, rel=1e-4)


def test_a_rate_at_which_it_takes_too_long_is_not_stood_by():
    plan = make_plan(problem_of(models=2, effect=0.02, traffic=40.0), most=20, every=False)
    late = [row for row in plan.rates if row.hours.needed > 24.0 * 365.0]
    assert late
    assert {(row.known, row.note) for row in late} == {(False, TOO_LONG)}
    assert all(row.known for row in plan.rates if row not in late)


def test_tables_that_nobody_asks_for_change_nothing_else():
    problem = problem_of(models=3, effect=0.1)
    whole, part = (make_plan(problem, most=20, every=each) for each in (True, False))
    assert (part.floors, part.explained) == ([], [])
    assert whole.floors
    assert whole.explained
    for name in part.__struct_fields__:
        if name not in ("floors", "explained"):
            assert getattr(part, name) == getattr(whole, name), name
