"""How many randomized requests a decision takes: `python tests/statistical/decided_study.py
[--scale 1] [--out docs/decided.md] [--keep FOLDER] [--only NAME]`.

Every cell runs the same seeds twice: as eras without a plan go on (equal weights, even levels,
nothing known: the sequence of 2026-11), and as new eras do. Finished cells are kept, so a study
that was stopped goes on. One core, some twenty minutes at scale 1.
"""

from __future__ import annotations

import argparse
import json
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

import many_runs
import numpy as np
from coverage_study import ROOT, digest, file_name
from many_runs import Setup, look_times, simulate
from markdown_text import percent, table
from sequences import Bounded, planned
from streams import Stream
from watchers import EverMissed, FirstDecision, contrasts_of

from equipoise.agent.inference import levels
from equipoise.agent.inference.levels import EraPrior, chances_of_best
from equipoise.agent.planning import plan_request

DELTA = 0.05
RATE = 0.1
ERRORS = {"log": 0.2, "good log": 0.05}
"""Standard deviations of the reward by which the log of a run errs about each model."""


@dataclass(frozen=True)
class Cell:
    """K models of which one is better by `gap` than the others, which are worth `base`.

    lag: rules by which the watermark is behind, at most; big: requests of a rule at most; most:
    randomized requests after which a run is given up.
    """

    models: int
    base: float
    gap: float
    allocation: str
    runs: int
    most: int
    rate: float = RATE
    lag: int = 0
    big: int = 500

    @property
    def name(self):
        late = f", {self.lag * self.big:,} late" if self.lag else ""
        return f"{self.models}, {self.base:g}, {self.gap:g}, {self.allocation}{late}"

    @property
    def values(self):
        return (self.base,) * (self.models - 1) + (self.base + self.gap,)


def cells(scale):
    found = []
    for models, base, gap, runs, most in (
        (2, 0.5, 0.1, 100, 5_000),
        (2, 0.5, 0.03, 40, 40_000),
        (2, 0.95, 0.03, 100, 12_000),
        (5, 0.5, 0.1, 60, 30_000),
        (5, 0.5, 0.03, 12, 180_000),
        (5, 0.95, 0.03, 40, 40_000),
        (15, 0.5, 0.1, 20, 80_000),
        (15, 0.95, 0.03, 20, 120_000),
    ):
        for allocation in ("uniform", "top-two"):
            big = 500 if (models < 15 and gap > 0.05) or base > 0.9 else 2000
            more = 2 if allocation == "top-two" else 1
            found.append(Cell(models, base, gap, allocation, runs, most * more, big=big))
    # At .95 a gap of .1 leaves the range: .85 and .95 stand for it.
    found.append(Cell(2, 0.85, 0.1, "uniform", 100, 5_000))
    found.append(Cell(5, 0.85, 0.1, "uniform", 60, 20_000))
    found.append(Cell(15, 0.85, 0.1, "uniform", 20, 60_000))
    found.append(Cell(15, 0.5, 0.03, "uniform", 4, 700_000, big=8000))
    for models, base, gap, runs, most in (
        (2, 0.5, 0.1, 100, 8_000),
        (2, 0.95, 0.03, 100, 15_000),
        (5, 0.95, 0.03, 40, 40_000),
    ):
        found.append(Cell(models, base, gap, "uniform", runs, most, rate=0.5, lag=4))
    return [replace(cell, runs=max(int(cell.runs * scale), 2)) for cell in found]


def priors(cell, error, rng):
    """What a log says in each run: (R, K + 1) means, and the chance of each model to be best."""
    values = np.array(cell.values)
    error = error * np.sqrt(cell.base * (1.0 - cell.base))
    said = np.clip(values + error * rng.standard_normal((cell.runs, cell.models)), 0.0, 1.0)
    doubt = np.eye(cell.models) * error**2
    active = np.ones(cell.models, dtype=bool)
    best = np.stack([chances_of_best(each, doubt, active) for each in said])
    return np.column_stack([said, said.mean(axis=1)]), best


def decision_alpha(best):
    """(A, A) levels of a decision, today's routing last, for chances (K,); even ones if None."""
    size = len(best) + 1
    alpha = np.full((size, size), DELTA)
    active, prior = np.ones(size - 1, dtype=bool), EraPrior(1.0, 0.25, best)
    alpha[:-1, :-1] = levels.decision_levels(DELTA, active, prior)
    return alpha


def needed(cell):
    """Requests that `equipoise plan` says to plan for, with the gap it is to find."""
    asked = {
        "models": cell.models,
        "traffic": 1000.0,
        "reward_rate": cell.base,
        "effect": cell.gap,
        "rate": cell.rate,
        "policies": [cell.allocation],
    }
    return plan_request(asked)["recommended"]["requests"]["needed"]


