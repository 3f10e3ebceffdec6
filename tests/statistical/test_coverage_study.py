"""The command of the coverage study: it goes on where it was, and its page says what is missing."""

from __future__ import annotations

import json

import coverage_study
import markdown_text
import tables
from cells import NAMES, WORLDS, cells


def test_a_finished_cell_is_not_run_again(tmp_path, capsys):
    arguments = ["--runs", "40", "--only", "rows/e = 0", "--keep", str(tmp_path)]
    coverage_study.main(arguments)
    first = capsys.readouterr().out
    kept = list(tmp_path.glob("*/*.json"))
    assert len(kept) == 1
    assert "[1/1]" in first
    kept[0].write_text(json.dumps({"right": "as it was kept"}))
    coverage_study.main(arguments)
    second = capsys.readouterr().out
    assert "[1/1]" not in second
    assert "as it was kept" in second


def test_the_page_is_written_from_what_is_finished(tmp_path):
    keep, out = tmp_path / "keep", tmp_path / "page.md"
    coverage_study.main(["--runs", "40", "--only", "width/asymptotic", "--keep", str(keep)])
    coverage_study.main(["--runs", "40", "--tables", "--keep", str(keep), "--out", str(out)])
    text = out.read_text()
    assert "| two-sided 5%, scale 1 | 1.715 | 1.573 | 1.548 |" in text
    assert "| no confounding | uniform | – |" in text


def test_every_cell_has_a_file_of_its_own_and_every_world_every_allocation():
    names = list(cells(10))
    assert len({coverage_study.file_name(name) for name in names}) == len(names)
    for world in WORLDS:
        for allocation in NAMES:
            assert f"coverage/{world}/{allocation}" in names


def test_words_alone_run_nothing_again_but_code_does(tmp_path):
    plain, worded, changed = (tmp_path / f"{n}.py" for n in ("plain", "worded", "changed"))
    plain.write_text('def f(x):\n    """One."""\n    return x + 1\n')
    worded.write_text('"""A file."""\n\ndef f(x):\n    """Two."""\n    return x + 1  # why\n')
    changed.write_text('def f(x):\n    """One."""\n    return x + 2\n')
    assert coverage_study.program(plain) == coverage_study.program(worded)
    assert coverage_study.program(plain) != coverage_study.program(changed)


def test_brackets_mark_a_sequence_whose_assumption_does_not_hold():
    cell = dict.fromkeys(("lower values", "upper values", "open"), 0.0)
    cell |= {name: 0.25 for name, _ in tables.SEQUENCES}
    held = tables._shares(cell, "no confounding", "uniform")
    broken = tables._shares(cell, "drift", "uniform")
    assert not any(part.startswith("(") for part in held)
    assert [part.startswith("(") for part in broken].count(True) == 2
    assert markdown_text.percent(0.0004) == "0.04%"
    assert markdown_text.percent(0.0) == "0.0%"
