"""What recent traffic looks like: the contexts over which a gate's rates average to the target."""

from __future__ import annotations

import numpy as np

from equipoise.agent.fold import Fold
from equipoise.store.batches import DecisionBatch, Floats
from equipoise.store.contract import Store

RECENT = 512
"""decisions whose contexts stand for the traffic to come"""
FEW = 64
"""decisions up to which replayed contexts stand for it instead"""


def recent_contexts(fold: Fold, store: Store) -> Floats | None:
    """(n, d) contexts of the last 512 decisions, of replays before there are 64; None for neither.

    A function of the log alone: the same after a restart, whatever is still held in memory.
    """
    table, width = fold.pending, fold.dimensions.context
    if table.next < FEW:
        return fold.simulated.contexts(width, RECENT)
    wanted = min(RECENT, table.next)
    rows = np.flatnonzero(~table.is_void(slice(0, table.size)))
    if len(rows) >= wanted:
        return table.x[rows[-wanted:]]
    return _from_log(store, fold.next_seq, wanted)


def _from_log(store: Store, end: int, wanted: int) -> Floats | None:
    """(wanted, d) contexts of the last decisions, read from ever further back."""
    window = 4 * wanted
    while True:
        since = max(0, end - window)
        parts = [
            segment.batch.x
            for segment in store.read(since, end)
            if isinstance(segment.batch, DecisionBatch)
        ]
        if since == 0 or sum(map(len, parts)) >= wanted:
            # A log that was cut short may hold fewer, or none at all.
            return np.concatenate(parts)[-wanted:] if parts else None
        window *= 4
