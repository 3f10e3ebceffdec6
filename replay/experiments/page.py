"""The page of an experiment: its question, the answer, figures and tables in one HTML file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

from equipoise.replay.experiments.findings import Curves, Figure, Findings, Table
from equipoise.replay.experiments.page_curves import curve_panels, line_styles, zero_on_the_edge
from equipoise.replay.experiments.page_tables import heat_html, table_html
from equipoise.replay.experiments.wording import as_tables
from equipoise.replay.report.embedded import embedded, part
from equipoise.replay.report.facts import facts
from equipoise.replay.report.palette import Style
from equipoise.replay.report.sheet import Sheet, line_keys
from equipoise.replay.report.tables import text


def write_page(path: Path, findings: Findings, meta: Mapping[str, Any]) -> None:
    """Write the page of an experiment to `path`. The same input gives the same bytes.

    meta: what was run, as `describe_run` says it; what is missing is left out, and whatever
    `options` holds besides is shown by its name. The page asks the network for nothing.
    """
    path.write_text(findings_page(findings, meta), encoding="utf-8", newline="\n")


def findings_page(findings: Findings, meta: Mapping[str, Any]) -> str:
    """The page as HTML."""
    sheet, styles = Sheet(), line_styles(findings)
    figures = [_figure(sheet, figure, styles) for figure in findings.figures]
    headline, *others = findings.sentences or (findings.title,)
    return Template(part("findings.html")).substitute(
        embedded(sheet.as_json(), plotting=len(sheet) > 0),
        experiment=text(findings.experiment),
        title=text(findings.title),
        headline=text(headline),
        sentences="".join(f"<p>{text(each)}</p>" for each in others),
        facts=facts(meta),
        findings="\n".join([*figures, *map(_table, findings.tables)]),
        version=text(meta.get("version", "")),
    )


def _figure(sheet: Sheet, figure: Figure, styles: Mapping[str, Style]) -> str:
    caption = f"<p>{text(figure.caption)}</p>" if figure.caption else ""
    drawn = _curves(sheet, figure, styles) if isinstance(figure, Curves) else heat_html(figure)
    return f"<section>\n<h2>{text(figure.title)}</h2>\n{caption}\n{drawn}\n</section>"


def _curves(sheet: Sheet, figure: Curves, styles: Mapping[str, Style]) -> str:
    names = dict.fromkeys(line.name for panel in figure.panels for line in panel.lines)
    panels = curve_panels(figure, styles)
    kind = "wide" if len(panels) == 2 else ""
    edge = " A mean of 0 stands on the lower edge." if zero_on_the_edge(figure) else ""
    numbers = "".join(
        f"<h3>{text(each.title)}</h3>{table_html(each)}" for each in as_tables(figure)
    )
    return (
        f'<div class="keys">{line_keys([styles[name] for name in names], marked=True)}</div>\n'
        f"{sheet.grid(panels, kind)}\n"
        '<p class="note">Bands are 95% intervals over seeds. <span class="screen">Press a name to '
        f"hide its line, twice to see it alone.</span>{edge}</p>\n"
        f"<details><summary>The numbers of this figure</summary>{numbers}</details>"
    )


def _table(found: Table) -> str:
    caption = f'<p class="note">{text(found.caption)}</p>' if found.caption else ""
    return f"<section>\n<h2>{text(found.title)}</h2>\n{table_html(found)}\n{caption}\n</section>"
