"""Kill -9 under load: nothing acknowledged is missing, nothing is there twice."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

from commands import run_command
from killing import study
from running import running, until

from equipoise.agent.service.analyst.process import _watch
from equipoise.store.format.frames import tail_files


def test_killing_at_random_moments_loses_nothing(tmp_path: Path):
    promises, found = study(tmp_path, moments=10, seed=20)
    assert found == []
    assert len(promises.decisions) > 200
    assert len(promises.outcomes) > 200


def test_killing_the_analyst_too_stops_no_decision(tmp_path: Path):
    promises, found = study(tmp_path, moments=2, seed=21, kind="analyst")
    assert found == []
    assert len(promises.decisions) > 50


def test_commands_that_read_see_what_a_killed_daemon_had_acknowledged(tmp_path: Path):
    """Stopped in the middle of everything; then killed, with rows only the tail has."""
    with running(tmp_path) as daemon:
        for index in range(30):
            daemon.decide(f"r{index}")
        daemon.kill()
    assert tail_files(daemon.store)
    for _ in range(2):
        result = run_command("audit", daemon.store, "--json")
        assert result.returncode == 0, result.stderr
        assert json.loads(result.stdout)["decisions"] == 30
        assert json.loads(result.stdout)["clean"] is True
    assert tail_files(daemon.store) == []


def test_an_analyst_that_hangs_ends_with_a_killed_daemon(tmp_path: Path):
    """One that is stopped hears nothing at all: neither its pipe nor a thread of its own."""
    with running(tmp_path, "refresh_seconds = 0.25") as daemon:
        children = Path(f"/proc/{daemon.process.pid}/task/{daemon.process.pid}/children")
        until(lambda: children.read_text().split())
        (analyst,) = map(int, children.read_text().split())
        until(lambda: b"analyst" in Path(f"/proc/{analyst}/cmdline").read_bytes())
        # It has asked for its end once it answers.
        assert daemon.ask("GET", "/v1/estimates").status == 200
        os.kill(analyst, signal.SIGSTOP)
        daemon.kill()
        until(lambda: not Path(f"/proc/{analyst}").exists() or _is_zombie(analyst))


def _is_zombie(process: int) -> bool:
    """Whether it ended, and whoever inherited it has not looked yet."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def test_an_analyst_at_work_looks_for_its_daemon():
    """Where the kernel does not end it: with another parent than at its start it ends itself."""
    child = os.fork()
    if not child:
        _watch(os.getpid())
        os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
