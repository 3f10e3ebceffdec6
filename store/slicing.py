"""Rows start … stop - 1 of a batch, as views of its arrays."""

from __future__ import annotations

from dataclasses import fields
from typing import TypeVar, get_args

from equipoise.store.batches import Batch

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
