"""Changes of status reach the log, the store and the webhooks, whatever fails in between."""

from __future__ import annotations

import asyncio
import io
import json
import re
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from running import CONFIG, running, until

from equipoise.agent.answers.status import Activity, State
from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import file_from_dict
from equipoise.agent.service.api.estimates import RecommendationAnswer
from equipoise.agent.service.telemetry import Log
from equipoise.agent.service.upkeep import announcer as module
from equipoise.agent.service.upkeep.announcer import Announcer
from equipoise.store.errors import StoreError
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Control

SECRET = "T0KEN-in-the-path"


class Receiver:
    """A webhook's other end. faults: statuses it answers with, one per request, then it is well."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.faults: list[int] = []
        self.asked = 0
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.asked += 1
                status = receiver.faults.pop(0) if receiver.faults else 204
                if status < 300:
                    receiver.got.append(json.loads(body))
                self.send_response(status)
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/{SECRET}"
        serve = self._server.serve_forever
        threading.Thread(target=serve, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


def answer(status: str, *models: str) -> RecommendationAnswer:
    return RecommendationAnswer(
        status=State(status),
        status_models=list(models),
        status_sentence=f"It is {status}.",
        sentence="",
        certified_sentence="",
        estimate_sentence="",
        outlook_sentence="",
        activity=Activity.RANDOMIZING,
        activity_sentence="",
        pills=[],
        claim=None,
        family="ipw",
        model=None,
        action="keep",
        leaning=None,
        value=None,
        standard_error=None,
        routing_value=None,
        routing_standard_error=None,
        certified=None,
        at=0.0,
        log_rows=0,
    )


async def eventually(question: Any) -> None:
    async with asyncio.timeout(60):
        while not question():
            await asyncio.sleep(0.005)


def told(receiver: Receiver) -> list[tuple[str, str]]:
    return [(each["from"], each["to"]) for each in receiver.got]


def test_what_fails_is_posted_again_in_order_and_nothing_secret_is_logged(receiver, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    store, lines = MemoryStore(), io.StringIO()
    receiver.faults = [500, 302, 404]

    async def run() -> None:
        announcer = Announcer("chat", [receiver.url], store, Log("debug", lines))
        announcer.start(1.0)
        announcer.look(answer("exploring"), 0, 1.0)
        announcer.look(answer("decided", "large"), 0, 2.0)
        announcer.look(answer("decided", "large"), 0, 3.0)
        announcer.look(answer("decided", "small"), 0, 4.0)
        await eventually(lambda: len(receiver.got) == 2)
        await announcer.close()

    asyncio.run(run())
    first, second = receiver.got
    assert first == {
        "experiment": "chat",
        "from": "exploring",
        "to": "decided",
        "models": ["large"],
        "sentence": "It is decided.",
        "at": 2.0,
        "era": 0,
    }
    assert (second["from"], second["to"], second["models"]) == ("decided", "decided", ["small"])
    log = [json.loads(line) for line in lines.getvalue().splitlines()]
    failed = [line for line in log if line["event"] == "webhook-failed"]
    assert [line["fault"] for line in failed] == ["status 500", "status 302", "status 404"]
    assert [line["event"] for line in log if line["event"] == "decided"] == ["decided"] * 2
    kept = "".join(control.value for control in store.controls())
    assert SECRET not in lines.getvalue() + kept


class Full(MemoryStore):
    """Takes no change of status before `room` is set."""

    room = False

    def put(self, record):
        if isinstance(record, Control) and record.name == module.CHANGE and not self.room:
            raise StoreError("the disk is full")
        super().put(record)


def test_nobody_is_told_what_is_not_kept_yet(receiver, monkeypatch):
    """Who was told what a crash then loses would be told another story after it."""
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    monkeypatch.setattr(module, "AGAIN_SECONDS", 0.01)
    store = Full()

    async def run() -> None:
        announcer = Announcer("chat", [receiver.url], store, Log("debug", io.StringIO()))
        announcer.start(1.0)
        announcer.look(answer("decided", "large"), 0, 2.0)
        await asyncio.sleep(0.3)
        assert receiver.asked == 0
        store.room = True
        await eventually(lambda: len(receiver.got) == 1)
        await announcer.close()

    asyncio.run(run())
    assert told(receiver) == [("exploring", "decided")]


def test_a_restart_goes_on_where_the_post_failed_and_repeats_nothing(receiver, monkeypatch):
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.01)
    store = MemoryStore()

    def run(changes: list[RecommendationAnswer], addresses: list[str], done: Any) -> None:
        async def work() -> None:
            announcer = Announcer("chat", addresses, store, Log("error", io.StringIO()))
            announcer.start(1.0)
            for each in changes:
                announcer.look(each, 0, 1.0)
            await eventually(done)
            await announcer.close()

        asyncio.run(work())

    # Nobody is declared: changes are kept, and who is declared later does not hear of them.
    run([answer("decided", "large")], [], lambda: True)
    receiver.faults = [503] * 1000
    run([answer("paused")], [receiver.url], lambda: receiver.asked >= 2)
    assert receiver.got == []
    receiver.faults = []

    def got(number: int, posted: int) -> Any:
        """That so many came, and that the store knows how far the address has got."""

        def done() -> bool:
            notes = [each.value for each in store.controls() if each.name == module.TOLD]
            return len(receiver.got) == number and json.loads(notes[-1]).popitem()[1] == posted

        return done

    run([answer("paused")], [receiver.url], got(1, 2))
    assert told(receiver) == [("decided", "paused")]
    run([answer("paused"), answer("ended")], [receiver.url], got(2, 3))
    assert told(receiver) == [("decided", "paused"), ("paused", "ended")]


@pytest.mark.parametrize(
    ("address", "fault"),
    [
        (
            "http://hooks.example/abc-secret",
            "http to 'hooks.example', expected an address that begins with https://",
        ),
        ("ftp://hooks.example/abc-secret", "begins with https://"),
        ("https://hooks.example /abc-secret", "begins with https://"),
        ("https://[abc-secret", "begins with https://"),
        ("https://hooks.example:abc-secret", "begins with https://"),
        ("https:///abc-secret", "begins with https://"),
        ("https://\\abc-secret", "begins with https://"),
    ],
)
def test_an_address_that_would_carry_it_in_the_clear_is_refused(address, fault):
    models = [{"name": "large"}, {"name": "small"}]
    declared = {"name": "chat", "models": models, "service": {"webhook": [address]}}
    with pytest.raises(ConfigError) as refused:
        file_from_dict(declared)
    assert fault in str(refused.value)
    assert "secret" not in str(refused.value)
    for fine in (
        "https://hooks.example/x",
        "http://127.0.0.1:9/x",
        "http://[::1]:9/",
        "http://localhost",
    ):
        file_from_dict(declared | {"service": {"webhook": [fine]}})


def test_a_daemon_decides_stops_tells_and_ends(receiver, tmp_path):
    """The whole life: what the interface says agrees with itself at every step of it."""
    config = CONFIG.replace("rate = 0.5", 'rate = 0.5\nestimator = "ipw"')
    service = f'webhook = ["{receiver.url}"]\nrefresh_seconds = 0.05\n'
    with running(tmp_path, service, config=config) as daemon:
        made = []

        def traffic(name: str, count: int) -> list[Any]:
            parts = [daemon.decide(f"{name}{number}", "small") for number in range(count)]
            rewards = [
                {
                    "decision_id": part["decision_id"],
                    "outcome_token": part["outcome_token"],
                    "outputs": {"seconds": 1.0},
                    "reward": float(part["model"] == "large"),
                }
                for part in parts
            ]
            assert daemon.ask("POST", "/v1/outcomes", rewards).status == 200
            made.extend(parts)
            return parts

        def mode() -> Any:
            return daemon.ask("GET", "/readyz").json["mode"]

        assert (mode()["activity"], mode()["randomizing"]) == ("randomizing", True)
        assert sum(part["randomized"] for part in traffic("a", 400)) > 100
        until(lambda: mode()["activity"] == "decided")
        assert mode()["randomizing"] is False
        (*_, last) = traffic("b", 20)
        assert not any(part["randomized"] for part in made[-20:])
        logged = daemon.ask("GET", f"/v1/decisions/{last['decision_id']}").json
        assert (logged["decision"]["rate"], logged["closed_by"]) == (0.0, "decided")
        until(lambda: told(receiver) == [("exploring", "decided")])
        assert receiver.got[0]["models"] == ["large"]

        drawn = [part for part in made if part["randomized"]]
        budget = daemon.ask("GET", "/v1/budget").json
        assert budget["after_decision"] == "stop"
        assert budget["spent"]["requests"] == budget["randomized"] == len(drawn)
        large = sum(part["model"] == "large" for part in drawn)
        usd = 0.02 * large + 0.01 * (len(drawn) - large)
        assert budget["spent"]["usd"] == pytest.approx(usd)
        assert budget["spent"]["extra_usd"] == pytest.approx(0.01 * large)
        rewards = until(lambda: daemon.ask("GET", "/v1/budget").json["spent"]["reward_sum"])
        assert rewards == large
        metrics = daemon.ask("GET", "/metrics").body.decode()
        for line in (
            'equipoise_activity{activity="decided"} 1.0',
            "equipoise_randomizing 0.0",
            f'equipoise_randomized_requests{{model="large"}} {float(large)}',
            'equipoise_unpriced{model="small"} 0.0',
            'equipoise_status{status="decided"} 1.0',
        ):
            assert line in metrics
        assert f"equipoise_randomized_usd_in_all {usd:.4g}"[:-1] in metrics

        assert daemon.ask("POST", "/v1/end", {"model": "large", "keep": True}).status == 422
        assert daemon.ask("POST", "/v1/end", {"model": "huge"}).status == 422
        ended = daemon.ask("POST", "/v1/end", {"reason": "large won"}).json
        # The first end stands: the same again is answered, another is refused with its date.
        for same in ({}, {"model": "large"}, {"reason": "large won"}):
            assert daemon.ask("POST", "/v1/end", same).json["ended"] == ended["ended"]
        for another in ({"model": "small"}, {"keep": True}, {"reason": "it did not"}):
            refused = daemon.ask("POST", "/v1/end", another)
            assert refused.status == 409
            assert re.search(
                r"ended on \d{4}-\d\d-\d\d .* UTC: large is served \(large won\); resume it first",
                refused.json["detail"],
            )
        paused = daemon.ask("POST", "/v1/pause", {"reason": "too late"}).json
        assert (paused["activity"], paused["reason"]) == ("ended", "large won")
        assert (ended["activity"], ended["randomizing"]) == ("ended", False)
        assert (ended["ended"]["model"], ended["ended"]["certified"]) == ("large", True)
        answer = daemon.ask("GET", "/v1/recommendation").json
        assert (answer["status"], answer["final"], answer["action"]) == ("ended", "large", "large")
        until(lambda: told(receiver)[1:] == [("decided", "ended")])
    with running(tmp_path, service, config=config) as daemon:
        assert mode()["activity"] == "ended"
        assert daemon.ask("POST", "/v1/resume").json["activity"] == "randomizing"
        # Nobody need come for that to be told.
        until(lambda: told(receiver)[2:3] == [("ended", "restarted")])
        assert any(part["randomized"] for part in traffic("c", 40))
    events = [json.loads(line)["event"] for line in daemon.log]
    assert "restarted" in events
    assert SECRET not in "".join(daemon.log)
