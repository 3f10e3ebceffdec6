"""A real daemon over one store, beside a model of what was acknowledged."""

from __future__ import annotations

import contextlib
import http.client
import json
import math
import signal
from collections import Counter, deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from forking import run_forked
from running import CONFIG, Answer, Running, running, until, write_config

from equipoise.agent.monitors.check import DEFAULT_ACTIONS

RAIL = '\n[[guardrails]]\nname = "errors"\nlimit = 0.9\n'
# No check may pause or open an era here: what the model expects is what was asked for.
QUIET = "[checks]\n" + "".join(f'{name} = "report"\n' for name in DEFAULT_ACTIONS)
SERVICE = 'refresh_seconds = {}\ncheckpoint_seconds = 0.3\nlog_level = "info"\n'
MODELS = ("large", "small")
PARTS = ("reward", "outputs", "metrics")


@dataclass
class Model:
    """What was acknowledged.

    decisions: answer by request_id; asked: the body it answered; known: value of each part of an
    outcome; rows: of the log; observed, simulated: ids and what was sent under them.
    """

    decisions: dict[str, dict[str, Any]] = field(default_factory=dict)
    asked: dict[str, dict[str, Any]] = field(default_factory=dict)
    known: dict[str, dict[str, float]] = field(default_factory=dict)
    observed: set[str] = field(default_factory=set)
    simulated: dict[tuple[str, str], float] = field(default_factory=dict)
    rows: int = 0
    randomized: int = 0
    budget: int | None = None
    paused: str | None = None
    killed: bool = False
    steps: Counter[str] = field(default_factory=Counter)

    def take(self, body: dict[str, Any], made: dict[str, Any]) -> None:
        """Check an answer to decide, and remember it."""
        name = body["request_id"]
        assert made["request_id"] == name
        if self.killed and name not in self.decisions:
            assert (made["reason"], made["decision_id"]) == ("kill-switch", None)
        if self.killed:
            assert made["model"] == body["routed"]
            return
        assert made["reason"] is None, made
        if name in self.decisions:
            assert made == self.decisions[name]
            return
        assert made["decision_id"] == f"d{len(self.decisions)}"
        total = math.fsum(made["probabilities"].values())
        assert total == 0.0 or math.isclose(total, 1.0, rel_tol=1e-9)
        assert 0.0 < made["propensity"] <= 1.0
        if not made["randomized"]:
            assert made["model"] == body["routed"]
        if self.paused is not None or self.spent:
            assert not made["randomized"]
            assert made["propensity"] == 1.0
        self.decisions[name], self.asked[name], self.known[name] = made, body, {}
        self.randomized += made["randomized"]
        self.rows += 1

    @property
    def spent(self) -> bool:
        return self.budget is not None and self.randomized >= self.budget

    def told(self, name: str, parts: dict[str, float]) -> str:
        """What becomes of parts of an outcome: accepted, duplicate or conflict."""
        known = self.known[name]
        if any(known.get(part, value) != value for part, value in parts.items()):
            return "conflict"
        return "duplicate" if parts.keys() <= known.keys() else "accepted"

    def keep(self, name: str, parts: dict[str, float]) -> None:
        self.known[name].update(parts)
        self.rows += 1


