"""A sweep on a cluster: the same results, whatever dies; and what is refused before it begins.

One test drives real processes of Dask. The others drive a cluster that is made up, whose workers
run everything in this process and differ as a test wants them to.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from commands import run_command

from equipoise.agent.errors import AgentError
from equipoise.replay import replay
from equipoise.replay.benchmarks import load
from equipoise.replay.harness import cluster as clusters
from equipoise.replay.harness import cluster_clients as clients
from equipoise.replay.harness.cluster import Source, arithmetic_digest, results
from equipoise.replay.harness.cluster_clients import Ended, connected
from equipoise.replay.harness.stream import StreamSettings
from equipoise.replay.harness.sweep import cells, run_sweep

SETTINGS = StreamSettings(requests=60, exp_rate=1.0, budget=50, obs=100, batch=25)
SWEEP = cells([0.5], [0.0, 1.0], ["uniform"], ["ipw", "obs-only"], 6)
TABLE = {"contexts": 50, "models": 3}
OPTIONS = ("contexts=50", "models=3")


@pytest.fixture(scope="module")
def table():
    return load("semisynthetic", **TABLE)


@pytest.fixture(scope="module")
def local(table) -> pd.DataFrame:
    return run_sweep(table, SETTINGS, SWEEP)


# A cluster that falls apart.


class Processes:
    """A scheduler and workers without nannies: who is killed stays dead."""

    def __init__(self, folder: Path, workers: int) -> None:
        self._file = folder / "scheduler.json"
        self._environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            # One death is enough for a task to be given up.
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "0",
        }
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", "0")
        self.workers = [
            self._start(
                *("worker", "--nthreads", "1", "--no-nanny", "--host", "127.0.0.1"),
                *("--local-directory", str(folder / f"worker{number}")),
            )
            for number in range(workers)
        ]

    def _start(self, kind: str, *words: str) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", f"distributed.cli.dask_{kind}", *words),
                *("--no-dashboard", "--scheduler-file", str(self._file)),
            ],
            env=self._environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )

    def address(self) -> str:
        """The scheduler's, once all workers have come."""
        deadline = time.monotonic() + 60
        while not self._file.exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        address: str = json.loads(self._file.read_text())["address"]
        with connected(address) as cluster:
            while len(cluster.processes()) < len(self.workers) and time.monotonic() < deadline:
                time.sleep(0.05)
            assert len(cluster.processes()) == len(self.workers)
        return address

    def end(self) -> None:
        for process in (*self.workers, self.scheduler):
            process.kill()
            process.wait()


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[Processes]:
    started = Processes(tmp_path, 2)
    try:
        yield started
    finally:
        started.end()


def test_what_dies_takes_no_result_with_it(table, local, processes, tmp_path) -> None:
    """A worker is killed, and with the other one the scheduler goes."""
    address = processes.address()
    done: list[int] = []

    def kill_worker(finished: int) -> None:
        done.append(finished)
        if finished == 4:
            processes.workers[0].kill()

    remote = run_sweep(table, SETTINGS, SWEEP, progress=kill_worker, scheduler=address)
    pd.testing.assert_frame_equal(remote, local, check_exact=True)
    assert done == list(range(len(SWEEP) + 1))
    assert processes.workers[0].wait(timeout=10) == -signal.SIGKILL

    def kill_scheduler(finished: int) -> None:
        if finished == 3:
            processes.scheduler.kill()

    folder = tmp_path / "cells"
    folder.mkdir()
    with pytest.raises(AgentError, match=r"^scheduler: tcp://.* went away; what has finished is"):
        run_sweep(table, SETTINGS, SWEEP, 1, kill_scheduler, folder, address)
    counts: list[int] = []
    resumed = run_sweep(table, SETTINGS, SWEEP, 1, counts.append, folder)
    pd.testing.assert_frame_equal(resumed, local, check_exact=True)
    assert 3 <= counts[0] < len(SWEEP)


# What cannot be reached.


def _refusing() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"tcp://127.0.0.1:{free.getsockname()[1]}"


def test_an_address_without_a_scheduler_is_one_line(tmp_path: Path) -> None:
    address = _refusing()
    done = run_command(
        *("replay", "--seeds", "1", "--budget", "50", "--out", tmp_path / "out"),
        *("--scheduler", address),
    )
    *_, line = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (2, "")
    assert line.startswith(f"equipoise: --scheduler: no Dask scheduler answers at {address}: ")
    assert not list(tmp_path.iterdir())


def test_who_answers_and_is_no_scheduler_is_not_waited_for(monkeypatch) -> None:
    monkeypatch.setattr(clients, "CONNECT_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(AgentError, match=f"answers at {address}"), connected(address):
            pass


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("", "^scheduler: is empty"),
        ("somewhere", "answers at somewhere: missing port"),
        ("tcp://127.0.0.1:port", "answers at tcp://127.0.0.1:port"),
    ],
)
def test_what_is_no_address_is_refused(address: str, message: str) -> None:
    with pytest.raises(AgentError, match=message):
        replay(seeds=1, budget=50, scheduler=address)


