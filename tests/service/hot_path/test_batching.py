"""Requests of one turn are decided together, and each is answered as if it had come alone."""

from __future__ import annotations

import asyncio
import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from running import Running, running, write_config

from equipoise.agent.config.file import load_file
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.hot_path.batching import FEWEST_TOGETHER, MOST, MicroBatcher
from equipoise.agent.service.telemetry import Log
from equipoise.store.errors import FullStoreError
from equipoise.store.journal import JournaledStore


def started(folder: Path) -> Daemon:
    folder.mkdir()
    file = load_file(write_config(folder), {"store": str(folder / "log.db")})
    store = JournaledStore(file.service.store)
    write_key(store.path)
    made = Daemon(
        file.experiment, file.service, store, bytes(range(32)), Log("error", io.StringIO())
    )
    made.adapter._clock = lambda: 1.0
    return made


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[tuple[Daemon, Daemon]]:
    """Two daemons with one key, whose draws are therefore the same."""
    both = started(tmp_path / "together"), started(tmp_path / "alone")
    yield both
    for one in both:
        one.store.close()


def asked(name: str, words: object = 1.0, routed: str = "large") -> bytes:
    return json.dumps({"request_id": name, "routed": routed, "features": {"words": words}}).encode()


def answered(daemon: Daemon, bodies: list[bytes]) -> list[object]:
    """What `decide` answers to each in turn."""
    found: list[object] = []
    for body in bodies:
        try:
            found.append(daemon.hot.decide(body))
        except Exception as error:
            found.append((type(error), str(error)))
    return found


def told(answers: list[bytes | Exception]) -> list[object]:
    return [each if isinstance(each, bytes) else (type(each), str(each)) for each in answers]


def test_together_they_get_what_each_gets_alone_to_the_byte(pair: tuple[Daemon, Daemon]):
    together, alone = pair
    bodies = [asked(f"r{index}", index % 7, ("large", "small")[index % 2]) for index in range(40)]
    for some in (bodies[:1], bodies[1:3], bodies[3:12], bodies[12:]):
        assert told(together.hot.decide_each(some)) == answered(alone, some)
    assert together.agent.light.pending.next == alone.agent.light.pending.next == 40
    assert together.counters.decisions == alone.counters.decisions
    again = told(together.hot.decide_each(bodies[:1]))
    assert again == answered(alone, bodies[:1])
    assert together.counters.decisions == alone.counters.decisions
    assert together.counters.decisions.total() == 40
    assert together.counters.repeated == alone.counters.repeated == 1


def test_who_repeats_a_request_gets_its_decision(pair: tuple[Daemon, Daemon]):
    together, alone = pair
    bodies = [asked("a"), asked("b"), asked("a"), asked("c"), asked("a", 2.0), asked("b")]
    more = [asked(name) for name in "defgh"]
    mine, theirs = told(together.hot.decide_each(bodies + more)), answered(alone, bodies + more)
    assert mine[0] == mine[2]
    assert json.loads(mine[1])["decision_id"] == json.loads(mine[5])["decision_id"]
    assert mine[4] == theirs[4], "other content under the same id is a conflict"
    assert together.agent.light.pending.next == 8


@pytest.mark.parametrize(
    "wrong", [b"{", b"[]", asked("x", "many"), asked("x", routed="nobody"), asked("")]
)
def test_one_that_is_wrong_harms_nobody_else(pair: tuple[Daemon, Daemon], wrong: bytes):
    together, alone = pair
    bodies = [asked("a"), asked("b"), wrong, *[asked(name) for name in "cdefgh"]]
    mine, theirs = told(together.hot.decide_each(bodies)), answered(alone, bodies)
    assert mine == theirs
    assert together.agent.light.pending.next == 8


def test_a_store_that_refuses_passes_everybody_through(
    pair: tuple[Daemon, Daemon], monkeypatch: pytest.MonkeyPatch
):
    together, _ = pair

    def refuse(*_: object) -> None:
        raise FullStoreError("the disk is full")

    monkeypatch.setattr(together.store, "append", refuse)
    answers = together.hot.decide_each([asked(f"r{index}") for index in range(9)])
    assert [msgspec.json.decode(each)["reason"] for each in answers] == ["store-full"] * 9
    assert together.counters.passed_through["store-full"] == 9


