"""The section of one scenario, and the maps over all of them, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from equipoise.replay.averages import NAIVE
from equipoise.replay.headline import NEAR, percent
from equipoise.replay.report.figures import heat_figure
from equipoise.replay.report.frame import interval_text, safe
from equipoise.replay.report.palette import estimator_style, policy_style
from equipoise.replay.report.scenario import Panel, ScenarioFigures
from equipoise.replay.report.sheet import Sheet, dot_keys, line_keys, mark_keys
from equipoise.replay.report.tables import certified_table, full_table, text, verdict_table

NOTE_ESTIMATES = (
    "A bar is the true value of a model; marks are what each estimator says of it at the end, with "
    "95% intervals of the mean over runs. Models are sorted by their true value."
)
NOTE_LIMITS = (
    "A bar is the true value of a model, a cross its mean reward in an endless usage log. Models "
    "are sorted by their true value."
)


def part(name: str) -> str:
    """A file of this package: template, style or script."""
    return files("equipoise.replay.report").joinpath(name).read_text(encoding="utf-8")


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
        family_dots=dot_keys(families),
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
    sheet: Sheet,
    rows: Sequence[Mapping[str, Any]],
    policies: Sequence[str],
    estimators: Sequence[str],
) -> str:
    """Final regret over alignment x confounding, a map per policy and estimator, on one scale."""
    alphas = sorted({row["alpha"] for row in rows})
    confoundings = sorted({row["confounding"] for row in rows})
    regrets = [row["regret"]["mean"] for row in rows if row["regret"]["mean"] is not None]
    found = {
        (row["policy"], row["estimator"], row["alpha"], row["confounding"]): row for row in rows
    }
    blocks = []
    for policy in policies:
        panels = []
        for estimator in estimators:
            z = np.full((len(alphas), len(confoundings)), np.nan)
            texts = [["not run"] * len(confoundings) for _ in alphas]
            for i, alpha in enumerate(alphas):
                for j, confounding in enumerate(confoundings):
                    row = found.get((policy, estimator, alpha, confounding))
                    if row is None or row["regret"]["mean"] is None:
                        continue
                    z[i, j] = row["regret"]["mean"]
                    texts[i][j] = (
                        f"α = {alpha:g}, ω = {confounding:g}<br>regret "
                        f"{interval_text(row['regret'])}<br>right in "
                        f"{percent(row['right']['mean'])} of runs"
                    )
            name = "usage log alone" if estimator == NAIVE else estimator
            figure = heat_figure(alphas, confoundings, z, texts, max(regrets, default=0.0))
            description = f"Heat map of the final regret of {safe(name)} under {safe(policy)}."
            panels.append(Panel(name, description, figure))
        is_open = " open" if policy == policies[0] else ""
        blocks.append(
            f"<details{is_open}><summary>{text(policy)}</summary>"
            f"{sheet.grid(panels, 'small')}</details>"
        )
    return Template(part("maps.html")).substitute(maps="\n".join(blocks))
