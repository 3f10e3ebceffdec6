"""Clocks that are set: every job keeps its pace, no window moves, and it is said."""

from __future__ import annotations

import asyncio
import io
import json
import random
import selectors
from collections.abc import Callable
from datetime import datetime
from itertools import pairwise, repeat
from typing import Any

import pytest
from apscheduler.job import Job
from running import CONFIG, write_config

from equipoise.agent.agent import Agent
from equipoise.agent.config import config_from_dict
from equipoise.agent.config.file import load_file
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.control import SLEW, Clock
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.agent.service.upkeep.jobs import Jobs
from equipoise.store.journal import JournaledStore
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Request

HOUR, DAY = 3600.0, 86_400.0
START = 1_700_000_000.0


class _Skip(selectors.DefaultSelector):
    """Waits for nothing: what it would have waited is added to `passed`."""

    passed = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        events = super().select(0)
        if not events and timeout is not None and timeout > 0:
            self.passed += timeout
        return events


class Machine(asyncio.SelectorEventLoop):
    """An event loop in its own time, beside a wall clock that can be set."""

    def __init__(self) -> None:
        self._skip = _Skip()
        self.set_by = 0.0
        super().__init__(self._skip)

    def time(self) -> float:
        return self._skip.passed

    def wall(self) -> float:
        return START + self.time() + self.set_by


@pytest.fixture
def machine(monkeypatch):
    loop = Machine()

    class Now(datetime):
        @classmethod
        def now(cls, tz=None):
            return datetime.fromtimestamp(loop.wall(), tz)

    for module in ("schedulers.base", "triggers.interval"):
        monkeypatch.setattr(f"apscheduler.{module}.datetime", Now)
    yield loop
    loop.close()


def runs_of(
    machine: Machine,
    intervals: dict[str, float],
    seconds: float,
    beside: Callable[[Jobs], Any],
) -> dict[str, list[float]]:
    """When each job ran, in the loop's time, while `beside(jobs)` was going on."""
    ran: dict[str, list[float]] = {name: [0.0] for name in intervals}

    async def work() -> None:
        jobs = Jobs(Counters(), Log("error"), machine.wall)

        async def job(name: str) -> None:
            ran[name].append(machine.time())

        for name, interval in intervals.items():
            jobs.add(name, interval, lambda name=name: job(name))
        jobs.start()
        other = asyncio.ensure_future(beside(jobs))
        await asyncio.sleep(seconds)
        other.cancel()
        await jobs.stop(1.0)
        for times in ran.values():
            times.append(machine.time())

    machine.run_until_complete(work())
    return ran


# At 97.22 the next job is due before the next look at the clock.
STEPS = {
    "an hour back": (97.22, [-HOUR]),
    "a day forward": (97.22, [DAY]),
    "thirty days forward": (97.22, [30 * DAY]),
    "a minute back, often": (11.3, repeat(-60.0)),
    "forward, often": (3.7, repeat(HOUR)),
    "to and fro": (7.1, [HOUR, -HOUR, 30 * DAY, -30 * DAY, -DAY, DAY] * 8),
    "less than a step": (0.9, repeat(-0.4)),
}


@pytest.mark.parametrize("steps", list(STEPS))
def test_a_wall_clock_that_is_set_makes_no_job_late_and_none_run_more_often(
    machine: Machine, steps: str, monkeypatch
):
    listed = []
    original = Job._get_run_times
    monkeypatch.setattr(
        Job, "_get_run_times", lambda job, now: listed.append(original(job, now)) or listed[-1]
    )
    every, by = STEPS[steps]

    async def beside(jobs: Jobs) -> None:
        for step in by:
            await asyncio.sleep(every)
            machine.set_by += step

    intervals = {"short": 0.25, "refresh": 1.0, "expiry": 5.0, "checkpoint": 60.0}
    ran = runs_of(machine, intervals, 400.0, beside)
    for name, interval in intervals.items():
        gaps = [later - earlier for earlier, later in pairwise(ran[name])]
        assert max(gaps) <= 2.0 * interval, name
        if steps in ("an hour back", "a day forward", "thirty days forward"):
            # At most one run comes early, where APScheduler wakes up before the step is noticed.
            assert 400.0 / interval - 4 <= len(gaps) <= 400.0 / interval + 3, name
    # What was missed is never listed: 30 days of a job a second would be 2.6 million times.
    assert max(len(times) for times in listed) == 1


def test_setting_the_same_interval_again_changes_nothing(machine: Machine):
    intervals = {"refresh": 1.0, "checkpoint": 60.0}

    async def beside(jobs: Jobs) -> None:
        while True:
            await asyncio.sleep(0.6)
            for name, interval in intervals.items():
                jobs.change(name, interval)

    ran = runs_of(machine, intervals, 400.0, beside)
    assert len(ran["refresh"]) - 2 == pytest.approx(400, abs=2)
    assert len(ran["checkpoint"]) - 2 == 6


def test_another_interval_begins_at_once(machine: Machine):
    async def beside(jobs: Jobs) -> None:
        await asyncio.sleep(10.0)
        jobs.change("job", 2.0)

    ran = runs_of(machine, {"job": 3600.0}, 20.5, beside)
    assert ran["job"][1:-1] == pytest.approx([12.0, 14.0, 16.0, 18.0, 20.0], abs=0.01)


