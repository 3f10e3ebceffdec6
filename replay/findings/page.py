"""Findings as one HTML file that needs no network, for reading and printing.

The page of a study and the report of a replay are the same page. Everything that comes from
findings is escaped by `text`; the content policy of the page forbids the network, and lets no
script run but its own two.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from itertools import groupby
from pathlib import Path
from string import Template
from typing import Any

from equipoise.replay.findings.figures import (
    Plotly,
    Style,
    Styles,
    curve_figures,
    estimates_figure,
    line_style,
    policy_symbols,
    safe,
    scatter_figure,
    zero_on_the_edge,
)
from equipoise.replay.findings.findings import (
    Curves,
    Entry,
    Estimates,
    Figure,
    Findings,
    Heatmaps,
    HeatPanel,
    Measured,
    Scatter,
    Table,
    Verdict,
)
from equipoise.replay.findings.text import (
    UNKNOWN,
    as_tables,
    best_entries,
    exact,
    excludes_zero,
    finite,
    in_words,
)
from equipoise.replay.results.averages import NAIVE
from equipoise.replay.results.summary import FAMILIES, printable

Tile = tuple[str, str, str]
"""A label, what is said in large letters, and a note."""


def write_page(
    path: Path,
    findings: Findings,
    meta: Mapping[str, Any],
    settings: Sequence[Findings] = (),
    tiles: Sequence[Tile] = (),
) -> None:
    """Write the page of a run to `path`. The same input gives the same bytes.

    meta: what was run, as `describe_run` says it; what is missing is left out, and whatever
    `options` holds besides is shown by its name. settings: the findings of each setting, where
    `findings` are those of all together; they are folded. tiles: shown below the headline.
    """
    page = findings_page(findings, meta, settings, tiles)
    path.write_text(page, encoding="utf-8", newline="\n")


def findings_page(
    findings: Findings,
    meta: Mapping[str, Any],
    settings: Sequence[Findings] = (),
    tiles: Sequence[Tile] = (),
) -> str:
    """The page as HTML."""
    sheet = Sheet(styles_of([findings, *settings]))
    body = [_sections(sheet, findings)]
    for number, setting in enumerate(settings):
        sentences = "".join(f"<p>{text(each)}</p>" for each in setting.sentences)
        body.append(
            f'<details class="scenario"{"" if number else " open"}><summary>{text(setting.title)}'
            f'</summary>\n<div class="answer">{sentences}</div>\n{_sections(sheet, setting)}\n'
            "</details>"
        )
    headline, *others = findings.sentences or (findings.title,)
    figures = sheet.as_json()
    plotly, script = _plotly() if len(sheet) else "", _part("page.js")
    return Template(_part("page.html")).substitute(
        style=_part("page.css"),
        figures=figures,
        plotly=plotly,
        script=script,
        allowed=" ".join(_digest(each) for each in (plotly, script)),
        kicker=text(f"experiment: {findings.experiment}" if findings.experiment else "replay"),
        title=text(findings.title),
        headline=text(headline),
        tiles="".join(
            f'<div class="tile"><span>{text(label)}</span><strong>{text(value)}</strong>'
            f"<span>{text(note)}</span></div>"
            for label, value, note in tiles
        ),
        sentences="".join(f"<p>{text(each)}</p>" for each in others),
        facts=facts(meta),
        findings="\n".join(body),
        version=text(meta.get("version", "")),
    )


def _part(name: str) -> str:
    return files("equipoise.replay.findings").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    """The library's script, which is most of a page's size."""
    from plotly.offline import get_plotlyjs

    script: str = get_plotlyjs()
    return script


def _digest(script: str) -> str:
    """A script's hash as a content policy names it."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def styles_of(findings: Iterable[Findings]) -> dict[str, Style]:
    """A style for every line, the same in all figures of the page."""
    names: dict[str, None] = {}
    for figure in (figure for each in findings for figure in each.figures):
        names.update(dict.fromkeys(_names(figure)))
    others = [name for name in names if name not in FAMILIES]
    return {name: line_style(name, others) for name in names}


