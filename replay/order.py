"""The order of a replay: its options and their defaults, checks, settings and description."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, get_args

import msgspec

from equipoise.agent.config import SequenceName
from equipoise.agent.estimators.base import FAMILIES
from equipoise.agent.maintenance.atomic_files import whole_folder
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark, has_own_rewards
from equipoise.replay.benchmarks.base import OptionError
from equipoise.replay.harness.cell_cache import cells_beside, holds_cells
from equipoise.replay.harness.stream import StreamSettings
from equipoise.replay.harness.sweep import Cell
from equipoise.replay.worlds import World, WorldOptions
from equipoise.replay.worlds.options import (
    UNCHANGED_WORLD,
    inventions,
    parse_options,
    traffic_is_routed,
)

if TYPE_CHECKING:
    import pandas as pd

    from equipoise.replay.findings.findings import Findings

DEFAULTS: dict[str, Any] = {
    "policies": ["uniform", "top-two", "track-and-stop"],
    "alphas": [0.5],
    "confoundings": [1.0],
    "seeds": 5,
    "obs": 5000,
    "exp_rate": 0.1,
    "delta": 0.05,
    "epsilon": 0.0,
    "sequence": "bounded",
    "world": [],
    "benchmark_options": [],
    "jobs": 0,
    "force": False,
    "as_json": False,
    "out": Path("runs/replay"),
}
"""Of the options that are not None where nobody gives them."""
_UNCHANGED = {"alphas": [1.0], "confoundings": [0.0], "obs": 0, "exp_rate": 1.0}
DEFAULT_BUDGET = 1000
"""Randomized requests, where neither a budget nor a number of requests is given."""
INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells have it."""


@dataclass(frozen=True, slots=True)
class ReplayOrder:
    """The options of `equipoise replay`, parsed.

    estimators: None for all families. requests, budget: None for no limit of its own. out: None
    to write nothing. experiment: a study, None for a plain replay. progress: shown on standard
    error. scheduler: address of the cluster to run on, None for this machine. Raises OptionError
    for a number out of its range.
    """

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
    out: Path | None
    store: Path | None
    force: bool
    as_json: bool
    experiment: str | None = None
    benchmark_options: Sequence[str] = ()
    sequence: SequenceName = "bounded"
    progress: bool = True
    scheduler: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.exp_rate <= 1:
            raise OptionError("exp_rate", f"{self.exp_rate} is not within (0, 1]")
        if not 0 < self.delta < 1:
            raise OptionError("delta", f"{self.delta} is not within (0, 1)")
        for name in ("epsilon", "obs", "jobs"):
            if getattr(self, name) < 0:
                raise OptionError(name, f"{getattr(self, name)} is negative")
        for name in ("seeds", "requests", "budget"):
            count = getattr(self, name)
            if count is not None and count < 1:
                raise OptionError(name, f"{count} is not 1 or more")
        if self.scheduler is not None and not self.scheduler.strip():
            raise OptionError("scheduler", "is empty; give the address of a scheduler")
        if self.sequence not in get_args(SequenceName):
            words = ", ".join(get_args(SequenceName))
            raise OptionError("sequence", f"{self.sequence!r} is not one of {words}")
        for name, values, most in (
            ("alpha", self.alphas, 1),
            ("confounding", self.confoundings, 100),
        ):
            for value in values:
                if not 0 <= value <= most:
                    raise OptionError(name, f"{value:g} is not within [0, {most}]")


def unchanged(options: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Options and defaults of a replay that changes nothing about the rewards of its benchmark.

    No taste, no types of users, no noise, and every request randomized, so that there is no usage
    log. Whoever asks for confounding asks for users who differ, and for a log that shows it.
    """
    confounded = any(options["confoundings"] or ())
    # Types of users that rate alike would hide nothing.
    world = [*UNCHANGED_WORLD[: 1 if confounded else 2], *options["world"]]
    asked = ("obs", "exp_rate") if confounded else ()
    own = {name: value for name, value in _UNCHANGED.items() if name not in asked}
    return {**options, "world": world}, {**DEFAULTS, **own}


Analysis: TypeAlias = "Callable[[pd.DataFrame, Mapping[str, Any]], Findings]"


@dataclass(frozen=True, slots=True)
class Prepared:
    """What an order comes to: what is run, and its description for who reads the results.

    analyse: results and meta to findings, None where a replay summarizes them its own way.
    """

    settings: StreamSettings
    benchmark: Benchmark
    sweep: list[Cell]
    meta: dict[str, Any]
    analyse: Analysis | None = None


def checked_families(names: Iterable[str]) -> tuple[str, ...]:
    """Names of estimator families without repeats. Raises OptionError for one that is none."""
    families = tuple(dict.fromkeys(names))
    for name in families:
        if name not in FAMILIES:
            raise OptionError("estimators", f"{name!r} is not one of {', '.join(FAMILIES)}")
    return families


def checked_policies(names: Iterable[str]) -> tuple[str, ...]:
    """Names of policies without repeats. Raises OptionError for one that is none."""
    policies = tuple(dict.fromkeys(names))
    for name in policies:
        try:
            policy(name)
        except ValueError as error:
            raise OptionError("policies", f"{error}") from None
    return policies


@contextmanager
def result_folder(order: ReplayOrder) -> Iterator[tuple[Path | None, Path | None]]:
    """Yield the folder to write results into, which appears whole, and that of finished cells.

    Finished cells outlive an interruption, which ends the program with a line on how to go on.
    Both are None where nothing is to be written.
    """
    if order.out is None:
        yield None, None
        return
    with cells_beside(order.out) as cells:
        try:
            with whole_folder(order.out, replace="summary.json" if order.force else None) as folder:
                yield folder, cells
        except KeyboardInterrupt:
            advice = "nothing had finished."
            if holds_cells(cells):
                advice = (
                    "what has finished is kept; give the same command again to go on from there."
                )
            print(f"equipoise: interrupted: {advice}", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None


def write_results(folder: Path, results: pd.DataFrame, summary: Mapping[str, Any]) -> str:
    """Write results.parquet and summary.json; return the latter's text."""
    results.to_parquet(folder / "results.parquet", index=False)
    text = msgspec.json.format(msgspec.json.encode(summary), indent=2) + b"\n"
    (folder / "summary.json").write_bytes(text)
    return text.decode()


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
    benchmark: Benchmark,
    settings: StreamSettings,
    order: ReplayOrder,
    variants: Iterable[WorldOptions] = (),
) -> dict[str, Any]:
    """What a reader of the results needs to know, truth and inventions included.

    variants: worlds besides the one of the settings.
    """
    from importlib.metadata import version

    scenarios = [
        describe_world(
            World(benchmark, replace(settings.world, alpha=alpha, confounding=confounding))
        )
        for alpha in order.alphas
        for confounding in order.confoundings
    ]
    worlds = [
        replace(world, alpha=alpha, confounding=confounding)
        for world in (list(variants) or [settings.world])
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
        "invented": [
            {"name": each.name, "detail": each.detail}
            for each in inventions(benchmark, worlds, order.obs, order.exp_rate)
        ],
        "own_rewards": has_own_rewards(order.benchmark),
        "scale": benchmark.scale,
        "usage_log": traffic_is_routed(order.obs, order.exp_rate),
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
