"""Work that goes on beside the requests, on APScheduler: refresh, checkpoint, expiry.

A job that fails is logged and counted and runs again at its next time; jobs never pile up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from apscheduler.schedulers.asyncio import AsyncIOScheduler

from equipoise.agent.service.figures import Figures
from equipoise.agent.service.logs import Log

Job = Callable[[], Awaitable[object]]


class Jobs:
    """Named jobs at intervals of seconds, one run of each at a time."""

    def __init__(self, figures: Figures, log: Log) -> None:
        self._figures = figures
        self._log = log
        self._running: set[asyncio.Task[None]] = set()
        self._named: dict[str, Job] = {}
        self._busy: set[str] = set()
        # A late run is run, once: the default drops what is a second late.
        defaults = {"coalesce": True, "max_instances": 1, "misfire_grace_time": None}
        self._scheduler = AsyncIOScheduler(job_defaults=defaults, timezone="UTC")

    def add(self, name: str, seconds: float, job: Job) -> None:
        """Run `job` every `seconds` from the start on."""
        self._named[name] = job
        self._scheduler.add_job(self._due, "interval", seconds=seconds, args=[name], id=name)

    def change(self, name: str, seconds: float) -> None:
        """Give a job another interval."""
        self._scheduler.reschedule_job(name, trigger="interval", seconds=seconds)

    def start(self) -> None:
        self._scheduler.start()

    def soon(self, name: str) -> None:
        """Run a job now, unless it is running."""
        self._begin(name)

    async def stop(self, seconds: float) -> None:
        """Start nothing more; wait for what is running, and cancel what takes longer."""
        # The scheduler cancels its own tasks; ours are not its own, so none is cut short.
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=seconds)
            for task in late:
                task.cancel()
            await asyncio.gather(*late, return_exceptions=True)

    async def _due(self, name: str) -> None:
        # A coroutine, for the scheduler would run a plain function in another thread.
        self._begin(name)

    def _begin(self, name: str) -> None:
        if name not in self._busy:
            self._busy.add(name)
            task = asyncio.get_running_loop().create_task(self._run(name))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _run(self, name: str) -> None:
        try:
            await self._named[name]()
        except Exception as error:
            self._figures.job_failures[name] += 1
            self._log.failed("job-failed", error, job=name)
        finally:
            self._busy.discard(name)
