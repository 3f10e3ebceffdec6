"""A hash chain over everything a store keeps, so that a change made behind its back shows.

Every row of the log has a digest that covers it and every row before it:

    D(i + 1) = blake2b(D(i) + name of the table + msgpack of the row as SQL holds it),   32 bytes,

with D at the first row of the chain = blake2b of "equipoise chain" and that row's number. How rows
came in batches says nothing. Settings, eras, rules, alerts, controls and gaps have a chain each, in
the order of their keys; checkpoints and roots a digest each. The table `chain` holds D every 256
rows, at every checkpoint and root, and where everything ends; it is written in the transaction of
the rows themselves.

Whoever can rewrite the whole file can rewrite its chain too. That shows only against a copy of
where it ended (`Anchor`) that is kept elsewhere: in a backup, or in a file that only grows.
Functions of an open connection; those that write run inside the caller's transaction.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from types import MappingProxyType
from typing import Any, TypeAlias

import msgspec

from equipoise.store.format.sql_rows import DECISIONS, LOG_TABLES, OUTCOMES, Columns
from equipoise.store.sql.connection import Connection

Row: TypeAlias = tuple[Any, ...]

EVERY = 256
"""Rows between two stored digests of the log."""
RECORDS: Mapping[str, str] = MappingProxyType(
    {
        "settings": "SELECT rowid, name, value FROM settings",
        "eras": "SELECT era, era, opened_at, reason, models, key_hash, schema_hash FROM eras",
        "rules": "SELECT id, rule_id, era, at, body FROM rules",
        "alerts": "SELECT id, at, check_name, status, sentence FROM alerts",
        "controls": "SELECT id, at, name, value FROM controls",
        "gaps": 'SELECT id, at, first, numbers, "row", "rows", reason, kept FROM gaps',
    }
)
"""What is chained beside the log: its key, then its content."""
_KEYS = {
    "settings": "rowid",
    "eras": "era",
    "rules": "id",
    "alerts": "id",
    "controls": "id",
    "gaps": "id",
}
LOG, BEGINS, BROKEN = "log", "begins", "broken"
_STATES = {"checkpoint": -1001, "root": -1002}
# Ids below 0, so that what changes with every transaction stays on one page.
_HEADS = {LOG: -1, **{name: -2 - index for index, name in enumerate(RECORDS)}}
_KEEP = (
    "INSERT INTO chain (id, kind, position, digest) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO NOTHING"
)
_REPLACE = (
    "INSERT INTO chain (id, kind, position, digest) VALUES (?, ?, ?, ?) ON CONFLICT (id) DO UPDATE"
    " SET kind = excluded.kind, position = excluded.position, digest = excluded.digest"
)
_encode = msgspec.msgpack.Encoder().encode
_LATER = {
    OUTCOMES.name: OUTCOMES.names.index("attempts"),
    DECISIONS.name: DECISIONS.names.index("draw"),
}
_NAMES = {table.name: table.name.encode() for table in LOG_TABLES}


class Place(msgspec.Struct, frozen=True):
    """Where a chain stood: its digest, in hexadecimal, after the first `position` rows of the log,
    or after the record with that key."""

    position: int
    digest: str


class Anchor(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where all chains of a store ended at one moment. at: seconds since the epoch.

    log: None while nothing is chained; records: of each kind that there was any of.
    """

    at: float
    log: Place | None = None
    records: dict[str, Place] = {}


@dataclass(frozen=True, slots=True)
class Link:
    """A stored digest. kind: "log" (on the way), "begins" (where the chain starts), "broken"
    (where a store was found to have other rows than its chain, which went on from there)."""

    kind: str
    position: int
    digest: str


def begin(connection: Connection) -> None:
    """Let the chain begin behind the rows that are there already."""
    ends = [f"SELECT max(seq) + 1 AS s FROM {table.name}" for table in LOG_TABLES]
    ends.append("SELECT max(seq) FROM roots WHERE sealed_at IS NOT NULL")
    query = f"SELECT coalesce(max(s), 0) FROM ({' UNION ALL '.join(ends)}) AS ends"
    first = int(connection.execute(query).fetchone()[0])
    digest = first_digest(first).hex()
    _put(connection, [(first, BEGINS, first, digest), (_HEADS[LOG], LOG, first, digest)])


def first_digest(position: int) -> bytes:
    """D of a chain that begins at this row."""
    return blake2b(b"equipoise chain" + _encode(position), digest_size=32).digest()


