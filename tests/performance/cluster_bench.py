"""A sweep of 200 cells by local processes and on a cluster of two worker processes, in turn.

Machines are noisy, so nothing here asserts a time; equality of the results it does assert. The
clusters run on the loopback address, with one thread a worker.

    python tests/performance/cluster_bench.py           Dask
    python tests/performance/cluster_bench.py --ray     Ray, where it is installed
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pandas as pd

from equipoise.replay.benchmarks import load_from_texts
from equipoise.replay.harness.stream import StreamSettings
from equipoise.replay.harness.sweep import Cell, cells, run_sweep

CELLS = 200
WORKERS = 2
TOOL = [str(Path(sys.executable).with_name("dask"))]


def sweep(name: str, seeds: int) -> list[Cell]:
    return cells([0.5], [1.0], [name], ["ipw", "obs-only", "hierarchical"], seeds)


@contextmanager
def dask_cluster(folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """Its address, and what kills one worker (not its nanny) and returns the process killed."""
    where = folder / "scheduler.json"
    started: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> None:
        started.append(
            subprocess.Popen(
                [*TOOL, *words, "--no-dashboard", "--scheduler-file", str(where)],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
        )

    start("scheduler", "--host", "127.0.0.1", "--port", "0")
    for number in range(WORKERS):
        start("worker", "--nthreads", "1", "--local-directory", str(folder / f"worker{number}"))
    try:
        from distributed import Client

        while not where.exists():
            time.sleep(0.1)
        with Client(scheduler_file=str(where)) as client:
            client.wait_for_workers(WORKERS, timeout=60)
            address = client.scheduler.address

            def kill() -> int:
                process = next(iter(client.run(os.getpid).values()))
                os.kill(process, signal.SIGKILL)
                return int(process)

            yield address, kill
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            process.wait(timeout=30)


@contextmanager
def ray_cluster(folder: Path) -> Iterator[tuple[str, Callable[[], int]]]:
    """`ray`, and what kills one process that runs a cell."""
    tool = str(Path(sys.executable).with_name("ray"))
    subprocess.run(
        [
            *(tool, "start", "--head", "--port=0", f"--num-cpus={WORKERS}"),
            *("--include-dashboard=false", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        ],
        check=True,
        stdout=subprocess.DEVNULL,
    )

    def kill() -> int:
        # Ray names the process after the task it runs.
        for path in Path("/proc").glob("[0-9]*/cmdline"):
            if path.read_bytes().startswith(b"ray::equipoise cell"):
                os.kill(int(path.parent.name), signal.SIGKILL)
                return int(path.parent.name)
        raise RuntimeError("no cell is under way")

    try:
        yield "ray", kill
    finally:
        subprocess.run([tool, "stop"], check=False, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--policy", default="top-two")
    parser.add_argument("--budget", type=int, default=1000)
    parser.add_argument("--ray", action="store_true")
    options = parser.parse_args()
    benchmark = load_from_texts("imagesegments", [])
    settings = StreamSettings(
        requests=options.budget + 200, exp_rate=1.0, budget=options.budget, obs=5000
    )
    names = sweep(options.policy, CELLS // len(sweep(options.policy, 1)) + 1)[:CELLS]
    times: dict[str, list[float]] = {"local": [], "cluster": []}
    cluster = ray_cluster if options.ray else dask_cluster
    with tempfile.TemporaryDirectory() as scratch, cluster(Path(scratch)) as (address, kill):

        def timed(
            scheduler: str | None, progress: Callable[[int], None] = lambda done: None
        ) -> tuple[float, pd.DataFrame]:
            began = time.perf_counter()
            results = run_sweep(
                benchmark, settings, names, WORKERS * (scheduler is None), progress, None, scheduler
            )
            return time.perf_counter() - began, results

        # The first sweep of either starts processes or imports libraries in them.
        _, expected = timed(None)
        timed(address)
        for _ in range(options.rounds):
            for where, scheduler in (("local", None), ("cluster", address)):
                seconds, results = timed(scheduler)
                pd.testing.assert_frame_equal(results, expected, check_exact=True)
                times[where].append(seconds)
                print(f"{where}: {seconds:.1f} s", file=sys.stderr, flush=True)
        killed: list[int] = []

        def kill_in_the_middle(done: int) -> None:
            if done >= CELLS // 2 and not killed:
                killed.append(0)
                threading.Thread(target=lambda: killed.append(kill())).start()

        seconds, results = timed(address, kill_in_the_middle)
        pd.testing.assert_frame_equal(results, expected, check_exact=True)
        assert len(killed) == 2, "no worker was killed"
    local, remote = median(times["local"]), median(times["cluster"])
    name = "Ray" if options.ray else "Dask"
    print(
        f"| {CELLS} cells of `{options.policy}` to {options.budget:,} requests | seconds | ratio |"
    )
    print("|---|---:|---:|")
    print(f"| local, `--jobs 2`, median of {options.rounds} | {local:.1f} | 1 |")
    print(f"| {name}, {WORKERS} workers, in turn with them | {remote:.1f} | {remote / local:.2f} |")
    print(
        f"| {name}, a worker killed by -9 in the middle | {seconds:.1f} | {seconds / local:.2f} |"
    )
    print("\nEvery run gave the same results, bit for bit.")


if __name__ == "__main__":
    main()
