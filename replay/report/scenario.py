"""Figures of the page under their ids, and the keys that explain their lines and marks."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from equipoise.agent.inference.projection import within_range
from equipoise.replay.report.figures import (
    Curve,
    Dot,
    Upwards,
    curves_figure,
    dots_figure,
    linear,
    logarithmic,
    rooted,
    values_figure,
)
from equipoise.replay.report.style import Figure, Style, estimator_style, policy_style, safe
from equipoise.replay.report.tables import text
from equipoise.replay.results.averages import (
    NAIVE,
    Floats,
    Mean,
    Pair,
    Runs,
    mean_with_interval,
    share_with_interval,
)

Row: TypeAlias = Mapping[str, Any]
MOST_MODELS = 12
"""Models in the figure of values: the best ones, and those somebody recommends."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One figure with what stands above it and what a reader who cannot see it is told."""

    heading: str
    description: str
    figure: Figure


@dataclass(frozen=True, slots=True)
class ScenarioFigures:
    """values, regret, errors: one panel per policy. costs: one per kind of cost. certified: two.

    estimates_known: whether the results say what each estimator thinks of each model.
    """

    values: list[Panel]
    estimates_known: bool
    omitted_models: int
    regret: list[Panel]
    errors: list[Panel]
    costs: list[Panel]
    certified: list[Panel]


def scenario_figures(
    scenario: Mapping[str, Any],
    rows: Sequence[Row],
    runs: Mapping[Pair, Runs],
    policies: Sequence[str],
    estimators: Sequence[str],
    models: Sequence[str],
    options: Mapping[str, Any],
) -> ScenarioFigures:
    """All figures of a scenario. policies, estimators: those of the report, in its order."""
    styles = {name: estimator_style(name, estimators) for name in estimators}
    shown = _shown_models(scenario, rows)
    estimates_known = any(each.values is not None for each in runs.values())
    families = {pair: each for pair, each in runs.items() if pair[1] != NAIVE}
    mine = [policy for policy in policies if any(pair[0] == policy for pair in runs)]
    return ScenarioFigures(
        values=[
            _values(scenario, runs, policy, styles, shown, models)
            for policy in (mine if estimates_known else mine[:1])
        ],
        estimates_known=estimates_known,
        omitted_models=len(models) - len(shown),
        regret=curve_panels(runs, mine, styles, "regret", "mean regret"),
        errors=curve_panels(families, mine, styles, "rmse_contrast", "RMSE of contrasts"),
        costs=_costs(rows, policies, styles),
        certified=_certified(runs, mine, policies, options.get("delta")),
    )


def _shown_models(scenario: Mapping[str, Any], rows: Sequence[Row]) -> list[str]:
    values = {each["model"]: each["value"] for each in scenario["models"]}
    ranked = sorted(values, key=lambda name: -values[name])
    said = {row["recommended"] for row in rows} | {scenario["naive"]["model"]}
    kept = set(ranked[:MOST_MODELS]) | said
    return [name for name in ranked if name in kept]


def _values(
    scenario: Mapping[str, Any],
    runs: Mapping[Pair, Runs],
    policy: str,
    styles: Mapping[str, Style],
    shown: Sequence[str],
    models: Sequence[str],
) -> Panel:
    picked = [list(models).index(name) for name in shown]
    truth = {each["model"]: each["value"] for each in scenario["models"]}
    estimates: list[tuple[Style, Mean]] = []
    for name, style in styles.items():
        mine = runs.get((policy, name))
        if mine is not None and mine.values is not None:
            # A world's rewards lie in [0, 1]; an estimator's answer need not.
            means = mean_with_interval(mine.values[:, picked])
            ends = (within_range(part, 0.0, 1.0) for part in (means.mean, means.low, means.high))
            estimates.append((style, Mean(*ends)))
    known = bool(estimates)
    if not known and NAIVE in styles:
        limits = {each["model"]: each["naive_limit"] for each in scenario["models"]}
        limit = np.array([limits[name] for name in shown], dtype=float)
        unknown = np.full(len(shown), np.nan)
        estimates = [(styles[NAIVE], Mean(limit, unknown, unknown))]
    figure = values_figure(
        shown, [truth[name] for name in shown], scenario["routing"]["value"], estimates
    )
    description = f"Dot plot of the true values of {len(shown)} models and of what is said of them."
    if not known:
        return Panel("truth and usage log", description, figure)
    return Panel(f"under the policy {policy}", description, figure)


