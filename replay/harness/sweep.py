"""Policies x estimators x scenarios x seeds: cells of a sweep, run on all cores or a cluster.

A cell is one seed of one scenario under one policy. A policy that does not look at estimates
serves all families from a single stream; one that does runs a stream per family.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from multiprocessing import active_children, get_context
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

from equipoise.policies.registry import policy
from equipoise.replay.benchmarks import Benchmark
from equipoise.replay.harness.cell_cache import (
    FinishedCells,
    Rows,
    benchmark_digest,
    code_digest,
    digest_of,
)
from equipoise.replay.harness.cluster import Source, results
from equipoise.replay.harness.cluster_clients import connected
from equipoise.replay.harness.stream import (
    Certificate,
    StreamSettings,
    experiment,
    result_rows,
    run_stream,
)
from equipoise.replay.results.averages import NAIVE
from equipoise.replay.worlds import World, WorldOptions

if TYPE_CHECKING:
    import pandas as pd

Advance: TypeAlias = Callable[[int], None]
"""Called with the number of finished cells; first with that of those finished by an earlier run."""

_LINES = 10


@contextmanager
def show_progress(total: int, stream: TextIO | None = None) -> Iterator[Advance]:
    """Yield what to call with the number of finished cells of `total`. stream: standard error."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(total, stream) as advance:
            yield advance
    else:
        yield Lines(total, stream)


