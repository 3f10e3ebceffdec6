"""Numbers and tables as markdown."""

from __future__ import annotations

import math

ABSENT = "–"


def percent(share):
    """99.97% is not 100%, and 0.05% is not 0."""
    if share is None:
        return ABSENT
    digits = 2 if 0 < share < 0.001 or 0.999 < share < 1 else 1
    return f"{100 * share:.{digits}f}%"


def times(ratio):
    return "not in the rows" if math.isinf(ratio) else f"{ratio:.2f}"


def table(header, rows):
    """Lines of a markdown table; rows of strings."""
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]
