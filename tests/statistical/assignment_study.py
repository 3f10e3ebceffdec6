"""Requests to `decided` of every context-free assignment, over Garivier & Kaufmann's bound:
`python tests/statistical/assignment_study.py [--runs 200] [--only NAME] [--policies A,B]`.

The experiments are those of the planner: the shares that ship, the bounded sequence with the
weights of a plan of the right size, and rules frozen for a fiftieth of the requests so far. A new
assignment takes part once plans can simulate it. `contrast` depends on contexts and takes no part.
"""

from __future__ import annotations

import argparse
import zlib

import numpy as np
from speed import lower_bound

from equipoise.agent.inference.certificate import Sequence
from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.planning.simulation import paths
from equipoise.agent.planning.simulation.forward import Design, expected_end, simulate

DELTA, RATE, FLOOR_SHARE = 0.05, 0.4, 0.1
LOOKS, FIRST, LAST = 320, 0.02, 12.0
"""Looks, and the shares of the expected end under uniform shares where they start and stop."""

WORLDS = {
    "2, ahead by .1": (0.5, 0.6),
    "4, ahead by .1": (0.5, 0.5, 0.5, 0.6),
    "5, ahead by .1": (*(0.5,) * 4, 0.6),
    "15, ahead by .1": (*(0.5,) * 14, 0.6),
    "4, close runner-up": (0.4, 0.45, 0.55, 0.6),
    "4, steps": (0.3, 0.4, 0.5, 0.6),
    "2, .95 over .92": (0.92, 0.95),
    "4, .95 over .92": (0.92, 0.92, 0.92, 0.95),
    "5, .95 over .92": (*(0.92,) * 4, 0.95),
    "4, .95, close runner-up": (0.8, 0.85, 0.92, 0.95),
}


def thompson(counts, means, variances, costs, epsilon, delta):
    """(N, K) chances to be the best."""
    known = (counts > 1).all(axis=1, keepdims=True)
    noise = np.where(known, variances / np.maximum(counts, 1.0), 1.0)
    chance = paths.best_chances(np.where(known, means, 0.0), noise)
    return np.where(known, chance, 1.0 / counts.shape[1])


def run(values, assignment, runs, seed):
    """Median requests to `decided` over the bound, its standard error, the shares of runs decided
    and of wrong decisions, and the mean reward of a randomized request over that of uniform ones
    (runs that did not end count as inf and with what they had spent)."""
    worth = np.tile(np.asarray(values, float), (runs, 1))
    size, spread = len(values), float(np.mean([value * (1.0 - value) for value in values]))
    bound = lower_bound(values, DELTA)
    plain = Design(
        assignment=assignment,
        sequence=Sequence.BOUNDED,
        values=worth,
        variances=worth * (1.0 - worth),
        explained=np.zeros(runs),
        rate=np.full(runs, RATE),
        floor=np.full(runs, FLOOR_SHARE / size),
        binary=True,
        costs=np.full(size, np.nan),
        lost=np.zeros(size),
        candidates=size + 1,
        delta=DELTA,
        prior=EraPrior(4.0 * bound / RATE, spread, np.full(size, 1.0 / size)),
        planned=np.full(runs, 4.0 * bound / RATE),
    )
    trail = np.round(np.geomspace(FIRST, LAST, LOOKS)[:, None] * expected_end(plain)[None, :])
    ends = simulate(plain, np.random.default_rng(seed), trail=np.maximum.accumulate(trail))
    decided = np.isfinite(ends.requests)
    ratios = np.where(decided, ends.counts.sum(axis=1) / bound, np.inf)
    reward = (ends.counts * worth).sum(axis=1) / ends.counts.sum(axis=1) - np.mean(values)
    wrong = decided & (ends.model != int(np.argmax(values)))
    return {
        "ratio": float(np.median(ratios)),
        "error": median_error(ratios),
        "decided": float(decided.mean()),
        "wrong": float(wrong.mean()),
        "reward": float(reward.mean()),
    }


def median_error(values):
    """Standard error of a median: half the distance between the order statistics one standard
    deviation of their rank to either side; inf where they are."""
    values = np.sort(values)
    middle, step = len(values) / 2.0, np.sqrt(len(values)) / 2.0
    low = values[max(int(np.floor(middle - step)), 0)]
    high = values[min(int(np.ceil(middle + step)), len(values) - 1)]
    return float((high - low) / 2.0) if np.isfinite(high) else float("inf")


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--only", default="", help="worlds whose name contains this")
    parser.add_argument("--policies", default="", help="these only, separated by commas")
    options = parser.parse_args(arguments)
    paths.ASSIGNMENTS.setdefault("thompson", thompson)
    names = options.policies.split(",") if options.policies else list(paths.ASSIGNMENTS)
    print("| world | bound |", " | ".join(names), "|")
    print("|---|---:|" + "---:|" * len(names))
    for world, values in WORLDS.items():
        if options.only not in world:
            continue
        parts = []
        for name in names:
            found = run(values, name, options.runs, zlib.crc32(world.encode()))
            short = "" if found["decided"] == 1.0 else f", {found['decided']:.0%} decided"
            bad = f", {found['wrong']:.1%} wrong" if found["wrong"] else ""
            parts.append(
                f"{found['ratio']:.2f} ± {found['error']:.2f} ({found['reward']:+.3f}{short}{bad})"
            )
        print(f"| {world} | {lower_bound(values):,.0f} |", " | ".join(parts), "|", flush=True)


if __name__ == "__main__":
    main()
