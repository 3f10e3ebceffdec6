"""Cells of a sweep on the workers of a cluster that runs already: Dask, or Ray.

The cluster only schedules. What is to be run, what has finished and the results stay with the
process that asks, so that a sweep goes on from the same folder on a cluster or without one. Before
anything runs, every worker is asked for its versions and sources: rows of other code never mix with
ours. The benchmark is read here and sent, unless it is larger than `SENT_BYTES`; then every worker
reads it where it lies.

`results` runs cells on either cluster of `cluster_clients`.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, TypeAlias

import numpy as np

from equipoise.replay.benchmarks import Benchmark, load_from_texts
from equipoise.replay.benchmarks.base import OptionError
from equipoise.replay.harness.cell_cache import (
    LIBRARIES,
    benchmark_digest,
    code_digest,
    library_versions,
)
from equipoise.replay.harness.cluster_clients import (
    CONNECT_SECONDS,
    LOOK,
    Cluster,
)

SENT_BYTES = 64 << 20
"""The largest benchmark that is sent to the workers; Dask's scheduler keeps a copy of it."""
EMPTY_SECONDS = 60.0
"""How long a cluster may be without any worker before a sweep gives up."""
_AHEAD = 2
"""Cells under way for each process of the cluster: none waits for our answer, few are lost."""
Finish: TypeAlias = Callable[[Benchmark, str, Any, int, Any], Any]
"""(benchmark, its digest, settings, index, cell) to what is yielded. A function of a module."""


@dataclass(frozen=True, slots=True)
class Source:
    """How a benchmark was asked for: NAME or NAME:PATH, and its options as NAME=VALUE."""

    spec: str
    options: tuple[str, ...] = ()


def results(
    cluster: Cluster,
    address: str,
    finish: Finish,
    benchmark: Benchmark,
    source: Source | None,
    settings: Any,
    cells: Iterable[tuple[int, Any]],
    most: int = 0,
    note: Callable[[str], None] = lambda text: None,
) -> Iterator[Any]:
    """What `finish` returns for every (index, cell), as they finish on the cluster.

    source: where workers read a benchmark that is too large to be sent; None to send any. most:
    cells under way at a time, 0 for what the workers take. note: called with what somebody should
    know though it stops nothing.

    A cell whose worker dies runs again on another. One that outlasts no worker is tried once more
    when all others have finished, with nothing else under way, so that none is blamed for its
    neighbour. Raises OptionError naming the worker that differs, the cell, or what is gone.
    """
    _wait_for_workers(cluster, address)
    _check_versions(cluster, address)
    _check_bits(cluster, note)
    crowded = [name for name, threads in cluster.processes().items() if threads > 1]
    if crowded:
        note(
            f"{_others(crowded)} {'has' if len(crowded) == 1 else 'have'} several threads and runs"
            " one cell at a time; to use every core, start workers of one thread"
        )
    contents = benchmark_digest(benchmark)
    shared = pickle.dumps((benchmark, settings), protocol=5)
    if source is not None and len(shared) > SENT_BYTES:
        _check_readable(cluster, source, contents, len(shared))
        shared = pickle.dumps((source, settings), protocol=5)
    handle = cluster.share(shared)
    yield from _run(
        cluster, address, cells, most, handle, (finish, contents, code_digest(), uuid.uuid4().hex)
    )


def _run(
    cluster: Cluster,
    address: str,
    cells: Iterable[tuple[int, Any]],
    most: int,
    handle: Any,
    common: tuple[Any, ...],
) -> Iterator[Any]:
    left, alone = iter(cells), False
    suspects: list[tuple[int, Any]] = []
    under_way: dict[Any, tuple[int, Any]] = {}
    room = most or _AHEAD * len(cluster.processes())
    populated = time.monotonic()
    while True:
        for call in left if len(under_way) < room else ():
            under_way[cluster.submit(on_worker, handle, *common, *call)] = call
            if len(under_way) >= room:
                break
        if not under_way:
            if not suspects:
                return
            left, suspects, alone, room = iter(suspects), [], True, 1
            continue
        endings = cluster.ended(LOOK)
        for ending in endings:
            call = under_way.pop(ending.ticket)
            if ending.killed and not alone:
                suspects.append(call)
            elif ending.killed:
                raise OptionError(
                    "scheduler",
                    f"{address}: every worker that ran {_in_words(call[1])} died; the other cells"
                    " are finished and kept. Look for the reason in the workers' logs (memory?)",
                )
            elif ending.error is not None:
                raise _explained(ending.error, address)
            else:
                yield ending.result
        now = time.monotonic()
        if endings:
            populated = now
            continue
        processes = cluster.processes()
        if processes:
            populated = now
            room = 1 if alone else most or _AHEAD * len(processes)
        elif now - populated > EMPTY_SECONDS:
            first = _in_words(next(iter(under_way.values()))[1])
            raise OptionError(
                "scheduler",
                f"{address} has had no worker for {EMPTY_SECONDS:g} s; under way: {first}"
                + f" and {len(under_way) - 1} more" * (len(under_way) > 1),
            )


