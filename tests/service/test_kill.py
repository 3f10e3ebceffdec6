"""Kill -9 under load: nothing acknowledged is missing, nothing is there twice."""

from __future__ import annotations

import json
from pathlib import Path

from commands import run_command
from killing import study
from running import running

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
