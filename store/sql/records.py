"""Settings, eras, rules, alerts, controls, gaps and kept states in SQL: what surrounds the log.

Functions of an open connection; those that write run inside the caller's transaction.
"""

from __future__ import annotations

import mmap
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import TypeVar

import msgspec

from equipoise.store.batches import Buffer
from equipoise.store.contract import (
    KEPT_CHECKPOINTS,
    BaseSnapshot,
    Checkpoint,
    StoredRecord,
    check_same_era,
    check_same_rule,
    check_setting,
)
from equipoise.store.records import Alert, Control, Era, Gap, RuleRecord
from equipoise.store.sql import chain
from equipoise.store.sql.connection import Connection

TAKEN = "tail_taken"
"""The fact that names tail files whose rows are in the log while they still stand there."""
_OF_BASE, _OF_CHECKPOINT = Struct("<qqd"), Struct("<qd")
_PIECE = 1 << 20
"""Bytes of a state that are handled at a time."""


@dataclass(frozen=True, slots=True)
class _Table:
    """A table of records: its columns in the order of their fields, and its key."""

    name: str
    columns: tuple[str, ...]
    key: str = "id"


_TABLES: dict[type, _Table] = {
    Era: _Table("eras", Era.__struct_fields__, key="era"),
    RuleRecord: _Table("rules", RuleRecord.__struct_fields__),
    Alert: _Table("alerts", ("at", "check_name", "status", "sentence")),
    Control: _Table("controls", Control.__struct_fields__),
    Gap: _Table("gaps", tuple(f'"{name}"' for name in Gap.__struct_fields__)),
}
R = TypeVar("R", Era, RuleRecord, Alert, Control, Gap)


@dataclass(frozen=True, slots=True)
class KeptState:
    """A checkpoint or base snapshot ("root") that is kept: the state after the rows before `seq`.

    whole: whether its checksum holds; noted: whether that is the one which was kept beside it, None
    where nothing was.
    """

    kind: str
    seq: int
    whole: bool
    noted: bool | None


def is_frozen(connection: Connection, store: str, name: str, value: str) -> bool:
    """Whether the setting is there; raises ContradictionError where it has another value."""
    row = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    if row is not None:
        check_setting(store, name, row[0], value)
    return row is not None


def insert_setting(connection: Connection, name: str, value: str) -> None:
    connection.execute("INSERT INTO settings (name, value) VALUES (?, ?)", (name, value))


