"""Some rows of a batch: a range as views of its arrays, or those of a mask."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator
from dataclasses import fields
from typing import TypeVar, get_args

import numpy as np

from equipoise.store.batches import (
    Batch,
    Flags,
    Ints,
    ObservationBatch,
    Segment,
    SimulationBatch,
)

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


def named_observations(
    segments: Iterable[Segment], names: Container[str]
) -> Iterator[tuple[str, Segment]]:
    """Each observation of one of these request ids, alone, in the order of the segments."""
    for segment in segments:
        batch = segment.batch
        if isinstance(batch, ObservationBatch):
            for row, name in enumerate(batch.request_id or ()):
                if name and name in names:
                    yield name, Segment(segment.seq + row, slice_rows(batch, row, row + 1))


def replays_of(
    segments: Iterable[Segment], pairs: Container[tuple[int, int]]
) -> Iterator[tuple[tuple[int, int], Segment]]:
    """Each simulation of one of these (context, model), alone, in the order of the segments."""
    for segment in segments:
        batch = segment.batch
        if isinstance(batch, SimulationBatch):
            keys = zip(batch.context.tolist(), batch.model.tolist(), strict=True)
            for row, pair in enumerate(keys):
                if pair in pairs:
                    yield pair, Segment(segment.seq + row, slice_rows(batch, row, row + 1))


def pairs_of(context: Ints, model: Ints) -> list[tuple[int, int]]:
    """The (context, model) (n,) as plain numbers, each once, in order."""
    return list(dict.fromkeys(zip(context.tolist(), model.tolist(), strict=True)))