def next_digest(digest: bytes, table: str, row: Row) -> bytes:
    """D after one more row of a table, as SQL holds it."""
    return blake2b(digest + table.encode() + _content(table, row), digest_size=32).digest()


def _content(table: str, row: Row) -> bytes:
    # The chain is older than these columns: a row without one has the digest that it had then.
    later = _LATER.get(table)
    if later is not None and row[later] is None:
        row = row[:later] + row[later + 1 :]
    return _encode(row)


def extend(
    connection: Connection,
    end: tuple[int, bytes] | None,
    first: int,
    written: Sequence[Columns],
) -> tuple[int, bytes]:
    """Chain rows that were just inserted; where the chain ends now.

    end: where it ended, None to look. first: the number of the first of the rows. written: the
    rows, which together have consecutive numbers.
    """
    position, digest = end or _resume(connection)
    if position != first:
        position, digest = _break(connection, first, digest)
    links: list[tuple[int, str, int, str]] = []
    contents = _contents(first, written)
    start = 0
    while start < len(contents):
        stop = start + EVERY - position % EVERY
        part = contents[start:stop]
        for content in part:
            digest = blake2b(digest + content, digest_size=32).digest()
        position, start = position + len(part), stop
        if position % EVERY == 0:
            links.append((position, LOG, position, digest.hex()))
    links.append((_HEADS[LOG], LOG, position, digest.hex()))
    _put(connection, links)
    return position, digest


def _contents(first: int, written: Sequence[Columns]) -> list[bytes]:
    """What the digest of each row covers, in the order of their numbers."""
    contents = [b""] * sum(map(len, written))
    for columns in written:
        name = columns.table.name
        later, named = _LATER.get(name), _NAMES[name].__add__
        encoded: Iterable[bytes]
        if later is None or columns.values[later] is None:
            encoded = map(_encode, columns.rows(without=later))
        else:
            encoded = (_content(name, row) for row in columns.rows())
        seqs = columns.values[0]
        assert seqs is not None
        for seq, content in zip(seqs, map(named, encoded), strict=True):
            contents[seq - first] = content
    return contents


def pin(connection: Connection, position: int | None = None) -> None:
    """Store the digest after the first `position` rows (None: where the chain ends) for good."""
    head = _head(connection, LOG)
    if head is None:
        return
    if position is None or position == head.position:
        _put(connection, [(head.position, LOG, head.position, head.digest)], keep=True)
        return
    row = connection.execute(
        "SELECT position, digest FROM chain WHERE id >= 0 AND id <= ? ORDER BY id DESC LIMIT 1",
        (position,),
    ).fetchone()
    if row is None or position > head.position:
        return  # before the chain began
    digest = _advance(connection, row[0], bytes.fromhex(row[1]), position)
    _put(connection, [(position, LOG, position, digest.hex())], keep=True)


def forget(connection: Connection, position: int) -> None:
    """Let the chain begin at the row that the log begins at now."""
    connection.execute(
        "DELETE FROM chain WHERE id >= 0 AND id < ? AND kind != ?", (position, BROKEN)
    )


def note_state(connection: Connection, kind: str, key: int, seq: int, checksum: str) -> None:
    """Keep a digest of a checkpoint or root beside it. key: its id; checksum: its checksum.

    Those of states that are kept no longer go.
    """
    first, table = _STATES[kind], f"{kind}s"
    connection.execute(
        f"DELETE FROM chain WHERE kind = ? AND ({first} - id) / 2 NOT IN (SELECT id FROM {table})",
        (kind,),
    )
    _put(connection, [(first - 2 * key, kind, seq, _state_digest(kind, seq, checksum))])


