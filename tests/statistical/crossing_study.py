"""How often one bound ever passes the truth where it is as sharp as it can be:
`python tests/statistical/crossing_study.py [--runs 2000] [--out docs/crossing.md]`.

One-sided bounds at a nominal 10%, with centres and predictions set to the truth, which no
experiment has: the squares are then as small as they can be. A share `RATE` of the rows is
randomized, with equal shares of the models. Each run is read at every row up to 100, then at rows
2% apart, with the weights of eras without a plan, of a plan that is right, and of plans that are
off. The evidence is the shipped one, the sums are taken here from the definition of the score. One
core, some five minutes.
"""

from __future__ import annotations

import argparse
import zlib
from pathlib import Path

import numpy as np
from many_runs import look_times
from markdown_text import percent, table

from equipoise.agent.inference.levels import EraPrior, chances_of_best, decision_levels
from equipoise.agent.inference.mixture import evidence_of, tuned_weights, usual_caps

ROOT = Path(__file__).resolve().parents[2]
ALPHA, ROWS, RATE = 0.1, 20_000, 0.4
OFF = (0.01, 0.25, 1.0, 4.0, 100.0)
"""Planned size over the size of these runs. A hundred both ways stands for a hostile plan."""
WORLDS = {
    "2 models at .5": (2, 0.5),
    "2 models at .95": (2, 0.95),
    "2 models at .05": (2, 0.05),
    "5 models at .5": (5, 0.5),
    "15 models at .9": (15, 0.9),
}


def contrasts(models, value, looks, rng, runs):
    """(L, R, C) sums of xi and of xi^2 of V(0) - V(1) at the looks, at equal values, by cap.

    The score of model 0 less that of model 1, centred at the truth: mu is the value of each, cut
    as the cap has it.
    """
    caps = np.array([cap for cap in usual_caps(models, RATE) if np.isfinite(cap)])
    weight = models / RATE
    mu_low = np.minimum(value, caps / (weight - 1.0))
    mu_high = np.maximum(value, 1.0 - caps / (weight - 1.0))
    draw = rng.random((ROWS, runs))
    which = np.where(draw < 1.0 / weight, 0, np.where(draw < 2.0 / weight, 1, -1))
    reward = rng.random((ROWS, runs)) < value
    sums, squares = [], []
    for place, cap in enumerate(caps):
        low = mu_low[place] + (which == 0) * weight * (reward - mu_low[place])
        high = mu_high[place] + (which == 1) * weight * (reward - mu_high[place])
        xi = (low - high) / (cap + 2.0)
        # E[low] = E[high]: the difference has mean 0, and so its centre.
        sums.append(xi.cumsum(axis=0)[looks - 1])
        squares.append((xi * xi).cumsum(axis=0)[looks - 1])
    return np.stack(sums, axis=-1), np.stack(squares, axis=-1)


def crossing(name, runs, seed):
    """Share of runs that ever cross, by the weights: "equal" and the factors of OFF."""
    models, value = WORLDS[name]
    rng = np.random.default_rng(seed)
    looks = look_times(ROWS, apart=0.02)
    caps = np.array([cap for cap in usual_caps(models, RATE) if np.isfinite(cap)])
    variance = max(value * (1.0 - value), 0.01)
    kinds = {"equal": None} | {
        factor: tuned_weights(ROWS * factor, variance, caps, caps + 2.0, ALPHA) for factor in OFF
    }
    crossed = dict.fromkeys(kinds, 0)
    done = 0
    while done < runs:
        size = min(100, runs - done)
        sums, squares = contrasts(models, value, looks, rng, size)
        for kind, weights in kinds.items():
            evidence = evidence_of(sums, squares, weights)
            crossed[kind] += int((evidence > np.log(1.0 / ALPHA)).any(axis=0).sum())
        done += size
    return {kind: count / runs for kind, count in crossed.items()}


PRIORS = ("even", "right", "all on a wrong model", "drawn by a log of one error")
MODELS = 5
DELTA = 0.1