class Pair:
    """A machine's clock that can be set, beside passing time."""

    def __init__(self, wall: float = START) -> None:
        self.passed, self.set_by = 50.0, wall - 50.0

    def clock(self) -> Clock:
        return Clock(lambda: self.set_by + self.passed, lambda: self.passed)


@pytest.mark.parametrize("seed", range(5))
def test_the_agents_clock_goes_by_the_time_that_passes_whatever_is_set(seed: int):
    rng, pair = random.Random(seed), Pair()
    clock = pair.clock()
    before, told = clock(), 0.0
    for _ in range(2000):
        seconds = rng.choice([0.05, 0.1, 0.1, 3.0])
        pair.passed += seconds
        if rng.random() < 0.02:
            pair.set_by += rng.choice([-HOUR, DAY, 30 * DAY, -30 * DAY, 2.0, -2.0])
        told += clock.adjust()
        now = clock()
        assert seconds * (1 - SLEW) - 1e-3 <= now - before <= seconds * (1 + SLEW) + 1e-3
        before = now
    assert told == pytest.approx(pair.set_by - (START - 50.0), abs=1e-3)


@pytest.mark.parametrize("step", [90.0, -90.0])
def test_the_agents_clock_comes_back_to_the_machines(step: float):
    pair = Pair()
    clock = pair.clock()
    pair.set_by += step
    assert clock.adjust() == pytest.approx(step)
    assert clock.off == pytest.approx(step)
    looks = 0
    while abs(clock.off) > 1e-3 and looks < 30_000:
        pair.passed += 0.1
        assert clock.adjust() == 0.0
        looks += 1
    assert looks * 0.1 == pytest.approx(90.0 / SLEW, rel=0.01)


@pytest.mark.parametrize("step", [-HOUR, DAY, 30 * DAY])
def test_outcome_windows_are_as_long_as_declared_whatever_is_set(step: float):
    """Decisions every minute, a window of 10; the clock is set in the middle. None expires before
    its window is over by the time that passed, and all do soon after."""
    config = config_from_dict(
        {
            "name": "chat",
            "models": [{"name": "large"}, {"name": "small"}],
            "features": {"context": [{"type": "number", "name": "words"}], "outputs": []},
            "reward": {"window": 600.0},
            "policy": {"assignment": "uniform", "rate": 0.5},
        }
    )
    pair = Pair()
    clock = pair.clock()
    agent = Agent(config, MemoryStore(), bytes(32), at=clock())
    desk = RecordAdapter(agent, clock)
    ended: dict[int, int] = {}
    for second in range(0, 3000, 5):
        pair.passed += 5.0
        if second == 1200:
            pair.set_by += step
        clock.adjust()
        if second % 60 == 0 and second < 1800:
            desk.decide([Request(request_id=f"r{second}", routed="large", features={"words": 1.0})])
        agent.expire(clock())
        for number in range(agent.light.pending.base, agent.light.pending.next):
            if agent.light.pending.expired[number - agent.light.pending.base]:
                ended.setdefault(number, second)
    waited = [ended[number] - 60 * number for number in range(30)]
    assert min(waited) >= 600.0 * (1 - SLEW)
    assert max(waited) <= 600.0 * (1 + SLEW) + 5.0


def test_it_is_said_when_clocks_do_not_agree(tmp_path, monkeypatch):
    """Set while the daemon runs; far behind the log, or far ahead of it, at a start."""
    service = 'log_level = "warning"\nexpiry_seconds = 0.05\n'
    window = CONFIG.replace("[policy]", "[reward]\nwindow = 3600.0\n[policy]")
    file = load_file(write_config(tmp_path, service, window), {"store": str(tmp_path / "log.db")})
    key = None

    def opened(pair: Pair, stream: io.StringIO) -> Daemon:
        nonlocal key
        store = JournaledStore(file.service.store)
        key = key or write_key(store.path)
        monkeypatch.setattr("equipoise.agent.service.daemon.Clock", pair.clock)
        return Daemon(file.experiment, file.service, store, key, Log("warning", stream))

    async def lived(daemon: Daemon, stream: io.StringIO, pair: Pair, step: float) -> list[Any]:
        await daemon.start()
        for index in range(3):
            name = f"{pair.set_by}-{index}"
            daemon.adapter.decide(
                [Request(request_id=name, routed="large", features={"words": 1.0})]
            )
        pair.set_by += step
        for _ in range(200):
            await asyncio.sleep(0.02)
            if "clock-set" in stream.getvalue() or not step:
                break
        await asyncio.sleep(0.2)
        await daemon.stop()
        lines = [json.loads(line) for line in stream.getvalue().splitlines()]
        # What the check `watermark` says of rows from the future is another test's.
        return [
            {key: line[key] for key in line if key not in ("time", "level")}
            for line in lines
            if line["event"] != "check"
        ]

    def life(wall: float, step: float) -> list[Any]:
        pair, stream = Pair(wall), io.StringIO()
        return asyncio.run(lived(opened(pair, stream), stream, pair, step))

    assert life(START, 30 * DAY) == [{"event": "clock-set", "seconds": 30 * DAY, "ahead": 30 * DAY}]
    assert life(START + 30 * DAY, 0.0) == [
        {"event": "expired-at-start", "decisions": 3, "away": 30 * DAY}
    ]
    assert life(START, -HOUR) == [
        {"event": "clock-behind-log", "seconds": 30 * DAY},
        {"event": "clock-set", "seconds": -HOUR, "ahead": -HOUR},
    ]
