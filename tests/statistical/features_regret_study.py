"""Mean regret by features and by baseline, in one setting: `python FILE NAME:PATH [--seeds N]`.

The streams of the study `allocation` (4,000 randomized requests, 20,000 rows of log), with standard
errors over seeds. `plain`: track-and-stop read by unweighted means, as gateways read it. `outcome`:
the ceiling, where the outcome itself is an output feature.
"""

from __future__ import annotations

import argparse
from dataclasses import replace

import numpy as np

from equipoise.agent.estimators import ipw
from equipoise.agent.estimators.base import FAMILIES
from equipoise.replay.benchmarks.base import load
from equipoise.replay.harness.stream import StreamSettings
from equipoise.replay.harness.sweep import Cell, run_cell
from equipoise.replay.results.averages import area_under
from equipoise.replay.worlds import World, WorldOptions

SETTINGS = StreamSettings(
    requests=4517, exp_rate=1.0, budget=4000, obs=20_000, batch=25, refresh=50
)
OURS, BASELINE = ("fixed-rate+contrast", "hierarchical"), ("track-and-stop", "ipw")
WEIGHTED = FAMILIES["ipw"]


def plain(moments):
    means = np.ascontiguousarray(moments.exp.mean[..., -1])
    return replace(WEIGHTED(moments), values=ipw.ratio_means(moments.exp.count, means)[0])


def say(name, table, arm, options, family=WEIGHTED):
    FAMILIES["ipw"] = family
    policy, estimator = arm
    for confounding in (0.5, 1.0):
        world = World(table, WorldOptions(alpha=options.alpha, confounding=confounding))
        areas = []
        for seed in range(options.seeds):
            cell = Cell(options.alpha, confounding, policy, estimator, (estimator,), seed)
            rows = run_cell(table, SETTINGS, cell, world)
            rows = [row for row in rows if row["estimator"] == estimator]
            grid = np.array([row["checkpoint"] for row in rows])
            regret = np.array([[row["regret"] for row in rows]])
            areas.append(area_under(regret, grid)[0] / grid[-1])
        error = np.std(areas, ddof=1) / len(areas) ** 0.5
        print(f"| {name} | {confounding:g} | {np.mean(areas):.4f} ± {error:.4f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("benchmark")
    parser.add_argument("--seeds", type=int, default=100)
    parser.add_argument("--alpha", type=float, default=0.5)
    options = parser.parse_args()
    table = load(options.benchmark)
    outcome = table.outcome[..., None]
    outcome = (outcome - outcome.mean()) / outcome.std()
    ceiling = replace(
        table,
        outputs=np.concatenate([table.outputs, outcome], axis=2),
        output_names=(*table.output_names, "outcome"),
        tasted=len(table.output_names),
    )
    say("track-and-stop, weighted", table, BASELINE, options)
    say("track-and-stop, plain", table, BASELINE, options, plain)
    say("ours", table, OURS, options)
    say("ours, cautious", table, (OURS[0], "hierarchical-cautious"), options)
    if options.benchmark.startswith("alpacaeval"):
        say("ours, with-text", load(options.benchmark, features="with-text"), OURS, options)
    say("ours, outcome", ceiling, OURS, options)


if __name__ == "__main__":
    main()
