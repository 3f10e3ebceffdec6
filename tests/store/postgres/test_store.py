"""What a store in PostgreSQL does beyond the contract: one writer, lost connections, one chain."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import psycopg
import pytest
from postgres import PostgresServer

from equipoise.store.address import parse_address
from equipoise.store.errors import (
    ContradictionError,
    DisplacedStoreError,
    LostConnectionError,
    LostRowsError,
    MissingStoreError,
    NotAStoreError,
    ReadOnlyStoreError,
    SchemaVersionError,
    StoreError,
    StoreInUseError,
    TornAppendError,
    WriteError,
)
from equipoise.store.format.sql_rows import OUTCOMES
from equipoise.store.postgres import PostgresStore, connection, schema
from equipoise.store.records import Alert, Control, Era, RuleRecord
from equipoise.store.sqlite import SqliteStore

ERA = Era(era=0, opened_at=1.0, reason="start", models=["a", "b"], key_hash="k", schema_hash="s")


def run(url: str, *statements: str) -> list[Any]:
    """Statements of somebody else, in the schema of the URL."""
    address = parse_address(url)
    with psycopg.connect(address.url, autocommit=True) as other:
        other.execute(f"SET search_path TO {address.schema}")
        rows: list[Any] = []
        for statement in statements:
            cursor = other.execute(statement)
            rows = cursor.fetchall() if cursor.description else []
        return rows


def end_connection(store: PostgresStore) -> None:
    """As a server or a network does it: the client finds out when it asks next."""
    pid = store._session._connection.raw.info.backend_pid
    run(store.where, f"SELECT pg_terminate_backend({pid}, 5000)")


def fill(store: Any, author: Any) -> None:
    store.freeze("config", "{}")
    store.put(ERA)
    store.put(RuleRecord(rule_id="rule-1", era=0, at=2.0, body="body"))
    for rows in (3, 1, 40):
        store.append(author.decisions(rows, mask=True))
        store.append(author.outcomes(rows))
        store.append(author.observations(rows))
    store.put(Alert(at=3.0, check="drift", status="alarm", sentence="x" * 5000))
    store.append(author.simulations(12))
    store.append(author.expiries(2))
    store.put(Control(at=4.0, name="budget", value="9"))
    store.checkpoint(store.next_seq, b"state", 5.0)


def test_the_same_rows_have_the_same_digests_and_views_as_in_sqlite(
    postgres_url: str, tmp_path: Path, new_author: Any, log_of: Any
) -> None:
    with PostgresStore(postgres_url) as ours, SqliteStore(tmp_path / "s.db") as theirs:
        fill(ours, new_author(7))
        fill(theirs, new_author(7))
        assert log_of(ours) == log_of(theirs)
        assert ours.anchor(9.0) == theirs.anchor(9.0)
        assert ours.anchor(9.0).log is not None
        assert ours.chain_links()[0] == theirs.chain_links()[0]
        for view, order in (
            ("decision_log", "decision_id"),
            ("exp_summary", "era, model"),
            ("attempts", "number, attempt"),
            ("outcomes_in_time", "seq"),
        ):
            columns = ", ".join(OUTCOMES.names) if view == "outcomes_in_time" else "*"
            query = f"SELECT {columns} FROM {view} ORDER BY {order}"
            here, there = ours._session.query(query), theirs._session.query(query)
            if view == "decision_log":  # where they group what was measured, they print it apart
                here = [(*row[:4], *row[5:-2], row[-1]) for row in here]
                there = [(*row[:4], *row[5:-2], row[-1]) for row in there]
            assert len(here) == len(there) > 0
            for one, other in zip(here, there, strict=True):
                assert one == pytest.approx(other, nan_ok=True), view


def test_times_and_counts_by_day_read_as_in_sqlite(
    postgres_url: str, tmp_path: Path, new_author: Any
) -> None:
    with PostgresStore(postgres_url) as ours, SqliteStore(tmp_path / "s.db") as theirs:
        for store in (ours, theirs):
            author = new_author(3)
            at = np.array([0.0, 86399.5, 86400.25, 1.7e9])
            store.put(ERA)
            store.append(author.decisions(4, at=at))
            store.append(author.outcomes(4, at=at, number=np.array([0, 0, 1, 2])))
        for query in ("SELECT time FROM decision_log", "SELECT * FROM daily_counts"):
            assert ours._session.query(query) == theirs._session.query(query)


def test_a_second_writer_is_refused_in_one_line_and_readers_are_not(
    postgres_url: str, author: Any, log_of: Any
) -> None:
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(2))
        with pytest.raises(StoreInUseError, match=r"is open for writing already .*process") as told:
            PostgresStore(postgres_url)
        assert "\n" not in str(told.value)
        with PostgresStore(postgres_url, read_only=True) as reader:
            assert log_of(reader) == log_of(store)
            store.append(author.decisions(1))
            assert reader.next_seq == 3
            with pytest.raises(ReadOnlyStoreError):
                reader.append(author.decisions(1))
    with PostgresStore(postgres_url) as again:
        assert again.decisions == 3


def test_two_experiments_of_one_database_know_nothing_of_each_other(
    new_postgres_url: Callable[[], str], new_author: Any
) -> None:
    with PostgresStore(new_postgres_url()) as one, PostgresStore(new_postgres_url()) as other:
        one.append(new_author().decisions(3))
        assert other.next_seq == 0


@pytest.mark.parametrize("rows", [1, 30])
def test_an_append_whose_connection_was_lost_before_it_is_made_once(
    postgres_url: str, author: Any, rows: int
) -> None:
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(rows))
        end_connection(store)
        assert store.append(author.decisions(rows)) == rows
        end_connection(store)
        assert store.find_requests(["nobody"]) == {}
        assert store.trouble is None
    with PostgresStore(postgres_url, read_only=True) as reader:
        assert reader.next_seq == reader.decisions == 2 * rows


def test_lost_in_the_middle_of_an_append_it_is_made_again_from_the_beginning(
    postgres_url: str, author: Any, monkeypatch: Any
) -> None:
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(1))
        real, times = store._session._raise_serial, []

        def lost(*given: Any) -> None:
            if not times:
                times.append(1)
                end_connection(store)
            real(*given)

        monkeypatch.setattr(store._session, "_raise_serial", lost)
        store.append(author.decisions(20))
        assert times
        assert store.decisions == 21
    with PostgresStore(postgres_url, read_only=True) as reader:
        assert reader.decisions == 21
        assert reader.chain_links()[1] is not None
        assert reader.chain_links()[1].position == 21


class Commit:
    """Takes the answer of the next COMMIT away, after or before the server has done it."""

    def __init__(self, store: PostgresStore, monkeypatch: Any, done: bool) -> None:
        self._armed, self._real = True, connection.PostgresConnection.execute
        commit = self

        def execute(self: Any, sql: str, values: Any = (), /) -> Any:
            if sql != "COMMIT" or not commit._armed:
                return commit._real(self, sql, values)
            commit._armed = False
            if done:
                commit._real(self, sql)
            self.raw.close()
            raise psycopg.OperationalError("consuming input failed: connection reset")

        monkeypatch.setattr(connection.PostgresConnection, "execute", execute)


@pytest.mark.parametrize("done", [True, False])
def test_a_commit_without_an_answer_is_looked_up_and_never_done_twice(
    postgres_url: str, author: Any, log_of: Any, monkeypatch: Any, done: bool
) -> None:
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(2))
        Commit(store, monkeypatch, done)
        assert store.append(author.outcomes(3)) == 2
        assert store.next_seq == 5
        Commit(store, monkeypatch, done)
        if done:
            store.freeze("name", "value")
        else:
            with pytest.raises(LostConnectionError, match="before the COMMIT"):
                store.freeze("name", "value")
            store.freeze("name", "value")
        store.append(author.decisions(1))
        with PostgresStore(postgres_url, read_only=True) as reader:
            assert len(log_of(reader)) == reader.next_seq == 6
            assert reader.settings() == {"name": "value"}


@pytest.mark.parametrize("done", [True, False])
def test_while_nobody_can_say_what_became_of_an_append_the_store_neither_writes_nor_forgets(
    postgres_url: str, author: Any, monkeypatch: Any, done: bool
) -> None:
    store = PostgresStore(postgres_url)
    store.append(author.decisions(1))
    Commit(store, monkeypatch, done)
    with monkeypatch.context() as away:

        def unreachable(*given: Any) -> Any:
            raise LostConnectionError("the server does not answer")

        away.setattr(connection, "connect", unreachable)
        away.setattr(connection, "SETTLE_SECONDS", 0.0)
        batch = author.outcomes(2)
        with pytest.raises(LostConnectionError, match="does not come back"):
            store.append(batch)
        assert store.trouble is not None
        with pytest.raises(LostConnectionError):
            store.find_requests(["x"])
    store._session._next_try = 0.0
    if done:
        with pytest.raises(WriteError, match="is in the log: start anew"):
            store.find_requests(["x"])
        with pytest.raises(TornAppendError):
            store.append(batch)
        with pytest.raises(TornAppendError):
            store.probe()
    else:
        store.probe()
        assert store.append(batch) == 1
    store.close()
    with PostgresStore(postgres_url) as again:
        assert again.next_seq == 3


def test_a_server_that_hangs_is_not_waited_for_without_end(
    postgres_url: str, author: Any, monkeypatch: Any
) -> None:
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(1))
        pid = store._session._connection.raw.info.backend_pid
        os.kill(pid, signal.SIGSTOP)
        try:
            with monkeypatch.context() as hasty:
                hasty.setattr(connection, "ANSWER_SECONDS", 0.3)
                with pytest.raises(LostConnectionError):
                    store.append(author.outcomes(3))
        finally:
            os.kill(pid, signal.SIGCONT)
        store._session._next_try = 0.0
        assert store.append(author.outcomes(4)) == 1
        assert store.next_seq == 5


def test_a_writer_that_another_one_followed_may_not_go_on(postgres_url: str, author: Any) -> None:
    store = PostgresStore(postgres_url)
    store.append(author.decisions(1))
    end_connection(store)
    with PostgresStore(postgres_url) as other:
        # While the lock is another's: not now, maybe later.
        with pytest.raises(LostConnectionError, match="another connection holds"):
            store.append(author.decisions(1))
        author.written -= 1
        other.append(author.observations(1))
    store._session._next_try = 0.0
    with pytest.raises(DisplacedStoreError, match="another writer took over"):
        store.probe()
    with pytest.raises(DisplacedStoreError, match="another writer took over"):
        store.append(author.decisions(1))
    assert store.check_files() is store.displaced is not None
    store.close()


def test_a_database_that_went_back_in_time_is_not_written_on(
    postgres_url: str, author: Any
) -> None:
    store = PostgresStore(postgres_url)
    store.append(author.decisions(1))
    run(postgres_url, "UPDATE writer SET serial = serial - 1")
    with pytest.raises(DisplacedStoreError, match="put back to an earlier state"):
        store.append(author.decisions(1))
    store.close()
    with PostgresStore(postgres_url) as again:
        assert again.decisions == 1


def test_killed_and_started_again_the_server_has_everything_that_was_acknowledged(
    postgres: PostgresServer, author: Any, log_of: Any
) -> None:
    url = postgres.url()
    with PostgresStore(url) as store:
        for rows in (1, 30, 1):
            store.append(author.decisions(rows))
        postgres.kill()
        with pytest.raises(WriteError):
            store.append(author.outcomes(3))
        postgres.start()
        time.sleep(connection.RETRY_SECONDS)
        assert store.append(author.outcomes(4)) == 32
        known = log_of(store)
    with PostgresStore(url) as again:
        assert again.next_seq == 36
        assert log_of(again) == known


def test_rows_that_went_from_the_end_are_missed_and_noted(postgres_url: str, author: Any) -> None:
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(5))
    run(postgres_url, "DELETE FROM decisions WHERE seq >= 3")
    with pytest.raises(LostRowsError, match="2 rows that were acknowledged are missing"):
        PostgresStore(postgres_url)
    with PostgresStore(postgres_url, accept_loss=True) as store:
        assert [(gap.first, gap.numbers, gap.rows) for gap in store.gaps()] == [(3, 2, 2)]
        assert store.leftovers.gaps == store.gaps()
        assert (store.next_seq, store.decisions) == (3, 5)
        author.written = 5
        store.append(author.decisions(1))
    with PostgresStore(postgres_url) as store:
        assert store.decisions == 6


def test_no_request_and_no_draw_twice_in_any_partition(
    postgres_url: str, author: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(schema, "PARTITION_ROWS", 4)
    with PostgresStore(postgres_url) as store:
        draws = (1 << 40) + np.arange(3)
        store.append(author.decisions(3, request_id=["a", "b", "c"], draw=draws))
        store.append(author.decisions(9))
        for again in ({"request_id": ["a"]}, {"draw": draws[1:2]}):
            with pytest.raises(ContradictionError):
                store.append(author.decisions(1, **again))
            author.written -= 1
        assert store.find_draws(draws.tolist()) == dict(zip(draws.tolist(), range(3), strict=True))
        assert store.lane_ends() == {1: 3}
        assert store.append(author.decisions(1, request_id=["d"])) == 12


def test_trimmed_a_log_loses_whole_partitions_and_the_rest_of_one(
    postgres_url: str, author: Any, log_of: Any, monkeypatch: Any, tmp_path: Path
) -> None:
    monkeypatch.setattr(schema, "PARTITION_ROWS", 8)
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(20))
        store.keep_base(18, b"state", 10.0)
        store.append(author.outcomes(9))
        kept = log_of(store, 18)
        trimmed = store.trim(11.0, 12.0, tmp_path)
        assert trimmed is not None
        assert (trimmed.seq, trimmed.rows) == (18, 18)
        assert [file.suffix for file in trimmed.files] == [".parquet"]
        assert log_of(store) == kept
        assert store._session.ask(schema.partitions_before, 1 << 40) == [2, 3]
        assert run(postgres_url, "SELECT count(*) FROM decisions") == [(2,)]
        store.append(author.decisions(1))
        assert store.decisions == 21
    with PostgresStore(postgres_url) as again:
        assert again.next_seq == 30
        base = again.base_snapshot()
        assert base is not None
        assert (base.seq, bytes(base.state), base.digest) == (18, b"state", trimmed.digest)


def test_a_partition_that_somebody_reads_goes_later(
    postgres_url: str, author: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(schema, "PARTITION_ROWS", 8)
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(20))
        with psycopg.connect(parse_address(postgres_url).url) as other:
            other.execute(f"SELECT * FROM {parse_address(postgres_url).schema}.decisions")
            assert store._session.drop_partitions(16) == 0
        assert store._session.drop_partitions(16) == 16
        assert run(postgres_url, "SELECT min(seq) FROM decisions") == [(16,)]


def test_what_is_no_store_is_refused_and_left_alone(postgres_url: str) -> None:
    name = parse_address(postgres_url).schema
    with pytest.raises(MissingStoreError, match="holds nothing"):
        PostgresStore(postgres_url, read_only=True)
    run(postgres_url, f"CREATE SCHEMA {name}", f"CREATE TABLE {name}.invoices (id int)")
    with pytest.raises(NotAStoreError, match="no equipoise store"):
        PostgresStore(postgres_url)
    assert run(postgres_url, "SELECT count(*) FROM invoices") == [(0,)]


def test_the_tables_of_deciders_may_be_there_first(postgres_url: str, author: Any) -> None:
    name = parse_address(postgres_url).schema
    run(postgres_url, f"CREATE SCHEMA {name}", f"CREATE TABLE {name}.lane_state (one int)")
    with PostgresStore(postgres_url) as store:
        store.append(author.decisions(1))


def test_a_newer_schema_is_refused(postgres_url: str) -> None:
    PostgresStore(postgres_url).close()
    run(postgres_url, "UPDATE facts SET value = '99' WHERE name = 'schema_version'")
    for read_only in (True, False):
        with pytest.raises(SchemaVersionError, match="version 99"):
            PostgresStore(postgres_url, read_only)


def test_an_older_schema_is_upgraded_by_a_writer_only(postgres_url: str, monkeypatch: Any) -> None:
    PostgresStore(postgres_url).close()
    newer = schema.newest() + 1

    def step(connection: Any) -> None:
        connection.execute("ALTER TABLE decisions ADD COLUMN later bigint")

    monkeypatch.setattr(schema, "MIGRATIONS", ((newer, step),))
    with pytest.raises(SchemaVersionError, match="open it once for writing"):
        PostgresStore(postgres_url, read_only=True)
    PostgresStore(postgres_url).close()
    PostgresStore(postgres_url, read_only=True).close()
    assert run(postgres_url, "SELECT later FROM decisions") == []


def test_a_server_that_is_not_there_is_named_without_the_password() -> None:
    url = "postgresql://writer:secret@127.0.0.1:1/db?schema=chat"
    with pytest.raises(StoreError, match=r"postgresql://writer:\*\*\*@127\.0\.0\.1:1/db") as told:
        PostgresStore(url)
    assert "secret" not in str(told.value)
    assert "\n" not in str(told.value)


def test_a_reader_needs_to_read_and_a_writer_no_more_than_its_schema(
    postgres_database: tuple[PostgresServer, str], postgres_url: str, author: Any
) -> None:
    address = parse_address(postgres_url)
    name = address.schema
    run(
        postgres_url,
        f"CREATE ROLE w_{name} LOGIN",
        f"CREATE ROLE r_{name} LOGIN",
        f"CREATE SCHEMA {name} AUTHORIZATION w_{name}",
    )
    writer, reader = (postgres_url.replace("postgres@", f"{role}_{name}@") for role in "wr")
    with PostgresStore(writer) as store:
        store.append(author.decisions(2))
    run(
        postgres_url,
        f"GRANT USAGE ON SCHEMA {name} TO r_{name}",
        f"GRANT SELECT ON ALL TABLES IN SCHEMA {name} TO r_{name}",
    )
    with PostgresStore(reader, read_only=True) as store:
        assert store.next_seq == 2
    with pytest.raises(StoreError, match="this user may not do that"):
        PostgresStore(reader)
