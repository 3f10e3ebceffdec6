"""Policies x estimators x scenarios x seeds: cells of a sweep, run one process per core.

A cell is one seed of one scenario under one policy. A policy that does not look at estimates
serves all families from a single stream; one that does runs a stream per family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark
from equipoise.replay.metrics import NAIVE, Certificate, result_rows
from equipoise.replay.settings import StreamSettings
from equipoise.replay.stream import experiment, run_stream
from equipoise.replay.worlds import World


@dataclass(frozen=True, slots=True)
class Cell:
    """One stream of a sweep. steering: the family whose estimates the policy looks at."""

    alpha: float
    confounding: float
    policy: str
    steering: str
    estimators: tuple[str, ...]
    seed: int


def cells(
    alphas: Sequence[float],
    confoundings: Sequence[float],
    policies: Sequence[str],
    estimators: Sequence[str],
    seeds: int,
) -> list[Cell]:
    """All cells, in a fixed order."""
    result: list[Cell] = []
    for alpha in alphas:
        for confounding in confoundings:
            for name in policies:
                groups: list[tuple[str, tuple[str, ...]]] = [(estimators[0], tuple(estimators))]
                if policy(name).uses_estimate:
                    groups = [(family, (family,)) for family in estimators]
                for steering, families in groups:
                    result += [
                        Cell(alpha, confounding, name, steering, families, seed)
                        for seed in range(seeds)
                    ]
    return result


def run_cell(benchmark: Benchmark, settings: StreamSettings, cell: Cell) -> list[dict[str, Any]]:
    """The rows of results of one cell."""
    options = replace(settings.world, alpha=cell.alpha, confounding=cell.confounding)
    world = World(benchmark, options)
    rule = policy(cell.policy)
    config = experiment(world, settings, rule.gate.name, rule.assignment.name, cell.steering)
    certificate = Certificate(world)
    key = {
        "benchmark": benchmark.name,
        "alpha": cell.alpha,
        "confounding": cell.confounding,
        "policy": cell.policy,
        "seed": cell.seed,
    }
    return [
        {**key, **row}
        for checkpoint in run_stream(world, config, settings, cell.seed)
        for row in result_rows(world, checkpoint, cell.estimators, certificate)
    ]


def run_sweep(
    benchmark: Benchmark,
    settings: StreamSettings,
    sweep: Sequence[Cell],
    jobs: int = 1,
    progress: Callable[[int], None] = lambda done: None,
) -> pd.DataFrame:
    """Run cells and return tidy results in the order of the cells.

    jobs: processes; 0 for one per core. progress is called with the number of finished cells.
    """
    rows: list[dict[str, Any]] = []
    for done, part in enumerate(_results(benchmark, settings, sweep, jobs), start=1):
        rows += part
        progress(done)
    frame = pd.DataFrame(rows)
    keys = ["alpha", "confounding", "policy", "estimator", "seed", "checkpoint"]
    # Streams that were steered by different families repeat the naive comparison.
    repeats = (frame["estimator"] == NAIVE) & frame.duplicated(keys)
    frame = frame[~repeats].reset_index(drop=True)
    frame["decided_right"] = frame["decided_right"].astype("boolean")
    first = ["benchmark", *keys]
    return frame[first + [name for name in frame.columns if name not in first]]


def _results(
    benchmark: Benchmark, settings: StreamSettings, sweep: Sequence[Cell], jobs: int
) -> Iterator[list[dict[str, Any]]]:
    if jobs == 1 or len(sweep) == 1:
        return (run_cell(benchmark, settings, cell) for cell in sweep)
    from joblib import Parallel, delayed

    pool = Parallel(n_jobs=jobs or -1, return_as="generator", pre_dispatch="4*n_jobs")
    results: Iterator[list[dict[str, Any]]] = pool(
        delayed(run_cell)(benchmark, settings, cell) for cell in sweep
    )
    return results
