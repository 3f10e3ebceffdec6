"""What alarms do, through the real agent: each action, once, kept, and in force after a restart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.answers.status import State
from equipoise.agent.config import (
    BudgetConfig,
    CertifyConfig,
    GuardrailConfig,
    ModelConfig,
    PolicyConfig,
    RewardConfig,
)
from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.monitors import Action
from equipoise.agent.service.analyst.reports import report
from equipoise.agent.state.light_fold import CHUNK
from equipoise.store.memory import MemoryStore


def drifting(settings=None, store=None):
    """Rewards jump by a half after 4,000 requests."""
    agent = Agent(settings or config(), store or MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(8))
    for index in range(60):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
        if index >= 40:
            outcomes = replace(outcomes, reward=np.minimum(outcomes.reward + 0.5, 1.0))
        agent.observe(outcomes)
    return agent, traffic


def guarded(limit_breakers, models=3, batches=60):
    settings = config(guardrails=[GuardrailConfig(name="errors", limit=0.2)])
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(11))
    for _ in range(batches):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
        share = np.where(np.isin(outcomes.served, limit_breakers), 0.5, 0.05)
        errors = (traffic.rng.random(100) < share).astype(float)
        agent.observe(replace(outcomes, metrics=errors[:, None]))
    return agent, traffic


def alerts(agent, check):
    return [alert.status for alert in agent.store.alerts() if alert.check == check]


def test_honest_traffic_changes_nothing():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(1))
    run(agent, traffic, 12)
    rule = agent.rule.rule_id
    assert agent.controls.review(5.0) == []
    assert agent.rule.rule_id == rule
    assert agent.answers.status().state is State.EXPLORING


def test_drift_starts_an_era_once():
    agent, traffic = drifting()
    (done,) = agent.controls.review(7.0)
    assert done.action is Action.NEW_ERA
    assert agent.rule.era == 1
    assert agent.answers.status().state is State.RESTARTED
    assert agent.state.eras.reason(1).startswith("drift: ")
    # What was found is of the old era.
    agent.controls.review(8.0)
    assert agent.rule.era == 1
    for _ in range(40):
        outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
        agent.observe(replace(outcomes, reward=np.minimum(outcomes.reward + 0.5, 1.0)))
    assert agent.controls.review(9.0) == []
    assert agent.rule.era == 1
    assert alerts(agent, "drift") == ["alarm", "unknown"]


def test_an_action_can_be_to_report_and_nothing_else():
    agent, _ = drifting(config(checks={"drift": "report"}))
    rule = agent.rule
    (done,) = agent.controls.review(7.0)
    assert done.action is Action.REPORT
    assert agent.rule.era == 0
    assert agent.rule.alarms == ("drift",)
    assert agent.rule.frozen[0].opening is rule.frozen[0].opening
    assert alerts(agent, "drift") == ["alarm"]


def test_a_standing_drift_alarm_ends_the_per_model_sequence():
    agent, _ = drifting(
        config(checks={"drift": "report"}, certify=CertifyConfig(sequence="per-model"))
    )
    assert agent.answers.certified().sequence is Sequence.PER_MODEL
    agent.controls.review(7.0)
    assert agent.answers.certified().sequence is Sequence.BOUNDED
    again = Agent(agent.config, agent.store, KEY)
    assert again.answers.certified().sequence is Sequence.BOUNDED


def test_a_model_over_its_limit_is_left_out_of_the_next_era():
    agent, traffic = guarded([2])
    agent.controls.review(3.0)
    assert agent.rule.era == 1
    assert agent.rule.active.tolist() == [True, True, False]
    assert agent.state.paused is None
    agent.controls.review(4.0)
    assert agent.rule.era == 1
    decided = agent.decide(traffic.requests(500))
    assert not (decided.randomized & (decided.model == 2)).any()
    assert decided.randomized.any()
    assert audit(agent.store, agent.config, KEY).clean


def test_everything_is_paused_where_one_model_would_be_left():
    agent, traffic = guarded([1, 2])
    agent.controls.review(3.0)
    assert agent.answers.status().state is State.PAUSED
    assert "guardrail" in agent.state.paused
    assert not agent.decide(traffic.requests(200)).randomized.any()
    agent.controls.resume(5.0)
    assert agent.state.paused is None
    assert agent.rule.era == 1
    assert agent.decide(traffic.requests(200)).randomized.any()


def test_a_model_that_had_all_it_may_get_is_left_out_and_the_others_stay_certified():
    models = [{"name": "slow"}, {"name": "fast", "max_requests": 50}, {"name": "cheap"}]
    settings = config(models=[ModelConfig(**model) for model in models])
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(11))
    run(agent, traffic, 15)
    stuck = agent.answers.certified().rows
    run(agent, traffic, 3)
    assert agent.answers.certified().rows == stuck
    agent.controls.review(3.0)
    assert agent.rule.active.tolist() == [True, False, True]
    assert agent.state.eras.reason(1) == "cap: fast had all randomized requests allowed"
    run(agent, traffic, 3)
    assert agent.answers.certified().rows == 120
    agent.controls.review(4.0)
    assert agent.rule.era == 1
    assert audit(agent.store, settings, KEY).clean


def lossy_agent(lose, missing=0.9):
    """An agent whose second model loses a quarter of what `lose` takes away, and how to go on."""
    settings = config(
        reward=RewardConfig(low=0.0, high=1.0, window=100.0, missing=missing),
        certify=CertifyConfig(sequence="per-model"),
    )
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(9))

    def lossy(batches):
        for _ in range(batches):
            outcomes = traffic.outcomes(agent.decide(traffic.requests(100)))
            lost = (outcomes.served == 1) & (traffic.rng.random(100) < 0.25)
            agent.observe(lose(outcomes, lost))
        traffic.at += 1000.0
        agent.expire(traffic.at)
        agent.ingest(traffic.observations(CHUNK))

    return agent, lossy


def without_reward(outcomes, lost):
    return replace(outcomes, reward=np.where(lost, np.nan, outcomes.reward))


def undelivered(outcomes, lost):
    return replace(outcomes, delivered=~lost)


def test_undelivered_draws_widen_to_the_worst_case():
    """They count as the worst case from the first one on, whatever is declared; once they depend
    on the model, rows decided after the alarm take it for missing rewards too."""
    agent, lossy = lossy_agent(undelivered)
    lossy(40)
    score = agent.answers.view().certified.overall.score
    assert score.low[-1][1] < score.high[-1][1]
    agent.controls.review(2.0)
    assert agent.rule.widened
    assert agent.answers.certified().sequence is Sequence.BOUNDED


def test_rewards_that_never_come_are_no_alarm_where_their_value_is_declared():
    """What is certified is the mean of reward-or-value: a model that gets fewer is worth less."""
    agent, lossy = lossy_agent(without_reward)
    lossy(40)
    score = agent.answers.view().certified.overall.score
    assert score.low[-1][1] == score.high[-1][1]
    agent.controls.review(2.0)
    assert not agent.rule.widened
    assert agent.answers.certified().sequence is Sequence.PER_MODEL
    agent, lossy = lossy_agent(without_reward, "worst-case")
    lossy(40)
    agent.controls.review(2.0)
    assert agent.rule.widened


def test_a_simulator_that_is_wrong_leaves_the_recommendation():
    policy = PolicyConfig(assignment="uniform", rate=0.3, estimator="hierarchical")
    agent = Agent(config(policy=policy), MemoryStore(), KEY)
    traffic = Traffic(np.random.default_rng(6))
    agent.ingest(traffic.observations(CHUNK))
    replays = traffic.simulations(400)
    noise = 0.05 * np.random.default_rng(7).normal(size=replays.outputs.shape)
    agent.simulate(replace(replays, outputs=np.minimum(replays.outputs + noise, 0.5)))
    for _ in range(20):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(100, contexts=400))))
    assert agent.answers.recommendation().family == "hierarchical"
    (done,) = agent.controls.review(2.0)
    assert done.action is Action.DROP_SIMULATION
    answer = agent.answers.recommendation()
    assert answer.family == "ipw"
    assert "hierarchical is left out" in answer.sentence
    told = report(agent, [], 3.0).recommendation()
    assert told.family == "ipw", "the daemon's report leaves it out too"
    assert agent.answers.recommendation("hierarchical").family == "hierarchical"
    assert Agent(agent.config, agent.store, KEY).answers.recommendation().family == "ipw"


@pytest.mark.forges
def test_wrong_assignments_pause_until_a_person_resumes_in_a_new_era():
    """A gateway that moves a fifth of what was drawn for one model: found from a tampered log."""
    store = MemoryStore()
    agent = Agent(config(), store, bytes([5]) * 32)
    run(agent, Traffic(np.random.default_rng(2)), 40, size=100)
    rng = np.random.default_rng(3)
    tampered = MemoryStore()
    for name, value in store.settings().items():
        tampered.freeze(name, value)
    for record in [*store.eras(), *store.rules()]:
        tampered.put(record)
    for segment in store.read():
        batch = segment.batch
        if hasattr(batch, "probabilities"):
            moved = batch.randomized & (batch.model == 1) & (rng.random(len(batch)) < 0.2)
            batch = replace(batch, model=np.where(moved, 0, batch.model))
        tampered.append(batch)
    agent = Agent(config(), tampered, bytes([5]) * 32)
    agent.controls.review(2.0)
    assert agent.answers.status().state is State.PAUSED
    assert agent.state.paused.startswith("check assignment")
    agent.controls.review(3.0)
    assert alerts(agent, "pause") == ["paused"]
    again = Agent(config(), tampered, bytes([5]) * 32)
    assert again.state.paused == agent.state.paused
    again.controls.resume(4.0)
    assert again.rule.era == 1
    # What was found is of the old era: it does not pause the new one.
    assert again.controls.review(5.0) == []
    assert again.state.paused is None


def test_without_replays_the_plain_experiment_answers_and_says_what_is_missing():
    """The default family has no value then; the answer must not be that nothing can be said."""
    traffic = Traffic(np.random.default_rng(3))
    agent = Agent(config(), MemoryStore(), KEY)
    nothing = agent.answers.recommendation()
    assert nothing.model is None
    assert "hierarchical waits for replays (SIM) of slow, fast, cheap" in nothing.sentence
    for _ in range(6):
        agent.observe(traffic.outcomes(agent.decide(traffic.requests(100))))
    answer = agent.answers.recommendation()
    assert answer.family == "ipw"
    assert answer.model is not None
    assert answer.sentence.startswith("Not certified: ")
    assert "(hierarchical waits for replays (SIM)" in answer.sentence
    assert agent.answers.recommendation("hierarchical").model is None, "asked by name it says so"
    told = report(agent, [], 0.0).recommendation()
    assert (told.family, told.model) == ("ipw", answer.model), "the daemon's report says the same"
    agent.simulate(traffic.simulations())
    assert agent.answers.recommendation().family == "hierarchical"


def test_a_refresh_carries_out_alarms_and_again_changes_nothing():
    agent, traffic = drifting()
    agent.refresh(7.0)
    assert agent.rule.era == 1
    assert agent.state.eras.reason(1).startswith("drift: ")
    assert alerts(agent, "drift") == ["alarm"]
    rules = [rule.era for rule in agent.store.rules()]
    assert rules == [0, 0, 1], "the rule under the alarm, as the daemon keeps it, and the era's"
    agent.refresh(8.0)
    agent.refresh(9.0)
    assert agent.rule.era == 1
    assert alerts(agent, "drift") == ["alarm", "unknown"]
    run(agent, traffic, 3)
    assert Agent(agent.config, agent.store, KEY).rule.era == 1


def test_a_refresh_that_asks_no_check_acts_on_none():
    """What replays do: their worlds drift by design, and eras would cut streams by policy."""
    agent, _ = drifting()
    agent.refresh(7.0, review=False)
    assert agent.rule.era == 0
    assert agent.store.alerts() == []


def test_the_first_rule_of_an_era_stands_under_no_alarm():
    agent, _ = drifting()
    agent.controls.review(7.0)
    assert agent.rule.era == 1
    assert agent.rule.alarms == ()


def test_a_rule_that_another_process_froze_puts_values_in_force():
    settings = config(budget=BudgetConfig(harm=1e3))
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(4))
    agent.ingest(traffic.observations(400))
    agent.simulate(traffic.simulations())
    run(agent, traffic, 12)
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(200))))
    reader = Agent(settings, agent.store, None)
    assert agent.answers.spending() != reader.answers.spending()
    proposal = reader.answers.proposal(5.0)
    agent.store.put(proposal)
    agent.controls.adopt(proposal)
    assert agent.answers.spending() == reader.answers.spending()
