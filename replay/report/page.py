"""Assemble report.html: template, style, script, figures and tables into one file."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import pandas as pd

from equipoise.replay.averages import NAIVE, Scenario, runs_by_scenario
from equipoise.replay.headline import percent, reward
from equipoise.replay.report.figures import Figure, heat_figure
from equipoise.replay.report.frame import interval_text, safe
from equipoise.replay.report.palette import Style, estimator_style, policy_style
from equipoise.replay.report.scenario import Panel, ScenarioFigures, scenario_figures
from equipoise.replay.report.tables import certified_table, full_table, text, verdict_table


def write_report(
    path: Path, results: pd.DataFrame, summary: Mapping[str, Any], meta: Mapping[str, Any]
) -> None:
    """Write the report of a replay to `path`. The same input gives the same bytes.

    results and meta as `summarize` takes them, summary as it returns it. The page asks the
    network for nothing: its content policy forbids it, and runs no script but its own two.
    """
    path.write_text(report_page(results, summary, meta), encoding="utf-8", newline="\n")


def report_page(
    results: pd.DataFrame, summary: Mapping[str, Any], meta: Mapping[str, Any]
) -> str:
    """The report as HTML."""
    from plotly.offline import get_plotlyjs

    rows = summary["rows"]
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    estimators = list(dict.fromkeys(row["estimator"] for row in rows))
    sheet = _Sheet()
    runs = runs_by_scenario(results)
    sections = []
    for index, scenario in enumerate(summary["scenarios"]):
        key: Scenario = (scenario["alpha"], scenario["confounding"])
        mine = [row for row in rows if (row["alpha"], row["confounding"]) == key]
        drawn = scenario_figures(
            *(scenario, mine, runs[key], policies, estimators, meta["models"]),
            meta["options"].get("delta"),
        )
        body = _scenario(sheet, drawn, scenario, mine, policies, estimators)
        sections.append(_folded(scenario, body, index, len(summary["scenarios"])))
    maps = _heat_maps(sheet, summary, policies, estimators)
    scripts = {"plotly": get_plotlyjs(), "script": _part("report.js")}
    return Template(_part("report.html")).substitute(
        policy=" ".join(f"'sha256-{_digest(each)}'" for each in scripts.values()),
        title=text(meta["title"]),
        style=_part("report.css"),
        headline=text(summary["headline"]),
        tiles=_tiles(summary),
        run=_run(meta, policies, estimators),
        maps=maps,
        scenarios="\n".join(sections),
        version=text(meta["version"]),
        figures=sheet.as_script(),
        **scripts,
    )


class _Sheet:
    """Collects the figures of the page and gives each an id: fig-1, fig-2, …"""

    def __init__(self) -> None:
        self._figures: dict[str, Figure] = {}

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
        return f'<div class="grid {kind}">' + "".join(map(self.place, panels)) + "</div>"

    def as_script(self) -> str:
        """All figures as JSON that may stand inside a script element."""
        found = json.dumps(self._figures, sort_keys=True, allow_nan=False, separators=(",", ":"))
        for character in "<>&\u2028\u2029":
            found = found.replace(character, f"\\u{ord(character):04x}")
        return found


def _part(name: str) -> str:
    return files("equipoise.replay.report").joinpath(name).read_text(encoding="utf-8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


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
            ("best model", " or ".join(best["models"]), f"truly worth {reward(best['value'])}"),
            ("today’s routing", reward(routing), "worth of what is deployed"),
            ("found the best model", f"{right} of {pairs}", "policy × estimator pairs"),
        ]
    return "".join(
        f'<div class="tile"><span>{text(label)}</span><strong>{text(value)}</strong>'
        f"<span>{text(note)}</span></div>"
        for label, value, note in tiles
    )


def _run(meta: Mapping[str, Any], policies: Sequence[str], estimators: Sequence[str]) -> str:
    options = meta["options"]
    budget = options.get("budget")
    stop = "" if budget is None else f", and at most {budget:,} of them"
    facts = {
        "Benchmark": f"{meta['title']} ({meta['benchmark']})",
        "Source": meta["source"],
        "Models": ", ".join(meta["models"]),
        "Contexts": f"{meta['contexts']:,}" if "contexts" in meta else None,
        "Left out": ", ".join(f"{n:,} {why}" for why, n in meta.get("exclusions", {}).items()),
        "Usage log": f"{options['obs']:,} requests served as their users chose, before the start",
        "Live requests": f"up to {options['requests']:,} a run",
        "Randomized": f"{options['exp_rate']:.3g} of the live requests{stop}",
        "Runs": f"{options['seeds']:,} seeds for every policy and setting",
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


def _listed(numbers: Any) -> str:
    return ", ".join(f"{each:g}" for each in dict.fromkeys(numbers))


def _scenario(
    sheet: _Sheet,
    drawn: ScenarioFigures,
    scenario: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    policies: Sequence[str],
    estimators: Sequence[str],
) -> str:
    families = [each for each in estimators if each != NAIVE]
    keys = _keys([estimator_style(each, estimators) for each in estimators])
    family_keys = _keys([estimator_style(each, estimators) for each in families])
    policy_keys = _keys([policy_style(each, policies) for each in policies])
    marks = _keys([policy_style(each, policies) for each in policies], marks=True)
    omitted = ""
    if drawn.omitted_models:
        omitted = (
            f"<p>Shown are the {len(scenario['models']) - drawn.omitted_models} best and "
            f"recommended of {len(scenario['models'])} models.</p>"
        )
    first, *others = drawn.values or [None]
    more = ""
    if others:
        more = (
            "<details><summary>The same under the other policies</summary>"
            f"{sheet_grid_later(sheet, others)}</details>"
        )
    return Template(_part("scenario.html")).substitute(
        naive=text(scenario["naive"]["sentence"]),
        routing=text(scenario["routing"]["sentence"]),
        pairs=text(scenario["pairs_sentence"]),
        omitted=omitted,
        value_keys='<span class="key"><i class="truth"></i>true value</span>' + keys,
        values="" if first is None else sheet.place(first) + more,
        verdicts=verdict_table(rows, policies, estimators),
        keys=keys,
        regret=sheet.grid(drawn.regret),
        family_keys=family_keys,
        errors=sheet.grid(drawn.errors),
        marks=marks,
        costs=sheet.grid(drawn.costs, "wide"),
        policy_keys=policy_keys,
        certified=sheet.grid(drawn.certified, "wide"),
        certified_table=certified_table(rows),
        full=full_table(rows, list(rows[0]["settled"])),
    )


def sheet_grid_later(sheet: _Sheet, panels: Sequence[Panel]) -> str:
    return "".join(map(sheet.place, panels))
