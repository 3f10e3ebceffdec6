"""Plans as people and the daemon ask for them: answers, limits, symmetry, output."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re

import numpy as np
import pytest
from msgspec.structs import replace
from rich.console import Console
from scipy import stats

from equipoise.agent.answers.wording import count, figure
from equipoise.agent.errors import PlanError
from equipoise.agent.planning import plan_request
from equipoise.agent.planning.levers import two_models
from equipoise.agent.planning.output.page import as_page
from equipoise.agent.planning.output.terminal import as_csv, print_plan
from equipoise.agent.planning.plan import make_plan
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request
from equipoise.agent.planning.sentences import fixed_sentence, lever_sentence

THREE = {"models": 3, "traffic": 1000.0, "reward_rate": 0.5, "effect": 0.1}


def planned(**changes):
    return make_plan(Problem.of_numbers(read_request({**THREE, **changes})))


@pytest.fixture(scope="module")
def plain():
    return planned(price=0.01)


def test_three_numbers_give_a_plan(plain):
    best = plain.recommended
    assert best is not None
    assert best.randomized.low < best.randomized.median < best.randomized.needed
    assert best.requests.needed == pytest.approx(best.randomized.needed / 0.1, rel=0.2)
    assert best.hours.needed == pytest.approx(best.requests.needed / 1000.0, rel=1e-4)
    assert best.money.needed == pytest.approx(0.01 * best.randomized.needed, rel=1e-4)
    assert best.policy in plain.sentence
    assert "80% power" in plain.sentence


def test_two_models_are_compared_unless_told():
    assert planned(models=None).goals == planned(models=2).goals


def test_the_cheapest_known_policy_is_recommended(plain):
    rivals = [row for row in plain.goals if row.reading == "bounded" and row.known]
    fewest = min(row.randomized.needed for row in rivals)
    assert plain.recommended.randomized.needed <= 1.1 * fewest


def test_the_simplest_policy_wins_ties():
    """Top-two between two models is uniform: what differs is the error of the simulation."""
    answer = planned(models=2, policies=["uniform", "top-two"])
    assert answer.recommended.policy == "uniform"


def test_every_policy_and_sequence_has_a_row(plain):
    found = {(row.policy, row.reading) for row in plain.goals}
    assert len(found) == 9


def test_a_plan_is_a_function_of_the_effect(plain):
    rows = [row for row in plain.effects if row.policy == "uniform"]
    assert [row.effect for row in rows] == pytest.approx([0.05, 0.07, 0.1, 0.14, 0.2])
    needed = [row.randomized.needed for row in rows]
    assert needed == sorted(needed, reverse=True)
    assert needed[0] > 10 * needed[-1]


def test_larger_shares_are_over_sooner_and_cost_as_much(plain):
    hours = [row.hours.needed for row in plain.rates]
    assert hours == sorted(hours, reverse=True)
    spent = [row.randomized.needed for row in plain.rates]
    assert max(spent) < 1.5 * min(spent)


def test_a_better_prediction_needs_less(plain):
    medians = [row.randomized.median for row in plain.explained]
    assert medians[-1] < 0.6 * medians[0]


def test_curves_rise_to_the_chance_of_the_rows(plain):
    curve = next(each for each in plain.curves if each.policy == "uniform")
    assert curve.chance == sorted(curve.chance)
    row = next(row for row in plain.effects if row.policy == "uniform" and row.effect == 0.1)
    chance = float(np.interp(row.randomized.needed, curve.randomized, curve.chance))
    assert chance == pytest.approx(0.8, abs=0.1)


@pytest.mark.parametrize("scale", [10.0, 1000.0])
def test_the_unit_of_rewards_changes_nothing_but_the_unit(plain, scale):
    other = planned(
        price=0.01,
        reward_low=-scale,
        reward_high=0.0,
        reward_rate=-0.5 * scale,
        effect=0.1 * scale,
    )
    for mine, theirs in zip(other.goals, plain.goals, strict=True):
        assert mine.randomized == theirs.randomized
        assert mine.effect == pytest.approx(scale * theirs.effect)
        if theirs.harm.median is not None:
            assert mine.harm.median == pytest.approx(scale * theirs.harm.median, rel=1e-4)


def test_minimising_is_the_mirror_image():
    down = planned(price=0.01, reward_rate=0.75, maximise=False)
    up = planned(price=0.01, reward_rate=0.25)
    assert down.goals == up.goals


def test_an_indifference_counts_in_reward_units():
    plain = planned(epsilon=0.05, policies=["uniform"])
    scaled = planned(
        epsilon=5.0, reward_high=100.0, reward_rate=50.0, effect=10.0, policies=["uniform"]
    )
    assert [row.randomized for row in scaled.goals] == [row.randomized for row in plain.goals]
    strict = planned(policies=["uniform"])
    assert plain.goals[0].randomized.needed < strict.goals[0].randomized.needed


def test_a_budget_buys_back_what_it_was_planned_for(plain):
    needed = next(r for r in plain.goals if (r.policy, r.reading) == ("uniform", "bounded"))
    bought = planned(budget_requests=needed.randomized.needed, policies=["uniform"]).bought[0]
    chance = float(np.interp(0.1, bought.effects, bought.chances))
    assert chance == pytest.approx(0.8, abs=0.12)
    assert bought.smallest_effect == pytest.approx(0.1, rel=0.15)


@pytest.mark.parametrize(
    ("field", "given"), [("money", {"budget_money": 30.0}), ("harm", {"budget_harm": 40.0})]
)
def test_money_and_harm_are_spent_to_the_end(field, given):
    bought = planned(price=0.01, policies=["uniform", "top-two"], **given).bought
    for each in bought:
        assert getattr(each, field) == pytest.approx(next(iter(given.values())), rel=0.05)


def test_a_half_width_and_a_regret_are_goals_too():
    answer = planned(effect=None, half_width=0.1, regret=0.08, policies=["uniform"])
    goals = {(row.goal, row.reading): row for row in answer.goals}
    assert set(goals) == {("half-width", "bounded"), ("regret", "bounded"), ("regret", "ipw")}
    plain, certified = goals["regret", "ipw"], goals["regret", "bounded"]
    assert plain.randomized.needed < certified.randomized.needed


def test_segments_take_longer_each(plain):
    answer = planned(segments=4, policies=["uniform"])
    whole = next(r for r in answer.goals if (r.policy, r.reading) == ("uniform", "bounded"))
    assert answer.segments[0].hours.median > 4 * whole.hours.median
    alone = next(r for r in plain.goals if (r.policy, r.reading) == ("uniform", "bounded"))
    assert whole.randomized.median > alone.randomized.median, "half of delta is the segments'"


def test_waiting_for_outcomes_is_added_to_the_time(plain):
    answer = planned(window=48.0, price=0.01)
    assert answer.goals[0].hours.median == pytest.approx(plain.goals[0].hours.median + 48, rel=1e-4)


IMPOSSIBLE = [
    ({"effect": 0.0}, "effect is 0, expected more than 0"),
    ({"effect": 1.5}, "effect is 1.5, expected more than 0 and at most 1"),
    ({"effect": 0.6}, "no model can be better than 0.5 by more"),
    ({"traffic": 0.0}, "traffic is 0, expected requests an hour"),
    ({"traffic": None}, "traffic is missing"),
    ({"models": 1}, "models is 1, expected 2 to 64"),
    ({"reward_rate": None}, "reward_rate is missing"),
    ({"reward_rate": 1.2}, "reward_rate is 1.2, expected 0 to 1"),
    ({"reward_sd": 0.7}, "reward_sd is 0.7, expected more than 0 and at most 0.5"),
    ({"rate": 1.1}, "rate is 1.1, expected at least 1e-06 and at most 1"),
    ({"rate": 1e-17}, "rate is 1e-17,"),
    ({"budget_requests": 1e300}, "budget_requests is 1e+300, expected more than 0 and at most"),
    ({"price": 1e308}, "price is 1e+308, expected USD a request"),
    ({"reward_high": 1e308}, "reward_high is 1e+308, expected a number within"),
    ({"explained": 0.9, "explainable": 0.5}, "explained is 0.9, expected at most explainable"),
    ({"rate": 0.0}, "rate is 0,"),
    ({"floor": 0.5}, "floor is 0.5, expected more than 0 and at most 1 / 3"),
    ({"delta": 0.0}, "delta is 0, expected more than 0 and at most 0.5"),
    ({"delta": 0.7}, "delta is 0.7"),
    ({"power": 1.0}, "power is 1, expected between 0 and 1"),
    ({"epsilon": 1.0}, "epsilon is 1, expected 0 or more, below 1"),
    ({"horizon": 2.0, "window": 3.0}, "horizon is 2, expected more than the outcome window of 3"),
    ({"budget_requests": 0.0}, "budget_requests is 0, expected more than 0"),
    ({"budget_money": 10.0}, "price is unknown or 0"),
    ({"half_width": 2.0}, "half_width is 2"),
    ({"regret": -0.1}, "regret is -0.1"),
    ({"policies": ["contrast"]}, "policies is contrast, expected one of uniform"),
    ({"sequence": "normal"}, "sequence is normal, expected one of bounded"),
    ({"explained": 1.0}, "explained is 1, expected 0 or more, below 1"),
    ({"effect": float("nan")}, "effect is nan, expected a finite number"),
    ({"prices": [0.1]}, "prices is of length 1, expected 3 prices"),
    ({"mix": [0.5, 0.2, 0.2]}, "mix is 0.9 in all, expected shares that add up to 1"),
    ({"mix": [1.0]}, "mix is of length 1, expected 3 shares"),
    ({"names": ["a", "a", "b"]}, "names is 'a' twice, expected every name once"),
    ({"candidate": "a"}, "candidate is a, expected none where no models are named"),
    ({"speed": 3}, "speed is no field of a plan, expected one of models, "),
    ({"models": "two"}, "models is 'two', expected `int | null`"),
    ({"effect": 1e-12}, "effect is 1e-12, expected at least 1e-09"),
    ({"delta": 1e-300}, "delta is 1e-300, expected at least 1e-12"),
    ({"rated": 0.0}, "rated is 0, expected a share"),
    (
        {"missing": "never"},
        "missing is 'never', expected 'worst-case', 'rated', 'asked', 'net' or a number",
    ),
    ({"missing": 2.0}, "missing is 2, expected a meaning, or 0 to 1"),
]


@pytest.mark.parametrize(("changes", "said"), IMPOSSIBLE)
def test_impossible_questions_name_field_value_and_limit(changes, said):
    with pytest.raises(PlanError, match=re.escape(said)):
        planned(**changes)


def test_a_plan_of_one_experiment_says_one_number(plain):
    best = plain.recommended
    (own,) = [row for row in plain.rates if row.rate == best.rate]
    (none,) = [row for row in plain.explained if row.explained == 0]
    assert own.randomized == none.randomized == best.randomized


def test_a_budget_beside_a_goal_is_answered_too():
    answer = planned(budget_requests=200.0, policies=["uniform"])
    assert "plan for" in answer.sentence
    assert "What the budget buys: 200 randomized requests" in answer.sentence


def test_without_any_goal_an_effect_is_asked_for():
    with pytest.raises(PlanError, match="effect is missing"):
        planned(effect=None)


def test_tiny_effects_are_not_answered_with_a_number():
    answer = planned(effect=0.0005, traffic=10.0)
    assert answer.recommended is None
    assert all(not row.known for row in answer.goals if row.reading == "bounded")
    assert "cannot know" in answer.sentence


def test_a_horizon_that_is_too_short_is_said():
    answer = planned(effect=0.05, horizon=1.0)
    assert answer.recommended is None
    assert "not within the horizon of 1 hour:" in answer.sentence


def test_the_daemon_s_answer_is_json(plain):
    answer = plan_request({**THREE, "price": 0.01})
    assert json.loads(json.dumps(answer, allow_nan=False)) == answer
    assert answer["sentence"] == plain.sentence


def test_csv_has_a_line_for_every_row(plain):
    rows = list(csv.DictReader(io.StringIO(as_csv(plain))))
    told = [*plain.goals, *plain.effects, *plain.rates, *plain.floors, *plain.explained]
    looks = len(plain.question.worlds) * len(plain.question.requests)
    assert len(rows) == len(told) + len(plain.levers) + looks
    assert float(rows[0]["randomized_needed"]) == plain.goals[0].randomized.needed


def test_the_page_stands_alone(plain):
    page = as_page(plain)
    assert "<script" not in page
    assert not re.search(r"(src|href)=|url\(|@import", page)
    assert "default-src 'none'" in page
    assert page.count('<path class="curve"') == 3
    assert "prefers-color-scheme: dark" in page
    assert "Traffic calendar" in page
    assert not re.search(r"\b(nan|inf|None)\b", page)


def test_pages_of_budgets_and_of_what_cannot_be_known():
    as_page(planned(effect=None, budget_requests=500.0, traffic=None))
    assert "cannot know" in as_page(planned(effect=0.0005, traffic=10.0))


MIXED = {
    "names": ["large", "new", "small"],
    "prices": [0.01, 0.004, 0.002],
    "mix": [0.2, 0.0, 0.8],
    "policies": ["uniform"],
}


@pytest.fixture(scope="module")
def mixed():
    return planned(**MIXED, title="Is <new> worth it?")


def test_money_is_what_is_paid_beyond_today_s_routing(mixed):
    """Uniform shares pay the mean of the prices; today's routing pays 0.2 x 0.01 + 0.8 x 0.002."""
    best = mixed.recommended
    paid, extra = best.money.median, best.extra.median
    assert paid == pytest.approx(best.randomized.median * 0.016 / 3, rel=0.03)
    assert extra == pytest.approx(paid - best.randomized.median * 0.0036, rel=0.03)
    assert "on top of today's bill" in mixed.sentence
    assert "today's routing" in mixed.billed
    dearer = planned(**{**MIXED, "mix": [1.0, 0.0, 0.0]})
    assert dearer.recommended.extra.median < 0
    assert "less than today's bill" in dearer.sentence


