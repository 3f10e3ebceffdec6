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
import pytest
from running import running, write_config

from equipoise.agent.agent import Agent
from equipoise.agent.config.file import load_file
from equipoise.agent.lifecycle.eras import read_answers
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service.analyst.client import MOST_WAITING, Saved
from equipoise.agent.service.analyst.connection import AnalystError, CrowdedError
from equipoise.agent.service.analyst.reports import AlarmAction, report
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.telemetry import Log
from equipoise.agent.state import fold
from equipoise.store.contract import StoredRecord
from equipoise.store.errors import FullStoreError
from equipoise.store.journal import JournaledStore


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
            assert made.log_rows == agent.light.next_seq
            own = report(agent, ["ipw"], made.at)
            assert made.estimates == own.estimates
            assert made.recommendation() == own.recommendation()
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
        assert made.log_rows == daemon.agent.light.next_seq
        second = daemon.analysis._process
        assert second is not None
        os.kill(second.pid, signal.SIGSTOP)
        traffic(daemon, 80, 90)
        waiting = asyncio.create_task(daemon.analysis.report())
        await asyncio.sleep(0.3)
        assert not waiting.done()
        traffic(daemon, 90, 100)
        os.kill(second.pid, signal.SIGKILL)
        with pytest.raises(AnalystError):
            await waiting
        assert (await daemon.analysis.report()).log_rows == daemon.agent.light.next_seq
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

        def slow_put(record: StoredRecord) -> None:
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


def test_what_one_client_wants_to_see_is_not_computed_for_ever(daemon: Daemon):
    async def work() -> None:
        traffic(daemon, 0, 60)
        plain = await daemon.analysis.report()
        wide = await daemon.analysis.read(["ipw", "obs-only", "doubly-robust"])
        assert wide.facts.keys() > plain.facts.keys()
        traffic(daemon, 60, 90)
        assert await daemon.analysis.refresh() is True
        newest = daemon.analysis.newest
        assert newest is not None
        assert newest.facts.keys() == plain.facts.keys()
        again = await daemon.analysis.read(["ipw", "obs-only"])
        assert again.log_rows == newest.log_rows
        assert again.estimates.models == newest.estimates.models

    run(daemon, work)


PLAN = b'{"models": 3, "traffic": 500.0, "reward_rate": 0.4, "effect": 0.1}'


def test_a_plan_holds_up_no_refresh_and_only_so_many_wait(daemon: Daemon):
    async def work() -> None:
        analysis = daemon.analysis
        traffic(daemon, 0, 60)
        await analysis.refresh()
        assert (await analysis.plan(PLAN, False)).body
        process = analysis._clients._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        plans = [asyncio.create_task(analysis.plan(PLAN, False)) for _ in range(MOST_WAITING)]
        await asyncio.sleep(0.1)
        with pytest.raises(CrowdedError):
            await analysis.plan(PLAN, False)
        for turn in range(1, 4):
            traffic(daemon, 60 * turn, 60 * turn + 60)
            assert await asyncio.wait_for(analysis.refresh(), 60) is True
        assert not any(plan.done() for plan in plans)
        analysis.abandon()
        assert all(
            isinstance(each, AnalystError)
            for each in await asyncio.gather(*plans, return_exceptions=True)
        )

    run(daemon, work)


def test_an_analyst_that_hangs_is_known_and_started_again(daemon: Daemon):
    async def work() -> None:
        analysis = daemon.analysis
        traffic(daemon, 0, 40)
        await analysis.refresh()
        assert daemon.readiness().ready
        process = analysis._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        traffic(daemon, 40, 60)
        analysis._seconds = 2.0
        waiting = asyncio.create_task(analysis.report())
        while not waiting.done() and daemon.readiness().ready:
            await asyncio.sleep(0.02)
        assert any("analyst" in problem for problem in daemon.readiness().problems)
        with pytest.raises(AnalystError, match="longer than 2 seconds"):
            await waiting
        analysis._seconds = 120.0
        assert daemon.readiness().ready
        assert (await analysis.report()).log_rows == daemon.agent.light.next_seq
        assert analysis._process is not process

    run(daemon, work)


HANGING = """
import sys
if "equipoise.agent.service.analyst.process" in sys.orig_argv:
    import signal
    from equipoise.agent.estimators import FAMILIES
    FAMILIES["cvci"] = lambda moments: signal.pause()
"""


