"""`hierarchical` against every other family, cell by cell: is it safe not to know ω beforehand?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.findings.findings import (
    Entry,
    Findings,
    Heatmaps,
    HeatPanel,
    Table,
    entry,
    listed,
)
from equipoise.replay.results.averages import (
    FEWEST_RUNS,
    Floats,
    area_under,
    resample_counts,
    tails,
)
from equipoise.replay.studies.registry import FIFTHS, Plan, study
from equipoise.replay.studies.streams import Setting, Streams

TITLE = "Is hierarchical safe to choose without knowing how confounded the log is?"
OURS = "hierarchical"
SIX = ("ipw", "obs-only", "representation-exp", "cvci", "grounded", "doubly-robust")
BUDGETS = (100, 300, 1000, 3000)
SAME_AREA = 0.001
"""Mean regrets (reward units) this close count as equal: below it ratios are knife edges."""
WORST, NEAR, FAR, AS_IPW = (1.10, 0.60), (1.25, 0.85), 0.02, (1.05, 1.10)
"""Limits of the three tests; see `families`."""
UPPER = 0.95

PLAN = Plan(alphas=FIFTHS, confoundings=FIFTHS, budget=3000, seeds=100, needs=(OURS, *SIX))


@study("families", TITLE, PLAN)
def families(results: pd.DataFrame, meta: Mapping[str, Any]) -> Findings:
    """Three tests of `hierarchical`, on two losses: RMSE of contrasts, and mean regret so far.

    (a) ω unknown: the worst loss over ω, against the family whose own worst is lowest.
    (b) ω known: the loss against the best of the six in that very cell, which nobody could pick.
    (c) the loss against `ipw`, an A/B test, in every cell.
    A cell is α × EXP, in (b) and (c) α × ω × EXP. Seeds in which some family has no value yet
    (a model nobody was given) are left out of RMSE for all of them.
    """
    streams = Streams(results)
    budgets = streams.marks(BUDGETS)
    losses = {name: _Losses(streams, budgets, name) for name in ("RMSE of contrasts", "regret")}
    tests = [test for each in losses.values() for test in _tests(each)]
    missed = [test.name for test in tests if not test.met]
    headline = (
        f"hierarchical meets {len(tests) - len(missed)} of {len(tests)} targets on"
        f" {meta['benchmark']}" + (f"; it misses {listed(missed)}." if missed else ".")
    )
    rmse, regret = losses.values()
    return Findings(
        "families",
        TITLE,
        (headline, rmse.sentence(), regret.sentence()),
        (
            Table(
                "families-tests",
                "The targets",
                "Test (a): worst case over ω. Test (b): known ω, against the best of six chosen"
                " after looking. Test (c): against an A/B test. A regret is the mean regret over"
                f" all checkpoints so far; within {SAME_AREA:g} of the other it counts as equal.",
                ("test", "target", "measured", "met"),
                tuple(
                    (test.name, test.target, test.figure, "yes" if test.met else "NO")
                    for test in tests
                ),
            ),
            *(table for each in losses.values() for table in each.tables()),
        ),
        tuple(each.figure() for each in losses.values()),
    )


@dataclass(frozen=True, slots=True)
class _Test:
    name: str
    target: str
    figure: str
    met: bool


class _Losses:
    """One loss of every family: point (A, W, N) and resampled (B, A, W, N), by family.

    A alphas, W strengths of confounding, N budgets, B bootstrap resamples of the seeds, the same
    for all. runs: seeds; fewer than FEWEST_RUNS have no interval.
    """

    def __init__(self, streams: Streams, budgets: Sequence[int], name: str) -> None:
        self.name, self.budgets = name, tuple(budgets)
        self.runs = len(streams.seeds)
        self.alphas, self.omegas = streams.alphas, streams.confoundings
        self.is_regret = name == "regret"
        self.slack = SAME_AREA if self.is_regret else 0.0
        compute = _mean_regrets if self.is_regret else _squares
        shape = len(self.alphas), len(self.omegas), len(budgets)
        self.point = {name: np.zeros(shape) for name in (OURS, *SIX)}
        counts = resample_counts(len(streams.seeds))
        self.drawn = {name: np.zeros((len(counts), *shape)) for name in (OURS, *SIX)}
        self.seeds = np.zeros(shape, dtype=int)
        for a, alpha in enumerate(self.alphas):
            for w, omega in enumerate(self.omegas):
                losses = {
                    name: compute(streams, Setting("", alpha, omega), name, budgets)
                    for name in (OURS, *SIX)
                }
                complete = np.all([np.isfinite(each) for each in losses.values()], axis=0)
                self.seeds[a, w] = complete.sum(axis=0)
                for name, each in losses.items():
                    usable = np.where(complete, each, 0.0)
                    with np.errstate(invalid="ignore", divide="ignore"):
                        mean = usable.sum(axis=0) / complete.sum(axis=0)
                        means = counts @ usable / (counts @ complete.astype(float))
                    squared = not self.is_regret
                    self.point[name][a, w] = np.sqrt(mean) if squared else mean
                    self.drawn[name][:, a, w] = np.sqrt(means) if squared else means

    def worst(self) -> tuple[Floats, Floats, Floats, list[str]]:
        """Worst over ω (A, N): ours, the best family's, resampled ratios (B, A, N), its name."""
        ours, six = (
            self.point[OURS].max(axis=1),
            np.stack([self.point[name].max(axis=1) for name in SIX]),
        )
        drawn = np.stack([self.drawn[name].max(axis=2) for name in SIX]).min(axis=0)
        ratio = (self.drawn[OURS].max(axis=2) + self.slack) / (drawn + self.slack)
        names = [SIX[int(at)] for at in six.argmin(axis=0).ravel()]
        return ours, six.min(axis=0), ratio, names

    def best(self) -> tuple[Floats, Floats]:
        """The lowest loss of the six (A, W, N), and which it is."""
        six = np.stack([self.point[name] for name in SIX])
        return six.min(axis=0), six.argmin(axis=0)

    def ratio(self, other: Floats) -> Floats:
        """Our loss over another; 1 where they are within the slack, which another is at least."""
        ours = self.point[OURS]
        least = np.maximum(other, max(self.slack, 1e-12))
        ratio: Floats = np.where(np.abs(ours - other) <= self.slack, 1.0, ours / least)
        return ratio

    def sentence(self) -> str:
        best, which = self.best()
        ratio = self.ratio(best)
        a, w, n = (int(each) for each in np.unravel_index(np.argmax(ratio), ratio.shape))
        winners = [SIX[int(each)] for each in which.ravel()]
        often = max(dict.fromkeys(winners), key=winners.count)
        return (
            f"{self.name}: at known ω the median ratio to the best of six is"
            f" {np.median(ratio):.2f}; the highest, {ratio[a, w, n]:.2f}, is at α ="
            f" {self.alphas[a]:g}, ω = {self.omegas[w]:g} with {self.budgets[n]:,} randomized"
            f" requests, where {SIX[int(which[a, w, n])]} has {best[a, w, n]:.4f}; the best of"
            f" the six is most often {often} ({winners.count(often)} of {len(winners)} cells)."
        )

    def tables(self) -> tuple[Table, ...]:
        ours, best, drawn, names = self.worst()
        worst_rows: list[tuple[Entry, ...]] = []
        for at, (a, n) in enumerate(np.ndindex(*ours.shape)):
            low, high = self._ends(drawn[:, a, n], 2 * UPPER - 1)
            ratio = (ours[a, n] + self.slack) / (best[a, n] + self.slack)
            worst_rows.append(
                (
                    f"{self.alphas[a]:g}",
                    self.budgets[n],
                    float(ours[a, n]),
                    float(best[a, n]),
                    names[at],
                    entry(float(ratio), float(low), float(high)),
                )
            )
        cell_rows: tuple[tuple[Entry, ...], ...] = tuple(
            (
                f"{self.alphas[a]:g}, {self.omegas[w]:g}",
                self.budgets[n],
                *(float(self.point[name][a, w, n]) for name in (*SIX, OURS)),
                int(self.seeds[a, w, n]),
            )
            for a, w, n in np.ndindex(*self.point[OURS].shape)
        )
        key = "regret" if self.is_regret else "rmse"
        return (
            Table(
                f"families-worst-{key}",
                f"Worst case over ω of {self.name}",
                "Reward units; the ratio with its 90% bootstrap interval over seeds, whose upper"
                " end is the 95% upper bound"
                + (f", {SAME_AREA:g} added to both." if self.is_regret else "."),
                ("α", "EXP", "hierarchical", "best of six", "which", "ratio"),
                tuple(worst_rows),
            ),
            Table(
                f"families-cells-{key}",
                f"{self.name[0].upper()}{self.name[1:]} in every cell",
                "Reward units; lower is better. seeds: those in which all families have values.",
                ("α, ω", "EXP", *SIX, OURS, "seeds"),
                cell_rows,
            ),
        )

    def upper(self) -> Floats:
        """(A, N) upper bounds of the worst ratios, NaN where there are too few seeds for one."""
        upper: Floats = self._ends(self.worst()[2], 2 * UPPER - 1)[1]
        return upper

    def _ends(self, drawn: Floats, level: float) -> Floats:
        """Both ends of intervals of resampled numbers (B, ...)."""
        if self.runs < FEWEST_RUNS:
            return np.full((2, *drawn.shape[1:]), np.nan)
        ends: Floats = np.nanquantile(drawn, tails(self.runs, level), axis=0)
        return ends

    def figure(self) -> Heatmaps:
        best, _ = self.best()
        log = np.log2(np.maximum(self.ratio(best), 1e-3))
        drawn_best = np.stack([self.drawn[name] for name in SIX]).min(axis=0)
        slack = max(self.slack, 1e-9)
        drawn = np.log2((self.drawn[OURS] + slack) / (drawn_best + slack))
        low, high = self._ends(drawn, 0.95)
        return Heatmaps(
            f"families-{'regret' if self.is_regret else 'rmse'}",
            f"hierarchical against the best of six at known ω: {self.name}",
            "log2 of the ratio: 1 is twice the loss, -1 half of it. The best of six is chosen"
            " after looking, in every cell anew.",
            "confounding ω",
            "alignment α",
            "hierarchical is better than all six",
            "the best of six is better",
            tuple(
                HeatPanel(
                    f"{budget:,} randomized requests",
                    tuple(self.omegas),
                    tuple(self.alphas),
                    tuple(
                        tuple(
                            entry(log[a, w, n], low[a, w, n], high[a, w, n])
                            for w in range(len(self.omegas))
                        )
                        for a in range(len(self.alphas))
                    ),
                )
                for n, budget in enumerate(self.budgets)
            ),
        )


