"""What is bounded: how often an analyst is started, what a configuration may need."""

from __future__ import annotations

import asyncio
import errno
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from running import write_config

from equipoise.agent.agent import Agent
from equipoise.agent.config import ConfigError
from equipoise.agent.config.file import file_from_dict, load_file
from equipoise.agent.maintenance.key_file import write_key
from equipoise.agent.service.analyst.connection import LONGEST_SECONDS, Restarts
from equipoise.agent.service.daemon import BROKEN, Daemon
from equipoise.agent.service.run import run
from equipoise.agent.service.telemetry import Log
from equipoise.agent.service.upkeep.capacity import needs
from equipoise.store.errors import TornAppendError
from equipoise.store.format.mark import mark_path
from equipoise.store.journal import JournaledStore
from equipoise.store.memory import MemoryStore


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def test_what_always_fails_is_tried_less_and_less_often():
    """A quarter of an hour, asked twice a second: 432 starts without a delay, here twelve."""
    clock = Clock()
    restarts, tries = Restarts(clock), []
    while clock.now < 1000.0:
        if not restarts.wait("ask"):
            tries.append(clock.now)
            restarts.failed("ask")
        clock.now += 0.5
    assert len(tries) == 12
    gaps = np.diff(tries)
    assert gaps[:6].tolist() == [0.5, 1, 2, 4, 8, 16]
    assert gaps.max() <= LONGEST_SECONDS
    # Other questions are not kept waiting, and one success forgets it all.
    assert restarts.wait("save") == 0
    assert restarts.worked("ask")
    assert restarts.wait("ask") == 0
    restarts.failed("ask")
    assert restarts.wait("ask") == 0
    assert not restarts.worked("ask")


def test_a_family_is_left_out_after_two_deaths_in_a_row_over_it():
    restarts = Restarts(Clock())
    restarts.failed("ask", "cvci")
    assert restarts.off == {}
    restarts.worked("ask")
    restarts.failed("ask", "cvci")
    assert restarts.off == {}
    restarts.failed("ask", "grounded")
    restarts.failed("ask", "cvci")
    assert list(restarts.off) == ["cvci"]
    assert restarts.wait("ask") == 0, "without it the next try is made at once"
    assert restarts.off["cvci"] == "the analyst died 2 times in a row over it"
    # A process that hung over it is no better than one that died, and another leaves out the same.
    other = Restarts(Clock(), off=restarts.off)
    other.failed("ask", "grounded", "hung")
    other.failed("ask", "grounded", "died")
    assert restarts.off["grounded"] == "the analyst died or hung 2 times in a row over it"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Daemon]:
    file = load_file(write_config(tmp_path), {"store": str(tmp_path / "log.db")})
    store = JournaledStore(file.service.store)
    key = write_key(store.path)
    yield Daemon(file.experiment, file.service, store, key, Log("error", io.StringIO()))
    store.close()


@pytest.mark.parametrize("step", ["the index", "the mark"])
def test_a_broken_daemon_is_not_ready_from_that_moment_on(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, step: str
):
    """The append itself is cut short here: the rows are in the tail, and memory does not know."""
    body = b'{"request_id": "r%d", "routed": "large", "features": {"words": 1}}'
    assert b'"reason":null' in daemon.hot.decide(body % 1)
    assert daemon.readiness().ready
    ended: list[bool] = []
    daemon.end = lambda: ended.append(True)

    def short(*_: object) -> None:
        raise MemoryError

    if step == "the index":
        monkeypatch.setattr(daemon.store, "_index", short)
    else:
        monkeypatch.setattr(daemon.store._mark, "advance", short)
    assert b'"reason":"restarting"' in daemon.hot.decide(body % 2)
    assert ended == [True]
    assert daemon.exit_code == BROKEN == 70
    readiness = daemon.readiness()
    assert not readiness.ready
    assert "behind the log" in readiness.problems[0]
    monkeypatch.undo()
    # Nothing more enters the log, in whatever way.
    rows = daemon.store.next_seq
    assert b'"reason":"restarting"' in daemon.hot.decide(body % 3)
    with pytest.raises(Exception, match="behind the log"):
        daemon.hot.outcomes(b'{"request_id": "r1", "reward": 1}')
    with pytest.raises(TornAppendError):
        daemon.store.append(daemon.store.decision(0))  # type: ignore[arg-type]
    assert daemon.store.next_seq == rows


