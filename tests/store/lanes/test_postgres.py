from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from typing import Any

import psycopg
import pytest

from equipoise.store.address import parse_address
from equipoise.store.lanes.contract import (
    HubError,
    HubRefusedError,
    Lease,
    Parcel,
    Publication,
    Spent,
    Term,
)
from equipoise.store.lanes.postgres import PostgresHub, _Connection, look

LONG = 1e6


def published(hub: PostgresHub) -> tuple[Term, Lease]:
    term = hub.elect("authority", LONG)
    assert term is not None
    hub.publish(term, Publication(version=1, rule_id="r", era=0), {})
    return term, hub.join("d", LONG)


def parcels(first: int, last: int) -> list[Parcel]:
    return [
        Parcel(
            *(1, place, "decisions", 1, 2, b"body" * 400),
            first=2 * place,
            request_ids=(f"r{place}", ""),
        )
        for place in range(first, last)
    ]


def set_patience(hub: PostgresHub, seconds: float) -> None:
    hub._seconds = seconds
    hub._drop()


def shipped(hub: PostgresHub) -> int:
    """Places, which are there once each as a whole."""
    [status] = hub.lanes()
    assert [each.place for each in hub.decisions(1)] == list(range(status.places))
    names = [f"r{place}" for place in range(status.places + 50)]
    assert len(hub.find_requests(names)) == status.places
    assert status.spent == Spent(status.places)
    return status.places


def test_a_server_that_restarts_is_asked_again(postgres: Any) -> None:
    """Killed when all but the commit is done, and at a moment nobody chose."""
    with PostgresHub(postgres.url(schema="x"), seconds=30.0) as hub:
        _, lease = published(hub)
        insert, killed = hub.insert, []

        def insert_and_kill(table: str, *rest: Any) -> None:
            insert(table, *rest)
            if table == "lane_requests" and not killed:
                killed.append(table)
                postgres.kill()
                postgres.start()

        hub.insert = insert_and_kill  # type: ignore[method-assign]
        hub.ship(lease, parcels(0, 3), adopted=1, spent=Spent(3))
        assert killed == ["lane_requests"]
        assert shipped(hub) == 3
        first, last = 3, 0

        def kill_and_start() -> None:
            time.sleep(0.03)
            postgres.kill()
            postgres.start()

        thread = threading.Thread(target=kill_and_start)
        thread.start()
        while thread.is_alive() or last < first + 20:
            last = last + 1 if last else first + 1
            hub.ship(lease, parcels(last - 1, last), adopted=1, spent=Spent(last))
        thread.join()
        assert shipped(hub) == last
        assert hub.keep(Term(1, LONG)) == Term(1, LONG)


