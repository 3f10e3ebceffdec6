"""The Grafana board: by the types that Grafana publishes, and over a real Prometheus.

Grafana itself is in no registry that tests install from, so its part is checked against the types
of its npm package. What the panels show is asked of a Prometheus that scrapes a running daemon.
"""

from __future__ import annotations

import json
import random
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from harness import PEERS, ROOT, Report, debian_with, node_with
from running import Running, running, until

OPERATIONS = ROOT / "docs" / "operations"
BOARD = OPERATIONS / "grafana.json"
PACKAGES = (
    "@grafana/schema@13.2.3",
    "ajv@8.20.0",
    "ts-json-schema-generator@2.4.0",
    "typescript@5.9.3",
)
PROMETHEUS = "prometheus=2.42.0+ds-5+deb12u1"
SETTINGS = '{"compilerOptions": {"module": "esnext", "moduleResolution": "bundler"}}'
CONFIG = """
name = "chat"
models = [{name = "large", price = 0.02}, {name = "small", price = 0.002}]
[features]
context = [{type = "number", name = "words", low = 0, scale = 100}]
[policy]
assignment = "uniform"
rate = 0.5
[budget]
requests = 5000
after_decision = "continue"
"""
SERVICE = "refresh_seconds = 0.5\nforecast_seconds = 1.0"
SCRAPES = """
global: {scrape_interval: 500ms, scrape_timeout: 500ms}
scrape_configs:
  - job_name: equipoise
    static_configs: [{targets: ["127.0.0.1:%d"]}]
"""


def drive(folder: Path, report: Report) -> None:
    report.peer = "; ".join((*PACKAGES[:1], PROMETHEUS))
    by_the_types(report)
    tools = debian_with("grafana-prometheus", PROMETHEUS) / "usr" / "bin"
    check = [tools / "promtool", "check", "rules", OPERATIONS / "alerts.yml"]
    done = subprocess.run(check, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    report.add("promtool reads the alert rules", done.stdout.strip().splitlines()[-1].strip())
    with (
        running(folder, SERVICE, config=CONFIG) as daemon,
        prometheus(tools / "prometheus", folder, daemon.port) as url,
    ):
        over_prometheus(daemon, url, report)


def by_the_types(report: Report) -> None:
    folder = node_with("grafana-node", *PACKAGES)
    (folder / "tsconfig.json").write_text(SETTINGS)
    script = shutil.copy(PEERS / "grafana_schema.mjs", folder)

    def faults(board: Path) -> Any:
        command = ["node", script, board]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    answer = faults(BOARD)
    assert answer["faults"] == [], answer["faults"]
    # It can fail: a property that nobody declared, a word that is none, in each of the three.
    broken = json.loads(BOARD.read_text())
    stat, series = (
        next(panel for panel in broken["panels"] if panel["type"] == kind)
        for kind in ("stat", "timeseries")
    )
    broken["refersh"] = "30s"
    stat["options"]["colorMode"] = "colour"
    series["fieldConfig"]["defaults"]["custom"]["linewidth"] = 1
    (folder / "broken.json").write_text(json.dumps(broken))
    found = " ".join(faults(folder / "broken.json")["faults"])
    assert all(word in found for word in ("refersh", "colorMode", "linewidth")), found
    report.add("panels that fit the types of Grafana", str(answer["panels"]))


@contextmanager
def prometheus(program: Path, folder: Path, target: int) -> Iterator[str]:
    """A Prometheus that scrapes a daemon twice a second: its address."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    (folder / "prometheus.yml").write_text(SCRAPES % target)
    server = subprocess.Popen(
        [
            program,
            f"--config.file={folder / 'prometheus.yml'}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        url = f"http://127.0.0.1:{port}"
        until(lambda: asked(url, "up == 1"), 30.0)
        yield url
    finally:
        server.terminate()
        server.wait(20.0)


def asked(url: str, expression: str) -> list[Any]:
    """What an expression is now: samples with their labels; [] while nobody answers."""
    query = urllib.parse.urlencode({"query": expression})
    try:
        with urllib.request.urlopen(f"{url}/api/v1/query?{query}", timeout=10.0) as answer:
            found = json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == 503:  # it is starting
            return []
        raise AssertionError(f"{expression}: {error.read().decode()}") from None
    except OSError:
        return []
    return list(found["data"]["result"])


def over_prometheus(daemon: Running, url: str, report: Report) -> None:
    """Every panel has something to show; the certified ends are those of the daemon."""
    traffic(daemon)
    panels = [panel for panel in json.loads(BOARD.read_text())["panels"] if panel["type"] != "row"]
    empty = {
        target["expr"].replace("$instance", ".*").replace("$__rate_interval", "1m")
        for panel in panels
        for target in panel["targets"]
    }
    number, end = len(empty), time.monotonic() + 60.0
    while empty := {expression for expression in empty if not asked(url, expression)}:
        assert time.monotonic() < end, f"nothing is shown by {sorted(empty)}"
        time.sleep(0.2)
    report.add("expressions that show something", str(number))
    estimates = daemon.ask("GET", "/v1/estimates").json

    def ends() -> bool:
        found = {
            (sample["metric"]["model"], end): float(sample["value"][1])
            for end in ("lower", "upper")
            for sample in asked(url, f"equipoise_interval_{end}")
        }
        return all(
            found.get((model["model"], end)) == model[end]
            for model in (*estimates["models"], estimates["todays_routing"])
            for end in ("lower", "upper")
        )

    until(ends, 30.0)
    report.add("certified ends, as the daemon says them", str(2 * len(estimates["models"]) + 2))
    decided = asked(url, "sum(equipoise_decisions_total)")[0]["value"][1]
    assert int(decided) == estimates["decisions"]
    report.add("decisions counted", decided)


def traffic(daemon: Running) -> None:
    """600 decisions, the last four without an outcome; some passed through; over some scrapes."""
    rng = random.Random(20)
    for number in range(600):
        choice = daemon.decide(f"g{number}", words=float(rng.randrange(200)))
        if number < 596:
            reward = float(rng.random() < {"large": 0.6, "small": 0.55}[choice["model"]])
            daemon.ask("POST", "/v1/outcomes", {"request_id": f"g{number}", "reward": reward})
        if number % 100 == 0:
            time.sleep(0.5)
    switch = daemon.store.with_name(daemon.store.name + ".kill")
    switch.touch()
    until(lambda: daemon.ask("GET", "/readyz").json["mode"]["kill_switch"])
    for number in range(6):
        daemon.decide(f"passed-{number}")
        time.sleep(0.5)
    switch.unlink()
