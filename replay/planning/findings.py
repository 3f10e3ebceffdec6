"""What a validation found: a Markdown table by benchmark, policy, sequence and goal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.replay.planning.validation import Realised

RATIO, BAND = (0.8, 1.25), (0.7, 0.9)
"""What is promised: of the median ratio, and of the share inside the stated 80% band."""
OPENING, CLOSING = "<!-- validation: written by a command -->", "<!-- end of validation -->"

_CUTS: tuple[tuple[str, Callable[[Realised], str]], ...] = (
    ("benchmark", lambda each: each.planned.benchmark),
    ("policy", lambda each: each.planned.policy),
    ("sequence", lambda each: each.planned.sequence),
    ("replays", lambda each: "with" if each.planned.replays else "without"),
    ("goal", lambda each: "decision" if each.planned.width is None else "half-width"),
)


def rows(found: Sequence[Realised]) -> list[dict[str, Any]]:
    """One row for all, then one per value of each cut."""
    result = [_row("all", "", found)]
    for name, key in _CUTS:
        result.extend(
            _row(name, value, [each for each in found if key(each) == value])
            for value in dict.fromkeys(map(key, found))
        )
    return result


def _row(cut: str, value: str, found: Sequence[Realised]) -> dict[str, Any]:
    ratios = np.array([each.ratio for each in found])
    low, median, high = np.quantile(ratios, [0.1, 0.5, 0.9], method="nearest")
    decided = [each.right for each in found if each.right is not None]
    return {
        "cut": cut,
        "value": value,
        "experiments": len(found),
        "ratio": float(median),
        "ratio_low": _number(float(low)),
        "ratio_high": _number(float(high)),
        "inside": float(np.mean([each.inside for each in found])),
        "unfinished": int(np.isinf(ratios).sum()),
        "wrong": int(len(decided) - sum(decided)),
    }


def _number(value: float) -> float | None:
    return value if np.isfinite(value) else None


def markdown(table: Sequence[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = [
        "| | experiments | realised / planned: median (10% to 90%) | inside the 80% band |"
        " gave up | wrong |",
        "|---|---|---|---|---|---|",
    ]
    for row in table:
        name = row["cut"] if not row["value"] else f"{row['cut']}: {row['value']}"
        high = "not reached" if row["ratio_high"] is None else f"{row['ratio_high']:.2f}"
        lines.append(
            f"| {name} | {row['experiments']} | {row['ratio']:.2f} ({row['ratio_low']:.2f} to"
            f" {high}) | {row['inside']:.0%} | {row['unfinished']} | {row['wrong']} |"
        )
    return "\n".join(lines) + "\n"


def write_into(path: Path, table: str) -> None:
    """Put a table between the markers of a page, or make a page of it.

    Raises AgentError where the file exists and has no markers: it is not ours to overwrite.
    """
    block = f"{OPENING}\n\n{table}\n{CLOSING}"
    if not path.exists():
        path.write_text(block + "\n", encoding="utf-8")
        return
    text = path.read_text(encoding="utf-8")
    before, opened, rest = text.partition(OPENING)
    _, closed, after = rest.partition(CLOSING)
    if not (opened and closed):
        raise AgentError(f"{path} has no line {OPENING!r} to put the table after")
    path.write_text(before + block + after, encoding="utf-8")
