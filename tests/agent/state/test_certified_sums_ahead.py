"""A view that goes on from an earlier one is, bit for bit, that of one who never looked."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, SETTINGS, Traffic, config, steps

from equipoise.agent.agent import Agent
from equipoise.agent.config import RewardConfig
from equipoise.agent.state.fold import Fold
from equipoise.agent.state.light_fold import CHUNK
from equipoise.store.batches import take
from equipoise.store.memory import MemoryStore


def same(agent: Agent) -> None:
    """The agent's view is that of one who reads the log for the first time."""
    other = Agent(agent.config, agent.store, KEY)
    ours, theirs = agent.fold.view(), other.fold.view()
    assert (ours.watermark, ours.start) == (theirs.watermark, theirs.start)
    np.testing.assert_array_equal(ours.predicted, theirs.predicted)
    assert ours.moments.to_bytes() == theirs.moments.to_bytes()
    sums = theirs.certified.arrays()
    for name, array in ours.certified.arrays().items():
        np.testing.assert_array_equal(array, sums[name], err_msg=name)
    checks = (each.fold.watched(view) for each, view in ((agent, ours), (other, theirs)))
    first, second = (panel.arrays() for panel in checks)
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("settings", [{}, *SETTINGS.values()], ids=["plain", *SETTINGS])
def test_looks_between_the_rows_change_nothing(settings):
    agent = Agent(config(**settings), MemoryStore(), KEY)
    stream, answer = steps(agent), None
    try:
        while True:
            step = stream.send(answer)
            answer = None
            if isinstance(step, tuple):
                call = agent
                for part in step[0].split("."):
                    call = getattr(call, part)
                answer = call(step[1])
            same(agent)
    except StopIteration:
        pass


def looked(**reward):
    """An agent in the middle of a chunk, three rules into it, that has been looked at after each;
    and the decisions of the first, whose outcomes all came."""
    settings = {"reward": RewardConfig(low=0.0, high=1.0, window=100.0, **reward)}
    agent, traffic = (
        Agent(config(**settings), MemoryStore(), KEY),
        Traffic(np.random.default_rng(1)),
    )
    agent.simulate(traffic.simulations())
    first = None
    for _ in range(3):
        decided = agent.decide(traffic.requests(40))
        outcomes = traffic.outcomes(decided)
        # Without outputs, so that more may come to them.
        agent.observe(replace(outcomes, outputs=np.full((40, 2), np.nan)))
        first = outcomes if first is None else first
        agent.fold.view()
        agent.refresh(review=False)
    assert agent.light.next_seq < CHUNK
    assert agent.fold.view().start == 0
    return agent, first


def test_what_comes_later_to_a_row_that_had_entered_is_seen():
    """Another model had answered: the row then counts as the worst case."""
    agent, outcomes = looked()
    before = agent.fold.view().certified.overall.score.low.copy()
    drawn = np.flatnonzero(np.arange(40) % 2 == 0)
    late = take(outcomes, drawn)
    blank = np.full(len(drawn), np.nan)
    late = replace(late, reward=blank, served=(late.served + 1) % 3, attempt=late.attempt + 1)
    agent.observe(late)
    assert not np.array_equal(agent.fold.view().certified.overall.score.low, before)
    same(agent)


def test_rows_of_ended_rules_enter_once(monkeypatch):
    agent, _ = looked()
    traffic = Traffic(np.random.default_rng(9))
    entered = []
    sums = type(agent.fold.certified)
    enter = sums._enter
    monkeypatch.setattr(
        sums, "_enter", lambda *given: entered.append(len(given[3])) or enter(*given)
    )
    agent.observe(traffic.outcomes(agent.decide(traffic.requests(10))))
    agent.fold.view()
    assert len(entered) <= 2  # not the rules before the one that has just ended


def test_a_state_that_is_loaded_forgets_what_was_looked_at():
    agent, _ = looked()
    state = agent.fold.to_bytes()
    other, _ = looked()
    fold: Fold = other.fold
    fold.load_bytes(state)
    same(other)


def test_replays_of_a_state_that_is_loaded_are_its_own():
    def replayed(more):
        agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(1))
        replays = traffic.simulations()
        agent.simulate(replace(replays, outputs=replays.outputs + more))
        agent.ingest(traffic.observations(CHUNK))
        return agent.fold

    one, other = replayed(0.0), replayed(1.0)
    one.view()
    one.load_bytes(other.to_bytes())
    assert one.view().moments.to_bytes() == other.view().moments.to_bytes()


def test_as_many_replays_of_another_version_are_others():
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(1))
    replays = traffic.simulations()
    agent.simulate(replays)
    agent.ingest(traffic.observations(CHUNK - agent.light.next_seq))
    same(agent)
    agent.controls.open_era("another version", renewed=(0,))
    of_it = take(replays, np.flatnonzero(replays.model == 0))
    agent.simulate(replace(of_it, outputs=of_it.outputs + 1.0))
    agent.ingest(traffic.observations(CHUNK - len(of_it)))
    assert agent.light.next_seq == 2 * CHUNK
    same(agent)
