"""Opening a store by what names it: the path of a SQLite file, or the URL of a PostgreSQL database.

The driver of PostgreSQL is imported only where a URL is opened.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from equipoise.store.address import Where, files_of, is_url, shown
from equipoise.store.batches import Buffer, DecisionBatch, OutcomeBatch
from equipoise.store.contract import Store
from equipoise.store.errors import StoreError
from equipoise.store.journal import WAITING_ROWS, JournaledStore
from equipoise.store.sql.chain import Anchor
from equipoise.store.sql.store import Recovery, SqlStore
from equipoise.store.sql.truncation import Trimmed
from equipoise.store.sqlite import SqliteStore
from equipoise.store.sqlite.connection import Durability

__all__ = ["Recovery", "ServedStore", "Where", "files_of", "is_url", "open_served", "open_store"]


class ServedStore(Store, Protocol):
    """What a daemon asks of its store beyond the contract.

    where: names the store to another process. path: what names of files beside it begin with.
    """

    where: str
    path: Path
    commits: int
    commit_seconds: float
    must_sync: bool
    """Whether appended rows may be acknowledged only after `begin_sync`."""

    @property
    def trouble(self) -> StoreError | None:
        """Why the database does not take what it is to keep, None while it does."""

    @property
    def displaced(self) -> StoreError | None:
        """Why what is logged now would be lost, None while it would not."""

    @property
    def waiting(self) -> int:
        """Rows that are logged and not in the database yet."""

    @property
    def leftovers(self) -> Recovery:
        """What was found when it was opened."""

    def check_files(self) -> StoreError | None:
        """Look whether the store is still in its place; `displaced` after that. Never waits."""

    def probe(self) -> None:
        """Raise what `append` of a few rows would raise now; the log stays as it is."""

    def begin_sync(self) -> Callable[[], None]:
        """A function, for any thread, that keeps what was appended before, as promised."""

    def settle(self, until: int | None = None, seconds: float | None = None) -> bool:
        """Wait until readers see the first `until` rows (default: all); whether they do."""

    def number_reader(self, request_id: str) -> Callable[[], int | None]:
        """Finds the decision of a request, when it is called, by any thread."""

    def decision_reader(self, number: int) -> Callable[[], DecisionBatch | None]:
        """Reads a decision; see `number_reader`."""

    def parts_reader(self, number: int) -> Callable[[], list[OutcomeBatch]]:
        """Reads what `outcome_parts` is; see `number_reader`."""

    def keep_base(self, seq: int, state: Buffer, at: float) -> None:
        """Keep the state after the rows before `seq` for the log to begin at some day."""

    def last_base_kept(self, now: float) -> float | None:
        """When the newest base up to `now` was kept, both in seconds since the epoch."""

    def trim(
        self, before: float, now: float, archive: Path | None, newer: int = 0
    ) -> Trimmed | None:
        """Remove what is older than the newest base that was kept by `before`."""

    def remove_rules(self, ordinals: Sequence[int]) -> None:
        """Delete rules that nothing refers to any more."""

    def anchor(self, at: float) -> Anchor:
        """Where the chains of this store end now."""


def open_store(
    where: Where,
    read_only: bool = False,
    *,
    accept_loss: bool = False,
    busy_seconds: float = 1.0,
) -> SqlStore:
    """A store as the only writer, or for reading beside one. Parameters as of `SqliteStore`."""
    if is_url(where):
        from equipoise.store.postgres import PostgresStore  # its driver is not everywhere

        return PostgresStore(
            str(where), read_only, accept_loss=accept_loss, busy_seconds=busy_seconds
        )
    return SqliteStore(where, read_only, accept_loss=accept_loss, busy_seconds=busy_seconds)


def open_served(
    where: Where,
    durability: Durability = "process",
    *,
    busy_seconds: float = 1.0,
    waiting_rows: int = WAITING_ROWS,
    grouped: bool = False,
) -> ServedStore:
    """A store for whoever answers requests. Parameters as of `JournaledStore`; in PostgreSQL every
    append is as durable as the server makes it."""
    if is_url(where):
        from equipoise.store.postgres import PostgresStore

        return PostgresStore(str(where), busy_seconds=busy_seconds)
    return JournaledStore(
        where, durability, busy_seconds=busy_seconds, waiting_rows=waiting_rows, grouped=grouped
    )


def exists(where: Where) -> bool:
    """Whether there is a store, or at least something in its place. Raises StoreError where the
    server does not answer."""
    if not is_url(where):
        return os.path.exists(where)
    from equipoise.store.postgres import holds_store

    return holds_store(str(where))


def named(where: Where) -> str:
    """For messages: without a password."""
    return shown(where)
