"""Computed arrays kept in the user's cache folder, so that a slow table is built once.

A cache must never be the reason for a failure or for a wrong number: a file that is missing,
damaged or of another version is computed anew, and a folder that cannot be written is ignored.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Arrays: TypeAlias = dict[str, NDArray[Any]]

_CHECKSUM = "checksum"


def cached(name: str, version: str, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays `compute` returns, from the cache where it holds this name and version."""
    folder = _folder()
    if folder is None:
        return compute()
    path = folder / f"{name}-{version}.npz"
    arrays = _read(path, version)
    if arrays is None:
        arrays = compute()
        _write(path, version, arrays)
    return arrays


def _folder() -> Path | None:
    """$XDG_CACHE_HOME/equipoise, or ~/.cache/equipoise; None where there is no home folder.

    The XDG specification asks to ignore a relative $XDG_CACHE_HOME.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        return Path(configured) / "equipoise"
    try:
        return Path.home() / ".cache" / "equipoise"
    except RuntimeError:
        return None


def _read(path: Path, version: str) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        stored = str(arrays.pop(_CHECKSUM))
    except Exception:  # a damaged archive raises whatever its broken part leads to
        return None
    return arrays if stored == _checksum(version, arrays) else None


def _write(path: Path, version: str, arrays: Arrays) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    columns: dict[str, Any] = {**arrays, _CHECKSUM: np.array(_checksum(version, arrays))}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = file.name
            np.savez(file, **columns)
        os.replace(temporary, path)
        temporary = None
    except OSError:
        pass
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _checksum(version: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = sha256(version.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
