"""The hash chain: what it covers, that it says the same however rows came, and when it breaks."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from hashlib import blake2b
from pathlib import Path
from typing import Any

import msgspec
import pyarrow.parquet as pq
import pytest

from equipoise.store.batches import Batch, slice_rows
from equipoise.store.errors import LostRowsError, StoreError
from equipoise.store.format.mark import mark_path
from equipoise.store.format.sql_rows import LOG_TABLES
from equipoise.store.journal import JournaledStore
from equipoise.store.records import Alert, Control, RuleRecord
from equipoise.store.sql import chain
from equipoise.store.sql.chain import BROKEN, EVERY, RECORDS
from equipoise.store.sqlite import SqliteStore, schema


def batches(author: Any) -> list[Batch]:
    """About a thousand rows of every kind, awkward numbers among them."""
    return [
        batch
        for size in (1, 40, 3, 200)
        for batch in (
            author.decisions(size, mask=bool(size % 2)),
            author.outcomes(size),
            author.observations(size),
            author.simulations(5),
            author.expiries(2),
        )
    ]


def rows_of(path: Path) -> list[tuple[str, tuple[Any, ...]]]:
    """(table, row) of a whole log in order, by plain SQL."""
    with closing(sqlite3.connect(path)) as connection:
        rows = [
            (table.name, row)
            for table in LOG_TABLES
            for row in connection.execute(
                f"SELECT {', '.join(table.names)} FROM {table.name}"
            ).fetchall()
        ]
    return sorted(rows, key=lambda pair: pair[1][0])


def by_hand(rows: list[tuple[str, tuple[Any, ...]]], first: int = 0) -> list[str]:
    """D after each row, and before the first: the definition, once more."""
    digest = blake2b(b"equipoise chain" + msgspec.msgpack.encode(first), digest_size=32).digest()
    found = [digest.hex()]
    for table, row in rows:
        if table in ("outcomes", "decisions"):  # the last but one, which the chain is older than
            row = row[:-2] + row[-1:] if row[-2] is None else row
        content = digest + table.encode() + msgspec.msgpack.encode(list(row))
        digest = blake2b(content, digest_size=32).digest()
        found.append(digest.hex())
    return found


def test_the_chain_is_what_its_definition_says(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        for batch in batches(author):
            store.append(batch)
        links, head = store.chain_links()
        length = store.next_seq
    expected = by_hand(rows_of(path))
    assert length > 2 * EVERY
    assert head is not None
    assert (head.position, head.digest) == (length, expected[length])
    assert [link.position for link in links] == [*range(0, length, EVERY)]
    assert all(link.digest == expected[link.position] for link in links)


def one_by_one(path: Path, written: list[Batch]) -> None:
    with SqliteStore(path) as store:
        for batch in written:
            for row in range(len(batch)):
                store.append(slice_rows(batch, row, row + 1))


def through_a_tail(path: Path, written: list[Batch]) -> None:
    with JournaledStore(path) as store:
        for batch in written:
            store.append(batch)


def killed_in_between(path: Path, written: list[Batch]) -> None:
    """What a killed writer left in its tail is chained by the next one."""
    half = len(written) // 2
    through_a_tail(path, written[:half])
    store = JournaledStore(path)
    store._closing = True  # the thread that moves rows ends; the tail keeps them
    store._wake.set()
    store._thread.join()
    for batch in written[half:]:
        store.append(batch)
    store._reader.close()
    store._log.close()
    one_by_one(path, [])


@pytest.mark.parametrize("write", [one_by_one, through_a_tail, killed_in_between])
def test_how_rows_came_says_nothing(
    write: Callable[[Path, list[Batch]], None], tmp_path: Path, author: Any
) -> None:
    written = batches(author)
    with SqliteStore(tmp_path / "plain.db") as store:
        for batch in written:
            store.append(batch)
        expected = store.chain_links()
    write(tmp_path / "log.db", written)
    with SqliteStore(tmp_path / "log.db", read_only=True) as store:
        assert store.chain_links() == expected


def test_rows_from_before_a_column_keep_their_digests(tmp_path: Path, author: Any) -> None:
    """Lists of attempts came with schema 13 and positions of uniforms with 14: the chain of a store
    that has none goes on."""
    path = tmp_path / "log.db"
    batches = [author.decisions(300), *(author.outcomes(20, attempts=None) for _ in range(20))]
    one_by_one(path, batches)
    with closing(sqlite3.connect(path)) as connection:
        for view in schema.VIEWS:
            connection.execute(f"DROP VIEW {view}")
        connection.execute("DROP INDEX idx_decisions_draw")
        connection.execute("ALTER TABLE decisions DROP COLUMN draw")
        connection.execute("ALTER TABLE outcomes DROP COLUMN attempts")
        connection.execute("PRAGMA user_version = 12")
        connection.commit()
    with SqliteStore(path) as store:
        store.append(author.outcomes(9, attempts=[""] * 8 + ['[{"model":"a","status":"failed"}]']))
        links, end = chain.links(store._session.connection)
    digests = by_hand(rows_of(path))
    assert len(digests) == 710
    assert [link.digest for link in links] == [digests[link.position] for link in links]
    assert end is not None
    assert (end.position, end.digest) == (709, digests[-1])


def test_what_fails_leaves_the_chain_as_it_was(tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(300, request_id=[f"a{row}" for row in range(300)]))
        before = store.chain_links()
        author.written = 300
        with pytest.raises(StoreError, match="a7"):
            store.append(author.decisions(2, request_id=["b", "a7"]))
        assert store.chain_links() == before
        author.written = 300
        store.append(author.decisions(2, request_id=["b", "c"]))
        _, head = store.chain_links()
    assert head is not None
    assert head.digest == by_hand(rows_of(path))[-1]


def test_records_are_chained_in_the_order_of_their_keys(tmp_path: Path) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        for number in range(3):
            store.put(RuleRecord(rule_id=f"r{number}", era=0, at=float(number), body="{}"))
            store.put(Alert(at=-0.0, check="c", status="s", sentence=f"{number}"))
            store.put(Control(at=1.0, name="budget", value=str(number)))
            store.freeze(f"name{number}", "value")
        anchor = store.anchor(5.0)
        assert anchor.records.keys() == RECORDS.keys() - {"eras", "gaps"}
    with closing(sqlite3.connect(path)) as connection:
        digest = blake2b(b"equipoise chainrules", digest_size=32).digest()
        for row in connection.execute("SELECT rule_id, era, at, body FROM rules ORDER BY id"):
            content = digest + b"rules" + msgspec.msgpack.encode(row)
            digest = blake2b(content, digest_size=32).digest()
    assert anchor.records["rules"] == chain.Place(3, digest.hex())


def test_the_chain_of_an_older_store_begins_behind_its_rows(
    tmp_path: Path, author: Any, as_version_6: Callable[[Path], None]
) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(300))
    as_version_6(path)
    with SqliteStore(path) as store:
        links, head = store.chain_links()
        assert [(link.kind, link.position) for link in links] == [("begins", 300)]
        store.append(author.outcomes(300))
        links, head = store.chain_links()
    assert head is not None
    assert [link.position for link in links] == [300, 512]
    assert head.digest == by_hand(rows_of(path)[300:], 300)[-1]


def test_retention_goes_on_with_the_chain_and_the_archive_leads_to_it(
    tmp_path: Path, author: Any
) -> None:
    path, old = tmp_path / "log.db", tmp_path / "old"
    with SqliteStore(path) as store:
        for batch in batches(author):
            store.append(batch)
        expected = by_hand(rows_of(path))
        store.keep_base(333, b"a state", 10.0)
        store.append(author.outcomes(7))
        store.truncation.trim(10.0, 20.0, old)
        store.append(author.outcomes(400))
        links, head = store.chain_links()
        length = store.next_seq
    assert links[0].position == 333
    assert links[0].digest == expected[333]
    archived = []
    for table in LOG_TABLES:
        for file in old.glob(f"*.{table.name}.parquet"):
            columns = pq.read_table(file).to_pydict()
            archived += [(table.name, row) for row in zip(*columns.values(), strict=True)]
    archived.sort(key=lambda pair: pair[1][0])
    assert by_hand(archived) == expected[:334], "the removed rows lead to where the chain begins"
    assert head is not None
    assert (head.position, head.digest) == (length, by_hand(archived + rows_of(path))[-1])


@pytest.mark.parametrize("mark", ["with its mark", "without"])
def test_a_log_that_lost_rows_goes_on_and_says_so(mark: str, tmp_path: Path, author: Any) -> None:
    path = tmp_path / "log.db"
    with SqliteStore(path) as store:
        store.append(author.decisions(300))
    shutil.copy(path, tmp_path / "whole.db")
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("DELETE FROM decisions WHERE number >= 290")
        connection.commit()
    known = mark == "with its mark"
    if known:
        with pytest.raises(LostRowsError, match="10 log rows are missing before row 290"):
            SqliteStore(path)
    else:
        mark_path(path).unlink()
    # Numbers that may have been given out are not given again, where anything says that they were.
    author.written = 300 if known else 290
    with SqliteStore(path, accept_loss=known) as store:
        assert [(gap.first, gap.numbers, gap.rows) for gap in store.gaps()] == (
            [(290, 10, 10)] if known else []
        )
        store.append(author.decisions(20))
        links, head = store.chain_links()
    assert head is not None
    assert head.position == 310
    assert [link.position for link in links if link.kind == BROKEN] == [290]
