"""Some rows of a batch: a range as views of its arrays, or those of a mask."""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar, get_args

import numpy as np

from equipoise.store.batches import Batch, Flags, Ints

B = TypeVar("B", bound=Batch)

_WHOLE_BATCH = frozenset({"rule_id", "era"})
_COLUMNS: dict[type, tuple[str, ...]] = {
    kind: tuple(field.name for field in fields(kind)) for kind in get_args(Batch)
}


def slice_rows(batch: B, start: int, stop: int) -> B:
    """Rows start <= i < stop of a batch, without copying; the batch itself where that is all."""
    if start == 0 and stop == len(batch):
        return batch
    columns = {}
    for name in _COLUMNS[type(batch)]:
        column = getattr(batch, name)
        shared = column is None or name in _WHOLE_BATCH
        columns[name] = column if shared else column[start:stop]
    return type(batch)(**columns)


def select(batch: B, rows: Flags) -> B:
    """The rows of a batch where `rows` (n,) is true, copied."""
    return take(batch, np.flatnonzero(rows))


def take(batch: B, rows: Ints) -> B:
    """Rows of a batch by position (n,), in that order, copied."""
    columns = {}
    for name in _COLUMNS[type(batch)]:
        column = getattr(batch, name)
        if isinstance(column, np.ndarray):
            column = column[rows]
        elif column is not None and name not in _WHOLE_BATCH:
            column = [column[row] for row in rows.tolist()]
        columns[name] = column
    return type(batch)(**columns)
