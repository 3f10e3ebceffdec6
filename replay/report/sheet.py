"""Figures of the page under their ids, and the keys that explain their lines and marks."""

from __future__ import annotations

import json
from collections.abc import Sequence

from equipoise.replay.averages import NAIVE
from equipoise.replay.report.frame import Figure, safe
from equipoise.replay.report.palette import Style
from equipoise.replay.report.scenario import Panel
from equipoise.replay.report.tables import text

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
