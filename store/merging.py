"""Many small batches as few large ones, for writing them together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from equipoise.store.batches import Batch, Ints, Segment
from equipoise.store.tables import TABLE_OF, Kind

B = TypeVar("B", bound=Batch)

_WIDE = (Kind.VECTOR, Kind.OPTIONAL_VECTOR, Kind.MASK)
_MAYBE = (Kind.TEXT, Kind.OPTIONAL_INTEGER)
_FLAT = (0, 0)
# What rows must have in common to stand in one batch: shared values, widths, which are absent.
_SHARED = {
    batch: [name for name, kind in table.columns.items() if kind is Kind.SHARED]
    for batch, table in TABLE_OF.items()
}
_SHAPED = {
    batch: [name for name, kind in table.columns.items() if kind in (*_WIDE, *_MAYBE)]
    for batch, table in TABLE_OF.items()
}


def merge(segments: Sequence[Segment]) -> list[tuple[Ints, Batch]]:
    """Batches that together hold every row once, each with the (n,) seqs of its rows.

    Rows of one kind, one rule and era, and equal widths end up together, in seq order.
    """
    groups: dict[tuple[Any, ...], list[Segment]] = {}
    for segment in segments:
        groups.setdefault(_shape(segment.batch), []).append(segment)
    merged = []
    for group in groups.values():
        seqs = np.concatenate(
            [np.arange(part.seq, part.seq + len(part.batch), dtype=np.int64) for part in group]
        )
        merged.append((seqs, joined([part.batch for part in group])))
    return merged


def _shape(batch: Batch) -> tuple[Any, ...]:
    kind = type(batch)
    shape: list[Any] = [kind, *(getattr(batch, name) for name in _SHARED[kind])]
    for name in _SHAPED[kind]:
        value = getattr(batch, name)
        # Texts and numbers have no width, only their presence matters.
        width = (*getattr(value, "shape", _FLAT), 0)[1]
        shape.append(None if value is None else width)
    return tuple(shape)


def joined(batches: Sequence[B]) -> B:
    """One batch of the rows of several with equal shapes, rules and eras, in their order."""
    if len(batches) == 1:
        return batches[0]
    columns: dict[str, Any] = {}
    kind_of: Any = type(batches[0])
    for name, kind in TABLE_OF[kind_of].columns.items():
        first = getattr(batches[0], name)
        if kind is Kind.SHARED or first is None:
            columns[name] = first
        elif isinstance(first, np.ndarray):
            columns[name] = np.concatenate([getattr(batch, name) for batch in batches])
        else:
            columns[name] = [value for batch in batches for value in getattr(batch, name)]
    whole: B = kind_of(**columns)
    return whole
