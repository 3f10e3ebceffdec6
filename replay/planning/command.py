"""`equipoise plan --validate`: run planned experiments on benchmarks and tabulate the outcome."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import chain
from pathlib import Path

import msgspec
from rich.console import Console
from rich.table import Table

from equipoise.replay.benchmarks import load_as_told
from equipoise.replay.planning.findings import markdown, rows, write_into
from equipoise.replay.planning.validation import Realised, planned_experiments, realise
from equipoise.replay.progress import shown_progress

SEED = 7
HELPED = 3


def validate(benchmarks: Sequence[str], count: int, out: Path | None, as_json: bool) -> None:
    """Plan `count` experiments on each benchmark (NAME or NAME:PATH), run them, print a table.

    A third as many again are planned with replays.

    out: a page to put the Markdown table into. Raises BenchmarkError or AgentError.
    """
    loaded = [load_as_told(name, []) for name in benchmarks]
    found: list[Realised] = []
    with shown_progress((count + max(count // HELPED, 1)) * len(loaded)) as advance:
        advance(0)
        for benchmark in loaded:
            plans = planned_experiments(benchmark, count, SEED)
            helped = planned_experiments(benchmark, max(count // HELPED, 1), SEED + 1, True)
            for planned in chain(plans, helped):
                found.append(realise(benchmark, planned))
                advance(len(found))
    table = rows(found)
    if out is not None:
        write_into(out, markdown(table))
    if as_json:
        runs = [{**asdict(each.planned), "needed": each.needed} for each in found]
        print(msgspec.json.encode({"rows": table, "runs": runs}).decode())
        return
    shown = Table("", "experiments", "realised / planned", "inside 80% band", "gave up", "wrong")
    for row in table:
        shown.add_row(
            f"{row['cut']} {row['value']}",
            str(row["experiments"]),
            f"{row['ratio']:.2f}",
            f"{row['inside']:.0%}",
            str(row["unfinished"]),
            str(row["wrong"]),
        )
    Console().print(shown)
