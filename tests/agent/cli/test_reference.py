"""The page on commands is what they say of themselves, and their exit codes are what they give."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from commands import run_command

from equipoise.agent.cli.reference import EXIT_CODES
from equipoise.agent.config.file import example_text
from equipoise.agent.reference.interface import ROWS
from equipoise.agent.service.daemon import BROKEN
from equipoise.replay.cli import app
from equipoise.replay.order import INTERRUPTED

ROOT = Path(__file__).resolve().parents[3]
NAMES = [each.callback.__name__ for each in app.registered_commands if each.callback]


def test_the_pages_are_those_that_the_command_writes(tmp_path: Path) -> None:
    """All but metrics.md, which is held against a daemon."""
    done = run_command("reference", "--out", tmp_path)
    assert done.returncode == 0, done.stderr
    folder = ROOT / "docs/reference"
    assert {path.name for path in folder.iterdir()} == {
        "metrics.md",
        *(path.name for path in tmp_path.iterdir()),
    }
    for path in tmp_path.iterdir():
        assert (folder / path.name).read_text() == path.read_text(), "write it anew: make reference"
    assert "missing: None" not in (folder / "commands.md").read_text()
    for name in NAMES:
        assert f"## equipoise {name}\n" in (folder / "commands.md").read_text()


def test_a_page_or_a_table_is_printed_alone() -> None:
    assert run_command("reference", "records").stdout.startswith("# Records\n")
    budget = run_command("reference", "budget").stdout
    assert [line for line in budget.splitlines() if line.startswith("## ")] == [
        "## `[budget]`",
        "## `[[budget.segments]]`",
        "## `[budget.per_user]`",
    ]
    unknown = run_command("reference", "bugdet")
    assert (unknown.returncode, unknown.stderr.count("\n")) == (2, 1)
    assert "service.tokens" in unknown.stderr


@pytest.mark.parametrize("name", NAMES)
def test_every_command_ends_with_0_for_help_and_2_for_what_it_does_not_know(name: str) -> None:
    assert run_command(name, "--help").returncode == 0
    refused = run_command(name, "--no-such-option")
    assert refused.returncode == 2
    assert refused.stderr.startswith("equipoise: ")
    assert refused.stderr.count("\n") == 1


@pytest.mark.forges
def test_other_codes_are_those_of_the_page(tmp_path: Path) -> None:
    (tmp_path / "equipoise.toml").write_text(example_text())
    good = ROWS["observations"][1][0]
    (tmp_path / "usage.jsonl").write_text(json.dumps(good) + '\n{"routed": "nobody"}\n')
    codes = {"ingest": run_command("ingest", "usage.jsonl", cwd=tmp_path).returncode}
    assert run_command("audit", "equipoise.db", cwd=tmp_path).returncode == 0
    assert run_command("repair", "equipoise.db", "--check", cwd=tmp_path).returncode == 0
    earlier = (tmp_path / "equipoise.db").read_bytes()
    (tmp_path / "more.jsonl").write_text(json.dumps(good | {"request_id": "q9"}))
    assert run_command("ingest", "more.jsonl", cwd=tmp_path).returncode == 0
    (tmp_path / "equipoise.db").write_bytes(earlier)  # what was written since is lost
    codes["repair"] = run_command("repair", "equipoise.db", "--check", cwd=tmp_path).returncode
    assert run_command("repair", "equipoise.db", cwd=tmp_path).returncode == 0
    with closing(sqlite3.connect(tmp_path / "equipoise.db")) as database, database:
        database.execute("UPDATE observations SET reward = 0.5")
    codes["audit"] = run_command("audit", "equipoise.db", cwd=tmp_path).returncode
    expected = {name: {code} for name, code in codes.items()}
    # The others end by a signal, or by a fault inside.
    expected |= {"serve": {BROKEN}, "replay": {INTERRUPTED}}
    assert {name: set(each) for name, each in EXIT_CODES.items()} == expected
    page = (ROOT / "docs/reference/commands.md").read_text()
    for name, each in EXIT_CODES.items():
        for code, when in each.items():
            assert f"| `{name}` | {code} | {when} |" in page