@pytest.mark.parametrize("step", ["no number left", "a file that is gone"])
def test_a_refused_append_breaks_nothing(
    daemon: Daemon, monkeypatch: pytest.MonkeyPatch, step: str
):
    """Nothing was appended: the request is passed through, and the next one may be decided."""
    body = b'{"request_id": "r%d", "routed": "large", "features": {"words": 1}}'
    assert b'"reason":null' in daemon.hot.decide(body % 1)
    store = daemon.store
    store.settle()  # a row that waits would be tried again, and refused for as long
    before = store.next_seq, store.decisions, store._mark.rows
    moved = store.path.with_name("elsewhere.mark")
    if step == "no number left":

        def full(decisions: int) -> None:
            raise OSError(errno.ENOSPC, "no room")

        monkeypatch.setattr(store._mark, "standing", replace(store._mark.standing, reserved=1))
        monkeypatch.setattr(store._mark, "reserve", full)
    else:
        mark_path(store.path).rename(moved)
        assert store.check_files() is not None
    assert b'"reason":null' not in daemon.hot.decide(body % 2)
    assert (store.next_seq, store.decisions, store._mark.rows) == before
    assert daemon.agent.broken is None
    assert daemon.exit_code == 0
    monkeypatch.undo()
    if moved.exists():
        moved.rename(mark_path(store.path))
    daemon.breaker.close()
    store.probe()
    assert b'"reason":null' in daemon.hot.decide(body % 3)


def test_rows_of_an_append_cut_short_are_there_after_a_start(tmp_path: Path):
    file = load_file(write_config(tmp_path), {"store": str(tmp_path / "log.db")})
    with JournaledStore(file.service.store) as store:
        key = write_key(store.path)
        agent = Agent(file.experiment, store, key)
        store._index = None  # type: ignore[method-assign, assignment]
        from equipoise.agent.record_adapter import RecordAdapter
        from equipoise.store.records import Request

        with pytest.raises(RuntimeError, match="state is behind the log"):
            RecordAdapter(agent).decide(
                [Request(request_id="r", routed="large", features={"words": 1})]
            )
    with JournaledStore(file.service.store) as store:
        assert store.decisions == 1
        assert store.find_requests(["r"]) == {"r": 0}
        assert Agent(file.experiment, store, key).fold.next_seq == 1


def large(models: int, length: int, **more: object) -> dict[str, object]:
    return {
        "name": "large",
        "models": [{"name": f"m{at}"} for at in range(models)],
        "features": {
            "context": [{"type": "vector", "name": "x", "length": length}],
            "outputs": [{"type": "number", "name": "seconds"}],
        },
        "policy": {"floor": 0.005},
        **more,
    }


def test_a_state_that_no_store_can_keep_is_refused_before_anything_is_written(tmp_path: Path):
    path = tmp_path / "large.toml"
    names = ", ".join(f'{{name = "m{at}"}}' for at in range(64))
    path.write_text(
        f'name = "large"\nmodels = [{names}]\n[policy]\nfloor = 0.005\n[features]\n'
        'context = [{type = "vector", name = "x", length = 400}]\n'
    )
    with pytest.raises(ConfigError, match=r"features: received 400 columns for 64 models, .*1,000"):
        run(path, {"store": str(tmp_path / "log.db")})
    assert [each.name for each in tmp_path.iterdir()] == ["large.toml"]


@pytest.mark.parametrize(("models", "length"), [(2, 3), (5, 40)])
def test_the_state_that_is_reckoned_with_is_the_one_that_is_written(models: int, length: int):
    file = file_from_dict(large(models, length))
    needed = needs(file.experiment, file.service, 10.0)
    agent = Agent(file.experiment, MemoryStore(), bytes(32))
    written = len(agent.fold.moments.to_bytes())
    assert needed.sums == pytest.approx(written, rel=0.02, abs=4000)
    assert needed.open_decisions is None
    assert needed.problem(file.experiment) is None


def test_open_decisions_are_those_of_the_window():
    told = []
    for window in (3600.0, 86_400.0):
        file = file_from_dict(large(2, 3, reward={"window": window}))
        told.append(needs(file.experiment, file.service, 1000.0))
    assert [each.open_decisions for each in told] == [3.6e6, 86.4e6]
    # Their rows as the table itself has them.
    agent = Agent(file.experiment, MemoryStore(), bytes(32))
    rows = [each.state - each.sums for each in told]
    assert rows == [n * agent.light.pending.row_bytes for n in (3.6e6, 86.4e6)]
    assert "no checkpoint can hold" not in str(told[0])
    assert "no checkpoint can hold that state: SQLite keeps 1,000 MB" in str(told[1])
    # Memory is the budget's, not the window's.
    assert told[0].daemon == told[1].daemon


def test_a_question_is_not_asked_while_it_has_to_wait(daemon: Daemon):
    async def work() -> None:
        daemon.analysis._restarts.failed("ask")
        daemon.analysis._restarts.failed("ask")
        with pytest.raises(RuntimeError, match="failed 2 times in a row; it is asked again in 1 s"):
            await daemon.analysis.report()
        assert daemon.analysis._process is None
        # A start is such a question: one that always fails is not made with every look.
        daemon.analysis._restarts.failed("open")
        daemon.analysis._restarts.failed("open")
        with pytest.raises(RuntimeError, match="failed 2 times in a row"):
            await daemon.analysis.start()
        assert daemon.analysis._process is None

    asyncio.run(work())
