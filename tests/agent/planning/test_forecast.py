"""The forecast of a running experiment: it goes on from what is known, and the plan hears of it."""

from __future__ import annotations

from math import inf

import msgspec
import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import BudgetConfig, PolicyConfig
from equipoise.agent.planning import plan_request
from equipoise.agent.planning.forecast import current, forecast, outlook, sentence
from equipoise.agent.planning.futures import _limits
from equipoise.agent.planning.requirement import Interval80
from equipoise.agent.planning.stored import FEWEST_REWARDS
from equipoise.store.batches import take
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Control


def lived(rows, seed=2, **changes):
    policy = PolicyConfig(assignment="uniform", rate=0.5, estimator="ipw")
    agent = Agent(config(policy=policy, **changes), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(seed))
    for _ in range(rows // 50):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(50))))
        agent.refresh()
    return agent, traffic


def test_it_says_what_the_planner_says_of_the_same_store():
    agent, _ = lived(600)
    made, planned = (
        forecast(agent.answers, 7.0),
        plan_request({"effect": 0.1}, agent.answers)["stored"],
    )
    assert made.state == "pending"
    assert planned["unit"] == "hours"
    for name in ("median", "low", "high"):
        assert getattr(made.hours, name) == planned["remaining"][name]
    assert (made.at, made.era, made.log_rows) == (7.0, 0, agent.light.next_seq)
    assert made.randomized == agent.answers.certified().randomized


def test_what_was_spent_is_part_of_the_total():
    agent, _ = lived(600)
    made = forecast(agent.answers, 0.0)
    # Half of 50 requests a second are randomized, and their rewards come at once.
    coming = made.hours.median * 3600.0 * 25.0
    assert made.total.median == pytest.approx(made.randomized + coming, rel=0.1)
    assert f"{made.randomized:,} are certified so far" in made.sentence


def test_experiments_end_inside_the_band_about_as_often_as_it_says():
    """Twelve streams, forecast at 300 requests: of bands of 80%, fewer than 6 hits have probability
    0.004. Rewards of these streams may favour a model by chance, and the band knows that."""
    hits = 0
    for seed in range(12):
        agent, traffic = lived(300, seed)
        band = forecast(agent.answers, 0.0).total
        while agent.answers.certified_winner() is None and agent.light.pending.next < 8000:
            agent.observe(traffic.outcomes(agent.decide(traffic.requests(50))))
            agent.refresh()
        spent = agent.answers.certified().randomized
        hits += band.low * 0.95 <= spent <= (np.inf if band.high is None else band.high * 1.05)
    assert hits >= 6


def test_too_few_rewards_are_said_to_be_too_few():
    agent, _ = lived(0)
    made = forecast(agent.answers, 0.0)
    assert (made.state, made.total, made.hours) == ("unknown", None, None)
    assert "the least tried model has 0 rewards of randomized requests" in made.sentence


def test_a_decision_leaves_nothing_to_forecast():
    agent, _ = lived(6000)
    assert agent.answers.certified_winner() is not None
    made = forecast(agent.answers, 0.0)
    assert (made.state, made.total) == ("decided", None)
    assert agent.answers.certified_winner() in made.sentence


def test_a_plan_that_will_slip_is_an_alarm_long_before_it_does():
    agent, _ = lived(600, budget=BudgetConfig(planned=400))

    def check():
        (found,) = [each for each in agent.answers.checks() if each.name == "plan"]
        return found

    assert check().status != "alarm"
    made = forecast(agent.answers, 0.0)
    assert made.randomized < 400
    agent.answers.forecast = replace_total(made, low=410.0).foreseen
    assert check().status == "alarm"
    assert "will slip" in check().sentence
    agent.answers.forecast = replace_total(made, low=390.0, median=410.0).foreseen
    assert check().status == "watch"
    # What was foreseen of an era that has ended says nothing of this one.
    agent.answers.forecast = replace_total(made, low=410.0, era=made.era - 1).foreseen
    assert check().status != "alarm"


def replace_total(made, era=None, **changes):
    total = msgspec.structs.replace(made.total, **changes)
    era = made.era if era is None else era
    return msgspec.structs.replace(made, total=total, era=era)


def test_a_budget_that_ends_before_the_decision_is_named_with_its_chance():
    # An era is planned for the budget unless something else was said.
    free, _ = lived(600, budget=BudgetConfig(planned=1000))
    expected = forecast(free.answers, 0.0)
    spent = free.light.randomized
    agent, _ = lived(600, budget=BudgetConfig(requests=spent + 10, planned=1000))
    made = forecast(agent.answers, 0.0)
    assert (made.state, made.reason, made.limit) == ("unknown", "budget-too-small", "requests")
    assert made.chance < 0.5
    assert made.unlimited.median == pytest.approx(expected.total.median, rel=0.25)
    assert "the budget of requests is spent first" in made.sentence
    wide, _ = lived(600, budget=BudgetConfig(requests=50 * spent))
    assert forecast(wide.answers, 0.0).state == "pending"


def test_what_waits_behind_the_watermark_is_paid_for_already():
    """Its randomized requests, of this era alone, are a part of what may still be certified."""
    agent, traffic = lived(600, budget=BudgetConfig(requests=1000))
    agent.decide(traffic.requests(100))
    agent.controls.open_era("another version", traffic.at)
    chosen = agent.decide(traffic.requests(200))
    agent.observe(take(traffic.outcomes(chosen), np.arange(1, 200)))
    waiting = int(chosen.randomized.sum())
    assert 0 < waiting < 200
    (limit,) = _limits(agent.answers, 3)
    assert limit.left == 1000 - agent.light.randomized + waiting


def test_a_horizon_that_ends_before_the_decision_is_named_with_its_chance():
    free, traffic = lived(600)
    hours = forecast(free.answers, traffic.at).hours
    for share, undecided in ((0.2, True), (20.0, False)):
        horizon = traffic.at + share * hours.median * 3600.0
        agent, _ = lived(600, budget=BudgetConfig(requests=100_000, horizon=horizon))
        made = forecast(agent.answers, traffic.at)
        assert (made.limit == "horizon") is undecided
        assert (made.state == "unknown") is undecided
        assert (made.chance < 0.5) is undecided


def test_a_spent_budget_is_the_reason():
    agent, _ = lived(600, budget=BudgetConfig(requests=150))
    made = forecast(agent.answers, 0.0)
    assert agent.light.randomized == 150
    assert (made.reason, made.limit) == ("budget-spent", "requests")


def test_what_an_operator_set_is_the_budget():
    """Whoever follows the log hears of it from the store alone."""
    agent, _ = lived(600)
    agent.store.put(Control(at=1.0, name="budget", value=str(agent.light.randomized)))
    assert forecast(agent.answers, 0.0).reason == "budget-spent"
    agent.store.put(Control(at=2.0, name="budget", value="null"))
    assert forecast(agent.answers, 0.0).state == "pending"


def test_time_counts_from_what_waits_behind_the_watermark():
    """The first reward never comes: nothing is certified before its window ends, and then all that
    waited is at once."""
    agent, traffic = lived(500)
    chosen = agent.decide(traffic.requests(200))
    outcomes = traffic.outcomes(chosen)
    agent.observe(take(outcomes, np.arange(1, 200)))
    agent.refresh()
    made = forecast(agent.answers, traffic.at + 50.0)
    assert agent.answers.behind().held == 199
    assert made.hours.low >= (agent.config.reward.window - 50.0) / 3600.0
    assert forecast(lived(500)[0].answers, 0.0).hours.low < made.hours.low


SITUATIONS = [
    ({"decided": ["cheap"]}, "decided", "decided"),
    ({"decided": ["cheap", "fast"]}, "decided", "equivalent"),
    ({"killed": True}, "unknown", "kill-switch"),
    ({"ended": True, "paused": "a release"}, "unknown", "ended"),
    ({"paused": "a release"}, "unknown", "paused"),
    ({"observing": True}, "unknown", "observing"),
    ({"era": 1}, "unknown", "new-era"),
    ({"budget_left": 0}, "unknown", "budget-spent"),
    ({"at": 2_000.0}, "unknown", "no-traffic"),
]


@pytest.mark.parametrize(("now", "state", "reason"), SITUATIONS)
def test_nothing_foretold_survives_what_ended_it(now, state, reason):
    made = forecast(lived(600)[0].answers, 12.0)
    assert made.state == "pending"
    found = current(made, **{"at": 12.0, **now})
    assert (found.state, found.reason) == (state, reason)
    assert found.hours is None
    assert found.total is None or reason == "no-traffic"
    assert found.sentence == sentence(found) != made.sentence
    assert "expected" not in found.sentence
    # What comes first hides the rest.
    both = current(made, **{"at": 12.0, "killed": True, **now})
    stays = state == "decided" or reason == "ended"
    assert both.reason == (reason if stays else "kill-switch")


def test_a_decision_that_was_taken_back_is_foretold_no_longer():
    made = forecast(lived(600)[0].answers, 12.0)
    decided = current(made, at=12.0, decided=["cheap"])
    assert current(decided, at=13.0) == decided, "nothing newer is known"
    back = current(decided, at=13.0, undecided=True)
    assert (back.state, back.reason, back.models) == ("unknown", "outdated", [])
    assert "certified" not in back.sentence


def test_a_budget_that_was_raised_is_spent_no_longer():
    made = forecast(lived(600)[0].answers, 12.0)
    spent = msgspec.structs.replace(
        current(made, at=12.0, budget_left=0), state="unknown", limit="requests"
    )
    assert "spent" in current(spent, at=13.0, budget_left=0).sentence
    raised = current(spent, at=13.0, budget_left=100)
    assert (raised.reason, raised.limit) == ("outdated", None)
    assert "spent" not in raised.sentence
    money = msgspec.structs.replace(spent, limit="money")
    assert current(money, at=13.0, budget_left=100).reason == "budget-spent"
    unlimited = current(spent, at=13.0, budget_left=inf)
    assert unlimited.reason == "outdated", "no limit is left"


def test_the_rewards_of_the_least_tried_model_are_said():
    agent, _ = lived(50)
    counts = agent.answers.view().moments.arms.count.sum(axis=0)
    made = forecast(agent.answers, 0.0)
    assert made.reason == "too-few-rewards"
    assert made.rewards == counts.min() > 0.0
    assert f"has {made.rewards:g} reward" in made.sentence


def test_rewards_that_came_since_are_counted():
    few = forecast(lived(0)[0].answers, 0.0)
    assert "has 7 rewards" in current(few, at=1.0, rewards=7.0).sentence
    enough = current(few, at=1.0, rewards=FEWEST_REWARDS)
    assert (enough.reason, enough.rewards) == ("outdated", None)


def test_a_forecast_gets_nearer_as_time_goes_by():
    made = forecast(lived(600)[0].answers, 12.0)
    later = current(made, at=22.0, newest_at=22.0)
    assert later.hours.high == pytest.approx(made.hours.high - 10.0 / 3600.0)
    assert later.hours.low == max(made.hours.low - 10.0 / 3600.0, 0.0)
    assert later.total == made.total
    back = current(current(made, at=500.0), at=501.0, newest_at=500.5)
    assert back.reason == "no-traffic", "a new forecast says how long from now"


def test_words_are_those_of_one_and_many():
    made = forecast(lived(600)[0].answers, 12.0)
    one = msgspec.structs.replace(made, hours=Interval80(1 / 60, 1 / 60, 1.0, 1.0))
    assert "in 1 minute (80%: 1 minute to 1 hour)" in sentence(one)
    soon = msgspec.structs.replace(made, hours=Interval80(0.0, 0.0, 0.001, 0.001))
    assert "within a minute (80%: less than a minute)" in sentence(soon)


def test_statements_get_the_numbers_and_the_reason():
    made = forecast(lived(600)[0].answers, 12.0)
    told = outlook(made)
    assert (told.reason, told.total, told.chance) == (None, made.total, made.chance)
    few = outlook(forecast(lived(0)[0].answers, 0.0))
    assert (few.reason, few.rewards, few.fewest) == ("too-few-rewards", 0.0, FEWEST_REWARDS)
    silent = outlook(current(made, at=500.0))
    assert (silent.reason, silent.newest_at) == ("no-traffic", made.newest_at)
    assert outlook(current(made, at=12.0, decided=["cheap"])).models == ["cheap"]
    assert outlook(None) is None
