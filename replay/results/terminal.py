"""What a replay showed, as tables on a terminal; they can be read without their colours."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from equipoise.replay.results.averages import NAIVE
from equipoise.replay.results.headline import NEAR, minus, percent, printable, reward

Row: TypeAlias = Mapping[str, Any]

LABEL_WIDTH = 19
NAME_WIDTH = 6
"""Model names are cut to no less than this before policies move on to a table of their own."""
MOST_WIDTH = 100
WORDS = {"right": ("right", "green"), "near": ("near", "yellow"), "wrong": ("WRONG", "bold red")}


def print_table(console: Console, summary: Mapping[str, Any]) -> None:
    """Print the headline, who recommends what, what it cost, and what to open next.

    One scenario in detail; several as averages over them. Fits in 100 columns, or in fewer.
    """
    width = min(console.width, MOST_WIDTH)
    say = _speaker(console, width)
    scenarios, rows = summary["scenarios"], summary["rows"]
    say(Text(printable(summary["headline"]), style="bold"))
    policies = list(dict.fromkeys(row["policy"] for row in rows))
    if len(scenarios) == 1:
        say(Text(printable(scenarios[0]["naive"]["sentence"])))
        say(Text(printable(scenarios[0]["routing"]["sentence"])))
        describe: Callable[[Sequence[Row]], Text] = _detailed
        least = len(f"WRONG {_share_right(rows[0])}0.000 ") + NAME_WIDTH
        legend = _detailed_legend(rows)
    else:
        describe, least = _averaged, len("right 100% 0.000 ≤ 0.000")
        legend = (
            f"Averages over {len(scenarios)} settings: share of runs that end with a best model, "
            "mean regret (true value of the best model less that of the recommended one), and the "
            "mean regret in the worst setting."
        )
    fitting = max(1, (width - LABEL_WIDTH - 2) // (least + 2))
    for start in range(0, len(policies), fitting):
        console.print(_who(rows, policies[start : start + fitting], describe, width))
        console.print()
    say(Text(legend, style="dim"))
    console.print(_costs(rows, policies, width))
    console.print()
    say(
        Text(
            "Spend: USD on randomized requests. Harm: reward lost by serving them another model "
            "than the routed one. Certified: share of runs that named the best model with a "
            "guarantee, after how many randomized requests, and how many of those runs were wrong.",
            style="dim",
        )
    )
    say(
        Text(
            "Next: open report.html for every number with its interval and the curves; "
            "results.parquet holds one row per run and checkpoint."
        )
    )


def _speaker(console: Console, width: int) -> Callable[[Text], None]:
    def say(text: Text) -> None:
        console.print(Padding(text, (0, 1, 1, 1)), width=width)

    return say


def _who(
    rows: Sequence[Row],
    policies: Sequence[str],
    describe: Callable[[Sequence[Row]], Text],
    width: int,
) -> Table:
    """Estimators down, policies across."""
    table = _table()
    table.add_column("estimator", width=LABEL_WIDTH, no_wrap=True)
    each_width = (width - LABEL_WIDTH - 2) // len(policies) - 2
    for policy in policies:
        table.add_column(Text(printable(policy)), width=each_width, no_wrap=True)
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        found = [
            [row for row in rows if (row["policy"], row["estimator"]) == (policy, estimator)]
            for policy in policies
        ]
        naive = estimator == NAIVE
        table.add_row(
            Text(printable(estimator)),
            *(describe(each) if each else Text("not run", style="dim") for each in found),
            end_section=naive,
        )
    return table


def _detailed(rows: Sequence[Row]) -> Text:
    (row,) = rows
    if row["verdict"] == "silent":
        return Text("no answer", style="yellow")
    word, style = WORDS[row["verdict"]]
    return Text.assemble(
        (f"{word:<5} ", style),
        _share_right(row),
        f"{reward(row['regret']['mean']):>5} ",
        printable(row["recommended"]),
    )


def _share_right(row: Row) -> str:
    """How many of several runs are right, as 2/3, or as a share where they are many."""
    runs, right = row["runs"], row["right"]["mean"]
    if runs == 1:
        return ""
    if runs < 100:
        return f"{round(runs * right)}/{runs}".rjust(2 * len(str(runs)) + 1) + " "
    return f"{percent(right):>4} "


def _detailed_legend(rows: Sequence[Row]) -> str:
    legend = (
        "naive-log compares the models' mean rewards in the usage log. Each cell: is the model "
        "recommended in the end a best one, its regret (true value of the best model less its "
        f"own), its name. near: not the best one, but a mean regret of {NEAR:g} at most."
    )
    runs = rows[0]["runs"]
    if runs > 1:
        legend += (
            f" Over {runs} runs: how many of them are right, the mean regret, and the name that "
            "most of them recommend."
        )
    return legend


def _averaged(rows: Sequence[Row]) -> Text:
    right = math.fsum(row["right"]["mean"] for row in rows) / len(rows)
    regrets = [row["regret"]["mean"] for row in rows if row["regret"]["mean"] is not None]
    if not regrets:
        return Text("no answer", style="yellow")
    style = "green" if right > 0.5 else "bold red"
    return Text.assemble(
        (f"right {percent(right):>4}", style),
        f" {reward(math.fsum(regrets) / len(regrets))}",
        f" ≤ {reward(max(regrets))}",
    )


def _costs(rows: Sequence[Row], policies: Sequence[str], width: int) -> Table:
    """What each policy used and risked; a range where estimators steered different streams."""
    table = _table()
    table.add_column("policy", width=LABEL_WIDTH, no_wrap=True)
    for heading in ("randomized", "spend (USD)", "harm", "certified", "wrong"):
        table.add_column(heading, justify="right")
    for policy in policies:
        streams = [row for row in rows if row["policy"] == policy and row["estimator"] != NAIVE]
        streams = streams or [row for row in rows if row["policy"] == policy]
        decided = math.fsum(row["decided"]["mean"] for row in streams) / len(streams)
        at = _range(streams, "decided_at", ",.0f")
        table.add_row(
            Text(printable(policy)),
            _range(streams, "exp_used", ",.0f"),
            _range(streams, "spend", ",.2f"),
            _range(streams, "harm", ",.1f"),
            percent(decided) if not decided else f"{percent(decided)} at {at}",
            _range(streams, "decided_wrong", ".0%"),
        )
    return table


def _range(rows: Sequence[Row], column: str, form: str) -> str:
    """The mean of a column, as low–high where it differs between estimators."""
    means = [row[column]["mean"] for row in rows if row[column]["mean"] is not None]
    if not means:
        return "–"
    low, high = format(min(means), form), format(max(means), form)
    return minus(low if low == high else f"{low} to {high}")


def _table() -> Table:
    return Table(box=SIMPLE_HEAD, show_edge=False, collapse_padding=True, header_style="bold")
