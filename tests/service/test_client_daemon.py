"""A router keeps serving while its daemon hangs, dies and comes back; nothing is miscounted."""

from __future__ import annotations

import asyncio
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

from running import CONFIG, running, start, until

from equipoise.agent.client import Choice, Client
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import read_key
from equipoise.store.batches import DecisionBatch, ObservationBatch, OutcomeBatch
from equipoise.store.sqlite import SqliteStore

TOKEN = "route-token-of-length"
PATIENT = 10.0


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return str(taken.getsockname()[1])


class Router:
    """Serves as a router does: asks, serves, reports; one request after the other, in a thread."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.choices: list[Choice] = []
        self._stop = False
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stop:
            name = f"r{len(self.choices)}"
            choice = self.client.decide(name, routed="large", features={"words": 10.0})
            self.client.outcome(choice, outputs={"seconds": 1.0})
            self.client.outcome(choice, reward=0.5)
            self.choices.append(choice)
            time.sleep(0.002)

    def wait_for(self, what: Callable[[Choice], bool], more: int = 20) -> None:
        """Until it has served `more` further requests of a kind."""
        begun = len(self.choices)
        until(lambda: sum(map(what, self.choices[begun:])) >= more)

    def stop(self) -> None:
        self._stop = True
        self._thread.join()


def decided(choice: Choice) -> bool:
    return choice.reason == ""


def fell_back(choice: Choice) -> bool:
    return choice.reason != ""


def test_a_router_keeps_serving_while_its_daemon_hangs_dies_and_returns(tmp_path: Path) -> None:
    port = free_port()
    daemon = start(tmp_path, "", "--port", port)
    client = Client(f"http://127.0.0.1:{port}", timeout=0.25)
    router = Router(client)
    try:
        router.wait_for(decided)
        daemon.process.send_signal(signal.SIGSTOP)
        router.wait_for(fell_back)
        daemon.process.send_signal(signal.SIGCONT)
        router.wait_for(decided)
        daemon.kill()
        router.wait_for(fell_back)
        daemon = start(tmp_path, "", "--port", port)
        router.wait_for(decided)
    finally:
        router.stop()
    assert client.flush(PATIENT)
    client.close()
    assert daemon.stop() == 0
    counters = client.counters
    assert (counters.dropped, counters.incomplete, counters.refused) == (0, 0, 0)
    assert all(each.model == "large" for each in router.choices if each.reason)
    _every_request_is_counted_once(daemon.store, router.choices)


def _every_request_is_counted_once(path: Path, choices: list[Choice]) -> None:
    names: dict[int, str] = {}
    observed: list[str] = []
    undelivered: set[int] = set()
    rewarded: set[int] = set()
    with SqliteStore(path, read_only=True) as store:
        for segment in store.read():
            batch = segment.batch
            if isinstance(batch, DecisionBatch):
                names.update(zip(batch.number.tolist(), batch.request_id or (), strict=True))
            elif isinstance(batch, ObservationBatch):
                observed += batch.request_id or ()
            elif isinstance(batch, OutcomeBatch):
                undelivered.update(batch.number[~batch.delivered].tolist())
                rewarded.update(batch.number[batch.reward == 0.5].tolist())
        config = ExperimentConfig.from_json(store.settings()["config"])
        assert audit(store, config, read_key(path)).clean
    logged = set(names.values())
    fallbacks = {each.request_id for each in choices if each.reason}
    assert len(observed) == len(set(observed)) > 0
    assert logged.isdisjoint(observed), "no request is both a decision and an observation"
    assert logged | set(observed) == {each.request_id for each in choices}, "none is missing"
    assert set(observed) <= fallbacks
    # What the daemon decided and the router could not wait for is OBS: nobody saw the assignment.
    assert {names[number] for number in undelivered} == fallbacks - set(observed)
    assert rewarded == set(names), "every decision has its reward"


def test_a_daemon_with_tokens_and_the_async_way(tmp_path: Path) -> None:
    service = f'tokens = [{{name = "router", token = "{TOKEN}"}}]'

    async def serve(client: Client, count: int) -> list[Choice]:
        tasks = (
            client.decide_async(f"r{i}", "small", {"words": 1.0}, unit_id=f"u{i % 7}")
            for i in range(count)
        )
        return await asyncio.gather(*tasks)

    with running(tmp_path, service) as daemon:
        url = f"http://127.0.0.1:{daemon.port}"
        with Client(url, TOKEN, timeout=PATIENT) as client:
            choices = asyncio.run(serve(client, 200))
            assert all(map(decided, choices))
            for choice in choices:
                client.outcome(choice, outputs={"seconds": 1.0}, reward=1.0)
            assert client.flush(PATIENT)
            assert client.counters.delivered == 200
        with Client(url, "a-token-of-somebody-else", timeout=PATIENT) as stranger:
            assert stranger.decide("x1", "large", {"words": 1.0}).reason == "status-401"


def test_a_daemon_that_passes_through_makes_observations(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        (tmp_path / "log.db.kill").touch()
        until(lambda: not daemon.ask("GET", "/readyz").json["ready"])
        with Client(f"http://127.0.0.1:{daemon.port}", timeout=PATIENT) as client:
            choice = client.decide("r1", "small", {"words": 1.0})
            assert (choice.model, choice.reason) == ("small", "kill-switch")
            (tmp_path / "log.db.kill").unlink()
            client.outcome(choice, outputs={"seconds": 1.0}, reward=1.0)
            assert client.flush(PATIENT)
            assert client.counters.observations == 1
            client.outcome("r1", reward=0.5)
            client.outcome("r1", reward=7)
            assert client.flush(PATIENT)
            assert client.counters.refused == 2, "it is no decision, so nothing can be added"


def test_an_observation_that_is_sent_again_counts_once(tmp_path: Path) -> None:
    """Once in one body; and three times in each of three."""
    row = b'{"request_id": "r%d", "routed": "large", "features": {"words": 1}, '
    row += b'"outputs": {"seconds": 1}, "reward": 1}\n'
    with running(tmp_path, config=CONFIG) as daemon:
        for rows, times in ((1, 1), (2, 3)):
            for _ in range(times):
                answer = daemon.ask("POST", "/v1/observations", row % times * times).json
            assert answer["rejected"] == 0
            assert daemon.ask("GET", "/readyz").json["log_rows"] == rows
