"""Keyed hashes of text ids: 64-bit keys, one domain per use."""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np

from equipoise.store.batches import Ints


def text_key(domain: str, text: str) -> int:
    """A non-negative 63-bit key of a text id within a domain."""
    digest = blake2b(text.encode(), digest_size=8, person=domain.encode()[:16]).digest()
    return int.from_bytes(digest, "little") >> 1


def text_keys(domain: str, texts: Iterable[str]) -> Ints:
    """(n,) keys of n texts."""
    return np.array([text_key(domain, text) for text in texts], dtype=np.int64)
