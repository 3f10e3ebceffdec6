"""The stop rule that gateways ship, on success rates near 0 and 1, beside the certified ones.

Track-and-stop in common use stops with leader L once
    min over i of  (gap_i + epsilon)^2 / (2 (v_L / n_L + v_i / n_i))  >  ln((1 + ln N) / delta)
with plug-in variances, N rewards in all and no correction for the number of models. A model that
has not failed yet, or not succeeded yet, has variance 0.
"""

from __future__ import annotations

import numpy as np
from many_runs import Setup, simulate
from sequences import Asymptotic, Bounded, Declared, PerModel
from streams import Stream
from watchers import FirstDecision

from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence

SETTINGS = (((0.93, 0.99), 0.03), ((0.02, 0.06), 0.03), ((0.01, 0.05), 0.02))
FIRST_LOOK = 10
"""Rewards per model before the first look."""
ROWS = 4000
DELTA = 0.05


def stop_rule(values, epsilon, runs, seed, rows=ROWS, delta=DELTA):
    """(share of runs that stop on a model more than epsilon worse than the best, share that stop).

    Rewards come in turn, one of each of the two models; every pair is a look.
    """
    rng = np.random.default_rng(seed)
    rewards = rng.random((runs, rows // 2, 2)) < np.array(values)
    count = np.arange(1, rows // 2 + 1)
    mean = rewards.cumsum(axis=1) / count[:, None]
    spread = (mean * (1.0 - mean)).sum(axis=2) / count
    gap = np.abs(mean[..., 0] - mean[..., 1])
    with np.errstate(divide="ignore"):
        statistic = (gap + epsilon) ** 2 / (2.0 * spread)
    stops = statistic > np.log((1.0 + np.log(2.0 * count)) / delta)
    stops[:, : FIRST_LOOK - 1] = False
    stopped = stops.any(axis=1)
    leader = mean[np.arange(runs), stops.argmax(axis=1)].argmax(axis=1)
    wrong = stopped & (max(values) - np.array(values)[leader] > epsilon)
    return float(wrong.mean()), float(stopped.mean())


def certified(values, epsilon, runs, seed, rows=ROWS, delta=DELTA):
    """By sequence: (share of wrong decisions, share decided), on the same kind of traffic."""
    setup = Setup(Stream(tuple(values), rows), rate=1.0)
    level = levels.decision_level(delta, len(values))
    sequences = {
        "bounded": Bounded(level, setup),
        "per-model": PerModel(level),
        "per-model as it ships": Declared(Sequence.PER_MODEL, level, setup),
        "asymptotic as it ships": Declared(Sequence.ASYMPTOTIC, level, setup),
        "asymptotic from 2 of the rarer outcome": Asymptotic(level, setup, 2.0),
    }
    watchers = {
        name: FirstDecision(sequence, len(values), epsilon) for name, sequence in sequences.items()
    }
    simulate(setup, runs, seed, list(watchers.values()))
    bad = np.array([max(values) - v > epsilon for v in values])
    return {
        name: (float((bad[w.winner] & (w.winner >= 0)).mean()), float((w.winner >= 0).mean()))
        for name, w in watchers.items()
    }
