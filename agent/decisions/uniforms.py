"""The uniform of decision i, a function of (key, experiment, i) and of nothing else.

A counter-based generator (Philox, Salmon et al. 2011): decision i reads position i of the stream
that belongs to the experiment's key, so any decision can be drawn again, alone or in a batch,
in any order. Uniforms are read a block ahead: setting up a generator for every decision costs
more than the decision.
"""

from __future__ import annotations

import secrets
from hashlib import blake2b

import numpy as np

from equipoise.store.batches import Floats, Ints

KEY_BYTES = 32
_PER_COUNTER = 4  # Philox 4x64 yields four words per counter value
_BLOCK = 4096


def new_key() -> bytes:
    """A fresh secret key from the operating system."""
    return secrets.token_bytes(KEY_BYTES)


def key_hash(key: bytes) -> str:
    """What the store keeps of the key: enough to notice another one, useless for drawing."""
    return blake2b(key, digest_size=16, person=b"equipoise-keyid").hexdigest()


class Uniforms:
    """Uniforms in [0, 1) on the 2^53 grid by decision number."""

    def __init__(self, key: bytes, experiment: str) -> None:
        if len(key) != KEY_BYTES:
            raise ValueError(f"key has {len(key)} bytes, expected {KEY_BYTES}")
        seed = blake2b(experiment.encode(), key=key, digest_size=16, person=b"equipoise-draws")
        self._key = np.frombuffer(seed.digest(), dtype="<u8")
        self._start = 0
        self._block = self._draw(0, _BLOCK)

    def of(self, first: int, count: int) -> Floats:
        """(count,) uniforms of decisions first, first + 1, …; a view that must not be written."""
        offset = first - self._start
        if offset < 0 or offset + count > len(self._block):
            self._start = first - first % _PER_COUNTER
            self._block = self._draw(self._start, max(_BLOCK, count + _PER_COUNTER))
            offset = first - self._start
        return self._block[offset : offset + count]

    def one(self, number: int) -> float:
        """The uniform of one decision."""
        offset = number - self._start
        if 0 <= offset < len(self._block):
            return self._block.item(offset)
        return self.of(number, 1).item()

    def at(self, positions: Ints) -> Floats:
        """(n,) uniforms of decisions at these positions (n,), in any order."""
        result = np.empty(len(positions))
        cuts = (np.flatnonzero(np.diff(positions) != 1) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(positions)], strict=True):
            if start < stop:
                result[start:stop] = self.of(int(positions[start]), stop - start)
        return result

    def _draw(self, start: int, count: int) -> Floats:
        counter = np.array([start // _PER_COUNTER, 0, 0, 0], dtype=np.uint64)
        words = np.random.Philox(key=self._key, counter=counter).random_raw(count)
        block = np.asarray((words >> np.uint64(11)) * 2.0**-53, dtype=np.float64)
        block.flags.writeable = False
        return block
