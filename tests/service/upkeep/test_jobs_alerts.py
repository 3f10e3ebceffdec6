"""Alerts: one for each turn of a check, none for its silence, and none again after a restart."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
from running import write_config

from equipoise.agent.config.file import load_file
from equipoise.agent.controls import Controls
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service.api.estimates import CheckAnswer, ChecksAnswer
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.telemetry import Log
from equipoise.store.journal import JournaledStore


@pytest.fixture
def log() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def daemon(tmp_path: Path, log: io.StringIO) -> Iterator[Daemon]:
    file = load_file(write_config(tmp_path), {"store": str(tmp_path / "log.db")})
    with JournaledStore(file.service.store) as store:
        key = write_key(store.path)
        yield Daemon(file.experiment, file.service, store, key, Log("info", log))


def review(daemon: Daemon, answer: ChecksAnswer) -> None:
    """As the daemon does with a report that asks for nothing else."""
    report = SimpleNamespace(checks=answer, actions=[], estimates=SimpleNamespace(era=0))
    asyncio.run(daemon._review(report))  # type: ignore[arg-type]


def checks(at: float, **statuses: str) -> ChecksAnswer:
    return ChecksAnswer(
        status="unknown",
        checks=[
            CheckAnswer(
                name=name,
                status=status,  # type: ignore[arg-type]
                sentence=f"{name} is {status}.",
                figures={},
                level=0.01,
                models=[],
            )
            for name, status in statuses.items()
        ],
        at=at,
        log_rows=0,
    )


@pytest.mark.parametrize(
    ("statuses", "kept"),
    [
        (["unknown", "ok", "unknown"], []),
        (["ok", "alarm", "alarm", "alarm"], ["alarm"]),
        (["watch", "alarm", "watch", "ok", "ok"], ["watch", "alarm", "watch", "ok"]),
        (["alarm", "unknown", "alarm"], ["alarm", "unknown", "alarm"]),
    ],
)
@pytest.mark.parametrize("restarts", [False, True])
def test_turns_are_kept_and_nothing_else(
    daemon: Daemon, log: io.StringIO, statuses: list[str], kept: list[str], restarts: bool
):
    agent = daemon.agent
    for at, status in enumerate(statuses):
        review(daemon, checks(float(at), drift=status, floors="ok"))
        if restarts:  # in between they change nothing
            agent.controls = Controls(agent.state, agent.answers)
    assert [alert.status for alert in agent.store.alerts()] == kept
    assert all(alert.check == "drift" for alert in agent.store.alerts())
    assert [json.loads(line)["status"] for line in log.getvalue().splitlines()] == kept


def test_two_guardrails_are_one_check_whose_graver_verdict_counts(daemon: Daemon):
    """They share a name: an alert is kept once, not again with every report."""
    both = checks(0.0, alarm="alarm", ok="ok")
    named = [msgspec.structs.replace(check, name="guardrail") for check in both.checks]
    for order in (named, named[::-1], named):
        before = len(daemon.store.alerts())
        review(daemon, msgspec.structs.replace(both, checks=order))
        assert len(daemon.store.alerts()) <= before + 1
    assert [alert.status for alert in daemon.store.alerts()] == ["alarm"]
