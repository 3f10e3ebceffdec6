"""The analyst: its state is the daemon's, and its death costs an answer and nothing else."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from running import CONFIG, write_config

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.gateway import Gateway
from equipoise.agent.keyfile import write_key
from equipoise.agent.service.analysis import AnalysisError
from equipoise.agent.service.analyst import State
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.logs import Log
from equipoise.agent.service.reports import Due, report
from equipoise.store.contract import Kept
from equipoise.store.errors import FullStoreError
from equipoise.store.journaled import JournaledStore
from equipoise.store.records import Outcome, Request
from equipoise.store.sqlite import SqliteStore


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    file = load_file(write_config(tmp_path), {"store": str(tmp_path / "log.db")})
    store = JournaledStore(file.service.store)
    key = write_key(store.path)
    yield Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))
    store.close()


def traffic(daemon: Daemon, start: int, stop: int) -> None:
    for index in range(start, stop):
        body: dict[str, Any] = {
            "request_id": f"r{index}",
            "routed": ("large", "small")[index % 2],
            "features": {"words": index % 30},
        }
        daemon.hot.decide(json.dumps(body).encode())
        if index % 3:
            part = {"request_id": f"r{index}", "reward": index % 5 / 5, "outputs": {"seconds": 1}}
            daemon.hot.outcomes(json.dumps(part).encode())


def run(daemon: Daemon, work: Callable[[], Awaitable[None]]) -> None:
    async def whole() -> None:
        try:
            await work()
        finally:
            await daemon.analysis.close()

    asyncio.run(whole())


def test_its_state_and_its_report_are_those_of_the_daemon(daemon: Daemon):
    async def work() -> None:
        agent = daemon.agent
        for turn in range(3):
            traffic(daemon, 700 * turn, 700 * (turn + 1))
            made = await daemon.analysis.report(["ipw"])
            assert made.log_rows == agent.fold.next_seq
            own = report(agent, ["ipw"], made.at)
            assert made.estimates == own.estimates
            assert made.recommendations == own.recommendations
            assert made.rule.rule_id == own.rule.rule_id
            assert await daemon.analysis.refresh() is True
            assert agent.rule.rule_id == own.rule.rule_id
        seq = await daemon.analysis.checkpoint(1.0)
        saved = daemon.store.restore()
        assert saved is not None
        assert (saved.seq, saved.state) == (seq, agent.fold.to_bytes())

    run(daemon, work)


def test_nothing_new_is_not_computed_again(daemon: Daemon):
    async def work() -> None:
        traffic(daemon, 0, 10)
        first = await daemon.analysis.report()
        assert await daemon.analysis.report() is first
        together = await asyncio.gather(*(daemon.analysis.report(["ipw"]) for _ in range(5)))
        assert all(one is together[0] for one in together)
        assert together[0] is not first

    run(daemon, work)


def test_a_killed_analyst_costs_one_answer(daemon: Daemon):
    async def work() -> None:
        traffic(daemon, 0, 50)
        await daemon.analysis.refresh()
        process = daemon.analysis._process
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)
        await process.wait()
        traffic(daemon, 50, 80)
        made = await daemon.analysis.report()
        assert made.log_rows == daemon.agent.fold.next_seq
        second = daemon.analysis._process
        assert second is not None
        os.kill(second.pid, signal.SIGSTOP)
        traffic(daemon, 80, 90)
        waiting = asyncio.create_task(daemon.analysis.report())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        traffic(daemon, 90, 100)
        os.kill(second.pid, signal.SIGKILL)
        with pytest.raises(AnalysisError):
            await waiting
        assert (await daemon.analysis.report()).log_rows == daemon.agent.fold.next_seq
        assert await daemon.analysis.refresh() is True
        assert daemon.agent.rule.rule_id == report(daemon.agent, [], 0.0).rule.rule_id

    run(daemon, work)


def test_a_rule_adopted_during_a_question_reaches_the_analyst(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    """Found by killing: a rule that was adopted while a checkpoint was made was never sent, the
    analyst numbered the later ones otherwise, and its next checkpoint held wrong centres."""

    async def work() -> None:
        traffic(daemon, 0, 40)
        await daemon.analysis.report()
        process = daemon.analysis._process
        assert process is not None
        called, free, put = threading.Event(), threading.Event(), daemon.store.put

        def slow_put(record: Kept) -> None:
            called.set()
            free.wait(10)
            put(record)

        monkeypatch.setattr(daemon.store, "put", slow_put)
        adopting = asyncio.create_task(daemon.analysis.refresh())
        await asyncio.to_thread(called.wait, 10)
        os.kill(process.pid, signal.SIGSTOP)
        saving = asyncio.create_task(daemon.analysis.checkpoint(1.0))
        await asyncio.sleep(0.3)
        free.set()
        assert await adopting is True
        os.kill(process.pid, signal.SIGCONT)
        await saving
        for turn in range(2):  # a second rule, and decisions under it alone
            traffic(daemon, 40 + 40 * turn, 80 + 40 * turn)
            assert await daemon.analysis.refresh() is True
        traffic(daemon, 120, 160)
        await daemon.analysis.checkpoint(2.0)
        saved = daemon.store.restore()
        assert saved is not None
        assert saved.state == daemon.agent.fold.to_bytes()
        assert daemon.analysis._process is process, "it was not started again"

    run(daemon, work)


def test_an_analyst_that_fails_is_started_again(daemon: Daemon):
    async def work() -> None:
        traffic(daemon, 0, 40)
        await daemon.analysis.refresh()
        daemon.analysis._adopted.clear()
        traffic(daemon, 40, 50)
        with pytest.raises(AnalysisError, match="rules"):
            await daemon.analysis.report()
        assert (await daemon.analysis.report()).log_rows == daemon.agent.fold.next_seq

    run(daemon, work)


def test_a_restart_acts_by_the_last_rule(daemon: Daemon, tmp_path: Path):
    async def work() -> None:
        traffic(daemon, 0, 40)
        await daemon.analysis.refresh()

    first = daemon.agent.rule.rule_id
    run(daemon, work)
    last = daemon.agent.rule.rule_id
    assert last != first
    daemon.store.close()
    with JournaledStore(tmp_path / "log.db") as store:
        assert Agent(daemon.agent.config, store, None).rule.rule_id == last


def test_a_daemon_that_keeps_no_sums_regains_them_bit_for_bit(daemon: Daemon):
    async def work() -> None:
        agent = daemon.agent
        daemon._lighten()
        traffic(daemon, 0, 900)
        with pytest.raises(RuntimeError, match="no sums"):
            agent.view()
        before = agent.fold.certified.watermark, agent.fold.late, agent.fold.randomized
        async with daemon.whole():
            canonical = Agent(agent.config, daemon.store, None)
            assert agent.fold.to_bytes() == canonical.fold.to_bytes()
            agent.open_era("a test", 5.0)
            daemon.analysis.adopt(daemon.store.rules()[-1])
        assert (agent.fold.certified.watermark, *before[1:]) == before
        assert not agent.fold.keeps_sums
        traffic(daemon, 900, 1500)
        assert await daemon.analysis.refresh() is True, "the analyst heard of the era's rule"
        async with daemon.whole():
            canonical = Agent(agent.config, daemon.store, None)
            assert agent.fold.to_bytes() == canonical.fold.to_bytes()
            assert agent.rule.era == 1

    run(daemon, work)


@pytest.mark.parametrize(("action", "asked"), [("report", 0), ("new-era", 1), ("pause", 0)])
def test_an_alarm_that_stands_costs_no_sums_unless_an_era_begins(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, action: str, asked: int
):
    """Reports come every second; regaining sums with each would hold up every decision."""
    states: list[int] = []

    async def work() -> None:
        agent = daemon.agent
        daemon._lighten()
        traffic(daemon, 0, 300)
        made = await daemon.analysis.report()
        due = [Due(check="drift", action=action, sentence="It drifts.", models=[])]
        alarmed = msgspec.structs.replace(made, due=due)
        state = daemon.analysis.state

        async def counted() -> State:
            states.append(agent.fold.next_seq)
            return await state()

        monkeypatch.setattr(daemon.analysis, "state", counted)
        for _ in range(3):
            await daemon._carry_out(alarmed)
        assert agent.rule.era == asked
        assert (agent.paused is not None) == (action == "pause")
        assert not agent.fold.keeps_sums

    run(daemon, work)
    assert len(states) == asked


def test_a_store_that_fails_meanwhile_leaves_the_daemon_as_it_was(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    async def work() -> None:
        agent = daemon.agent
        daemon._lighten()
        traffic(daemon, 0, 700)
        before = agent.fold.next_seq, agent.fold.pending.next, agent.fold.randomized

        def refuse(*_: object, **__: object) -> None:
            raise FullStoreError("the disk is full")

        with monkeypatch.context() as failing:
            failing.setattr(daemon.store, "read", refuse)
            with pytest.raises(FullStoreError):
                async with daemon.whole():
                    raise AssertionError("nothing may be done with half a state")
        assert (agent.fold.next_seq, agent.fold.pending.next, agent.fold.randomized) == before
        assert not agent.fold.keeps_sums
        traffic(daemon, 700, 900)
        async with daemon.whole():
            canonical = Agent(agent.config, daemon.store, None)
            assert agent.fold.to_bytes() == canonical.fold.to_bytes()

    run(daemon, work)


def test_rows_are_closed_and_late_alike_with_sums_and_without(tmp_path: Path):
    found = []
    for name in ("whole", "light"):
        (tmp_path / name).mkdir()
        path = write_config(tmp_path / name)
        file = load_file(path, {"store": str(tmp_path / name / "log.db")})
        with JournaledStore(file.service.store) as store:
            write_key(store.path)
            log = Log("error", io.StringIO())
            daemon = Daemon(file.experiment, file.service, store, bytes(range(32)), log)
            daemon.gateway._clock = lambda: 1.0
            if name == "light":
                daemon._lighten()
            traffic(daemon, 0, 1200)
            answers = []
            for number in range(0, 1200, 7):  # too late for some, a repeat or a conflict for others
                part = {"decision_id": f"d{number}", "reward": number % 5 / 5}
                try:
                    answers.append(daemon.hot.outcomes(json.dumps(part).encode()))
                except ValueError as error:
                    answers.append(str(error))
            fold = daemon.agent.fold
            table = fold.pending
            found.append((answers, fold.late, fold.certified.watermark, table.base, table.size))
    assert found[0] == found[1]
    assert found[0][2] > 0


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


def test_an_embedded_agent_does_at_a_refresh_what_the_daemon_does(tmp_path: Path):
    """One log by both paths: first the router turns around and rewards jump, which begins an era;
    then a model breaks its limit, and since one would be left all is paused."""
    folders = [tmp_path / "daemon", tmp_path / "embedded"]
    for folder in folders:
        folder.mkdir()
    path = write_config(folders[0], "refresh_seconds = 0.05\n", GUARDED)
    file = load_file(path, {"store": str(folders[0] / "log.db")})
    store = JournaledStore(file.service.store)
    key = write_key(store.path)
    made = Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))
    with SqliteStore(folders[1] / "log.db") as other:
        embedded = Agent(file.experiment, other, key, at=made.clock())
        door = Gateway(embedded, made.clock)

        async def work() -> None:
            rng = np.random.default_rng(2)
            for turn in range(14):
                names = [f"r{turn}-{row}" for row in range(400)]
                requests = [
                    Request(request_id=name, routed="large", features={"words": row % 30})
                    for row, name in enumerate(names)
                ]
                decided = made.gateway.decide(requests)
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
                made.gateway.observe(outcomes)
                door.observe(outcomes)
                await made._refresh()
                report = made.analysis.newest
                assert report is not None
                embedded.refresh(report.at)

        run(made, work)
        agent = made.agent
        assert agent.rule.era == embedded.rule.era >= 1
        assert agent.paused == embedded.paused
        assert agent.paused is not None
        assert [each.rule_id for each in store.rules()] == [each.rule_id for each in other.rules()]
        eras = [(each.era, each.reason, each.models) for each in store.eras()]
        assert eras == [(each.era, each.reason, each.models) for each in other.eras()]
        alerts = [(each.check, each.status, each.sentence) for each in store.alerts()]
        assert alerts == [(each.check, each.status, each.sentence) for each in other.alerts()]
        assert {"drift", "guardrail", "pause"} <= {name for name, _, _ in alerts}
    store.close()
