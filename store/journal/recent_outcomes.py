"""The newest outcome parts by decision, and which names were surely never seen.

Nearly every live request is new, and saying so should not cost a look into SQLite. The filter says
"never" with certainty and "maybe" otherwise; with ten million names it says "maybe" to fewer than
one new name in a hundred, with a hundred million to nearly all, and then costs what it saved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from equipoise.store.batches import OutcomeBatch, slice_rows

_BITS = 27
"""2^27 bits are 16 MB, whatever the length of history."""
_MASK = (1 << _BITS) - 1
_WORD = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15


class Seen:
    """Names that were added. One thread adds; a name may be asked for from any.

    Python's own hash of a string is keyed anew in every process, so nobody can aim at the filter.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_BITS - 3))

    def add(self, names: Iterable[str]) -> None:
        bits = self._bits
        for name in names:
            key = hash(name) & _WORD
            second = (key * _SPREAD) & _WORD
            for place in (key & _MASK, (key >> 32) & _MASK, second >> (64 - _BITS)):
                bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, name: str) -> bool:
        """False: it was never added. True: it may have been."""
        bits = self._bits
        key = hash(name) & _WORD
        place = key & _MASK
        if not bits[place >> 3] & (1 << (place & 7)):
            return False
        place = (key >> 32) & _MASK
        if not bits[place >> 3] & (1 << (place & 7)):
            return False
        place = ((key * _SPREAD) & _WORD) >> (64 - _BITS)
        return bool(bits[place >> 3] & (1 << (place & 7)))


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
