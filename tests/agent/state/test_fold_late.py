"""What comes too late is logged once, counted for good, and used for nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import GuardrailConfig, RewardConfig
from equipoise.agent.errors import AgentError, ConflictError
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.state.light_fold import CHUNK
from equipoise.store.batches import take
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Outcome, Request
from equipoise.store.sqlite import SqliteStore

FAMILIES = ("ipw", "doubly-robust", "representation-exp", "hierarchical")


def rewards(outcomes):
    return replace(outcomes, outputs=np.full(outcomes.outputs.shape, np.nan))


def expired(store, count: int = 200) -> tuple[Agent, object]:
    """An agent whose last decisions got their outputs and expired, and their rewards."""
    agent, traffic = Agent(config(), store, KEY), Traffic(np.random.default_rng(3))
    agent.ingest(traffic.observations(100))
    run(agent, traffic, 12)
    outcomes = traffic.outcomes(agent.decide(traffic.requests(count)))
    agent.observe(replace(outcomes, reward=np.full(count, np.nan)))
    assert agent.expire(traffic.at + 1000.0) == count
    return agent, rewards(outcomes)


def answers(agent) -> list[np.ndarray]:
    """Everything an answer rests on: certified sums, estimates, today's routing, checks."""
    view = agent.answers.view()
    estimates = agent.answers.estimates(FAMILIES).values()
    values = [part for one in estimates for part in (one.values, one.covariance)]
    return [*view.certified.arrays().values(), *values, np.array(agent.answers.routing())]


def test_late_rewards_change_no_sum_and_no_check_inside_a_chunk():
    agent, late = expired(MemoryStore())
    moments = agent.answers.view().moments.to_bytes()
    certified = [array.tobytes() for array in agent.answers.view().certified.arrays().values()]
    checks = repr(agent.answers.checks())
    accepted = agent.observe(late)
    assert (accepted.rows, accepted.late, accepted.duplicates) == (0, 200, 0)
    assert agent.answers.view().moments.to_bytes() == moments
    assert [
        array.tobytes() for array in agent.answers.view().certified.arrays().values()
    ] == certified
    assert repr(agent.answers.checks()) == checks


def test_late_rewards_change_no_answer_when_their_chunk_is_folded():
    """Chunks are cut elsewhere, so sums are grouped otherwise: equal to 1e-9."""
    with_late, late = expired(MemoryStore())
    without, _ = expired(MemoryStore())
    with_late.observe(late)
    for agent in (with_late, without):
        traffic = Traffic(np.random.default_rng(9), at=5000.0)
        agent.ingest(traffic.observations(2 * CHUNK))
        run(agent, traffic, 3)
    assert (with_late.late, without.late) == (200, 0)
    for one, other in zip(answers(with_late), answers(without), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)


def test_what_comes_in_time_is_used_whatever_comes_beside_it():
    """One batch with late rewards and rewards in time: the fold takes them apart."""
    agent, late = expired(MemoryStore())
    traffic = Traffic(np.random.default_rng(8), at=9000.0)
    fresh = traffic.outcomes(agent.decide(traffic.requests(50)))
    before = agent.answers.view().moments
    both = type(late)(
        *(
            np.concatenate([getattr(late, name), getattr(fresh, name)])
            for name in late.__slots__
            if name not in ("metrics", "attempts")
        )
    )
    accepted = agent.observe(both)
    assert (accepted.rows, accepted.late) == (50, 200)
    after = agent.answers.view().moments
    counts = [moments.exp.count.sum() + moments.obs.count.sum() for moments in (before, after)]
    assert counts[1] - counts[0] == 50


def test_they_are_logged_once_and_repeats_are_repeats():
    agent, late = expired(MemoryStore())
    agent.observe(late)
    rows = agent.store.next_seq
    again = agent.observe(late)
    assert (again.rows, again.late, again.duplicates) == (0, 0, 200)
    assert (agent.late, agent.store.next_seq) == (200, rows)
    with pytest.raises(ConflictError, match="now"):
        agent.observe(replace(late, reward=1.0 - late.reward))
    assert agent.store.next_seq == rows


