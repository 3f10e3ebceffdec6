"""Jobs: they never pile up, a failure is told and not the end, and stopping waits for them."""

from __future__ import annotations

import asyncio
import io
import json
import time

from equipoise.agent.service.telemetry import Counters, Log
from equipoise.agent.service.upkeep.jobs import Jobs


def test_a_job_that_is_slower_than_its_interval_runs_one_at_a_time():
    async def work() -> None:
        jobs, running, most, runs = Jobs(Counters(), Log()), 0, 0, 0

        async def slow() -> None:
            nonlocal running, most, runs
            running, runs = running + 1, runs + 1
            most = max(most, running)
            await asyncio.sleep(0.12)
            running -= 1

        jobs.add("slow", 0.02, slow)
        jobs.start()
        for _ in range(5):
            jobs.soon("slow")
        await asyncio.sleep(0.6)
        await jobs.stop(5.0)
        assert (running, most) == (0, 1)
        assert 2 <= runs <= 6

    asyncio.run(work())


def test_the_interval_of_a_job_that_was_run_soon_counts_from_then():
    async def work() -> None:
        jobs, ran = Jobs(Counters(), Log()), asyncio.Event()

        async def job() -> None:
            await ran.wait()

        def due() -> float:
            return jobs._scheduler.get_job("job").next_run_time.timestamp()

        jobs.add("job", 60.0, job)
        jobs.start()
        first = due()
        await asyncio.sleep(0.05)
        jobs.soon("job")
        second = due()
        assert first + 0.05 <= second <= time.time() + 60.0
        await asyncio.sleep(0.05)
        jobs.soon("job")  # it is running, and not run again
        assert due() == second
        ran.set()
        await jobs.stop(1.0)

    asyncio.run(work())


def test_a_job_that_fails_is_logged_counted_and_run_again():
    async def work() -> None:
        figures, stream, runs = Counters(), io.StringIO(), 0
        jobs = Jobs(figures, Log("info", stream))

        async def fails() -> None:
            nonlocal runs
            runs += 1
            raise RuntimeError("with a secret of a user in it")

        jobs.add("fails", 0.05, fails)
        jobs.start()
        await asyncio.sleep(0.4)
        await jobs.stop(1.0)
        assert runs == figures.job_failures["fails"] >= 2
        first = json.loads(stream.getvalue().splitlines()[0])
        assert (first["job"], first["fault"]) == ("fails", "RuntimeError")
        assert first["where"][-1].startswith("fails line")
        assert "secret" not in stream.getvalue()

    asyncio.run(work())


def test_stopping_waits_for_a_running_job_and_then_no_longer():
    async def work() -> None:
        ended = []

        async def job(seconds: float, name: str) -> None:
            await asyncio.sleep(seconds)
            ended.append(name)

        jobs = Jobs(Counters(), Log())
        jobs.add("short", 60.0, lambda: job(0.2, "short"))
        jobs.add("long", 60.0, lambda: job(60.0, "long"))
        jobs.start()
        jobs.soon("short")
        jobs.soon("long")
        await asyncio.sleep(0.01)
        begun = asyncio.get_running_loop().time()
        await jobs.stop(0.6)
        assert ended == ["short"]
        assert asyncio.get_running_loop().time() - begun < 10

    asyncio.run(work())


def test_another_interval_holds_at_once():
    async def work() -> None:
        runs = 0

        async def job() -> None:
            nonlocal runs
            runs += 1

        jobs = Jobs(Counters(), Log())
        jobs.add("job", 3600.0, job)
        jobs.start()
        await asyncio.sleep(0.1)
        assert runs == 0
        jobs.change("job", 0.03)
        await asyncio.sleep(0.4)
        await jobs.stop(1.0)
        assert runs >= 2

    asyncio.run(work())
