"""What a benchmark and a world say to a planner: values, variances, prices, today's routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from equipoise.agent.errors import PlanError
from equipoise.agent.planning.problem import Problem
from equipoise.agent.planning.request import read_request
from equipoise.replay.benchmarks import Benchmark, load_as_told
from equipoise.replay.worlds import World
from equipoise.replay.worlds.options import parse_options
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
    result: Floats = np.full(len(total), np.nan)
    np.divide(total, rows, out=result, where=rows > 0)
    return result


def attainable_share(world: World) -> float:
    """Share of a reward's variance that a linear scorer of context and outputs explains at best.

    Of the variance within a model, averaged over models: what replays (SIM) could take out of the
    certified interval once the scorer is learned.
    """
    contexts, models = world.outputs.shape[:2]
    x = np.repeat(world.benchmark.x[:, None, :], models, axis=1)
    features = np.concatenate([x, world.outputs], axis=2)
    features = features - features.mean(axis=0)
    target = world.means.mean(axis=1) - world.means.mean(axis=(0, 1))
    flat, wanted = features.reshape(contexts * models, -1), target.reshape(-1)
    fitted = flat @ np.linalg.lstsq(flat, wanted, rcond=1e-9)[0]
    left = ((wanted - fitted) ** 2).mean()
    share = ((wanted**2).mean() - left) / reward_variances(world).mean()
    return float(np.clip(share, 0.0, 0.95))


def of_benchmark(name: str, world_options: list[str], given: Mapping[str, Any]) -> Problem:
    """The problem of a benchmark (NAME or NAME:PATH) in a world, from its true values.

    given: fields of a plan's request; models, rewards and prices are the benchmark's.
    Raises BenchmarkError, WorldError or PlanError.
    """
    benchmark = load_as_told(name, [])
    world = World(benchmark, parse_options(world_options))
    fixed = {"models": len(benchmark.models), "reward_low": 0.0, "reward_high": 1.0}
    taken = sorted(set(given) & {*fixed, "reward_rate", "reward_sd", "price", "prices", "maximise"})
    if taken:
        raise PlanError(taken[0], given[taken[0]], f"none: {benchmark.name} has its own")
    request = read_request({**fixed, **given})
    rated, missing = Problem.of_missing(request, len(benchmark.models))
    return Problem(
        source="benchmark",
        request=request,
        names=benchmark.models,
        values=world.values,
        variances=None if world.options.reward == "bernoulli" else reward_variances(world),
        rated=rated,
        missing=missing,
        prices=prices(benchmark),
        routing=world.routing_value,
        scale=1.0,
        candidates=len(benchmark.models) + 1,
        explained=float(given.get("explained", 0.0)),
        attainable=attainable_share(world),
        read=benchmark.x.shape[1] + benchmark.outputs.shape[2],
    )
