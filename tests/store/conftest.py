"""What the store's tests share: an author of random logs, and exact comparison of logs."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import fields
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    ObservationBatch,
    OutcomeBatch,
    SimulationBatch,
)
from equipoise.store.contract import Store
from equipoise.store.format.mark import mark_path
from equipoise.store.journal import JournaledStore
from equipoise.store.memory import MemoryStore
from equipoise.store.postgres import PostgresStore
from equipoise.store.sqlite import SqliteStore

ExactRow: TypeAlias = tuple[int, str, tuple[tuple[str, object], ...]]

AWKWARD = np.array([np.nan, -0.0, 0.0, 5e-324, 1.7976931348623157e308, 0.1 + 0.2, -1e-7, 2.0**53])


class Author:
    """Writes batches of random rows, with numbers that are hard to keep among them."""

    def __init__(self, seed: int = 0, models: int = 3, features: int = 4, outputs: int = 2) -> None:
        self.rng = np.random.default_rng(seed)
        self.models, self.features, self.outputs = models, features, outputs
        self.written = 0

    def floats(self, *shape: int) -> Any:
        values = self.rng.standard_normal(shape)
        awkward = self.rng.random(shape) < 0.2
        return np.where(awkward, self.rng.choice(AWKWARD, shape), values)

    def keys(self, n: int) -> Any:
        return self.rng.integers(-(2**63), 2**63 - 1, n, endpoint=True)

    def names(self, kind: str, n: int) -> list[str] | None:
        """None, all named, or some rows without a name; no name twice."""
        style = self.rng.integers(3)
        if style == 0:
            return None
        names = [f"{kind}-{self.rng.integers(2**60):x}" for _ in range(n)]
        return [name if style == 1 or self.rng.random() < 0.5 else "" for name in names]

    def decisions(
        self, n: int, rule: str = "rule-1", era: int = 0, mask: bool = False, **given: Any
    ) -> DecisionBatch:
        first, self.written = self.written, self.written + n
        columns: dict[str, Any] = {
            "number": np.arange(first, first + n),
            "unit": self.keys(n),
            "context": self.keys(n),
            "at": self.floats(n),
            "x": self.floats(n, self.features),
            "routed": self.rng.integers(0, self.models, n),
            "rate": self.rng.random(n),
            "probabilities": self.rng.dirichlet(np.ones(self.models), n),
            "uniform": self.rng.random(n),
            "model": self.rng.integers(0, self.models, n),
            "randomized": self.rng.random(n) < 0.3,
            "capped": self.rng.random(n) < 0.1,
            "eligible": self.rng.random((n, self.models)) < 0.7 if mask else None,
            "request_id": self.names("request", n),
            "unit_id": self.names("unit", n),
            "context_id": self.names("context", n),
            "leader": self.rng.integers(0, first + n, n) if self.rng.random() < 0.5 else None,
        }
        return DecisionBatch(rule_id=rule, era=era, **{**columns, **given})

    def outcomes(self, n: int, **given: Any) -> OutcomeBatch:
        columns = {
            "number": self.rng.integers(0, max(self.written, 1), n),
            "served": self.rng.integers(0, self.models, n),
            "attempt": self.rng.integers(1, 4, n),
            "delivered": self.rng.random(n) < 0.9,
            "outputs": self.floats(n, self.outputs),
            "reward": self.floats(n),
            "at": self.floats(n),
        }
        if n:
            columns["outputs"][self.rng.integers(n)] = np.nan
        if self.rng.random() < 0.5:
            columns["metrics"] = self.floats(n, 2)
        if n % 2:
            listed = '[{"model":"fast","status":"delivered"}]'
            columns["attempts"] = [listed if row % 3 else "" for row in range(n)]
        return OutcomeBatch(**{**columns, **given})

    def observations(self, n: int) -> ObservationBatch:
        return ObservationBatch(
            unit=self.keys(n),
            at=self.floats(n),
            x=self.floats(n, self.features),
            routed=self.rng.integers(0, self.models, n),
            outputs=self.floats(n, self.outputs),
            reward=self.floats(n),
            request_id=self.names("request", n),
            unit_id=self.names("unit", n),
        )

    def simulations(self, n: int) -> SimulationBatch:
        return SimulationBatch(
            context=self.keys(n),
            model=self.rng.integers(0, self.models, n),
            x=self.floats(n, self.features),
            outputs=self.floats(n, self.outputs),
            cost=self.floats(n),
            at=self.floats(n),
            context_id=self.names("context", n),
        )

    def expiries(self, n: int) -> ExpiryBatch:
        return ExpiryBatch(number=self.rng.integers(0, max(self.written, 1), n), at=self.floats(n))

    def anything(self, n: int) -> Batch:
        """A batch of a random kind; decisions under a random rule, with or without a mask."""
        kind = self.rng.integers(6)
        if kind < 2:
            rule = f"rule-{self.rng.integers(3)}"
            return self.decisions(n, rule, int(self.rng.integers(2)), mask=bool(kind))
        return (self.outcomes, self.observations, self.simulations, self.expiries)[kind - 2](n)


def exact(column: Any, row: int) -> object:
    """One value in a form that is equal where the bits are; every NaN is the same."""
    value = column[row]
    if isinstance(value, str):
        return value
    array = np.asarray(value)
    if array.dtype == np.float64:
        array = np.where(np.isnan(array), np.nan, array)
    return (array.dtype.str, array.shape, array.tobytes())


def exact_rows(seq: int, batch: Batch) -> list[ExactRow]:
    """Each row of a batch with its seq, kind and every value; a missing name is ""."""
    rows = []
    for row in range(len(batch)):
        values: list[tuple[str, object]] = []
        for field in fields(batch):
            column = getattr(batch, field.name)
            if field.name in ("rule_id", "era"):
                values.append((field.name, column))
            elif column is None:
                optional = field.name in ("eligible", "metrics", "leader", "draw")
                values.append((field.name, None if optional else ""))
            else:
                values.append((field.name, exact(column, row)))
        rows.append((seq + row, type(batch).__name__, tuple(values)))
    return rows


def exact_log(store: Store, since: int = 0, until: int | None = None) -> list[ExactRow]:
    """Every row that `read` yields, in its order."""
    return [
        row
        for segment in store.read(since, until)
        for row in exact_rows(segment.seq, segment.batch)
    ]


VERSION_6 = """
DROP TABLE gaps;
DROP TABLE facts;
DROP TABLE chain;
DROP INDEX idx_simulations_context;
DROP VIEW exp_summary;
DROP VIEW decision_log;
DROP VIEW attempts;
DROP INDEX idx_decisions_draw;
ALTER TABLE decisions DROP COLUMN draw;
ALTER TABLE decisions DROP COLUMN closed_by;
ALTER TABLE outcomes DROP COLUMN attempts;
CREATE VIEW decision_log AS SELECT number FROM decisions;
CREATE VIEW exp_summary AS SELECT era FROM eras;
PRAGMA user_version = 6;
"""


def make_version_6(path: Path) -> None:
    """Give a store that is closed the tables and indexes that schema version 6 had; its views are
    stand-ins. Older programs left no mark."""
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(VERSION_6)
        query = "SELECT name, sql FROM sqlite_master WHERE type != 'view' AND sql IS NOT NULL"
        schema = sorted(connection.execute(query))
    # Of a store that a program of that version made.
    assert sha256(repr(schema).encode()).hexdigest()[:16] == "85e36f8ebe2dd12d"
    mark_path(path).unlink(missing_ok=True)


@pytest.fixture(scope="session")
def as_version_6() -> Callable[[Path], None]:
    return make_version_6


@pytest.fixture(scope="session")
def new_author() -> type[Author]:
    return Author


@pytest.fixture
def author() -> Author:
    return Author()


@pytest.fixture(scope="session")
def rows_of() -> Callable[..., list[ExactRow]]:
    """(seq, batch) -> exact rows."""
    return exact_rows


@pytest.fixture(scope="session")
def log_of() -> Callable[..., list[ExactRow]]:
    """(store, since, until) -> exact rows."""
    return exact_log


@pytest.fixture(params=["memory", "sqlite", "journaled", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """An empty store of each kind."""
    kept: Store
    if request.param == "memory":
        kept = MemoryStore()
    elif request.param == "sqlite":
        kept = SqliteStore(tmp_path / "s.db")
    elif request.param == "postgres":
        kept = PostgresStore(request.getfixturevalue("postgres_url"))
    else:
        kept = JournaledStore(tmp_path / "s.db")
    with kept:
        yield kept
