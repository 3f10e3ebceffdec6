"""Kill -9 at random moments under load, start again, and compare the log with what was promised.

python tests/service/killing.py --moments 200 --seed 1
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sqlite3
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from running import Running, running

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.store.sqlite import SqliteStore

# Everything that may be interrupted happens all the time.
SERVICE = """
refresh_seconds = 0.25
checkpoint_seconds = 0.15
log_level = "warning"
"""
CLIENTS = 4


@dataclass
class Promises:
    """What was acknowledged, and what was asked and never answered."""

    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    outcomes: set[tuple[str, str]] = field(default_factory=set)
    open: list[tuple[str, Any]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Client(threading.Thread):
    """Decides and sends outcomes, one after the other, until the daemon is gone."""

    def __init__(self, port: int, name: str, seed: int, promises: Promises) -> None:
        super().__init__(daemon=True)
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        self._name, self._random, self._promises = name, random.Random(seed), promises

    def run(self) -> None:
        for index in range(1_000_000):
            name = f"{self._name}-{index}"
            words = self._random.randrange(100)
            asked = {"request_id": name, "routed": "small", "features": {"words": words}}
            calls: list[tuple[str, Any]] = [("/v1/decide", asked)]
            if self._random.random() < 0.8:
                calls.append(("/v1/outcomes", {"request_id": name, "outputs": {"seconds": words}}))
            if self._random.random() < 0.8:
                calls.append(("/v1/outcomes", {"request_id": name, "reward": words / 100}))
            for path, body in calls:
                try:
                    answer = ask(self._connection, path, body)
                except (OSError, http.client.HTTPException):
                    with self._promises.lock:
                        self._promises.open.append((path, body))
                    self._connection.close()
                    return
                with self._promises.lock:
                    keep(self._promises, path, body, answer)


def ask(connection: http.client.HTTPConnection, path: str, body: Any) -> Any:
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    answer = json.loads(response.read())
    assert response.status == 200, answer
    return answer


def keep(promises: Promises, path: str, body: Any, answer: Any) -> None:
    name = body["request_id"]
    if path == "/v1/decide":
        assert answer["decision_id"] is not None, answer
        promises.decisions[name] = answer
    else:
        assert answer["accepted"] + answer["duplicates"] == 1, answer
        promises.outcomes.add((name, "reward" if "reward" in body else "outputs"))


def kill_once(folder: Path, moment: int, rng: random.Random, promises: Promises) -> None:
    """Start, send again what was left open, load, and kill at a random moment."""
    with running(folder, SERVICE) as daemon:
        _kill_under_load(daemon, moment, rng, promises)


def _kill_under_load(daemon: Running, moment: int, rng: random.Random, promises: Promises) -> None:
    send_open(daemon, promises)
    clients = [
        Client(daemon.port, f"k{moment}-{number}", rng.randrange(2**32), promises)
        for number in range(CLIENTS)
    ]
    for client in clients:
        client.start()
    time.sleep(rng.uniform(0.0, 0.6))
    daemon.kill()
    for client in clients:
        client.join(30)


def send_open(daemon: Running, promises: Promises) -> None:
    """What was asked and not answered is asked again, as a client would."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=20)
    for path, body in promises.open:
        keep(promises, path, body, ask(connection, path, body))
    promises.open.clear()
    connection.close()


def faults(store: Path, promises: Promises) -> list[str]:
    """Everything in the log that is not as promised."""
    found: list[str] = []
    database = sqlite3.connect(store)
    names = ["large", "small"]
    logged = {
        name: (f"d{number}", names[model], bool(randomized), rule)
        for name, number, model, randomized, rule in database.execute(
            "SELECT request_id, number, model, randomized, rule_id FROM decisions"
        )
    }
    (rows,) = database.execute("SELECT count(*) FROM decisions").fetchone()
    if rows != len(logged):
        found.append(f"{rows} decisions for {len(logged)} requests")
    for name, said in promises.decisions.items():
        promised = tuple(said[key] for key in ("decision_id", "model", "randomized", "rule_id"))
        if logged.get(name) != promised:
            found.append(f"{name}: promised {promised}, logged {logged.get(name)}")
    parts = Counter(
        (name, part)
        for name, reward, outputs in database.execute(
            "SELECT request_id, reward, outputs FROM outcomes JOIN decisions USING (number)"
        )
        for part, there in (("reward", reward is not None), ("outputs", "null" not in outputs))
        if there
    )
    found += [f"{part} logged {times} times" for part, times in parts.items() if times > 1]
    found += [f"{part} missing" for part in promises.outcomes if part not in parts]
    database.close()
    return found


class _WithoutCheckpoints(SqliteStore):
    def restore(self) -> None:
        return None


def state_is_the_fold(store: Path) -> bool:
    """Whether the daemon's own state, saved as it ended, is a fold of its log from the start."""
    with _WithoutCheckpoints(store, read_only=True) as log:
        agent = Agent(ExperimentConfig.from_json(log.settings()["config"]), log, None)
        saved = SqliteStore.restore(log)
        assert saved is not None
        assert saved.seq == agent.fold.next_seq > 0
        return saved.state == agent.fold.to_bytes()


def study(folder: Path, moments: int, seed: int) -> tuple[Promises, list[str]]:
    """Kill at so many moments; what was promised, and what is wrong with the log."""
    rng, promises = random.Random(seed), Promises()
    found: list[str] = []
    for moment in range(moments):
        kill_once(folder, moment, rng, promises)
    with running(folder, SERVICE) as daemon:
        send_open(daemon, promises)
        if daemon.stop() != 0:
            found.append("the daemon did not end in good order")
    found += faults(daemon.store, promises)
    if not state_is_the_fold(daemon.store):
        found.append("the state is not the fold of the log")
    return promises, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--moments", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        promises, found = study(Path(folder), chosen.moments, chosen.seed)
    print(
        f"{chosen.moments} kills: {len(promises.decisions):,} decisions and "
        f"{len(promises.outcomes):,} parts of outcomes acknowledged, {len(found)} faults"
    )
    print("\n".join(found[:20]))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