class Lines:
    """Plain lines for logs: what was found at the start, then one for every tenth of the cells."""

    def __init__(
        self, total: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._stream, self._clock = total, stream, clock
        self._resumed: int | None = None
        self._tenth = 0

    def __call__(self, done: int) -> None:
        if self._resumed is None:
            self._resumed, self._started = done, self._clock()
            if done:
                self._say(f"{done} of {self._total} cells were finished earlier")
        elif done * _LINES // self._total > self._tenth:
            pace = (self._clock() - self._started) / max(done - self._resumed, 1)
            remaining = f", {in_words(pace * (self._total - done))} left"
            self._say(f"{done} of {self._total} cells" + remaining * (done < self._total))
        self._tenth = done * _LINES // self._total

    def _say(self, text: str) -> None:
        print(f"replaying: {text}", file=self._stream, flush=True)


def in_words(seconds: float) -> str:
    """A rough duration.

    >>> in_words(0.4), in_words(50), in_words(400), in_words(9000)
    ('1 second', '50 seconds', '7 minutes', '2.5 hours')
    """
    if seconds < 90:
        whole = max(round(seconds), 1)
        return f"{whole} second" + "s" * (whole > 1)
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


@contextmanager
def _bar(total: int, stream: TextIO) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("replaying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(file=stream))
    task = bar.add_task("replaying", total=total)
    resumed = False

    def advance(done: int) -> None:
        nonlocal resumed
        if resumed:
            bar.update(task, completed=done)
        else:
            # Its thread begins here, when processes may have been forked already.
            bar.start()
            # Cells of an earlier run say nothing about the pace of this one.
            bar.reset(task, completed=done)
            resumed = True

    try:
        yield advance
    finally:
        bar.stop()


KEYS = ("world", "alpha", "confounding", "policy", "estimator", "seed", "checkpoint")
"""What tells two rows of results apart, besides the benchmark."""

Finished: TypeAlias = tuple[int, Rows]
_WORLDS_KEPT = 2
_WATCH = 0.5
"""Seconds between two looks of a worker at whether its parent still lives."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One stream of a sweep.

    steering: the family whose estimates the policy looks at. world: label of a variant of the
    world, and options: its options; None for those of the settings. priced: whether the rule
    weighs prices. name: what the results call the policy, where that is not its own name.
    """

    alpha: float
    confounding: float
    policy: str
    steering: str
    estimators: tuple[str, ...]
    seed: int
    world: str = ""
    options: WorldOptions | None = None
    priced: bool = False
    name: str = ""

    def world_options(self, settings: StreamSettings) -> WorldOptions:
        """The world this cell is run in."""
        base = settings.world if self.options is None else self.options
        return replace(base, alpha=self.alpha, confounding=self.confounding)


def cells(
    alphas: Sequence[float],
    confoundings: Sequence[float],
    policies: Sequence[str],
    estimators: Sequence[str],
    seeds: int,
    worlds: Sequence[tuple[str, WorldOptions | None]] = (("", None),),
) -> list[Cell]:
    """All cells, in a fixed order. worlds: labels and options of variants of the world."""
    return [
        Cell(alpha, confounding, name, steering, families, seed, label, options)
        for label, options in worlds
        for alpha in alphas
        for confounding in confoundings
        for name in policies
        for steering, families in _streams(name, estimators)
        for seed in range(seeds)
    ]


def _streams(name: str, estimators: Sequence[str]) -> list[tuple[str, tuple[str, ...]]]:
    """(steering family, families) of each stream a policy needs for these families."""
    if policy(name).uses_estimate:
        return [(family, (family,)) for family in estimators]
    return [(estimators[0], tuple(estimators))]


def run_cell(
    benchmark: Benchmark, settings: StreamSettings, cell: Cell, world: World | None = None
) -> Rows:
    """The rows of results of one cell. world: its world, where somebody has it already."""
    if world is None:
        world = World(benchmark, cell.world_options(settings))
    rule = policy(cell.policy)
    config = experiment(
        world, settings, rule.gate.name, rule.assignment.name, cell.steering, priced=cell.priced
    )
    certificate = Certificate(world)
    key = {
        "benchmark": benchmark.name,
        "world": cell.world,
        "alpha": cell.alpha,
        "confounding": cell.confounding,
        "policy": cell.name or cell.policy,
        "seed": cell.seed,
    }
    return [
        {**key, **row}
        for checkpoint in run_stream(world, config, settings, cell.seed)
        for row in result_rows(world, checkpoint, cell.estimators, certificate)
    ]


def run_sweep(
    benchmark: Benchmark,
    settings: StreamSettings,
    sweep: Sequence[Cell],
    jobs: int = 1,
    progress: Callable[[int], None] = lambda done: None,
    folder: Path | None = None,
    scheduler: str | None = None,
    source: Source | None = None,
    meanwhile: Callable[[], object] = lambda: None,
) -> pd.DataFrame:
    """Run cells and return tidy results in the order of the cells.

    jobs: processes; 0 for one per core. folder: of finished cells; those found there are not
    run again, the others are added while the sweep runs. progress is called with the number of
    finished cells, first with that of those found. scheduler: address of a cluster to run them on,
    where jobs limits the cells under way, 0 to what its workers take; source: where its workers
    find a benchmark that is too large to be sent. meanwhile: called once while other processes here
    are at work, if they are.

    Raises OptionError where the cluster cannot be used, or has gone.
    """
    contents = benchmark_digest(benchmark)
    base = digest_of(code_digest(), contents, settings)
    keys = [digest_of(base, cell) for cell in sweep]
    finished = FinishedCells(folder)
    missing = [index for index, key in enumerate(keys) if key not in finished]
    done = len(sweep) - len(missing)

    def begun() -> None:
        progress(len(sweep) - len(missing))
        meanwhile()

    try:
        for index, rows in _results(
            benchmark, contents, settings, sweep, missing, jobs, scheduler, source, begun
        ):
            finished.add(keys[index], rows)
            done += 1
            progress(done)
    finally:
        finished.write()
    frame: pd.DataFrame = finished.table(keys).to_pandas()
    # Streams that were steered by different families repeat the naive comparison.
    repeats = (frame["estimator"] == NAIVE) & frame.duplicated(list(KEYS))
    frame = frame[~repeats].reset_index(drop=True)
    frame["decided_right"] = frame["decided_right"].astype("boolean")
    first = ["benchmark", *KEYS]
    return frame[first + [name for name in frame.columns if name not in first]]


def _results(
    benchmark: Benchmark,
    contents: str,
    settings: StreamSettings,
    sweep: Sequence[Cell],
    positions: Sequence[int],
    jobs: int,
    scheduler: str | None,
    source: Source | None,
    begun: Callable[[], None],
) -> Iterator[Finished]:
    """Positions and rows of the cells that are left, as they finish. begun: called before the first
    of them, when processes that are forked have been."""
    if scheduler is not None and positions:
        begun()
        with connected(scheduler) as cluster:
            left = ((index, sweep[index]) for index in positions)
            yield from results(
                cluster, scheduler, _finish, benchmark, source, settings, left, jobs, _note
            )
        return
    finish = partial(_finish, benchmark, contents, settings)
    if jobs == 1 or len(positions) <= 1:
        begun()
        yield from (finish(index, sweep[index]) for index in positions)
        return
    if _may_fork():
        yield from _forked(lambda index: finish(index, sweep[index]), positions, jobs, begun)
        return
    from joblib import Parallel, delayed, parallel_config

    begun()
    # Every worker watches from its first moment on, whether or not a cell ever reaches it.
    with parallel_config("loky", initializer=_become_worker, initargs=(os.getpid(),)):
        # Few cells are under way and none waits for its turn: memory does not grow with the sweep.
        pool = Parallel(n_jobs=jobs or -1, return_as="generator_unordered", pre_dispatch="4*n_jobs")
    yield from pool(delayed(finish)(index, sweep[index]) for index in positions)


def _may_fork() -> bool:
    """Whether a fork of this process is whole: it has one thread, and so has its linear algebra.

    A fork begins at once, with everything that is loaded; any other worker loads it all again,
    which takes longer than a cell.
    """
    threads = os.environ.get("OPENBLAS_NUM_THREADS") or os.environ.get("OMP_NUM_THREADS")
    return sys.platform == "linux" and threads == "1" and threading.active_count() == 1


_inherited: Callable[[int], Finished] | None = None
"""What a forked worker runs: there before the fork, so that nothing is sent but positions."""


def _forked(
    finish: Callable[[int], Finished],
    positions: Sequence[int],
    jobs: int,
    begun: Callable[[], None],
) -> Iterator[Finished]:
    """As `_results`, in forks of this process, which end with the block."""
    processes, others = min(jobs or _cores(), len(positions)), set(active_children())
    pool = ProcessPoolExecutor(processes, get_context("fork"), _become_fork, (os.getpid(), finish))
    left = iter(positions)
    try:
        # Few cells are under way and none waits for its turn: memory does not grow with the sweep.
        going = {pool.submit(_finish_inherited, index) for index in islice(left, 4 * processes)}
        begun()
        while going:
            done, going = wait(going, return_when=FIRST_COMPLETED)
            going |= {pool.submit(_finish_inherited, index) for index in islice(left, len(done))}
            yield from (each.result() for each in done)
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        for worker in set(active_children()) - others:
            worker.terminate()
        raise
    pool.shutdown()


def _cores() -> int:
    """Processors that this process may use: of its affinity and of its container's quota."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, -(-int(quota) // int(period))))
    except (OSError, ValueError):
        return cores


def _become_fork(parent: int, finish: Callable[[int], Finished]) -> None:
    global _inherited
    _inherited = finish
    _become_worker(parent)


def _finish_inherited(index: int) -> Finished:
    assert _inherited is not None
    return _inherited(index)


def _note(text: str) -> None:
    print(f"equipoise: {text}.", file=sys.stderr, flush=True)


def _finish(
    benchmark: Benchmark, contents: str, settings: StreamSettings, index: int, cell: Cell
) -> Finished:
    world = _world(benchmark, contents, cell.world_options(settings))
    return index, run_cell(benchmark, settings, cell, world)


def _become_worker(parent: int) -> None:
    """Leave interruptions to the process that waits for this one, and end when that was killed.

    parent: its process id. It may have ended before this line, so it is not asked for here.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_WATCH)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


_worlds: dict[tuple[str, WorldOptions], World] = {}


def _world(benchmark: Benchmark, contents: str, options: WorldOptions) -> World:
    """The last worlds of this process are kept: cells of one scenario come one after another."""
    key = (contents, options)
    if key not in _worlds:
        while len(_worlds) >= _WORLDS_KEPT:
            del _worlds[next(iter(_worlds))]
        _worlds[key] = World(benchmark, options)
    return _worlds[key]
