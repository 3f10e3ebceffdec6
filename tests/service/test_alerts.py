"""Alerts: one for each turn of a check, none for its silence, and none again after a restart."""

from __future__ import annotations

import asyncio
import io
import json

import msgspec
import pytest

from equipoise.agent.service.api.schema import CheckAnswer, ChecksAnswer
from equipoise.agent.service.telemetry import Log
from equipoise.agent.service.upkeep.jobs import Alerts
from equipoise.store.memory import MemoryStore


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
def test_turns_are_kept_and_nothing_else(statuses: list[str], kept: list[str]):
    store, stream = MemoryStore(), io.StringIO()
    alerts = Alerts(store, Log("info", stream))
    for at, status in enumerate(statuses):
        asyncio.run(alerts.hear(checks(float(at), drift=status, floors="ok")))
        alerts = Alerts(store, Log("info", stream))  # a restart in between changes nothing
    assert [alert.status for alert in store.alerts()] == kept
    assert all(alert.check == "drift" for alert in store.alerts())
    assert [json.loads(line)["status"] for line in stream.getvalue().splitlines()] == kept


def test_two_guardrails_are_one_check_whose_graver_verdict_counts():
    """They share a name: an alert is kept once, not again with every report."""
    store = MemoryStore()
    alerts = Alerts(store, Log("info", io.StringIO()))
    both = checks(0.0, alarm="alarm", ok="ok")
    named = [msgspec.structs.replace(check, name="guardrail") for check in both.checks]
    for order in (named, named[::-1], named):
        said = asyncio.run(alerts.hear(msgspec.structs.replace(both, checks=order)))
        assert len(said) <= 1
    assert [alert.status for alert in store.alerts()] == ["alarm"]