def _explained(error: BaseException, address: str) -> BaseException:
    """An error of a cell, or of a worker that came later and was never asked what it runs."""
    if isinstance(error, OtherCodeError):
        return OptionError("scheduler", f"{address}: {error}")
    if isinstance(error, ImportError) and (error.name or "").startswith("equipoise"):
        return OptionError(
            "scheduler", f"{address}: a worker that joined cannot import {error.name}"
        )
    return error


def _in_words(cell: Any) -> str:
    """A cell as people look for it in their command."""
    fields = {name: getattr(cell, name, None) for name in ("policy", "world", "alpha")}
    fields |= {name: getattr(cell, name, None) for name in ("confounding", "seed")}
    words = (f"{name} {value}" for name, value in fields.items() if value not in (None, ""))
    return f"the cell ({', '.join(words)})"


# What is asked before anything runs.


def _wait_for_workers(cluster: Cluster, address: str) -> None:
    deadline = time.monotonic() + CONNECT_SECONDS
    while not cluster.processes():
        if time.monotonic() > deadline:
            raise OptionError(
                "scheduler", f"{address} has no worker (waited {CONNECT_SECONDS:g} s for one)"
            )
        time.sleep(LOOK / 5)


VERSIONS = """{
    "python": ".".join(map(str, __import__("sys").version_info[:2])),
    **{
        name: next((each.version for each in distributions(name=name)), None)
        for distributions in [__import__("importlib.metadata", fromlist=["m"]).distributions]
        for name in names
    },
}"""
"""An expression, since a worker without our package could not receive a function of ours."""


def _check_versions(cluster: Cluster, address: str) -> None:
    ours = {"python": _python(), **library_versions()}
    answers = cluster.ask(eval, VERSIONS, {"names": [*LIBRARIES, "threadpoolctl"]})
    _refuse_first(
        {
            worker: answer if isinstance(answer, BaseException) else _difference(ours, answer)
            for worker, answer in answers.items()
        }
    )
    digest = code_digest()
    digests = cluster.ask(code_digest)
    _refuse_first(
        {
            worker: answer
            if isinstance(answer, BaseException)
            else ""
            if answer == digest
            else f"runs other sources of equipoise {ours['equipoise']}; install the same and"
            " restart the worker"
            for worker, answer in digests.items()
        }
    )


def _python() -> str:
    return ".".join(map(str, sys.version_info[:2]))


def _difference(ours: Mapping[str, str], theirs: Mapping[str, str | None]) -> str:
    """What a worker lacks or has in another version, in words; empty where nothing."""
    lacking = [name for name, version in theirs.items() if version is None]
    if lacking:
        return f"has no {', '.join(lacking)}; install equipoise {ours['equipoise']} there"
    other = [
        f"{name} {theirs[name]} (here {version})"
        for name, version in ours.items()
        if theirs[name] != version
    ]
    return f"runs {', '.join(other)}" if other else ""


def _refuse_first(faults: Mapping[str, str | BaseException]) -> None:
    """Raise OptionError for the first worker with a fault, and say how many share it."""
    bad = {worker: str(fault) for worker, fault in sorted(faults.items()) if fault}
    if bad:
        worker, fault = next(iter(bad.items()))
        more = sum(other == fault for other in bad.values()) - 1
        also = f" (and {more} more)" if more else ""
        raise OptionError("scheduler", f"worker {worker}{also} {' '.join(fault.split())}")


