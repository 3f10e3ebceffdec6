"""Deciders behind one port and their authority, as processes: what is answered where, and kills."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families
from running import CONFIG, Running, start, until

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.service import LaneSettings, ServiceSettings
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.maintenance.key_file import read_key
from equipoise.agent.service.roles import _socket_folder
from equipoise.store.lanes.opening import open_hub
from equipoise.store.records import decision_position
from equipoise.store.sqlite import SqliteStore

ROOT = Path(__file__).parents[2]
WINDOW = CONFIG + "[reward]\nwindow = 3600.0\n"
LANES = "[service.lanes]\nlease_seconds = 2.0\npublish_seconds = 0.2\nstale_seconds = 20.0\n"


def children(daemon: Running) -> dict[str, int]:
    """Process ids of the supervisor's children by their names."""
    table = subprocess.run(
        ["ps", "-ww", "--ppid", str(daemon.process.pid), "-o", "pid=,args="],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    found = {}
    for line in table.splitlines():
        pid, _, arguments = line.strip().partition(" ")
        name = arguments.partition('"name":"')[2].partition('"')[0]
        if name:
            found[name] = int(pid)
    return found


def decided(daemon: Running, name: str) -> Any:
    """A decision, once a lane is there."""

    def ask() -> Any:
        answer = daemon.decide(name)
        return answer if answer["decision_id"] is not None else None

    return until(ask)


def positions(folder: Path) -> Counter[int]:
    """Positions of the decisions in the log, which an audit finds clean."""
    path = folder / "log.db"
    with SqliteStore(path, read_only=True) as store:
        text = stored_config.load(store)
        assert text is not None
        found = audit(store, ExperimentConfig.from_json(text), read_key(path))
    assert found.faults == []
    with sqlite3.connect(path) as database:
        return Counter(row[0] for row in database.execute("SELECT draw FROM decisions"))


@pytest.fixture(scope="module")
def workers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Two deciders that hold lanes, and their authority."""
    folder = tmp_path_factory.mktemp("workers")
    daemon = start(folder, LANES, "--workers", "2", config=WINDOW)
    try:
        until(lambda: lanes_held(daemon) == 2)
        yield daemon
    finally:
        daemon.stop(seconds=60.0)


def lanes_held(daemon: Running) -> int:
    return sum(lane["held"] for lane in daemon.ask("GET", "/v1/lanes").json["lanes"])


def newest_lane(daemon: Running) -> int:
    return max(lane["lane"] for lane in daemon.ask("GET", "/v1/lanes").json["lanes"])


def is_newer(daemon: Running, lane: int) -> bool:
    """Whether a later lane was leased. What was on its way to a killed decider is cut off."""
    try:
        return newest_lane(daemon) > lane
    except OSError:
        return False


def test_both_deciders_answer_and_any_takes_an_outcome(workers: Running) -> None:
    made = [decided(workers, f"both-{at}") for at in range(40)]
    lanes = {name.partition("-")[0] for name in (each["decision_id"] for each in made)}
    assert len(lanes) == 2
    rows = [
        {
            "decision_id": each["decision_id"],
            "outcome_token": each["outcome_token"],
            "reward": 0.5,
            "outputs": {"seconds": 1.0},
        }
        for each in made
    ]
    # One body for all of them: whichever decider gets it knows half.
    answer = workers.ask("POST", "/v1/outcomes", rows)
    assert answer.json == {"accepted": 40, "duplicates": 0, "late": 0, "rejected": []}
    wrong = [{**rows[at], "outcome_token": rows[0]["outcome_token"]} for at in range(1, 40)]
    answer = workers.ask("POST", "/v1/outcomes", wrong)
    assert {each["status"] for each in answer.json["rejected"]} == {403}
    assert len(answer.json["rejected"]) == 39
    by_request = {"request_id": "both-3", "reward": 0.5, "outcome_token": rows[3]["outcome_token"]}
    assert workers.ask("POST", "/v1/outcomes", by_request).status == 200
    report = until(
        lambda: (found := workers.ask("GET", "/v1/lanes").json)["outcomes"] >= 40 and found
    )
    assert report["refused"] == {}
    assert report["repeated"] == report["late"] == 0


def test_flags_are_evaluated_by_deciders(workers: Running) -> None:
    body = {"context": {"targetingKey": "u1", "routed": "large", "words": 3}}
    flag = workers.ask("POST", "/ofrep/v1/evaluate/flags/chat", body).json
    position = decision_position(flag["metadata"]["decision_id"])
    assert position is not None
    assert position >> 40
    assert workers.ask("POST", "/ofrep/v1/evaluate/flags", body).status == 200


def test_the_rest_is_answered_by_the_authority(workers: Running) -> None:
    assert workers.ask("GET", "/v1/estimates?family=ipw").json["experiment"] == "chat"
    assert workers.ask("GET", "/").body.startswith(b"<!doctype html>")
    assert workers.ask("GET", "/nothing").status == 404
    assert workers.ask("DELETE", "/v1/estimates").status == 405
    assert workers.ask("POST", "/v1/pause", {"reason": "lunch"}).json["paused"] is True
    until(lambda: not decided(workers, f"paused-{time.monotonic()}")["randomized"])
    assert workers.ask("POST", "/v1/resume", {}).json["paused"] is False
    rows = b'{"routed":"large","features":[1.0],"outputs":[2.0],"reward":0.5}\n' * 3
    headers = {"content-type": "application/x-ndjson"}
    answer = workers.ask("POST", "/v1/observations", rows, **headers)
    assert answer.json["rows"] == 3


def test_health_readiness_and_metrics_are_each_deciders_own(workers: Running) -> None:
    assert workers.ask("GET", "/healthz").json["status"] == "alive"
    ready = workers.ask("GET", "/readyz")
    assert (ready.status, ready.json["problems"]) == (200, [])
    assert ready.json["lane"] >= 1
    text = workers.ask("GET", "/metrics").body.decode()
    assert "equipoise_lane_decides 1.0" in text
    families = text_string_to_metric_families(text)
    exposed = {
        f"{each.name}_total" if each.type == "counter" else each.name: each.documentation
        for each in families
        if each.name.startswith("equipoise_lane")
    }
    page = (ROOT / "docs/reference/metrics.md").read_text().partition("## Of a decider")[2]
    rows = re.findall(r"^\| `(\w+)` \| \w+ \| none \| (.*) \|$", page, re.MULTILINE)
    assert dict(rows) == exposed


def rows_left(folder: Path) -> int:
    """Rows and lanes that only an authority lets into the log."""
    with open_hub(folder / "log.db") as hub:
        rows = sum(hub.waiting().values())
    return rows + len(list((folder / "log.db.lanes.d").glob("lane-*.lane")))


def test_kill_nine_of_deciders_and_then_of_their_supervisor_loses_nothing(tmp_path: Path) -> None:
    daemon = start(tmp_path, LANES, "--workers", "2", config=WINDOW)
    try:
        until(lambda: lanes_held(daemon) == 2)
        made = []
        for turn in range(1):
            made += [decided(daemon, f"r{turn}-{at}") for at in range(30)]
            newest = newest_lane(daemon)
            os.kill(children(daemon)[f"decider-{turn + 1}"], signal.SIGKILL)
            until(lambda newest=newest: is_newer(daemon, newest))
        made += [decided(daemon, f"last-{at}") for at in range(30)]
        left = children(daemon)
    finally:
        daemon.kill()
    # Without their supervisor they end as if they had been told to.
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left.values()))
    alone = start(tmp_path, LANES, config=WINDOW)
    assert alone.stop() == 0
    assert ('"event":"lanes-left"' in "".join(alone.log)) is bool(rows_left(tmp_path))
    again = start(tmp_path, LANES, "--workers", "1", config=WINDOW)
    made += [decided(again, f"again-{at}") for at in range(10)]
    assert again.stop(seconds=60.0) == 0
    found = positions(tmp_path)
    assert max(found.values()) == 1
    assert {decision_position(each["decision_id"]) for each in made} <= found.keys()
    assert list((tmp_path / "log.db.lanes.d").iterdir()) == []


def test_a_decider_alone_passes_through_and_says_where_the_rest_is(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(bytes(32))
    daemon = start(tmp_path, "", "--role", "decider", "--key", str(key))
    try:
        answer = daemon.decide("r1")
        assert (answer["reason"], answer["model"]) == ("lane-lost", "large")
        assert daemon.ask("GET", "/readyz").status == 503
        refused = daemon.ask("GET", "/v1/estimates")
        assert refused.status == 503
        assert "`authority`" in refused.json["detail"]
        outcome = {"request_id": "r1", "reward": 1.0}
        assert daemon.ask("POST", "/v1/outcomes", outcome).status == 503
    finally:
        assert daemon.stop() == 0


def test_an_authority_alone_leaves_deciding_to_deciders(tmp_path: Path) -> None:
    daemon = start(tmp_path, "", "--role", "authority")
    try:
        assert daemon.decide("r1")["reason"] == "no-decider"
        assert daemon.ask("GET", "/v1/lanes").json["lanes"] == []
    finally:
        assert daemon.stop() == 0


def scraped(daemon: Running, query: str = "") -> dict[str, float]:
    """Samples without labels of one process."""
    text = daemon.ask("GET", f"/metrics{query}").body.decode()
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if not sample.labels
    }


def test_metrics_of_each_process_are_had_at_the_one_port(workers: Running) -> None:
    # What is held back is known once the analyst was asked.
    assert workers.ask("GET", "/v1/estimates").status == 200
    for _ in range(5):
        held = [scraped(workers, f"?process=decider-{at}")["equipoise_lane"] for at in (1, 2)]
        assert len({0.0, *held}) == 3
        assert "equipoise_held_back" in scraped(workers, "?process=authority")
    unknown = workers.ask("GET", "/metrics?process=decider-9")
    assert unknown.status == 404
    assert "authority, decider-1, decider-2" in unknown.json["detail"]


def test_sockets_of_a_killed_supervisor_are_removed_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "t"))
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        lanes = Path(short, "lanes")
        deep = tmp_path / "deep" / ("long" * 30)
        for folder, place, begin in (
            (lanes, lanes, "sockets-"),
            (deep, tmp_path / "t", "equipoise-"),
        ):
            settings = ServiceSettings(store="log.db", lanes=LaneSettings(folder=str(folder)))
            left = place / f"{begin}{gone.pid}-x"
            held = place / f"{begin}{os.getppid()}-x"
            for each in (left, held):
                each.mkdir(parents=True)
                (each / "0.sock").touch()
            with _socket_folder(settings) as own:
                assert (left.exists(), held.exists()) == (False, True)
                assert own.parent == place
                assert own.name.startswith(f"{begin}{os.getpid()}-")
                assert own.stat().st_mode & 0o777 == 0o700
            assert list(place.iterdir()) == [held]
