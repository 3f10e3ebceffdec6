"""Assemble report.html: template, style, scripts, figures and tables in one file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from equipoise.replay.averages import NAIVE, Scenario, runs_by_scenario
from equipoise.replay.headline import best_name, reward
from equipoise.replay.report.embedded import embedded, part
from equipoise.replay.report.facts import facts
from equipoise.replay.report.overall import overall_section
from equipoise.replay.report.scenario import scenario_figures
from equipoise.replay.report.section import folded, heat_maps, scenario_section
from equipoise.replay.report.sheet import Sheet
from equipoise.replay.report.tables import text


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
