"""Back to an older schema, for those who must go back to an older equipoise.

Only steps that lose no row of the log can be undone; what they lose is said. An upgrade that
cannot be undone leaves one way back: a backup made before it.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeVar

from equipoise.store.errors import SchemaVersionError
from equipoise.store.files import WriterLock
from equipoise.store.format.mark import mark_path
from equipoise.store.sqlite.chain import create_chain
from equipoise.store.sqlite.connection import as_store_error, check_header, check_path
from equipoise.store.sqlite.log_start import create_gaps, create_roots
from equipoise.store.sqlite.migrations import (
    MIGRATIONS,
    VIEWS,
    add_closed_by,
    check_identity,
    create_controls,
    index_observations,
    index_simulations,
    merge_attempts,
)
from equipoise.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from sqlite_utils import Database

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reversal:
    """What undoes a migration, and what is lost by it ("" for nothing).

    unless: a query; where it finds a row the migration cannot be undone, for the reason `why`.
    """

    statements: tuple[str, ...]
    loses: str = ""
    unless: str = ""
    why: str = ""


REVERSALS: Mapping[Callable[[Database], None], Reversal] = MappingProxyType(
    {
        add_closed_by: Reversal(
            ("ALTER TABLE decisions DROP COLUMN closed_by",), "what closed requests to randomizing"
        ),
        create_controls: Reversal(
            ("DROP TABLE controls",), "budgets and pauses that operators set"
        ),
        index_observations: Reversal(("DROP INDEX idx_observations_request_id",)),
        create_roots: Reversal(
            ("DROP TABLE roots",),
            unless="SELECT 1 FROM roots WHERE sealed_at IS NOT NULL",
            why="old rows were removed, and an older equipoise reads from row 0",
        ),
        create_gaps: Reversal(
            ("DROP TABLE gaps", "DROP TABLE facts"),
            unless="SELECT 1 FROM gaps",
            why="decision numbers were lost, and an older equipoise would give them again",
        ),
        merge_attempts: Reversal(
            (
                *(f"DROP VIEW {name}" for name in ("exp_summary", "decision_log", "attempts")),
                *(
                    f'CREATE VIEW "{name}" AS {VIEWS[name]}'
                    for name in ("decision_log", "exp_summary")
                ),
            )
        ),
        index_simulations: Reversal(("DROP INDEX idx_simulations_context",)),
        create_chain: Reversal(("DROP TABLE chain",), "the hash chain over what is there so far"),
    }
)
"""By the migration that each undoes."""


def roll_back(path: str | os.PathLike[str], version: int) -> list[str]:
    """Undo every migration above `version`, in one transaction; what was lost.

    Rows that a killed daemon left in its tail are taken in first, since an older equipoise would
    not find them. Raises SchemaVersionError where a step cannot be undone or there is nothing to
    undo, StoreInUseError while a daemon runs; the store is then as it was.
    """
    store = Path(path).resolve()
    check_path(store, read_only=False)
    check_header(store, read_only=False)
    with contextlib.closing(sqlite3.connect(f"{store.as_uri()}?mode=ro", uri=True)) as opened:
        present = _asked(store, lambda: check_identity(opened, store))
    steps: list[Reversal] = []
    taken_back = []
    for number, migration in MIGRATIONS:
        if version < number <= present:
            if migration not in REVERSALS:
                raise SchemaVersionError(
                    f"store {store}: schema version {number} cannot be undone: restore a backup"
                )
            steps.append(REVERSALS[migration])
            taken_back.append(migration)
    if not steps or version < 1:
        raise SchemaVersionError(
            f"store {store} has schema version {present}, which cannot become {version}"
        )
    SqliteStore(store).close()
    lock = WriterLock(store)
    try:
        _undo(store, steps, version)
        if create_gaps in taken_back:
            mark_path(store).unlink(missing_ok=True)  # an older equipoise does not keep it
    finally:
        lock.release()
    return [step.loses for step in steps if step.loses]


def _undo(store: Path, steps: list[Reversal], version: int) -> None:
    def work() -> None:
        location = f"{store.as_uri()}?mode=rw"
        with contextlib.closing(
            sqlite3.connect(location, uri=True, isolation_level=None)
        ) as opened:
            opened.execute("BEGIN IMMEDIATE")
            for step in reversed(steps):
                if step.unless and opened.execute(step.unless).fetchone():
                    raise SchemaVersionError(f"store {store} cannot become older: {step.why}")
                for statement in step.statements:
                    opened.execute(statement)
            opened.execute(f"PRAGMA user_version = {version:d}")
            opened.execute("COMMIT")

    _asked(store, work)


def _asked(store: Path, question: Callable[[], T]) -> T:
    try:
        return question()
    except sqlite3.Error as error:
        raise as_store_error(f"store {store}", error) from error
