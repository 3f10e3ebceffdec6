"""Shadow replay against a local server that speaks the protocol, well and badly."""

from __future__ import annotations

import asyncio
import io
import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from running import CONFIG, running, until

from equipoise.agent.agent import Agent
from equipoise.agent.config import config_from_dict
from equipoise.agent.config.service import ShadowModel, ShadowSettings
from equipoise.agent.errors import AgentError
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.telemetry import Log
from equipoise.agent.service.upkeep import shadow as endpoint
from equipoise.agent.service.upkeep.shadow import Shadow
from equipoise.store.memory import MemoryStore

EXPERIMENT = {
    "name": "shadow",
    "models": [{"name": "large"}, {"name": "small"}],
    "features": {
        "context": [{"type": "number", "name": "words"}],
        "outputs": [
            {"type": "text", "name": "answer", "statistics": ["characters"]},
            {"type": "number", "name": "tokens", "low": 0, "high": 50},
        ],
    },
}
PROMPT = "a prompt that must stay out of every log".ljust(70, ".")
"""As messages 100 bytes, as many as the tokens that the provider counts: none is shorter."""


class Provider:
    """A chat-completions server. faults: what it does instead, one per request, then it is well."""

    def __init__(self) -> None:
        self.faults: list[str] = []
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.tokens = 10
        self.together = self.most_together = 0
        self._lock = threading.Lock()
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                provider.answer(self)

            def log_message(self, *arguments: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["content-length"])))
        with self._lock:
            self.together += 1
            self.most_together = max(self.most_together, self.together)
            self.asked.append(body)
            self.keys.add(request.headers["authorization"])
            fault = self.faults.pop(0) if self.faults else ""
        time.sleep(1.0 if fault == "slow" else 0.02)
        status = int(fault) if fault.isdecimal() else 200
        usage = {"prompt_tokens": 100, "completion_tokens": self.tokens}
        answer = {"choices": [{"message": {"content": "an answer"}}], "usage": usage}
        text = b"<html>" if fault == "garbage" else json.dumps(answer).encode()
        with self._lock:
            self.together -= 1
        try:
            request.send_response(status)
            if status == 429:
                request.send_header("retry-after", "0.3")
            request.send_header("content-length", str(len(text)))
            request.end_headers()
            request.wfile.write(text)
        except OSError:  # it did not wait for us
            pass


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Iterator[Provider]:
    monkeypatch.setattr(endpoint, "FIRST_PAUSE", 0.05)
    made = Provider()
    thread = threading.Thread(target=made.server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield made
    made.server.shutdown()
    made.server.server_close()
    thread.join()


class Clock:
    """Takes the place of `time` and `asyncio` in the module. ends: when each wait was over."""

    perf_counter = staticmethod(time.perf_counter)

    def __init__(self) -> None:
        self.now = 0.0
        self.ends: list[float] = []

    def __getattr__(self, name: str) -> object:
        return getattr(asyncio, name)

    def monotonic(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        end = self.now + max(seconds, 0.0)
        self.ends.append(end)
        await asyncio.sleep(0)
        self.now = max(self.now, end)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(endpoint, "time", made)
    monkeypatch.setattr(endpoint, "asyncio", made)
    return made


def contexts(folder: Path, count: int) -> Path:
    path = folder / "contexts"
    lines = [
        {
            "context_id": f"c{index}",
            "features": {"words": index},
            "messages": [{"role": "user", "content": PROMPT}],
        }
        for index in range(count)
    ]
    path.write_text("\n".join(json.dumps(line) for line in lines) + "\n{broken\n")
    return path


def replay(
    folder: Path, provider: Provider, count: int = 3, key: str | None = None, **changes: Any
) -> tuple[Shadow, list[int], Agent, str]:
    """Run it twice; the shadow, rows of each run, the agent, what was logged."""
    settings: dict[str, Any] = {
        "contexts": str(contexts(folder, count)),
        "endpoint": provider.url,
        "models": [
            ShadowModel(name="large", calls="gpt-large", input_usd=10, output_usd=100),
            ShadowModel(name="small", calls="gpt-small", input_usd=1, output_usd=10),
        ],
        "outputs": {"answer": "text", "tokens": "completion_tokens"},
        "budget_usd": 1.0,
        "requests_per_minute": 60_000.0,
        "max_tokens": 50,
        "timeout_seconds": 0.5,
        **changes,
    }
    agent = Agent(config_from_dict(EXPERIMENT), MemoryStore(), bytes(32))
    stream = io.StringIO()

    async def twice() -> tuple[Shadow, list[int]]:
        chosen = ShadowSettings(**settings)
        shadow = Shadow(RecordAdapter(agent), chosen, Log("debug", stream), {"KEY": key or ""})
        rows = [await shadow.run(), await shadow.run()]
        await shadow.close()
        return shadow, rows

    shadow, rows = asyncio.run(twice())
    return shadow, rows, agent, stream.getvalue()


def test_every_context_is_replayed_on_every_candidate_once(tmp_path: Path, provider: Provider):
    shadow, rows, agent, log = replay(tmp_path, provider, key="secret", key_env="KEY")
    assert rows == [6, 0]
    assert sorted(body["model"] for body in provider.asked) == ["gpt-large"] * 3 + ["gpt-small"] * 3
    assert provider.asked[0]["messages"] == [{"role": "user", "content": PROMPT}]
    assert provider.keys == {"Bearer secret"}
    # 100 tokens in and 10 out, three times each at the declared prices.
    assert shadow.spent == pytest.approx(3 * (100 * 11 + 10 * 110) / 1e6)
    assert agent.store.next_seq == 6
    assert agent.answers.view().moments.simulation.count.sum() == 6
    assert PROMPT not in log
    assert "secret" not in log
    assert '"shadow-line","line":4' in log


def test_failures_that_pass_are_tried_again(tmp_path: Path, provider: Provider):
    provider.faults = ["500", "429", "slow", "503"]
    _, rows, _, _ = replay(tmp_path, provider, count=1, concurrency=1, attempts=5)
    assert rows == [2, 0]
    assert len(provider.asked) == 6


def test_what_failed_too_often_is_tried_again_at_the_next_run(tmp_path: Path, provider: Provider):
    provider.faults = ["500", "500"]
    _, rows, _, _ = replay(tmp_path, provider, count=1, concurrency=1, attempts=2)
    assert rows == [1, 1]


def test_it_waits_as_long_as_it_is_asked_to(tmp_path: Path, provider: Provider, clock: Clock):
    provider.faults = ["429"]
    replay(tmp_path, provider, count=1, concurrency=1)
    assert len(provider.asked) == len(clock.ends) == 3
    assert clock.ends[1] - clock.ends[0] >= 0.3


def test_a_request_that_can_never_succeed_is_not_sent_twice(tmp_path: Path, provider: Provider):
    provider.faults = ["400", "garbage"]
    _, rows, _, log = replay(tmp_path, provider, count=2, concurrency=1)
    assert rows == [2, 0]
    assert len(provider.asked) == 4
    assert log.count("shadow-failed") == 2


def test_an_output_outside_its_range_is_no_row(tmp_path: Path, provider: Provider):
    provider.tokens = 51
    shadow, rows, agent, _ = replay(tmp_path, provider, count=1)
    assert rows == [0, 0]
    assert agent.store.next_seq == 0
    assert shadow.spent > 0, "it was paid for all the same"


@pytest.mark.parametrize("concurrency", [1, 4])
def test_the_budget_is_never_exceeded(tmp_path: Path, provider: Provider, concurrency: int):
    provider.tokens = 50
    budget = 0.02
    shadow, rows, _, log = replay(
        tmp_path, provider, count=20, concurrency=concurrency, budget_usd=budget
    )
    assert 0 < rows[0] < 40
    assert rows[1] == 0
    assert shadow.spent <= budget
    assert shadow.spent > budget - 2 * 0.007 * concurrency, "most of it was used"
    assert "shadow-budget-spent" in log


def test_pace_and_concurrency_are_kept(tmp_path: Path, provider: Provider, clock: Clock):
    replay(tmp_path, provider, count=5, requests_per_minute=1200.0, concurrency=3)
    assert provider.most_together <= 3
    starts = sorted(clock.ends)
    assert len(provider.asked) == len(starts) == 10
    assert all(later - earlier >= 0.05 - 1e-9 for earlier, later in pairwise(starts))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outputs": {"answer": "text"}}, "tokens"),
        ({"models": [ShadowModel(name="x", calls="x", input_usd=1, output_usd=1)]}, "'x'"),
        ({"key_env": "MISSING"}, "MISSING"),
    ],
)
def test_what_does_not_fit_the_experiment_is_refused(
    tmp_path: Path, provider: Provider, changes: Any, says: str
):
    with pytest.raises(AgentError, match=says):
        replay(tmp_path, provider, **changes)


def test_the_daemon_replays_beside_its_requests(tmp_path: Path, provider: Provider):
    service = f"""
    [service.shadow]
    contexts = "{contexts(tmp_path, 2)}"
    endpoint = "{provider.url}"
    outputs = {{seconds = "seconds"}}
    budget_usd = 1.0
    requests_per_minute = 6000
    every_seconds = 0.2
    models = [{{name = "small", calls = "s", input_usd = 1, output_usd = 1}}]
    """
    with running(tmp_path, service, config=CONFIG) as daemon:
        until(lambda: b'kind="shadow"} 2.0' in daemon.ask("GET", "/metrics").body)
        assert daemon.decide("beside")["decision_id"]
