"""Columns of a table that has outgrown its memory, in a file that nobody else sees.

The file is unlinked when it is made, beside the store where there is room, and holds nothing that
the log does not. Its pages are mapped: reading and writing a row is what it was, the system keeps
what is used and may take the rest. `release` gives back what has not been used lately.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

_STRIDE = 1 << 36
"""Bytes of the file from one column to the next, nearly all of them a hole."""


class OpenFile:
    """One file of columns. Raises OSError where there is no room for it."""

    def __init__(self, folder: Path) -> None:
        with tempfile.TemporaryFile(dir=folder, prefix=".equipoise-") as made:
            self._file = os.dup(made.fileno())
        self._maps: dict[str, tuple[int, mmap.mmap, int]] = {}

    def __del__(self) -> None:
        os.close(self._file)

    def column(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> NDArray[Any]:
        """A column as an array that lies in the file, with what it held when it was shorter."""
        row = prod(shape[1:]) * dtype.itemsize
        size = max(shape[0] * row, 1)
        place = self._maps[name][0] if name in self._maps else len(self._maps)
        if size > _STRIDE:
            raise OSError(f"a column of {size} bytes is longer than the {_STRIDE} it may have")
        # Room is taken now: a page that finds none later would be the end of the process.
        os.posix_fallocate(self._file, place * _STRIDE, size)
        mapped = mmap.mmap(self._file, size, offset=place * _STRIDE)
        self._maps[name] = place, mapped, row
        array: NDArray[Any] = np.frombuffer(mapped, dtype=dtype, count=prod(shape)).reshape(shape)
        return array

    def release(self, rows: int) -> None:
        """Give back the memory of the first `rows` rows of every column; the file keeps them."""
        for _, mapped, row in self._maps.values():
            length = rows * row // mmap.PAGESIZE * mmap.PAGESIZE
            if length:
                mapped.madvise(mmap.MADV_DONTNEED, 0, length)