def test_one_price_is_said_to_be_the_whole_bill(plain):
    assert plain.recommended.extra is None
    assert plain.billed.startswith("Money is the whole bill")
    assert planned().billed == ""


def test_the_model_asked_about_is_the_one_that_serves_least_or_that_is_named(mixed):
    assert mixed.models[0] == mixed.question.candidate == "new"
    assert planned(**MIXED, candidate="large").models[0] == "large"


def test_harm_counts_against_the_mix(mixed):
    """Uniform shares send a third to the better model, today's routing nothing: a gain of a third
    of the effect a request."""
    best = mixed.recommended
    assert best.harm.median == pytest.approx(-best.randomized.median * 0.1 / 3, rel=0.1)


def test_money_buys_requests_at_the_extra_price():
    bought = planned(**MIXED, effect=None, budget_money=2.0).bought[0]
    assert bought.extra == pytest.approx(2.0)
    assert bought.randomized == pytest.approx(2.0 / (0.016 / 3 - 0.0036), rel=0.02)


def test_a_calculator_s_sample_size_has_the_power_it_says():
    """By the two binomials themselves: all pairs of counts of the z test at the planned size, 385
    or so a model. The normal approximation is right to a hundredth here."""
    plan = planned(models=2, effect=0.1, delta=0.05, policies=["uniform"])
    n = round(plan.fixed.each)
    assert (plan.fixed.two, plan.fixed.models) == (2.0 * n, 2.0 * n)
    count = np.arange(n + 1)
    low, high = stats.binom.pmf(count, n, 0.5), stats.binom.pmf(count, n, 0.6)
    mean = count / n
    noise = mean * (1 - mean) / n
    with np.errstate(divide="ignore", invalid="ignore"):
        z = (mean[None, :] - mean[:, None]) / np.sqrt(noise[None, :] + noise[:, None])
    power = (low[:, None] * high[None, :])[np.abs(z) > stats.norm.isf(0.025)].sum()
    assert power == pytest.approx(0.8, abs=0.01)
    assert plan.fixed.times == pytest.approx(plan.recommended.randomized.needed / (2 * n))
    assert plan.why.startswith(f"A fixed-n calculator says {2 * n} for two models")


