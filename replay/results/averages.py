"""Averages over runs: arrays of runs x checkpoints, with 95% intervals over seeds.

Means have Student's t interval, shares Wilson's, and what is no mean (a ratio, a maximum, a root)
an expanded percentile bootstrap. None of them is formed from fewer than FEWEST_RUNS runs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, stdtrit

if TYPE_CHECKING:
    import pandas as pd

Floats: TypeAlias = NDArray[np.float64]
Counts: TypeAlias = NDArray[np.int64]
Scenario: TypeAlias = tuple[float, float]
Pair: TypeAlias = tuple[str, str]

RESAMPLES = 2000
FEWEST_RUNS = 5
"""A percentile bootstrap of two runs covers half of the time, of three in three quarters."""
Z95 = 1.959963984540054
"""Of the normal distribution, so that 95% lie within."""
NAIVE = "naive-log"
RIGHT = 1e-9
"""A regret up to this is rounding: the recommended model is (one of) the best."""

KEYS = ("alpha", "confounding", "policy", "estimator", "seed", "checkpoint")
NUMBERS = (
    *("requests", "exp_used", "regret", "regret_action", "bias", "rmse", "rmse_contrast"),
    *("width", "covered", "ever_miscovered", "spend", "harm", "decided_at", "decided_right"),
)
WORDS = ("recommended", "action")


class ResultsError(ValueError):
    """Results of a replay that cannot be averaged."""


@dataclass(frozen=True, slots=True)
class Mean:
    """Means over runs and their 95% intervals, all (C,); NaN where unknown.

    The interval is unknown when fewer than FEWEST_RUNS runs are known.
    """

    mean: Floats
    low: Floats
    high: Floats


@dataclass(frozen=True, slots=True)
class Runs:
    """The R runs of one policy and estimator in one scenario, on the scenario's C checkpoints.

    A run that ended before a checkpoint keeps its last row: it has randomized all it will.
    epsilon: smallest regret that matters (reward units).
    numbers: column -> (R, C), NaN where unknown; yes and no are 1 and 0.
    last: column -> what each run says in the end, None where it says nothing.
    reached: (C,) how many runs got to each checkpoint themselves.
    values: (R, K) each run's final estimate of every model, where results carry `values`.
    """

    seeds: tuple[int, ...]
    checkpoints: Counts
    epsilon: float
    numbers: dict[str, Floats]
    last: dict[str, tuple[str | None, ...]]
    reached: Counts
    values: Floats | None

    def final(self, column: str) -> Floats:
        """(R,) a number at the end of each run."""
        last: Floats = self.numbers[column][:, -1]
        return last

    @property
    def right(self) -> Floats:
        """(R,) 1 where a run ends with recommending a model within epsilon of the best, else 0."""
        named = np.array([name is not None for name in self.last["recommended"]])
        return (named & (self.final("regret") <= self.epsilon + RIGHT)).astype(float)

    @property
    def average_regret(self) -> Floats:
        """(R,) the area under each run's regret curve, divided by its length."""
        length = float(self.checkpoints[-1] - self.checkpoints[0])
        if not length:
            return self.final("regret")
        return area_under(self.numbers["regret"], self.checkpoints) / length

    @property
    def extent(self) -> int:
        """How many checkpoints at least half of the runs reached."""
        return int(np.count_nonzero(2 * self.reached >= len(self.seeds)))


@lru_cache(maxsize=8)
def resample_counts(runs: int) -> Floats:
    """(RESAMPLES, runs) how often each run is drawn.

    The same draws for every quantity, so that what is compared is resampled together.
    """
    drawn = np.random.default_rng(0).integers(0, runs, (RESAMPLES, runs))
    counts = np.zeros((RESAMPLES, runs))
    np.add.at(counts, (np.arange(RESAMPLES)[:, None], drawn), 1.0)
    counts.setflags(write=False)
    return counts


def resampled_means(values: Floats) -> Floats:
    """(R, C) of runs -> (RESAMPLES, C) bootstrap means of what is known; NaN where nothing is."""
    finite = np.isfinite(values)
    counts = resample_counts(len(values))
    with np.errstate(invalid="ignore", divide="ignore"):
        means: Floats = (counts @ np.where(finite, values, 0.0)) / (counts @ finite.astype(float))
    return means


def tails(runs: int, level: float = 0.95) -> tuple[float, float]:
    """Quantiles of bootstrap means that make an interval of this level out of so many runs.

    Resampling takes the runs' own spread for the truth, which is too small by sqrt((R - 1) / R)
    and itself uncertain. The expanded percentile interval (Hesterberg 2015) goes as far out as a
    t interval would, and still never leaves the range of the runs. NaN for fewer than FEWEST_RUNS.
    """
    if runs < FEWEST_RUNS:
        return np.nan, np.nan
    tail = float(ndtr(-_half_width(runs, level) * np.sqrt(runs / (runs - 1))))
    return tail, 1.0 - tail


