"""How much a context tells about what a request is worth: the most that any gate could gain.

    python tests/statistical/gate_ceiling.py semisynthetic swebench:PATH alpacaeval:PATH frank:PATH

Streams under contrast x contrast at a rate of .2, alpha = .5, omega = 1. After 50 and 300
randomized requests, over recent traffic: the mean best cut (`policies.design`) of a randomized
request under the gate, and were the whole rate spent on the fifth of requests with the largest
cuts, over its mean under a fixed rate; and the mean cut under the contrast assignment over that
under uniform shares. A cut of variance per request of 1.56 is what a fifth less RMSE would take.
"""

from __future__ import annotations

import sys

import numpy as np

from equipoise.policies.design import context_cuts
from equipoise.replay.benchmarks import load_as_told
from equipoise.replay.settings import StreamSettings
from equipoise.replay.stream import experiment, run_stream
from equipoise.replay.worlds import World, WorldOptions

SEEDS, RATE, MARKS = 5, 0.2, (50, 300)
FAMILIES = ("hierarchical", "representation-exp")
SETTINGS = StreamSettings(3000, exp_rate=RATE, budget=300, obs=20_000, batch=25, refresh=250)


def gains(agent) -> tuple[float, float, float]:
    """Of the gate, of the best gate there could be, of the assignment; 1 is no gain."""
    snapshot = agent.snapshot()
    cuts = context_cuts(snapshot).each(snapshot.contexts)
    best = np.sort(cuts.max(axis=1))
    rate = agent.policy.freeze(snapshot).gate.rates(snapshot.contexts)
    gate = rate @ cuts.max(axis=1) / rate.sum()
    ceiling = best[-round(RATE * len(best)) :].mean()
    assigned = ((cuts**2).sum(axis=1) / cuts.sum(axis=1)).mean()
    return gate / best.mean(), ceiling / best.mean(), assigned / cuts.mean()


def main(names: list[str]) -> None:
    print(f"{'benchmark':<16}{'family':<20}{'EXP':>5}{'gate':>8}{'ceiling':>9}{'assignment':>12}")
    for name in names:
        world = World(load_as_told(name, []), WorldOptions(alpha=0.5, confounding=1.0))
        for family in FAMILIES:
            config = experiment(world, SETTINGS, "contrast", "contrast", family)
            found = {mark: [] for mark in MARKS}
            for seed in range(SEEDS):
                for checkpoint in run_stream(world, config, SETTINGS, seed):
                    if checkpoint.target in MARKS:
                        found[checkpoint.target].append(gains(checkpoint.agent))
            for mark, each in found.items():
                gate, ceiling, assignment = np.mean(each, axis=0)
                print(
                    f"{world.benchmark.name:<16}{family:<20}{mark:>5}"
                    f"{gate:>8.2f}{ceiling:>9.2f}{assignment:>12.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main(sys.argv[1:] or ["semisynthetic"])
