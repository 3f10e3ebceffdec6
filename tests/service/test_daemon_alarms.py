"""What an alarm does is the same in the daemon and in a program that embeds the agent."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
from running import CONFIG, write_config

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.telemetry import Log
from equipoise.store.journal import JournaledStore
from equipoise.store.records import Outcome, Request
from equipoise.store.sqlite import SqliteStore

GUARDED = (
    CONFIG
    + """[reward]
window = 1000.0
[[guardrails]]
name = "errors"
limit = 0.2
[checks]
drift = "new-era"
"""
)


def run(daemon: Daemon, work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await work()
        finally:
            await daemon.analysis.close()

    asyncio.run(whole())


def test_an_embedded_agent_does_at_a_refresh_what_the_daemon_does(tmp_path: Path):
    """One log by both paths: first the router turns around and rewards jump, which begins an era;
    then a model breaks its limit, and since one would be left all is paused."""
    folders = [tmp_path / "daemon", tmp_path / "embedded"]
    for folder in folders:
        folder.mkdir()
    path = write_config(folders[0], "refresh_seconds = 0.05\n", GUARDED)
    file = load_file(path, {"store": str(folders[0] / "log.db")})
    store = JournaledStore(file.service.store)
    key = bytes(range(32))  # with a random one the limit is not broken in time now and then
    made = Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))
    with SqliteStore(folders[1] / "log.db") as other:
        embedded = Agent(file.experiment, other, key, at=made.clock())
        door = RecordAdapter(embedded, made.clock)

        async def work() -> None:
            rng = np.random.default_rng(2)
            for turn in range(14):
                names = [f"r{turn}-{row}" for row in range(400)]
                requests = [
                    Request(request_id=name, routed="large", features={"words": row % 30})
                    for row, name in enumerate(names)
                ]
                decided = made.adapter.decide(requests)
                again = door.decide(requests)
                assert [item.model for item in decided] == [item.model for item in again]
                outcomes = []
                for item in decided:
                    broken = turn > 10 and item.model == "small"
                    part = {
                        "outputs": {"seconds": 1.0},
                        "reward": float(rng.random() < (0.2 if turn < 5 else 0.8)),
                        "metrics": {"errors": float(rng.random() < (0.7 if broken else 0.05))},
                    }
                    outcomes.append(Outcome(decision_id=item.decision_id, **part))
                made.adapter.observe(outcomes)
                door.observe(outcomes)
                await made._refresh()
                report = made.analysis.newest
                assert report is not None
                embedded.refresh(report.at)

        run(made, work)
        agent = made.agent
        assert agent.rule.era == embedded.rule.era >= 1
        assert agent.state.paused == embedded.state.paused
        assert agent.state.paused is not None
        assert [each.rule_id for each in store.rules()] == [each.rule_id for each in other.rules()]
        eras = [(each.era, each.reason, each.models) for each in store.eras()]
        assert eras == [(each.era, each.reason, each.models) for each in other.eras()]
        alerts = [(each.check, each.status, each.sentence) for each in store.alerts()]
        assert alerts == [(each.check, each.status, each.sentence) for each in other.alerts()]
        assert {"drift", "guardrail", "pause"} <= {name for name, _, _ in alerts}
    store.close()
