"""What a study or a replay found, as plain data: sentences, tables and figures.

Every measured number is a `Measured`: a mean over seeds with its 95% interval, if there were seeds
enough for one. Nothing here knows of HTML, terminals or Markdown.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from equipoise.replay.results.averages import (
    RIGHT,
    Floats,
    bootstrap_interval,
    mean_with_interval,
    resample_counts,
    resampled_means,
    share_with_interval,
)


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over seeds and its 95% interval; None where unknown."""

    mean: float | None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Percentage(Measured):
    """A measured share of runs, from 0 to 1, which people read in percent."""


Grade: TypeAlias = Literal["right", "near", "wrong", "silent"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What an estimator recommends in the end, judged by the truth.

    grade: silent where it recommends nothing. often: how many runs are right, in words. advice:
    what else it advises.
    """

    grade: Grade
    recommended: str = ""
    regret: Measured = Measured(None)
    often: str = ""
    advice: str = ""


Entry: TypeAlias = str | int | float | Measured | Verdict | None
"""A cell of a table: text, an exact number, a measured one, a verdict, or nothing."""


@dataclass(frozen=True, slots=True)
class Table:
    """columns: C headings. rows: each of C entries; the first one names the row.

    title: what it shows, in a line. caption: how to read it and the unit of its numbers.
    """

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One family (or policy) along the x of its panel. points: as many as x has."""

    name: str
    points: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """x: positions in increasing order; lines: what is drawn over them."""

    title: str
    x: tuple[float, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """Panels side by side with common axes. log_x, log_y: logarithmic axes."""

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    panels: tuple[CurvePanel, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class Progress(Curves):
    """Curves over randomized requests, which stand on a square-root scale, as regrets do.

    A logarithmic scale has no zero; a linear one hides what is close to it. root_y: the vertical
    axis is on a square-root scale too. level: what to compare with, a horizontal line.
    """

    root_y: bool = False
    level: float | None = None


@dataclass(frozen=True, slots=True)
class Estimates:
    """What K models are truly worth, and what each line says of them.

    truth: (K,) in falling order. routing: true value of what is deployed. lines: K points each.
    """

    name: str
    title: str
    caption: str
    models: tuple[str, ...]
    truth: tuple[float, ...]
    routing: float | None
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Dot:
    """What an estimator (name) comes to under a policy: a measured place on both axes."""

    name: str
    policy: str
    x: Measured
    y: Measured


@dataclass(frozen=True, slots=True)
class Scatter:
    """Policies and estimators by two measured quantities; upwards on a square-root scale."""

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class HeatPanel:
    """cells[i][j]: measured at y[i] and x[j]."""

    title: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    cells: tuple[tuple[Measured, ...], ...]


@dataclass(frozen=True, slots=True)
class Heatmaps:
    """Panels side by side on one diverging colour scale around 0.

    below, above: what a negative and a positive cell means, in a few words; below is empty where
    no cell can be negative.
    """

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    below: str
    above: str
    panels: tuple[HeatPanel, ...]


Figure: TypeAlias = Curves | Heatmaps | Estimates | Scatter


@dataclass(frozen=True, slots=True)
class Findings:
    """What was found, for a page, a terminal or a document.

    experiment: the study's name, empty for a replay. title: the question it asks. sentences: the
    answer, headline first. figures: consecutive ones of one name are variants of the same figure.
    """

    experiment: str
    title: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]


def measured(values: Floats, least: float = -np.inf) -> Measured:
    """The mean of (R,) seeds; differences of the same seeds give a paired interval. least: what no
    value can be below, as 0 for regrets and errors."""
    means = mean_with_interval(values[:, None], least)
    return entry(means.mean[0], means.low[0], means.high[0])


def share(yes: Floats) -> Measured:
    """The share of yes (1) among (R,) seeds, with Wilson's interval."""
    means = share_with_interval(yes[:, None])
    return entry(means.mean[0], means.low[0], means.high[0])


def root_mean_square(values: Floats) -> Measured:
    """sqrt of the mean square of (R,) seeds."""
    squares = values[:, None] ** 2
    drawn = np.sqrt(resampled_means(squares)[:, 0])
    return _with_ends(np.sqrt(_mean(squares)[0]), drawn, len(values))


def bias_and_deviation(errors: Floats) -> tuple[Measured, Measured]:
    """Root mean squares over K models of bias and of standard deviation, from (R, K) errors.

    The square of the bias is estimated from pairs of different seeds, so that the noise of a
    finite number of seeds is no part of it; bias² + deviation² is the mean square error. Unknown
    with fewer than two seeds, or where a value is unknown.
    """
    runs = len(errors)
    if runs < 2 or not np.isfinite(errors).all():
        return Measured(None), Measured(None)
    products = errors @ errors.T / errors.shape[1]
    squares = np.diagonal(products)

    def parts(counts: Floats) -> tuple[Floats, Floats]:
        every = np.einsum("bi,ij,bj->b", counts, products, counts)
        # A seed drawn twice makes no pair of different seeds.
        same, pairs = counts**2 @ squares, runs**2 - (counts**2).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            squared = (every - same) / pairs
        variance = counts @ squares / runs - squared
        return np.sqrt(np.maximum(squared, 0.0)), np.sqrt(np.maximum(variance, 0.0))

    bias, deviation = parts(np.ones((1, runs)))
    biases, deviations = parts(resample_counts(runs))
    return _with_ends(bias[0], biases, runs), _with_ends(deviation[0], deviations, runs)


def _mean(values: Floats) -> Floats:
    finite = np.isfinite(values)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean: Floats = np.where(finite, values, 0.0).sum(axis=0) / finite.sum(axis=0)
    return mean


def _with_ends(mean: float, resampled: Floats, runs: int) -> Measured:
    return entry(mean, *bootstrap_interval(resampled[np.isfinite(resampled)], runs))


def entry(mean: float, low: float, high: float) -> Measured:
    """Numbers as a Measured; None where unknown."""
    ends = [float(each) if np.isfinite(each) else None for each in (mean, low, high)]
    return Measured(ends[0], ends[1], ends[2])


def above_zero(value: Measured) -> bool:
    """Whether the whole interval lies above 0."""
    return value.low is not None and value.low > 0


def beaten(losses: dict[str, Floats]) -> dict[str, bool]:
    """By name, whether the losses (R,) are above those of the best mean, beyond seeds' noise."""
    best = lowest(losses)
    return {name: above_zero(measured(each - losses[best])) for name, each in losses.items()}


def lowest(losses: dict[str, Floats]) -> str:
    """The name whose losses (R,) have the lowest mean; the first one of several."""
    means = {name: _mean(each[:, None])[0] for name, each in losses.items()}
    return min(means, key=lambda name: np.inf if np.isnan(means[name]) else means[name])


def tied(losses: dict[str, Floats]) -> list[str]:
    """All names whose losses (R,) have the lowest mean."""
    least = _mean(losses[lowest(losses)][:, None])[0]
    return [name for name, each in losses.items() if _mean(each[:, None])[0] <= least + RIGHT]


def in_sentence(value: Measured, digits: int = 3) -> str:
    """A measured number in a sentence."""
    if value.mean is None:
        return "unknown"
    if value.low is None or value.high is None:
        return f"{value.mean:.{digits}f}"
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence: a, b and c."""
    if len(names) < 2:
        return "".join(names)
    return f"{', '.join(names[:-1])} and {names[-1]}"
