"""OFREP, driven by the stock providers of the OpenFeature SDKs and by our subclasses of them.

The daemon draws with a key of its own, so a run is another one each time; that an interval misses
the truth happens in less than one run of twenty, which is what the intervals promise.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

from commands import run_command
from harness import PEERS, ROOT, Report, json_lines, node_with, python_with
from running import Running, running, until

from equipoise.agent.client import Choice, Client

SDK = ("openfeature-sdk==0.10.0", "openfeature-provider-ofrep==0.3.0")
PACKAGES = (
    "@openfeature/server-sdk@1.23.0",
    "@openfeature/ofrep-provider@0.1.3",
    "@openfeature/web-sdk@1.10.0",
    "@openfeature/ofrep-web-provider@0.4.3",
)
LANGUAGES, KINDS = ("python", "node"), ("stock", "ours")
EACH = 500
AGAIN = 50
LOST = 6
LIMIT_SECONDS = 0.3
SLACK_SECONDS = 1.0
"""What a machine with much else to do may add to a time-out."""
VALUES = {"large": 0.7, "small": 0.5}
TOKEN = "a-token-of-this-door-0123456789"
CONFIG = """
name = "chat"
models = [{name = "large"}, {name = "small"}]
[features]
context = [{type = "number", name = "words", low = 0, scale = 100}]
outputs = [{type = "number", name = "seconds", low = 0}]
[policy]
assignment = "uniform"
rate = 0.6
[budget]
after_decision = "continue"
"""
SERVICE = 'refresh_seconds = 0.5\nofrep = {routed = "large"}\n'
TOKENS = f'[[service.tokens]]\nname = "router"\ntoken = "{TOKEN}"\n'
Row = dict[str, Any]


def drive(folder: Path, report: Report) -> None:
    peers = Peers(folder)
    report.peer = "; ".join((*SDK, *PACKAGES))
    said, words = peers.start("events").communicate(timeout=60.0)
    assert said == "ok\n", words
    report.add("events joined and delivered by the provider in JavaScript", "as in Python")
    open_, guarded = folder / "open", folder / "guarded"
    for each in (open_, guarded):
        each.mkdir()
    with running(open_, SERVICE, config=CONFIG) as daemon:
        rows, plans = traffic(daemon, peers)
        checked(daemon, rows, plans, report)
        asked_again(daemon, peers, rows, report)
        in_a_page(daemon, peers, report)
        switched_off(daemon, peers, report)
        address = url_of(daemon)
    audited(open_, report)
    nobody_there(address, peers, report)
    with running(guarded, SERVICE + TOKENS, config=CONFIG) as daemon:
        hung(daemon, peers, report)
    audited(guarded, report)
    too_many(folder, peers, report)


class Peers:
    """The SDKs, each in an environment of its own. folder: where they write."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._modules = node_with("ofrep-node", *PACKAGES) / "node_modules"
        self._commands = {
            "python": [python_with("ofrep-python", *SDK), PEERS / "ofrep_python.py"],
            "node": ["node", PEERS / "ofrep_node.mjs"],
            "web": ["node", PEERS / "ofrep_web.mjs"],
            "events": ["node", PEERS / "ofrep_events.mjs"],
        }

    def start(self, language: str, *arguments: Any) -> subprocess.Popen[str]:
        """Start a peer beside copies of our files."""
        *command, script = self._commands[language]
        place = self._folder / f"copies-{language}"
        if not place.exists():
            place.mkdir()
            (place / "node_modules").symlink_to(self._modules)
            shutil.copy(script, place)
            agent = ROOT / "agent"
            shutil.copy(agent / "client.py", place)
            shutil.copy(agent / "doors" / "openfeature.py", place / "equipoise_openfeature.py")
            shutil.copy(agent / "doors" / "openfeature.mjs", place)
        return subprocess.Popen(
            [*command, place / script.name, *map(str, arguments)],
            cwd=place,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def evaluate(
        self,
        language: str,
        kind: str,
        plan: list[Row],
        url: str,
        *token: str,
        seconds: float = 5.0,
        then: Callable[[], None] = lambda: None,
    ) -> tuple[list[Row], Row]:
        """What a provider got for every request, and what our own counted. then: called once all
        is evaluated, before our own has delivered."""
        name = f"{language}-{kind}-{time.monotonic_ns()}"
        asked = json_lines(self._folder / f"{name}-plan.jsonl", plan)
        got = self._folder / f"{name}.jsonl"
        peer = self.start(language, asked, got, url, kind, seconds, *token)
        try:
            until(lambda: got.exists() or peer.poll() is not None)
            then()
            said, words = peer.communicate(timeout=120.0)
        finally:
            peer.kill()
        assert peer.returncode == 0, words[-3000:]
        rows = [json.loads(line) for line in got.read_text().splitlines()]
        return rows, json.loads(said or "{}")


def url_of(daemon: Running) -> str:
    return f"http://127.0.0.1:{daemon.port}"


def planned(name: str, count: int) -> list[Row]:
    """Requests, four to a user, with the reward that each model would get."""
    rng = random.Random(f"ofrep {name}")
    return [
        {
            "request_id": f"{name}-{number}",
            "unit": f"{name}-user-{number // 4}",
            "words": rng.randrange(1, 200),
            "routed": rng.choice(["large", "large", "small"]),
            "rewards": {model: float(rng.random() < value) for model, value in VALUES.items()},
            "seconds": {"large": 1.0 + rng.random(), "small": 0.2 + rng.random() / 10},
        }
        for number in range(count)
    ]


def traffic(daemon: Running, peers: Peers) -> tuple[list[Row], dict[str, Row]]:
    """2,000 evaluations with their outcomes: what was got, and the requests by their ids."""
    rows: list[Row] = []
    plans: dict[str, Row] = {}
    for language, kind in product(LANGUAGES, KINDS):
        plan = planned(f"{language}-{kind}", EACH)
        plans |= {request["request_id"]: request for request in plan}
        got, said = peers.evaluate(language, kind, plan, url_of(daemon))
        rows += got
        if kind == "stock":
            report_outcomes(url_of(daemon), got, plans)
        else:
            events = {"sent": 2 * EACH, "ignored": EACH, "other-unit": EACH}
            assert said == {"events": events, "delivered": 2 * EACH, "refused": 0}, said
    return rows, plans


def report_outcomes(url: str, rows: list[Row], plans: dict[str, Row]) -> None:
    """Outcomes of a provider that cannot track, by what its metadata said."""
    with Client(url, timeout=5.0) as client:
        for row in rows:
            said, request = row["metadata"], plans[row["request_id"]]
            name, token = said["request_id"], said["outcome_token"]
            choice = Choice(name, row["value"], said["routed"], outcome_token=token)
            outputs = {"seconds": request["seconds"][row["value"]]}
            reward = request["rewards"][row["value"]]
            client.outcome(choice, outputs=outputs, reward=reward, unit_id=request["unit"])
        assert client.flush(30.0)
        assert (client.counters.delivered, client.counters.refused) == (len(rows), 0)


def checked(daemon: Running, rows: list[Row], plans: dict[str, Row], report: Report) -> None:
    """Every evaluation against the log, and the certified intervals against the truth."""
    assert len({row["metadata"]["decision_id"] for row in rows}) == len(rows) == len(plans)
    for row in rows:
        said, request = row["metadata"], plans[row["request_id"]]
        assert row["error"] is None, row
        assert row["value"] == row["variant"]
        assert row["reason"] == "SPLIT", row
        assert (said["unit"], said["ignored"]) == (request["unit"], "plan")
        logged = logged_as(daemon, said["decision_id"])
        decision, parts = logged["decision"], logged["outcomes"]
        assert decision["request_id"] == row["request_id"]
        assert decision["model"] == row["value"]
        assert decision["propensity"] == said["propensity"]
        assert decision["routed"] == request["routed"]
        assert logged["unit_id"] == request["unit"]
        rewards = [part["reward"] for part in parts if part["reward"] is not None]
        assert rewards == [request["rewards"][row["value"]]], parts
    report.add("evaluations, each logged once as it was served", str(len(rows)))
    randomized = sum(row["metadata"]["randomized"] for row in rows)
    report.add("of them randomized", str(randomized))
    for language, kind in product(LANGUAGES, KINDS):
        name = f"{language}-{kind}-"
        took = sorted(row["seconds"] for row in rows if row["request_id"].startswith(name))
        report.add(f"median of an evaluation, {name[:-1]}", f"{1000 * took[EACH // 2]:.2f} ms")
    estimates = daemon.ask("GET", "/v1/estimates").json
    assert estimates["decisions"] == len(rows)
    for model in estimates["models"]:
        truth = VALUES[model["model"]]
        assert model["lower"] <= truth <= model["upper"], model
        ends = f"{model['lower']:.3f} to {model['upper']:.3f}, truth {truth}"
        report.add(f"certified value of {model['model']}", ends)


def logged_as(daemon: Running, decision_id: str, token: str | None = None) -> Any:
    answer = daemon.ask("GET", f"/v1/decisions/{decision_id}", token=token)
    assert answer.status == 200, answer.body
    return answer.json


def asked_again(daemon: Running, peers: Peers, rows: list[Row], report: Report) -> None:
    """The same requests by another SDK get the same decisions, and nothing is logged."""
    before = daemon.ask("GET", "/readyz").json["log_rows"]
    first = {row["request_id"]: row for row in rows}
    for asked_by, decided_for in (("node", "python"), ("python", "node")):
        plan = planned(f"{decided_for}-ours", EACH)[:AGAIN]
        got, _ = peers.evaluate(asked_by, "stock", plan, url_of(daemon))
        for row in got:
            assert row["metadata"] == first[row["request_id"]]["metadata"]
    assert daemon.ask("GET", "/readyz").json["log_rows"] == before
    report.add("repeated evaluations with the same decision, none logged twice", str(2 * AGAIN))


def in_a_page(daemon: Running, peers: Peers, report: Report) -> None:
    """The web SDK asks for all flags at once: it gets what is routed, and nothing is logged."""
    before = daemon.ask("GET", "/readyz").json["log_rows"]
    said, words = peers.start("web", url_of(daemon)).communicate(timeout=60.0)
    assert said, words
    answer = json.loads(said)
    assert answer["statuses"][0] == 200, answer
    assert 304 in answer["statuses"], answer
    for seen, model in zip(answer["seen"], ("large", "large", "small"), strict=True):
        assert (seen["value"], seen["variant"]) == (model, model), seen
        assert (seen["reason"], seen["error"]) == ("STATIC", None)
        assert seen["metadata"]["randomized"] is False
        assert "decision_id" not in seen["metadata"]
    assert daemon.ask("GET", "/readyz").json["log_rows"] == before
    statuses = ", ".join(map(str, answer["statuses"]))
    report.add("bulk evaluations by the web SDK, no row logged: statuses", statuses)


def switched_off(daemon: Running, peers: Peers, report: Report) -> None:
    """A pause and the kill switch: the routed model and why, and never an error."""
    for name, off, on in (
        ("paused", lambda: daemon.ask("POST", "/v1/pause", {}), "/v1/resume"),
        ("kill-switch", lambda: switch(daemon, True), None),
    ):
        off()
        for language, kind in product(LANGUAGES, KINDS):
            plan = planned(f"{name}-{language}-{kind}", 4)
            rows, said = peers.evaluate(language, kind, plan, url_of(daemon))
            for row, request in zip(rows, plan, strict=True):
                assert (row["error"], row["reason"]) == (None, "STATIC"), row
                assert row["value"] == request["routed"]
                assert row["metadata"]["reason"] == name
                assert row["metadata"]["propensity"] == 1.0
                if language == "python":
                    assert type(row["metadata"]["propensity"]) is float
            if kind == "ours" and name == "kill-switch":
                assert said["events"]["not-logged"] == 3 * len(plan), said
        if on is not None:
            daemon.ask("POST", on, {})
    switch(daemon, False)
    report.add("evaluations while paused and by the kill switch, served as routed", "32")


def switch(daemon: Running, on: bool) -> None:
    file = daemon.store.with_name(daemon.store.name + ".kill")
    if on:
        file.touch()
    else:
        file.unlink()
    until(lambda: daemon.ask("GET", "/readyz").json["mode"]["kill_switch"] is on)


def nobody_there(address: str, peers: Peers, report: Report) -> None:
    """A daemon that is gone, and one that takes connections and never answers: the default."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent_url = f"http://127.0.0.1:{silent.getsockname()[1]}"
        for name, url in (("stopped", address), ("silent", silent_url)):
            for language, kind in product(LANGUAGES, KINDS):
                plan = planned(f"{name}-{language}", LOST)
                provider = {"ours": "ours-unheard"}.get(kind, kind)
                rows, _ = peers.evaluate(language, provider, plan, url, seconds=LIMIT_SECONDS)
                report.add(f"daemon {name}, {language}-{kind}: default within", within(rows))


def within(rows: list[Row]) -> str:
    """The longest evaluation; all gave the default with an error, and none raised."""
    slowest = max(row["seconds"] for row in rows)
    assert all(row["value"] == "large" and row["error"] for row in rows), rows
    assert slowest < LIMIT_SECONDS + SLACK_SECONDS
    return f"{slowest:.3f} s of {LIMIT_SECONDS:g} s"


def hung(daemon: Running, peers: Peers, report: Report) -> None:
    """A daemon that hangs and goes on later: what it decided meanwhile was delivered to nobody, and
    our own provider says so, with the token that it asks for again."""
    for language in LANGUAGES:
        plan = planned(f"hung-{language}", LOST)
        daemon.process.send_signal(signal.SIGSTOP)

        def go_on() -> None:
            daemon.process.send_signal(signal.SIGCONT)

        rows, said = peers.evaluate(
            language, "ours", plan, url_of(daemon), TOKEN, seconds=LIMIT_SECONDS, then=go_on
        )
        report.add(f"daemon hung, {language}-ours: default within", within(rows))
        decided = 0
        for request in plan:
            path = f"/v1/decisions?request_id={request['request_id']}"
            answer = daemon.ask("GET", path, token=TOKEN)
            if answer.status == 200:
                decided += 1
                assert [part["delivered"] for part in answer.json["outcomes"]] == [False]
        assert decided > 0
        report.add(f"decided meanwhile, {language}-ours: reported as undelivered", str(decided))
        plan = planned(f"token-{language}", 4)
        rows, said = peers.evaluate(language, "ours", plan, url_of(daemon), TOKEN)
        assert [row["error"] for row in rows] == [None] * 4, rows
        assert (said["delivered"], said["refused"]) == (8, 0), said
        rows, _ = peers.evaluate(language, "stock", plan, url_of(daemon), "x" * 20)
        assert all(row["value"] == "large" and row["error"] for row in rows), rows


def too_many(folder: Path, peers: Peers, report: Report) -> None:
    """More than the daemon may decide in a second: the default, and nothing is asked meanwhile."""
    place = folder / "limited"
    place.mkdir()
    service = SERVICE + "limits = {decide_per_second = 4}\n"
    with running(place, service, config=CONFIG) as daemon:
        for language in LANGUAGES:
            plan = planned(f"many-{language}", 12)
            rows, _ = peers.evaluate(language, "stock", plan, url_of(daemon))
            decided = Counter(row["error"] is None for row in rows)
            assert decided[True] >= 4
            assert all(row["value"] == "large" for row in rows if row["error"])
            refused = [row["error"] for row in rows if "ate limit" in (row["error"] or "")]
            figure = f"{decided[True]} of 12 decided, {len(refused)} refused by 429"
            report.add(f"4 a second allowed, {language}-stock", figure)
            assert len(refused) < decided[False], "the others were not asked for"
            time.sleep(1.2)


def audited(folder: Path, report: Report) -> None:
    """Every propensity recomputes from its rule, every draw from its uniform."""
    done = run_command("audit", "log.db", "--json", cwd=folder)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout)
    assert found["uniforms_redrawn"]
    assert found["faults"] == []
    figure = f"{found['decisions']} decisions, {found['outcomes']} parts of outcomes, no fault"
    report.add(f"audit of the {folder.name} daemon's store", figure)
