"""Assemble report.html: sections, figures and tables in one file.

Nobody knows a setting beforehand: what counts is the mean over them, and the worst of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.report.figures import MapCell, map_html
from equipoise.replay.report.scenario import (
    ScenarioFigures,
    Sheet,
    curve_panels,
    dot_keys,
    line_keys,
    mark_keys,
    scenario_figures,
)
from equipoise.replay.report.style import (
    embedded,
    estimator_style,
    interval_text,
    part,
    policy_style,
)
from equipoise.replay.report.tables import (
    certified_table,
    facts,
    figure,
    full_table,
    table,
    text,
    verdict_table,
)
from equipoise.replay.results.averages import (
    NAIVE,
    TAILS,
    Counts,
    Floats,
    Mean,
    Pair,
    Runs,
    Scenario,
    area_under,
    mean_with_interval,
    resampled_means,
    runs_by_scenario,
)
from equipoise.replay.results.headline import NEAR, best_name, percent, reward
from equipoise.replay.results.summary import as_json

NOTE_ESTIMATES = (
    "A bar is the true value of a model; marks are what each estimator says of it at the end, with "
    "95% intervals of the mean over runs. Models are sorted by their true value."
)
NOTE_LIMITS = (
    "A bar is the true value of a model, a cross its mean reward in an endless usage log. Models "
    "are sorted by their true value."
)


def scenario_section(
    sheet: Sheet,
    drawn: ScenarioFigures,
    scenario: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    policies: Sequence[str],
    estimators: Sequence[str],
) -> str:
    """Everything about one scenario. policies, estimators: those of the whole report."""
    styles = [estimator_style(each, estimators) for each in estimators]
    families = [style for style in styles if style.name != NAIVE]
    policy_styles = [policy_style(each, policies) for each in policies]
    first, *others = drawn.values
    omitted = ""
    if drawn.omitted_models:
        total = len(scenario["models"])
        omitted = (
            f"<p>Shown are {total - drawn.omitted_models} of {total} models: the best, and those "
            "that somebody recommends.</p>"
        )
    values = sheet.place(first)
    if others:
        values += (
            "<details><summary>The same under the other policies</summary>"
            + "".join(map(sheet.place, others))
            + "</details>"
        )
    return Template(part("scenario.html")).substitute(
        naive=text(scenario["naive"]["sentence"]),
        routing=text(scenario["routing"]["sentence"]),
        pairs=text(scenario["pairs_sentence"]),
        values='<span class="key"><i class="truth"></i>true value</span>'
        + dot_keys([each for each in styles if drawn.estimates_known or each.name == NAIVE])
        + f"</div>{omitted}{values}",
        values_note=NOTE_ESTIMATES if drawn.estimates_known else NOTE_LIMITS,
        near=f"{NEAR:g}",
        verdicts=verdict_table(rows, policies, estimators),
        keys=line_keys(styles),
        family_keys=line_keys(families),
        family_dots=dot_keys(families, "circle"),
        policy_marks=mark_keys(policy_styles),
        policy_keys=line_keys(policy_styles),
        regret=sheet.grid(drawn.regret),
        errors=sheet.grid(drawn.errors),
        costs=sheet.grid(drawn.costs, "wide"),
        certified=sheet.grid(drawn.certified, "wide"),
        certified_table=certified_table(rows),
        full=full_table(rows, list(rows[0]["settled"])),
    )


def folded(scenario: Mapping[str, Any], body: str, is_open: bool) -> str:
    """A scenario among several, under a line that says what it shows."""
    verdict = "the log misleads" if scenario["naive"]["misleads"] else "the log does not mislead"
    return (
        f'<details class="scenario"{" open" if is_open else ""}><summary>'
        f"α = {scenario['alpha']:g}, ω = {scenario['confounding']:g}: {verdict}, "
        f"{scenario['pairs_right']} of {scenario['pairs']} pairs find the best model</summary>\n"
        f"{body}\n</details>"
    )


def heat_maps(
    rows: Sequence[Mapping[str, Any]], policies: Sequence[str], estimators: Sequence[str]
) -> str:
    """Final regret over alignment x confounding, a map per policy and estimator, on one scale."""
    alphas = sorted({row["alpha"] for row in rows})
    confoundings = sorted({row["confounding"] for row in rows})
    regrets = [row["regret"]["mean"] for row in rows if row["regret"]["mean"] is not None]
    most = max(regrets, default=0.0) or 1.0
    found = {
        (row["policy"], row["estimator"], row["alpha"], row["confounding"]): row for row in rows
    }
    blocks = []
    for policy in policies:
        maps = [
            map_html(
                "usage log alone" if estimator == NAIVE else estimator,
                "confounding ω",
                "alignment α",
                [f"{each:g}" for each in confoundings],
                [f"{each:g}" for each in alphas],
                [
                    [
                        _map_cell(found.get((policy, estimator, a, w)), a, w, most)
                        for w in confoundings
                    ]
                    for a in alphas
                ],
            )
            for estimator in estimators
        ]
        is_open = " open" if policy == policies[0] else ""
        blocks.append(
            f"<details{is_open}><summary>{text(policy)}</summary>"
            f'<div class="grid small">{"".join(maps)}</div></details>'
        )
    return Template(part("maps.html")).substitute(maps="\n".join(blocks))


def _map_cell(
    row: Mapping[str, Any] | None, alpha: float, confounding: float, most: float
) -> MapCell:
    where = f"α = {alpha:g}, ω = {confounding:g}"
    if row is None or row["regret"]["mean"] is None:
        return MapCell("–", "", f"{where}: not run", "none")
    number, _, interval = interval_text(row["regret"]).partition(" ")
    often = f"right in {percent(row['right']['mean'])} of runs"
    said = f"{where}: regret {number} {interval}, {often}"
    return MapCell(number, interval, said, "above", row["regret"]["mean"] / most)


Settings = Mapping[Scenario, Mapping[Pair, Runs]]


def overall_section(
    sheet: Sheet, settings: Settings, policies: Sequence[str], estimators: Sequence[str]
) -> str:
    """Curves and a table over all settings. policies, estimators: those of the report."""
    pairs = [(policy, name) for policy in policies for name in estimators]
    joint = {
        pair: together(found)
        for pair in pairs
        if len(found := [runs[pair] for runs in settings.values() if pair in runs]) > 1
    }
    styles = {name: estimator_style(name, estimators) for name in estimators}
    families = {pair: runs for pair, runs in joint.items() if pair[1] != NAIVE}
    return Template(part("overall.html")).substitute(
        settings=len(settings),
        keys=line_keys(list(styles.values())),
        family_keys=line_keys([style for name, style in styles.items() if name != NAIVE]),
        regret=sheet.grid(curve_panels(joint, policies, styles, "regret", "mean regret")),
        errors=sheet.grid(
            curve_panels(families, policies, styles, "rmse_contrast", "RMSE of contrasts")
        ),
        table=_table(settings, joint),
    )


def together(found: Sequence[Runs]) -> Runs:
    """The mean over settings, run by run: of the seeds and checkpoints that all of them have.

    A number that is unknown in one setting is unknown.
    """
    seeds = reduce(np.intersect1d, [np.array(each.seeds) for each in found])
    grid: Counts = reduce(np.intersect1d, [each.checkpoints for each in found])
    rows = [np.isin(each.seeds, seeds) for each in found]
    columns = [np.isin(each.checkpoints, grid) for each in found]
    picked = list(zip(found, rows, columns, strict=True))
    return replace(
        found[0],
        seeds=tuple(seeds.tolist()),
        checkpoints=grid,
        numbers={
            name: np.mean([each.numbers[name][row][:, at] for each, row, at in picked], axis=0)
            for name in found[0].numbers
        },
        reached=np.min([each.reached[at] for each, _, at in picked], axis=0),
        values=None,
    )


def worst(found: Sequence[Runs], seeds: Sequence[int]) -> tuple[int, Mean]:
    """Which setting has the largest mean final regret, and that regret as means of (1,).

    The interval resamples seeds and looks for the worst setting anew each time.
    """
    finals = np.array([each.final("regret")[np.isin(each.seeds, seeds)] for each in found]).T
    means: Floats = finals.mean(axis=0)
    low, high = np.nan, np.nan
    if len(finals) > 1:
        low, high = np.quantile(resampled_means(finals).max(axis=1), TAILS)
    at = int(means.argmax())
    return at, Mean(means[at : at + 1], np.array([low]), np.array([high]))


def _table(settings: Settings, joint: Mapping[Pair, Runs]) -> str:
    headings = (
        *("policy × estimator", "worst setting", "regret there", "regret, mean over settings"),
        *("average regret on the way", "RMSE of contrasts"),
    )
    lines = []
    for pair, runs in joint.items():
        here = {key: found[pair] for key, found in settings.items() if pair in found}
        at, regret = worst(list(here.values()), runs.seeds)
        alpha, confounding = list(here)[at]
        cells = (
            figure(as_json(regret)),
            figure(_mean(runs.final("regret"))),
            figure(_mean(_on_the_way(runs))),
            figure(_mean(runs.final("rmse_contrast"))),
        )
        name = "usage log alone" if pair[1] == NAIVE else pair[1]
        lines.append(
            f'<tr><th scope="row">{text(pair[0])} × {text(name)}</th>'
            f'<td class="word">α = {alpha:g}, ω = {confounding:g}</td>'
            + "".join(f"<td>{cell}</td>" for cell in cells)
            + "</tr>"
        )
    return table(headings, lines, "found", words={1})


def _mean(values: Floats) -> dict[str, Any]:
    return as_json(mean_with_interval(values[:, None]))


def _on_the_way(runs: Runs) -> Floats:
    """(R,) the area under each regret curve, divided by its length."""
    length = float(runs.checkpoints[-1] - runs.checkpoints[0])
    if not length:
        return runs.final("regret")
    return area_under(runs.numbers["regret"], runs.checkpoints) / length


def write_report(
    path: Path, results: pd.DataFrame, summary: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write the report of a replay to `path`. The same input gives the same bytes.

    results and meta as `summarize` takes them, summary as it returns it. The page asks the
    network for nothing: its content policy forbids it, and lets no script run but its own two.
    """
    path.write_text(report_page(results, summary, meta), encoding="utf-8", newline="\n")


