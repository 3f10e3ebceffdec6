"""The split of money between EXP, replays and waiting: its curve, its limits, its choice."""

from __future__ import annotations

import re

import numpy as np
import pytest

from equipoise.agent.errors import PlanError
from equipoise.agent.planning.output.page import as_page
from equipoise.agent.planning.output.terminal import as_csv
from equipoise.agent.planning.plan import make_plan
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request
from equipoise.agent.planning.sentences import split_sentence
from equipoise.agent.planning.tables import explained_by

ASKED = {
    "models": 3,
    "traffic": 1000.0,
    "reward_rate": 0.5,
    "effect": 0.1,
    "price": 0.02,
    "explainable": 0.5,
    "columns": 10,
    "policies": ["uniform"],
}


def planned(**changes):
    return make_plan(Problem.of_numbers(read_request({**ASKED, **changes})))


def cheapest(plan):
    (found,) = [each for each in plan.splits if each.cheapest]
    return found


def test_least_squares_leaves_what_the_formula_says():
    """2,000 regressions on 40 Gaussian rows with 10 columns; R^2 of new rows, explainable 0.5."""
    rng, errors = np.random.default_rng(3), []
    truth = rng.standard_normal(10)
    truth /= np.linalg.norm(truth)
    for _ in range(2000):
        x = rng.standard_normal((40, 10))
        y = x @ truth + rng.standard_normal(40)
        fitted = np.linalg.lstsq(x, y, rcond=None)[0]
        errors.append(((fitted - truth) ** 2).sum() + 1.0)
    found = 1.0 - np.mean(errors) / 2.0
    # The formula counts an intercept beside the columns: 9 columns and one, here 10.
    assert explained_by(np.array([40.0]), 10, 0.5)[0] == pytest.approx(found, abs=0.01)


def test_too_few_replays_explain_nothing_and_many_nearly_all():
    shares = explained_by(np.array([0.0, 5.0, 11.0, 12.0, 100.0, 1e7]), 10, 0.5)
    assert shares[:4].tolist() == [0.0] * 4
    assert shares[4] == pytest.approx(1.0 - 0.5 * (1.0 + 10 / (100 - 10 - 1)))
    assert shares[5] == pytest.approx(0.5, abs=1e-5)


def test_every_way_adds_up_and_the_cheapest_is_the_cheapest():
    plan = planned(hour_price=2.0, replay_price=0.001)
    assert len(plan.splits) > 4
    for each in plan.splits:
        assert each.exp_money == pytest.approx(0.02 * each.randomized, rel=1e-3)
        assert each.replay_money == pytest.approx(3 * 0.001 * each.replays)
        assert each.waiting_money == pytest.approx(2.0 * each.hours)
        assert each.total == pytest.approx(each.exp_money + each.replay_money + each.waiting_money)
    assert cheapest(plan).total == min(each.total for each in plan.splits)
    assert plan.splits[0].randomized == plan.recommended.randomized.needed
    needed = [each.randomized for each in plan.splits]
    assert needed == sorted(needed, reverse=True), "more replays never cost more EXP"


def test_the_dearer_replays_are_the_fewer_are_made():
    made = [cheapest(planned(replay_price=price)).replays for price in (0.0, 0.02, 1.0, 100.0)]
    assert made == sorted(made, reverse=True)
    assert made[0] > 0
    assert made[-1] == 0
    told = split_sentence(planned(replay_price=100.0).splits)
    assert told.startswith("Cheapest: no replays")


def test_a_horizon_forbids_what_takes_too_long():
    free = planned(replay_price=100.0)
    assert cheapest(free).replays == 0
    hours = [each.hours for each in free.splits]
    tight = planned(replay_price=100.0, horizon=(hours[0] + hours[-1]) / 2)
    assert tight.recommended is None, "without replays none is in time"
    assert cheapest(tight).replays > 0


def test_what_is_missing_is_named():
    plan = planned(explainable=None, columns=None, price=None)
    assert plan.splits == []
    assert "give explainable, columns, price" in plan.not_offered[0]
    assert not any("split" in each for each in planned().not_offered)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"explainable": 1.0}, "explainable is 1, expected 0, or a share from 0.001 to 0.999"),
        ({"columns": 0}, "columns is 0, expected 1 to 10,000"),
        ({"replay_price": -1.0}, "replay_price is -1, expected USD, 0 or more"),
        ({"hour_price": -1.0}, "hour_price is -1, expected USD, 0 or more"),
        ({"replay_price": 1e308}, "replay_price is 1e+308"),
        ({"explainable": 1e-300}, "explainable is 1e-300"),
    ],
)
def test_impossible_numbers_are_refused(changes, said):
    with pytest.raises(PlanError, match=re.escape(said)):
        planned(**changes)


def test_nothing_to_explain_leaves_one_way():
    assert [each.replays for each in planned(explainable=0.0).splits] == [0.0]


def test_it_is_written_everywhere():
    plan = planned()
    assert as_csv(plan).count("\nsplits,") == len(plan.splits)
    page = as_page(plan)
    assert "How to pay" in page
    assert "Cheapest: " in page
