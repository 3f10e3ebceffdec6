"""The files of a running daemon taken away, replaced, cut: passed through, one line, and back."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from running import write_config

from equipoise.agent.config.file import load_file
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service import control as breaker_module
from equipoise.agent.service.app import build
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.http.access import Tokens
from equipoise.agent.service.telemetry import Log, gather_library_lines
from equipoise.store.errors import CorruptStoreError, ReadOnlyStoreError, SlowStoreError
from equipoise.store.format import mark as presence_module
from equipoise.store.journal import JournaledStore
from equipoise.store.sqlite import SqliteStore


@pytest.fixture
def said() -> io.StringIO:
    return io.StringIO()


@pytest.fixture(params=["process", "power"])
def daemon(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: io.StringIO,
) -> Iterator[Daemon]:
    """A daemon in this process over a real store; it looks when it is told to."""
    monkeypatch.setattr(breaker_module, "RETRY_SECONDS", 0.0)
    text = f'durability = "{request.param}"'
    file = load_file(write_config(tmp_path, text), {"store": str(tmp_path / "log.db")})
    store = JournaledStore(file.service.store, request.param, grouped=True)
    made = Daemon(file.experiment, file.service, store, write_key(store.path), Log("info", said))
    yield made
    monkeypatch.undo()
    store.close()


def decide(daemon: Daemon, name: str) -> Any:
    body = {"request_id": name, "routed": "small", "features": {"words": 1.0}}
    return json.loads(daemon.hot.decide(json.dumps(body).encode()))


def lines(said: io.StringIO, event: str) -> list[Any]:
    found = [json.loads(line) for line in said.getvalue().splitlines()]
    return [line for line in found if line["event"] == event]


def away(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def copied(path: Path) -> None:
    shutil.copy(path, path.with_name("elsewhere"))
    path.unlink()
    path.with_name("elsewhere").rename(path)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def linked(path: Path) -> None:
    os.link(path, path.with_name("hard"))


@pytest.mark.parametrize(
    ("name", "taken", "words"),
    [
        *[(name, away, f"{name} is gone") for name in ("log.db", "log.db-wal", "log.db.tail.1")],
        *[(name, away, f"{name} is gone") for name in ("log.db.lock", "log.db.mark")],
        *[(name, copied, f"{name} is another file") for name in ("log.db", "log.db.tail.1")],
        ("log.db", linked, "log.db has 2 names"),
        ("log.db.tail.1", emptied, "log.db.tail.1 was cut short"),
    ],
)
def test_a_file_taken_away_is_noticed(
    daemon: Daemon,
    said: io.StringIO,
    tmp_path: Path,
    name: str,
    taken: Callable[[Path], None],
    words: str,
) -> None:
    assert decide(daemon, "before")["decision_id"] == "d0"
    assert daemon.store.settle(seconds=10)
    daemon.poll_store()
    assert daemon.readiness().ready
    path = tmp_path / name
    taken(path)
    for _ in range(3):
        daemon.poll_store()
        passed = decide(daemon, "during")
        assert (passed["decision_id"], passed["model"]) == (None, "small")
        readiness = daemon.readiness()
        assert not readiness.ready
        assert words in readiness.problems[0]
        assert str(tmp_path) not in readiness.problems[0]
    (line,) = lines(said, "files-displaced")
    assert words in line["problem"]
    if taken is away:
        path.with_name("elsewhere").rename(path)
    elif taken is linked:
        path.with_name("hard").unlink()
    else:
        return
    daemon.poll_store()
    assert daemon.readiness().ready
    assert decide(daemon, "after")["decision_id"] == "d1"
    assert len(lines(said, "store-works-again")) == 1


def test_a_store_put_elsewhere_keeps_its_tail(tmp_path: Path) -> None:
    """What was acknowledged before it was noticed is in the tail, and the tail stays."""
    store = JournaledStore(tmp_path / "log.db")
    away(tmp_path / "log.db")
    store.close()
    with pytest.raises(ValueError, match=r"does not exist, but log\.db"):
        JournaledStore(tmp_path / "log.db")


def test_a_journal_that_lost_its_name_is_moved_into_the_database(tmp_path: Path) -> None:
    """Killed afterwards, by a process that ends without a word, nothing is missing."""
    child = os.fork()
    if child == 0:
        file = load_file(write_config(tmp_path), {"store": str(tmp_path / "log.db")})
        store = JournaledStore(file.service.store)
        key = write_key(store.path)
        daemon = Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))
        decide(daemon, "first")
        store.settle()
        (tmp_path / "log.db-wal").unlink()
        daemon.poll_store()
        for _ in range(200):
            if not store._wake.is_set():
                time.sleep(0.02)
                break
            time.sleep(0.01)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    with JournaledStore(tmp_path / "log.db") as store:
        assert store.find_requests(["first"]) == {"first": 0}
        assert (len(store.rules()), store.gaps()) == (1, [])


@pytest.mark.parametrize(
    ("error", "passes"),
    [
        (ReadOnlyStoreError("it may not be written"), True),
        (CorruptStoreError("the file is damaged"), True),
        (SlowStoreError("another program has locked the database"), False),
    ],
)
def test_a_database_that_cannot_be_written_stops_promises(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, error: Exception, passes: bool
) -> None:
    """Memory takes more rows all the while; a slow database is waited for, one that cannot write
    is not."""

    def refuse(self: SqliteStore, segments: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(SqliteStore, "append_together", refuse)
        assert decide(daemon, "first")["decision_id"] == "d0"
        assert daemon.store.settle(seconds=0.3) is False
        assert (decide(daemon, "second")["decision_id"] is None) is passes
    assert daemon.store.settle(seconds=10)
    assert decide(daemon, "third")["decision_id"] is not None


@pytest.mark.parametrize("how", ["mounted", "call"])
def test_a_file_system_gone_read_only_is_noticed(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Some file systems say so, others only refuse writes."""
    assert decide(daemon, "before")["decision_id"] == "d0"
    with monkeypatch.context() as patch:
        if how == "mounted":
            real = os.statvfs

            def read_only(path: Any) -> Any:
                facts = list(real(path))
                facts[8] |= os.ST_RDONLY
                return os.statvfs_result(facts)

            patch.setattr(presence_module.os, "statvfs", read_only)
        else:

            def refuse(self: object) -> None:
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))

            patch.setattr("equipoise.store.format.mark.Mark.prod", refuse)
            daemon.store._log.presence._rows = -1  # type: ignore[union-attr]
        daemon.poll_store()
        passed = decide(daemon, "during")
        assert (passed["decision_id"], passed["reason"]) == (None, "store-read-only")
        assert not daemon.readiness().ready


