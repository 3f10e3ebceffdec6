"""Work beside the requests: jobs at intervals on APScheduler, and retention of old rows.

A job that fails is logged and counted and runs again at its next time; jobs never pile up.

APScheduler compares due times with the machine's wall clock. Set back, it would run nothing until
the old time is reached again; set forward, it would list every run that was missed. So intervals
are kept by a trigger that skips what was missed, and due times are moved along whenever the wall
clock steps away from the loop's own clock, which nobody can set.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from equipoise.agent.config.service import SECONDS_A_DAY, RetentionSettings
from equipoise.agent.lifecycle.rules import unused_rules
from equipoise.agent.service.analyst.client import AnalystClient
from equipoise.agent.service.control import wall_time
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.store.opening import ServedStore

Job = Callable[[], Awaitable[object]]

WATCH_SECONDS = 0.1
STEP_SECONDS = 0.5
"""By how much two clocks must part to count as a step: reading one, then the other, takes time."""


class Every(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Fires every so many seconds; runs that were missed are one run, and never listed."""

    __slots__ = ("interval",)

    def __init__(self, seconds: float) -> None:
        self.interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        next_time = (previous or now) + self.interval
        return next_time if next_time > now else now + self.interval


class Jobs:
    """Named jobs at intervals of seconds, one run of each at a time.

    wall: the clock that APScheduler goes by, seconds since the epoch.
    """

    def __init__(self, counters: Counters, log: Log, wall: Callable[[], float] = wall_time) -> None:
        self._counters = counters
        self._log = log
        self._wall = wall
        self._ahead = 0.0
        self._stopped = False
        self._watching: asyncio.TimerHandle | None = None
        self._running: set[asyncio.Task[None]] = set()
        self._named: dict[str, Job] = {}
        self._busy: set[str] = set()
        # A late run is run, once: the default drops what is a second late.
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = AsyncIOScheduler(job_defaults=defaults, timezone=UTC)

    def add(self, name: str, seconds: float, job: Job) -> None:
        """Run `job` every `seconds` from the start on."""
        self._named[name] = job
        self._scheduler.add_job(self._due, Every(seconds), args=[name], id=name)

    def change(self, name: str, seconds: float) -> None:
        """Give a job another interval. The same one again changes nothing: a new interval begins
        now, and whoever sets it often would have no run at all."""
        if self._scheduler.get_job(name).trigger.interval != timedelta(seconds=seconds):
            self._scheduler.reschedule_job(name, trigger=Every(seconds))

    def start(self) -> None:
        self._scheduler.start()
        self._ahead = self._wall() - asyncio.get_running_loop().time()
        self._watch()

    def soon(self, name: str) -> None:
        """Run a job now, unless it is running; its interval then counts from now."""
        if name not in self._busy and self._scheduler.running:
            interval = self._scheduler.get_job(name).trigger.interval
            due = datetime.fromtimestamp(self._wall(), UTC) + interval
            self._scheduler.modify_job(name, next_run_time=due)
        self._begin(name)

    async def stop(self, seconds: float) -> None:
        """Start nothing more; wait for what is running, and cancel what takes longer."""
        # The scheduler itself ends one turn of the loop later, and may start a job until then.
        self._stopped = True
        if self._watching is not None:
            self._watching.cancel()
        # The scheduler cancels its own tasks; ours are not its own, so none is cut short.
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    def _watch(self) -> None:
        """Several times a second: due times move with a wall clock that was set."""
        loop = asyncio.get_running_loop()
        self._watching = loop.call_later(WATCH_SECONDS, self._watch)
        now = self._wall()
        moved = now - loop.time() - self._ahead
        if abs(moved) > STEP_SECONDS:
            self._ahead += moved
        else:
            moved = 0.0
        here = datetime.fromtimestamp(now, UTC)
        for job in self._scheduler.get_jobs():
            # Never further away than the interval: smaller steps, and a job that had its next time
            # from the new clock before the step was seen.
            latest = here + job.trigger.interval
            next_time = min(job.next_run_time + timedelta(seconds=moved), latest)
            if next_time != job.next_run_time:
                self._scheduler.modify_job(job.id, next_run_time=next_time)

    async def _due(self, name: str) -> None:
        # A coroutine, for the scheduler would run a plain function in another thread.
        self._begin(name)

    def _begin(self, name: str) -> None:
        if name not in self._busy and not self._stopped:
            self._busy.add(name)
            task = asyncio.get_running_loop().create_task(self._run(name))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, name: str) -> None:
        self._log.debug("job", job=name)
        try:
            await self._named[name]()
        except Exception as error:
            self._counters.job_failures[name] += 1
            self._log.failed("job-failed", error, job=name)
        finally:
            self._busy.discard(name)


STEPS = 8
"""States kept within `days`: rows stay at most a quarter longer than they have to. All but one of
them must have been kept since, so that a clock that jumps once removes nothing."""


class Retention:
    """Keeps states in time, and lets the log begin at one of them once it is old."""

    def __init__(
        self,
        settings: RetentionSettings,
        analysis: AnalystClient,
        store: ServedStore,
        counters: Counters,
        log: Log,
    ) -> None:
        self._settings = settings
        self._analysis = analysis
        self._store = store
        self._counters = counters
        self._log = log
        counters.moved_out = 0

    async def run(self, now: float) -> None:
        """Keep a state if one is due, and trim. now: seconds since the epoch."""
        age = self._settings.days * SECONDS_A_DAY
        last = await asyncio.to_thread(self._store.last_base_kept, now)
        if last is None or now - last >= age / STEPS:
            state = await self._analysis.state()
            await asyncio.to_thread(self._store.keep_base, state.seq, state.state, now)
        archive = self._settings.archive
        folder = None if archive is None else Path(archive)
        trimmed = await asyncio.to_thread(self._store.trim, now - age, now, folder, STEPS - 1)
        if trimmed is not None:
            self._counters.moved_out = (self._counters.moved_out or 0) + trimmed.rows
            unused = await asyncio.to_thread(unused_rules, self._store)
            await asyncio.to_thread(self._store.remove_rules, unused)
            self._log.info(
                "retention",
                rows=trimmed.rows,
                rules=len(unused),
                log_begins=trimmed.seq,
                digest=trimmed.digest,
                files=[path.name for path in trimmed.files],
            )
