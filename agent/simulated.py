"""Index of SIM rows by context: what a model would output for a request that was replayed."""

from __future__ import annotations

import numpy as np

from equipoise.store.batches import Flags, Floats, Ints


class SimulationIndex:
    """phi of every (context, model) replayed so far, up to `capacity` contexts.

    Rows beyond the capacity still count in the moments; requests on such contexts are then
    predicted by regression, like those that were never replayed.
    """

    def __init__(self, models: int, width: int, capacity: int = 200_000) -> None:
        self._capacity = capacity
        self._row: dict[int, int] = {}
        self._phi = np.zeros((64, models, width))
        self._has = np.zeros((64, models), dtype=bool)

    def __len__(self) -> int:
        return len(self._row)

    def add(self, context: Ints, model: Ints, phi: Floats) -> None:
        """Keep n rows: context, model (n,), phi (n, p - 1)."""
        rows = np.array([self._place(key) for key in context.tolist()], dtype=np.int64)
        kept = rows >= 0
        self._phi[rows[kept], model[kept]] = phi[kept]
        self._has[rows[kept], model[kept]] = True

    def lookup(self, context: Ints, model: Ints) -> tuple[Floats, Flags]:
        """phi (n, p - 1) of each (context, model), and (n,) whether it is known."""
        get = self._row.get
        rows = np.array([get(key, -1) for key in context.tolist()], dtype=np.int64)
        return self._phi[rows, model], self._has[rows, model] & (rows >= 0)

    def contexts(self, width: int, limit: int) -> Floats | None:
        """(n, width) heads of phi of up to `limit` contexts, evenly over their arrival.

        None where there is none.
        """
        size = len(self._row)
        if not size:
            return None
        rows = np.unique(np.linspace(0, size - 1, min(size, limit)).astype(np.int64))
        return np.ascontiguousarray(self._phi[rows, self._has[rows].argmax(axis=1), :width])

    def arrays(self) -> dict[str, Floats | Ints | Flags]:
        """The index as arrays for a checkpoint, in order of first arrival."""
        size = len(self._row)
        keys = np.fromiter(self._row, dtype=np.int64, count=size)
        return {"keys": keys, "phi": self._phi[:size], "has": self._has[:size]}

    def load(self, keys: Ints, phi: Floats, has: Flags) -> None:
        self._row = {key: row for row, key in enumerate(keys.tolist())}
        self._phi, self._has = phi.copy(), has.copy()
        if not len(self._phi):
            self._phi = np.zeros((64, *phi.shape[1:]))
            self._has = np.zeros((64, *has.shape[1:]), dtype=bool)

    def _place(self, key: int) -> int:
        row = self._row.get(key)
        if row is not None:
            return row
        row = len(self._row)
        if row >= self._capacity:
            return -1
        if row == len(self._phi):
            self._phi = np.concatenate([self._phi, np.zeros_like(self._phi)])
            self._has = np.concatenate([self._has, np.zeros_like(self._has)])
        self._row[key] = row
        return row
