"""A plan goes on from the certified sums of a store, bit by bit what the certifier reads."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.answers.policy_snapshot import sample_moments
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
    SegmentConfig,
    UnitsConfig,
)
from equipoise.agent.errors import PlanError
from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.planning import plan_request
from equipoise.agent.planning.sentences import family_lines, store_sentence
from equipoise.agent.planning.simulation.boundary import needed_caps
from equipoise.agent.planning.stored import of_experiment
from equipoise.agent.planning.tables import Tables
from equipoise.store.batches import select
from equipoise.store.memory import MemoryStore


def lived(
    rows=1500, maximise=True, sequence="bounded", assignment="uniform", segments=(), **changes
):
    policy = PolicyConfig(assignment=assignment, rate=0.5, estimator="ipw")
    reward = RewardConfig(low=-1.0, high=3.0, maximise=maximise, window=100.0)
    certify = CertifyConfig(sequence=sequence, segments=list(segments))
    settings = config(policy=policy, reward=reward, certify=certify, **changes)
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(2))
    for _ in range(rows // 100):
        decided = agent.decide(traffic.requests(100))
        outcomes = traffic.outcomes(decided)
        reward_ = outcomes.reward if maximise else 1.0 - outcomes.reward
        agent.observe(replace(outcomes, reward=4.0 * reward_ - 1.0))
        agent.refresh()
    return agent


@pytest.mark.parametrize("maximise", [True, False])
@pytest.mark.parametrize("sequence", ["bounded", "per-model"])
def test_the_start_is_read_as_the_certifier_reads_it(maximise, sequence):
    agent = lived(maximise=maximise, sequence=sequence)
    problem, _ = of_experiment(agent.answers, {"effect": 0.4})
    declared = Sequence(sequence)
    caps = needed_caps(declared, 3, np.full(1, 0.9), problem.era_caps)
    start = problem.start(1, len(caps))
    design = problem.design("uniform", declared, [Tables(problem).base(0.1)], 1)
    assert design.prior.requests == pytest.approx(agent.rule.prior.requests)
    read = design.boundary(design.decision_levels, levels.pair_level(0.05, 4), caps)
    a, b = np.nonzero(~np.eye(3, dtype=bool))
    mine = read.lower(start, np.zeros(6, dtype=int), a, b) * problem.scale
    _, _, variances = sample_moments(agent.answers.view().moments.arms)
    # Squares are kept around the means of their time: a few rewards' worth of difference.
    np.testing.assert_allclose(start.variances()[0] * 16.0, variances, rtol=0.1)
    close = 1e-9 if declared is Sequence.BOUNDED else 4e-3
    np.testing.assert_allclose(mine, agent.answers.certified().decision[a, b], atol=close)


def test_before_the_first_row_enters_a_plan_takes_what_is_thought():
    """Rewards are there, and the oldest decision still waits: none of them is certified yet."""
    settings = config(policy=PolicyConfig(assignment="uniform", rate=0.5, estimator="ipw"))
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(2))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(300)))
    agent.observe(select(outcomes, np.arange(300) > 0))
    assert agent.answers.view().certified.overall.rows == 0
    problem, _ = of_experiment(agent.answers, {"effect": 0.1})
    assert problem.prior.encode() == agent.rule.prior.encode()


def test_models_that_are_not_compared_have_no_part_in_what_is_thought():
    agent = lived()
    agent.controls.open_era("two are left", active=np.array([False, True, True]))
    traffic = Traffic(np.random.default_rng(3), at=50.0)
    outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
    agent.observe(replace(outcomes, reward=4.0 * outcomes.reward - 1.0))
    problem, _ = of_experiment(agent.answers, {"effect": 0.4})
    assert problem.prior.best.tolist() == agent.rule.prior.best[1:].tolist()
    assert problem.prior.best.sum() == pytest.approx(1.0)
    assert problem.prior.best[1] > 0.6


def test_minimising_is_the_mirror_image_of_maximising():
    plain = plan_request({"effect": 0.4, "traffic": 100.0}, lived(600).answers)
    mirror = plan_request({"effect": 0.4, "traffic": 100.0}, lived(600, maximise=False).answers)
    assert mirror["stored"]["leader"] == plain["stored"]["leader"]
    assert mirror["stored"]["gap"] == pytest.approx(plain["stored"]["gap"])
    first, second = (each["goals"][0]["requests"]["median"] for each in (plain, mirror))
    assert second == pytest.approx(first, rel=1e-6)


def test_more_data_leaves_less_to_do():
    asked = {"effect": 0.4, "traffic": 100.0}
    few, many = (plan_request(asked, lived(rows).answers) for rows in (300, 1500))
    left = [each["goals"][0]["requests"]["median"] for each in (few, many)]
    assert left[1] < left[0]


def test_today_s_pace_is_that_of_the_log():
    """The traffic of these tests makes 100 requests a second."""
    answer = plan_request({"effect": 0.4}, lived(600).answers)
    assert answer["traffic"] == pytest.approx(100 * 3600, rel=0.25)
    assert answer["stored"]["unit"] == "hours"
    goal = answer["goals"][0]
    assert goal["hours"]["median"] == pytest.approx(
        goal["requests"]["median"] / answer["traffic"] + 100.0 / 3600.0, rel=1e-3
    )


def test_families_that_rest_on_exp_say_how_sure_they_are():
    answer = plan_request({"effect": 0.4, "regret": 0.2}, lived(600).answers)
    found = {each["family"]: each for each in answer["stored"]["families"]}
    assert {"ipw", "hierarchical"} & set(found)
    for each in found.values():
        assert 0.3 <= each["chance"] <= 1.0
    lines = family_lines(answer["stored"])
    assert len(lines) == len(found)
    assert "within 0.2 of the best" in lines[0]


def test_what_is_certified_already_is_said():
    answer = plan_request({"effect": 0.4, "traffic": 10.0}, lived(6000).answers)
    assert answer["stored"]["decided"] == "cheap"
    assert answer["stored"]["remaining"] is None


def test_segments_are_planned_at_the_levels_of_the_certifier():
    segments = [SegmentConfig(name="left", column="a", high=0.1)]
    segments.append(SegmentConfig(name="right", column="a", low=0.1))
    agent = lived(600, segments=segments)
    problem, _ = of_experiment(agent.answers, {"effect": 0.4, "traffic": 10.0})
    assert problem.levels == pytest.approx(
        [agent.state.certifier.delta(0, part) for part in (0, 1)]
    )
    answer = plan_request({"effect": 0.4, "traffic": 10.0}, agent.answers)
    assert answer["segments"][0]["hours"]["median"] > answer["goals"][0]["hours"]["median"]


def test_too_few_rewards_are_refused_with_their_number():
    with pytest.raises(PlanError, match="at least 20"):
        plan_request({"effect": 0.4}, lived(100, assignment="uniform", budget=_tiny()).answers)


def test_sticky_units_need_their_traffic_told():
    agent = lived(1500, units=UnitsConfig(ttl=5.0))
    with pytest.raises(PlanError, match="traffic is missing"):
        plan_request({"effect": 0.4}, agent.answers)


def _tiny():
    from equipoise.agent.config import BudgetConfig

    return BudgetConfig(requests=12)


def test_a_store_that_is_decided_stopped_or_out_of_budget_is_told_so():
    asked = {"effect": 0.4, "traffic": 100.0}
    agent = lived(600)
    agent.controls.pause("holiday", 10.0)
    plan = plan_request(asked, agent.answers)
    assert plan["stored"]["stopped"] == "paused (holiday)"
    assert plan["sentence"].startswith("The experiment is paused (holiday). Once that ends: ")
    spent = plan_request(asked, lived(900, budget=BudgetConfig(requests=250)).answers)
    assert spent["stored"]["stopped"] == "out of its budget"
    assert spent["stored"]["left"] == 0.0
    assert "nothing more will be known until that ends" in store_sentence(spent["stored"])
    ended = lived(600)
    ended.controls.end(None, "enough", 10.0, certified=False)
    over = plan_request(asked, ended.answers)
    assert over["sentence"].startswith("The experiment has ended: there is nothing to plan for")
    assert "it has ended, and nothing more will be known unless" in store_sentence(over["stored"])
    few = plan_request(asked, lived(600, budget=BudgetConfig(requests=320)).answers)
    assert few["stored"]["stopped"] is None
    assert few["sentence"].startswith("The budget allows ")
    decided = plan_request(asked, lived(6000).answers)
    assert decided["stored"]["decided"] == "cheap"
    assert decided["sentence"] == "There is nothing to plan for: the experiment is decided."
    assert "so far: cheap is certified best of the models" in store_sentence(decided["stored"])
    assert "(wrong in at most 0.05 of such experiments" in store_sentence(decided["stored"])


def test_today_s_routing_pays_the_mean_price_of_whom_it_routes_to():
    models = [
        ModelConfig(name=n, price=p) for n, p in (("slow", 0.03), ("fast", 0.02), ("cheap", 0.01))
    ]
    agent = lived(600, models=models)
    problem, _ = of_experiment(agent.answers, {"effect": 0.4})
    # Requests are routed to each of the three alike: 600 draws of a price with deviation 0.008.
    assert problem.today == pytest.approx(0.02, abs=0.001)
    with pytest.raises(PlanError, match="price is 1, expected none beside a store"):
        of_experiment(agent.answers, {"effect": 0.4, "price": 1.0})
