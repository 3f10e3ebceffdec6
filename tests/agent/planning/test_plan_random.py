"""Every question has an answer or one line that names field, value and limit.

`python tests/agent/planning/random_plans.py 10000` asks many more.
"""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from random_plans import answered, hold, plans

from equipoise.agent.planning.plan import RATES, make_plan
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request


@settings(
    max_examples=40,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
@given(plans())
def test_any_question_gets_a_plan_or_one_line(data):
    answered(data)


@pytest.mark.parametrize("rate", [1e-6, 0.25, 0.5, 0.500001, 0.8, 1.0])
def test_every_rate_has_a_row_for_each_share_that_fits(rate):
    """Rows of neighbouring tables may be of the same case: each is there all the same."""
    asked = {"models": 2, "traffic": 1000.0, "reward_rate": 0.5, "effect": 0.1, "rate": rate}
    plan = make_plan(Problem.of_numbers(read_request({**asked, "policies": ["uniform"]})), most=8)
    hold(plan)
    told = [each * rate for each in RATES if each * rate <= 1]
    told += [1.0] if told[-1] == rate < 1 else []
    assert [row.rate for row in plan.rates] == told
    assert [row.explained for row in plan.explained] == [0.0, 0.25, 0.5, 0.75]
    assert all(row.rate == rate for row in plan.explained)
    assert rate * 1.0 in [row.rate for row in plan.rates]


def test_replays_that_predict_alike_have_a_row_each():
    """So many columns that the shares of neighbouring numbers of replays round to the same."""
    asked = {"models": 2, "traffic": 1e3, "reward_rate": 0.5, "effect": 0.1, "price": 0.01}
    asked |= {"explainable": 0.001, "columns": 10_000, "policies": ["uniform"]}
    plan = make_plan(Problem.of_numbers(read_request(asked)), most=8)
    hold(plan)
    assert len({split.replays for split in plan.splits}) == len(plan.splits) > 2
    assert msgspec.json.encode(plan)
