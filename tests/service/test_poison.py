"""Odd numbers, families that kill their process, and state that falls behind: through real daemons.

`python tests/service/poison.py` is the long version of the first of these.
"""

from __future__ import annotations

import json
from pathlib import Path

from commands import run_command
from poison import Report, in_order, odd_daemon, poison
from running import Running, running, until

SEED = 3


def test_odd_numbers_leave_every_answer_as_it_was(tmp_path: Path):
    """Seeded: forty of the cases of the long run, which held all of them."""
    report = Report()
    with odd_daemon(tmp_path) as daemon:
        poison(daemon, in_order(40, SEED), SEED, report, every=10)
    assert report.faults == []
    assert report.rows == 40
    assert {200, 422} <= set(report.answers.values())


def injected(folder: Path, code: str) -> dict[str, str]:
    """Environment of processes that run this code before anything of ours."""
    place = folder / "fault"
    place.mkdir()
    (place / "sitecustomize.py").write_text(code)
    return {"PYTHONPATH": str(place)}


IN_ANALYST = """
import sys
if "equipoise.agent.service.analyst.process" in sys.orig_argv:
    import os
    from equipoise.agent.estimators import FAMILIES
    def fatal(moments):
        os.kill(os.getpid(), 9)
    FAMILIES["cvci"] = fatal
"""


def events(daemon: Running, name: str) -> list[dict[str, object]]:
    found = [json.loads(line) for line in daemon.log if line.startswith("{")]
    return [each for each in found if each["event"] == name]


def traffic(daemon: Running, first: int, last: int) -> None:
    requests = [
        {"request_id": f"q{at}", "routed": "large", "features": {"words": 1.0 + at % 90}}
        for at in range(first, last)
    ]
    made = daemon.ask("POST", "/v1/decide/batch", {"requests": requests}).json["decisions"]
    outcomes = [
        {"request_id": each["request_id"], "outputs": {"seconds": 1.0}, "reward": 1.0}
        for each in made
    ]
    answer = daemon.ask("POST", "/v1/outcomes", outcomes)
    assert answer.status == 200, answer.body


def test_a_family_that_kills_the_analyst_is_left_out_with_an_alarm(tmp_path: Path):
    with running(tmp_path, environment=injected(tmp_path, IN_ANALYST)) as daemon:
        traffic(daemon, 0, 400)
        assert daemon.ask("GET", "/v1/estimates").status == 200
        asked = [daemon.ask("GET", "/v1/estimates?family=cvci,grounded").status for _ in range(2)]
        assert asked == [503, 503]
        answer = daemon.ask("GET", "/v1/estimates?family=cvci,grounded")
        assert answer.status == 200
        assert "died 2 times" in answer.json["fallbacks"]["cvci"]
        assert [each["value"] for each in answer.json["families"]["cvci"]] == [None, None]
        assert answer.json["models"][0]["lower"] is not None
        checks = {each["name"]: each for each in daemon.ask("GET", "/v1/checks").json["checks"]}
        assert checks["estimators"]["status"] == "alarm"
        assert "cvci cannot be computed: the analyst died" in checks["estimators"]["sentence"]
        until(lambda: any(each["check"] == "analyst" for each in events(daemon, "check")))
        # It goes on without: the next report is made by a process that lives.
        traffic(daemon, 400, 500)
        assert daemon.ask("GET", "/v1/estimates").json["decisions"] == 500
        assert len(events(daemon, "analyst-failed")) == 2


ON_GROWTH = """
import sys
if "equipoise.agent.service.analyst.process" not in sys.orig_argv:
    from equipoise.agent.pending import Pending
    def fatal(self):
        raise MemoryError
    Pending._grow = fatal
"""


def test_state_that_falls_behind_ends_the_process_for_a_clean_start(tmp_path: Path):
    """Memory that runs out where the table of open decisions grows, after the rows were logged."""
    with running(tmp_path, environment=injected(tmp_path, ON_GROWTH)) as daemon:
        traffic(daemon, 0, 1000)
        requests = [
            {"request_id": f"late{at}", "routed": "large", "features": {"words": 1.0}}
            for at in range(4000)
        ]
        reasons: list[str | None] = []
        for start in range(0, 4000, 1000):
            some = requests[start : start + 1000]
            answer = daemon.ask("POST", "/v1/decide/batch", {"requests": some})
            assert answer.status == 200
            reasons = [each["reason"] for each in answer.json["decisions"]]
            if reasons[0] is not None:
                break
        assert set(reasons) == {"restarting"}
        until(lambda: daemon.process.poll() is not None, 30.0)
        assert daemon.stop() == 70
        (behind,) = events(daemon, "state-behind-log")
        assert behind["fault"] == "MemoryError"
    with running(tmp_path) as daemon:
        assert daemon.ask("GET", "/readyz").status == 200
        # What was logged is there once, whoever asks again.
        before = daemon.ask("GET", "/v1/estimates").json["decisions"]
        for start in range(0, 4000, 1000):
            some = requests[start : start + 1000]
            answer = daemon.ask("POST", "/v1/decide/batch", {"requests": some})
            assert {each["reason"] for each in answer.json["decisions"]} == {None}
        assert before in (2000, 3000, 4000, 5000)
        assert daemon.ask("GET", "/v1/estimates").json["decisions"] == 5000
        assert daemon.stop() == 0
    done = run_command("audit", tmp_path / "log.db")
    assert done.returncode == 0, done.stdout
