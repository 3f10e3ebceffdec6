"""What a benchmark and a world say to a planner: true values, variances, prices, today's routing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from equipoise.replay.benchmarks import Benchmark
from equipoise.replay.worlds import World
from equipoise.store.batches import Floats, Ints


def restricted(benchmark: Benchmark, models: Sequence[int] | Ints) -> Benchmark:
    """The benchmark with these models only, in this order."""
    kept = list(models)
    return replace(
        benchmark,
        models=tuple(benchmark.models[index] for index in kept),
        outputs=benchmark.outputs[:, kept],
        outcome=benchmark.outcome[:, kept],
        cost=benchmark.cost[:, kept],
    )


def reward_variances(world: World) -> Floats:
    """(K,) variance of a reward of each model over contexts, types and noise."""
    mean = world.means
    spread = mean * (1.0 - mean)
    if world.options.reward == "bounded":
        spread = spread / (1.0 + world.options.concentration)
    total: Floats = (spread + mean**2).mean(axis=(0, 1)) - mean.mean(axis=(0, 1)) ** 2
    return total


def prices(benchmark: Benchmark) -> Floats:
    """(K,) mean cost of a request in USD, NaN where none is known."""
    known = np.isfinite(benchmark.cost)
    total = np.where(known, benchmark.cost, 0.0).sum(axis=0)
    rows = known.sum(axis=0)
    return np.divide(total, rows, out=np.full(len(total), np.nan), where=rows > 0)
