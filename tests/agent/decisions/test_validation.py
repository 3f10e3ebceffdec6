"""Guardrail metrics at the door: names, ranges, shapes, parts; accepted once, like rewards."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config

from equipoise.agent.agent import Agent
from equipoise.agent.config import GuardrailConfig
from equipoise.agent.errors import AgentError, ConflictError
from equipoise.agent.maintenance.export import tables
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import OutcomeBatch, take
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Outcome, Request
from equipoise.store.sqlite import SqliteStore

GUARDED = config(
    guardrails=[
        GuardrailConfig(name="error", limit=0.2),
        GuardrailConfig(name="cost", limit=3.0, low=-1.0, high=5.0),
    ]
)
OUTPUTS = {"u": 1.0, "v": 2.0}


@pytest.fixture(params=["memory", "sqlite"])
def gateway(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "log.db")
    with store:
        gateway = RecordAdapter(Agent(GUARDED, store, KEY), clock=lambda: 1.0)
        gateway.decide(
            [
                Request(request_id=f"r{number}", routed="fast", features={"a": 0.5, "b": -1.0})
                for number in range(3)
            ]
        )
        yield gateway


def test_metrics_come_by_name_and_in_parts(gateway):
    gateway.observe(
        [
            Outcome(decision_id="d0", outputs=OUTPUTS, metrics={"cost": 2.0}),
            Outcome(decision_id="d1", outputs=OUTPUTS),
        ]
    )
    gateway.observe([Outcome(decision_id="d0", reward=0.5, metrics={"error": 1.0})])
    kept = gateway.agent.light.pending.metrics[:3]
    np.testing.assert_array_equal(kept, [[1.0, 2.0], [np.nan] * 2, [np.nan] * 2])
    parts = gateway.agent.store.outcome_parts(0)
    np.testing.assert_array_equal(parts[0].metrics, [[np.nan, 2.0]])
    table = tables(gateway.agent.store, GUARDED)["outcomes"]
    assert table["metric_cost"].tolist()[0] == 2.0
    assert table["metric_error"].tolist()[-1] == 1.0


def test_outcomes_without_metrics_carry_no_column(gateway):
    gateway.observe([Outcome(decision_id="d0", reward=0.5)])
    assert gateway.agent.store.outcome_parts(0)[0].metrics is None


@pytest.mark.parametrize(
    ("metrics", "says"),
    [
        ({"latency": 0.1}, r"metrics: 'latency' is no guardrail; declared are error, cost"),
        ({"error": 1.5}, r"metric error row 1: 1\.5 is outside the declared range \[0\.0, 1\.0\]"),
        ({"cost": -1.01}, r"metric cost row 1: -1\.01 is outside the declared range \[-1\.0, 5"),
        ({"error": float("nan")}, "metric error row 1: nan is not a finite number"),
        ({"error": float("inf")}, "metric error row 1: inf is not a finite number"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_logged(gateway, metrics, says):
    rows = gateway.agent.store.next_seq
    with pytest.raises(AgentError, match=says):
        gateway.observe(
            [
                Outcome(decision_id="d0", reward=0.5, metrics={"error": 0.0}),
                Outcome(decision_id="d1", reward=0.5, metrics=metrics),
            ]
        )
    assert gateway.agent.store.next_seq == rows


def test_a_metric_is_accepted_once_and_repeats_are_no_change(gateway):
    first = Outcome(decision_id="d0", metrics={"error": 0.0})
    assert gateway.observe([first]).rows == 1
    assert gateway.observe([first]).duplicates == 1
    both = Outcome(decision_id="d0", metrics={"error": 0.0, "cost": 1.0})
    assert gateway.observe([both]).rows == 1
    assert gateway.observe([both]).duplicates == 1
    rows = gateway.agent.store.next_seq
    with pytest.raises(ConflictError, match=r"metric cost of decision d0 was 1\.0, now 2\.0"):
        gateway.observe([Outcome(decision_id="d0", metrics={"cost": 2.0}, reward=0.5)])
    assert gateway.agent.store.next_seq == rows
    assert gateway.observe([Outcome(decision_id="d0", metrics={"cost": 1.0}, reward=0.5)]).rows == 1


def test_repeats_that_are_known_at_a_glance_are_those_of_a_closer_look():
    """Parts in any pieces, again, contradicted, late, and of decisions that left the table. A list
    of attempts that lists none says nothing, and has every row looked at alone."""
    rng = np.random.default_rng(11)
    glance, look = (Agent(config(), MemoryStore(), KEY) for _ in "ab")
    traffics = [Traffic(np.random.default_rng(3)) for _ in "ab"]
    sent: list[OutcomeBatch] = []
    said: set[object] = set()
    for turn in range(300):
        whole, _ = (
            traffic.outcomes(agent.decide(traffic.requests(60)))
            for traffic, agent in zip(traffics, (glance, look), strict=True)
        )
        if turn % 10 == 9:
            for agent in (glance, look):
                agent.expire(traffics[0].at + 90.0)
        if turn % 3 == 0:
            rows = np.sort(rng.choice(60, 40, replace=False))
            told = take(whole, rows)
            told = replace(told, attempt=np.zeros(40, dtype=np.int64), reward=np.round(told.reward))
            sent.append(told)
            for agent in (glance, look)[: 2 * (turn % 2)]:
                agent.observe(told)
        # Of late, or of any time.
        before = sent[-1 - int(rng.integers(min(len(sent), 3 if turn % 2 else len(sent))))]
        rows = np.sort(rng.choice(40, int(rng.integers(1, 30)), replace=False))
        part = take(before, rows)
        reward, outputs = part.reward.copy(), part.outputs.copy()
        if turn % 4 == 1:
            reward[rng.random(len(rows)) < 0.5] = np.nan
        if turn % 4 == 2:
            outputs[rng.random(len(rows)) < 0.5] = np.nan
        if turn % 5 == 3:
            reward[-1] = 1.0 - reward[-1]
        if turn % 5 == 4:
            outputs[-1] += 1.0
        part = replace(part, reward=reward, outputs=outputs)
        table = glance.light.pending
        if turn % 7 == 0 and table.base:  # what the first row says is nothing of those before it
            table.has_reward[0] = True
            part = take(part, np.array([0]))
            number = rng.integers(0, table.base, 1)
            part = replace(part, number=number, reward=table.reward[:1].copy())
            part = replace(part, outputs=np.full_like(part.outputs, np.nan))
        results: list[object] = []
        for agent, each in ((glance, part), (look, replace(part, attempts=[""] * len(rows)))):
            try:
                results.append(agent.observe(each))
            except ConflictError as error:
                results.append(str(error))
        assert results[0] == results[1]
        said.add(results[0][:6] if isinstance(results[0], str) else results[0].duplicates > 0)
    assert said == {"reward", "output", True, False}
    assert glance.light.pending.base > 1000
    assert glance.late == look.late > 0


def test_without_guardrails_no_metric_has_a_name():
    gateway = RecordAdapter(Agent(config(), MemoryStore(), KEY))
    gateway.decide([Request(request_id="r", routed="fast", features={"a": 0.5, "b": -1.0})])
    with pytest.raises(AgentError, match="'error' is no guardrail; declared are none"):
        gateway.observe([Outcome(decision_id="d0", metrics={"error": 0.0})])


@pytest.mark.parametrize("shape", [(2, 1), (1, 2), (2, 3)])
def test_columns_of_another_shape_are_refused(shape):
    agent, traffic = Agent(GUARDED, MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(2)))
    with pytest.raises(AgentError, match=r"metrics have shape .*, expected \(2, 2\)"):
        agent.observe(replace(outcomes, metrics=np.zeros(shape)))
    assert agent.store.next_seq == 2


def test_opposite_contradictions_in_one_batch_name_the_first():
    agent, traffic = Agent(GUARDED, MemoryStore(), KEY), Traffic(np.random.default_rng(0))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(4)))
    agent.observe(replace(outcomes, metrics=np.zeros((4, 2))))
    other = np.zeros((4, 2))
    other[2, 1] = 0.5
    with pytest.raises(ConflictError, match="metric cost of decision d2"):
        agent.observe(replace(outcomes, metrics=other))
