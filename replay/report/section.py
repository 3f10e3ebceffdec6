"""The section of one scenario, and the maps over all of them, as HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from string import Template
from typing import Any

from equipoise.replay.averages import NAIVE
from equipoise.replay.headline import NEAR, percent
from equipoise.replay.report.embedded import part
from equipoise.replay.report.frame import interval_text
from equipoise.replay.report.maps import MapCell, map_html
from equipoise.replay.report.palette import estimator_style, policy_style
from equipoise.replay.report.scenario import ScenarioFigures
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
