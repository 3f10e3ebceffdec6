"""Options of a benchmark from the command line."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from equipoise.replay.benchmarks import BenchmarkError, describe_options, load_from_texts
from equipoise.replay.cli import app


def test_texts_become_values_of_the_type_of_the_default():
    benchmark = load_from_texts("semisynthetic", ["contexts=30", "models=4"])
    assert benchmark.outcome.shape == (30, 4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("contexts", "'contexts' is not NAME=VALUE"),
        ("context=3", "'context' is not one of contexts"),
        ("contexts=many", "contexts is 'many', must be a number"),
        ("contexts=1", "contexts is 1, must be"),
    ],
)
def test_what_does_not_fit_is_named(text, message):
    with pytest.raises(BenchmarkError, match=message):
        load_from_texts("semisynthetic", [text])


def test_an_unknown_benchmark_is_refused():
    with pytest.raises(BenchmarkError, match="unknown benchmark 'nosuch'; there are"):
        load_from_texts("nosuch", ["a=1"])
    with pytest.raises(BenchmarkError, match="unknown benchmark 'nosuch'; there are"):
        describe_options("nosuch")


def test_the_listing_of_one_benchmark_names_its_options():
    shown = CliRunner().invoke(app, ["benchmarks", "swebench", "--json"])
    rows = {row["option"]: row for row in json.loads(shown.stdout)}
    assert rows["features"]["limits"] == "with-outcome, without-outcome"
    assert rows["features"]["default"] == "with-outcome"
    assert "no options" in CliRunner().invoke(app, ["benchmarks", "openbandit"]).stdout


@pytest.mark.parametrize("arguments", [["benchmarks"], ["benchmarks", "swebench"], ["worlds"]])
def test_a_listing_for_people_cuts_nothing_at_80_columns(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    rows = json.loads(CliRunner().invoke(app, [*arguments, "--json"]).stdout)
    listing = CliRunner().invoke(app, arguments).stdout
    assert max(map(len, listing.splitlines())) <= 80
    words = " ".join(listing.split())
    assert all(" ".join(value.split()) in words for row in rows for value in row.values())