def _check_bits(cluster: Cluster, note: Callable[[str], None]) -> None:
    """Say where the last digits will differ: another kind of processor has other kernels."""
    here = arithmetic_digest()
    others = [name for name, there in cluster.ask(arithmetic_digest).items() if there != here]
    if others:
        note(
            f"{_others(sorted(others))} rounds otherwise than this machine (another kind of"
            " processor): results agree with local ones up to rounding, not in every bit"
        )


def _others(workers: Sequence[str]) -> str:
    more = f" (and {len(workers) - 1} more)" if len(workers) > 1 else ""
    return f"worker {workers[0]}{more}"


def arithmetic_digest() -> str:
    """A digest of some linear algebra and some functions: it differs where the last bits do."""
    from scipy.special import ndtr

    with _one_thread():
        rows = np.random.default_rng(0).normal(size=(300, 33))
        gram = rows.T @ rows
        parts = (gram, np.linalg.cholesky(gram), np.linalg.solve(gram, rows.T), rows.sum(axis=0))
        functions = (np.exp(rows), np.log(np.abs(rows)), ndtr(rows))
    digest = blake2b(digest_size=16)
    for each in (*parts, *functions):
        digest.update(np.ascontiguousarray(each).tobytes())
    return digest.hexdigest()


def _check_readable(cluster: Cluster, source: Source, contents: str, size: int) -> None:
    why = f"the benchmark has {size >> 20} MB, and more than {SENT_BYTES >> 20} MB are not sent"
    faults: dict[str, str | BaseException] = {}
    for worker, answer in cluster.ask(read_digest, source).items():
        if isinstance(answer, BaseException):
            faults[worker] = f"cannot read {source.spec} ({answer}); {why}"
        elif answer != contents:
            faults[worker] = f"has another {source.spec}; {why}"
    _refuse_first(faults)


# What runs on a worker.


class OtherCodeError(Exception):
    """A worker that joined after the check, with other code or another benchmark file."""


_one_cell = threading.Lock()
_read: dict[tuple[str, str], tuple[Benchmark, Any]] = {}


def on_worker(
    shared: bytes, finish: Finish, contents: str, code: str, sweep: str, index: int, cell: Any
) -> Any:
    """One cell, on a worker: alone in its process, with one thread of linear algebra.

    shared: the benchmark or its source, and the settings; read once in a process for each sweep.
    """
    if code_digest() != code:
        raise OtherCodeError("a worker that joined runs other code")
    with _one_cell, _one_thread(), _memory_kept():
        if (sweep, contents) not in _read:
            _read.clear()
            benchmark, settings = pickle.loads(shared)
            if isinstance(benchmark, Source):
                benchmark = _load(benchmark)
                if benchmark_digest(benchmark) != contents:
                    raise OtherCodeError("a worker that joined reads another benchmark")
            _read[sweep, contents] = benchmark, settings
        benchmark, settings = _read[sweep, contents]
        return finish(benchmark, contents, settings, index, cell)


def read_digest(source: Source) -> str:
    """The digest of a benchmark as it is read here. Raises BenchmarkError."""
    return benchmark_digest(_load(source))


def _load(source: Source) -> Benchmark:
    return load_from_texts(source.spec, source.options)


_TRIM, _MMAP = -1, -3
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD of glibc's malloc.h."""


@contextmanager
def _memory_kept() -> Iterator[None]:
    """Inside, freed arrays stay with the process, as they do where nobody says otherwise.

    Dask's nanny sets MALLOC_TRIM_THRESHOLD_ to 64 KiB, and so every array of a cell is got from the
    system and given back: a third more processor time.
    """
    trim = os.environ.get("MALLOC_TRIM_THRESHOLD_", "")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if trim.isdecimal() else None
    if mallopt is None:
        yield
        return
    mallopt(_TRIM, 256 << 20)
    mallopt(_MMAP, 32 << 20)
    try:
        yield
    finally:
        mallopt(_TRIM, int(trim))
        mallopt(_MMAP, 128 << 10)


@cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> Any:
    """Inside, linear algebra has one thread, however the worker was started."""
    return _thread_pools().limit(limits=1)