def test_the_cheapest_lever_comes_first(plain):
    kinds = [each.kind for each in plain.levers]
    assert kinds[:2] == ["as asked", "rate"]
    assert plain.sentence.startswith("Randomize 40% of the requests instead of 10%: an answer in")
    rows = {each.kind: each.row for each in plain.levers}
    assert rows["models"].randomized.needed == pytest.approx(
        planned(models=2).recommended.randomized.needed, rel=0.3
    )
    close = planned(epsilon=0.05).recommended.randomized.needed
    assert rows["epsilon"].randomized.needed == pytest.approx(close, rel=0.3)
    alone = planned(models=2, rate=1.0)
    assert alone.levers[1].kind != "rate"


def test_no_lever_asks_for_more(plain):
    for each in plain.levers[1:]:
        assert each.kind in ("rate", "sequence", "models", "epsilon", "effect")
        if each.kind in ("rate", "effect"):
            assert each.value > getattr(plain.recommended, each.kind)
    assert "effect" in [each.kind for each in plain.levers]


def test_the_two_models_of_a_lever_are_the_new_one_and_the_one_in_most_use():
    asked = {**THREE, "names": ["new", "old", "main"], "mix": [0.1, 0.2, 0.7]}
    both = two_models(Problem.of_numbers(read_request(asked)))
    assert both.names == ("new", "main")
    assert both.mix.tolist() == pytest.approx([0.1, 0.9])
    plain = two_models(Problem.of_numbers(read_request({**THREE, "names": ["new", "old", "main"]})))
    assert plain.names == ("new", "old")


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (-1.0, 0.0), (1e6, 1e6 + 1.0)])
def test_where_smaller_is_better_a_plan_is_the_mirror_image(low, high):
    """What is needed, and what it costs, is the same where all rewards change their sign."""
    asked = {"prices": [0.02, 0.01, 0.001], "mix": [0.0, 0.3, 0.7], "policies": ["uniform"]}
    rate = low + 0.4
    larger = planned(reward_rate=rate, reward_low=low, reward_high=high, **asked)
    ends = {"reward_rate": -rate, "reward_low": -high, "reward_high": -low}
    smaller = planned(maximise=False, **ends, **asked)
    for name in ("randomized", "requests", "money", "harm"):
        one, other = (getattr(plan.recommended, name) for plan in (larger, smaller))
        assert other.needed == pytest.approx(one.needed, rel=0.01), name
    for one, other in zip(larger.question.worlds, smaller.question.worlds, strict=True):
        assert other.lead == pytest.approx(one.lead)
        assert other.yes == pytest.approx(one.yes, abs=0.01)
        assert other.no == pytest.approx(one.no, abs=0.01)


