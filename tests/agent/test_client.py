"""The client: what it asks, what it delivers, and what it does when everything goes wrong."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from misbehaving import Protocol, behaving, serving
from running import until

from equipoise.agent.client import Address, Client
from equipoise.store.batches import DecisionBatch, ObservationBatch, OutcomeBatch

PATIENT = 10.0
"""A time-out of tests that wait for an answer; one second is no news on a busy machine."""
FEATURES = {"words": 3.0}


@pytest.fixture
def daemon() -> Protocol:
    return Protocol()


@pytest.fixture
def port(daemon: Protocol) -> Iterator[int]:
    with serving(daemon) as port:
        yield port


def client(port: int, timeout: float = PATIENT, **options: object) -> Client:
    return Client(f"http://127.0.0.1:{port}", timeout=timeout, **options)  # type: ignore[arg-type]


def rows(daemon: Protocol, kind: type) -> int:
    """How many rows of a kind the daemon's log holds."""
    segments = daemon.desk.agent.store.read()
    return sum(len(segment.batch) for segment in segments if isinstance(segment.batch, kind))


def outcomes(daemon: Protocol) -> list[tuple[bool, float]]:
    return [
        (bool(segment.batch.delivered[row]), float(segment.batch.reward[row]))
        for segment in daemon.desk.agent.store.read()
        if isinstance(segment.batch, OutcomeBatch)
        for row in range(len(segment.batch))
    ]


def test_a_decision_is_the_daemons(daemon: Protocol, port: int) -> None:
    with client(port) as router:
        made = [router.decide(f"r{i}", "large", FEATURES) for i in range(40)]
        again = router.decide("r0", "large", FEATURES)
    assert again == made[0]
    assert all(each.reason == "" and each.decision_id for each in made)
    randomized = [each for each in made if each.randomized]
    assert {each.model for each in randomized} == {"large", "small"}
    # Rate 0.5, two models: small is served with 1/4, large with the rest.
    assert {each.propensity for each in made} == {0.25, 0.75}
    assert router.counters.decided == 41
    assert rows(daemon, DecisionBatch) == 40
    assert daemon.connections <= 2, "connections are used again"


def test_outcomes_arrive_in_parts_and_in_batches(daemon: Protocol, port: int) -> None:
    with client(port) as router:
        for i in range(300):
            choice = router.decide(f"r{i}", "large", FEATURES)
            router.outcome(choice, outputs={"seconds": 1.0})
            router.outcome(choice.request_id, reward=0.5)
        assert router.flush(PATIENT)
    assert router.counters.delivered == 600
    assert rows(daemon, OutcomeBatch) == 600
    assert all(delivered for delivered, _ in outcomes(daemon))
    table = daemon.desk.agent.light.pending
    assert table.next == 300
    assert table.has_reward[: table.size].all(), "every decision has its reward"
    assert table.has_outputs[: table.size].all()


