"""A store that is full, slow or not writable: requests are passed through, nothing is lost."""

from __future__ import annotations

import errno
import io
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from killing import state_is_the_fold
from running import running, start, until, write_config

from equipoise.agent.config.file import load_file
from equipoise.agent.errors import AgentError
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service import control as breaker_module
from equipoise.agent.service.api.problems import refusal_of
from equipoise.agent.service.control import Clock
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.telemetry import Log
from equipoise.store.errors import SlowStoreError
from equipoise.store.journal import JournaledStore
from equipoise.store.sqlite import SqliteStore


def no_file_beyond(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_a_full_disk_passes_requests_through_and_loses_nothing(tmp_path: Path):
    """Files that may not grow are what a full disk is to a process, without a disk to fill."""
    with running(tmp_path) as daemon:
        assert daemon.decide("first")["decision_id"] == "d0"
    limits = "[service.limits]\nwaiting_rows = 300"
    daemon = start(tmp_path, limits, before=no_file_beyond(400_000))
    acknowledged, index, passed = ["first"], 0, None
    while passed is None:
        assert index < 20_000, "the disk never filled"
        decided = daemon.decide(f"full-{index}", routed="small")
        if decided["decision_id"] is None:
            passed = decided
        else:
            acknowledged.append(decided["request_id"])
        index += 1
    assert passed["reason"] in ("store-full", "store-failed")  # as SQLite takes it
    assert (passed["model"], passed["randomized"]) == ("small", False)
    readiness = daemon.ask("GET", "/readyz")
    mode = readiness.json["mode"]
    assert (mode["activity"], mode["randomizing"]) == ("passing-through", False)
    assert readiness.status == 503
    assert "store" in readiness.json["problems"][0]
    outcome = daemon.ask("POST", "/v1/outcomes", {"request_id": "first", "reward": 1.0})
    if outcome.status != 200:  # a small row may still have found room
        assert outcome.status == 503
        assert int(outcome.headers["retry-after"]) >= 1
    assert daemon.decide("full-0", routed="small")["decision_id"] in ("d1", None)
    assert b"equipoise_store_ok 0.0" in daemon.ask("GET", "/metrics").body
    assert daemon.ask("GET", "/healthz").status == 200
    assert daemon.stop() == 0
    with running(tmp_path) as daemon:
        until(lambda: daemon.ask("GET", "/readyz").status == 200)
        for number, name in enumerate(acknowledged):
            routed = "small" if number else "large"
            assert daemon.decide(name, routed)["decision_id"] == f"d{number}"
        assert daemon.decide("after")["decision_id"] == f"d{len(acknowledged)}"
    assert state_is_the_fold(daemon.store)


@pytest.fixture
def daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Daemon]:
    """A daemon in this process, whose store can be made to fail; no time is waited for."""
    monkeypatch.setattr(breaker_module, "RETRY_SECONDS", 0.0)
    file = load_file(write_config(tmp_path), {"store": str(tmp_path / "log.db")})
    store = JournaledStore(file.service.store, waiting_rows=20)
    key = write_key(store.path)
    made = Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))
    yield made
    monkeypatch.undo()
    store.close()


def decide(daemon: Daemon, name: str) -> Any:
    body = {"request_id": name, "routed": "small", "features": {"words": 1.0}}
    return json.loads(daemon.hot.decide(json.dumps(body).encode()))


def failing(number: int) -> Callable[[int, int, int], None]:
    def allocate(file: int, start: int, size: int) -> None:
        raise OSError(number, os.strerror(number))

    return allocate


def no_room(
    patch: pytest.MonkeyPatch, daemon: Daemon, allocate: Callable[[int, int, int], None]
) -> None:
    """The tail's file is used up, and making another one fails."""
    patch.setattr(daemon.store._tail, "_room", 0)
    patch.setattr("equipoise.store.format.frames.os.posix_fallocate", allocate)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.ENOSPC, "store-full"),
        (errno.EROFS, "store-read-only"),
        (errno.EIO, "store-failed"),
    ],
)
def test_the_reason_says_what_is_wrong(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
):
    assert decide(daemon, "before")["decision_id"] == "d0"
    with monkeypatch.context() as patch:
        no_room(patch, daemon, failing(number))
        passed = decide(daemon, "during")
        assert (passed["decision_id"], passed["model"], passed["reason"]) == (None, "small", reason)
        with pytest.raises(ValueError, match="tail") as raised:
            daemon.hot.outcomes(b'{"request_id":"before","reward":1}')
        assert refusal_of(raised.value).document.status == 503
        assert not daemon.readiness().ready
    assert decide(daemon, "during")["decision_id"] == "d1"
    assert daemon.readiness().ready
    assert json.loads(daemon.hot.outcomes(b'{"request_id":"before","reward":1}'))["accepted"] == 1


