"""Sorting the rows of one update into cells (group x model), once, for every statistic.

Sums over the rows of a cell are taken by `np.add.reduceat` along the sorted rows: no Python loop
over cells, no scatter-add, and an order of additions that depends on the rows alone.
"""

from __future__ import annotations

import numpy as np

from equipoise.store.batches import Floats, Ints


class Cells:
    """The rows of one update, sorted by cell.

    cell: (n,) int64 cell of each row. `order` (n,) sorts rows by cell, stably; `present` (c,) are
    the cells that occur, ascending; `starts` (c,) where each begins in sorted order.
    """

    __slots__ = ("_slots", "order", "present", "sizes", "sorted_cell", "starts")

    def __init__(self, cell: Ints) -> None:
        self.order = np.argsort(cell, kind="stable")
        self.sorted_cell = cell[self.order]
        first = np.empty(len(cell), dtype=bool)
        first[:1] = True
        np.not_equal(self.sorted_cell[1:], self.sorted_cell[:-1], out=first[1:])
        self.starts = np.flatnonzero(first)
        self.present = self.sorted_cell[self.starts]
        ends = np.empty_like(self.starts)
        ends[:-1] = self.starts[1:]
        ends[-1:] = len(cell)
        self.sizes = ends - self.starts
        self._slots: tuple[Ints, Ints] | None = None

    def sums(self, rows: Floats) -> Floats:
        """Sum over the rows of each present cell: (n, ...) sorted rows -> (c, ...)."""
        return np.asarray(np.add.reduceat(rows, self.starts, axis=0))

    def slots(self) -> tuple[Ints, Ints]:
        """Where each sorted row goes in a padded (c, longest, ...) array: cell rank, position."""
        if self._slots is None:
            rank = np.arange(len(self.sizes)).repeat(self.sizes)
            self._slots = rank, np.arange(len(self.sorted_cell)) - self.starts[rank]
        return self._slots
