"""What an experiment found, as plain data: sentences, tables and figures, drawn elsewhere.

Every measured number is a `Measured`: a mean over seeds with its 95% bootstrap interval. Nothing
here knows of HTML, terminals or Markdown.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Measured:
    """A mean over seeds and its 95% interval; None where unknown."""

    mean: float | None
    low: float | None = None
    high: float | None = None


Entry: TypeAlias = str | int | float | Measured | None
"""A cell of a table: text, an exact number, a measured one, or nothing."""


@dataclass(frozen=True, slots=True)
class Table:
    """columns: C headings. rows: each of C entries; the first one names the row.

    title: what it shows, in a line. caption: how to read it and the unit of its numbers.
    """

    name: str
    title: str
    caption: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Entry, ...], ...]


@dataclass(frozen=True, slots=True)
class Line:
    """One family (or policy) along the x of its panel. points: as many as x has."""

    name: str
    points: tuple[Measured, ...]


@dataclass(frozen=True, slots=True)
class CurvePanel:
    """x: positions in increasing order; lines: what is drawn over them."""

    title: str
    x: tuple[float, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Curves:
    """Panels side by side with common axes. log_x, log_y: logarithmic axes."""

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    panels: tuple[CurvePanel, ...]
    log_x: bool = False
    log_y: bool = False


@dataclass(frozen=True, slots=True)
class HeatPanel:
    """cells[i][j]: measured at y[i] and x[j]."""

    title: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    cells: tuple[tuple[Measured, ...], ...]


@dataclass(frozen=True, slots=True)
class Heatmaps:
    """Panels side by side on one diverging colour scale around 0.

    below, above: what a negative and a positive cell means, in a few words.
    """

    name: str
    title: str
    caption: str
    x_label: str
    y_label: str
    below: str
    above: str
    panels: tuple[HeatPanel, ...]


Figure: TypeAlias = Curves | Heatmaps


@dataclass(frozen=True, slots=True)
class Findings:
    """experiment: its name. title: the question it asks. sentences: the answer, headline first."""

    experiment: str
    title: str
    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    figures: tuple[Figure, ...]