async def post(front: Any, path: str, body: bytes) -> tuple[int, Any]:
    """One request through the whole application, without a socket."""
    messages: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }
    await front(scope, receive, send)
    return messages[0]["status"], json.loads(messages[1]["body"])


@pytest.mark.parametrize("daemon", ["power"], indirect=True)
@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ENOSPC])
def test_what_cannot_be_synced_is_passed_through(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    front = build(daemon, Tokens(()))
    request = {"request_id": "r", "routed": "small", "features": {"words": 1.0}}
    one, many = json.dumps(request).encode(), json.dumps({"requests": [request]}).encode()

    def broken(file: int) -> None:
        raise OSError(number, os.strerror(number))

    async def work() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", broken)
            status, answer = await post(front, "/v1/decide", one)
            assert (status, answer["decision_id"], answer["model"]) == (200, None, "small")
            status, answer = await post(front, "/v1/decide/batch", many)
            assert (status, answer["decisions"][0]["decision_id"]) == (200, None)
            outcome = b'{"request_id": "r", "reward": 1}'
            assert (await post(front, "/v1/outcomes", outcome))[0] == 503
        daemon.poll_store()
        status, answer = await post(front, "/v1/decide", one)
        assert (status, answer["decision_id"]) == (200, "d0")

    asyncio.run(work())


@pytest.mark.parametrize("daemon", ["power"], indirect=True)
def test_a_sync_needs_no_descriptor(daemon: Daemon, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever holds all connections must not turn every answer into an error."""

    def none_left(file: int) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    front = build(daemon, Tokens(()))
    monkeypatch.setattr(os, "dup", none_left)
    body = b'{"request_id": "r", "routed": "small", "features": {"words": 1.0}}'
    status, answer = asyncio.run(post(front, "/v1/decide", body))
    assert (status, answer["decision_id"]) == (200, "d0")


def test_what_libraries_log_is_json_without_what_they_quote(said: io.StringIO) -> None:
    root = logging.getLogger()
    before = root.handlers
    try:
        gather_library_lines(Log("info", said))
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
        logging.getLogger("apscheduler").error("job %s failed", "a prompt")
    finally:
        root.handlers = before
        logging.captureWarnings(False)
    first, second = lines(said, "library")
    assert first["message"] == "Invalid HTTP request received."
    assert (second["level"], second["logger"]) == ("error", "apscheduler")
    assert "a prompt" not in said.getvalue()