def state_notes(connection: Connection, kind: str) -> dict[int, str]:
    """The digest of every state of a kind by its id."""
    rows = connection.execute("SELECT id, digest FROM chain WHERE kind = ?", (kind,))
    return {(_STATES[kind] - key) // 2: digest for key, digest in rows}


def is_noted(notes: Mapping[int, str], kind: str, key: int, seq: int, checksum: str) -> bool:
    """Whether a state has the digest that was kept beside it."""
    return notes.get(key) == _state_digest(kind, seq, checksum)


def _state_digest(kind: str, seq: int, checksum: str) -> str:
    content = kind.encode() + _encode([seq, checksum])
    return blake2b(b"equipoise chain" + content, digest_size=32).hexdigest()


def extend_records(connection: Connection, name: str) -> None:
    """Chain the records of one kind that were inserted since."""
    head = _head(connection, name)
    key, digest = (-1, _first_record_digest(name)) if head is None else (head.position, head.digest)
    last = bytes.fromhex(digest)
    rows = connection.execute(f"{RECORDS[name]} WHERE {_KEYS[name]} > ? ORDER BY 1", (key,))
    new = rows.fetchall()
    for row in new:
        last, key = _record_digest(last, name, row), row[0]
    if new:
        _put(connection, [(_HEADS[name], name, key, last.hex())])


def restart_records(connection: Connection, name: str) -> None:
    """Chain one kind anew from what is there: for whoever removes records on purpose."""
    connection.execute("DELETE FROM chain WHERE id = ?", (_HEADS[name],))
    extend_records(connection, name)


def anchor(connection: Connection, at: float) -> Anchor:
    """Where every chain ends."""
    with _one_moment(connection):
        heads = {name: _head(connection, name) for name in _HEADS}
    places = {
        name: Place(head.position, head.digest) for name, head in heads.items() if head is not None
    }
    return Anchor(at=at, log=places.pop(LOG, None), records=places)


def links(connection: Connection) -> tuple[list[Link], Link | None]:
    """Every stored digest of the log by position, and the one where its chain ends."""
    with _one_moment(connection):
        rows = connection.execute(
            "SELECT kind, position, digest FROM chain"
            " WHERE id >= 0 OR kind = ? ORDER BY position, id",
            (BROKEN,),
        )
        return [Link(*row) for row in rows], _head(connection, LOG)


def record_digests(connection: Connection, name: str) -> tuple[Link | None, dict[int, str]]:
    """Where the chain of one kind of records ends, None where it never began, and D after each
    record that is there by its key."""
    digest = bytes.fromhex(_first_record_digest(name))
    digests: dict[int, str] = {}
    with _one_moment(connection):
        head = _head(connection, name)
        for row in connection.execute(f"{RECORDS[name]} ORDER BY 1"):
            digest = _record_digest(digest, name, row)
            digests[row[0]] = digest.hex()
    return head, digests


def _resume(connection: Connection) -> tuple[int, bytes]:
    """Where the chain ended. Where its end is gone, nowhere, so that it is broken off."""
    head = _head(connection, LOG)
    return (-1, b"") if head is None else (head.position, bytes.fromhex(head.digest))


def _break(connection: Connection, first: int, digest: bytes) -> tuple[int, bytes]:
    """Go on at row `first`, where the log ends and the chain did not; kept for every audit."""
    digest = blake2b(digest + first_digest(first), digest_size=32).digest()
    connection.execute("DELETE FROM chain WHERE id >= ?", (first,))
    connection.execute(
        "INSERT INTO chain (id, kind, position, digest)"
        " SELECT CASE WHEN min(id) < -100 THEN min(id) ELSE -100 END - 1, ?, ?, ? FROM chain",
        (BROKEN, first, digest.hex()),
    )
    return first, digest


def _advance(connection: Connection, start: int, digest: bytes, stop: int) -> bytes:
    for name, row in rows_between(connection, start, stop):
        digest = next_digest(digest, name, row)
    return digest


def rows_between(connection: Connection, start: int, stop: int) -> list[tuple[str, Row]]:
    """(table, row) of every row with start <= number < stop, in order."""
    rows = [
        (table.name, row)
        for table in LOG_TABLES
        for row in connection.execute(table.select("seq >= ? AND seq < ?"), (start, stop))
    ]
    return sorted(rows, key=lambda pair: int(pair[1][0]))


def _head(connection: Connection, name: str) -> Link | None:
    row = connection.execute(
        "SELECT kind, position, digest FROM chain WHERE id = ?", (_HEADS[name],)
    ).fetchone()
    return None if row is None else Link(*row)


def _put(connection: Connection, rows: list[tuple[int, str, int, str]], keep: bool = False) -> None:
    connection.executemany(_KEEP if keep else _REPLACE, rows)


@contextlib.contextmanager
def _one_moment(connection: Connection) -> Iterator[None]:
    """What is read inside is of one moment, whatever a writer does meanwhile."""
    if connection.in_transaction:
        yield
        return
    connection.execute("BEGIN")
    try:
        yield
    finally:
        connection.execute("ROLLBACK")


def _first_record_digest(name: str) -> str:
    return blake2b(b"equipoise chain" + name.encode(), digest_size=32).hexdigest()


def _record_digest(digest: bytes, name: str, row: Row) -> bytes:
    # Its key is no content: compacting a database may number the rows of a table anew.
    return blake2b(digest + name.encode() + _encode(row[1:]), digest_size=32).digest()
