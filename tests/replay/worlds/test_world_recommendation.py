"""In every kind of world a recommendation lies within what is certified; at any checkpoint."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from equipoise.agent.estimators import FAMILIES
from equipoise.replay.benchmarks import load
from equipoise.replay.harness.stream import StreamSettings, experiment, run_stream
from equipoise.replay.worlds import World, WorldOptions

WORLDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "confounded": {"confounding": 3.0, "alpha": 0.1},
    "skilled routing": {"routing_skill": 3.0},
    "rising": {"drift": 0.9, "drift_over": 600},
    "the best falls": {"drift": -0.9, "drift_of": "best", "drift_over": 600},
    "a change": {"drift": 0.8, "drift_of": "worst", "drift_shape": "change", "drift_over": 300},
    "late by reward": {"delay": 100.0, "delay_by_reward": 1.0},
    "missing by reward": {"missing": 0.1, "missing_by_reward": 0.6},
    "rarely delivered": {"undelivered": 0.3},
    "fallbacks": {"noncompliance": 0.3},
    "a wrong simulator": {"simulator_drift": 1.5, "simulator_missing": 0.2},
}


@pytest.mark.parametrize("name", list(WORLDS))
@pytest.mark.parametrize("assignment", ["track-and-stop", "top-two"])
def test_it_contradicts_nothing_that_is_certified(name: str, assignment: str) -> None:
    """Seeded, but what is tested can never fail: the recommended value lies within the ends of its
    model, and no other candidate is certified to be better."""
    world = World(
        load("semisynthetic", contexts=60, models=3, seed=2), WorldOptions(**WORLDS[name])
    )
    settings = StreamSettings(requests=900, exp_rate=0.6, obs=300, batch=50, refresh=100)
    seen = 0
    for checkpoint in run_stream(
        world, experiment(world, settings, "fixed-rate", assignment, "hierarchical"), settings, 1
    ):
        agent = checkpoint.agent
        certified = agent.answers.certified()
        for family in (None, *FAMILIES):
            answer = agent.answers.recommendation(family)
            if not np.isfinite(answer.value):
                continue  # no value is told without its error
            seen += 1
            at = agent.models.index(answer.model)
            assert certified.lower[at] - 1e-9 <= answer.value <= certified.upper[at] + 1e-9
            assert (certified.contrasts[:, at] <= 1e-9).all() or answer.action != answer.model
            assert answer.action in ("keep", answer.model)
            assert (certified.contrasts[:3, at] <= 1e-9).all()
            if np.isfinite(answer.routing_value):
                low, high = certified.lower[3], certified.upper[3]
                assert low - 1e-9 <= answer.routing_value <= high + 1e-9
    assert seen > 20
