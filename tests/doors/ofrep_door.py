"""OFREP, driven by the stock providers of the OpenFeature SDKs and by our subclasses of them."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
from itertools import product
from pathlib import Path
from typing import Any

from commands import run_command
from harness import PEERS, ROOT, Report, json_lines, node_with, python_with
from running import Running, running

from equipoise.agent.client import Choice, Client

SDK = ("openfeature-sdk==0.10.0", "openfeature-provider-ofrep==0.3.0")
PACKAGES = (
    "@openfeature/server-sdk@1.23.0",
    "@openfeature/ofrep-provider@0.1.3",
    "@openfeature/web-sdk@1.10.0",
    "@openfeature/ofrep-web-provider@0.4.3",
)
EACH = 500
VALUES = {"large": 0.7, "small": 0.5}
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
SERVICE = 'refresh_seconds = 0.5\nofrep = {routed = "large"}'
Row = dict[str, Any]


def drive(folder: Path, report: Report) -> None:
    peers = {
        "python": [python_with("ofrep-python", *SDK), PEERS / "ofrep_python.py"],
        "node": ["node", PEERS / "ofrep_node.mjs"],
    }
    modules = node_with("ofrep-node", *PACKAGES) / "node_modules"
    report.peer = "; ".join((*SDK, *PACKAGES))
    rows: list[Row] = []
    plans: dict[str, Row] = {}
    with running(folder, SERVICE, config=CONFIG) as daemon:
        url = f"http://127.0.0.1:{daemon.port}"
        for language, kind in product(peers, ("stock", "ours")):
            plan = planned(f"{language}-{kind}", EACH)
            plans |= {request["request_id"]: request for request in plan}
            place = folder / f"{language}-{kind}"
            got, said = evaluate(place, modules, peers[language], plan, url, kind)
            rows += got
            if kind == "stock":
                report_outcomes(url, got, plans)
            else:
                counted = json.loads(said)
                assert counted["events"] == {"sent": 2 * EACH, "ignored": EACH}, counted
                assert counted["client"] == {"delivered": 2 * EACH, "refused": 0}, counted
        checked(daemon, rows, plans, report)
    audit = run_command("audit", "log.db", cwd=folder)
    report.add("audit", audit.stdout.strip().splitlines()[-1])


def planned(kind: str, count: int) -> list[Row]:
    """Requests of four to a user, with the reward that each model would get."""
    rng = random.Random(f"ofrep {kind}")
    return [
        {
            "request_id": f"{kind}-{number}",
            "unit": f"{kind}-user-{number // 4}",
            "words": rng.randrange(1, 200),
            "routed": rng.choice(["large", "large", "small"]),
            "rewards": {name: float(rng.random() < value) for name, value in VALUES.items()},
            "seconds": {"large": 1.0 + rng.random(), "small": 0.2 + rng.random() / 10},
        }
        for number in range(count)
    ]


def evaluate(
    place: Path, modules: Path, command: list[Any], plan: list[Row], url: str, kind: str
) -> tuple[list[Row], str]:
    """What a peer got for every request of a plan, and what it printed. place: a new folder, with
    copies of our files; modules: for node."""
    place.mkdir()
    (place / "node_modules").symlink_to(modules)
    script = shutil.copy(command[-1], place)
    for source, name in (
        ("client.py", "client.py"),
        ("doors/openfeature.py", "equipoise_openfeature.py"),
        ("doors/openfeature.mjs", "openfeature.mjs"),
    ):
        shutil.copy(ROOT / "agent" / source, place / name)
    asked, got = json_lines(place / "plan.jsonl", plan), place / "got.jsonl"
    done = subprocess.run(
        [*command[:-1], script, asked, got, url, kind],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=300.0,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in got.read_text().splitlines()], done.stdout


def report_outcomes(url: str, rows: list[Row], plans: dict[str, Row]) -> None:
    """Outcomes of a provider that cannot track, by what its metadata said."""
    with Client(url, timeout=5.0) as client:
        for row in rows:
            said, request = row["metadata"], plans[row["request_id"]]
            choice = Choice(
                said["request_id"],
                row["value"],
                said["routed"],
                outcome_token=said["outcome_token"],
            )
            outputs = {"seconds": request["seconds"][row["value"]]}
            client.outcome(
                choice,
                outputs=outputs,
                reward=request["rewards"][row["value"]],
                unit_id=request["unit"],
            )
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
        assert said["unit"] == request["unit"]
        assert said["ignored"] == "plan"
        logged = daemon.ask("GET", f"/v1/decisions/{said['decision_id']}").json
        decision, parts = logged["decision"], logged["outcomes"]
        assert decision["request_id"] == row["request_id"]
        assert decision["model"] == row["value"]
        assert decision["propensity"] == said["propensity"]
        assert decision["routed"] == request["routed"]
        assert logged["unit_id"] == request["unit"]
        rewards = [part["reward"] for part in parts if part["reward"] is not None]
        assert rewards == [request["rewards"][row["value"]]], parts
    report.add("evaluations, each logged once as served", str(len(rows)))
    randomized = sum(row["metadata"]["randomized"] for row in rows)
    report.add("of them randomized", str(randomized))
    estimates = daemon.ask("GET", "/v1/estimates").json
    assert estimates["decisions"] == len(rows)
    for model in estimates["models"]:
        truth = VALUES[model["model"]]
        assert model["lower"] <= truth <= model["upper"], model
        ends = f"{model['lower']:.3f} to {model['upper']:.3f}, truth {truth}"
        report.add(f"certified value of {model['model']}", ends)
