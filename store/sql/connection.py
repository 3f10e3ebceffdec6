"""What the shared statements ask of a database, whichever it is.

They use question marks for values and nothing that only one database knows; a connection runs each
at once, and in a transaction after BEGIN.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias, TypeVar

T = TypeVar("T")
Row: TypeAlias = tuple[Any, ...]


class Connection(Protocol):
    """Runs statements; what it returns can be iterated and has fetchone, fetchall, rowcount."""

    @property
    def in_transaction(self) -> bool:
        """Whether there was a BEGIN that has not ended."""

    def execute(self, sql: str, values: Any = ..., /) -> Any:
        """Run a statement."""

    def executemany(self, sql: str, rows: Any, /) -> Any:
        """Run a statement once for each row of values."""


class Session(Protocol):
    """A connection that the threads of a process take turns on. Errors become StoreErrors."""

    @property
    def turn(self) -> threading.RLock:
        """Held while anything is asked or written."""

    def transaction(self) -> AbstractContextManager[Connection]:
        """All that is written inside, or nothing."""

    def query(self, sql: str, values: Sequence[float | str] = ()) -> list[Row]:
        """The rows of a statement."""

    def ask(self, question: Callable[..., T], *values: object) -> T:
        """question(connection, *values)."""