def test_nothing_is_done_twice_where_an_answer_was_lost(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes just after the commit of each transaction."""
    with PostgresHub(postgres_url, seconds=30.0) as hub:
        execute, commits = _Connection.execute, Counter[str]()

        def execute_and_lose(self: Any, query: Any, *rest: Any, **given: Any) -> Any:
            result = execute(self, query, *rest, **given)
            commits[str(query)] += 1
            if query == "COMMIT" and commits["COMMIT"] % 2:
                self.close()
                raise psycopg.OperationalError("the connection is lost")
            return result

        monkeypatch.setattr(_Connection, "execute", execute_and_lose)
        term, lease = published(hub)
        assert (term.token, lease.lane, lease.token) == (1, 1, 2)
        assert hub.keep(term) == term
        hub.ship(lease, parcels(0, 3), adopted=1, spent=Spent(3))
        assert shipped(hub) == 3
        lapsed = hub.join("e", 0.0)
        hub.end_lapsed(term, 0.0)
        hub.ship_late(lapsed, [], Spent(), True)
        hub.leave(lease, Spent(3))
        hub.forget(term, [(1, 0)])
        hub.forget_publications(term, 1)
        hub.forget_lanes(term, [2])
        hub.resign(term)
        assert commits["COMMIT"] == 2 * 13
        monkeypatch.undo()
        assert [each.lane for each in hub.lanes()] == [1]
        assert hub.elect("b", LONG) == Term(4, LONG)


def test_patience_with_a_server_that_is_gone_ends(postgres: Any) -> None:
    with PostgresHub(postgres.url(schema="x")) as hub:
        term, lease = published(hub)
        set_patience(hub, 0.3)
        postgres.kill()
        for call in (
            lambda: hub.keep(term),
            lambda: hub.ship(lease, parcels(0, 1), adopted=1, spent=Spent(1)),
            hub.newest,
        ):
            with pytest.raises(HubError, match=r"hub postgresql://.*schema=x: "):
                call()
        with pytest.raises(HubError, match="connection"):
            PostgresHub(postgres.url(schema="x"), seconds=0.4)
        postgres.start()
        set_patience(hub, 30.0)
        assert hub.keep(term) == term
        hub.ship(lease, parcels(0, 1), adopted=1, spent=Spent(1))
        assert shipped(hub) == 1


@pytest.mark.parametrize("inside", [False, True])
def test_patience_with_a_server_that_does_not_answer_ends(postgres_url: str, inside: bool) -> None:
    with PostgresHub(postgres_url) as hub:
        term, _ = published(hub)
        hub._seconds = 0.3  # of this side only
        backend = hub._connection.info.backend_pid

        def stop() -> None:
            os.kill(backend, signal.SIGSTOP)
            hub.rows("SELECT 1")

        try:
            with pytest.raises(HubError, match="the server does not answer"):
                hub.transaction(stop, lasting=False) if inside else hub.read(stop)
        finally:
            os.kill(backend, signal.SIGCONT)
        hub._seconds = 30.0
        assert hub.keep(term) == term
        assert hub._connection.info.backend_pid != backend


def test_patience_with_a_row_that_another_holds_ends(postgres_url: str) -> None:
    with PostgresHub(postgres_url) as other, PostgresHub(postgres_url) as hub:
        term, lease = published(hub)
        set_patience(hub, 0.3)

        def hold() -> None:
            other.rows("SELECT * FROM lane_state FOR UPDATE")
            with pytest.raises(HubError, match=r"statement timeout|does not answer"):
                hub.keep(term)
            set_patience(hub, 30.0)
            # Those who ship never wait for an authority.
            hub.ship(lease, parcels(0, 1), adopted=1, spent=Spent(1))

        other.transaction(hold, lasting=False)
        assert hub.keep(term) == term


def test_a_stalled_authority_holds_nobody_up(postgres_url: str) -> None:
    """It stops in the middle of a transaction, and wakes up to find that it ended."""
    with PostgresHub(postgres_url) as stalled, PostgresHub(postgres_url) as other:
        assert stalled.elect("a", 0.0) is not None
        set_patience(stalled, 0.3)
        elected: list[Term | None] = []

        def stall() -> None:
            stalled.rows("SELECT * FROM lane_state FOR UPDATE")
            elected.append(other.elect("b", LONG))
            stalled.rows("UPDATE lane_state SET until = 1e12")

        with pytest.raises(HubError):
            stalled.transaction(stall, lasting=False)
        assert elected[0] is not None
        assert other.keep(elected[0]) == elected[0]


def test_a_hub_needs_no_more_than_its_tables(postgres_url: str) -> None:
    """A user who may make nothing opens a hub that is there; what a database sets by default
    changes nothing."""
    with PostgresHub(postgres_url) as hub:
        schema, (term, _) = hub.schema, published(hub)
        for order in (
            f"CREATE USER {schema}_user",
            f"GRANT USAGE ON SCHEMA {schema} TO {schema}_user",
            f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {schema}_user",
            f"ALTER USER {schema}_user SET default_transaction_isolation = 'serializable'",
            f"ALTER USER {schema}_user SET default_transaction_read_only = on",
            f"ALTER USER {schema}_user SET synchronous_commit = off",
        ):
            hub.rows(order)
    url = postgres_url.replace("postgres@", f"{schema}_user@")
    with PostgresHub(url) as hub:
        assert hub.keep(term) == term
        lease = hub.join("d", LONG)
        hub.ship(lease, [], adopted=1, spent=Spent())
        assert hub.rows("SHOW synchronous_commit") == [("on",)]
    with pytest.raises(HubError, match="permission denied"):
        PostgresHub(url + "_2")


def test_a_schema_has_one_hub(new_postgres_url: Any) -> None:
    with PostgresHub(new_postgres_url()) as hub, PostgresHub(new_postgres_url()) as other:
        published(hub)
        assert other.newest() is None
        hub.rows("UPDATE lane_state SET format = 2")
        with pytest.raises(HubError, match=f"schema={hub.schema}: format 2, this equipoise knows"):
            PostgresHub(_url(hub))


def _url(hub: PostgresHub) -> str:
    return f"{hub._url}&schema={hub.schema}"


def test_errors_name_the_place_and_not_the_password() -> None:
    with pytest.raises(
        HubError, match=r"hub postgresql://someone:\*\*\*@127\.0\.0\.1:9/db\?schema=equipoise: "
    ) as caught:
        PostgresHub("postgresql://someone:secret@127.0.0.1:9/db", seconds=1.0)
    assert "secret" not in str(caught.value)
    with pytest.raises(HubError, match="schema is 'Not One'"):
        PostgresHub("postgresql://someone:secret@127.0.0.1:9/db?schema=Not%20One")


def test_a_closed_hub_says_so(postgres_url: str) -> None:
    hub = PostgresHub(postgres_url)
    hub.close()
    hub.close()
    with pytest.raises(HubError, match="it is closed"):
        hub.newest()


def test_the_clock_is_the_servers(postgres_url: str) -> None:
    with PostgresHub(postgres_url) as hub, psycopg.connect(hub._url) as connection:
        query = "SELECT extract(epoch FROM clock_timestamp())::float8"
        before = connection.execute(query).fetchone()
        now = hub.now()
        after = connection.execute(query).fetchone()
        assert before is not None
        assert after is not None
        assert before[0] <= now <= after[0]


def test_what_a_role_may_do_is_found_and_nothing_is_made(postgres_url: str) -> None:
    address = parse_address(postgres_url)
    seen = look(postgres_url)
    assert (seen.creates, seen.log, seen.hub, seen.refusal(decider=False)) == (
        *(True, False, False),
        None,
    )
    assert not look(postgres_url).hub
    with PostgresHub(postgres_url):
        assert look(postgres_url).hub
    role = f"only_{address.schema}"
    with psycopg.connect(address.url, autocommit=True) as admin:
        admin.execute(f"CREATE ROLE {role} LOGIN")
        try:
            poor = postgres_url.replace("//postgres@", f"//{role}@")
            assert "may not use schema" in str(look(poor).refusal(decider=True))
            admin.execute(f"GRANT USAGE ON SCHEMA {address.schema} TO {role}")
            tables = f"ALL TABLES IN SCHEMA {address.schema}"
            admin.execute(f"GRANT SELECT, UPDATE, DELETE ON {tables} TO {role}")
            assert "lacks INSERT on" in str(look(poor).refusal(decider=True))
            admin.execute(f"GRANT INSERT ON {tables} TO {role}")
            assert look(poor).refusal(decider=True) is None
            assert "may not create tables" in str(look(poor).refusal(decider=False))
        finally:
            admin.execute(f"DROP OWNED BY {role}")
            admin.execute(f"DROP ROLE {role}")


def test_a_login_that_is_refused_is_told_apart_from_a_server_that_is_away(
    postgres_url: str,
) -> None:
    for wrong in (
        postgres_url.replace("//postgres@", "//nobody:hidden@"),
        postgres_url.replace("/tests_", "/nothing_"),
    ):
        for ask in (look, PostgresHub):
            with pytest.raises(HubRefusedError, match="does not exist") as refused:
                ask(wrong)
            assert "hidden" not in str(refused.value)
    for away in ("postgresql://x@127.0.0.1:1/y", "postgresql://x@/y?host=/nowhere"):
        with pytest.raises(HubError) as error:
            look(away)
        assert not isinstance(error.value, HubRefusedError)
