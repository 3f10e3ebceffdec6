"""The newest outcome parts by decision: most repeats are of what was just said."""

from __future__ import annotations

from collections import deque

from equipoise.store.batches import OutcomeBatch
from equipoise.store.slicing import slice_rows

ROWS = 20_000
"""Parts that are kept: up to 30 MB, where each came alone."""


class Recent:
    """Parts of the newest `limit` outcome rows. decisions: how many there were at the start.

    A decision that is younger than the oldest row kept has all its parts here, so `find` knows
    them without asking anybody; of older ones it knows nothing.
    """

    def __init__(self, decisions: int, limit: int = ROWS) -> None:
        self._limit = limit
        self._first = decisions
        self._rows = 0
        self._parts: dict[int, list[tuple[OutcomeBatch, int]]] = {}
        self._order: deque[tuple[int, list[int]]] = deque()

    def add(self, batch: OutcomeBatch, decisions: int) -> None:
        """Keep a batch that was appended when there were so many decisions."""
        numbers = batch.number.tolist()
        self._order.append((decisions, numbers))
        self._rows += len(numbers)
        for row, number in enumerate(numbers):
            self._parts.setdefault(number, []).append((batch, row))
        while self._rows > self._limit:
            _, old = self._order.popleft()
            self._rows -= len(old)
            self._first = self._order[0][0] if self._order else decisions
            for number in old:
                parts = self._parts[number]
                del parts[0]
                if not parts:
                    del self._parts[number]

    def find(self, number: int) -> list[OutcomeBatch] | None:
        """Every part of a decision in log order; None where only the log knows."""
        if number < self._first:
            return None
        parts = self._parts.get(number, ())
        return [slice_rows(batch, row, row + 1) for batch, row in parts]