def _names(figure: Figure) -> list[str]:
    """Whatever has a style of its own in a figure."""
    if isinstance(figure, Curves):
        return list(dict.fromkeys(line.name for panel in figure.panels for line in panel.lines))
    if isinstance(figure, Estimates):
        return [line.name for line in figure.lines]
    if isinstance(figure, Scatter):
        return list(dict.fromkeys(dot.name for dot in figure.dots))
    return []


class Sheet:
    """Collects the figures of the page and gives each an id: fig-1, fig-2, …"""

    def __init__(self, styles: Styles) -> None:
        self.styles = styles
        self._figures: dict[str, Plotly] = {}

    def __len__(self) -> int:
        return len(self._figures)

    def place(self, figure: Plotly, heading: str, description: str) -> str:
        """Keep a figure; return the HTML where it is drawn. description: for screen readers."""
        name = f"fig-{len(self._figures) + 1}"
        self._figures[name] = figure
        caption = f"<figcaption>{text(heading)}</figcaption>" if heading else ""
        return (
            f'<figure>{caption}<div class="plot" id="{name}" role="img" '
            f'aria-label="{text(description)}" '
            f'style="min-height:{figure["layout"]["height"]}px"></div></figure>'
        )

    def as_json(self) -> str:
        """All figures as JSON that may stand inside a script element."""
        encoded = json.dumps(self._figures, sort_keys=True, allow_nan=False, separators=(",", ":"))
        for character in "<>&\u2028\u2029":
            encoded = encoded.replace(character, f"\\u{ord(character):04x}")
        return encoded


def _sections(sheet: Sheet, findings: Findings) -> str:
    """Verdicts, which are the answer, then figures, then other tables."""
    verdicts = [table for table in findings.tables if _is_judged(table)]
    groups = [list(group) for _, group in groupby(findings.figures, lambda figure: figure.name)]
    return "\n".join(
        [
            *map(_table, verdicts),
            *(_variants(sheet, group) for group in groups),
            *(_table(table) for table in findings.tables if table not in verdicts),
        ]
    )


def _is_judged(table: Table) -> bool:
    return any(isinstance(entry, Verdict) for row in table.rows for entry in row)


def _table(table: Table) -> str:
    note = f'<p class="note">{text(table.caption)}</p>' if table.caption else ""
    return f"<section>\n<h2>{text(table.title)}</h2>\n{table_html(table)}\n{note}\n</section>"


def _variants(sheet: Sheet, figures: Sequence[Figure]) -> str:
    """The section of one figure. Further ones of its name are folded away below it."""
    first, *others = figures
    body = ""
    if isinstance(first, Heatmaps):
        # Of one name, hence of one kind.
        most = _strongest(figure for figure in figures if isinstance(figure, Heatmaps))
        body = _ramp(first, most)
        drawn = [_maps(figure, most) for figure in figures if isinstance(figure, Heatmaps)]
    else:
        body = f'<div class="keys">{_keys(sheet.styles, first)}</div>'
        drawn = [_drawn(sheet, figure) for figure in figures]
    body += f"\n{drawn[0]}\n"
    for figure, html_of_figure in zip(others, drawn[1:], strict=True):
        body += f"<details><summary>{text(figure.title)}</summary>\n{html_of_figure}\n</details>\n"
    caption = f"<p>{text(first.caption)}</p>" if first.caption else ""
    return f"<section>\n<h2>{text(first.title)}</h2>\n{caption}\n{body}{_note(first)}\n</section>"


def _note(figure: Figure) -> str:
    """How to read a figure of this kind."""
    if isinstance(figure, Heatmaps):
        sure = "Bold with a star: the interval excludes 0." if figure.below else ""
        return f'<p class="note">Each cell: the mean and its 95% interval. {sure}</p>'
    press = '<span class="screen">Press a name to hide its line, twice to see it alone.</span>'
    if not isinstance(figure, Curves):
        return f'<p class="note">{"" if isinstance(figure, Scatter) else press}</p>'
    edge = " A mean of 0 stands on the lower edge." if zero_on_the_edge(figure) else ""
    return f'<p class="note">Bands are 95% intervals over seeds. {press}{edge}</p>'


