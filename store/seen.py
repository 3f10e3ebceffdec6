"""Which names were surely never seen: a Bloom filter (Bloom 1970) of constant size.

Nearly every live request is new, and saying so should not cost a look into SQLite. The filter says
"never" with certainty and "maybe" otherwise; with ten million names it says "maybe" to fewer than
one new name in a hundred, with a hundred million to nearly all, and then costs what it saved.
"""

from __future__ import annotations

from collections.abc import Iterable

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