def test_every_part_of_a_decision_is_known_from_the_log():
    """In time came the outputs, late the reward: neither hides the other."""
    agent, late = expired(MemoryStore(), count=20)
    (outputs,) = [agent.store.outcome_parts(int(n))[0].outputs for n in late.number[:1]]
    agent.observe(late)
    again = take(replace(late, reward=np.full(20, np.nan)), np.arange(1))
    assert agent.observe(replace(again, outputs=outputs)).duplicates == 1
    with pytest.raises(ConflictError, match="outputs of decision"):
        agent.observe(replace(again, outputs=outputs + 1.0))
    assert agent.late == 20


def test_a_late_reward_twice_in_different_batches_is_told_apart_by_its_value():
    agent, late = expired(MemoryStore())
    agent.observe(take(late, np.arange(5)))
    mixed = agent.observe(take(late, np.arange(10)))
    assert (mixed.rows, mixed.late, mixed.duplicates) == (0, 5, 5)


@pytest.mark.parametrize("checkpoint", [None, "before", "after"])
def test_the_count_survives_the_end_of_the_process(tmp_path, checkpoint):
    """No close, no farewell: the store is opened again beside what is left of the first one."""
    store = SqliteStore(tmp_path / "log.db")
    agent, late = expired(store)
    if checkpoint == "before":
        agent.checkpoint()
    agent.observe(take(late, np.arange(120)))
    if checkpoint == "after":
        agent.checkpoint()
    state, said = agent.fold.to_bytes(), answers(agent)
    store._ends.close()  # what the end of the process would let go; the mark says no farewell
    with SqliteStore(tmp_path / "log.db") as opened:
        again = Agent(config(), opened, KEY)
        assert again.late == 120
        assert again.fold.to_bytes() == state
        for one, other in zip(answers(again), said, strict=True):
            assert one.tobytes() == other.tobytes()
        repeated = again.observe(late)
        assert (repeated.late, repeated.duplicates) == (80, 120)
        assert again.late == 200


def test_after_its_decision_left_the_table_a_late_reward_is_still_one():
    agent, late = expired(MemoryStore())
    traffic = Traffic(np.random.default_rng(5), at=9000.0)
    run(agent, traffic, 60, size=200)
    assert agent.light.pending.base > late.number[-1]
    accepted = agent.observe(late)
    assert (accepted.rows, accepted.late) == (0, 200)
    assert agent.observe(late).duplicates == 200
    with pytest.raises(ConflictError, match="reward of decision"):
        agent.observe(replace(late, reward=1.0 - late.reward))
    assert Agent(config(), agent.store, KEY).fold.to_bytes() == agent.fold.to_bytes()


def test_outputs_that_come_after_the_expiry_are_late_though_the_reward_was_in_time():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(6))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(30)))
    assert agent.observe(rewards(outcomes)).rows == 30
    assert agent.expire(traffic.at + 1000.0) == 30
    assert agent.observe(outcomes).late == 30
    assert agent.observe(outcomes).duplicates == 30
    moments = agent.answers.view().moments
    assert moments.exp.count.sum() + moments.obs.count.sum() == 0
    assert agent.answers.view().certified.overall.missing == 0


def test_a_late_part_names_the_model_that_answered(tmp_path):
    """Also where the decision left the table: the last part in the log says who."""
    with SqliteStore(tmp_path / "log.db") as store:
        agent, late = expired(store)
        run(agent, Traffic(np.random.default_rng(5), at=9000.0), 60, size=200)
        row = int(np.flatnonzero(late.served > 0)[0])
        number = int(late.number[row])
        assert agent.light.pending.base > number
        gateway = RecordAdapter(agent)
        assert gateway.observe([Outcome(decision_id=f"d{number}", reward=1.0)]).late == 1
        assert store.outcome_parts(number)[-1].served[0] == late.served[row]


WINDOW = 100.0


class Moving:
    """A clock that is set by hand."""

    now = 5000.0

    def __call__(self) -> float:
        return self.now


def asked(clock, store=None, **settings):
    settings = {"reward": RewardConfig(low=0.0, high=1.0, window=WINDOW)} | settings
    return RecordAdapter(Agent(config(**settings), store or MemoryStore(), KEY), clock)


def requests(count):
    features = {"a": 0.1, "b": 0.2}
    return [Request(request_id=f"q{i}", routed="slow", features=features) for i in range(count)]