def read_settings(connection: Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM settings ORDER BY name"))


def is_kept(connection: Connection, store: str, record: StoredRecord) -> bool:
    """Whether the record is there; raises ContradictionError where it has other content."""
    if isinstance(record, Era):
        eras = read_records(connection, Era, "WHERE era = ?", record.era)
        for era in eras:
            check_same_era(store, era, record)
        return bool(eras)
    if isinstance(record, RuleRecord):
        rules = read_records(connection, RuleRecord, "WHERE rule_id = ?", record.rule_id)
        for rule in rules:
            check_same_rule(store, rule, record)
        return bool(rules)
    table = _TABLES[type(record)]
    same = " AND ".join(f"{column} = ?" for column in table.columns)
    query = f"SELECT 1 FROM {table.name} WHERE {same}"
    return connection.execute(query, msgspec.structs.astuple(record)).fetchone() is not None


def insert_record(connection: Connection, record: StoredRecord | Gap) -> None:
    """Insert and chain a record."""
    table = _TABLES[type(record)]
    values = [
        msgspec.json.encode(value).decode() if isinstance(value, list) else value
        for value in msgspec.structs.astuple(record)
    ]
    columns, marks = ", ".join(table.columns), ", ".join("?" * len(values))
    if table.key == "id":
        columns, marks = f"id, {columns}", f"{_next_id(table.name)}, {marks}"
    connection.execute(f"INSERT INTO {table.name} ({columns}) VALUES ({marks})", values)
    chain.extend_records(connection, table.name)


def _next_id(table: str) -> str:
    # What SQLite gives by itself. There is one writer, so it is the next in any database.
    return f"(SELECT coalesce(max(id), 0) + 1 FROM {table})"


def read_records(
    connection: Connection, kind: type[R], where: str = "", *values: float | str
) -> list[R]:
    """The records of a kind in the order they were kept, eras by number."""
    table = _TABLES[kind]
    rows = connection.execute(
        f"SELECT {', '.join(table.columns)} FROM {table.name} {where} ORDER BY {table.key}", values
    )
    records = []
    for row in rows:
        fields = dict(zip(kind.__struct_fields__, row, strict=True))
        if kind is Era:
            fields["models"] = msgspec.json.decode(fields["models"], type=list[str])
        records.append(kind(**fields))
    return records


def read_rule_ids(connection: Connection) -> list[tuple[int, str]]:
    """Ordinal and id of every rule: their keys count from 1."""
    rows: list[tuple[int, str]] = connection.execute(
        "SELECT id - 1, rule_id FROM rules ORDER BY id"
    ).fetchall()
    return rows


def read_bodies(connection: Connection, after: int) -> list[tuple[int, str]]:
    """Key and text of some rules after that key."""
    rows: list[tuple[int, str]] = connection.execute(
        "SELECT id, body FROM rules WHERE id > ? ORDER BY id LIMIT 256", (after,)
    ).fetchall()
    return rows


def delete_rules(connection: Connection, ordinals: Sequence[int]) -> None:
    """The newest is never among them, so later ones are numbered as if all were there."""
    connection.executemany(
        "DELETE FROM rules WHERE id = ? AND id < (SELECT max(id) FROM rules)",
        [(ordinal + 1,) for ordinal in ordinals],
    )
    if ordinals:
        chain.restart_records(connection, "rules")


def read_fact(connection: Connection, name: str) -> str | None:
    row = connection.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
    return None if row is None else str(row[0])


def write_fact(connection: Connection, name: str, value: str | None) -> None:
    """Set a fact; None removes it."""
    connection.execute("DELETE FROM facts WHERE name = ?", (name,))
    if value is not None:
        connection.execute("INSERT INTO facts (name, value) VALUES (?, ?)", (name, value))


def write_checkpoint(connection: Connection, checkpoint: Checkpoint) -> None:
    """Add a checkpoint and drop those beyond the newest three."""
    size = len(checkpoint.state)
    checksum = checkpoint_checksum(checkpoint.seq, checkpoint.at, checkpoint.state)
    in_pieces = size > _PIECE and isinstance(connection, sqlite3.Connection)
    state = "zeroblob(?)" if in_pieces else "?"
    key = insert_state(
        connection,
        "INSERT INTO checkpoints (id, seq, at, checksum, state)"
        f" VALUES ({_next_id('checkpoints')}, ?, ?, ?, {state}) RETURNING id",
        (checkpoint.seq, checkpoint.at, checksum),
        size if in_pieces else checkpoint.state,
    )
    if in_pieces and isinstance(connection, sqlite3.Connection):
        # SQLite copies what it is given: a large state goes in piece by piece.
        with connection.blobopen("checkpoints", "state", key) as blob:
            for piece in pieces(checkpoint.state):
                blob.write(piece)
    connection.execute(
        "DELETE FROM checkpoints WHERE id NOT IN"
        " (SELECT id FROM checkpoints ORDER BY id DESC LIMIT ?)",
        (KEPT_CHECKPOINTS,),
    )
    chain.note_state(connection, "checkpoint", key, checkpoint.seq, checksum)
    chain.pin(connection)


def insert_root(connection: Connection, base: BaseSnapshot) -> None:
    """Keep a base snapshot, and its digest beside it."""
    checksum = base_checksum(base)
    key = insert_state(
        connection,
        "INSERT INTO roots (id, seq, decisions, at, checksum, state)"
        f" VALUES ({_next_id('roots')}, ?, ?, ?, ?, ?) RETURNING id",
        (base.seq, base.decisions, base.at, checksum),
        base.state,
    )
    chain.note_state(connection, "root", key, base.seq, checksum)
    chain.pin(connection, base.seq)


def insert_state(
    connection: Connection, sql: str, values: Sequence[object], state: Buffer | int
) -> int:
    """Run an INSERT whose last value is a state, or its size; the key that it returns."""
    last = state if isinstance(state, int) else memoryview(state)
    return int(connection.execute(sql, (*values, last)).fetchall()[0][0])


def newest_checkpoint(connection: Connection, next_seq: int) -> Checkpoint | None:
    """The newest checkpoint whose checksum holds and which is not ahead of the log."""
    # One at a time: three of them are three times the memory.
    rows = connection.execute("SELECT id, seq, at, checksum FROM checkpoints ORDER BY id DESC")
    for key, seq, at, checksum in rows.fetchall():
        if seq > next_seq:
            continue
        row = connection.execute("SELECT state FROM checkpoints WHERE id = ?", (key,)).fetchone()
        if row is not None:
            checkpoint = Checkpoint(seq, row[0], at)
            if checkpoint_checksum(seq, at, checkpoint.state) == checksum:
                return checkpoint
    return None


def kept_states(connection: Connection) -> list[KeptState]:
    """Every checkpoint, then every base snapshot."""
    states = []
    for kind, columns in (("checkpoint", "at"), ("root", "decisions, at")):
        notes = chain.state_notes(connection, kind)
        query = f"SELECT id, checksum, seq, {columns}, state FROM {kind}s ORDER BY id"
        for key, checksum, seq, *rest in connection.execute(query):
            expected = (
                base_checksum(BaseSnapshot(seq, *rest))
                if kind == "root"
                else checkpoint_checksum(seq, *rest)
            )
            noted = chain.is_noted(notes, kind, key, seq, checksum) if key in notes else None
            states.append(KeptState(kind, seq, expected == checksum, noted))
    return states


def checkpoint_checksum(seq: int, at: float, state: Buffer) -> str:
    """What is kept beside a checkpoint, so that a damaged one is noticed."""
    return _checksum(_OF_CHECKPOINT.pack(seq, at), state)


def base_checksum(base: BaseSnapshot) -> str:
    """What is kept beside a base snapshot."""
    return _checksum(_OF_BASE.pack(base.seq, base.decisions, base.at), base.state)


def _checksum(head: bytes, state: Buffer) -> str:
    covered = sha256(head)
    for piece in pieces(state):
        covered.update(piece)
    return covered.hexdigest()


def pieces(state: Buffer) -> Iterator[bytes]:
    """The bytes of a state a megabyte at a time; pages of a file are let go again."""
    for start in range(0, len(state), _PIECE):
        piece = state[start : start + _PIECE]
        yield piece
        if isinstance(state, mmap.mmap):
            state.madvise(mmap.MADV_DONTNEED, start, len(piece))