def test_a_family_that_an_analyst_hangs_over_is_left_out_by_both(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "sitecustomize.py").write_text(HANGING)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    async def work() -> None:
        analysis, clients = daemon.analysis, daemon.analysis._clients
        traffic(daemon, 0, 60)
        before = await analysis.report()
        await clients.start()
        clients._seconds = 0.5
        while "cvci" not in analysis._off:
            with pytest.raises(AnalystError):
                await analysis.report(["cvci"])
            # As long as this machine needs to come so far, and without the waits in between.
            clients._seconds *= 2
            clients._restarts._until.clear()
        assert analysis._off == {"cvci": "the analyst hung 2 times in a row over it"}
        clients._seconds = 120.0
        made = await analysis.report(["cvci"])
        assert "hung 2 times" in made.estimates.fallbacks["cvci"]
        process = analysis._process
        own = await analysis.read()
        assert own.log_rows == before.log_rows
        sentences = {each.name: each.sentence for each in own.checks.checks}
        assert "cvci cannot be computed: the analyst hung" in sentences["estimators"]
        assert analysis._process is process, "that of the daemon hears of it and goes on"
        assert [each.status for each in daemon.store.alerts() if each.check == "analyst"] == [
            "alarm"
        ]
        # What it hung over is forgotten with the configuration, and not when it only rests.
        analysis._rest()
        assert clients._process is None
        assert analysis._off
        analysis.forget()
        assert not analysis._off

    run(daemon, work)


def test_a_configuration_that_ends_a_question_is_no_failure_of_the_analyst(daemon: Daemon):
    async def work() -> None:
        analysis = daemon.analysis
        traffic(daemon, 0, 40)
        await analysis.report()
        process = analysis._process
        assert process is not None
        os.kill(process.pid, signal.SIGSTOP)
        traffic(daemon, 40, 60)
        for _ in range(2):
            waiting = asyncio.create_task(analysis.report())
            while analysis._question_at is None and not waiting.done():
                await asyncio.sleep(0.01)
            analysis.forget()
            with pytest.raises(AnalystError):
                await waiting
        assert daemon.counters.refresh_failures == 0
        assert analysis._restarts.failures("ask") == 0
        assert (await analysis.report()).log_rows == daemon.agent.light.next_seq

    run(daemon, work)


def test_an_analyst_that_fails_is_started_again(daemon: Daemon):
    async def work() -> None:
        traffic(daemon, 0, 40)
        await daemon.analysis.refresh()
        daemon.analysis._adopted.clear()
        traffic(daemon, 40, 50)
        with pytest.raises(AnalystError, match="rules"):
            await daemon.analysis.report()
        assert (await daemon.analysis.report()).log_rows == daemon.agent.light.next_seq

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
            agent.answers.view()
        before = agent.light.watermark, agent.light.late, agent.light.randomized
        async with daemon.with_sums():
            canonical = Agent(agent.config, daemon.store, None)
            assert agent.fold.to_bytes() == canonical.fold.to_bytes()
            certified = agent.answers.certified()
            agent.controls.open_era("a test", 5.0)
        kept = read_answers(daemon.store)[0].parts[0]
        assert (kept.rows, kept.lower) == (certified.rows, certified.lower.tolist())
        assert (agent.light.watermark, *before[1:]) == before
        assert not agent.state.keeps_sums
        traffic(daemon, 900, 1500)
        assert await daemon.analysis.refresh() is True, "the analyst heard of the era's rule"
        async with daemon.with_sums():
            canonical = Agent(agent.config, daemon.store, None)
            assert agent.fold.to_bytes() == canonical.fold.to_bytes()
            assert agent.rule.era == 1

    run(daemon, work)


