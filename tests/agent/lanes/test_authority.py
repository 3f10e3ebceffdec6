"""An authority over a hub: it publishes, numbers what deciders ship, and hands over to the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fleet import Lane
from lane_hubs import KEY, QUICK, Clock, Turns, config_of, request

from equipoise.agent.agent import Agent
from equipoise.agent.errors import AwaitedError, UnknownDecisionError
from equipoise.agent.lanes.authority import Authority
from equipoise.agent.lanes.decider import LaneKeeper
from equipoise.agent.maintenance.audit import audit
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import OutcomeBatch, RequestBatch
from equipoise.store.contract import Store
from equipoise.store.lanes import Hub, Parcel
from equipoise.store.lanes.memory import MemoryHub
from equipoise.store.lanes.postgres import PostgresHub
from equipoise.store.lanes.sqlite import SqliteHub
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Outcome

Connect = Callable[[], Hub]


class Events(list[str]):
    """What an authority says."""

    def info(self, event: str, **facts: Any) -> None:
        self.append(event)

    warning = info


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def connect(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Connect]:
    """Opens the hub of this test, for one more user."""
    if request.param == "memory":
        hub = MemoryHub()
        yield lambda: hub
        return
    opened: list[Hub] = []
    if request.param == "postgres":
        url = request.getfixturevalue("postgres_url")

    def connect() -> Hub:
        if request.param == "sqlite":
            opened.append(SqliteHub(tmp_path / "log.db.lanes"))
        else:
            opened.append(PostgresHub(url))
        return opened[-1]

    yield connect
    for hub in opened:
        hub.close()


class Run:
    """An authority and its deciders, in step with a test."""

    def __init__(self, connect: Connect, folder: Path, store: Store | None = None) -> None:
        self.connect, self.folder = connect, folder
        self.store = MemoryStore() if store is None else store
        self.config = config_of(budget={"requests": 400})
        self.events, self.deposed = Events(), 0
        self.keepers: list[LaneKeeper] = []

    async def begin(self, name: str = "first", **times: float) -> Authority:
        self.agent = Agent(self.config, self.store, KEY, at=1.0)
        self.agent.controls.set_lanes(True, 1.0)
        hub = self.connect()
        term = hub.elect(name, 10.0)
        assert term is not None
        self.authority = Authority(
            self.agent,
            RecordAdapter(self.agent),
            hub,
            term,
            self.events,
            publish_seconds=0.02,
            grace=times.get("grace", 5.0),
            deposed=self.depose,
        )
        await self.authority.start()
        return self.authority

    def depose(self) -> None:
        self.deposed += 1

    async def join(self, **settings: float) -> LaneKeeper:
        number = len(self.keepers) + 1
        keeper = LaneKeeper(
            self.connect,
            KEY,
            self.folder / f"decider-{number}",
            f"decider-{number}",
            QUICK,
            run=Turns().run,
        )
        self.keepers.append(keeper)
        keeper.start()
        await self.until(lambda: keeper.lane is not None and keeper.decides)
        return keeper

    async def until(self, holds: Callable[[], object], turns: int = 2000) -> None:
        for _ in range(turns):
            if holds():
                return
            await self.authority.turn()
            await asyncio.sleep(0.002)
        raise AssertionError(f"it never came: {self.authority.report()}")


def test_decisions_and_outcomes_of_deciders_come_into_the_log(
    connect: Connect, tmp_path: Path
) -> None:
    async def scenario() -> None:
        run = Run(connect, tmp_path)
        authority = await run.begin()
        first, second = await run.join(), await run.join()
        rng = np.random.default_rng(0)
        made = {}
        for at in range(300):
            keeper = (first, second)[at % 2]
            made[f"r{at}"] = keeper.lane.records.decide_one(request(f"r{at}"))
            if at % 50 == 49:
                await run.until(lambda: run.store.decisions > 0)
        for at, (name, decision) in enumerate(made.items()):
            keeper = (first, second)[int(rng.integers(2))]
            by_request = Outcome(request_id=name, reward=float(at % 2), outputs={"seconds": 1.0})
            by_id = Outcome(
                decision_id=decision.decision_id, reward=float(at % 2), outputs={"seconds": 1.0}
            )
            keeper.lane.records.observe([by_id if at % 3 else by_request])
        await run.until(lambda: run.store.decisions == 300)
        await run.until(lambda: authority.done.outcomes == 300)
        numbers = run.store.find_requests(list(made))
        for name, decision in made.items():
            stored = run.store.decision(numbers[name])
            (told,) = RecordAdapter(run.agent).records(stored)
            assert told == decision
        report = authority.report()
        assert (report.decisions, report.late, report.refused) == (300, 0, {})
        drawn = sum(decision.randomized for decision in made.values())
        assert sum(lane.draws for lane in report.lanes) == drawn <= 400
        for keeper in run.keepers:
            stopping = asyncio.to_thread(keeper.close, 10.0)
            task = asyncio.create_task(stopping)
            await run.until(task.done)
        await run.until(lambda: not authority.report().lanes)
        await authority.stop()
        assert run.agent.answers.view().watermark == 300
        assert audit(run.store, run.config, KEY).faults == []

    asyncio.run(scenario())


def test_another_authority_goes_on_where_the_first_one_was_killed(
    connect: Connect, tmp_path: Path
) -> None:
    async def scenario() -> None:
        run = Run(connect, tmp_path)
        first = await run.begin()
        keeper = await run.join()
        for at in range(100):
            keeper.lane.records.decide_one(request(f"a{at}"))
        await run.until(lambda: run.store.decisions == 100)
        rule = run.agent.rule.rule_id
        # Killed: nobody resigns. Its term runs out, or here is taken from it.
        connect().resign(first._term)
        await run.begin("second")
        for at in range(100):
            keeper.lane.records.decide_one(request(f"b{at}"))
        await run.until(lambda: run.store.decisions == 200)
        assert run.agent.rule.rule_id == rule
        # The first wakes up: it cannot publish, number or forget anything.
        await first.turn()
        assert first.over
        assert run.deposed == 1
        task = asyncio.create_task(asyncio.to_thread(keeper.close, 10.0))
        await run.until(task.done)
        await run.authority.stop()
        assert audit(run.store, run.config, KEY).faults == []
        assert run.store.decisions == 200

    asyncio.run(scenario())


def test_a_term_that_ran_out_is_taken_again_where_nobody_else_was_elected(
    connect: Connect, tmp_path: Path
) -> None:
    async def scenario() -> None:
        run = Run(connect, tmp_path)
        authority = await run.begin()
        keeper = await run.join()
        keeper.lane.records.decide_one(request("r0"))
        await run.until(lambda: run.store.decisions == 1)
        adapter = RecordAdapter(run.agent)
        adapter.awaits = authority.awaits
        lane = keeper.lane.lease.lane
        assert adapter.observe([Outcome(decision_id=f"d{lane}-0", reward=1.0)]).rows == 1
        with pytest.raises(AwaitedError, match=f"'d{lane}-9' is not in the log yet"):
            adapter.observe([Outcome(decision_id=f"d{lane}-9", reward=1.0)])
        with pytest.raises(UnknownDecisionError, match="'d99-9' does not exist"):
            adapter.observe([Outcome(decision_id="d99-9", reward=1.0)])
        connect().resign(authority._term)
        keeper.lane.records.decide_one(request("r1"))
        await run.until(lambda: run.store.decisions == 2)
        assert "elected-again" in run.events
        assert not authority.over
        # And not where somebody was.
        connect().resign(authority._term)
        assert connect().elect("another", 10.0) is not None
        await authority.turn()
        assert authority.over
        assert run.deposed == 1
        keeper.close(1.0)

    asyncio.run(scenario())


def test_a_lane_that_is_lost_delays_the_others_until_its_lease_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        hub = MemoryHub()
        run = Run(lambda: hub, tmp_path)
        authority = await run.begin(grace=0.2)
        held, lost = await run.join(), await run.join()
        stuck = lost.lane
        number = stuck.lease.lane
        # Asleep: it ships nothing, and renews nothing.
        monkeypatch.setattr(lost, "_turn", lambda: None)
        stuck.records.decide_one(request("late"))
        held.lane.records.decide_one(request("waits"))
        for _ in range(20):
            await authority.turn()
            await asyncio.sleep(0.01)
        assert run.store.decisions == 0
        assert authority.report().behind > 0.0
        await run.until(lambda: "lane-lost" in run.events)
        await run.until(lambda: run.store.decisions == 1)
        assert list(run.store.find_requests(["waits"])) == ["waits"]
        monkeypatch.undo()
        await run.until(lambda: run.store.decisions == 2)
        assert authority.done.late == 1
        await run.until(lambda: number not in {lane.lane for lane in authority.report().lanes})
        for keeper in run.keepers:
            task = asyncio.create_task(asyncio.to_thread(keeper.close, 10.0))
            await run.until(task.done)
        await authority.stop()
        found = audit(run.store, run.config, KEY)
        assert (found.faults, found.left_out) == ([], {"late": 1})

    asyncio.run(scenario())


def test_what_came_while_no_authority_was_there_is_not_late(tmp_path: Path) -> None:
    """Longer than the window of its rewards: they came in time, and their decisions are closed by
    nobody before they have been read."""

    async def run() -> None:
        clock = Clock()
        hub = MemoryHub(clock)
        run = Run(lambda: hub, tmp_path)
        run.config = config_of(reward={"window": 50.0, "missing": 0.0})
        before = await run.begin()
        lease = hub.join("decider", 1e6)
        lane = Lane(lease.lane, Agent(run.config, MemoryStore(), KEY, at=1.0, lane=lease.lane))
        await before.turn()
        newest = hub.newest()
        documents = {name: hub.document(name) for name in newest.documents}
        lane.adopt(newest, documents)
        clock.now += 1.0
        for number in range(10):
            requests = RequestBatch(
                unit=np.array([number]),
                context=np.array([-1]),
                at=np.array([clock()]),
                x=np.zeros((1, 1)),
                routed=np.array([0]),
            )
            batch = lane.decide(requests)
            lane.observe(
                OutcomeBatch(
                    number=batch.number,
                    served=batch.model,
                    attempt=np.ones(1, dtype=np.int64),
                    delivered=np.ones(1, dtype=bool),
                    outputs=np.zeros((1, 1)),
                    reward=np.ones(1),
                    at=batch.at,
                )
            )
        hub.ship(lease, lane.unshipped, adopted=lane.version, spent=lane.spent)
        hub.resign(before._term)
        clock.now += 100.0
        authority = await run.begin("second")
        await authority.turn()
        # The lane acts by the publication before: its decisions are still to enter.
        assert (run.store.decisions, hub.waiting()["outcomes"]) == (0, 10)
        hub.ship(lease, [], adopted=hub.newest().version, spent=lane.spent)
        heard: list[float] = []
        outcomes = hub.outcomes
        hub.outcomes = lambda limit: heard.append(authority.heard) or outcomes(limit)
        await authority.turn()
        assert run.store.decisions == 10
        assert heard == [-np.inf]
        assert authority.heard == clock()
        assert (authority.done.outcomes, authority.done.out_of_time) == (10, 0)
        assert authority.done.refused == {}
        assert run.agent.expire(authority.heard) == 0

    asyncio.run(run())


def test_what_came_late_waits_for_others_of_its_publication(tmp_path: Path) -> None:
    async def run() -> None:
        hub = MemoryHub(Clock())
        authority = await Run(lambda: hub, tmp_path).begin()
        parcels = [
            Parcel(2, place, "decisions", version, 1, b"", late=True)
            for place, version in enumerate((1, 2, 3))
        ]
        hub.decisions = lambda version: iter(parcels)
        assert [parcel.version for parcel in authority._fetch(2)] == [1, 2]

    asyncio.run(run())
