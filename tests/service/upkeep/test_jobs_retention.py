"""The daemon moves old rows out by itself, and answers, restarts and audits as before."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from commands import run_command
from running import Running, running, until

from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import file_from_dict

KEEPS = 3.0
"""Seconds for which rows stay."""


def service(folder: Path) -> str:
    archive = json.dumps(str(folder / "old"))
    return (
        'refresh_seconds = 0.3\nlog_level = "info"\n[service.retention]\n'
        f"days = {KEEPS / 86400}\nevery_seconds = 0.4\narchive = {archive}\n"
    )


def traffic(daemon: Running, turn: int) -> None:
    bodies = [
        {"request_id": f"t{turn}-{index}", "routed": "large", "features": {"words": index % 30}}
        for index in range(50)
    ]
    decided = daemon.ask("POST", "/v1/decide/batch", {"requests": bodies}).json["decisions"]
    outcomes = [
        {"decision_id": each["decision_id"], "reward": 1.0, "outputs": {"seconds": 1.0}}
        for each in decided
    ]
    assert daemon.ask("POST", "/v1/outcomes", outcomes).json["accepted"] == 50


def begins(daemon: Running) -> int:
    lines = [json.loads(line) for line in daemon.log]
    return max((line["log_begins"] for line in lines if "log_begins" in line), default=0)


def test_old_rows_go_to_files_and_everything_goes_on(tmp_path: Path):
    with running(tmp_path, service(tmp_path)) as daemon:
        for turn in range(12):
            traffic(daemon, turn)
            if turn in (3, 7):  # three ages, of which the oldest goes first
                time.sleep(0.45 * KEEPS)
        first = until(lambda: begins(daemon))
        before = daemon.ask("GET", "/v1/estimates").json
        assert before["decisions"] == 600
        assert before["log_rows"] == 1200
        # A request from before is new again; one that is still there has its decision.
        again = daemon.decide("t11-3", words=3.0)
        assert again["decision_id"] == "d553"
        assert daemon.ask("GET", "/v1/decisions/d0").status == 404
        assert daemon.decide("t0-0", words=0.0)["decision_id"] == "d600"
        # What was just said is still known to be a repeat, whether its row is there or not.
        old = {"decision_id": "d0", "reward": 1.0}
        assert daemon.ask("POST", "/v1/outcomes", [old]).json["duplicates"] == 1
        until(lambda: begins(daemon) > first)
        daemon.kill()
    with running(tmp_path, service(tmp_path)) as daemon:
        after = until(lambda: daemon.ask("GET", "/v1/estimates").json)
        assert after["decisions"] == 601
        assert after["log_rows"] == 1201
        for field in ("value", "lower", "upper", "exp_rewards"):
            found = [[row[field] for row in told["models"]] for told in (before, after)]
            assert found[0] == found[1]
        # Its row is gone, and the table of open decisions remembers what was said until it moves.
        assert daemon.ask("POST", "/v1/outcomes", [old]).json["duplicates"] == 1
        other = daemon.ask("POST", "/v1/outcomes", [{**old, "reward": 0.0}])
        assert other.json["rejected"][0]["status"] == 409
        assert daemon.stop() == 0
    files = sorted((tmp_path / "old").glob("*.decisions.parquet"))
    numbers = [n for file in files for n in pq.read_table(file)["number"].to_pylist()]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 100
    audited = run_command("audit", tmp_path / "log.db", "--json")
    found = json.loads(audited.stdout)
    assert audited.returncode == 0
    assert found["clean"]
    assert found["begins"] > 0
    assert found["decisions"] + len(numbers) == 601
    told = run_command("audit", tmp_path / "log.db").stdout
    assert f"the log begins at row {found['begins']:,}" in told


def table(**retention: object) -> dict[str, object]:
    return {
        "name": "x",
        "models": [{"name": "a"}, {"name": "b"}],
        "reward": {"window": 86400.0},
        "service": {"retention": retention},
    }


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"days": 0.5, "delete": True}, "service.retention.days"),
        ({"days": 2.0}, "service.retention.archive: received nothing"),
        ({"days": 2.0, "archive": "old", "delete": True}, "beside delete = true"),
        ({"days": 0.0, "delete": True}, "days, above 0"),
        ({"archive": "old"}, "days"),
        ({"days": 2.0, "archive": "old", "every_seconds": 0.0}, "every_seconds"),
    ],
)
def test_what_cannot_be_kept_is_refused(given: dict[str, object], said: str):
    with pytest.raises(ConfigError, match=said):
        file_from_dict(table(**given))


def test_what_can_be_kept_is_taken():
    found = file_from_dict(table(days=2.0, archive="old")).service.retention
    assert found is not None
    assert (found.days, found.archive, found.delete) == (2.0, "old", False)
