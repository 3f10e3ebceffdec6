"""A file of spans that is damaged, or of an older form, keeps no daemon from its work."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import msgspec
import pytest

from equipoise.agent.ingest.arrivals import Decided
from tests.agent.ingest.arrived import LONG, SETTLE, call, finished, name, opened, rating, said


@pytest.mark.parametrize("damage", ["junk", "cut", "other", "renamed"])
def test_a_damaged_file_is_put_aside(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "log.db.spans"
    if damage == "other":
        with sqlite3.connect(path) as file:
            file.execute("CREATE TABLE calls (something TEXT)")
        file.close()
    elif damage == "renamed":
        opened(tmp_path).close()
        with sqlite3.connect(path) as file:
            file.execute("ALTER TABLE calls RENAME COLUMN row TO raw")
        file.close()
    else:
        with opened(tmp_path) as joining:
            joining.note([call(span, span) for span in range(1, 200)], 0.0)
        whole = path.read_bytes()
        path.write_bytes(b"junk" * 5000 if damage == "junk" else whole[: len(whole) // 2])
    before = path.read_bytes()
    for number in (1, 2):
        with opened(tmp_path) as joining:
            aside = tmp_path / f"log.db.spans.{number}.damaged"
            assert joining.put_aside == aside
            joining.note([call(1, reward=0.5)], 0.0)
            assert len(finished(joining, SETTLE)[0]) == 1
        assert damage in ("other", "renamed") or aside.read_bytes() == before
        with opened(tmp_path) as joining:  # the new one is sound
            assert joining.put_aside is None
            assert joining.note([call(1)], SETTLE) == {"repeats": 1}
        path.write_bytes(before)


def test_a_damaged_row_is_refused_alone(tmp_path: Path) -> None:
    with opened(tmp_path) as joining:
        joining.note([call(span, span, reward=0.5) for span in range(1, 5)], 0.0)
        joining.note([call(5, 5), call(6, 6), rating(0.1, span=name(5, 5))], 0.0)
        failed = {"decision": "d4", "failed": True, "answer": None}
        joining.note([call(7, 7, **failed)], 0.0)
        joining.judge(SETTLE)
        joining.note([call(8, 7, decision="d4")], SETTLE)
        with sqlite3.connect(tmp_path / "log.db.spans") as file:
            spans = (name(1, 1), name(2, 2), name(5, 5), name(7, 7))
            for span, row in zip(spans, (b"{}", None, b"\xff{", b"[1]"), strict=True):
                file.execute("UPDATE calls SET row = ? WHERE span = ?", (row, span))
        this = joining.judge(2 * SETTLE)
        joining.finish(this.ready)
        assert [about for _, about, _ in said(this.ready)] == [name(3, 3), name(4, 4), "d4"]
        assert "is damaged" in this.refusals[0]
        counts = this.left_out + finished(joining, 2 * SETTLE)[1]
        assert counts["refused"] == 4
        assert joining.waiting() == {"calls": 1, "evaluations": 0}


OLDER = """
CREATE TABLE calls (span TEXT PRIMARY KEY, parent TEXT, answer TEXT, decision TEXT,
  came REAL NOT NULL, ended REAL NOT NULL, state TEXT NOT NULL, row BLOB) STRICT;
CREATE TABLE decided (span TEXT PRIMARY KEY, decision TEXT NOT NULL, came REAL NOT NULL) STRICT;
CREATE TABLE ratings (id INTEGER PRIMARY KEY, span TEXT NOT NULL, answer TEXT NOT NULL,
  decision TEXT NOT NULL, reward REAL NOT NULL, at REAL NOT NULL, came REAL NOT NULL,
  state TEXT NOT NULL, about TEXT, UNIQUE (span, answer, decision, reward, at)) STRICT;
"""


def test_a_file_of_an_older_form_goes_on(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "log.db.spans") as file:
        file.executescript(OLDER)
        for each in (call(1, answer=LONG), call(2, answer=LONG), call(3, 3, parent=4)):
            row = msgspec.to_builtins(each)
            del row["tokens"], row["provider"]
            file.execute(
                "INSERT INTO calls VALUES (?, ?, ?, NULL, 0.0, 1.0, 'new', ?)",
                (each.span, each.parent, each.answer, msgspec.json.encode(row)),
            )
        file.execute(
            "INSERT INTO ratings VALUES (NULL, ?, '', '', 0.7, 1.0, 0.0, 'new', NULL)", (name(1),)
        )
    file.close()
    with opened(tmp_path) as joining:
        assert joining.put_aside is None
        joining.note([Decided(span=name(4, 3), decision="d4")], 1.0)
        ready, counts = finished(joining, SETTLE)
    assert said(ready) == [("observations", name(1), 0.7), ("outcomes", "d4", [1.0])]
    assert counts["again"] == 1
