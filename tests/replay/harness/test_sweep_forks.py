"""Workers that are forks of the process that waits for them."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from equipoise.replay.harness import sweep

PROGRAM = """
import multiprocessing, os, signal
from equipoise.replay.harness import sweep

def finish(index):
    if index == {dies}:
        os.kill(os.getpid(), signal.SIGKILL)
    return index, [{{"pid": os.getpid()}}]

assert sweep._may_fork()
begun = []
found = list(sweep._forked(finish, range(20), 2, lambda: begun.append(1)))
assert begun == [1]
assert sorted(index for index, _ in found) == list(range(20))
assert os.getpid() not in {{rows[0]["pid"] for _, rows in found}}
assert not multiprocessing.active_children()
"""


def run(dies: int) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(dies=dies)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_all_positions_are_finished_elsewhere_and_nobody_is_left():
    done = run(dies=-1)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="forks are for Linux")
def test_a_worker_that_dies_ends_the_run():
    done = run(dies=7)
    assert done.returncode == 1
    assert "BrokenProcessPool" in done.stderr


def test_only_a_process_of_one_thread_forks(monkeypatch):
    monkeypatch.setattr(sweep.threading, "active_count", lambda: 1)
    monkeypatch.setattr(sweep.sys, "platform", "linux")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    assert sweep._may_fork()
    monkeypatch.setattr(sweep.threading, "active_count", lambda: 2)
    assert not sweep._may_fork()
    monkeypatch.setattr(sweep.threading, "active_count", lambda: 1)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "4")
    assert not sweep._may_fork()
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    monkeypatch.setattr(sweep.sys, "platform", "darwin")
    assert not sweep._may_fork()
