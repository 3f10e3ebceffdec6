"""Simulator fidelity: exact factors, symmetric noise of any kind, truncated and shifted replays."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.monitors import Fidelity
from equipoise.agent.monitors.fidelity import BETS
from equipoise.replay.benchmarks.base import load
from equipoise.replay.worlds import World, WorldOptions

MODELS = ("a", "b", "c")
FEATURES = ("length", "cost")
ONES = np.ones(2)


def fed(live, simulated, model=None, scale=ONES, theta=None, features=FEATURES):
    monitor = Fidelity(MODELS, features)
    model = np.zeros(len(live), dtype=int) if model is None else model
    monitor.update(model, live, simulated, scale, theta)
    return monitor


def test_evidence_is_the_average_of_the_products_of_fair_factors():
    """Against 1 + tanh(h) multiplied out; the mean of 1 + tanh(±h) is 1 by symmetry."""
    rng = np.random.default_rng(0)
    live, simulated = rng.normal(size=(2, 40, 2))
    model, scale, theta = rng.integers(0, 3, 40), np.array([0.5, 2.0]), np.array([1.0, -3.0])
    check = fed(live, simulated, model, scale, theta).result()
    d = (live - simulated) / scale
    score = (live - simulated) @ theta / np.linalg.norm(theta * scale)
    total = 0.0
    for who, weight in [(model == m, 0.5 / 3) for m in range(3)] + [(model >= 0, 0.5)]:
        for column, share in ((d[:, 0], 0.25), (d[:, 1], 0.25), (score, 0.5)):
            for h in (column[who], column[who] * np.abs(column[who])):
                for bet in np.concatenate([-BETS, BETS]):
                    product = np.prod(1 + np.tanh(bet * h))
                    total += weight * share * product / (4 * len(BETS))
    assert check.figures["log_evidence"] == pytest.approx(np.log(total), rel=1e-9)


@pytest.mark.parametrize("tails", ["normal", "student", "rare"])
def test_faithful_replays_raise_no_alarm_whatever_their_noise(tails):
    """Live and replayed outputs of a request are two draws of the same thing. Of 80 runs of 500
    pairs with 5 looks each, more than 5 have probability 0.02% at the level of 1%."""
    rng = np.random.default_rng(1)

    def noise(size):
        if tails == "normal":
            return rng.normal(size=size)
        return rng.standard_t(1.5, size) if tails == "student" else 9.0 * (rng.random(size) < 0.03)

    alarms = 0
    for _ in range(80):
        monitor, ever = Fidelity(MODELS, FEATURES), False
        for _ in range(5):
            model = rng.integers(0, 3, 100)
            context = rng.normal(size=(100, 2)) * (1 + model[:, None])
            live, simulated = context + noise((100, 2)), context + noise((100, 2))
            monitor.update(model, live, simulated, ONES, np.array([0.1, 0.2]))
            ever |= monitor.result().status == "alarm"
        alarms += ever
    assert alarms <= 5


def pairs_of(world):
    """All (context, model) pairs of a world: model, live, simulated, and the replays' deviations"""
    replays = world.simulations()
    live = world.outputs.reshape(-1, world.outputs.shape[2])
    return replays.model, live, replays.outputs, replays.outputs.std(axis=0)


def test_a_tenth_of_outputs_cut_short_is_found_within_1000_pairs():
    """The world's own fault, on 10 random orders of pairs; the study needs 125 at the median."""
    world = World(load("semisynthetic"), WorldOptions(simulator_truncation=0.1))
    model, live, simulated, scale = pairs_of(world)
    rng = np.random.default_rng(2)
    for _ in range(10):
        at = rng.permutation(len(model))[:1000]
        monitor = Fidelity(world.models, world.output_names)
        monitor.update(model[at], live[at], simulated[at], scale)
        check = monitor.result()
        assert check.status == "alarm"
        assert "higher live" in check.sentence


def test_a_tenth_cut_short_is_found_where_outputs_vary_from_draw_to_draw():
    """Half a deviation of noise on either side (found in 60 of 60 runs, median 250 pairs)."""
    rng = np.random.default_rng(3)
    context = rng.normal(size=(1000, 2))
    live, simulated = (context + 0.5 * rng.normal(size=(1000, 2)) for _ in range(2))
    longest = simulated[:, 0] > np.quantile(simulated[:, 0], 0.9)
    simulated[longest, 0] = -2.5 + 0.5 * (simulated[longest, 0] + 2.5)
    check = fed(live, simulated).result()
    assert check.status == "alarm"
    assert "length is" in check.sentence


def test_a_faithful_world_is_fine():
    world = World(load("semisynthetic"), WorldOptions())
    model, live, simulated, scale = pairs_of(world)
    monitor = Fidelity(world.models, world.output_names)
    monitor.update(model, live, simulated, scale)
    assert monitor.result().status == "ok"


def test_faults_of_models_that_cancel_are_found_per_model():
    rng = np.random.default_rng(4)
    model = np.arange(800) % 2
    live = rng.normal(size=(800, 2))
    simulated = live + 0.3 * rng.normal(size=(800, 2))
    simulated[:, 1] += np.where(model == 0, 0.3, -0.3)
    check = fed(live, simulated, model).result()
    assert check.status == "alarm"
    assert check.models in ((0,), (1,))
    assert abs(check.figures["shift"]["cost"]) < 0.05


def test_a_score_shift_is_given_in_reward_units():
    live = np.tile([1.0, 0.0], (50, 1))
    check = fed(live, np.zeros((50, 2)), theta=np.array([0.02, 5.0])).result()
    assert check.figures["score_shift"][0] == pytest.approx(0.02)
    assert np.isnan(check.figures["score_shift"][1])


def test_features_that_cannot_be_compared_say_nothing():
    live, simulated = np.ones((100, 2)), np.zeros((100, 2))
    check = fed(live, simulated, scale=np.array([0.0, np.nan]))
    assert check.result().figures["log_evidence"] == pytest.approx(0.0, abs=1e-9)
    live[:] = np.nan
    assert fed(live, simulated).result().figures["log_evidence"] == pytest.approx(0.0, abs=1e-9)


def test_few_pairs_are_not_enough_to_be_sure():
    same = np.zeros((29, 2))
    assert fed(same, same).result().status == "unknown"
    assert fed(np.zeros((30, 2)), np.zeros((30, 2))).result().status == "ok"