def test_a_crowd_is_not_kept_waiting_for_the_turn_to_end(monkeypatch: pytest.MonkeyPatch):
    rounds: list[int] = []

    def decide(bodies: list[bytes]) -> list[bytes | Exception]:
        rounds.append(len(bodies))
        return list(bodies)

    async def crowd() -> list[bytes | Exception]:
        batcher, heard = MicroBatcher(decide, print), []
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: 5.0)
        for index in range(FEWEST_TOGETHER - 1):
            batcher.add(b"%d" % index, heard.append)
            assert len(heard) == index + 1, "no crowd yet"
        for index in range(FEWEST_TOGETHER - 1, FEWEST_TOGETHER + MOST + 2):
            batcher.add(b"%d" % index, heard.append)
        assert len(heard) == FEWEST_TOGETHER - 1 + MOST
        batcher.flush()
        assert len(heard) == FEWEST_TOGETHER + MOST + 2
        batcher.flush()
        return heard

    heard = asyncio.run(crowd())
    assert rounds == [1] * (FEWEST_TOGETHER - 1) + [MOST, 3]
    assert heard == [b"%d" % index for index in range(FEWEST_TOGETHER + MOST + 2)]


@pytest.mark.parametrize(("passed", "alone"), [(0.0005, 0), (0.0015, 0), (0.0025, 7)])
def test_after_a_crowd_the_next_wait_for_the_turn_to_end(
    passed: float, alone: int, monkeypatch: pytest.MonkeyPatch
):
    async def crowd() -> list[int]:
        times = [5.0]
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "time", lambda: times[0])
        batcher, heard, counts = MicroBatcher(list, print), [], []
        for _ in range(FEWEST_TOGETHER):
            batcher.add(b"a", heard.append)
        batcher.flush()
        times[0] += passed
        for _ in range(10):
            batcher.add(b"a", heard.append)
        counts.append(len(heard) - FEWEST_TOGETHER)
        batcher.flush()
        return [*counts, len(heard)]

    assert asyncio.run(crowd()) == [alone, FEWEST_TOGETHER + 10]


def test_a_reply_that_fails_is_reported_and_keeps_nobody_waiting():
    heard: list[bytes | Exception] = []
    reported: list[Exception] = []

    async def crowd() -> None:
        batcher = MicroBatcher(list, reported.append)
        batcher.add(b"a", heard.append)
        batcher.add(b"b", lambda answer: heard[10])
        batcher.add(b"c", heard.append)
        batcher.flush()

    asyncio.run(crowd())
    assert heard == [b"a", b"c"]
    assert [type(error) for error in reported] == [IndexError]


def test_what_arrives_together_is_answered_to_whom_it_belongs(tmp_path: Path):
    """60 connections that all speak at once, some of them nonsense, twice on a connection."""
    with running(tmp_path, "refresh_seconds = 60") as daemon:
        lines = [open_line(daemon) for _ in range(60)]
        for turn in range(5):
            for place, line in enumerate(lines):
                line.sendall(said(f"t{turn}-{place}", place) + said(f"u{turn}-{place}", place))
            for place, line in enumerate(lines):
                for kind in "tu":
                    status, answer = hear(line)
                    if place % 6 == 5:
                        assert status == 422
                        assert "words" in answer["detail"]
                    else:
                        assert status == 200
                        assert answer["request_id"] == f"{kind}{turn}-{place}"
        for line in lines:
            line.close()
        assert daemon.ask("GET", "/v1/estimates").json["decisions"] == 5 * 2 * 50


def open_line(daemon: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=20)


def said(name: str, place: int) -> bytes:
    body = asked(name, "many" if place % 6 == 5 else float(place))
    return b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (
        len(body),
        body,
    )


def hear(line: socket.socket) -> tuple[int, dict]:
    """The next answer, read a byte at a time: another may follow it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        head += line.recv(1)
    length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
    body = b""
    while len(body) < length:
        body += line.recv(length - len(body))
    return int(head.split()[1]), json.loads(body)
