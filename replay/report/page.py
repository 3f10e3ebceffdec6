"""Assemble report.html: template, style, scripts, figures and tables in one file."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from equipoise.replay.averages import NAIVE, Scenario, runs_by_scenario
from equipoise.replay.headline import best_name, reward
from equipoise.replay.report.scenario import scenario_figures
from equipoise.replay.report.section import folded, heat_maps, part, scenario_section
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
    from plotly.offline import get_plotlyjs

    rows, scenarios = summary["rows"], summary["scenarios"]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    estimators = list(dict.fromkeys(row["estimator"] for row in rows))
    runs = runs_by_scenario(results, float(meta["options"].get("epsilon", 0.0)))
    sheet = Sheet()
    several = len(scenarios) > 1
    maps = heat_maps(sheet, rows, policies, estimators) if several else ""
    sections: list[str] = []
    for scenario in scenarios:
        key: Scenario = (scenario["alpha"], scenario["confounding"])
        mine = [row for row in rows if (row["alpha"], row["confounding"]) == key]
        drawn = scenario_figures(
            scenario, mine, runs[key], policies, estimators, meta["models"], meta["options"]
        )
        body = scenario_section(sheet, drawn, scenario, mine, policies, estimators)
        sections.append(folded(scenario, body, is_open=not sections) if several else body)
    plotly, script = get_plotlyjs(), part("report.js")
    return Template(part("report.html")).substitute(
        allowed=" ".join(_digest(each) for each in (plotly, script)),
        style=part("report.css"),
        title=text(meta["title"]),
        headline=text(summary["headline"]),
        tiles=_tiles(summary),
        facts=_facts(meta, policies, estimators),
        maps=maps,
        scenarios="\n".join(sections),
        version=text(meta["version"]),
        figures=sheet.as_json(),
        plotly=plotly,
        script=script,
    )


def _digest(script: str) -> str:
    """A script's hash as a content policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


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


def _facts(meta: Mapping[str, Any], policies: Sequence[str], estimators: Sequence[str]) -> str:
    """What was run, as a list of definitions."""
    options = meta["options"]
    budget = options.get("budget")
    most = "" if budget is None else f", {budget:,} of them at most"
    facts = {
        "Benchmark": f"{meta['title']} ({meta['benchmark']})",
        "Source": meta["source"],
        "Models": ", ".join(meta["models"]),
        "Contexts": f"{meta['contexts']:,}" if "contexts" in meta else "",
        "Left out": ", ".join(f"{why}: {n}" for why, n in meta.get("exclusions", {}).items()),
        "Usage log": f"{options['obs']:,} requests, served as routed, before the start",
        "Live requests": f"up to {options['requests']:,} a run",
        "Randomized": f"{100 * options['exp_rate']:.3g}% of the live requests{most}",
        "Runs": f"{options['seeds']:,} for every setting, policy and estimator",
        "Policies": ", ".join(policies),
        "Estimators": ", ".join(each for each in estimators if each != NAIVE),
        "Alignment α": _listed(each["alpha"] for each in meta["scenarios"]),
        "Confounding ω": _listed(each["confounding"] for each in meta["scenarios"]),
    }
    return "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(fact)}</dd></div>"
        for name, fact in facts.items()
        if fact
    )


def _listed(numbers: Iterable[float]) -> str:
    return ", ".join(f"{each:g}" for each in dict.fromkeys(numbers))
