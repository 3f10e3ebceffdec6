"""Records in, records out: names, idempotency and clear refusals at the door."""

from __future__ import annotations

import numpy as np
import pytest
from traffic import KEY, MODELS, config

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.errors import AgentError, ConflictError, UnknownDecisionError
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Observation, Outcome, Request, Simulation
from equipoise.store.sqlite import SqliteStore


@pytest.fixture(params=["memory", "sqlite"])
def gateway(request, tmp_path):
    store = MemoryStore() if request.param == "memory" else SqliteStore(tmp_path / "log.db")
    with store:
        yield RecordAdapter(Agent(config(), store, KEY), clock=lambda: 1.0)


def request(number: int, **changes: object) -> Request:
    settings: dict[str, object] = {
        "request_id": f"r{number}",
        "routed": "fast",
        "features": {"a": 0.5, "b": -1.0},
        "unit_id": f"user-{number % 7}",
    }
    settings.update(changes)
    return Request(**settings)  # type: ignore[arg-type]


def test_a_decision_says_everything_about_itself(gateway):
    decision = gateway.decide([request(0)])[0]
    assert decision.decision_id == "d0"
    assert decision.request_id == "r0"
    assert decision.model in MODELS
    assert set(decision.probabilities) == set(MODELS)
    assert sum(decision.probabilities.values()) == pytest.approx(1.0)
    expected = decision.rate * decision.probabilities[decision.model]
    expected += (1 - decision.rate) * (decision.model == "fast")
    assert decision.propensity == pytest.approx(expected)


def test_the_same_request_gets_the_same_decision(gateway):
    first = gateway.decide([request(number) for number in range(30)])
    again = gateway.decide([request(number) for number in (29, 3, 40, 7)])
    assert again[0] == first[29]
    assert again[1] == first[3]
    assert again[3] == first[7]
    assert again[2].decision_id == "d30"
    assert gateway.agent.store.next_seq == 31


@pytest.mark.parametrize(
    "changes", [{"features": {"a": 0.5, "b": -1.1}}, {"routed": "slow"}], ids=["features", "routed"]
)
def test_the_same_id_with_other_content_is_a_conflict(gateway, changes):
    gateway.decide([request(0)])
    with pytest.raises(ConflictError, match="'r0' was decided as d0 with other content"):
        gateway.decide([request(0, **changes)])
    assert gateway.agent.store.next_seq == 1


