"""`equipoise replay`: run a sweep, write its folder whole, print what it says."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console

from equipoise.agent.errors import AgentError
from equipoise.agent.estimators.base import FAMILIES
from equipoise.agent.maintenance.key_file import write_key
from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark, load_as_told
from equipoise.replay.findings.report import print_summary, write_report
from equipoise.replay.harness.stream import StreamSettings, experiment, run_stream, stream_key
from equipoise.replay.harness.sweep import Cell, cells, run_sweep, shown_progress
from equipoise.replay.order import (
    ReplayOrder,
    checked_families,
    checked_policies,
    describe_run,
    result_folder,
    stream_settings,
)
from equipoise.replay.results.summary import summarize
from equipoise.replay.worlds import World
from equipoise.store.sqlite import SqliteStore

DEFAULTS: dict[str, Any] = {
    "policies": ["uniform", "top-two", "track-and-stop"],
    "alphas": [0.5],
    "confoundings": [1.0],
    "seeds": 3,
    "obs": 5000,
    "exp_rate": 0.1,
    "out": Path("runs/replay"),
}


def complete_order(given: Mapping[str, Any]) -> ReplayOrder:
    """An order from the options given, None where one was not: the defaults of a replay, or of
    the experiment that is asked for. Raises AgentError where there is no such experiment.
    """
    defaults: Mapping[str, Any] = DEFAULTS
    if given["experiment"] is not None:
        from equipoise.replay.studies.command import planned

        defaults = planned(given["experiment"], given)
    asked = {name: value for name, value in given.items() if value is not None}
    return ReplayOrder(**{**given, **defaults, **asked})


def run_replay(order: ReplayOrder) -> None:
    """Run, write and print. Raises AgentError, BenchmarkError or StoreError on bad input."""
    if order.experiment is not None:
        from equipoise.replay.studies.command import run_experiment

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
    print_summary(console, summary)
    console.print(
        f"Every number with its interval and the curves: {order.out / 'report.html'}; a row per run"
        f" and checkpoint: {order.out / 'results.parquet'}"
    )
    if order.store is not None:
        console.print(f"The first stream's log: equipoise status {order.store}")


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