def test_a_store_that_works_again_is_noticed_without_a_request(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    """A daemon that is not ready may be sent none."""
    decide(daemon, "before")
    with monkeypatch.context() as patch:
        no_room(patch, daemon, failing(errno.ENOSPC))
        assert decide(daemon, "during")["reason"] == "store-full"
        daemon.poll_store()
        assert not daemon.readiness().ready
    assert not daemon.readiness().ready
    daemon.poll_store()
    assert daemon.readiness().ready
    assert decide(daemon, "after")["decision_id"] == "d1"


def test_after_a_failure_the_store_is_left_alone_for_a_while(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    """A store that is slow to refuse must not make every request slow."""
    monkeypatch.setattr(breaker_module, "RETRY_SECONDS", 60.0)
    tried = []

    def allocate(file: int, start: int, size: int) -> None:
        tried.append(file)
        raise OSError(errno.EIO, "no")

    with monkeypatch.context() as patch:
        no_room(patch, daemon, allocate)
        for index in range(5):
            assert decide(daemon, f"r{index}")["reason"] == "store-failed"
    assert len(tried) == 1


def test_sqlite_that_falls_behind_is_waited_for_in_memory_up_to_a_limit(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    together, stuck = SqliteStore.append_together, [True]

    def append(self: SqliteStore, segments: Any) -> None:
        if stuck[0]:
            raise SlowStoreError("another program has locked the database")
        together(self, segments)

    monkeypatch.setattr(SqliteStore, "append_together", append)
    made = [decide(daemon, f"r{index}") for index in range(10)]
    assert [one["decision_id"] for one in made] == [f"d{index}" for index in range(10)]
    # Before SQLite has any of it: the same decision again, its outcome, its repeat, a conflict.
    assert decide(daemon, "r3") == made[3]
    outcome = b'{"request_id":"r3","reward":1,"outputs":{"seconds":2}}'
    assert json.loads(daemon.hot.outcomes(outcome))["accepted"] == 1
    assert json.loads(daemon.hot.outcomes(outcome))["duplicates"] == 1
    with pytest.raises(ValueError, match="part is accepted once"):
        daemon.hot.outcomes(b'{"request_id":"r3","reward":0}')
    reasons = [decide(daemon, f"more{index}")["reason"] for index in range(15)]
    assert reasons[8:] == [None] + ["store-slow"] * 6
    assert not daemon.readiness().ready
    stuck[0] = False
    assert daemon.store.settle(seconds=10)
    assert decide(daemon, "again")["reason"] is None
    assert daemon.readiness().ready


def test_setting_the_clock_back_does_not_turn_time_back(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    before = clock()
    monkeypatch.setattr(time, "time", lambda: before - 86_400)
    assert before <= clock() < before + 60
    monkeypatch.setattr(time, "time", lambda: before + 86_400)
    assert clock() < before + 60


def test_requests_whose_clocks_disagree_a_little_are_logged_as_they_come(daemon: Daemon):
    """More than 300 s from the agent's clock is refused: it would wait for ever, or not at all."""
    now = daemon.clock()
    for index, at in enumerate([now + 250.0, now - 250.0, now]):
        body = {"request_id": f"t{index}", "routed": "small", "features": [0.1], "at": at}
        made = json.loads(daemon.hot.decide(json.dumps(body).encode()))
        assert made["decision_id"] == f"d{index}"
        stored = daemon.store.decision(index)
        assert stored is not None
        assert stored.at[0] == at
    for at in (2e9, 1e9, 0.0):
        body = {"request_id": "far", "routed": "small", "features": [0.1], "at": at}
        with pytest.raises(AgentError, match="the agent's clock, at most 300 s"):
            daemon.hot.decide(json.dumps(body).encode())
    assert daemon.store.decisions == 3
