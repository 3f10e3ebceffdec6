"""Durability against power cuts: no answer before its bytes are on the disk, and few syncs."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from running import running

from equipoise.agent.service.hot_path.batching import GroupCommit
from equipoise.store.format.frames import TailWriter


class Disk:
    """Counts what was written and what is safe; syncs take until they are let through."""

    def __init__(self) -> None:
        self.written = self.safe = self.syncs = 0
        self.open = threading.Event()
        self.open.set()
        self.fault: Exception | None = None

    def begin(self) -> Callable[[], None]:
        covered = self.written

        def sync() -> None:
            self.open.wait(5)
            self.syncs += 1
            if self.fault is not None:
                raise self.fault
            self.safe = max(self.safe, covered)

        return sync


def test_an_answer_waits_for_a_sync_that_began_after_its_write():
    async def client(disk: Disk, barrier: GroupCommit, pause: float) -> None:
        for _ in range(30):
            await asyncio.sleep(pause)
            disk.written += 1
            mine = disk.written
            await barrier.wait()
            assert disk.safe >= mine

    async def work() -> Disk:
        disk = Disk()
        barrier = GroupCommit(disk.begin)
        await asyncio.gather(*(client(disk, barrier, number / 5000) for number in range(20)))
        return disk

    disk = asyncio.run(work())
    assert disk.safe == disk.written == 600
    assert disk.syncs < 400, "they were shared"


def test_who_comes_during_a_sync_waits_for_the_next_one():
    async def work() -> None:
        disk = Disk()
        barrier = GroupCommit(disk.begin)
        disk.open.clear()
        disk.written = 1
        first = asyncio.create_task(barrier.wait())
        await asyncio.sleep(0.05)
        disk.written = 2
        second = asyncio.create_task(barrier.wait())
        third = asyncio.create_task(barrier.wait())
        await asyncio.sleep(0.05)
        third.cancel()  # a client that leaves
        assert not first.done()
        disk.open.set()
        await first
        await second
        assert (disk.syncs, disk.safe) == (2, 2)

    asyncio.run(work())


def test_a_failed_sync_is_told_to_those_who_waited_for_it():
    async def work() -> None:
        disk = Disk()
        barrier = GroupCommit(disk.begin)
        disk.fault = OSError("no")
        with pytest.raises(OSError, match="no"):
            await barrier.wait()
        disk.fault = None
        await barrier.wait()

    asyncio.run(work())


def test_a_daemon_against_power_cuts_decides_and_stops_as_any_other(tmp_path: Path):
    with running(tmp_path, 'durability = "power"') as daemon:
        names = [f"p{index}" for index in range(20)]
        threads = [threading.Thread(target=daemon.decide, args=(name,)) for name in names]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert daemon.ask("POST", "/v1/outcomes", {"request_id": "p3", "reward": 1}).status == 200
        assert daemon.ask("POST", "/v1/pause").status == 200
        before = {name: daemon.decide(name) for name in names}
        daemon.kill()
    with running(tmp_path, 'durability = "power"') as daemon:
        assert {name: daemon.decide(name) for name in names} == before


def test_the_tail_syncs_what_was_there_when_it_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    synced: list[int] = []
    monkeypatch.setattr(os, "fdatasync", lambda file: synced.append(os.fstat(file).st_ino))
    tail = TailWriter(tmp_path / "log.db", "asked")
    tail.begin_sync()()
    assert synced == []
    tail.append(0, 1, b"x" * 100)
    sync = tail.begin_sync()
    assert synced == []
    tail.close()  # followed by another file before the sync has run
    assert len(synced) == 1
    sync()
    assert synced == [synced[0]] * 2, "the file that was written, not the one that followed"
