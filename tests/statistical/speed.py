"""How soon decisions are made, against Garivier & Kaufmann's lower bound."""

from __future__ import annotations

import numpy as np
from many_runs import Setup, simulate
from naive import NaiveZ
from sequences import Bounded, Declared
from streams import Stream
from watchers import FirstDecision

from equipoise.agent.inference import levels
from equipoise.agent.inference.certificate import Sequence
from equipoise.policies.assignments.track_and_stop import optimal_weights

GAPS = (0.2, 0.1, 0.05)
DELTA = 0.05
ROOM = 8.0
"""Rows go to this many times the lower bound."""


def lower_bound(values, delta=DELTA):
    """T* ln(1 / delta) randomized rewards, in its Gaussian form with the rewards' own variances:
    T* = 2 / max over w of min over i of gap_i^2 / (v_L / w_L + v_i / w_i)."""
    means = np.asarray(values, float)
    variances = means * (1.0 - means)
    weights = optimal_weights(means, variances, 0.0)
    leader = means.argmax()
    others = np.arange(len(means)) != leader
    share = variances / weights
    rate = (means[leader] - means[others]) ** 2 / (share[leader] + share[others])
    return 2.0 * np.log(1.0 / delta) / rate.min()


def decisions(models, gap, allocation, runs, seed, rate=0.4):
    """Median EXP to `decided` over the lower bound, and the share of wrong ones, by sequence."""
    values = (0.5,) * (models - 1) + (0.5 + gap,)
    bound = lower_bound(values)
    setup = Setup(Stream(values, int(ROOM * bound / rate)), allocation, rate)
    level = levels.decision_level(DELTA, models)
    sequences = {
        "bounded": Bounded(level, setup),
        "per-model": Declared(Sequence.PER_MODEL, level, setup),
        "asymptotic": Declared(Sequence.ASYMPTOTIC, level, setup, tuned=2.0 * bound / rate),
        "naive z": NaiveZ(level),
    }
    watchers = {name: FirstDecision(one, models) for name, one in sequences.items()}
    simulate(setup, runs, seed, list(watchers.values()))
    ratios = {name: _summary(w, models, bound) for name, w in watchers.items()}
    return {"bound": float(bound), "ratios": ratios}


def _summary(watcher, models, bound):
    """(median EXP to decided over the bound, share of runs that decided on another model)."""
    wrong = (watcher.winner >= 0) & (watcher.winner != models - 1)
    return float(np.median(watcher.at) / bound), float(wrong.mean())


SHARES = (0.5, 0.8, 0.9, 0.95, 0.99)


def split(values, runs, seed, rate=0.4):
    """Median EXP to `decided` over the lower bound, by the share of the level that the asymptotic
    sequence gets where it is declared, uniform draws."""
    models, bound = len(values), lower_bound(values)
    setup = Setup(Stream(values, int(ROOM * bound / rate)), "uniform", rate)
    level = levels.decision_level(DELTA, models)
    watchers = {
        share: FirstDecision(
            Declared(Sequence.ASYMPTOTIC, level, setup, tuned=2.0 * bound / rate, share=share),
            models,
        )
        for share in SHARES
    }
    simulate(setup, runs, seed, list(watchers.values()))
    return {f"{share:g}": _summary(w, models, bound)[0] for share, w in watchers.items()}


SPLIT_SETTINGS = {
    "gap .2 at .5": (0.5, 0.5, 0.5, 0.7),
    "gap .1 at .5": (0.5, 0.5, 0.5, 0.6),
    "gap .1 at .85": (0.85, 0.85, 0.85, 0.95),
    "gap .03 at .01": (0.01, 0.01, 0.01, 0.04),
}
