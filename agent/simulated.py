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
        self._since = np.zeros((64, models), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row)

    @property
    def full(self) -> bool:
        """Whether a further context would not be kept."""
        return len(self._row) >= self._capacity

    def add(self, context: Ints, model: Ints, phi: Floats, since: int = 0) -> None:
        """Keep n rows: context, model (n,), phi (n, p - 1). since: the next decision's number."""
        rows = np.array([self._place(key) for key in context.tolist()], dtype=np.int64)
        kept = rows >= 0
        self._phi[rows[kept], model[kept]] = phi[kept]
        self._has[rows[kept], model[kept]] = True
        self._since[rows[kept], model[kept]] = since

    def lookup(self, context: Ints, model: Ints) -> tuple[Floats, Flags]:
        """phi (n, p - 1) of each (context, model), and (n,) whether it is known."""
        rows = self.rows(context)
        return self._phi[rows, model], self.has(rows, model)

    def rows(self, context: Ints) -> Ints:
        """(n,) row of each context, in order of first arrival; -1 where it was never replayed."""
        get = self._row.get
        return np.array([get(key, -1) for key in context.tolist()], dtype=np.int64)

    def has(self, rows: Ints, model: Ints) -> Flags:
        """(n,) whether the model was replayed on the context of each row."""
        known: Flags = self._has[rows, model] & (rows >= 0)
        return known

    def phi(self, rows: Ints, model: Ints) -> Floats:
        """(n, p - 1) of rows and models that were replayed."""
        kept: Floats = self._phi[rows, model]
        return kept

    def lookup_all(self, context: Ints, number: Ints) -> tuple[Floats, Flags]:
        """phi (n, K, p - 1) of a context on every model, and (n, K) which were known when
        decision `number` (n,) was made."""
        get = self._row.get
        rows = np.array([get(key, -1) for key in context.tolist()], dtype=np.int64)
        known = self._has[rows] & (rows >= 0)[:, None] & (self._since[rows] <= number[:, None])
        return self._phi[rows], known

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
        return {
            "keys": keys,
            "phi": self._phi[:size],
            "has": self._has[:size],
            "since": self._since[:size],
        }

    def load(self, keys: Ints, phi: Floats, has: Flags, since: Ints) -> None:
        self._row = {key: row for row, key in enumerate(keys.tolist())}
        self._phi, self._has, self._since = phi.copy(), has.copy(), since.copy()
        if not len(self._phi):
            self._phi = np.zeros((64, *phi.shape[1:]))
            self._has = np.zeros((64, *has.shape[1:]), dtype=bool)
            self._since = np.zeros((64, *has.shape[1:]), dtype=np.int64)

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
            self._since = np.concatenate([self._since, np.zeros_like(self._since)])
        self._row[key] = row
        return row