def run(cell, seed):
    """Median randomized requests to `decided`, share of runs without, share of wrong ones, and the
    share of runs that ever missed a contrast, before and after."""
    rng = np.random.default_rng(seed)
    (known, best), (_, sure) = (priors(cell, error, rng) for error in ERRORS.values())
    many_runs.block_size = lambda start: min(max(10, start // 4), cell.big)
    stream = Stream(cell.values, int(cell.most / cell.rate), lag=cell.lag)
    setup = Setup(stream, cell.allocation, cell.rate)
    spread = cell.base * (1.0 - cell.base)
    default = planned(setup, variance=max(spread, 0.01))
    plan = replace(default, requests=needed(cell))
    even = np.full(cell.models, 1.0 / cell.models)
    wrong = np.eye(cell.models)[0]
    logged, good = (np.stack([decision_alpha(each) for each in part]) for part in (best, sure))
    off = {factor: EraPrior(plan.requests * factor, plan.variance, even) for factor in (0.25, 4.0)}
    pair = levels.pair_level(DELTA, cell.models + 1)
    passes = {
        "before": (
            setup,
            {"before": Bounded(decision_alpha(even), setup, None)},
        ),
        "after": (
            replace(setup, known=known),
            {
                "no log": Bounded(decision_alpha(even), setup, plan),
                "log": Bounded(logged, setup, plan),
                "good log": Bounded(good, setup, plan),
                "log is sure and wrong": Bounded(decision_alpha(wrong), setup, plan),
                "no plan": Bounded(logged, setup, default),
                "plan / 4": Bounded(logged, setup, off[0.25]),
                "plan x 4": Bounded(logged, setup, off[4.0]),
            },
        ),
    }
    looks = look_times(stream.rows, single=20, apart=0.015)
    found = {"runs": cell.runs}
    for name, (world, sequences) in passes.items():
        watchers = {each: FirstDecision(s, cell.models) for each, s in sequences.items()}
        missed = EverMissed(
            Bounded(pair, setup, plan if name == "after" else None), contrasts_of(stream)
        )
        simulate(world, cell.runs, seed, [*watchers.values(), missed], looks)
        for each, watcher in watchers.items():
            right = cell.models - 1
            found[each] = [
                float(np.median(watcher.at)),
                float(np.isinf(watcher.at).mean()),
                float(((watcher.winner >= 0) & (watcher.winner != right)).mean()),
            ]
        found[f"{name} missed"] = missed.rate
    return found


AFTER = (
    "log",
    "no log",
    "good log",
    "log is sure and wrong",
    "no plan",
    "plan / 4",
    "plan x 4",
)


def page(results):
    rows, ratios = [], {name: [] for name in AFTER}
    for cell, found in results:
        before = found["before"][0]
        parts = [found[name][0] / before for name in AFTER]
        for name, part in zip(AFTER, parts, strict=True):
            ratios[name].append(part)
        missed = max(found["before missed"], found["after missed"])
        wrong = max(found[name][2] for name in ("before", *AFTER))
        rows.append(
            [
                *cell.name.split(", ", 3),
                f"{cell.rate:g}",
                str(found["runs"]),
                f"{before:,.0f}" if np.isfinite(before) else "not reached",
                *(f"{part:.2f}" if np.isfinite(part) else "–" for part in parts),
                f"{percent(missed)} / {percent(wrong)}",
            ]
        )
    rows.append(
        ["**median**", *[""] * 6, *(f"**{np.median(ratios[name]):.2f}**" for name in AFTER), ""]
    )
    rows.append(
        ["**largest**", *[""] * 6, *(f"**{np.max(ratios[name]):.2f}**" for name in AFTER), ""]
    )
    head = ["models", "others worth", "gap", "allocation", "rate", "runs", "before", *AFTER]
    return "\n".join([*OPENING, *table([*head, "missed / wrong"], rows), ""])


OPENING = [
    "# How many randomized requests a decision takes",
    "",
    "For users who want to know what a certificate costs. Written by `python "
    "tests/statistical/decided_study.py`; do not edit by hand.",
    "",
    "One model is better than the others by the gap. *Before* is the median number of randomized "
    "requests until `decided` at a level of 5%, with the bounded sequence of eras without a plan: "
    "equal weights of its bets, the level spread evenly over the models, and nothing known of the "
    "rewards. The other columns are ratios to it on the same seeds, for new eras. *No log* knows "
    "nothing about who is best. In *log* each run has a log whose mean rewards err at random by a "
    "fifth of the reward's standard deviation, for every model; in *good log* by a twentieth, as "
    "replays that predict rewards do. *Log is sure and wrong* puts all of its belief on a wrong "
    "model. All of them start from the mean rewards in the log. The plan is what `equipoise plan` "
    "says for this gap and allocation; *no plan* has the default one, for a difference of a tenth "
    "of the standard deviation; in the last two columns the plan is four times too small and too "
    "large. The last three have the log.",
    "",
    "*Missed* is the share of runs in which any contrast of the models and of today's routing ever "
    "missed the truth, *wrong* that of runs that decided for a wrong model, the largest of all "
    "columns each.",
    "",
]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scale", type=float, default=1.0, help="of the numbers of runs")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "decided.md")
    parser.add_argument("--only", default="", help="cells whose name contains this")
    parser.add_argument("--keep", type=Path, default=ROOT / "runs" / "decided")
    options = parser.parse_args(arguments)
    folder = options.keep / digest(int(1000 * options.scale))
    folder.mkdir(parents=True, exist_ok=True)
    results = []
    for cell in cells(options.scale):
        if options.only not in cell.name:
            continue
        path = folder / file_name(cell.name)
        if not path.exists():
            path.write_text(json.dumps(run(cell, zlib.crc32(cell.name.encode()))))
        found = json.loads(path.read_text())
        results.append((cell, found))
        shown = {k: v[0] / found["before"][0] for k, v in found.items() if k in AFTER}
        print(cell.name, found["before"], {k: round(v, 2) for k, v in shown.items()}, flush=True)
    if not options.only:
        options.out.write_text(page(results))
        print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