def test_an_era_that_begins_while_a_proposal_is_stored_is_not_undone(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    """SQLite is busy with the proposal of a refresh when somebody begins an era: the era stays, and
    memory numbers the rules as the store does."""
    stored, put = threading.Event(), daemon.store.put

    def slow(record: object) -> None:
        if threading.current_thread() is not threading.main_thread():
            stored.wait(10.0)
        put(record)

    async def work() -> None:
        agent = daemon.agent
        daemon._lighten()
        traffic(daemon, 0, 600)
        await daemon.analysis.report()
        monkeypatch.setattr(daemon.store, "put", slow)
        refresh = asyncio.create_task(daemon.analysis.refresh())
        await asyncio.sleep(0.1)

        async def begin() -> None:
            async with daemon.with_sums():
                agent.controls.open_era("a test", 5.0)

        era = asyncio.create_task(begin())
        await asyncio.sleep(0.3)
        stored.set()
        assert await refresh is True
        await era
        assert agent.rule.era == 1
        numbers = [(agent.state.rules.ordinal(name), name) for _, name in daemon.store.rule_ids()]
        assert numbers == list(daemon.store.rule_ids())
        traffic(daemon, 600, 1200)
        assert (await daemon.analysis.report()).estimates.era == 1

    run(daemon, work)


def test_a_proposal_from_before_an_era_that_began_is_not_adopted(daemon: Daemon):
    async def work() -> None:
        analysis = daemon.analysis
        traffic(daemon, 0, 60)
        before = await analysis.report()
        async with analysis.freezing:
            refresh = asyncio.create_task(analysis.refresh())
            await asyncio.sleep(0.1)  # it has its proposal, and waits for us
            daemon.agent.controls.open_era("a test", 5.0)
            analysis.adopt(daemon.agent.rule.record(5.0))
        assert await refresh is False
        assert analysis.newest is before
        assert daemon.agent.rule.era == 1

    run(daemon, work)


def test_an_era_without_a_row_is_reported_anew(daemon: Daemon):
    async def work() -> None:
        traffic(daemon, 0, 60)
        before = await daemon.analysis.report()
        async with daemon.with_sums():
            daemon.agent.controls.open_era("a test", 5.0)
        after = await daemon.analysis.report()
        assert (before.estimates.era, after.estimates.era) == (0, 1)
        assert after.log_rows == before.log_rows

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
        drifts = AlarmAction(check="drift", action=action, sentence="It drifts.", models=[])
        alarmed = msgspec.structs.replace(made, actions=[drifts])
        state = daemon.analysis.state

        async def counted() -> Saved:
            states.append(agent.light.next_seq)
            return await state()

        monkeypatch.setattr(daemon.analysis, "state", counted)
        for _ in range(3):
            await daemon._review(alarmed)
        assert agent.rule.era == asked
        assert (agent.state.paused is not None) == (action == "pause")
        assert not agent.state.keeps_sums

    run(daemon, work)
    assert len(states) == asked


def test_a_store_that_fails_meanwhile_leaves_the_daemon_as_it_was(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch
):
    async def work() -> None:
        agent = daemon.agent
        daemon._lighten()
        traffic(daemon, 0, 700)
        before = agent.light.next_seq, agent.light.pending.next, agent.light.randomized

        def refuse(*_: object, **__: object) -> None:
            raise FullStoreError("the disk is full")

        with monkeypatch.context() as failing:
            failing.setattr(daemon.store, "read", refuse)
            with pytest.raises(FullStoreError):
                async with daemon.with_sums():
                    raise AssertionError("nothing may be done with half a state")
        assert (agent.light.next_seq, agent.light.pending.next, agent.light.randomized) == before
        assert not agent.state.keeps_sums
        traffic(daemon, 700, 900)
        async with daemon.with_sums():
            canonical = Agent(agent.config, daemon.store, None)
            assert agent.fold.to_bytes() == canonical.fold.to_bytes()

    run(daemon, work)


def test_rows_are_closed_and_late_alike_with_sums_and_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fold, "CHUNK", 1024)
    found = []
    for name in ("whole", "light"):
        (tmp_path / name).mkdir()
        path = write_config(tmp_path / name)
        file = load_file(path, {"store": str(tmp_path / name / "log.db")})
        with JournaledStore(file.service.store) as store:
            write_key(store.path)
            log = Log("error", io.StringIO())
            daemon = Daemon(file.experiment, file.service, store, bytes(range(32)), log)
            daemon.adapter._clock = lambda: 1.0
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
            light = daemon.agent.light
            table = light.pending
            found.append((answers, light.late, light.watermark, table.base, table.size))
    assert found[0] == found[1]
    assert found[0][2] > 0


def test_a_question_that_cannot_be_computed_costs_no_other_its_answer(tmp_path: Path):
    """A planner that fails, in the real process: `sitecustomize` takes a function away from it."""
    (tmp_path / "sitecustomize.py").write_text(
        "import equipoise.agent.planning.stored as stored\n"
        "import equipoise.agent.planning.plan as plan\n"
        "def fail(*arguments, **names): raise ZeroDivisionError('of the planner')\n"
        "stored.running_problem = plan._main = fail\n"
        "import equipoise.agent.planning.forecast as forecast\n"
        "forecast.running_problem = fail\n"
    )
    with running(tmp_path, environment={"PYTHONPATH": str(tmp_path)}) as daemon:
        numbers = {"models": 2, "traffic": 500.0, "reward_rate": 0.4, "effect": 0.1}
        for asked in (numbers, {}):
            told = daemon.ask("POST", "/v1/plan", asked)
            assert told.status == 500
            assert "ZeroDivisionError: of the planner" in told.json["detail"]
        made = daemon.ask("GET", "/v1/forecast")
        assert made.status == 200
        assert (
            "There is no forecast: the planner failed (ZeroDivisionError" in made.json["sentence"]
        )
        assert daemon.ask("GET", "/v1/estimates").status == 200
    log = "".join(daemon.log)
    assert log.count("plan-failed") == 2
    assert "analyst-failed" not in log
    assert "analyst-died" not in log