def _drawn(sheet: Sheet, figure: Figure) -> str:
    """A figure's panels side by side where there is room, and its numbers below."""
    panels: list[tuple[Plotly, str, str]] = []
    if isinstance(figure, Curves):
        what = f"{figure.title}: {figure.y_label} against {figure.x_label}, "
        for panel, plot in zip(figure.panels, curve_figures(figure, sheet.styles), strict=True):
            panels.append((plot, panel.title, f"{what}{panel.title}."))
    elif isinstance(figure, Estimates):
        panels = [(estimates_figure(figure, sheet.styles), "", f"Dot plot: {figure.title}.")]
    elif isinstance(figure, Scatter):
        what = f"{figure.title}: {figure.y_label} against {figure.x_label}."
        panels = [(scatter_figure(figure, sheet.styles), "", what)]
    kind = {1: "single", 2: "wide"}.get(len(panels), "")
    places = "".join(sheet.place(*panel) for panel in panels)
    tables = "".join(
        (f"<h3>{text(each.title)}</h3>" if len(panels) > 1 else "") + table_html(each)
        for each in as_tables(figure)
    )
    return (
        f'<div class="grid {kind}">{places}</div>\n'
        f"<details><summary>The numbers of this figure</summary>{tables}</details>"
    )


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


def _keys(styles: Styles, figure: Figure) -> str:
    """What lines and marks mean. Names of lines are buttons that hide and show them."""
    if isinstance(figure, Scatter):
        # The colour is the estimator and the mark the policy, so each key has one of the two.
        policies = "".join(
            _key(f'<path d="{OUTLINES[symbol]}" style="fill:currentColor"/>', name)
            for name, symbol in policy_symbols(figure).items()
        )
        return f'{policies}</div>\n<div class="keys">' + "".join(
            _key(f'<path d="{OUTLINES["circle"]}" style="fill:var(--{colour})"/>', name)
            for name, colour in ((name, styles[name].colour) for name in _names(figure))
        )
    truth = '<span class="key"><i class="truth"></i>true value</span>'
    lines = "".join(_line_key(styles[name]) for name in _names(figure))
    return truth + lines if isinstance(figure, Estimates) else lines


def _line_key(style: Style) -> str:
    return (
        f'<button type="button" class="key" aria-pressed="true" '
        f'data-line="{text(safe(style.name))}"><svg width="30" height="10" '
        'aria-hidden="true"><line x1="0" y1="5" x2="30" y2="5" '
        f'style="stroke:var(--{style.colour})" '
        f'stroke-dasharray="{DASH_ARRAYS[style.dash]}"/><path transform="translate(10)" '
        f'd="{OUTLINES[style.symbol]}" style="fill:var(--{style.colour})"/></svg>'
        f"{text(label(style.name))}</button>"
    )


def _key(mark: str, name: str) -> str:
    return (
        '<span class="key"><svg width="12" height="12" viewBox="-1 -1 12 12" aria-hidden="true">'
        f"{mark}</svg>{text(name)}</span>"
    )


def label(estimator: str) -> str:
    """An estimator's name for people."""
    return "usage log alone" if estimator == NAIVE else estimator


def _strongest(figures: Iterable[Heatmaps]) -> float:
    """The largest absolute mean: all maps share one scale."""
    cells = (
        finite(cell.mean)
        for figure in figures
        for panel in figure.panels
        for row in panel.cells
        for cell in row
    )
    return max((abs(mean) for mean in cells if mean is not None), default=0.0) or 1.0


def _ramp(figure: Heatmaps, most: float) -> str:
    """What the colours mean."""
    end = in_words(Measured(most))[0]
    below = f"<span><b>−{end}</b> {text(figure.below)}</span>" if figure.below else "<b>0</b>"
    sign, ramp = ("+", "ramp") if figure.below else ("", "ramp rising")
    return (
        f'<div class="scale">{below}<i class="{ramp}"></i>'
        f"<span><b>{sign}{end}</b> {text(figure.above)}</span></div>"
    )


