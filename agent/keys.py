"""Keyed hashes: text ids to 64-bit keys, keys to groups. One domain per use.

Groups of units, groups of contexts and draws must not be functions of one another, so each has
its own domain constant. Text goes through BLAKE2b; 64-bit keys through the finaliser of
SplitMix64 (Steele, Lea & Flood 2014), which is vectorised.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from equipoise.store.batches import Ints

_UNIT_GROUPS = np.uint64(0x9E3779B97F4A7C15)
_CONTEXT_GROUPS = np.uint64(0xD1B54A32D192ED03)
_NO_CONTEXT = -1


def text_key(domain: str, text: str) -> int:
    """A non-negative 63-bit key of a text id within a domain."""
    digest = blake2b(text.encode(), digest_size=8, person=domain.encode()[:16]).digest()
    return int.from_bytes(digest, "little") >> 1


def text_keys(domain: str, texts: Iterable[str]) -> Ints:
    """(n,) keys of n texts."""
    return np.array([text_key(domain, text) for text in texts], dtype=np.int64)


def unit_groups(units: Ints, groups: int) -> Ints:
    """(n,) group 0 … groups - 1 of each unit key."""
    return _mix(units, _UNIT_GROUPS, groups)


def context_groups(contexts: Ints, groups: int) -> Ints:
    """(n,) group of each context key."""
    return _mix(contexts, _CONTEXT_GROUPS, groups)


def _mix(keys: Ints, domain: np.uint64, groups: int) -> Ints:
    z = keys.view(np.uint64) ^ domain
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z ^= z >> np.uint64(31)
    return (z % np.uint64(groups)).astype(np.int64)
