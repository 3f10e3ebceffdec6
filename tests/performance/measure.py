"""Two sides of a ratio in one run: alternating, five rounds, the median; and the table at the end.

A side is a function that does one round and returns its figures by name. Machines are noisy, and
drift for minutes: so the sides of a ratio take turns round by round, and the ratio is the median of
the rounds' own ratios. Nothing here asserts; it prints.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

ROUNDS = 5
HERE = Path(__file__).resolve().parent

Figures = dict[str, float]
Side = Callable[[], Figures]


@dataclass(frozen=True)
class Target:
    """Our figure, as a multiple of a side's, must be at least or at most `ratio`."""

    side: str
    ratio: float
    least: bool = False

    def __str__(self) -> str:
        return f"{'>=' if self.least else '<='} {self.ratio:g} x {self.side}"

    def met(self, ratio: float) -> bool:
        return ratio >= self.ratio if self.least else ratio <= self.ratio


@dataclass
class Row:
    """One line of the table: medians of the sides, and the medians of the ratios to each."""

    section: str
    what: str
    unit: str
    sides: dict[str, float]
    ratios: dict[str, float]
    targets: tuple[Target, ...] = ()
    note: str = ""

    def verdict(self) -> str:
        known = [each for each in self.targets if each.side in self.ratios]
        return ", ".join(
            f"{each}: {'met' if each.met(self.ratios[each.side]) else 'MISSED'}" for each in known
        )


@dataclass
class Bench:
    """Everything that one run measured. against: another checkout, whose figures are `before`."""

    against: Path | None = None
    rows: list[Row] = field(default_factory=list)
    section: str = ""
    _other: Checkout | None = None

    def begin(self, section: str, title: str) -> None:
        self.section = section
        print(f"\n{section}: {title}", flush=True)

    def before(self, name: str) -> dict[str, Side]:
        """The same work by the other checkout, as the side `before`; none where there is none."""
        if self.against is None:
            return {}
        if self._other is None:
            self._other = Checkout(self.against)
        return {"before": self._other.side(name)}

    def compare(
        self,
        what: str,
        units: Mapping[str, str],
        sides: Mapping[str, Side],
        targets: Mapping[str, tuple[Target, ...]] | None = None,
        rounds: int = ROUNDS,
    ) -> dict[str, list[Figures]]:
        """Measure the sides in turns, `own` among them, and keep a line for every figure in units.

        A side that lacks a figure is left out of its line. A first round warms up and counts not.
        """
        measured: dict[str, list[Figures]] = {name: [] for name in sides}
        for turn in range(rounds + 1):
            for name, side in sides.items():
                figures = side()
                if turn:
                    measured[name].append(figures)
        for figure, unit in units.items():
            series = {
                name: [each[figure] for each in all_]
                for name, all_ in measured.items()
                if figure in all_[0]
            }
            own = series["own"]
            self.add(
                what if len(units) == 1 else f"{what}, {figure}",
                unit,
                {name: median(values) for name, values in series.items()},
                {
                    name: median(a / b for a, b in zip(own, values, strict=True))
                    for name, values in series.items()
                    if name != "own"
                },
                (targets or {}).get(figure, ()),
            )
        return measured

    def add(
        self,
        what: str,
        unit: str,
        sides: dict[str, float],
        ratios: dict[str, float] | None = None,
        targets: tuple[Target, ...] = (),
        note: str = "",
    ) -> None:
        """Keep and print one line."""
        row = Row(self.section, what, unit, sides, ratios or {}, targets, note)
        self.rows.append(row)
        others = ", ".join(
            f"{ratio:.2f} x {name} ({number(row.sides[name])})"
            for name, ratio in row.ratios.items()
            if name in row.sides
        )
        tail = "  ".join(part for part in (others, row.verdict(), note) if part)
        print(f"  {what:<46}{number(sides['own']):>11} {unit:<7} {tail}", flush=True)

    def table(self) -> None:
        """All lines as Markdown."""
        peers = [
            name
            for name in dict.fromkeys(side for row in self.rows for side in row.sides)
            if name not in ("own", "before", "bare")
        ]
        shown = [name for name in ("before", "bare") if any(name in r.sides for r in self.rows)]
        print(f"\n| | unit | now | {' | '.join([*shown, 'peer', 'targets'])} |")
        print("|---|---|---:|" + "---:|" * len(shown) + "---|---|")
        for row in self.rows:
            cells = [_beside(row, name) for name in shown]
            beside = "; ".join(
                f"{name} {_beside(row, name)}" for name in peers if name in row.sides
            )
            last = row.verdict() or row.note
            print(
                f"| {row.section}: {row.what} | {row.unit} | {number(row.sides['own'])} |"
                f" {' | '.join([*cells, beside, last])} |"
            )

    def close(self) -> None:
        if self._other is not None:
            self._other.close()


def _beside(row: Row, name: str) -> str:
    if name not in row.sides:
        return ""
    ratio = row.ratios.get(name)
    return number(row.sides[name]) + ("" if ratio is None else f" ({ratio:.2f} x)")


def number(value: float) -> str:
    """Three digits, or all of those before the point."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}"


class Checkout:
    """Another checkout of this project, with an environment of its own in `.venv`: its interpreter
    does the same works, as they are written in this one."""

    def __init__(self, path: Path) -> None:
        self._worker = subprocess.Popen(
            [python_of(path), str(HERE / "works.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=path,
            env=environment(),
        )

    def side(self, name: str) -> Side:
        def measure() -> Figures:
            assert self._worker.stdin is not None
            assert self._worker.stdout is not None
            self._worker.stdin.write(name + "\n")
            self._worker.stdin.flush()
            answer = self._worker.stdout.readline()
            if not answer:
                raise SystemExit(f"the other checkout cannot measure {name!r}")
            figures: Figures = json.loads(answer)
            return figures

        return measure

    def close(self) -> None:
        assert self._worker.stdin is not None
        self._worker.stdin.close()
        self._worker.wait()


def python_of(checkout: Path | None) -> str:
    """The interpreter of a checkout's environment; None for this one's."""
    return sys.executable if checkout is None else str(checkout / ".venv/bin/python")


def environment() -> dict[str, str]:
    """Of commands that are measured: bytecode is kept, as wherever somebody installed us."""
    kept = {name: text for name, text in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    kept.setdefault("PYTHONPYCACHEPREFIX", str(HERE.parents[1] / ".venv/bytecode"))
    return kept
