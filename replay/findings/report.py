"""A replay as findings: who finds the best model, how soon, how exactly, at what cost.

Nobody knows a setting of α and ω beforehand: what counts is the mean over them, and the worst.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
from rich.console import Console

from equipoise.agent.inference.projection import within_range
from equipoise.replay.findings.findings import (
    CurvePanel,
    Dot,
    Entry,
    Estimates,
    Figure,
    Findings,
    Heatmaps,
    HeatPanel,
    Line,
    Measured,
    Progress,
    Scatter,
    Table,
    entry,
    measured,
)
from equipoise.replay.findings.page import Tile, label, write_page
from equipoise.replay.findings.report_tables import (
    LOST,
    Row,
    certificates,
    costs,
    distinct,
    every_number,
    number,
    verdicts,
)
from equipoise.replay.findings.text import MOST_WIDTH, print_findings
from equipoise.replay.results.averages import (
    NAIVE,
    Counts,
    Floats,
    Mean,
    Pair,
    Runs,
    Scenario,
    bootstrap_interval,
    mean_by_seed,
    mean_with_interval,
    resampled_means,
    runs_by_scenario,
    share_with_interval,
    together,
)
from equipoise.replay.results.summary import best_name, reward, target

Average: TypeAlias = Callable[[Floats], Mean]

NONNEGATIVE: Average = partial(mean_with_interval, least=0.0)
"""Of regrets, errors and widths."""

MOST_MODELS = 12
"""Models in the figure of values: the best ones, and those somebody recommends."""


def write_report(
    path: Path, results: pd.DataFrame, summary: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write the report of a replay to `path`. The same input gives the same bytes.

    results and meta as `summarize` takes them, summary as it returns it.
    """
    rows, scenarios = summary["rows"], summary["scenarios"]
    runs = runs_by_scenario(results, float(meta["options"].get("epsilon", 0.0)))
    if not meta.get("usage_log", True):
        # The comparison of a log that is not there.
        runs = {
            setting: {pair: each for pair, each in of_setting.items() if pair[1] != NAIVE}
            for setting, of_setting in runs.items()
        }
    described = {
        **meta,
        "options": {
            "policies": distinct(rows, "policy"),
            "estimators": [name for name in distinct(rows, "estimator") if name != NAIVE],
            **meta["options"],
        },
    }
    settings = []
    for scenario in scenarios:
        key: Scenario = (scenario["alpha"], scenario["confounding"])
        inside = [row for row in rows if (row["alpha"], row["confounding"]) == key]
        settings.append(setting_findings(scenario, inside, runs[key], meta))
    if len(settings) > 1:
        findings = overall_findings(summary, runs)
        write_page(path, findings, described, settings, _tiles(summary))
    else:
        own = (scenarios[0]["naive"]["sentence"], scenarios[0]["routing"]["sentence"])
        sentences = (summary["headline"], *summary["notes"], *filter(None, own))
        whole = replace(settings[0], title=meta["title"], sentences=sentences)
        write_page(path, whole, described, tiles=_tiles(summary))


