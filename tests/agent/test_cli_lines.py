"""Output that people read on a terminal, and what programs read of the same."""

from __future__ import annotations

import os
import pty
import subprocess
import sys

import pytest

from equipoise.agent.cli import folded, say
from equipoise.agent.cli.maintenance import _sentences
from equipoise.agent.maintenance.audit import Audit

LONG = (
    "not proven: that rewards, outputs and features are what really happened, as clients sent them"
)


def test_no_word_is_broken_and_none_is_lost() -> None:
    for columns in (20, 40, 80):
        lines = folded(LONG, columns).splitlines()
        assert " ".join(line.strip() for line in lines) == LONG
        assert max(map(len, lines)) <= columns
        assert all(line.startswith("  ") for line in lines[1:])


def test_a_pipe_gets_whole_lines_and_a_terminal_folded_ones(
    capsys: pytest.CaptureFixture[str],
) -> None:
    say([LONG, ""])
    assert capsys.readouterr().out == f"{LONG}\n\n"
    leader, follower = pty.openpty()
    command = [sys.executable, "-c", f"from equipoise.agent.cli import say; say([{LONG!r}])"]
    environment = {**os.environ, "COLUMNS": "40"}
    subprocess.run(command, stdout=follower, env=environment, check=True)
    os.close(follower)
    shown = os.read(leader, 4096).decode()
    os.close(leader)
    assert shown.splitlines() == folded(LONG, 40).splitlines()


def test_an_audit_counts_in_english_and_says_what_was_not_open() -> None:
    one = Audit(rows=1, decisions=1, rules=1, outcomes=1, chained_from=0, chained_rows=1, anchors=1)
    first, chain, *_ = _sentences(one)
    assert first == "1 log row, 1 decision under 1 rule (0 randomized), 1 outcome part"
    assert chain == "hash chain: 1 row from row 0 on, compared with 1 anchor"
    many = Audit(
        rows=2000,
        decisions=1000,
        rules=2,
        randomized=300,
        capped=18,
        closed_by={"paused": 10, "observing": 6},
    )
    assert _sentences(many)[0] == (
        "2,000 log rows, 1,000 decisions under 2 rules (300 randomized, 18 not open to randomizing:"
        " 6 only observed, 10 while paused or after the end, 2 for a reason that an older log does"
        " not say), 0 outcome parts"
    )
    faulty = Audit(fault_count=1, faults=["row 3 is wrong"])
    assert "1 fault (no key beside the store: uniforms not redrawn)" in _sentences(faulty)
