"""The secret key of a store: a file of mode 0600 beside it."""

from __future__ import annotations

import os
from pathlib import Path

from equipoise.agent.decisions.uniforms import KEY_BYTES, new_key
from equipoise.agent.errors import AgentError


def key_path(store: Path) -> Path:
    """`experiment.db` keeps its key in `experiment.db.key`."""
    return store.with_name(store.name + ".key")


def read_key(store: Path) -> bytes | None:
    """The key of a store, or None where there is no key file.

    Raises AgentError for a file of the wrong length.
    """
    path = key_path(store)
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != KEY_BYTES:
        raise AgentError(f"{path} has {len(key)} bytes, expected {KEY_BYTES}")
    return key


def write_key(store: Path, key: bytes | None = None) -> bytes:
    """Create the key file (never replacing one) and return the key; a fresh one by default."""
    key = key or new_key()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(key_path(store), flags, 0o600), "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key