def _maps(figure: Heatmaps, most: float) -> str:
    kind = {1: "single", 2: "wide"}.get(len(figure.panels), "")
    panels = "".join(_map(figure, panel, most) for panel in figure.panels)
    return f'<div class="grid {kind}">{panels}</div>'


def _map(figure: Heatmaps, panel: HeatPanel, most: float) -> str:
    """A heat map as a table, y upwards."""
    lines = []
    for at in reversed(range(len(panel.y))):
        side = f'<th class="side" rowspan="{len(panel.y)}"><span>{text(figure.y_label)}</span></th>'
        cells = zip(panel.x, panel.cells[at], strict=True)
        lines.append(
            f"<tr>{side if at == len(panel.y) - 1 else ''}"
            f'<th scope="row">{text(exact(panel.y[at]))}</th>'
            f"{''.join(_cell(figure, x, panel.y[at], cell, most) for x, cell in cells)}</tr>"
        )
    ticks = "".join(f'<th scope="col">{text(exact(x))}</th>' for x in panel.x)
    lines.append(f'<tr><td colspan="2"></td>{ticks}</tr>')
    across = f'<th class="along" colspan="{len(panel.x)}">{text(figure.x_label)}</th>'
    lines.append(f'<tr><td colspan="2"></td>{across}</tr>')
    return (
        f'<figure><figcaption>{text(panel.title)}</figcaption><div class="scroll" tabindex="0">'
        f'<table class="map" style="--columns:{len(panel.x)}"><tbody>{"".join(lines)}</tbody>'
        "</table></div></figure>"
    )


def _cell(figure: Heatmaps, x: float, y: float, cell: Measured, most: float) -> str:
    where = f"{figure.x_label} {exact(x)}, {figure.y_label} {exact(y)}"
    mean = finite(cell.mean)
    if mean is None:
        return f'<td class="none" title="{text(where)}: unknown">{_number(UNKNOWN, "")}</td>'
    signed = bool(figure.below)
    number, interval = in_words(cell, signed=signed)
    sure = signed and excludes_zero(cell)
    meaning = figure.below if mean < 0 else figure.above
    doubt = "; the interval includes 0" if signed and not sure else ""
    kind = ("below" if mean < 0 else "above") + (" sure" if sure else "")
    tooltip = f"{where}: {number} {interval}: {meaning}{doubt}"
    return (
        f'<td class="{kind}" style="--share:{100 * abs(mean) / most:.0f}%" title="{text(tooltip)}">'
        f"{_number(number + '*' * sure, interval)}</td>"
    )


def table_html(table: Table) -> str:
    """A table that scrolls inside its own box. Intervals stand below numbers; the best ones are
    marked."""
    best = best_entries(table)
    words = [
        all(isinstance(row[at], str) for row in table.rows) for at in range(len(table.columns))
    ]
    head = "".join(
        f'<th scope="col"{_class(["word"] * is_word)}>{text(column)}</th>'
        for column, is_word in zip(table.columns, [False, *words[1:]], strict=True)
    )
    lines = []
    for at, (first, *others) in enumerate(table.rows):
        cells = []
        for column, entry in enumerate(others, start=1):
            kinds = ["word"] * words[column] + ["best"] * ((at, column) in best)
            kinds += [entry.grade] if isinstance(entry, Verdict) else []
            cells.append(f"<td{_class(kinds)}>{_entry(entry)}</td>")
        name = text(in_words(first)[0])
        lines.append(f'<tr><th scope="row">{name}</th>{"".join(cells)}</tr>')
    kind = "verdicts" if _is_judged(table) else "found"
    return (
        f'<div class="scroll" tabindex="0"><table class="{kind}">\n<thead><tr>{head}</tr></thead>\n'
        "<tbody>\n" + "\n".join(lines) + "\n</tbody></table></div>"
        '<p class="more" aria-hidden="true">This table goes on to the right: scroll it.</p>'
    )


def _class(kinds: Sequence[str]) -> str:
    return f' class="{" ".join(kinds)}"' if kinds else ""


