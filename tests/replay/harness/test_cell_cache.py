"""Finished cells on disk: found again, never run twice, in order, gone when all is well."""

from __future__ import annotations

from dataclasses import replace
from io import StringIO
from pathlib import Path

import pandas as pd
import pytest

from equipoise.agent.errors import AgentError
from equipoise.replay.benchmarks import load
from equipoise.replay.harness import sweep as sweeping
from equipoise.replay.harness.cell_cache import (
    PACKAGE,
    FinishedCells,
    benchmark_digest,
    cells_beside,
    code_digest,
)
from equipoise.replay.harness.stream import StreamSettings
from equipoise.replay.harness.sweep import Lines, cells, run_sweep
from equipoise.replay.worlds import WorldOptions

SETTINGS = StreamSettings(requests=60, exp_rate=1.0, budget=50, obs=100, batch=25)
SWEEP = cells(
    [0.5], [0.0, 1.0], ["uniform"], ["ipw", "obs-only"], 3, [("", None), ("w", WorldOptions())]
)


@pytest.fixture(scope="module")
def table():
    return load("semisynthetic", contexts=50, models=3)


@pytest.fixture(scope="module")
def whole(table):
    return run_sweep(table, SETTINGS, SWEEP)


def test_only_the_cells_that_are_left_run_and_the_results_are_the_same(
    table, whole, tmp_path, monkeypatch
):
    run_sweep(table, SETTINGS, SWEEP[5:9], folder=tmp_path)
    ran, counts = [], []
    original = sweeping.run_cell
    monkeypatch.setattr(
        sweeping, "run_cell", lambda *given: ran.append(given[2]) or original(*given)
    )
    again = run_sweep(table, SETTINGS, SWEEP, progress=counts.append, folder=tmp_path)
    assert ran == SWEEP[:5] + SWEEP[9:]
    assert counts == list(range(4, 13))
    pd.testing.assert_frame_equal(again, whole, check_exact=True)
    assert again["world"].tolist() == sorted(again["world"])


def test_what_had_finished_before_an_error_is_kept(table, whole, tmp_path, monkeypatch):
    original, ran = sweeping.run_cell, []

    def fails_at_last(*given):
        ran.append(given[2])
        if len(ran) == 4:
            raise KeyboardInterrupt
        return original(*given)

    monkeypatch.setattr(sweeping, "run_cell", fails_at_last)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(table, SETTINGS, SWEEP, folder=tmp_path)
    counts: list[int] = []
    again = run_sweep(table, SETTINGS, SWEEP, progress=counts.append, folder=tmp_path)
    assert counts[0] == 3
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


@pytest.mark.parametrize(
    "settings",
    [replace(SETTINGS, obs=101), replace(SETTINGS, world=WorldOptions(missing=0.1))],
)
def test_other_options_find_nothing(table, tmp_path, settings):
    run_sweep(table, SETTINGS, SWEEP[:2], folder=tmp_path)
    counts: list[int] = []
    run_sweep(table, settings, SWEEP[:2], progress=counts.append, folder=tmp_path)
    assert counts == [0, 1, 2]


def test_other_contents_of_a_benchmark_have_another_digest(table):
    outcome = table.outcome.copy()
    outcome[0, 0] = 1 - outcome[0, 0]
    assert benchmark_digest(replace(table, outcome=outcome)) != benchmark_digest(table)
    assert benchmark_digest(replace(table, models=("p", "q", "r"))) != benchmark_digest(table)
    assert benchmark_digest(replace(table, source="elsewhere")) == benchmark_digest(table)


def test_a_damaged_part_is_as_good_as_none(table, whole, tmp_path):
    run_sweep(table, SETTINGS, SWEEP, folder=tmp_path)
    parts = list(tmp_path.glob("*.parquet"))  # more than one where the machine is slow
    assert parts
    for part in parts:
        part.write_bytes(part.read_bytes()[:-200])
    counts: list[int] = []
    again = run_sweep(table, SETTINGS, SWEEP, progress=counts.append, folder=tmp_path)
    assert counts[0] == 0
    pd.testing.assert_frame_equal(again, whole, check_exact=True)


def test_parts_are_few_and_lose_a_hundredth_of_the_time_at_most(tmp_path):
    now = 0.0
    finished = FinishedCells(tmp_path, clock=lambda: now)
    lost = []
    for cell in range(40_000):
        now += 0.5
        finished.add(str(cell), [{"cell": cell}])
        lost.append((now - finished._written) / max(now, 100.0))
    assert max(lost) <= 0.01
    assert len(list(tmp_path.glob("*.parquet"))) < 1000
    found = FinishedCells(tmp_path)
    kept = [str(cell) for cell in range(40_000) if str(cell) in found]
    assert len(kept) > 39_000
    wanted = [kept[9], kept[-1], kept[0]]
    assert found.table(wanted)["cell"].to_pylist() == [int(cell) for cell in wanted]


def test_rows_with_other_columns_share_a_part():
    finished = FinishedCells()
    finished.add("a", [{"n": 1, "word": None}])
    finished.add("b", [{"n": 2, "word": "x", "more": [0.5, float("nan")]}])
    rows = finished.table(["b", "a"]).to_pylist()
    assert [row["word"] for row in rows] == ["x", None]
    assert rows[1]["more"] is None
    assert rows[0]["more"][0] == 0.5


def test_the_folder_disappears_when_all_is_well_and_stays_when_not(tmp_path: Path):
    with cells_beside(tmp_path / "out") as folder:
        (folder / "x.parquet").touch()
        with pytest.raises(AgentError, match="another run"), cells_beside(tmp_path / "out"):
            pass
    assert not list(tmp_path.iterdir())
    failing = cells_beside(tmp_path / "out")
    folder = failing.__enter__()
    (folder / "x.parquet").touch()
    (folder / "y.tmp").touch()
    assert not failing.__exit__(RuntimeError, RuntimeError(), None)
    assert (folder / "x.parquet").exists()
    with cells_beside(tmp_path / "out"):
        assert not (folder / "y.tmp").exists()
    assert not list(tmp_path.iterdir())


def test_lines_come_every_tenth_and_do_not_count_what_was_found():
    now, out = 0.0, StringIO()
    lines = Lines(200, out, clock=lambda: now)
    for done in range(100, 201):
        lines(done)
        now += 6.0
    said = out.getvalue().splitlines()
    assert said[0] == "replaying: 100 of 200 cells were finished earlier"
    assert said[1] == "replaying: 120 of 200 cells, 8 minutes left"
    assert said[-1] == "replaying: 200 of 200 cells"
    assert len(said) == 6


def test_the_code_of_all_four_packages_tells_cells_apart(tmp_path: Path) -> None:
    layers = ("agent", "policies", "replay", "store")
    modules = ("agent/agent.py", "policies/registry.py", "replay/order.py", "store/batches.py")
    assert all((PACKAGE / module).is_file() for module in modules)
    digests = set()
    for changed in (None, *layers, "renamed"):
        package = tmp_path / str(changed)
        for layer in layers:
            (package / layer / "deep").mkdir(parents=True)
            name = "other.py" if changed == "renamed" else "module.py"
            text = "changed" if changed == layer else "as it was"
            (package / layer / "deep" / name).write_text(text)
        digests.add(code_digest(package))
    assert len(digests) == 6
    assert code_digest() not in digests
