"""The file in which spans and their evaluations wait: opened, or put aside where it is damaged.

What waits is lost with a damaged file; a daemon's decisions are not, so it starts all the same.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

_SCHEMA = """
CREATE TABLE IF NOT EXISTS calls (
  span TEXT PRIMARY KEY, parent TEXT, answer TEXT, decision TEXT, came REAL NOT NULL,
  ended REAL NOT NULL, state TEXT NOT NULL, row BLOB, alike TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS calls_by_state ON calls (state, came);
CREATE INDEX IF NOT EXISTS calls_by_time ON calls (came);
CREATE INDEX IF NOT EXISTS calls_by_answer ON calls (answer) WHERE answer IS NOT NULL;
CREATE INDEX IF NOT EXISTS calls_by_decision ON calls (decision) WHERE decision IS NOT NULL;
CREATE TABLE IF NOT EXISTS decided (span TEXT PRIMARY KEY, decision TEXT NOT NULL,
  came REAL NOT NULL) STRICT;
CREATE TABLE IF NOT EXISTS parents (span TEXT PRIMARY KEY, parent TEXT NOT NULL,
  came REAL NOT NULL) STRICT;
CREATE INDEX IF NOT EXISTS parents_by_time ON parents (came);
CREATE INDEX IF NOT EXISTS calls_by_parent ON calls (parent) WHERE parent IS NOT NULL;
CREATE TABLE IF NOT EXISTS ratings (
  id INTEGER PRIMARY KEY, span TEXT NOT NULL, answer TEXT NOT NULL, decision TEXT NOT NULL,
  reward REAL NOT NULL, at REAL NOT NULL, came REAL NOT NULL, state TEXT NOT NULL,
  about TEXT, -- the call that it waits for
  UNIQUE (span, answer, decision, reward, at)
) STRICT;
CREATE INDEX IF NOT EXISTS ratings_by_state ON ratings (state, came);
CREATE INDEX IF NOT EXISTS ratings_by_time ON ratings (came);
CREATE INDEX IF NOT EXISTS ratings_by_call ON ratings (about) WHERE about IS NOT NULL;
CREATE INDEX IF NOT EXISTS ratings_by_answer ON ratings (answer) WHERE answer != '';
"""
_COLUMNS = {
    "calls": "span parent answer decision came ended state row alike",
    "decided": "span decision came",
    "parents": "span parent came",
    "ratings": "id span answer decision reward at came state about",
}


def open_span_file(path: Path, *, safe: bool) -> tuple[sqlite3.Connection, Path | None]:
    """The file, and where a damaged one was put. safe: whether it survives a power cut.

    Raises sqlite3.Error and OSError where it cannot be opened for another reason.
    """
    aside = None
    if path.exists() and _damaged(path):
        aside = _put_aside(path)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    file = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    file.execute("PRAGMA journal_mode = WAL")
    file.execute(f"PRAGMA synchronous = {'FULL' if safe else 'NORMAL'}")
    file.executescript(_SCHEMA)
    return file, aside


def _damaged(path: Path) -> bool:
    """Whether it is no file of this kind; one of an older form is brought to the newest."""
    with closing(sqlite3.connect(path, isolation_level=None)) as file:
        try:
            if file.execute("PRAGMA quick_check(1)").fetchall() != [("ok",)]:
                return True
            # Before answers were compared.
            if _columns(file, "calls") == _COLUMNS["calls"].removesuffix(" alike"):
                file.execute("ALTER TABLE calls ADD COLUMN alike TEXT")
            file.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            # Of tables with other columns: 1. A full disk or a lock is no damage.
            known = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)
            if getattr(error, "sqlite_errorcode", 0) & 0xFF in known:
                return True
            raise
        return any(_columns(file, table) != names for table, names in _COLUMNS.items())


def _columns(file: sqlite3.Connection, table: str) -> str:
    return " ".join(row[1] for row in file.execute(f"PRAGMA table_info({table})").fetchall())


def _put_aside(path: Path) -> Path:
    number = 1
    while (aside := path.with_name(f"{path.name}.{number}.damaged")).exists():
        number += 1
    path.rename(aside)
    for end in ("-wal", "-shm"):
        beside = path.with_name(path.name + end)
        if beside.exists():
            beside.rename(aside.with_name(aside.name + end))
    return aside


@contextmanager
def transaction(file: sqlite3.Connection) -> Iterator[None]:
    """All that is done within, or nothing."""
    file.execute("BEGIN IMMEDIATE")
    try:
        yield
    except BaseException:
        file.execute("ROLLBACK")
        raise
    file.execute("COMMIT")