def print_summary(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the headline, who recommends what, what it cost, and what to open next."""
    scenarios, rows = summary["scenarios"], summary["rows"]
    sentences = [summary["headline"], *summary["notes"]]
    if len(scenarios) == 1:
        sentences += [scenarios[0]["naive"]["sentence"], scenarios[0]["routing"]["sentence"]]
    sentences = [each for each in sentences if each]
    log = scenarios[0]["usage_log"]
    tables = (verdicts(rows, len(scenarios)), costs(rows, log))
    print_findings(console, Findings("", summary["title"], tuple(sentences), tables, ()))
    console.print(
        "Next: open report.html for every number with its interval and the curves; results.parquet"
        " holds one row per run and checkpoint.",
        width=min(console.width, MOST_WIDTH),
    )


def setting_findings(
    scenario: Mapping[str, Any],
    rows: Sequence[Row],
    runs: Mapping[Pair, Runs],
    meta: Mapping[str, Any],
) -> Findings:
    """What one setting showed. rows: of the summary; runs: by policy and estimator."""
    verdict = (
        "the log misleads, " if scenario["naive"]["misleads"] else "the log does not mislead, "
    )
    log = scenario["usage_log"]
    return Findings(
        experiment="",
        title=f"α = {scenario['alpha']:g}, ω = {scenario['confounding']:g}: {verdict * log}"
        f"{scenario['pairs_right']} of {scenario['pairs']} pairs find {target(scenario)}",
        sentences=tuple(
            filter(
                None,
                (
                    scenario["naive"]["sentence"],
                    scenario["routing"]["sentence"],
                    scenario["pairs_sentence"],
                ),
            )
        ),
        tables=(verdicts(rows, 1), certificates(rows, log), every_number(rows, log)),
        figures=(
            *_values(scenario, rows, runs, meta["models"]),
            _regret(runs, "How soon: regret against randomized requests", "Mean over runs"),
            _errors(runs, "How exactly: error of the differences between models", "Over all pairs"),
            *_cost_dots(rows, log),
            *_certified_curves(runs, meta["options"].get("delta")),
        ),
    )


def overall_findings(
    summary: Mapping[str, Any], runs: Mapping[Scenario, Mapping[Pair, Runs]]
) -> Findings:
    """What all settings together showed. runs: by setting, then by policy and estimator."""
    pairs = dict.fromkeys(pair for each in runs.values() for pair in each)
    policies = distinct(summary["rows"], "policy")
    several = {
        pair: parts
        for pair in pairs
        if len(parts := [r[pair] for r in runs.values() if pair in r]) > 1
    }
    joint = {pair: together(parts) for pair, parts in several.items()}
    return Findings(
        experiment="",
        title=summary["title"],
        sentences=(summary["headline"], *summary["notes"]),
        tables=(verdicts(summary["rows"], len(runs)), _worst_settings(runs, joint)),
        figures=(
            _regret(joint, f"How soon: regret over all {len(runs)} settings", "Mean over settings"),
            _errors(joint, "How exactly: RMSE over all settings", "Mean over settings and runs"),
            *(_maps(summary["rows"], policy) for policy in policies),
        ),
    )


def worst(parts: Sequence[Runs], seeds: Sequence[int]) -> tuple[int, Measured]:
    """Which setting has the largest mean final regret, and that regret.

    The interval resamples seeds and looks for the worst setting anew each time.
    """
    finals = np.array([each.final("regret")[np.isin(each.seeds, seeds)] for each in parts]).T
    means: Floats = finals.mean(axis=0)
    at = int(means.argmax())
    return at, entry(means[at], *bootstrap_interval(_worst_of(finals), len(finals)))


def _worst_of(finals: Floats) -> Floats:
    """(RESAMPLES,) the largest mean over settings, of (R, settings) regrets."""
    largest: Floats = resampled_means(finals).max(axis=1)
    return largest


def _tiles(summary: Mapping[str, Any]) -> list[Tile]:
    scenarios = summary["scenarios"]
    pairs = sum(each["pairs"] for each in scenarios)
    right = sum(each["pairs_right"] for each in scenarios)
    if len(scenarios) > 1:
        misled = summary["naive"]["scenarios_misled"]
        return [
            ("the log misleads in", f"{misled} of {len(scenarios)}", "settings of α and ω"),
            ("found the best model", f"{right} of {pairs}", "settings × policies × estimators"),
        ]
    (one,) = scenarios
    naive, best, routing = one["naive"], one["best"], one["routing"]["value"]
    found = (f"found {target(one)}", f"{right} of {pairs}", "policy × estimator pairs")
    truly = ("the best model is", best_name(one), f"truly worth {reward(best['value'])}")
    if not one["usage_log"]:
        return [truly, found]
    return [
        ("the log recommends", naive["model"], f"truly worth {reward(naive['value'])}"),
        truly,
        ("today’s routing", reward(routing), "worth of what is deployed"),
        found,
    ]


def _worst_settings(
    runs: Mapping[Scenario, Mapping[Pair, Runs]], joint: Mapping[Pair, Runs]
) -> Table:
    lines: list[tuple[Entry, ...]] = []
    for pair, mean in joint.items():
        parts = {key: each[pair] for key, each in runs.items() if pair in each}
        at, regret = worst(list(parts.values()), mean.seeds)
        alpha, confounding = list(parts)[at]
        lines.append(
            (
                f"{pair[0]} × {label(pair[1])}",
                f"α = {alpha:g}, ω = {confounding:g}",
                regret,
                measured(mean.final("regret")),
                measured(mean.average_regret),
                measured(mean.final("rmse_contrast")),
            )
        )
    return Table(
        "worst",
        "The worst setting, and the mean over all",
        "The worst setting of an estimator is the one with its largest mean regret. The largest of "
        "several averages is partly chance; so is its interval, which looks for the worst anew in "
        "every resample.",
        (
            *("policy × estimator", "worst setting", "regret there"),
            *("regret, mean over settings", "average regret on the way", "RMSE of contrasts"),
        ),
        tuple(lines),
    )


def _values(
    scenario: Mapping[str, Any],
    rows: Sequence[Row],
    runs: Mapping[Pair, Runs],
    models: Sequence[str],
) -> Iterator[Estimates]:
    """One figure per policy, or the limits of the log where no estimates are known."""
    truth = {each["model"]: each["value"] for each in scenario["models"]}
    ranked = sorted(truth, key=lambda name: -truth[name])
    named = {row["recommended"] for row in rows} | {scenario["naive"]["model"]}
    drawn = [name for name in ranked if name in named or name in ranked[:MOST_MODELS]]
    places = [list(models).index(name) for name in drawn]
    omitted = (
        f" Shown are {len(drawn)} of {len(models)} models: the best, and those that somebody "
        "recommends."
        if len(drawn) < len(models)
        else ""
    )

    def figure(title: str, caption: str, lines: Sequence[Line]) -> Estimates:
        values, routing = tuple(truth[name] for name in drawn), scenario["routing"]["value"]
        return Estimates(
            "values", title, caption + omitted, tuple(drawn), values, routing, tuple(lines)
        )

    lines: dict[str, list[Line]] = {}
    for (policy, estimator), each in runs.items():
        if each.values is not None:
            # A world's rewards lie in [0, 1]; an estimator's answer need not.
            means = mean_with_interval(each.values[:, places])
            ends = (within_range(part, 0.0, 1.0) for part in (means.mean, means.low, means.high))
            lines.setdefault(policy, []).append(Line(estimator, _measures(Mean(*ends))))
    question = "Does the usage log mislead?" if scenario["usage_log"] else "What does each say?"
    for policy, of_policy in lines.items():
        yield figure(
            f"{question} Estimates under {policy}",
            "A bar is the true value of a model; marks are what each estimator says of it at the "
            "end, with 95% intervals of the mean over runs. Models are sorted by their true value.",
            of_policy,
        )
    if not lines:
        limits = {each["model"]: each["naive_limit"] for each in scenario["models"]}
        naive = Line(NAIVE, tuple(Measured(limits[name]) for name in drawn))
        yield figure(
            "Does the usage log mislead?",
            "A bar is the true value of a model, a cross its mean reward in an endless usage log. "
            "Models are sorted by their true value.",
            [naive] if any(estimator == NAIVE for _, estimator in runs) else [],
        )


def _measures(means: Mean) -> tuple[Measured, ...]:
    return tuple(map(entry, means.mean, means.low, means.high))


def _regret(runs: Mapping[Pair, Runs], title: str, mean: str) -> Progress:
    return _progress(
        title,
        f"{mean} with its 95% band; one figure per policy, all on the same scale. Both axes are on "
        "a square-root scale, which opens up what is close to zero.",
        "mean regret",
        _panels(runs, "regret"),
        root_y=True,
    )


def _errors(runs: Mapping[Pair, Runs], title: str, mean: str) -> Progress:
    return _progress(
        title,
        f"Root mean squared error of the differences between models. {mean}, with its 95% band, on "
        "a logarithmic scale. An unknown error is not drawn. A line that stops falling has met a "
        "bias that more requests do not cure.",
        "RMSE of contrasts",
        _panels({pair: each for pair, each in runs.items() if pair[1] != NAIVE}, "rmse_contrast"),
        log_y=True,
    )


def _progress(
    title: str, caption: str, y_label: str, panels: Iterable[CurvePanel], **scales: Any
) -> Progress:
    places = "randomized requests", y_label, tuple(panels)
    return Progress(title, title, caption, *places, **scales)


def _panels(runs: Mapping[Pair, Runs], column: str) -> Iterator[CurvePanel]:
    """A panel for every policy, to the last checkpoint that half of some stream's runs reached."""
    for policy in dict.fromkeys(policy for policy, _ in runs):
        streams = {name: each for (other, name), each in runs.items() if other == policy}
        yield _panel(
            policy,
            next(iter(streams.values())).checkpoints,
            {
                # Regrets and errors are never negative.
                name: (each.numbers[column][:, : each.extent], NONNEGATIVE)
                for name, each in streams.items()
            },
        )


def _panel(
    title: str, checkpoints: Counts, curves: Mapping[str, tuple[Floats, Average]]
) -> CurvePanel:
    """Averages of curves by name, each as long as it is known; the longest one ends the panel."""
    longest = max(values.shape[1] for values, _ in curves.values())
    lines = []
    for name, (values, average) in curves.items():
        unknown = (Measured(None),) * (longest - values.shape[1])
        lines.append(Line(name, _measures(average(values)) + unknown))
    return CurvePanel(title, tuple(checkpoints[:longest].astype(float).tolist()), tuple(lines))


def _cost_dots(rows: Sequence[Row], log: bool) -> Iterator[Scatter]:
    harm = (
        "Harm is the expected reward lost by serving randomized requests another model than the "
        "routed one; it is negative where randomizing did users good."
    )
    spend = "Spend is what answers to randomized requests cost."
    for column, title, meaning in (
        *[("harm", LOST[0], harm)][:log],
        ("spend", "spend (USD)", spend),
    ):
        dots = tuple(
            Dot(
                row["estimator"],
                row["policy"],
                number(row[column]),
                number(row["regret_average"]),
            )
            for row in rows
            if row["estimator"] != NAIVE and row[column]["mean"] is not None
        )
        # Models without a price tag all cost 0: nothing to see.
        if any(dot.x.mean for dot in dots):
            yield Scatter(
                f"cost-{column}",
                f"At what cost: {title}",
                "Down is better, left is cheaper; upwards on a square-root scale. The average "
                f"regret is the area under the regret curve, divided by its length. {meaning}",
                title,
                "average regret on the way",
                dots,
            )


def _certified_curves(runs: Mapping[Pair, Runs], delta: float | None) -> Iterator[Progress]:
    kinds: tuple[tuple[str, str, str, Average], ...] = (
        ("width", "half-width of the certified contrasts", "mean half-width", NONNEGATIVE),
        ("covered", "coverage of the certified contrasts", "share covered", share_with_interval),
    )
    for column, title, y_label, average in kinds:
        curves, grid = {}, next(iter(runs.values())).checkpoints
        for policy in dict.fromkeys(policy for policy, _ in runs):
            streams = {name: each for (other, name), each in runs.items() if other == policy}
            # The log alone rides on another family's stream; it has none of its own.
            own = [each for name, each in streams.items() if name != NAIVE]
            curves[policy] = (mean_by_seed(own or list(streams.values()), column), average)
        level = None if delta is None or column == "width" else 1 - delta
        caption = "One line per policy." + " Dashed: the promised coverage." * (level is not None)
        panel = _panel("", grid, curves)
        yield _progress(f"Certified: {title}", caption, y_label, [panel], level=level)


def _maps(rows: Sequence[Row], policy: str) -> Figure:
    """Final regret over alignment x confounding, a map per estimator."""
    alphas = sorted({row["alpha"] for row in rows})
    confoundings = sorted({row["confounding"] for row in rows})
    regrets = {
        (row["estimator"], row["alpha"], row["confounding"]): number(row["regret"])
        for row in rows
        if row["policy"] == policy
    }
    panels = [
        HeatPanel(
            label(name),
            tuple(confoundings),
            tuple(alphas),
            tuple(
                tuple(regrets.get((name, a, w), Measured(None)) for w in confoundings)
                for a in alphas
            ),
        )
        for name in distinct(rows, "estimator")
    ]
    return Heatmaps(
        "maps",
        f"Where it holds: regret over alignment and confounding, under {policy}",
        "Final regret in every setting; the stronger the colour, the worse. All maps share one "
        "scale. A dash was not run.",
        "confounding ω",
        "alignment α",
        "",
        "regret",
        tuple(panels),
    )