def test_outcomes_name_decisions_by_their_id_and_bring_the_token(
    daemon: Protocol, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    bodies: list[dict[str, Any]] = []
    answer = daemon.answer

    def keep(path: str, body: bytes) -> tuple[int, bytes]:
        bodies.extend(json.loads(body) if path == "/v1/outcomes" else [])
        status, text = answer(path, body)
        return status, text.replace(b'"reason"', b'"outcome_token": "t", "reason"')

    monkeypatch.setattr(daemon, "answer", keep)
    with client(port) as router:
        choices = [router.decide(f"r{i}", "large", FEATURES) for i in range(2)]
        router.outcome(choices[0], outputs={"seconds": 1.0})
        router.outcome("r1", reward=0.5)
        router.outcome("r2", reward=0.5)  # which nobody asked here
        assert router.flush(PATIENT)
    first, second, third = bodies
    assert first == {"decision_id": "d0", "outputs": {"seconds": 1.0}, "outcome_token": "t"}
    assert second == {"decision_id": "d1", "reward": 0.5, "outcome_token": "t"}
    assert third == {"request_id": "r2", "reward": 0.5}


def test_an_outcome_whose_decision_is_on_its_way_is_sent_again(
    daemon: Protocol, port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, times = daemon.answer, [0]

    def later(path: str, body: bytes) -> tuple[int, bytes]:
        if path == "/v1/outcomes":
            times[0] += 1
            if times[0] < 3:
                return 200, b'{"rejected": [{"index": 0, "status": 503}]}'
        return answer(path, body)

    monkeypatch.setattr(daemon, "answer", later)
    with client(port) as router:
        router.outcome(router.decide("r1", "large", FEATURES), reward=0.5)
        assert router.flush(PATIENT)
    assert (times[0], router.counters.delivered, router.counters.refused) == (3, 1, 0)


def test_a_request_is_sent_in_one_piece() -> None:
    pieces: list[bytes] = []

    def listen(connection: socket.socket) -> None:
        for _ in range(2):
            pieces.append(connection.recv(1 << 16))
            connection.sendall(body(DECISION + b'"propensity": 0.25}'))

    with behaving(listen) as port:
        router = client(port)
        assert [router.decide("r1", "large", FEATURES).reason for _ in "ab"] == ["", ""]
        router.close(0.0)
    for piece in pieces:
        head, _, text = piece.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /v1/decide HTTP/1.1\r\nHost: 127.0.0.1:")
        assert json.loads(text)["request_id"] == "r1"


def test_a_token_is_sent(daemon: Protocol, port: int) -> None:
    with client(port, token="secret-of-16-chars") as router:
        router.decide("r1", "large", FEATURES)
    assert daemon.tokens == {"Bearer secret-of-16-chars"}


def test_many_tasks_of_an_event_loop(daemon: Protocol, port: int) -> None:
    async def serve() -> list[bool]:
        with client(port) as router:
            made = await asyncio.gather(
                *(router.decide_async(f"r{i}", "small", FEATURES, unit_id="u") for i in range(100))
            )
        return [each.reason == "" for each in made]

    assert asyncio.run(serve()) == [True] * 100
    assert rows(daemon, DecisionBatch) == 100


def test_cancelling_a_task_is_no_fallback(daemon: Protocol) -> None:
    async def serve(port: int) -> int:
        with client(port) as router:
            task = asyncio.create_task(router.decide_async("r1", "large", FEATURES))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            return sum(router.counters.fallbacks.values())

    with serving(daemon, delay=0.3) as port:
        assert asyncio.run(serve(port)) == 0


def hang(connection: socket.socket) -> None:
    connection.recv(1 << 16)


def reset(connection: socket.socket) -> None:
    connection.recv(1 << 16)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def drip(connection: socket.socket) -> None:
    """Each byte comes in time, the answer never: a time-out per read would wait for its end, after
    two seconds, and call that another reason."""
    connection.recv(1 << 16)
    connection.sendall(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(200):
        connection.sendall(b"x")
        time.sleep(0.01)


def sends(answer: bytes) -> Callable[[socket.socket], None]:
    def badly(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            connection.sendall(answer)

    return badly


def body(text: bytes, status: bytes = b"200 OK") -> bytes:
    return b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, len(text), text)


DECISION = b'{"request_id": "r1", "decision_id": "d1", "model": "small", "randomized": true,'
DISASTERS = {
    "hang": (hang, "time-out"),
    "drip": (drip, "time-out"),
    "reset": (reset, "closed"),
    "garbage": (sends(b"\x00\xff\x00\xff\r\n\r\n" * 9), "garbage"),
    "no JSON": (sends(body(b"<html>Bad gateway</html>")), "garbage"),
    "JSON of something else": (sends(body(b"[1, 2]")), "garbage"),
    "another's": (sends(body(DECISION.replace(b"r1", b"r2") + b'"propensity": 1}')), "garbage"),
    "half a decision": (sends(body(DECISION + b'"propensity": "x"}')), "garbage"),
    "endless header": (sends(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70_000), "garbage"),
    "huge body": (sends(body(b'"' + b"x" * (2 << 20) + b'"')), "garbage"),
    "failing": (sends(body(b"{}", b"500 Oops")), "status-500"),
    "overloaded": (sends(body(b"{}", b"429 Slow down")), "status-429"),
    "passing through": (
        sends(body(b'{"request_id": "r1", "decision_id": null, "reason": "store-full"}')),
        "store-full",
    ),
}


@pytest.mark.parametrize("disaster", DISASTERS)
def test_whatever_the_server_does_the_routed_model_is_served_in_time(disaster: str) -> None:
    badly, reason = DISASTERS[disaster]
    timeout = 0.3 if reason == "time-out" else PATIENT
    with behaving(badly) as port:
        router = client(port, timeout)
        choice = router.decide("r1", "large", FEATURES)
        late = asyncio.run(router.decide_async("r3", "large", FEATURES))
        router.close(0.0)
    assert (choice.model, choice.randomized, choice.decision_id) == ("large", False, None)
    assert choice.reason == reason
    assert late.model == "large"
    assert sum(router.counters.fallbacks.values()) == 2


def test_a_hung_daemon_is_soon_left_alone() -> None:
    with behaving(hang) as port:
        router = client(port, 0.1)
        reasons = [router.decide(f"r{i}", "large", FEATURES).reason for i in range(50)]
        router.close(0.0)
    assert reasons[:3] == ["time-out"] * 3
    assert reasons.count("resting") > 30


def test_a_row_without_a_daemon_becomes_an_observation(daemon: Protocol) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    router = client(port)
    for i in range(20):
        choice = router.decide(f"r{i}", "small", FEATURES, unit_id=f"u{i}")
        assert choice.reason in ("unreachable", "resting")
        router.outcome(choice, outputs={"seconds": 2.0})
        if i < 15:
            router.outcome(f"r{i}", reward=0.25)
    router.decide("r20", "small", FEATURES)
    until(lambda: router.counters.retries >= 1)
    with serving(daemon, port):
        assert router.flush(PATIENT)
        assert router.counters.observations == 15
        router.outcome("r17", reward=1.0)
        assert router.flush(PATIENT)
        router.close()
    assert set(daemon.requests) == {"/v1/observations"}, "there is no decision to speak about"
    batches = [s.batch for s in daemon.desk.agent.store.read()]
    assert {type(batch) for batch in batches} == {ObservationBatch}
    rewards = np.concatenate([b.reward for b in batches if isinstance(b, ObservationBatch)])
    assert sorted(rewards) == [0.25] * 15 + [1.0]
    assert all(b.routed.tolist() == [1] for b in batches if isinstance(b, ObservationBatch))


@pytest.mark.parametrize(
    ("parts", "served"),
    [
        ({}, "small"),
        ({"served": "large"}, "large"),
        ({"served": "large", "delivered": False}, None),
        (
            {
                "attempts": [
                    {"model": "small", "status": "failed"},
                    {"model": "large", "status": "delivered"},
                    {"model": "small", "status": "discarded"},
                ]
            },
            "large",
        ),
        ({"attempts": [{"model": "small", "status": "cached"}]}, None),
    ],
)
def test_a_row_of_a_usage_log_names_who_answered(
    daemon: Protocol, parts: dict[str, Any], served: str | None
) -> None:
    with serving(daemon) as port:
        router = client(port)
        there, router._address = router._address, Address.of("http://host.invalid")
        choice = router.decide("r1", "small", FEATURES)
        assert choice.decision_id is None
        router._address = there
        router.outcome(choice, outputs={"seconds": 2.0}, reward=0.5, **parts)
        assert router.flush(PATIENT)
        router.close()
    rows = [s.batch for s in daemon.desk.agent.store.read()]
    assert [daemon.desk.agent.models[batch.routed[0]] for batch in rows] == [served] * bool(served)
    assert router.counters.unserved == (served is None)


def test_a_decision_that_came_too_late_was_not_delivered(daemon: Protocol) -> None:
    with serving(daemon, delay=0.5) as port:
        router = client(port, 0.1)
        choice = router.decide("r1", "large", FEATURES)
        assert (choice.reason, choice.model) == ("time-out", "large")
        router.outcome(choice, outputs={"seconds": 2.0}, reward=0.5)
        assert router.flush(PATIENT)
        router.close()
    assert rows(daemon, ObservationBatch) == 0, "the decision is in the log, and nothing twice"
    assert rows(daemon, DecisionBatch) == 1
    parts = outcomes(daemon)
    assert not any(delivered for delivered, _ in parts)
    assert parts[-1] == (False, 0.5)


@pytest.mark.parametrize(
    "parts",
    [
        {"served": "small"},
        {
            "attempts": [
                {"model": "large", "status": "failed"},
                {"model": "small", "status": "delivered"},
            ]
        },
    ],
)
def test_a_late_decision_is_told_who_answered_instead(
    daemon: Protocol, parts: dict[str, Any]
) -> None:
    with serving(daemon, delay=0.5) as port:
        router = client(port, 0.1)
        choice = router.decide("r1", "large", FEATURES)
        router.outcome(choice, outputs={"seconds": 2.0}, reward=0.5, **parts)
        assert router.flush(PATIENT)
        router.close()
    last = [s.batch for s in daemon.desk.agent.store.read() if isinstance(s.batch, OutcomeBatch)][
        -1
    ]
    assert (last.served.tolist(), last.delivered.tolist()) == ([1], [False])
    assert router.counters.refused == 0


def test_a_daemon_that_died_after_it_decided_is_asked_about_it(daemon: Protocol) -> None:
    """The request went out on a connection that was kept; sent once more, nobody was there."""
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]

    def decide_twice() -> None:
        connection, _ = listener.accept()
        with connection:
            for last in (False, True):
                _, _, rest = connection.recv(1 << 16).partition(b"\r\n\r\n")
                status, answer = daemon.answer("/v1/decide", rest or connection.recv(1 << 16))
                if last:
                    listener.close()
                    return
                connection.sendall(body(answer, b"%d OK" % status))

    thread = threading.Thread(target=decide_twice)
    thread.start()
    router = client(port)
    assert router.decide("r1", "large", FEATURES).reason == ""
    lost = router.decide("r2", "large", FEATURES)
    thread.join()
    assert lost.reason == "unreachable"
    router.outcome(lost, outputs={"seconds": 2.0}, reward=0.5)
    with serving(daemon, port):
        assert router.flush(PATIENT)
        router.close()
    assert rows(daemon, DecisionBatch) == 2
    assert rows(daemon, ObservationBatch) == 0, "the decision is in the log, and nothing twice"
    assert outcomes(daemon)[-1] == (False, 0.5)


def test_a_late_decision_is_reported_though_no_outcome_ever_comes(daemon: Protocol) -> None:
    with serving(daemon, delay=0.5) as port:
        router = client(port, 0.1)
        assert router.decide("r1", "large", FEATURES).reason == "time-out"
        assert router.flush(PATIENT)
        router.close()
    ((delivered, reward),) = outcomes(daemon)
    assert not delivered
    assert np.isnan(reward)


def test_a_time_out_that_logged_nothing_becomes_an_observation(daemon: Protocol) -> None:
    with behaving(hang) as dead:
        router = client(dead, 0.1)
        router.outcome(router.decide("r1", "large", FEATURES), outputs={"seconds": 1}, reward=1)
        router._address = Address.of("unix:///nowhere")
    with serving(daemon) as port:
        router._address = Address.of(f"http://127.0.0.1:{port}")
        assert router.flush(PATIENT)
        router.close()
    assert rows(daemon, ObservationBatch) == 1
    assert rows(daemon, OutcomeBatch) == 0
    assert router.counters.refused == 0


def test_a_decision_that_was_logged_when_its_row_was_on_the_way_is_undelivered(
    daemon: Protocol,
) -> None:
    """Asked about it the daemon knew of none yet: its request still lay in a buffer."""
    with serving(daemon) as port:
        router = client(port)
        there, router._address = router._address, Address.of("http://host.invalid")
        choices = [router.decide(f"r{row}", "small", FEATURES) for row in range(3)]
        router._address = there
        again = client(port)
        assert again.decide("r1", "small", FEATURES).reason == ""
        again.close()
        with router._changed:  # so that all three are one batch
            for choice in choices:
                router.outcome(choice, outputs={"seconds": 2.0}, reward=0.5)
        assert router.flush(PATIENT)
        router.close()
    assert (rows(daemon, DecisionBatch), rows(daemon, ObservationBatch)) == (1, 2)
    assert outcomes(daemon) == [(False, 0.5)]
    counters = router.counters
    assert (counters.observations, counters.delivered, counters.refused) == (2, 1, 0)


def test_what_cannot_be_said_is_refused_and_counted(daemon: Protocol, port: int) -> None:
    with client(port) as router:
        for features in ({"words": float("nan")}, {"words": object()}, {"words": "many"}, {}):
            choice = router.decide("r1", "large", features)
            assert choice.model == "large"
            assert choice.reason in ("bad-input", "status-422")
        assert router.decide("r2", "large", {"words": np.float32(1.0)}).reason == ""
        assert router.decide("r2", "small", {"words": 1.0}).reason == "status-409"
        router.outcome("r2", reward=float("inf"))
        router.outcome("r2", reward=7.0)
        router.outcome("never decided", reward=0.5)
        router.outcome("r2", reward=0.5)
        with pytest.raises(TypeError, match="rewrad"):
            router.outcome("r2", rewrad=0.5)
        assert router.flush(PATIENT)
    assert router.counters.refused == 8
    assert router.counters.delivered == 1
    assert rows(daemon, ObservationBatch) == 0


def test_the_buffer_is_bounded_and_what_it_drops_is_counted() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    router = client(port, buffer=10)
    for i in range(25):
        router.outcome(f"r{i}", reward=0.5)
        router.decide(f"s{i}", "large", FEATURES)
    router.close(0.0)
    assert router.counters.dropped >= 14
    assert router.counters.incomplete == 15
    assert len(router._items) <= 10


def test_a_connection_that_went_stale_is_replaced(daemon: Protocol) -> None:
    with serving(daemon) as port:
        router = client(port)
        assert router.decide("r1", "large", FEATURES).reason == ""
    with serving(daemon, port):
        assert router.decide("r2", "large", FEATURES).reason == ""
        router.close()


def test_features_may_change_after_the_call(daemon: Protocol) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    router = client(port)
    features, outputs = {"words": 3.0}, {"seconds": 1.0}
    choice = router.decide("r1", "large", features)
    router.outcome(choice, outputs=outputs)
    features["words"] = outputs["seconds"] = 99.0
    router.outcome(choice, reward=1.0)
    with serving(daemon, port):
        assert router.flush(PATIENT)
        router.close()
    (batch,) = (segment.batch for segment in daemon.desk.agent.store.read())
    assert isinstance(batch, ObservationBatch)
    assert (batch.x.tolist(), batch.outputs.tolist()) == ([[3.0]], [[1.0]])


def test_many_threads_share_a_client(daemon: Protocol, port: int) -> None:
    with client(port) as router:

        def serve(worker: int) -> None:
            for i in range(50):
                choice = router.decide(f"w{worker}-{i}", "large", FEATURES)
                router.outcome(choice, outputs={"seconds": 1.0}, reward=0.5)

        threads = [threading.Thread(target=serve, args=(worker,)) for worker in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert router.flush(PATIENT)
    assert rows(daemon, DecisionBatch) == rows(daemon, OutcomeBatch) == 400


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_worker_has_threads_of_its_own(daemon: Protocol, port: int) -> None:
    with client(port) as router:
        assert router.decide("r1", "large", FEATURES).reason == ""
        child = os.fork()
        if child == 0:
            code = 1
            try:
                choice = router.decide("r2", "large", FEATURES)
                router.outcome(choice, reward=0.5)
                code = 0 if choice.reason == "" and router.flush(PATIENT) else 1
            finally:
                os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        assert router.decide("r3", "large", FEATURES).reason == ""
    assert rows(daemon, DecisionBatch) == 3
    assert rows(daemon, OutcomeBatch) == 1


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://host", "http://", ""])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError, match="expected http"):
        Client(url)


def test_a_token_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(ValueError, match="token"):
        Client(token="a\r\nX-Evil: 1")


def test_it_can_be_copied() -> None:
    """Nothing but the standard library, so that one file is all a router needs."""
    source = Path(sys.modules[Client.__module__].__file__ or "").read_text()
    lines = [line.split() for line in source.splitlines()]
    imported = {
        words[1].partition(".")[0] for words in lines if words[:1] in (["import"], ["from"])
    }
    assert imported <= sys.stdlib_module_names


@pytest.mark.parametrize(
    ("argument", "value", "limit"),
    [
        ("timeout", -1, "seconds above 0"),
        ("timeout", 0.0, "seconds above 0"),
        ("timeout", float("nan"), "seconds above 0"),
        ("timeout", float("inf"), "at most 3600"),
        ("timeout", "1", "seconds above 0"),
        ("timeout", True, "seconds above 0"),
        ("buffer", 0, "at least 1"),
        ("buffer", 2.5, "a whole number"),
        ("url", "http://[::1", "expected http://HOST:PORT"),
        ("url", "http://host:99999", "Port out of range"),
        ("url", None, "expected http://HOST:PORT"),
    ],
)
def test_an_argument_that_cannot_be_is_refused_by_name(
    argument: str, value: object, limit: str
) -> None:
    with pytest.raises(ValueError, match=limit) as raised:
        Client(**{argument: value})  # type: ignore[arg-type]
    assert str(raised.value).startswith(f"{argument} is {value!r}, expected")
