"""Which SQL table holds which batch, and how each column of it is kept.

Unknown numbers (NaN) are NULL, vectors are JSON arrays, so that any SQLite tool can read the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto

from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    ObservationBatch,
    OutcomeBatch,
    SimulationBatch,
)


class Kind(Enum):
    """How a column travels between an array and SQL."""

    INTEGER = auto()
    """(n,) int64 as INTEGER"""
    OPTIONAL_INTEGER = auto()
    """as INTEGER; a batch without one as NULL"""
    REAL = auto()
    """(n,) float64 as REAL, NaN as NULL"""
    FLAG = auto()
    """(n,) bool as INTEGER 0 or 1"""
    VECTOR = auto()
    """(n, k) float64 as TEXT: a JSON array a row, NaN as null"""
    OPTIONAL_VECTOR = auto()
    """as VECTOR; a batch without one as NULL"""
    MASK = auto()
    """(n, k) bool as TEXT: a JSON array a row; a batch without one as NULL"""
    TEXT = auto()
    """n texts as TEXT, "" as NULL"""
    SHARED = auto()
    """one value for the whole batch, repeated on every row"""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the log. Its SQL columns are seq, those of `columns`, and negative_zeros.

    SQLite does not keep the sign of zero in a REAL column; negative_zeros names the columns of a
    row that hold -0.0 (a JSON array of names), and is NULL nearly always.
    """

    name: str
    batch: type[Batch]
    columns: dict[str, Kind]

    @property
    def names(self) -> tuple[str, ...]:
        """Every SQL column in the order rows travel in."""
        return ("seq", *self.columns, "negative_zeros")

    @property
    def insert(self) -> str:
        """The statement that writes one row."""
        marks = ", ".join("?" * len(self.names))
        return f"INSERT INTO {self.name} ({', '.join(self.names)}) VALUES ({marks})"

    def select(self, condition: str) -> str:
        """The statement that reads the rows of a condition in seq order."""
        return f"SELECT {', '.join(self.names)} FROM {self.name} WHERE {condition} ORDER BY seq"


DECISIONS = Table(
    "decisions",
    DecisionBatch,
    {
        "number": Kind.INTEGER,
        "request_id": Kind.TEXT,
        "unit": Kind.INTEGER,
        "unit_id": Kind.TEXT,
        "context": Kind.INTEGER,
        "context_id": Kind.TEXT,
        "at": Kind.REAL,
        "x": Kind.VECTOR,
        "routed": Kind.INTEGER,
        "eligible": Kind.MASK,
        "rate": Kind.REAL,
        "probabilities": Kind.VECTOR,
        "uniform": Kind.REAL,
        "model": Kind.INTEGER,
        "randomized": Kind.FLAG,
        "capped": Kind.FLAG,
        "rule_id": Kind.SHARED,
        "era": Kind.SHARED,
        "leader": Kind.OPTIONAL_INTEGER,
        "closed_by": Kind.OPTIONAL_INTEGER,
    },
)
OUTCOMES = Table(
    "outcomes",
    OutcomeBatch,
    {
        "number": Kind.INTEGER,
        "served": Kind.INTEGER,
        "attempt": Kind.INTEGER,
        "delivered": Kind.FLAG,
        "outputs": Kind.VECTOR,
        "reward": Kind.REAL,
        "at": Kind.REAL,
        "metrics": Kind.OPTIONAL_VECTOR,
    },
)
OBSERVATIONS = Table(
    "observations",
    ObservationBatch,
    {
        "request_id": Kind.TEXT,
        "unit": Kind.INTEGER,
        "unit_id": Kind.TEXT,
        "at": Kind.REAL,
        "x": Kind.VECTOR,
        "routed": Kind.INTEGER,
        "outputs": Kind.VECTOR,
        "reward": Kind.REAL,
    },
)
SIMULATIONS = Table(
    "simulations",
    SimulationBatch,
    {
        "context": Kind.INTEGER,
        "context_id": Kind.TEXT,
        "model": Kind.INTEGER,
        "x": Kind.VECTOR,
        "outputs": Kind.VECTOR,
        "cost": Kind.REAL,
        "at": Kind.REAL,
    },
)
EXPIRIES = Table("expiries", ExpiryBatch, {"number": Kind.INTEGER, "at": Kind.REAL})

LOG_TABLES = (DECISIONS, OUTCOMES, OBSERVATIONS, SIMULATIONS, EXPIRIES)
TABLE_OF = {table.batch: table for table in LOG_TABLES}