def _tests(losses: _Losses) -> list[_Test]:
    name = losses.name
    ours, best_worst, _, _ = losses.worst()
    upper = losses.upper()
    bounded = f"{int((upper > WORST[0]).sum())} of {upper.size} above, highest {upper.max():.2f}"
    if losses.runs < FEWEST_RUNS:
        bounded = f"unknown: {FEWEST_RUNS} seeds are needed, there are {losses.runs}"
    below = (ours < best_worst).mean()
    best, _ = losses.best()
    ratio, above = losses.ratio(best), losses.point[OURS] - best
    near = (ratio <= NEAR[0]).mean()
    to_ipw = losses.ratio(losses.point["ipw"])
    limit = AS_IPW[int(losses.is_regret)]
    bad = int((to_ipw > limit).sum())
    return [
        _Test(
            f"(a) {name}, upper bound",
            f"at most {WORST[0]:.2f} everywhere",
            bounded,
            bool((upper <= WORST[0]).all()),
        ),
        _Test(
            f"(a) {name}, ratio below 1",
            f"in at least {WORST[1]:.0%} of the cells",
            f"{below:.0%} of {upper.size}",
            bool(below >= WORST[1]),
        ),
        _Test(
            f"(b) {name}, median",
            "at most 0.95",
            f"{np.median(ratio):.3f}",
            bool(np.median(ratio) <= 0.95),
        ),
        _Test(
            f"(b) {name}, within {NEAR[0]:.2f}",
            f"in at least {NEAR[1]:.0%} of the cells",
            f"{near:.0%} of {ratio.size}",
            bool(near >= NEAR[1]),
        ),
        _Test(
            f"(b) {name}, distance",
            f"at most {FAR:g}",
            f"{above.max():.3f}",
            bool(above.max() <= FAR),
        ),
        _Test(
            f"(c) {name}, against ipw",
            f"at most {limit:.2f} in every cell",
            f"{bad} of {to_ipw.size} above, highest {to_ipw.max():.2f}",
            bad == 0,
        ),
    ]


def _squares(streams: Streams, setting: Setting, family: str, budgets: Sequence[int]) -> Floats:
    """(R, N) squared RMSE over contrasts."""
    squares: Floats = streams.curves(setting, family, "rmse_contrast") ** 2
    return squares[:, [streams.position(budget) for budget in budgets]]


def _mean_regrets(
    streams: Streams, setting: Setting, family: str, budgets: Sequence[int]
) -> Floats:
    """(R, N) area under the regret curve up to each budget, over the budget."""
    curves = streams.curves(setting, family, "regret")
    ends = [streams.position(budget) + 1 for budget in budgets]
    return np.stack(
        [
            area_under(curves[:, :end], streams.checkpoints[:end]) / budget
            for end, budget in zip(ends, budgets, strict=True)
        ],
        axis=1,
    )
