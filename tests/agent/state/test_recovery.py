"""The state that a log begins with, where an older version wrote it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from traffic import KEY, Traffic, config, run

from equipoise.agent.agent import Agent
from equipoise.agent.config import RewardConfig
from equipoise.agent.moments.codec import StateFormatError, decode, encode
from equipoise.agent.state.recovery import grown
from equipoise.store.memory import MemoryStore

ADDED = (
    "certified.left_out",
    "open.rewarded",
    "pending.closed_by",
    "pending.filled",
    "pending.summed",
    "pending.waits",
    "watch.limited",
    "watch.panel.drift.limited",
    "watch.panel.floors.by",
)


def live():
    """An agent whose newest rewards came without outputs."""
    agent, traffic = Agent(config(), MemoryStore(), KEY), Traffic(np.random.default_rng(3))
    agent.simulate(traffic.simulations())
    run(agent, traffic, 40)
    outcomes = traffic.outcomes(agent.decide(traffic.requests(30)))
    agent.observe(replace(outcomes, outputs=np.full((30, 2), np.nan)))
    return agent


def older(state):
    """The same as the first version kept it."""
    arrays, fields = decode(state)
    for name in ADDED:
        del arrays[name]
    for name in arrays:
        if name.startswith("certified.") and name.endswith("counts"):
            arrays[name] = arrays[name][:2]
    return encode(arrays, fields)


def test_it_becomes_the_state_of_this_version():
    agent = live()
    state, empty = agent.fold.to_bytes(), Agent(config(), MemoryStore(), KEY).fold.to_bytes()
    got, _ = decode(grown(older(state), empty))
    expected, _ = decode(state)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        if name not in ("watch.panel.floors.by", "moments"):
            np.testing.assert_array_equal(got[name], array, err_msg=name)


def test_a_state_that_lacks_nothing_is_left_alone():
    agent = live()
    empty = Agent(config(), MemoryStore(), KEY).fold.to_bytes()
    assert grown(agent.fold.to_bytes(), empty) == agent.fold.to_bytes()


def test_what_a_newer_version_kept_is_refused():
    agent = live()
    arrays, fields = decode(agent.fold.to_bytes())
    with pytest.raises(StateFormatError, match=r"pending\.hue are not known here"):
        grown(
            encode({**arrays, "pending.hue": arrays["pending.rate"]}, fields),
            agent.fold.to_bytes(),
        )


def test_what_the_older_version_had_summed_is_not_summed_again(short_chunks):
    """It added a request when its reward and outputs were there, whatever a missing one is worth;
    this one adds it when the watermark passes, but for those."""
    settings = config(reward=RewardConfig(low=0.0, high=1.0, window=100.0, missing=0.5))
    agent, traffic = Agent(settings, MemoryStore(), KEY), Traffic(np.random.default_rng(3))
    waiting = agent.decide(traffic.requests(1))
    run(agent, traffic, 60)
    empty = Agent(settings, MemoryStore(), KEY).fold.to_bytes()
    state = grown(older(agent.fold.to_bytes()), empty)
    again = Agent(settings, agent.store, None)
    again.fold.load_bytes(state)
    before = again.answers.view().moments.arms.count.sum()
    settled = again.light.pending.folded[: again.light.pending.size]
    assert np.count_nonzero(settled) > 1000
    again.light.pending.reward[0], again.light.pending.has_reward[0] = 1.0, True
    again.answers._view = None
    drawn = np.count_nonzero(again.light.pending.randomized[: len(settled)] & ~settled)
    assert again.answers.view().watermark > 1000
    assert (
        again.answers.view().moments.arms.count.sum() - before <= drawn + waiting.randomized.sum()
    )
