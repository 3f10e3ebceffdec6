"""Heat maps as HTML tables: they need no script, show their intervals, and print as they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from equipoise.replay.report.tables import text


@dataclass(frozen=True, slots=True)
class MapCell:
    """A cell: its number and interval, what it says when pointed at, and its colour.

    kinds: classes; "above" and "below" choose the colour, "none" is for what is unknown.
    share: how strong the colour is, between 0 and 1.
    """

    number: str
    interval: str
    said: str
    kinds: str
    share: float = 0.0


def map_html(
    heading: str,
    x_label: str,
    y_label: str,
    x: Sequence[str],
    y: Sequence[str],
    cells: Sequence[Sequence[MapCell]],
) -> str:
    """A heat map of cells (Y, X), y upwards. Everything is escaped here."""
    lines = []
    for at in reversed(range(len(y))):
        side = f'<th class="side" rowspan="{len(y)}"><span>{text(y_label)}</span></th>'
        lines.append(
            f'<tr>{side if at == len(y) - 1 else ""}<th scope="row">{text(y[at])}</th>'
            f"{''.join(map(_cell, cells[at]))}</tr>"
        )
    ticks = "".join(f'<th scope="col">{text(each)}</th>' for each in x)
    lines.append(f'<tr><td colspan="2"></td>{ticks}</tr>')
    lines.append(
        f'<tr><td colspan="2"></td><th class="along" colspan="{len(x)}">{text(x_label)}</th></tr>'
    )
    return (
        f'<figure><figcaption>{text(heading)}</figcaption><div class="scroll" tabindex="0">'
        f'<table class="map"><tbody>{"".join(lines)}</tbody></table></div></figure>'
    )


def _cell(cell: MapCell) -> str:
    below = f'<span class="interval">{text(cell.interval)}</span>' if cell.interval else ""
    return (
        f'<td class="{cell.kinds}" style="--share:{100 * cell.share:.0f}%" '
        f'title="{text(cell.said)}"><span class="number">{text(cell.number)}</span>{below}</td>'
    )
