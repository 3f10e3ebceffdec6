"""The secret key of a store: a file of mode 0600 beside it, or where it is said to be."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Protocol

from equipoise.agent.decisions.uniforms import KEY_BYTES, new_key
from equipoise.agent.errors import AgentError
from equipoise.store.address import Where, files_of


class FileStore(Protocol):
    """What is asked of a store: where it is, and whether an experiment was opened on it."""

    @property
    def path(self) -> Path: ...

    def settings(self) -> dict[str, str]: ...


def key_path(store: Where, file: str | os.PathLike[str] | None = None) -> Path:
    """`experiment.db` keeps its key in `experiment.db.key`; a store in PostgreSQL in a file of the
    working folder that is called after its schema. file: where it is instead."""
    if file is not None:
        return Path(file)
    beside = files_of(store)
    return beside.with_name(beside.name + ".key")


def read_key(store: Where, file: str | os.PathLike[str] | None = None) -> bytes | None:
    """The key of a store, or None where there is no key file.

    Raises AgentError for a file of the wrong length.
    """
    path = key_path(store, file)
    try:
        key = path.read_bytes()
    except FileNotFoundError:
        return None
    if len(key) != KEY_BYTES:
        raise AgentError(f"{path} has {len(key)} bytes, expected {KEY_BYTES}")
    return key


def write_key(
    store: Where, key: bytes | None = None, file: str | os.PathLike[str] | None = None
) -> bytes:
    """Create the key file (never replacing one) and return the key; a fresh one by default."""
    key = key or new_key()
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
    with os.fdopen(os.open(key_path(store, file), flags, 0o600), "wb") as written:
        written.write(key)
        written.flush()
        os.fsync(written.fileno())
    return key


def open_key(store: FileStore, file: str | os.PathLike[str] | None = None) -> bytes:
    """The key of a store, a fresh one for a new store; AgentError where it is missing."""
    key = read_key(store.path, file)
    if key is None:
        if store.settings():
            missing = key_path(store.path, file)
            raise AgentError(f"the key of {store.path} is missing: restore {missing}")
        key = write_key(store.path, file=file)
    return key


KEY_VARIABLE = "EQUIPOISE_KEY"
"""The environment variable that may hold a key, in 64 hexadecimal digits."""


def given_key(store: Where, file: str | os.PathLike[str] | None = None) -> bytes:
    """The key for a process that has no store of its own: from a file, the environment, or where
    that of the store lies. Raises AgentError where there is none, or none of its length."""
    text = os.environ.get(KEY_VARIABLE)
    if file is None and text:
        with contextlib.suppress(ValueError):
            if len(key := bytes.fromhex(text)) == KEY_BYTES:
                return key
        raise AgentError(f"{KEY_VARIABLE} is no key: expected {2 * KEY_BYTES} hexadecimal digits")
    found = read_key(store, file)
    if found is None:
        path = key_path(store, file)
        raise AgentError(
            f"a decider needs the experiment's key, and {path} does not exist: copy it from the"
            f" authority, give its file with --key, or set {KEY_VARIABLE}"
        )
    return found