def test_a_lever_says_what_it_costs_where_that_is_more(plain):
    problem, offered = Problem.of_numbers(read_request(THREE)), plain.levers[:2]
    assert "for about as many randomized requests" in lever_sentence(problem, offered)
    row = offered[1].row
    dear = replace(row.randomized, needed=1.5 * offered[0].row.randomized.needed)
    hours = replace(row.hours, needed=0.99999 * offered[0].row.hours.needed)
    dearer = replace(offered[1], row=replace(row, randomized=dear, hours=hours))
    told = lever_sentence(problem, [offered[0], dearer])
    assert "about as many" not in told
    assert f"{count(dear.needed)} randomized requests instead of " in told
    sooner = told.partition("an answer in ")[2].partition(" instead of ")[0]
    assert f"{sooner} instead of a little more than {sooner}" in told


def test_less_than_a_calculator_says_is_not_explained_by_what_costs_more(plain):
    problem = Problem.of_numbers(read_request(THREE))
    fixed = replace(plain.fixed, times=0.7)
    assert fixed_sentence(problem, fixed).endswith("; this plan takes 0.7 times that.")
    begun = dataclasses.replace(problem, start=lambda paths, caps: None)
    assert fixed_sentence(begun, fixed).endswith("what the store holds already counts.")


def test_rewards_gained_have_the_sign_of_the_page(plain):
    """Of what was spent, negative means lost; so in a plan."""
    gained = dict(plain.columns)["successes gained"]
    row = plain.goals[0]
    assert gained(row) == figure(-row.harm.median)


