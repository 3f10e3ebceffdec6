"""`equipoise replay`: run a sweep, write its folder whole, print what it says."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from equipoise.agent.config import SequenceName
from equipoise.agent.errors import AgentError
from equipoise.agent.estimators.base import FAMILIES
from equipoise.agent.keyfile import write_key
from equipoise.agent.wholefolder import whole_folder
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark, load_as_told
from equipoise.replay.finished import cells_beside, holds_cells
from equipoise.replay.progress import shown_progress
from equipoise.replay.report import write_report
from equipoise.replay.settings import StreamSettings
from equipoise.replay.stream import experiment, run_stream, stream_key
from equipoise.replay.summary import summarize
from equipoise.replay.sweep import Cell, cells, run_sweep
from equipoise.replay.table import print_table
from equipoise.replay.worldoptions import parse_options
from equipoise.replay.worlds import World
from equipoise.store.sqlite import SqliteStore

DEFAULT_BUDGET = 1000
DEFAULTS: dict[str, Any] = {
    "policies": ["uniform", "top-two", "track-and-stop"],
    "alphas": [0.5],
    "confoundings": [1.0],
    "seeds": 3,
    "obs": 5000,
    "exp_rate": 0.1,
    "out": Path("runs/replay"),
}
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


def complete_order(given: Mapping[str, Any]) -> ReplayOrder:
    """An order from the options given, None where one was not: the defaults of a replay, or of
    the experiment that is asked for. Raises AgentError where there is no such experiment.
    """
    defaults: Mapping[str, Any] = DEFAULTS
    if given["experiment"] is not None:
        from equipoise.replay.experiments.command import planned

        defaults = planned(given["experiment"], given)
    asked = {name: value for name, value in given.items() if value is not None}
    return ReplayOrder(**{**given, **defaults, **asked})


def run_replay(order: ReplayOrder) -> None:
    """Run, write and print. Raises AgentError, BenchmarkError or StoreError on bad input."""
    if order.experiment is not None:
        from equipoise.replay.experiments.command import run_experiment

        run_experiment(order)
        return
    if order.benchmark.partition(":")[0] == "openbandit":
        from equipoise.replay.openbandit.command import replay_open_bandit

        replay_open_bandit(order)
        return
    families = checked_families(order.estimators or FAMILIES)
    policies = checked_policies(order.policies)
    if order.store is not None and order.store.exists():
        raise AgentError(f"--store: {order.store} exists")
    settings = stream_settings(order)
    benchmark = load_as_told(order.benchmark, order.benchmark_options)
    sweep = cells(order.alphas, order.confoundings, policies, families, order.seeds)
    meta = describe_run(benchmark, settings, order)
    console = Console(stderr=order.as_json)
    with result_folder(order) as (folder, kept):
        with shown_progress(len(sweep)) as advance:
            results = run_sweep(benchmark, settings, sweep, order.jobs, advance, kept)
        summary = summarize(results, meta)
        results.to_parquet(folder / "results.parquet", index=False)
        text = msgspec.json.format(msgspec.json.encode(summary), indent=2)
        (folder / "summary.json").write_bytes(text + b"\n")
        write_report(folder / "report.html", results, summary, meta)
    if order.store is not None:
        keep_store(order.store, benchmark, settings, sweep[0])
    if order.as_json:
        print(text.decode())
        return
    print_table(console, summary)
    console.print(f"Results: {order.out / 'results.parquet'}, report: {order.out / 'report.html'}")
    if order.store is not None:
        console.print(f"The first stream's log: equipoise status {order.store}")


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


def keep_store(path: Path, benchmark: Benchmark, settings: StreamSettings, cell: Cell) -> None:
    """Run one cell again into a SQLite store, with its key beside it; whole or not at all."""
    world = World(
        benchmark, replace(settings.world, alpha=cell.alpha, confounding=cell.confounding)
    )
    rule = policy(cell.policy)
    config = experiment(world, settings, rule.gate.name, rule.assignment.name, cell.steering)
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    scratch.unlink(missing_ok=True)
    with SqliteStore(scratch) as store:
        for checkpoint in run_stream(world, config, settings, cell.seed, store):
            last = checkpoint.agent
        last.checkpoint()
    write_key(path, stream_key(cell.seed))
    scratch.rename(path)
