"""A daemon, and a program, whose store is a PostgreSQL database."""

from __future__ import annotations

import asyncio
import io
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from running import CONFIG, write_config

from equipoise.agent.config.file import load_file
from equipoise.agent.experiment import Experiment
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import open_key
from equipoise.agent.service import control as breaker_module
from equipoise.agent.service.daemon import BROKEN, Daemon
from equipoise.agent.service.telemetry import Log
from equipoise.store.address import parse_address
from equipoise.store.errors import LostConnectionError
from equipoise.store.opening import ServedStore, open_served
from equipoise.store.postgres import PostgresStore, connection


class Daemons:
    """One after the other over the same database, in this process."""

    def __init__(self, url: str, folder: Path) -> None:
        overrides = {"store": url, "key": str(folder / "chat.key")}
        self.file = load_file(write_config(folder), overrides)
        self.log = io.StringIO()
        self.stores: list[ServedStore] = []

    def start(self) -> Daemon:
        file = self.file
        store = open_served(file.service.store, file.service.durability)
        self.stores.append(store)
        key = open_key(store, file.service.key)
        return Daemon(file.experiment, file.service, store, key, Log("info", self.log))


@pytest.fixture
def daemons(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Daemons]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(breaker_module, "RETRY_SECONDS", 0.0)
    made = Daemons(postgres_url, tmp_path)
    yield made
    monkeypatch.undo()
    for store in made.stores:
        store.close()


def decide(daemon: Daemon, name: str) -> Any:
    body = {"request_id": name, "routed": "small", "features": {"words": 1.0}}
    return json.loads(daemon.hot.decide(json.dumps(body).encode()))


def reward(daemon: Daemon, name: str) -> Any:
    body = {"request_id": name, "reward": 1.0, "outputs": {"seconds": 2.0}}
    return json.loads(daemon.hot.outcomes(json.dumps(body).encode()))


def test_it_decides_estimates_and_goes_on_after_a_restart(daemons: Daemons, tmp_path: Path) -> None:
    daemon = daemons.start()
    first = [decide(daemon, f"r{number}") for number in range(40)]
    for number in range(0, 40, 2):
        assert reward(daemon, f"r{number}")["accepted"] == 1

    async def work() -> None:
        assert await daemon.analysis.refresh()
        await daemon._checkpoint()
        await daemon.analysis.close()

    asyncio.run(work())
    assert daemon.analysis.newest is not None
    assert daemon.analysis.newest.log_rows == 60
    rule = daemon.agent.rule.rule_id
    daemons.stores[0].close()

    daemon = daemons.start()
    assert daemon.agent.rule.rule_id == rule
    assert [decide(daemon, f"r{number}") for number in range(40)] == first
    assert decide(daemon, "next")["decision_id"] == "d40"
    restored = daemon.store.restore()
    assert restored is not None
    assert restored.seq == 60
    assert daemon.readiness().ready
    assert {each.name for each in tmp_path.iterdir()} == {"chat.toml", "chat.key"}
    text = stored_config.load(daemon.store)
    assert text is not None
    found = audit(daemon.store, daemons.file.experiment, (tmp_path / "chat.key").read_bytes())
    assert (found.faults, found.chained_rows) == ([], 61)


def test_while_the_server_is_away_requests_are_passed_through(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemons.start()
    store = daemons.stores[0]
    assert isinstance(store, PostgresStore)
    assert decide(daemon, "before")["decision_id"] == "d0"
    with monkeypatch.context() as away:

        def unreachable(*given: Any) -> Any:
            raise LostConnectionError("the server does not answer")

        away.setattr(connection, "connect", unreachable)
        store._session._connection.raw.close()
        passed = decide(daemon, "during")
        assert (passed["decision_id"], passed["model"]) == (None, "small")
        daemon.poll_store()
        readiness = daemon.readiness()
        assert not readiness.ready
        assert "The store refused a write" in readiness.problems[0]
    store._session._next_try = 0.0
    daemon.poll_store()
    assert daemon.readiness().ready
    assert decide(daemon, "during")["decision_id"] == "d1"
    assert daemon.agent.light.next_seq == store.next_seq == 2


def test_an_append_whose_answer_was_lost_for_long_ends_the_process(
    daemons: Daemons, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemons.start()
    store = daemons.stores[0]
    assert isinstance(store, PostgresStore)
    decide(daemon, "before")
    real = connection.PostgresConnection.execute
    with monkeypatch.context() as away:

        def execute(self: Any, sql: str, values: Any = (), /) -> Any:
            result = real(self, sql, values)
            if sql == "COMMIT":
                self.raw.close()
                raise psycopg.OperationalError("the connection is lost")
            return result

        def unreachable(*given: Any) -> Any:
            raise LostConnectionError("the server does not answer")

        away.setattr(connection.PostgresConnection, "execute", execute)
        away.setattr(connection, "connect", unreachable)
        away.setattr(connection, "SETTLE_SECONDS", 0.0)
        assert decide(daemon, "during")["decision_id"] is None
    store._session._next_try = 0.0
    assert decide(daemon, "again")["decision_id"] is None
    daemon.poll_store()
    assert daemon.exit_code == BROKEN
    store.close()
    daemon = daemons.start()
    assert decide(daemon, "during")["decision_id"] == "d1"
    assert daemon.agent.light.next_seq == 2


WRITER = """
import sys
from equipoise.agent.experiment import Experiment
with Experiment.open(sys.argv[1], "chat.toml", key="chat.key") as chat:
    for number in range(1_000_000):
        choice = chat.decide(f"r{number}", "small", {"words": 1.0})
        chat.outcome(choice, reward=0.5)
        print(choice.decision_id, choice.model, flush=True)
"""


def test_a_program_that_is_killed_has_lost_nothing_it_was_told(
    postgres_url: str, tmp_path: Path
) -> None:
    (tmp_path / "chat.toml").write_text(CONFIG)
    order = [sys.executable, "-c", WRITER, postgres_url]
    acknowledged = []
    with subprocess.Popen(order, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            acknowledged.append(line.split())
            if len(acknowledged) == 50:
                process.kill()
    assert len(acknowledged) >= 50
    key = tmp_path / "chat.key"
    with Experiment.open(postgres_url, key=key) as chat:
        for number, said in enumerate(acknowledged):
            choice = chat.decide(f"r{number}", "small", {"words": 1.0})
            assert [choice.decision_id, choice.model] == said
        store = chat.agent.store
        assert store.decisions in (len(acknowledged), len(acknowledged) + 1)
        assert store.next_seq in range(2 * len(acknowledged), 2 * len(acknowledged) + 3)
    with PostgresStore(postgres_url, read_only=True) as reader:
        text = stored_config.load(reader)
        assert text is not None
        config = load_file(tmp_path / "chat.toml", {}).experiment
        assert audit(reader, config, key.read_bytes()).clean
    address = parse_address(postgres_url)
    with psycopg.connect(address.url) as other:
        query = f"SELECT count(*) - count(DISTINCT request_id) FROM {address.schema}.decisions"
        assert other.execute(query).fetchall() == [(0,)]