class World:
    """A daemon over one store, and the model. reload: how often the configuration was changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model = Model()
        self.example = 0
        self.reloads = 0
        self.failure: str | None = None
        self._connection: http.client.HTTPConnection | None = None
        self.asked: deque[str] = deque(maxlen=40)
        self._context = contextlib.ExitStack()
        self.daemon = self._start()

    @property
    def config(self) -> str:
        price = 0.02 + 0.001 * (self.reloads % 7)
        return CONFIG.replace("price = 0.02", f"price = {price:.3f}") + RAIL + QUIET

    @property
    def service(self) -> str:
        return SERVICE.format(0.25 if self.reloads % 2 else 0.5)

    def _start(self) -> Running:
        return self._context.enter_context(running(self.folder, self.service, config=self.config))

    def ask(self, method: str, path: str, body: Any = None) -> Answer:
        """One request on the connection that stays open; bytes go as they are, else JSON."""
        if self._connection is None:
            self._connection = http.client.HTTPConnection("127.0.0.1", self.daemon.port, timeout=30)
        data = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        self._connection.request(method, path, data)
        response = self._connection.getresponse()
        if self.failure is None:
            self.asked.append(f"{method} {path} {body!r} -> {response.status}"[:600])
        answer = Answer(response.status, dict(response.getheaders()), response.read())
        # Not even while the kill switch is on: then only /readyz says 503.
        assert answer.status < 500 or path == "/readyz", (method, path, body, answer)
        return answer

    def trace(self) -> str:
        """The last requests before the first failure."""
        return "".join(f"{line}\n" for line in self.asked)

    def ready(self) -> Answer:
        return self.ask("GET", "/readyz")

    def close(self) -> None:
        self._drop_connection()
        self._context.close()

    def again(self, end: str) -> None:
        """End the daemon, in good order or by kill -9, and start it over the same store."""
        self._drop_connection()
        if end == "kill":
            self.daemon.kill()
        else:
            assert self.daemon.stop() == 0
        self.daemon = self._start()

    def reload(self, good: bool) -> None:
        """SIGHUP with another price and interval, or with a file that has a mistake."""
        before = self._events("reload")
        if good:
            self.reloads += 1
            write_config(self.folder, self.service, self.config)
        else:
            write_config(self.folder, "refresh_seconds = -1", self.config)
        self.daemon.process.send_signal(signal.SIGHUP)
        until(lambda: self._events("reload") > before)
        newest = [line for line in list(self.daemon.log) if '"event":"reload' in line][-1]
        assert json.loads(newest)["event"] == ("reloaded" if good else "reload-refused"), newest

    def _events(self, name: str) -> int:
        return sum(f'"event":"{name}' in line for line in list(self.daemon.log))

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def finish(self) -> list[str]:
        """Kill, start, stop, audit, and look in the log for everything that was acknowledged."""
        self.again("kill")
        found = [] if self.daemon.stop() == 0 else ["the daemon did not end in good order"]
        self._context.close()
        audit = run_forked("audit", self.daemon.store, "--json")
        if audit.returncode != 0:
            found.append(f"audit: {audit.stdout}{audit.stderr}")
        elif json.loads(audit.stdout)["decisions"] != len(self.model.decisions):
            found.append(f"audit counts {audit.stdout}")
        # A daemon over the same store says what it was told, decision by decision.
        with running(self.folder, self.service, config=self.config) as daemon:
            self.daemon = daemon
            for name, made in self.model.decisions.items():
                path = f"/v1/decisions/{made['decision_id']}"
                found += _differences(self.ask("GET", path), made, self.model.known[name])
            self._drop_connection()
        return found


def _differences(answer: Answer, made: dict[str, Any], known: dict[str, float]) -> list[str]:
    """What a logged decision does not say as it was acknowledged."""
    if answer.status != 200:
        return [f"{made['decision_id']} is gone: {answer.body!r}"]
    logged = answer.json
    decision, parts = logged["decision"], logged["outcomes"]
    keys = ("request_id", "model", "randomized", "propensity", "rule_id", "era", "probabilities")
    found = [
        f"{made['decision_id']}: {key} was {made[key]}, is {decision[key]}"
        for key in keys
        if decision[key] != made[key]
    ]
    # A row that says something new is logged whole, with what it repeats.
    rewards = {part["reward"] for part in parts if part["reward"] is not None}
    outputs = {part["outputs"][0] for part in parts if part["outputs"] is not None}
    expected = {known["reward"]} if "reward" in known else set()
    if rewards != expected or len(outputs) != ("outputs" in known):
        found.append(f"{made['decision_id']}: told {known}, logged {rewards} and {outputs}")
    share = decision["probabilities"][decision["model"]]
    rate = decision["rate"] if any(decision["probabilities"].values()) else 0.0
    chance = rate * share + (1 - rate) * (decision["model"] == decision["routed"])
    if not math.isclose(chance, decision["propensity"], rel_tol=1e-12):
        found.append(f"{made['decision_id']}: propensity {decision['propensity']}, is {chance}")
    return found