def test_yes_is_said_when_the_plan_says_and_equal_models_end_in_no(plain):
    asked = plain.question
    better, equal, worse = asked.worlds
    assert [each.lead for each in asked.worlds] == pytest.approx([0.1, 0.0, -0.1])
    # The same experiments in other words: the plan's end is that of the wanted power.
    assert better.yes[asked.at] == pytest.approx(0.8, abs=0.08)
    assert max(equal.yes + worse.yes + better.no) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)
    assert worse.answered < equal.answered
    said = " ".join(plain.answers)
    assert "If it is equal: after" in said
    assert planned(horizon=5.0).question.hours[planned(horizon=5.0).question.at] == 5.0


def test_the_page_carries_what_was_asked_and_folds_the_rest(mixed):
    page = as_page(mixed)
    opened = re.sub(r"<details>.*?</details>", "", page, flags=re.DOTALL)
    assert opened.count("<table>") == 2
    assert "Is &lt;new&gt; worth it?" in opened
    assert mixed.date in opened
    for text in ("new, large, small", "1,000 requests an hour", "extra bill", "USD", "0.0036"):
        assert text in opened
    assert not re.search(r"[0-9]e[+-][0-9]", page)
    assert "bill" not in as_page(planned(policies=["uniform"]))


def test_the_terminal_has_the_order_of_the_page(mixed):
    text = io.StringIO()
    print_plan(mixed, Console(file=text, width=100), every=False)
    told = text.getvalue()
    marks = ("Is <new> worth it?", "Randomize 40%", "cheaper or faster", "If it is equal", "Asked:")
    places = [told.index(mark) for mark in marks]
    assert places == sorted(places)