def test_the_window_counts_and_not_the_sweep():
    """Dated 5,000 s after their decisions, for a window of 100 s, and no sweep ever ran: all late.
    Exactly at the window's end they count."""
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(3))
    outcomes = traffic.outcomes(agent.decide(traffic.requests(256)))
    window = agent.config.reward.window
    late = replace(outcomes, at=outcomes.at + 50 * window)
    accepted = agent.observe(late)
    assert (accepted.rows, accepted.late) == (0, 256)
    moments = agent.answers.view().moments
    assert moments.exp.count.sum() + moments.obs.count.sum() == 0
    assert agent.answers.view().certified.overall.missing == 256
    assert agent.expire(traffic.at + 1e6) == 0, "they are closed already"
    just = traffic.outcomes(agent.decide(traffic.requests(20)))
    assert agent.observe(replace(just, at=just.at + window)).rows == 20
    agent.observe(late)
    assert Agent(config(), agent.store, KEY).fold.to_bytes() == agent.fold.to_bytes()


@pytest.mark.parametrize(("dated", "late"), [(None, 1), (5001.0, 1), (5101.0, 1), (5310.0, 1)])
def test_no_time_that_a_part_carries_brings_it_back(dated, late):
    """Backdated into its window, after it, or left out: what came after 101 s came too late."""
    clock = Moving()
    door = asked(clock)
    door.decide(requests(1))
    clock.now += WINDOW + 1.0
    part = Outcome(request_id="q0", outputs={"u": 0.1, "v": 0.2}, reward=0.5, at=dated)
    accepted = door.observe([part])
    assert (accepted.rows, accepted.late) == (1 - late, late)
    again = door.observe([part])
    assert (again.rows, again.duplicates) == (0, 1)
    assert door.agent.store.next_seq == 3, "a decision, its expiry, a part"


def test_a_part_that_says_itself_that_it_is_after_the_window_is_late():
    clock = Moving()
    door = asked(clock)
    door.decide(requests(2))
    clock.now += 1.0
    accepted = door.observe([Outcome(request_id="q0", reward=0.5, at=clock.now + WINDOW)])
    assert accepted.late == 1
    assert door.observe([Outcome(request_id="q1", reward=0.5, at=clock.now)]).rows == 1


def test_what_is_reported_from_the_future_is_refused():
    door = asked(Moving())
    door.decide(requests(1))
    message = "at row 0: 6000.000 .* is 1,000 s after the agent's clock, at most 300 s"
    with pytest.raises(AgentError, match=message):
        door.observe([Outcome(request_id="q0", reward=0.5, at=6000.0)])
    assert door.agent.store.next_seq == 1


def test_a_metric_after_the_window_is_late_even_of_a_complete_decision():
    """The decision keeps what came in time, and is folded with it."""
    clock = Moving()
    door = asked(clock, guardrails=[GuardrailConfig(name="errors", limit=0.2)])
    door.decide(requests(2))
    outputs = {"u": 0.1, "v": 0.2}
    door.observe([Outcome(request_id="q1", outputs=outputs, reward=0.5)])
    clock.now += WINDOW + 1.0
    assert door.observe([Outcome(request_id="q1", metrics={"errors": 1.0})]).late == 1
    table = door.agent.light.pending
    assert np.isnan(table.metrics[1]).all()
    moments = door.agent.answers.view().moments
    assert moments.exp.count.sum() + moments.obs.count.sum() == 1
    door.agent.ingest(Traffic(np.random.default_rng(0)).observations(CHUNK))
    moments = door.agent.fold.moments
    assert moments.exp.count.sum() + moments.obs.count.sum() == CHUNK - 5 + 1
    rebuilt = Agent(door.agent.config, door.agent.store, KEY)
    assert rebuilt.fold.to_bytes() == door.agent.fold.to_bytes()


def test_a_window_that_changes_later_changes_nothing_that_was():
    """What was late under the old window is late when the log is folded under the new one."""
    clock = Moving()
    door = asked(clock)
    door.decide(requests(1))
    clock.now += WINDOW + 1.0
    assert door.observe([Outcome(request_id="q0", reward=0.5)]).late == 1
    longer = config(reward=RewardConfig(low=0.0, high=1.0, window=10 * WINDOW))
    again = Agent(longer, door.agent.store, KEY, at=clock.now)
    assert again.late == 1
    assert not again.light.pending.has_reward[0]


def test_without_a_window_nothing_is_ever_late():
    clock = Moving()
    door = asked(clock, reward=RewardConfig(low=0.0, high=1.0))
    door.decide(requests(1))
    clock.now += 1e9
    assert door.observe([Outcome(request_id="q0", reward=0.5)]).rows == 1
