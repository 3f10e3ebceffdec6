"""The order: options of `equipoise replay`, parsed and checked, and what they describe."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from equipoise.agent.config import SequenceName
from equipoise.agent.errors import AgentError
from equipoise.agent.estimators.base import FAMILIES
from equipoise.agent.maintenance.atomic_files import whole_folder
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark
from equipoise.replay.harness.cell_cache import cells_beside, holds_cells
from equipoise.replay.harness.stream import StreamSettings
from equipoise.replay.worlds import World
from equipoise.replay.worlds.options import parse_options

DEFAULT_BUDGET = 1000


INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """The options of `equipoise replay`, parsed. estimators None: all families."""

    benchmark: str
    policies: list[str]
    estimators: list[str] | None
    alphas: list[float]
    confoundings: list[float]
    seeds: int
    obs: int
    requests: int | None
    exp_rate: float
    budget: int | None
    delta: float
    epsilon: float
    world: list[str]
    jobs: int
    out: Path
    store: Path | None
    force: bool
    as_json: bool
    experiment: str | None = None
    benchmark_options: Sequence[str] = ()
    sequence: SequenceName = "bounded"


def checked_families(names: Iterable[str]) -> tuple[str, ...]:
    """Names of estimator families without repeats. Raises AgentError for one that is none."""
    families = tuple(dict.fromkeys(names))
    for name in families:
        if name not in FAMILIES:
            raise AgentError(f"--estimators: {name!r} is not one of {', '.join(FAMILIES)}")
    return families


def checked_policies(names: Iterable[str]) -> tuple[str, ...]:
    """Names of policies without repeats. Raises AgentError for one that is none."""
    policies = tuple(dict.fromkeys(names))
    for name in policies:
        try:
            policy(name)
        except ValueError as error:
            raise AgentError(f"--policies: {error}") from None
    return policies


@contextmanager
def result_folder(order: ReplayOrder) -> Iterator[tuple[Path, Path]]:
    """Yield the folder to write results into, which appears whole, and that of finished cells.

    Finished cells outlive an interruption, which ends the program with a line on how to go on.
    """
    with cells_beside(order.out) as kept:
        try:
            replaced = "summary.json" if order.force else None
            with whole_folder(order.out, replace=replaced) as folder:
                yield folder, kept
        except KeyboardInterrupt:
            say = "nothing had finished."
            if holds_cells(kept):
                say = "what has finished is kept; give the same command again to go on from there."
            print(f"equipoise: interrupted: {say}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None


def stream_settings(order: ReplayOrder) -> StreamSettings:
    """Requests and budget from what was given: a budget alone implies the traffic it needs."""
    budget = order.budget
    if budget is None and order.requests is None:
        budget = DEFAULT_BUDGET
    requests = order.requests
    if requests is None and budget is not None:
        # Enough for the budget to be spent: five standard deviations and a refresh to spare.
        requests = math.ceil((budget + 5 * math.sqrt(budget)) / order.exp_rate) + 200
    return StreamSettings(
        requests=requests or 0,
        exp_rate=order.exp_rate,
        budget=budget,
        obs=order.obs,
        delta=order.delta,
        epsilon=order.epsilon,
        sequence=order.sequence,
        world=parse_options(order.world),
    )


def describe_run(
    benchmark: Benchmark, settings: StreamSettings, order: ReplayOrder
) -> dict[str, Any]:
    """What a reader of the results needs to know, truth included."""
    from importlib.metadata import version

    scenarios = [
        describe_world(
            World(benchmark, replace(settings.world, alpha=alpha, confounding=confounding))
        )
        for alpha in order.alphas
        for confounding in order.confoundings
    ]
    return {
        "benchmark": benchmark.name,
        "title": benchmark.title,
        "source": benchmark.source,
        "models": list(benchmark.models),
        "contexts": len(benchmark.x),
        "exclusions": dict(benchmark.exclusions),
        "scenarios": scenarios,
        "options": {
            "requests": settings.requests,
            "exp_rate": settings.exp_rate,
            "budget": settings.budget,
            "obs": settings.obs,
            "seeds": order.seeds,
            "delta": settings.delta,
            "epsilon": settings.epsilon,
            "sequence": settings.sequence,
            "world": order.world,
            "benchmark_options": list(order.benchmark_options),
        },
        "version": version("equipoise"),
    }


def describe_world(world: World) -> dict[str, Any]:
    """Where a scenario stands and what is true in it."""
    models = world.models
    return {
        "alpha": world.options.alpha,
        "confounding": world.options.confounding,
        "values": dict(zip(models, world.values.tolist(), strict=True)),
        "naive_limit": dict(zip(models, world.naive_limit.tolist(), strict=True)),
        "routing_value": float(world.routing_value),
    }