def bootstrap_interval(resampled: Floats, runs: int, method: Any = "linear") -> tuple[float, float]:
    """The 95% interval of (RESAMPLES,) values of what R runs gave; NaN for fewer than FEWEST_RUNS,
    or where it is known in no resample."""
    known = resampled[~np.isnan(resampled)]
    if runs < FEWEST_RUNS or not len(known):
        return np.nan, np.nan
    low, high = np.quantile(known, tails(runs), method=method)
    return float(low), float(high)


def _half_width(runs: Any, level: float = 0.95) -> Any:
    """Half the width of a t interval, in standard errors."""
    return stdtrit(np.maximum(runs - 1, 1), 0.5 + level / 2.0)


def mean_with_interval(values: Floats, least: float = -np.inf) -> Mean:
    """Average (R, C) over runs, with t intervals over the R runs; least: no value can be below."""
    finite = np.isfinite(values)
    number = finite.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(finite, values, 0.0).sum(axis=0) / number
        square = np.where(finite, values - mean, 0.0) ** 2
        error = np.sqrt(square.sum(axis=0) / (number - 1) / number)
    several = number >= FEWEST_RUNS
    half = np.where(several, _half_width(number) * error, np.nan)
    return Mean(mean, np.maximum(mean - half, least), mean + half)


def share_with_interval(values: Floats) -> Mean:
    """Average (R, C) of yes (1) and no (0) over runs, with Wilson's (1927) interval.

    A bootstrap would give [1, 1] after five successes in five runs; this gives [.57, 1].
    """
    finite = np.isfinite(values)
    number = finite.sum(axis=0)
    z = Z95
    with np.errstate(invalid="ignore", divide="ignore"):
        share = np.where(finite, values, 0.0).sum(axis=0) / number
        spread = z * np.sqrt(share * (1 - share) / number + z**2 / (4 * number**2))
        centre, scale = share + z**2 / (2 * number), 1 + z**2 / number
        low, high = (centre - spread) / scale, (centre + spread) / scale
    unknown = number < FEWEST_RUNS
    low = np.where(unknown, np.nan, np.clip(low, 0.0, share))
    high = np.where(unknown, np.nan, np.clip(high, share, 1.0))
    return Mean(share, low, high)


def settles_at(curves: Floats, checkpoints: Counts, limit: float) -> Floats:
    """(N,) the first checkpoint from which each curve of (N, C) stays <= limit; inf for never."""
    below = curves <= limit + RIGHT
    stays = np.logical_and.accumulate(below[:, ::-1], axis=1)[:, ::-1]
    return np.where(stays[:, -1], checkpoints[stays.argmax(axis=1)].astype(float), np.inf)


def area_under(curves: Floats, checkpoints: Counts) -> Floats:
    """(N,) trapezoidal area under curves (N, C) over the randomized requests."""
    area: Floats = np.trapezoid(curves, checkpoints.astype(float), axis=1)
    return area


def together(parts: Sequence[Runs]) -> Runs:
    """The mean over settings, run by run: of the seeds and checkpoints that all of them have.

    A number that is unknown in one setting is unknown.
    """
    seeds = reduce(np.intersect1d, [np.array(each.seeds) for each in parts])
    grid: Counts = reduce(np.intersect1d, [each.checkpoints for each in parts])
    rows = [np.isin(each.seeds, seeds) for each in parts]
    columns = [np.isin(each.checkpoints, grid) for each in parts]
    places = list(zip(parts, rows, columns, strict=True))
    return replace(
        parts[0],
        seeds=tuple(seeds.tolist()),
        checkpoints=grid,
        numbers={
            name: np.mean([each.numbers[name][row][:, at] for each, row, at in places], axis=0)
            for name in parts[0].numbers
        },
        reached=np.min([each.reached[at] for each, _, at in places], axis=0),
        values=None,
    )


def mean_by_seed(streams: Sequence[Runs], column: str) -> Floats:
    """(R, C) the average over the streams of one policy: one seed is one piece of evidence."""
    seeds = sorted({seed for each in streams for seed in each.seeds})
    grid = streams[0].checkpoints
    total, number = np.zeros((len(seeds), len(grid))), np.zeros((len(seeds), len(grid)))
    for each in streams:
        at = np.searchsorted(seeds, each.seeds)
        finite = np.isfinite(each.numbers[column])
        total[at] += np.where(finite, each.numbers[column], 0.0)
        number[at] += finite
    joint: Floats = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    return joint[:, : max(each.extent for each in streams)]


