"""What was certified of an era when it ended stays: in the store, over restarts and changes."""

from __future__ import annotations

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from traffic import KEY, MODELS, Traffic, config, run

from equipoise.agent.agent import MISCOUNTED, Agent
from equipoise.agent.cli.status import describe, status
from equipoise.agent.config import ModelConfig, PolicyConfig, RewardConfig
from equipoise.agent.lifecycle.eras import ANSWER, read_answers
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.export import tables
from equipoise.agent.service.analyst.reports import eras
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Control
from equipoise.store.sqlite import SqliteStore

POLICY = PolicyConfig(rate=0.6)
MODEL_LIST = [ModelConfig(name=name, price=0.01) for name in MODELS]


def experiment(**changes):
    return config(policy=POLICY, **changes)


def decided(store, batches=24, **changes):
    """An experiment in which `cheap` is certified best; its traffic."""
    agent, traffic = Agent(experiment(**changes), store, KEY), Traffic(np.random.default_rng(2))
    agent.simulate(traffic.simulations())
    run(agent, traffic, batches, size=250)
    return agent, traffic


def ends_of(certified):
    return [(one.candidate, one.lower, one.upper) for one in certified.values]


def test_the_last_answer_is_what_was_certified_when_it_ended():
    agent, traffic = decided(MemoryStore())
    certified, status = agent.answers.certified(), agent.answers.status()
    assert status.models == ("cheap",)
    agent.controls.open_era("drift: rewards fell", at=7.0)
    run(agent, traffic, 3)
    answer = eras(agent)
    assert [each.ended_reason for each in answer.eras] == ["drift: rewards fell", None]
    old, running = answer.eras
    assert (old.opened_at, old.ended_at, old.compared) == (0.0, 7.0, list(MODELS))
    assert running.answer is None
    kept = old.answer
    assert (kept.sentence, kept.status) == (status.sentence, "decided")
    assert (kept.delta, kept.epsilon) == (certified.delta, certified.epsilon)
    assert (kept.requests, kept.randomized) == (certified.rows, certified.randomized)
    ends = zip(certified.lower.tolist(), certified.upper.tolist(), strict=True)
    assert [(one.lower, one.upper) for one in kept.values] == list(ends)
    assert [one.other for one in kept.comparisons] == ["slow", "fast", "(today's routing)"]
    assert [one.verdict for one in kept.comparisons][:2] == ["better", "better"]
    assert min(one.lower for one in kept.comparisons[:2]) >= 0.0
    lead = certified.standing.lead(2)
    assert kept.lead == (lead if lead > 0.0 else None)


@pytest.mark.parametrize(
    ("changes", "compared"),
    [
        ({"models": [*MODEL_LIST, ModelConfig(name="new")]}, [*MODELS, "new"]),
        ({"models": [msgspec.structs.replace(MODEL_LIST[0], retired=True), *MODEL_LIST[1:]]}, None),
        ({"policy": PolicyConfig(rate=0.6, delta=0.2)}, list(MODELS)),
    ],
)
@pytest.mark.parametrize("stopped", [True, False])
def test_a_restart_with_another_configuration_keeps_the_answer_of_the_old_one(
    tmp_path, changes, compared, stopped
):
    with SqliteStore(tmp_path / "log.db") as store:
        agent, _ = decided(store)
        certified, status = agent.answers.certified(), agent.answers.status()
        if stopped:  # else it was killed, and the log is folded again
            agent.checkpoint()
    settings = config(**{"policy": POLICY, **changes})
    with SqliteStore(tmp_path / "log.db") as store:
        agent = Agent(settings, store, KEY, at=9.0)
        first = eras(agent)
        old, running = first.eras
        assert running.compared == (compared or list(MODELS)[1:])
        assert old.compared == list(MODELS)
        assert old.answer.sentence == status.sentence
        assert old.answer.delta == certified.delta
        assert [each[1:] for each in ends_of(old.answer)] == list(
            zip(certified.lower.tolist(), certified.upper.tolist(), strict=True)
        )
        assert agent.answers.certified().rows == 0
    with SqliteStore(tmp_path / "log.db") as store:
        again = Agent(settings, store, KEY)
        assert eras(again) == first
        assert audit(store, settings, KEY).clean
        table = tables(store, settings)["eras"]
        assert msgspec.json.decode(table["answer"][0])["parts"][0]["rows"] == certified.rows
        assert not isinstance(table["answer"][1], str)


def test_an_era_of_an_older_version_or_a_void_one_has_none():
    store = MemoryStore()
    agent, _ = decided(store, 3)
    agent.controls.open_era(MISCOUNTED, 1.0, ended=None)
    assert [each.answer for each in eras(agent).eras] == [None, None]
    assert read_answers(store) == {}


def test_the_answer_where_less_is_better_is_the_same_the_other_way_round():
    answers = []
    for maximise in (True, False):
        reward = RewardConfig(low=0.0 if maximise else -1.0, high=float(maximise), window=100.0)
        reward = msgspec.structs.replace(reward, maximise=maximise)
        agent = Agent(experiment(reward=reward), MemoryStore(), KEY)
        traffic = Traffic(np.random.default_rng(2))
        for _ in range(24):
            outcomes = traffic.outcomes(agent.decide(traffic.requests(250)))
            turned = outcomes.reward if maximise else -outcomes.reward
            agent.observe(replace(outcomes, reward=turned))
            agent.refresh(review=False)
        agent.controls.open_era("by hand", 1.0)
        answers.append(eras(agent).eras[0].answer)
    one, other = answers
    assert one.status == other.status == "decided"
    for a, b in zip(one.comparisons, other.comparisons, strict=True):
        assert (a.model, a.other, a.verdict) == (b.model, b.other, b.verdict)
        assert (a.lower, a.upper) == pytest.approx((-b.upper, -b.lower), abs=1e-9)


@pytest.mark.forges
def test_an_answer_that_cannot_be_read_is_a_fault_of_the_audit(tmp_path):
    with SqliteStore(tmp_path / "log.db") as store:
        agent, _ = decided(store, 3)
        agent.controls.open_era("by hand", 1.0)
        store.put(Control(at=2.0, name=ANSWER, value='{"era":0}'))
        result = audit(store, experiment(), KEY)
    assert any("kept answer" in fault for fault in result.faults)


def test_status_says_what_was_certified_before_and_of_which_models(tmp_path, capsys):
    with SqliteStore(tmp_path / "log.db") as store:
        agent, _ = decided(store)
        certified = agent.answers.status().sentence
        agent.controls.open_era("slow is left out", 60.0, np.array([False, True, True]))
        facts = describe(agent)
    status(tmp_path / "log.db")
    printed = " ".join(capsys.readouterr().out.split())
    assert facts["eras"][0]["answer"]["sentence"] == certified
    assert (
        "Era 0 (1970-01-01 00:00 UTC to 1970-01-01 00:01 UTC; ended: slow is left out)" in printed
    )
    assert certified in printed
    assert [each["compared"] for each in facts["models"]] == [False, True, True]
    assert "0.000 … 1.000" not in printed