def report_page(results: pd.DataFrame, summary: Mapping[str, Any], meta: Mapping[str, Any]) -> str:
    """The report as HTML."""
    rows, scenarios = summary["rows"], summary["scenarios"]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    estimators = list(dict.fromkeys(row["estimator"] for row in rows))
    runs = runs_by_scenario(results, float(meta["options"].get("epsilon", 0.0)))
    sheet = Sheet()
    several = len(scenarios) > 1
    overall = maps = ""
    if several:
        overall = overall_section(sheet, runs, policies, estimators)
        maps = heat_maps(rows, policies, estimators)
    sections: list[str] = []
    for scenario in scenarios:
        key: Scenario = (scenario["alpha"], scenario["confounding"])
        mine = [row for row in rows if (row["alpha"], row["confounding"]) == key]
        drawn = scenario_figures(
            scenario, mine, runs[key], policies, estimators, meta["models"], meta["options"]
        )
        body = scenario_section(sheet, drawn, scenario, mine, policies, estimators)
        sections.append(folded(scenario, body, is_open=not sections) if several else body)
    return Template(part("report.html")).substitute(
        embedded(sheet.as_json()),
        title=text(meta["title"]),
        headline=text(summary["headline"]),
        tiles=_tiles(summary),
        facts=facts(meta, policies, [each for each in estimators if each != NAIVE]),
        overall=overall,
        maps=maps,
        scenarios="\n".join(sections),
        version=text(meta["version"]),
    )


def _tiles(summary: Mapping[str, Any]) -> str:
    scenarios = summary["scenarios"]
    pairs = sum(each["pairs"] for each in scenarios)
    right = sum(each["pairs_right"] for each in scenarios)
    if len(scenarios) > 1:
        misled = summary["naive"]["scenarios_misled"]
        tiles = [
            ("the log misleads in", f"{misled} of {len(scenarios)}", "settings of α and ω"),
            ("found the best model", f"{right} of {pairs}", "settings × policies × estimators"),
        ]
    else:
        (one,) = scenarios
        naive, best, routing = one["naive"], one["best"], one["routing"]["value"]
        tiles = [
            ("the log recommends", naive["model"], f"truly worth {reward(naive['value'])}"),
            ("the best model is", best_name(one), f"truly worth {reward(best['value'])}"),
            ("today’s routing", reward(routing), "worth of what is deployed"),
            ("found the best model", f"{right} of {pairs}", "policy × estimator pairs"),
        ]
    return "".join(
        f'<div class="tile"><span>{text(label)}</span><strong>{text(value)}</strong>'
        f"<span>{text(note)}</span></div>"
        for label, value, note in tiles
    )
