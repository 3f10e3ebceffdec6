"""Every float64 survives SQLite, and what is stored is plain JSON and plain numbers."""

from __future__ import annotations

import json
import sqlite3
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from equipoise.store.batches import OutcomeBatch
from equipoise.store.format.sql_rows import OUTCOMES, to_rows, to_segments

FLOATS = st.floats(allow_nan=True, allow_infinity=True, allow_subnormal=True)


def outcome(outputs: Any, reward: Any) -> OutcomeBatch:
    n = len(reward)
    return OutcomeBatch(
        number=np.arange(n),
        served=np.zeros(n, dtype=np.int64),
        attempt=np.ones(n, dtype=np.int64),
        delivered=np.ones(n, dtype=np.bool_),
        outputs=np.asarray(outputs, dtype=np.float64),
        reward=np.asarray(reward, dtype=np.float64),
        at=np.zeros(n),
    )


def through_sqlite(batch: OutcomeBatch) -> Any:
    connection = sqlite3.connect(":memory:")
    types = {"outputs": "TEXT", "reward": "REAL", "at": "REAL", "negative_zeros": "TEXT"}
    columns = ", ".join(f"{name} {types.get(name, 'INTEGER')}" for name in OUTCOMES.names)
    connection.execute(f"CREATE TABLE outcomes ({columns}) STRICT")
    connection.executemany(OUTCOMES.insert, to_rows(batch, 0))
    rows = connection.execute(OUTCOMES.select("true")).fetchall()
    connection.close()
    return rows


@settings(deadline=None, max_examples=60)
@given(
    outputs=arrays(np.float64, array_shapes(min_dims=2, max_dims=2, max_side=6), elements=FLOATS),
    data=st.data(),
)
def test_floats_come_back_bit_for_bit(rows_of: Any, outputs: Any, data: Any) -> None:
    reward = data.draw(arrays(np.float64, len(outputs), elements=FLOATS))
    batch = outcome(outputs, reward)
    (segment,) = to_segments(OUTCOMES, through_sqlite(batch))
    assert rows_of(0, segment.batch) == rows_of(0, batch)


def test_many_random_bit_patterns(rows_of: Any) -> None:
    """Seeded; exact, so there is no false alarm."""
    bits = np.random.default_rng(1).integers(0, 2**64, (4000, 5), dtype=np.uint64)
    values = bits.view(np.float64)
    batch = outcome(values, values[:, 0])
    (segment,) = to_segments(OUTCOMES, through_sqlite(batch))
    assert rows_of(0, segment.batch) == rows_of(0, batch)


def test_what_is_stored_is_readable_json() -> None:
    outputs = [[1.0, np.nan], [np.inf, -np.inf], [-0.0, 0.1]]
    rows = through_sqlite(outcome(outputs, [np.nan, -0.0, 2.0]))
    column = OUTCOMES.names.index("outputs")
    texts = [row[column] for row in rows]
    assert texts == ["[1.0,null]", "[1e999,-1e999]", "[-0.0,0.1]"]
    assert json.loads(texts[1]) == [np.inf, -np.inf]
    assert [row[OUTCOMES.names.index("reward")] for row in rows] == [None, 0.0, 2.0]
    assert [row[-1] for row in rows] == [None, '["reward"]', None]


def test_a_gap_and_another_vector_length_end_a_segment() -> None:
    wide, narrow = outcome(np.ones((2, 3)), [1, 2]), outcome(np.ones((2, 1)), [3, 4])
    rows = [*to_rows(wide, 0), *to_rows(narrow, 2), *to_rows(narrow, 9)]
    segments = list(to_segments(OUTCOMES, rows))
    assert [(segment.seq, len(segment.batch)) for segment in segments] == [(0, 2), (2, 2), (9, 2)]


def test_columns_of_different_lengths_are_refused() -> None:
    batch = outcome(np.ones((2, 1)), [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="zip"):
        to_rows(batch, 0)