def curve_panels(
    runs: Mapping[Pair, Runs],
    policies: Sequence[str],
    styles: Mapping[str, Style],
    column: str,
    title: str,
) -> list[Panel]:
    """One figure of curves per policy, all on the same scale."""
    curves = {
        policy: [
            _curve(runs[policy, name], style, column, mean_with_interval)
            for name, style in styles.items()
            if (policy, name) in runs
        ]
        for policy in policies
    }
    upwards = _upwards([curve.means for each in curves.values() for curve in each], title)
    return [
        Panel(
            policy,
            f"{title} of every estimator against randomized requests under {policy}.",
            curves_figure(each, upwards),
        )
        for policy, each in curves.items()
        if each
    ]


def _upwards(means: Sequence[Mean], title: str) -> Upwards:
    """Regret reaches zero and needs a scale that has it; an error falls by factors."""
    low = _positive([each.mean for each in means])
    high = _positive([*(each.mean for each in means), *(each.high for each in means)])
    if title == "mean regret":
        return rooted(title, 1.05 * high.max() if len(high) else 1.0)
    if not len(low):
        return linear(title, 1.0)
    return logarithmic(title, low.min() / 1.3, high.max() * 1.2)


def _positive(arrays: Sequence[Floats]) -> Floats:
    every: Floats = np.concatenate([*arrays, np.zeros(0)])
    positive: Floats = every[np.isfinite(every) & (every > 0)]
    return positive


def _curve(runs: Runs, style: Style, column: str, average: Callable[[Floats], Mean]) -> Curve:
    extent = runs.extent
    return Curve(style, runs.checkpoints[:extent], average(runs.numbers[column][:, :extent]))


def _costs(
    rows: Sequence[Row], policies: Sequence[str], styles: Mapping[str, Style]
) -> list[Panel]:
    panels = []
    for column, title in (("harm", "harm (reward units)"), ("spend", "spend (USD)")):
        dots = []
        for row in rows:
            if row["estimator"] == NAIVE or row[column]["mean"] is None:
                continue
            colour = styles[row["estimator"]].colour
            symbol = policy_style(row["policy"], policies).symbol
            label = f"{row['policy']} × {row['estimator']}"
            style = Style(label, colour, "solid", symbol)
            dots.append(Dot(style, label, row[column], row["regret_average"]))
        # Models without a price tag all cost 0: nothing to see.
        if any(dot.x["mean"] for dot in dots):
            description = f"Average regret of every policy and estimator against {title}."
            panels.append(
                Panel(title, description, dots_figure(dots, title, "average regret on the way"))
            )
    return panels


def _certified(
    runs: Mapping[Pair, Runs],
    policies: Sequence[str],
    known: Sequence[str],
    delta: float | None,
) -> list[Panel]:
    panels = []
    kinds = (
        ("width", "Half-width of the certified contrasts", "mean half-width", mean_with_interval),
        ("covered", "Coverage of the certified contrasts", "share covered", share_with_interval),
    )
    for column, heading, title, average in kinds:
        curves = []
        for policy in policies:
            streams = [each for pair, each in runs.items() if pair[0] == policy]
            # The log alone rides on another family's stream; it has none of its own.
            own = [runs[pair] for pair in runs if pair[0] == policy and pair[1] != NAIVE]
            curves.append(_joint(own or streams, policy_style(policy, known), column, average))
        if column == "covered":
            figure = curves_figure(
                curves, linear(title, 1.03), 0.07, None if delta is None else 1 - delta
            )
        else:
            widest = _positive([curve.means.mean for curve in curves])
            figure = curves_figure(curves, linear(title, 1.05 * max([*widest, 1e-3])))
        description = f"{heading} against randomized requests, one line per policy."
        panels.append(Panel(heading, description, figure))
    return panels


def _joint(
    streams: Sequence[Runs], style: Style, column: str, average: Callable[[Floats], Mean]
) -> Curve:
    """Average over the streams of one policy, run by run: one seed is one piece of evidence."""
    seeds = sorted({seed for each in streams for seed in each.seeds})
    grid = streams[0].checkpoints
    total, number = np.zeros((len(seeds), len(grid))), np.zeros((len(seeds), len(grid)))
    for each in streams:
        at = np.searchsorted(seeds, each.seeds)
        known = np.isfinite(each.numbers[column])
        total[at] += np.where(known, each.numbers[column], 0.0)
        number[at] += known
    joint = np.where(number > 0, total / np.maximum(number, 1), np.nan)
    extent = max(each.extent for each in streams)
    return Curve(style, grid[:extent], average(joint[:, :extent]))