@pytest.mark.parametrize(("address", "package"), [("h:1", "distributed"), ("ray://h:1", "ray")])
def test_an_extra_that_is_not_installed_is_named(address, package, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(AgentError, match=f"needs the package {package}: pip install"):
        replay(seeds=1, budget=50, scheduler=address)


def test_a_sweep_that_has_finished_needs_no_scheduler(table, local, tmp_path) -> None:
    run_sweep(table, SETTINGS, SWEEP, folder=tmp_path)
    again = run_sweep(table, SETTINGS, SWEEP, folder=tmp_path, scheduler=_refusing())
    pd.testing.assert_frame_equal(again, local, check_exact=True)


def test_a_log_is_not_replayed_on_a_cluster() -> None:
    with pytest.raises(AgentError, match=r"^scheduler: a log is replayed as it is"):
        replay("openbandit:nowhere", scheduler="h:1")


# A cluster that is made up.


class MadeUp:
    """Workers a and b. answers: what a worker returns, or raises, in place of its own answer."""

    def __init__(
        self,
        answers: dict[tuple[str, str], Any] | None = None,
        deadly: Callable[[Any], bool] = lambda cell: False,
        threads: int = 1,
    ) -> None:
        self._answers, self._deadly, self._threads = answers or {}, deadly, threads
        self._under_way: deque[tuple[int, Any]] = deque()
        self.most = self.submitted = 0

    def processes(self) -> dict[str, int]:
        return {"a": self._threads, "b": 1}

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        def answer(name: str) -> Any:
            other = self._answers.get((name, function.__name__))
            if other is None or isinstance(other, dict):
                own = function(*arguments)
                return own if other is None else {**own, **other}
            return other

        return {name: answer(name) for name in ("a", "b")}

    def share(self, contents: bytes) -> Any:
        return contents

    def submit(self, function: Callable[..., Any], handle: Any, *arguments: Any) -> int:
        self.submitted += 1
        self._under_way.append((self.submitted, lambda: function(handle, *arguments)))
        self._cells = {**getattr(self, "_cells", {}), self.submitted: arguments[-1]}
        self.most = max(self.most, len(self._under_way))
        return self.submitted

    def ended(self, seconds: float) -> list[Ended]:
        # Whoever shares the cluster with a deadly cell goes with it, and is blamed as well.
        if any(self._deadly(self._cells[ticket]) for ticket, _ in self._under_way):
            lost = [Ended(ticket, killed=True) for ticket, _ in self._under_way]
            self._under_way.clear()
            return lost
        ticket, run = self._under_way.popleft()
        try:
            return [Ended(ticket, run())]
        except Exception as error:
            return [Ended(ticket, error=error)]

    def close(self) -> None:
        pass


def number(benchmark: Any, contents: str, settings: Any, index: int, cell: Any) -> int:
    """What stands for the rows of a cell."""
    assert (len(benchmark.models), settings, SWEEP[index]) == (3, SETTINGS, cell)
    return index


def swept(cluster: MadeUp, table: Any, source: Source | None = None, **options: Any) -> list[int]:
    calls = enumerate(SWEEP)
    return list(results(cluster, "h:1", number, table, source, SETTINGS, calls, **options))


def test_every_cell_runs_and_few_are_under_way(table) -> None:
    for most, expected in ((0, 4), (1, 1), (3, 3)):
        cluster = MadeUp()
        assert sorted(swept(cluster, table, most=most)) == list(range(len(SWEEP)))
        assert (cluster.submitted, cluster.most) == (len(SWEEP), expected)


@pytest.mark.parametrize(
    ("answers", "message"),
    [
        ({("b", "eval"): {"numpy": "0.1"}}, r"^scheduler: worker b runs numpy 0\.1 \(here \d"),
        ({("b", "eval"): {"python": "3.4"}}, r"^scheduler: worker b runs python 3\.4 \(here 3\."),
        ({("a", "eval"): {"equipoise": None}}, r"^scheduler: worker a has no equipoise; install"),
        ({("a", "eval"): {"threadpoolctl": None}}, r"^scheduler: worker a has no threadpoolctl"),
        (
            {(each, "eval"): {"river": "0"} for each in "ab"},
            r"worker a \(and 1 more\) runs river 0",
        ),
        ({("b", "code_digest"): "other"}, r"^scheduler: worker b runs other sources of equipoise"),
        ({("b", "code_digest"): OSError("bad\ndisk")}, r"^scheduler: worker b bad disk"),
    ],
)
def test_a_worker_that_differs_is_named(table, answers, message) -> None:
    cluster = MadeUp(answers)
    with pytest.raises(AgentError, match=message):
        swept(cluster, table)
    assert cluster.submitted == 0


def test_what_stops_nothing_is_said(table) -> None:
    notes: list[str] = []
    cluster = MadeUp({("b", "arithmetic_digest"): "other"}, threads=8)
    assert len(swept(cluster, table, note=notes.append)) == len(SWEEP)
    assert [note.partition(" (")[0] for note in notes] == [
        "worker b rounds otherwise than this machine",
        "worker a has several threads and runs one cell at a time; to use every core, start workers"
        " of one thread",
    ]
    assert arithmetic_digest() == arithmetic_digest()


def test_neighbours_of_a_deadly_cell_are_not_blamed(table) -> None:
    cluster = MadeUp(deadly=lambda cell: cell == SWEEP[5])
    finished: list[int] = []
    run = results(cluster, "h:1", number, table, None, SETTINGS, enumerate(SWEEP))
    with pytest.raises(AgentError, match=r"ran the cell \(.*confounding 0.0, seed 5\) died"):
        finished.extend(run)
    assert sorted({*range(len(SWEEP))} - {*finished}) == [5]


def test_a_cluster_that_empties_is_not_waited_for(table, monkeypatch) -> None:
    cluster = MadeUp()
    monkeypatch.setattr(clusters, "EMPTY_SECONDS", 0.0)
    run = results(cluster, "h:1", number, table, None, SETTINGS, enumerate(SWEEP))
    assert next(run) == 0
    monkeypatch.setattr(cluster, "processes", dict)
    monkeypatch.setattr(cluster, "ended", lambda seconds: time.sleep(0.01) or [])
    with pytest.raises(AgentError, match=r"no worker for 0 s; under way: the cell \(.*and 3 more"):
        next(run)


def test_nobody_waits_for_the_first_worker_for_ever(table, monkeypatch) -> None:
    cluster = MadeUp()
    monkeypatch.setattr(cluster, "processes", dict)
    monkeypatch.setattr(clusters, "CONNECT_SECONDS", 0.0)
    with pytest.raises(AgentError, match=r"^scheduler: h:1 has no worker \(waited 0 s for one\)"):
        swept(cluster, table)


def test_a_large_benchmark_is_read_by_the_workers(table, monkeypatch) -> None:
    monkeypatch.setattr(clusters, "SENT_BYTES", 100)
    sent: list[bytes] = []
    cluster = MadeUp()
    monkeypatch.setattr(cluster, "share", lambda contents: sent.append(contents) or contents)
    source = Source("semisynthetic", OPTIONS)
    assert sorted(swept(cluster, table, source)) == list(range(len(SWEEP)))
    assert len(sent[0]) < 2000
    for source, message in (
        (Source("table:/no/such/file.csv"), r"worker a \(and 1 more\) cannot read table:/no/such/"),
        (Source("semisynthetic"), r"worker a \(and 1 more\) has another semisynthetic; the bench"),
    ):
        answers = {(each, "read_digest"): _read(source) for each in "ab"}
        with pytest.raises(AgentError, match=message):
            swept(MadeUp(answers), table, source)


def _read(source: Source) -> Any:
    try:
        return clusters.read_digest(source)
    except ValueError as error:
        return error


def test_a_worker_that_joins_with_other_code_runs_nothing(table, monkeypatch) -> None:
    run = results(MadeUp(), "h:1", number, table, None, SETTINGS, enumerate(SWEEP))
    assert next(run) == 0
    monkeypatch.setattr(clusters, "code_digest", lambda: "other")
    with pytest.raises(AgentError, match=r"^scheduler: h:1: a worker that joined runs other code"):
        next(run)


def test_a_worker_that_joins_without_the_package_is_told_of(table, monkeypatch) -> None:
    error = ModuleNotFoundError("No module named 'equipoise'", name="equipoise")
    cluster = MadeUp()
    monkeypatch.setattr(cluster, "ended", lambda seconds: [Ended(1, error=error)])
    with pytest.raises(AgentError, match=r"a worker that joined cannot import equipoise"):
        swept(cluster, table)


def test_an_error_of_a_cell_is_the_error_of_the_sweep(table) -> None:
    with pytest.raises(AssertionError):
        list(results(MadeUp(), "h:1", number, table, None, None, enumerate(SWEEP)))


@pytest.mark.parametrize(("trim", "thresholds"), [(None, []), ("65536", [1 << 28, 1 << 16])])
def test_a_cell_keeps_memory_that_its_worker_would_give_back(
    table, monkeypatch, trim, thresholds
) -> None:
    calls: list[tuple[int, int]] = []

    class Library:
        def __init__(self, name: None) -> None:
            self.mallopt = lambda *given: calls.append(given)

    monkeypatch.setattr("ctypes.CDLL", Library)
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    if trim is not None:
        monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", trim)
    swept(MadeUp(), table)
    assert [size for which, size in calls if which == -1] == thresholds * len(SWEEP)
    assert [size for which, size in calls if which == -3][:2] == (
        [1 << 25, 1 << 17] if trim else []
    )
