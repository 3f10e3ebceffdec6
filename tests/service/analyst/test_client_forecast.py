"""The daemon renews the time to its decision by itself, and says when the plan will slip."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

from running import CONFIG, Running, running, until

PLANNED = CONFIG + "[budget]\nplanned = 130\n"
EAGER = "refresh_seconds = 0.3\nforecast_seconds = 0.5"


def traffic(daemon: Running, start: int, stop: int) -> None:
    """Two models that are alike: every other user is pleased with either."""
    bodies = [
        {"request_id": f"r{index}", "routed": "large", "features": {"words": 10.0}}
        for index in range(start, stop)
    ]
    decided = daemon.ask("POST", "/v1/decide/batch", {"requests": bodies}).json["decisions"]
    served: Counter[tuple[str, bool]] = Counter()
    outcomes = []
    for each in decided:
        group = each["model"], each["randomized"]
        served[group] += 1
        reward = float(served[group] % 2)
        outcome = {"decision_id": each["decision_id"], "reward": reward}
        outcomes.append({**outcome, "outputs": {"seconds": 1.0}})
    assert daemon.ask("POST", "/v1/outcomes", outcomes).json["accepted"] == len(outcomes)


def test_it_is_renewed_as_data_arrive_and_alarms_before_the_plan_is_used_up(tmp_path: Path):
    with running(tmp_path, EAGER, config=PLANNED) as daemon:
        early = daemon.ask("GET", "/v1/forecast").json
        assert early["state"] == "unknown"
        assert early["planned"] == 130
        traffic(daemon, 0, 150)
        first = until(lambda: known(daemon, 150))
        assert first["total"]["low"] > 130 > first["randomized"]
        assert "The plan was 130." in first["sentence"]
        traffic(daemon, 150, 200)
        second = until(lambda: known(daemon, 200))
        assert second["log_rows"] > first["log_rows"]
        assert second["randomized"] > first["randomized"]
        assert second["randomized"] < 130, "the plan is not used up"
        # The next report knows of it, and its alarm goes the way of all alarms.
        traffic(daemon, 200, 210)
        until(lambda: alarmed(daemon))
        until(lambda: ("plan", "alarm") in alerts(daemon))
        metrics = daemon.ask("GET", "/metrics").body.decode()
        assert 'equipoise_decided_after_randomized{quantile="0.5"}' in metrics
        assert 'equipoise_check{check="plan",status="alarm"} 1.0' in metrics
    with running(tmp_path, EAGER, config=PLANNED) as daemon:
        again = until(lambda: known(daemon, 210))
        assert again["randomized"] >= second["randomized"], "a restart forecasts from the log"


def known(daemon: Running, decisions: int) -> dict | None:
    """The forecast, once it rests on so many decisions and their outcomes."""
    made = daemon.ask("GET", "/v1/forecast").json
    enough = made["state"] == "pending" and made["log_rows"] >= 2 * decisions
    return made if enough else None


def alarmed(daemon: Running) -> bool:
    checks = daemon.ask("GET", "/v1/checks").json["checks"]
    (plan,) = [check for check in checks if check["name"] == "plan"]
    return plan["status"] == "alarm" and "will slip" in plan["sentence"]


def alerts(daemon: Running) -> list[tuple[str, str]]:
    """Checks and their statuses in the daemon's log."""
    lines = [json.loads(line) for line in daemon.log]
    return [(line["check"], line["status"]) for line in lines if "check" in line]
