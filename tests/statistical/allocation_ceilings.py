"""The most that any gate, and any weighing of prices, could gain on a benchmark.

    python tests/statistical/allocation_ceilings.py semisynthetic swebench:PATH alpacaeval:PATH

Gates. Streams under contrast x contrast at a rate of .2, alpha = .5, omega = 1. After 50 and 300
randomized requests, over recent traffic: the mean best cut (`policies.design`) of a randomized
request under the gate, and were the whole rate spent on the fifth of requests with the largest
cuts, over its mean under a fixed rate; and the mean cut under the contrast assignment over that
under uniform shares. A cut of variance per request of 1.56 is what a fifth less RMSE would take.

Prices. Money for the contrasts of the best model with its three closest challengers at equal
precision, each model learnt from its own rewards: optimal shares blind to prices over optimal
shares that know them (Neyman 1934: weight^(1/2) against (weight / price)^(1/2)), with the weights
3, 1, 1, 1.
"""

from __future__ import annotations

import sys

import numpy as np

from equipoise.policies.design import context_cuts
from equipoise.replay.benchmarks import load_from_texts
from equipoise.replay.harness.stream import StreamSettings, experiment, run_stream
from equipoise.replay.worlds import World, WorldOptions

SEEDS, RATE, MARKS = 5, 0.2, (50, 300)
FAMILIES = ("hierarchical", "representation-exp")
SETTINGS = StreamSettings(3000, exp_rate=RATE, budget=300, obs=20_000, batch=25, refresh=250)


def gains(agent) -> tuple[float, float, float]:
    """Of the gate, of the best gate there could be, of the assignment; 1 is no gain."""
    snapshot = agent.answers.snapshot()
    cuts = context_cuts(snapshot).each(snapshot.contexts)
    best = np.sort(cuts.max(axis=1))
    rate = agent.state.policy.freeze(snapshot).gate.rates(snapshot.contexts)
    gate = rate @ cuts.max(axis=1) / rate.sum()
    ceiling = best[-round(RATE * len(best)) :].mean()
    assigned = ((cuts**2).sum(axis=1) / cuts.sum(axis=1)).mean()
    return gate / best.mean(), ceiling / best.mean(), assigned / cuts.mean()


def price_saving(world: World) -> float:
    """How many times less money at equal precision, at best."""
    order = np.argsort(-world.values)[:4]
    price = world.benchmark.cost.mean(axis=0)[order]
    root = np.sqrt([3.0, 1.0, 1.0, 1.0])
    return float(root.sum() * (price * root).sum() / (root * np.sqrt(price)).sum() ** 2)


def print_prices(name: str) -> None:
    for alpha in (0.0, 0.5, 1.0):
        world = World(load_from_texts(name, []), WorldOptions(alpha=alpha, confounding=1.0))
        if np.isfinite(world.benchmark.cost).all():
            print(
                f"{world.benchmark.name}: knowing prices saves at most"
                f" {price_saving(world):.2f} times at alpha = {alpha:g}"
            )


def main(names: list[str]) -> None:
    for name in names:
        print_prices(name)
    print(f"{'benchmark':<16}{'family':<20}{'EXP':>5}{'gate':>8}{'ceiling':>9}{'assignment':>12}")
    for name in names:
        world = World(load_from_texts(name, []), WorldOptions(alpha=0.5, confounding=1.0))
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
