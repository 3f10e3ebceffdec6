"""Rows that were refused, and why: counted, the first few kept, all of them written to a file."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec

MOST_KEPT = 5


class Reject(msgspec.Struct, frozen=True, kw_only=True):
    """source: the file. row: its number, from 1. reason: the field, the value and the limit.

    The row itself is not repeated: it may hold what nobody wants in another file.
    """

    source: str
    row: int
    reason: str


class Rejects:
    """path: JSON lines, written whole when the block ends well; None keeps a count only."""

    def __init__(self, path: Path | None) -> None:
        self.count = 0
        self.first: list[Reject] = []
        self._path = path
        self._scratch = None if path is None else path.with_name(f".{path.name}.{os.getpid()}")
        self._file = None if self._scratch is None else self._scratch.open("wb")

    def add(self, source: str, row: int, reason: str) -> None:
        reject = Reject(source=source, row=row, reason=reason)
        self.count += 1
        if len(self.first) < MOST_KEPT:
            self.first.append(reject)
        if self._file is not None:
            self._file.write(msgspec.json.encode(reject) + b"\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is None or self._scratch is None or self._path is None:
            return
        self._file.close()
        if kind is None:
            self._scratch.replace(self._path)
        else:
            self._scratch.unlink()
