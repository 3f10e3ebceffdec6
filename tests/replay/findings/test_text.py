"""Findings as text: numbers with intervals, what is best, terminals and Markdown."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from equipoise.replay.findings.findings import (
    CurvePanel,
    Curves,
    Findings,
    Heatmaps,
    HeatPanel,
    Line,
    Measured,
    Percentage,
    Table,
)
from equipoise.replay.findings.text import (
    NAME_WIDTH,
    as_markdown,
    as_tables,
    best_entries,
    excludes_zero,
    in_words,
    print_findings,
)
from equipoise.replay.results.summary import FAMILIES

LONG = "a-model-whose-name-nobody-would-call-short-20250219-with-tools|pipe"
GRID = (0.0, 0.25, 0.5, 0.75, 1.0)


def measured(mean: float, half: float = 0.01) -> Measured:
    return Measured(mean, mean - half, mean + half)


HEAT = Heatmaps(
    name="grid",
    title="Who wins where",
    caption="Difference of regret.",
    x_label="confounding ω",
    y_label="alignment α",
    below="the first is better",
    above="the second is better",
    panels=(
        HeatPanel(
            "first − second",
            GRID,
            GRID,
            tuple(tuple(measured(0.02 * i - 0.05 * j, 0.012) for j in range(5)) for i in range(5)),
        ),
    ),
)
CURVES = Curves(
    name="rmse",
    title="Error against EXP",
    caption="",
    x_label="randomized requests",
    y_label="RMSE",
    panels=(
        CurvePanel(
            "coding",
            (100.0, 1000.0),
            (
                Line("ipw", (measured(0.2), measured(0.06))),
                Line("obs-only", (Measured(None), measured(0.1))),
            ),
        ),
    ),
)
FAMILY_TABLE = Table(
    "worst",
    "Worst case",
    "RMSE; lower is better.",
    ("setting", *FAMILIES),
    tuple(
        (LONG if row else "short", *(measured(1 + (row + at) % 5) for at in range(8)))
        for row in range(3)
    ),
)
FOUND = Findings(
    "grid", "Which?", ("The headline.", "A second sentence."), (FAMILY_TABLE,), (CURVES, HEAT)
)


def printed(findings: Findings, width: int) -> str:
    console = Console(file=io.StringIO(), width=width)
    print_findings(console, findings)
    return console.file.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("entry", "number", "interval"),
    [
        (Measured(0.0123, 0.0, 0.0211), "0.012", "[0.000, 0.021]"),
        (Measured(0.0004, -0.001, 0.0021), "0.0004", "[−0.0010, 0.0021]"),
        (Measured(1234.5, 1000.0, 2000.0), "1,234", "[1,000, 2,000]"),
        (Measured(0.5), "0.500", ""),
        (Measured(-0.00001, -0.00002, 0.02), "0.000", "[0.000, 0.020]"),
        (Measured(float("nan"), 0.0, 1.0), "–", ""),
        (Measured(0.0, 0.0, 0.0), "0.000", ""),
        (Percentage(2 / 3, 0.21, 1.0), "67%", "[21%, 100%]"),
        (float("inf"), "–", ""),
        ("a\x1b[2Jb", "a�[2Jb", ""),
    ],
)
def test_entries_in_words(entry: object, number: str, interval: str) -> None:
    assert in_words(entry) == (number, interval)  # type: ignore[arg-type]


def test_a_plus_marks_what_is_above_zero_as_shown() -> None:
    assert in_words(Measured(0.02, 0.01, 0.03), signed=True)[0] == "+0.020"
    assert in_words(Measured(0.0001, -0.2, 0.2), signed=True)[0] == "0.000"
    assert in_words(Measured(-0.02, -0.03, -0.01), signed=True)[0] == "−0.020"


def test_an_interval_that_touches_zero_does_not_exclude_it() -> None:
    assert not excludes_zero(Measured(0.1, 0.0, 0.2))
    assert not excludes_zero(Measured(-0.1, -0.2, 0.0))
    assert not excludes_zero(Measured(0.1))
    assert excludes_zero(Measured(0.1, 0.01, 0.2))
    assert excludes_zero(Measured(-0.1, -0.2, -0.01))


def table(caption: str, columns: tuple[str, ...], *rows: tuple[object, ...]) -> Table:
    return Table("t", "T", caption, columns, rows)  # type: ignore[arg-type]


def test_the_best_entry_is_sought_where_the_caption_says_what_is_better() -> None:
    rows = (("a", measured(1), 7), ("b", measured(3), 2), ("c", Measured(None), 1))
    columns = ("model", "regret", "rank")
    assert best_entries(table("Lower is better.", columns, *rows)) == {(0, 1)}
    assert best_entries(table("Reward; higher is better.", columns, *rows)) == {(1, 1)}
    assert not best_entries(table("Regret.", columns, *rows))
    assert not best_entries(table("Lower is better; higher is better.", columns, *rows))


def test_families_are_compared_along_their_row_and_repeated_names_not_at_all() -> None:
    across = table("lower is better", ("n", "ipw", "cvci"), ("100", measured(2), measured(1)))
    assert best_entries(across) == {(0, 2)}
    again = table("lower is better", ("n", "x"), ("a", measured(2)), ("a", measured(1)))
    assert not best_entries(again)
    ties = table("lower is better", ("n", "x"), ("a", measured(1)), ("b", measured(1)))
    assert best_entries(ties) == {(0, 1), (1, 1)}


def test_figures_as_tables_keep_every_number() -> None:
    (panel,) = as_tables(CURVES)
    assert panel.columns == ("randomized requests", "ipw", "obs-only")
    assert panel.rows[0] == (100.0, measured(0.2), Measured(None))
    (heat,) = as_tables(HEAT)
    assert heat.columns[1:] == ("0", "0.25", "0.5", "0.75", "1")
    assert [row[0] for row in heat.rows] == ["1", "0.75", "0.5", "0.25", "0"]
    assert heat.rows[0][1:] == HEAT.panels[0].cells[4]


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_a_terminal_is_never_overrun_and_no_number_is_lost(width: int) -> None:
    text = printed(FOUND, width)
    assert max(map(len, text.splitlines())) <= min(width, 100)
    assert text.split()[:2] == ["The", "headline."]
    for entry in FAMILY_TABLE.rows[0][1:]:
        assert in_words(entry)[0] in text
    assert len(re.findall(r"\[[^\]\n]+, [^\]\n]+\]", text)) == 3 * 8 + 25
    assert "…" not in text
    # A long name is whole, or goes on in the lines below in its own column.
    pieces = [LONG[at : at + NAME_WIDTH] for at in range(0, len(LONG), NAME_WIDTH)]
    starts = [line.strip().split("  ")[0] for line in text.splitlines()]
    assert LONG in starts or all(starts.count(piece) >= 2 for piece in pieces)
    # Every part of a table names its rows again, and no name of a row is broken.
    assert starts.count("short") == starts.count("setting") >= 2
    assert re.search(r"^ 0\.75 ", text, re.MULTILINE)


def test_heat_maps_on_a_terminal_say_what_is_sure() -> None:
    text = printed(FOUND, 100)
    assert "+0.080*" in text
    assert "−0.010 " in text
    assert "Below 0: the first is better" in " ".join(text.split())
    assert "Drawn in report.html: Error against EXP." in text


def test_markdown_holds_tables_that_are_tables() -> None:
    text = as_markdown(FOUND, level=3)
    assert text.startswith("### Which?\n\n**The headline.**\n\nA second sentence.\n\n#### Worst")
    assert text.endswith("|\n")
    for block in text.split("\n\n"):
        if block.startswith("|"):
            lines = block.splitlines()
            bars = {len(re.findall(r"(?<!\\)\|", line)) for line in lines}
            assert len(bars) == 1
            assert re.fullmatch(r"\| ---( \| ---:)+ \|", lines[1])
            assert "\\[" not in block
    assert "**1.000** [0.990, 1.010]" in text
    assert "| 1 | +0.080\\* [0.068, 0.092] |" in text
    assert "| 100 | 0.200 [0.190, 0.210] | – |" in text
    assert "RMSE" not in as_markdown(FOUND, figures=False).split("lower is better.")[1]


def test_markdown_takes_nothing_from_files_for_its_own() -> None:
    nasty = "<script>x</script> *a* _b_ `c` [d](e) |\n# f"
    found = Findings("x", nasty, (nasty,), (table("", ("a", "b"), (nasty, nasty)),), ())
    text = as_markdown(found)
    assert not re.search(r"(?<!\\)([<>`_]|\]\()", text)
    assert not re.search(r"^# f", text, re.MULTILINE)
    (row,) = (line for line in text.splitlines() if line.startswith("| \\<script"))
    assert len(re.findall(r"(?<!\\)\|", row)) == 3


def test_findings_without_tables_or_sentences_still_print() -> None:
    empty = Findings("x", "A question?", (), (), ())
    assert printed(empty, 100).split() == ["A", "question?"]
    assert as_markdown(empty) == "## A question?\n"
    bare = Findings("x", "q", ("s",), (table("", ("a",)),), ())
    assert "a" in printed(bare, 100).split()