def test_one_id_twice_in_a_batch_is_a_conflict(gateway):
    with pytest.raises(ConflictError, match="'r1' occurs twice"):
        gateway.decide([request(0), request(1), request(1)])
    assert gateway.agent.store.next_seq == 0


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"routed": "slwo"}, "routed: model 'slwo' is not one of slow, fast, cheap"),
        ({"eligible": ["fast", "none"]}, "eligible: model 'none'"),
        ({"features": {"a": float("nan"), "b": 0.0}}, "a"),
        ({"features": {"a": 1.0}}, "b"),
        ({"features": {"a": 1.0, "b": 0.0, "c": 2.0}}, "c"),
        ({"features": {"a": "high", "b": 0.0}}, "high"),
        ({"features": [1.0, 2.0, 3.0]}, "3"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_logged(gateway, changes, says):
    with pytest.raises(ValueError, match=says):
        gateway.decide([request(0), request(1, **changes)])
    assert gateway.agent.store.next_seq == 0


def test_outcomes_in_parts_by_request_id_and_by_decision_id(gateway):
    gateway.decide([request(0), request(1)])
    outputs = {"u": 1.0, "v": 2.0}
    assert gateway.observe([Outcome(request_id="r0", outputs=outputs)]).rows == 1
    assert gateway.observe([Outcome(decision_id="d0", reward=0.5)]).rows == 1
    assert gateway.observe([Outcome(decision_id="d0", reward=0.5)]).duplicates == 1
    with pytest.raises(ConflictError, match=r"reward of decision d0 was 0\.5, now 0\.6"):
        gateway.observe([Outcome(decision_id="d0", reward=0.6)])
    moments = gateway.agent.answers.view().moments
    assert moments.obs.count.sum() + moments.exp.count.sum() == 1


@pytest.mark.parametrize("name", ["d7", "x", "d", "d-1", "d99999999999999999999999", "d١"])
def test_outcomes_of_decisions_that_do_not_exist(gateway, name):
    with pytest.raises(UnknownDecisionError):
        gateway.observe([Outcome(decision_id=name, reward=0.5)])
    with pytest.raises(UnknownDecisionError, match="'nobody' was never decided"):
        gateway.observe([Outcome(request_id="nobody", reward=0.5)])


def test_an_outcome_names_its_decision(gateway):
    with pytest.raises(AgentError, match="needs a decision_id or a request_id"):
        gateway.observe([Outcome(reward=0.5)])


def test_a_draw_that_another_model_answered_is_no_experience_of_either(gateway):
    """A fallback hides what was drawn: its reward is usage log, of the model that answered."""
    decided = gateway.decide([request(number) for number in range(200)])
    outputs = {"u": 1.0, "v": 2.0}
    gateway.observe(
        [
            Outcome(decision_id=item.decision_id, served="cheap", outputs=outputs, reward=1.0)
            for item in decided
        ]
    )
    moments = gateway.agent.answers.view().moments
    kept = sum(item.randomized and item.model == "cheap" for item in decided)
    assert 0 < kept < sum(item.randomized for item in decided)
    assert moments.exp.count.sum(axis=0).tolist() == [0, 0, kept]
    assert moments.obs.count.sum(axis=0).tolist() == [0, 0, 200 - kept]


def test_logs_and_replays_come_in_by_name(gateway):
    outputs = {"u": 1.0, "v": 2.0}
    features = {"a": 0.1, "b": 0.2}
    row = Observation(routed="cheap", features=features, outputs=outputs, reward=0.3)
    assert gateway.ingest([row, row]).rows == 2
    replay = Simulation(context_id="c1", model="slow", features=features, outputs=outputs)
    assert gateway.simulate([replay]).rows == 1
    assert gateway.simulate([replay]).duplicates == 1
    moments = gateway.agent.answers.view().moments
    assert moments.obs.count.sum(axis=0).tolist() == [0, 0, 2]
    assert np.isnan(replay.cost or np.nan)
    assert moments.simulation.count.sum(axis=0).tolist() == [1, 0, 0]
    with pytest.raises(AgentError, match=r"reward row 0: 3.0 .* \[0.0, 1.0\]"):
        gateway.ingest(
            [Observation(routed="cheap", features=features, outputs=outputs, reward=3.0)]
        )


def test_the_usage_row_of_a_request_that_was_decided_does_not_count_again(gateway):
    """A log of the gateway holds every request, those that came here for a decision as well."""
    decided = gateway.decide([request(number) for number in range(3)])
    rows = [
        Observation(
            request_id=name,
            routed="cheap",
            features={"a": 0.1, "b": 0.2},
            outputs={"u": 1.0, "v": 2.0},
            reward=reward,
        )
        for name, reward in (("r1", 0.25), ("q1", 0.5), ("r2", None), ("q2", 0.75), ("r9", 1.0))
    ]
    taken = gateway.ingest(rows)
    assert (taken.rows, taken.decided, taken.unrated, taken.duplicates) == (3, 1, 1, 0)
    assert gateway.ingest(rows[:2]) == Accepted(0, duplicates=1, decided=1)
    assert gateway.agent.store.next_seq == len(decided) + 3
    assert gateway.agent.answers.view().moments.obs.count.sum() == 3


def test_a_usage_row_without_a_reward_is_counted_and_left_out(gateway):
    """It is no fault of the log, in which most rows have none; rated later, it counts."""

    def row(name: str, reward: float | None, routed: str = "cheap") -> Observation:
        return Observation(
            request_id=name,
            routed=routed,
            features={"a": 0.1, "b": 0.2},
            outputs={"u": 1.0, "v": 2.0},
            reward=reward,
        )

    first = gateway.ingest([row("q0", None), row("q1", 0.25), row("q2", None), row("q1", 0.25)])
    assert (first.rows, first.duplicates, first.unrated) == (1, 1, 2)
    alone = gateway.ingest([row("q0", None), row("q1", None)])
    assert (alone.rows, alone.duplicates, alone.unrated) == (0, 0, 2), "q1 says nothing new"
    later = gateway.ingest([row("q2", None), row("q0", 0.75), row("q1", 0.25)])
    assert (later.rows, later.duplicates, later.unrated) == (1, 1, 1)
    moments = gateway.agent.answers.view().moments
    assert moments.obs.count.sum(axis=0).tolist() == [0, 0, 2]
    with pytest.raises(ConflictError, match="observation row 1: request_id 'q0' has other reward"):
        gateway.ingest([row("q3", None), row("q0", 0.5)])
    with pytest.raises(AgentError, match="model 'nobody'"):
        gateway.ingest([row("q4", None, routed="nobody")])


def test_one_request_alone_is_decided_as_in_a_batch():
    """The short way of a live request and the long way of a batch: the same bits."""
    long, short = (
        RecordAdapter(Agent(config(), MemoryStore(), KEY), clock=lambda: 5.0) for _ in "ab"
    )
    for number in range(300):
        changes: dict[str, object] = {}
        if number % 3 == 0:
            changes["eligible"] = [MODELS[number % 2], MODELS[2]]
        if number % 7 == 0:
            changes["eligible"] = []
        if number % 5 == 0:
            changes |= {"context_id": f"c{number}", "unit_id": f"u{number % 10}", "at": 1.0}
        asked = request(number, routed=MODELS[number % 3], **changes)
        assert short.decide_one(asked) == long.decide([asked])[0]
        if number % 100 == 99:
            long.agent.refresh()
            short.agent.refresh()
    assert short.agent.fold.to_bytes() == long.agent.fold.to_bytes()
    again = request(3, routed=MODELS[0], eligible=[MODELS[1], MODELS[2]])
    assert short.decide_one(again) == long.decide([again])[0]
    with pytest.raises(ConflictError):
        short.decide_one(request(3, routed=MODELS[1]))
