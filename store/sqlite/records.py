"""Settings, eras, rules, alerts, controls and checkpoints in SQLite: what surrounds the log.

Functions of an open connection; those that write run inside the caller's transaction.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import msgspec

from equipoise.store.contract import (
    KEPT_CHECKPOINTS,
    Checkpoint,
    Kept,
    check_same_era,
    check_same_rule,
    check_setting,
)
from equipoise.store.records import Alert, Control, Era, RuleRecord
from equipoise.store.sqlite import chain
from equipoise.store.sqlite.log_start import checkpoint_checksum, pieces

_WHOLE_BYTES = 1 << 20


def is_frozen(connection: sqlite3.Connection, store: str, name: str, value: str) -> bool:
    """Whether the setting is there; raises ContradictionError where it has another value."""
    kept = connection.execute("SELECT value FROM settings WHERE name = ?", (name,)).fetchone()
    if kept is not None:
        check_setting(store, name, kept[0], value)
    return kept is not None


def insert_setting(connection: sqlite3.Connection, name: str, value: str) -> None:
    connection.execute("INSERT INTO settings (name, value) VALUES (?, ?)", (name, value))


def read_settings(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM settings ORDER BY name"))


def is_kept(connection: sqlite3.Connection, store: str, record: Kept) -> bool:
    """Whether the record is there; raises ContradictionError where it has other content."""
    if isinstance(record, Era):
        eras = read_eras(connection, "WHERE era = ?", record.era)
        for era in eras:
            check_same_era(store, era, record)
        return bool(eras)
    if isinstance(record, RuleRecord):
        rules = read_rules(connection, "WHERE rule_id = ?", record.rule_id)
        for rule in rules:
            check_same_rule(store, rule, record)
        return bool(rules)
    if isinstance(record, Control):
        return record in read_controls(connection)
    found = connection.execute(
        "SELECT 1 FROM alerts WHERE at = ? AND check_name = ? AND status = ? AND sentence = ?",
        (record.at, record.check, record.status, record.sentence),
    )
    return found.fetchone() is not None


def insert_record(connection: sqlite3.Connection, record: Kept) -> str:
    """Insert a record; the name of its table."""
    if isinstance(record, Era):
        connection.execute(
            "INSERT INTO eras (era, opened_at, reason, models, key_hash, schema_hash)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (
                record.era,
                record.opened_at,
                record.reason,
                msgspec.json.encode(record.models).decode(),
                record.key_hash,
                record.schema_hash,
            ),
        )
        return "eras"
    if isinstance(record, RuleRecord):
        connection.execute(
            "INSERT INTO rules (rule_id, era, at, body) VALUES (?, ?, ?, ?)",
            (record.rule_id, record.era, record.at, record.body),
        )
        return "rules"
    if isinstance(record, Control):
        connection.execute(
            "INSERT INTO controls (at, name, value) VALUES (?, ?, ?)",
            (record.at, record.name, record.value),
        )
        return "controls"
    connection.execute(
        "INSERT INTO alerts (at, check_name, status, sentence) VALUES (?, ?, ?, ?)",
        (record.at, record.check, record.status, record.sentence),
    )
    return "alerts"


def read_eras(connection: sqlite3.Connection, where: str = "", *values: int) -> list[Era]:
    rows = connection.execute(
        "SELECT era, opened_at, reason, models, key_hash, schema_hash"
        f" FROM eras {where} ORDER BY era",
        values,
    )
    return [
        Era(
            era=era,
            opened_at=opened_at,
            reason=reason,
            models=msgspec.json.decode(models, type=list[str]),
            key_hash=key_hash,
            schema_hash=schema_hash,
        )
        for era, opened_at, reason, models, key_hash, schema_hash in rows
    ]


def read_rules(connection: sqlite3.Connection, where: str = "", *values: str) -> list[RuleRecord]:
    rows = connection.execute(
        f"SELECT rule_id, era, at, body FROM rules {where} ORDER BY id", values
    )
    return [
        RuleRecord(rule_id=rule_id, era=era, at=at, body=body) for rule_id, era, at, body in rows
    ]


def read_rule_ids(connection: sqlite3.Connection) -> list[tuple[int, str]]:
    """Ordinal and id of every rule: SQLite numbers them from 1."""
    return connection.execute("SELECT id - 1, rule_id FROM rules ORDER BY id").fetchall()


def read_bodies(connection: sqlite3.Connection, after: int) -> list[tuple[int, str]]:
    """Key and text of some rules after that key."""
    return connection.execute(
        "SELECT id, body FROM rules WHERE id > ? ORDER BY id LIMIT 256", (after,)
    ).fetchall()


def delete_rules(connection: sqlite3.Connection, ordinals: Sequence[int]) -> None:
    """The newest is never among them, so SQLite numbers later ones as if all were there."""
    connection.executemany(
        "DELETE FROM rules WHERE id = ? AND id < (SELECT max(id) FROM rules)",
        [(ordinal + 1,) for ordinal in ordinals],
    )
    if ordinals:
        chain.restart_records(connection, "rules")


def read_alerts(connection: sqlite3.Connection) -> list[Alert]:
    rows = connection.execute("SELECT at, check_name, status, sentence FROM alerts ORDER BY id")
    return [
        Alert(at=at, check=check, status=status, sentence=sentence)
        for at, check, status, sentence in rows
    ]


def read_controls(connection: sqlite3.Connection) -> list[Control]:
    rows = connection.execute("SELECT at, name, value FROM controls ORDER BY id")
    return [Control(at=at, name=name, value=value) for at, name, value in rows]


def write_checkpoint(connection: sqlite3.Connection, checkpoint: Checkpoint) -> None:
    """Add a checkpoint and drop those beyond the newest three."""
    size = len(checkpoint.state)
    checksum = checkpoint_checksum(checkpoint.seq, checkpoint.at, checkpoint.state)
    whole = size <= _WHOLE_BYTES
    kept = connection.execute(
        "INSERT INTO checkpoints (seq, at, checksum, state)"
        f" VALUES (?, ?, ?, {'?' if whole else 'zeroblob(?)'})",
        (
            checkpoint.seq,
            checkpoint.at,
            checksum,
            checkpoint.state if whole else size,
        ),
    )
    key = int(kept.lastrowid or 0)
    if not whole:
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
    chain.mark(connection)


def newest_checkpoint(connection: sqlite3.Connection, next_seq: int) -> Checkpoint | None:
    """The newest checkpoint whose checksum holds and which is not ahead of the log."""
    # One at a time: three of them are three times the memory.
    found = connection.execute("SELECT id, seq, at, checksum FROM checkpoints ORDER BY id DESC")
    for key, seq, at, checksum in found.fetchall():
        if seq > next_seq:
            continue
        row = connection.execute("SELECT state FROM checkpoints WHERE id = ?", (key,)).fetchone()
        if row is not None:
            checkpoint = Checkpoint(seq, row[0], at)
            if checkpoint_checksum(seq, at, checkpoint.state) == checksum:
                return checkpoint
    return None
