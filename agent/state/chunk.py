"""Columns of rows that a chunk has gathered and not summed yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.store.batches import DecisionBatch, Flags, Floats, Ints


def joined(parts: Sequence[tuple[NDArray[Any], ...]]) -> list[tuple[NDArray[Any], ...]]:
    """The parts' columns end to end: a list of one tuple, or of none where there are no rows."""
    filled = [part for part in parts if len(part[0])]
    if not filled:
        return []
    if len(filled) == 1:
        return [filled[0]]
    return [tuple(np.concatenate(column) for column in zip(*filled, strict=True))]


def occurrence(number: Ints) -> Ints:
    """(n,) how many earlier rows hold the same number."""
    order = np.argsort(number, kind="stable")
    ordered = number[order]
    start = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    length = np.diff(start, append=len(ordered))
    result = np.empty(len(number), dtype=np.int64)
    result[order] = np.arange(len(ordered)) - np.repeat(start, length)
    return result


def widened(batch: DecisionBatch, active: Flags, models: int) -> tuple[DecisionBatch, Flags]:
    """Decisions from before models were added, as decisions among all K that never gave them any.

    active: models that the batch's era compared. Returns both with K columns.
    """
    more = models - len(active)
    count = len(batch)
    shares = np.hstack([batch.probabilities, np.zeros((count, more))])
    eligible = batch.eligible
    if eligible is not None:
        eligible = np.hstack([eligible, np.zeros((count, more), dtype=bool)])
    wide = replace(batch, probabilities=shares, eligible=eligible)
    return wide, np.append(active, np.zeros(more, dtype=bool))


def open_arrays(
    rewarded: Sequence[Ints],
    completed: Sequence[Ints],
    observed: Sequence[tuple[Floats, Ints, Ints]],
    replayed: Sequence[tuple[Ints, Ints, Floats, Floats]],
    width: int,
) -> dict[str, NDArray[Any]]:
    """The gathered rows by name, for a checkpoint. width: p."""
    none = np.zeros(0, dtype=np.int64)
    ((rewards,),) = joined([(part,) for part in rewarded]) or [(none,)]
    ((numbers,),) = joined([(part,) for part in completed]) or [(none,)]
    ((rows, model, unit),) = joined(observed) or [(np.zeros((0, width)), none, none)]
    ((context, replayed_model, phi, cost),) = joined(replayed) or [
        (none, none, np.zeros((0, width - 1)), np.zeros(0))
    ]
    return {
        "rewarded": rewards,
        "completed": numbers,
        "observed_rows": rows,
        "observed_model": model,
        "observed_unit": unit,
        "replayed_context": context,
        "replayed_model": replayed_model,
        "replayed_phi": phi,
        "replayed_cost": cost,
    }