DASH_ARRAYS = {
    "solid": "",
    "dot": "2 3",
    "dash": "6 3",
    "longdash": "9 3",
    "dashdot": "6 3 2 3",
    "longdashdot": "9 3 2 3",
}
OUTLINES = {
    "circle": "M5 0A5 5 0 1 1 5 10A5 5 0 1 1 5 0Z",
    "square": "M0.5 0.5H9.5V9.5H0.5Z",
    "diamond": "M5 -0.5L10.5 5L5 10.5L-0.5 5Z",
    "triangle-up": "M5 0L10 9.5H0Z",
    "x": "M2 0L5 3L8 0L10 2L7 5L10 8L8 10L5 7L2 10L0 8L3 5L0 2Z",
    "star": "M5 0L6.3 3.5L10 3.7L7.1 6L8.1 9.6L5 7.5L1.9 9.6L2.9 6L0 3.7L3.7 3.5Z",
    "triangle-down": "M0 0.5H10L5 10Z",
    "hexagon": "M5 0L9.5 2.5V7.5L5 10L0.5 7.5V2.5Z",
}


class Sheet:
    """Collects the figures of the page and gives each an id: fig-1, fig-2, …"""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

    def __len__(self) -> int:
        return len(self._figures)

    def place(self, panel: Panel) -> str:
        """Keep a panel's figure; return the HTML where it will be drawn."""
        name = f"fig-{len(self._figures) + 1}"
        self._figures[name] = panel.figure
        height = panel.figure["layout"]["height"]
        return (
            f'<figure><figcaption>{text(panel.heading)}</figcaption><div class="plot" '
            f'id="{name}" role="img" aria-label="{text(panel.description)}" '
            f'style="min-height:{height}px"></div></figure>'
        )

    def grid(self, panels: Sequence[Panel], kind: str = "") -> str:
        """Figures side by side where there is room. kind: a further class, "single" for one."""
        kind = "single" if len(panels) == 1 else kind
        return f'<div class="grid {kind}">' + "".join(map(self.place, panels)) + "</div>"

    def as_json(self) -> str:
        """All figures as JSON that may stand inside a script element."""
        found = json.dumps(self._figures, sort_keys=True, allow_nan=False, separators=(",", ":"))
        for character in "<>&\u2028\u2029":
            found = found.replace(character, f"\\u{ord(character):04x}")
        return found


def line_keys(styles: Sequence[Style], marked: bool = False) -> str:
    """Buttons with a sample of each line; they hide and show it in the figures of their section.

    marked: the lines carry the marks of their styles.
    """
    keys = []
    for style in styles:
        mark = (
            f'<path transform="translate(10)" d="{OUTLINES[style.symbol]}" '
            f'style="fill:var(--{style.colour})"/>'
        )
        keys.append(
            f'<button type="button" class="key" aria-pressed="true" '
            f'data-line="{text(safe(style.name))}"><svg width="30" height="10" '
            'aria-hidden="true"><line x1="0" y1="5" x2="30" y2="5" '
            f'style="stroke:var(--{style.colour})" '
            f'stroke-dasharray="{DASH_ARRAYS[style.dash]}"/>{mark if marked else ""}</svg>'
            f"{_name(style)}</button>"
        )
    return "".join(keys)


def mark_keys(styles: Sequence[Style]) -> str:
    """Names with their mark, in the colour of the text: the colour means something else there."""
    return "".join(_mark(style, style.symbol, "currentColor") for style in styles)


def dot_keys(styles: Sequence[Style], symbol: str | None = None) -> str:
    """Names with their mark in their colour. symbol: a mark for all, where it means nothing."""
    return "".join(
        _mark(style, symbol or style.symbol, f"var(--{style.colour})") for style in styles
    )


def _mark(style: Style, symbol: str, colour: str) -> str:
    return (
        '<span class="key"><svg width="12" height="12" viewBox="-1 -1 12 12" aria-hidden="true">'
        f'<path d="{OUTLINES[symbol]}" style="fill:{colour}"/></svg>{_name(style)}</span>'
    )


def _name(style: Style) -> str:
    return "usage log alone" if style.name == NAIVE else text(style.name)