def _entry(entry: Entry) -> str:
    if isinstance(entry, Verdict):
        return _verdict(entry)
    number, interval = in_words(entry)
    if isinstance(entry, str):
        return text(number)
    if number == UNKNOWN:
        return f'<span class="unknown" title="unknown">{UNKNOWN}</span>'
    return _number(number, interval)


def _verdict(verdict: Verdict) -> str:
    if verdict.grade == "silent":
        return "<strong>no answer</strong>"
    regret = _number(*in_words(verdict.regret))
    often = f", {text(verdict.often)} right" if verdict.often else ""
    advice = f'<div class="advice">{text(verdict.advice)}</div>' if verdict.advice else ""
    return (
        f"<strong>{verdict.grade}</strong> {text(verdict.recommended)}"
        f'<div class="detail">regret {regret}{often}</div>{advice}'
    )


def _number(number: str, interval: str) -> str:
    span = f'<span class="number">{number}</span>'
    return f'{span} <span class="interval">{interval}</span>' if interval else span


OWN_WORDS = {"obs", "requests", "exp_rate", "budget", "seeds"}
"""Options that have a sentence of their own."""
OPTION_NAMES = {"delta": "Error rate δ", "epsilon": "Tolerance ε"}


def facts(meta: Mapping[str, Any]) -> str:
    """Definitions as HTML of all that `meta` knows; what it does not know is left out."""
    options: Mapping[str, Any] = meta.get("options", {})
    scenarios = meta.get("scenarios", ())
    title, name = meta.get("title"), meta.get("benchmark")
    definitions = {
        "Benchmark": f"{title} ({name})" if title and name else str(title or name or ""),
        "Source": meta.get("source", ""),
        "Models": ", ".join(meta.get("models", ())),
        "Contexts": _counted(meta.get("contexts"), ""),
        "Left out": ", ".join(f"{why}: {n}" for why, n in meta.get("exclusions", {}).items()),
        "Usage log": _counted(
            options.get("obs") or None, " requests, served as routed, before the start"
        ),
        "Live requests": _counted(options.get("requests"), " a run", "up to "),
        "Randomized": _randomized(options),
        "Runs": _counted(options.get("seeds"), " for every setting, policy and estimator"),
        "Alignment α": _listed(each["alpha"] for each in scenarios),
        "Confounding ω": _listed(each["confounding"] for each in scenarios),
        **_others(options),
    }
    return "".join(
        f"<div><dt>{text(term)}</dt><dd>{text(fact)}</dd></div>"
        for term, fact in definitions.items()
        if fact
    )


def _counted(value: Any, after: str, before: str = "") -> str:
    """A count with its words; nothing where there is no single count."""
    if isinstance(value, (list, tuple)):
        return before + ", ".join(f"{each:,}" for each in value) + after if value else ""
    return "" if value is None else f"{before}{value:,}{after}"


def _randomized(options: Mapping[str, Any]) -> str:
    rate, budget = options.get("exp_rate"), options.get("budget")
    parts = [] if rate is None else [f"{100 * rate:.3g}% of the live requests"]
    whose = "requests" if rate is None else "of them"
    parts += [] if budget is None else [f"{_counted(budget, '')} {whose} at most"]
    return ", ".join(parts)


def _others(options: Mapping[str, Any]) -> dict[str, str]:
    """Options without a sentence of their own, by name, where they say something."""
    named = {}
    for name, value in options.items():
        if name in OWN_WORDS or value is None or value in ([], (), {}, ""):
            continue
        values = value if isinstance(value, (list, tuple)) else [value]
        listed = ", ".join(f"{v:g}" if isinstance(v, float) else str(v) for v in values)
        named[OPTION_NAMES.get(name, name.replace("_", " ").capitalize())] = listed
    return named


def _listed(values: Iterable[float]) -> str:
    return ", ".join(f"{each:g}" for each in dict.fromkeys(values))


def text(value: object) -> str:
    """Text for HTML, quotes included, so that it may stand in an attribute."""
    return html.escape(printable(str(value)), quote=True)