def decisions(value, gap, runs, seed):
    """Share of runs in which any model ever passes the best one, and of those that decide, by
    prior.

    MODELS models; the last is better than the others by gap. Centres and predictions are the
    truth and the plan is right. A wrong decision needs more: to pass all others at one look.
    """
    rng = np.random.default_rng(seed)
    values = np.full(MODELS, value)
    values[-1] += gap
    looks = look_times(ROWS, apart=0.02)
    caps = np.array([cap for cap in usual_caps(MODELS, RATE) if np.isfinite(cap)])
    active, even = np.ones(MODELS, dtype=bool), np.full(MODELS, 1.0 / MODELS)
    spread = value * (1.0 - value)
    said = np.clip(values + np.sqrt(spread) * 0.2 * rng.standard_normal(MODELS), 0.0, 1.0)
    drawn = chances_of_best(said, np.eye(MODELS) * 0.04 * spread, active)
    best = dict(zip(PRIORS, (even, np.eye(MODELS)[-1], np.eye(MODELS)[0], drawn), strict=True))
    plans = {name: EraPrior(float(ROWS), max(spread, 0.01), each) for name, each in best.items()}
    levels = {name: decision_levels(DELTA, active, plan) for name, plan in plans.items()}
    passed, decided = dict.fromkeys(PRIORS, 0), dict.fromkeys(PRIORS, 0)
    for _ in range(runs):
        excess, squares = pairs(values, looks, caps, rng)
        for name, plan in plans.items():
            alpha = levels[name]
            weights = tuned_weights(plan.requests, plan.variance, caps, caps + 2.0, alpha)
            above = evidence_of(excess, squares, weights) > np.log(1.0 / alpha)
            passed[name] += int(above[:, :-1, -1].any())
            decided[name] += int((above | np.eye(MODELS, dtype=bool)).all(axis=-1).any())
    return {name: (passed[name] / runs, decided[name] / runs) for name in PRIORS}


def pairs(values, looks, caps, rng):
    """(L, K, K, C) sums of xi at no difference, and of xi^2 around the true one, of one run."""
    weight, models = len(values) / RATE, len(values)
    index = rng.random(ROWS) * weight
    which = np.floor(index)[:, None] == np.arange(models)
    reward = rng.random(ROWS)[:, None] < values
    sums = np.empty((len(looks), models, models, len(caps)))
    squares = np.empty_like(sums)
    for place, cap in enumerate(caps):
        mu_low = np.minimum(values, cap / (weight - 1.0))
        mu_high = np.maximum(values, 1.0 - cap / (weight - 1.0))
        low = mu_low + which * weight * (reward - mu_low)
        high = mu_high + which * weight * (reward - mu_high)
        total = (low[:, :, None] - high[:, None, :]) / (cap + 2.0)
        centred = total - (values[:, None] - values) / (cap + 2.0)
        sums[..., place] = total.cumsum(axis=0)[looks - 1]
        squares[..., place] = (centred**2).cumsum(axis=0)[looks - 1]
    return sums, squares


DECISIONS = {"all at .5": (0.5, 0.0), "all at .9": (0.9, 0.0), "one .05 above .5": (0.5, 0.05)}


def page(crossed, decided, runs, few):
    error = 100.0 * np.sqrt(ALPHA * (1.0 - ALPHA) / runs)
    head = ["world", "equal weights", *(f"plan x {factor:g}" for factor in OFF)]
    rows = [[name, *(percent(rate) for rate in found.values())] for name, found in crossed.items()]
    lines = [
        "# Crossing of the sharpest bounds",
        "",
        "For users who want to know how far the bounded sequence is from its level. Written by "
        "`python tests/statistical/crossing_study.py`; do not edit by hand.",
        "",
        f"Share of {runs:,} runs of {ROWS:,} requests in which a one-sided bound of the difference "
        f"of two equal models ever passes 0, at a nominal {percent(ALPHA)}, a share of {RATE:g} "
        "randomized. Centres and predictions are set to the truth, the sharpest that can be. The "
        "standard error of a share at the nominal level would be "
        f"{error:.1f} points. A plan is the number of requests that the weights of the bets are "
        "laid for, as a multiple of those of the runs.",
        "",
        *table(head, rows),
        "",
        f"Share of {few:,} runs with {MODELS} models in which any model is ever certified above "
        f"the best one, at a nominal {percent(DELTA)}, by what was thought of who is best; in "
        "brackets that of runs that decide. A wrong decision needs more, to be above all others at "
        "once. Where all models are equal the last one stands for the best.",
        "",
        *table(
            ["world", *PRIORS],
            [
                [name, *(f"{percent(above)} ({percent(ends)})" for above, ends in found.values())]
                for name, found in decided.items()
            ],
        ),
        "",
    ]
    return "\n".join(lines)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=2000)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "crossing.md")
    options = parser.parse_args(arguments)
    few = max(options.runs // 4, 1)
    crossed, decided = {}, {}
    for name in WORLDS:
        crossed[name] = crossing(name, options.runs, zlib.crc32(name.encode()))
        print(name, crossed[name], flush=True)
    for name, (value, gap) in DECISIONS.items():
        decided[name] = decisions(value, gap, few, zlib.crc32(name.encode()))
        print(name, decided[name], flush=True)
    options.out.write_text(page(crossed, decided, options.runs, few))
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