def runs_by_scenario(
    results: pd.DataFrame, epsilon: float = 0.0
) -> dict[Scenario, dict[Pair, Runs]]:
    """Sort results (one row per run, checkpoint and estimator) into runs.

    Scenarios (alpha, confounding) and pairs (policy, estimator) keep the order of the rows.
    Raises ResultsError where a column is missing, a row is repeated or there is none.
    """
    missing = [name for name in (*KEYS, *NUMBERS, *WORDS) if name not in results.columns]
    if missing:
        raise ResultsError(f"results: the columns {', '.join(missing)} are missing")
    if not len(results):
        raise ResultsError("results: there are no rows, so nothing was run")
    repeated = results.duplicated(list(KEYS))
    if repeated.any():
        row = results.loc[repeated, list(KEYS)].iloc[0].to_dict()
        raise ResultsError(f"results: two rows for {row}")
    numbers = {name: _floats(results[name]) for name in NUMBERS}
    words = {name: _texts(results[name]) for name in WORDS}
    values = results["values"].to_numpy() if "values" in results.columns else None
    seed = results["seed"].to_numpy(dtype=np.int64)
    checkpoint = results["checkpoint"].to_numpy(dtype=np.int64)
    runs: dict[Scenario, dict[Pair, Runs]] = {}
    for scenario, rows in _groups(results, ("alpha", "confounding")).items():
        grid = np.unique(checkpoint[rows])
        pairs = _groups(results.iloc[rows], ("policy", "estimator"))
        runs[scenario] = {
            pair: _runs(rows[inside], grid, epsilon, seed, checkpoint, numbers, words, values)
            for pair, inside in pairs.items()
        }
    return runs


def _groups(frame: pd.DataFrame, keys: tuple[str, str]) -> dict[tuple[Any, Any], Counts]:
    """Row positions per combination of two columns, in the order in which they appear."""
    keyed: dict[tuple[Any, Any], list[int]] = {}
    columns = (frame[name].tolist() for name in keys)
    for position, key in enumerate(zip(*columns, strict=True)):
        keyed.setdefault(key, []).append(position)
    return {key: np.array(positions, dtype=np.int64) for key, positions in keyed.items()}


def _runs(
    rows: Counts,
    grid: Counts,
    epsilon: float,
    seed: Counts,
    checkpoint: Counts,
    numbers: dict[str, Floats],
    words: dict[str, list[str | None]],
    values: Any,
) -> Runs:
    seeds, run = np.unique(seed[rows], return_inverse=True)
    column = np.searchsorted(grid, checkpoint[rows])
    position = np.full((len(seeds), len(grid)), -1, dtype=np.int64)
    position[run, column] = rows
    last = np.zeros(len(seeds), dtype=np.int64)
    np.maximum.at(last, run, column)
    # Carry each run's latest row forward; -1 stays where no row has come yet.
    latest = np.maximum.accumulate(np.where(position >= 0, np.arange(len(grid)), -1), axis=1)
    position = np.where(latest >= 0, np.take_along_axis(position, latest, axis=1), -1)
    ends = position[:, -1]
    return Runs(
        seeds=tuple(seeds.tolist()),
        checkpoints=grid,
        epsilon=epsilon,
        numbers={
            name: np.where(position >= 0, every[position], np.nan)
            for name, every in numbers.items()
        },
        last={name: tuple(every[end] for end in ends) for name, every in words.items()},
        reached=(last[:, None] >= np.arange(len(grid))).sum(axis=0),
        values=None if values is None else _estimates(values[end] for end in ends),
    )


def _estimates(values: Iterable[Any]) -> Floats:
    """(R, K) estimates; None inside one, as files write it, is unknown."""
    return np.array(
        [[np.nan if each is None else float(each) for each in run] for run in values], dtype=float
    )


def _floats(column: pd.Series[Any]) -> Floats:
    """(N,) numbers or yes/no; missing and infinite become NaN."""
    if column.dtype.kind in "fiub" and isinstance(column.dtype, np.dtype):
        values = column.to_numpy(dtype=float)
    else:
        missing: Sequence[bool] = column.isna().tolist()
        pairs = zip(column.tolist(), missing, strict=True)
        values = np.array([np.nan if unknown else float(each) for each, unknown in pairs])
    return np.where(np.isfinite(values), values, np.nan)


def _texts(column: pd.Series[Any]) -> list[str | None]:
    missing: Sequence[bool] = column.isna().tolist()
    pairs = zip(column.tolist(), missing, strict=True)
    return [None if unknown else str(each) for each, unknown in pairs]
