"""Cells of a sweep on the workers of a cluster that runs already: Dask, or Ray.

The cluster only schedules. What is to be run, what has finished and the results stay with the
process that asks, so that a sweep goes on from the same folder on a cluster or without one. Before
anything runs, every worker is asked for its versions and sources: rows of other code never mix with
ours. The benchmark is read here and sent, unless it is larger than `SENT_BYTES`; then every worker
reads it where it lies.

`Dask` and `Ray` are the two clusters, as little of each as is needed; `results` is what they share.
"""

from __future__ import annotations

import logging
import pickle
import queue
import socket
import sys
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from hashlib import blake2b
from typing import Any, Protocol, TypeAlias

import numpy as np

from equipoise.replay.benchmarks import Benchmark, load_from_texts
from equipoise.replay.benchmarks.base import OptionError
from equipoise.replay.harness.cell_cache import (
    LIBRARIES,
    benchmark_digest,
    code_digest,
    library_versions,
)

SENT_BYTES = 64 << 20
"""The largest benchmark that is sent to the workers; Dask's scheduler keeps a copy of it."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""How long the workers may take to say what they run, and to read a benchmark."""
EMPTY_SECONDS = 60.0
"""How long a cluster may be without any worker before a sweep gives up."""
_LOOK = 0.5
_AHEAD = 2
"""Cells under way for each process of the cluster: none waits for our answer, few are lost."""
_RAY_RETRIES = 3
"""As often as Dask's own default lets a task take its worker with it."""

Finish: TypeAlias = Callable[[Benchmark, str, Any, int, Any], Any]
"""(benchmark, its digest, settings, index, cell) to what is yielded. A function of a module."""


@dataclass(frozen=True, slots=True)
class Source:
    """How a benchmark was asked for: NAME or NAME:PATH, and its options as NAME=VALUE."""

    spec: str
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Ended:
    """What became of a cell. killed: it took its worker with it, again and again."""

    ticket: Any
    result: Any = None
    error: BaseException | None = None
    killed: bool = False


class Cluster(Protocol):
    """What `results` needs of a cluster. Workers are known by their addresses."""

    def processes(self) -> dict[str, int]:
        """Threads of each worker process that is there now."""

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """What a function returns, or raises, on every worker."""

    def share(self, contents: bytes) -> Any:
        """A handle; `submit` turns it into the contents on whatever worker runs the cell."""

    def submit(self, function: Callable[..., Any], handle: Any, *arguments: Any) -> Any:
        """Run function(contents, *arguments) on some worker; return a ticket."""

    def ended(self, seconds: float) -> list[Ended]:
        """What has ended, after waiting for it at most so long. Raises OptionError when the
        cluster itself has gone."""

    def close(self) -> None:
        """Forget what is under way. Never takes long."""


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """The cluster at an address: HOST:PORT, tcp:// or tls:// of a Dask scheduler; `ray` for the Ray
    that runs on this machine, ray://HOST:PORT for another.

    Raises OptionError where nothing answers within `CONNECT_SECONDS`.
    """
    by_ray = address == "ray" or address.startswith("ray://")
    cluster: Cluster = Ray(address) if by_ray else Dask(address)
    try:
        yield cluster
    finally:
        cluster.close()


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
        endings = cluster.ended(_LOOK)
        for ending in endings:
            call = under_way.pop(ending.ticket)
            if ending.killed and not alone:
                suspects.append(call)
            elif ending.killed:
                raise OptionError(
                    "scheduler",
                    f"{address}: every worker that ran {_in_words(call[1])} died; its other cells"
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
        time.sleep(_LOOK / 5)


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
    with _one_cell, _one_thread():
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


@cache
def _thread_pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _one_thread() -> Any:
    """Inside, linear algebra has one thread, however the worker was started."""
    return _thread_pools().limit(limits=1)


# The two clusters.


def _lacking(package: str, extra: str) -> OptionError:
    return OptionError(
        "scheduler", f"needs the package {package}: pip install 'equipoise[{extra}]'"
    )


def _line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _silence(package: str) -> Callable[[], None]:
    """Let the loggers of a package say nothing, until what is returned is called. They write a
    traceback for each connection that is lost, which we say in a line."""
    names = [name for name in logging.root.manager.loggerDict if name.split(".")[0] == package]
    levels = {name: logging.getLogger(name).level for name in names}
    for name in levels:
        logging.getLogger(name).setLevel(logging.CRITICAL)

    def restore() -> None:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)

    return restore


class _NoAnswerError(Exception):
    pass


def _bounded(
    seconds: float | None, call: Callable[[], Any], check: Callable[[], None] = lambda: None
) -> Any:
    """What a call returns or raises, awaited at most so long: some never come back from a peer that
    is not what it seems, or has stopped. check: called now and then; it may raise."""
    answer: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answer.put((call(), None))
        except BaseException as error:
            answer.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    deadline = None if seconds is None else time.monotonic() + seconds
    while True:
        try:
            value, error = answer.get(timeout=_LOOK)
        except queue.Empty:
            check()
            if deadline is not None and time.monotonic() > deadline:
                raise _NoAnswerError(f"no answer within {seconds:g} s") from None
            continue
        if error is not None:
            raise error
        return value


class Dask:
    """A Dask cluster, by a client of our own that nobody else sees."""

    def __init__(self, address: str) -> None:
        try:
            import threadpoolctl  # noqa: F401 - wanted on the workers, and so here
            from distributed import Client, KilledWorker
            from distributed.comm.addressing import parse_host_port
        except ImportError as error:
            raise _lacking(error.name or "distributed", "dask") from None
        self._address, self._killed_worker = address, KilledWorker
        self._ended: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._futures: set[Any] = set()
        self._handle: Any = None
        self._speak_again = _silence("distributed")
        try:
            # Asked first, since a client that never connected takes long to close.
            socket.create_connection(parse_host_port(address), CONNECT_SECONDS).close()
            self._client: Any = Client.__new__(Client)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # versions that differ: we look ourselves
                _bounded(
                    CONNECT_SECONDS,
                    lambda: Client.__init__(
                        self._client, address, timeout=CONNECT_SECONDS, set_as_default=False
                    ),
                )
        except Exception as error:
            if hasattr(self, "_client"):
                self._client.status = "closed"  # or its end would wait for twice as long again
            self._speak_again()
            reason = "something else does" if isinstance(error, MemoryError) else _line(error)
            raise OptionError(
                "scheduler", f"no Dask scheduler answers at {address}: {reason}"
            ) from None

    def processes(self) -> dict[str, int]:
        workers = self._within(ANSWER_SECONDS, self._client.nthreads)
        return dict(workers)

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        # Not as tasks: those would queue behind the work of others.
        answers = self._within(
            ANSWER_SECONDS, lambda: self._client.run(function, *arguments, on_error="return")
        )
        return dict(answers)

    def share(self, contents: bytes) -> Any:
        # A task and no `scatter`: what is scattered is lost with the workers that hold it, what a
        # task returns is made again.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "Sending large graph"
            self._handle = self._client.submit(
                bytes, contents, key=f"equipoise-benchmark-{uuid.uuid4().hex}", pure=False
            )
        return self._handle

    def submit(self, function: Callable[..., Any], handle: Any, *arguments: Any) -> Any:
        future = self._client.submit(
            function, handle, *arguments, key=f"equipoise-cell-{uuid.uuid4().hex}", pure=False
        )
        self._futures.add(future)
        future.add_done_callback(self._ended.put)
        return future

    def ended(self, seconds: float) -> list[Ended]:
        try:
            future = self._ended.get(timeout=seconds)
        except queue.Empty:
            self._check_connection()
            return []
        self._check_connection()
        self._futures.discard(future)
        if future.cancelled():
            raise self._gone()
        if future.status == "error":
            error = future.exception()
            if isinstance(error, self._killed_worker):
                return [Ended(future, killed=True)]
            return [Ended(future, error=error)]
        try:
            # The worker that has the result may die before it is here; then the cell runs again.
            return [Ended(future, self._within(None, future.result))]
        except self._killed_worker:
            return [Ended(future, killed=True)]

    def close(self) -> None:
        try:
            if self._client.status == "running":
                self._client.cancel(list(self._futures), force=True)
            self._client.close(timeout=2)
        except Exception:  # it is gone, and there is nothing left to free
            pass
        finally:
            self._speak_again()

    def _check_connection(self) -> None:
        if self._client.status != "running":
            raise self._gone()

    def _gone(self) -> OptionError:
        return OptionError(
            "scheduler",
            f"{self._address} went away; what has finished is kept: give the same command again",
        )

    def _within(self, seconds: float | None, call: Callable[[], Any]) -> Any:
        """A call to the cluster, in a bounded time; None for as long as there is a scheduler."""
        try:
            return _bounded(seconds, call, self._check_connection)
        except _NoAnswerError:
            raise OptionError(
                "scheduler", f"{self._address} did not answer within {seconds:g} s"
            ) from None
        except Exception:
            self._check_connection()
            raise


class Ray:
    """The Ray cluster that runs on this machine (`ray`), or another by its client (ray://)."""

    def __init__(self, address: str) -> None:
        try:
            import ray
            import threadpoolctl  # noqa: F401 - wanted on the workers, and so here
        except ImportError as error:
            raise _lacking(error.name or "ray", "ray") from None
        self._ray, self._address = ray, address
        self._tickets: list[Any] = []
        try:
            if address != "ray":
                host, _, port = address.removeprefix("ray://").rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_SECONDS).close()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # it says in two sentences what we say in one
                _bounded(
                    4 * CONNECT_SECONDS,
                    lambda: ray.init(
                        address="auto" if address == "ray" else address,
                        logging_level=logging.CRITICAL,
                        log_to_driver=False,
                    ),
                )
        except Exception as error:
            raise OptionError(
                "scheduler", f"no Ray cluster answers at {address}: {_line(error)}"
            ) from None
        # A lambda of no module, so that a worker without our package can take it. What it calls is
        # found there by its name; Ray itself would not take a function that is cached.
        self._call = ray.remote(
            eval("lambda function, *given: function(*given)", {"__name__": "__main__"})
        )

    def processes(self) -> dict[str, int]:
        return {
            f"{node['NodeManagerAddress']}/{core}": 1
            for node in self._nodes()
            for core in range(int(node["Resources"].get("CPU", 0)))
        }

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        asked = {
            node["NodeManagerAddress"]: self._call.options(
                num_cpus=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False),
            ).remote(function, *arguments)
            for node in self._nodes()
        }
        answers: dict[str, Any] = {}
        for name, ticket in asked.items():
            try:
                answers[name] = self._ray.get(ticket, timeout=ANSWER_SECONDS)
            except Exception as error:
                answers[name] = getattr(error, "cause", None) or error
        return answers

    def share(self, contents: bytes) -> Any:
        return self._ray.put(contents)

    def submit(self, function: Callable[..., Any], handle: Any, *arguments: Any) -> Any:
        ticket = self._call.options(
            num_cpus=1, max_retries=_RAY_RETRIES, name="equipoise cell"
        ).remote(function, handle, *arguments)
        self._tickets.append(ticket)
        return ticket

    def ended(self, seconds: float) -> list[Ended]:
        errors = self._ray.exceptions
        try:
            ready, self._tickets = self._ray.wait(self._tickets, num_returns=1, timeout=seconds)
        except Exception as error:
            raise self._gone(error) from None
        endings = []
        for ticket in ready:
            try:
                endings.append(Ended(ticket, self._ray.get(ticket)))
            except (errors.WorkerCrashedError, errors.NodeDiedError, errors.OutOfMemoryError):
                endings.append(Ended(ticket, killed=True))
            except errors.RayTaskError as error:
                endings.append(Ended(ticket, error=error.cause))
            except (errors.RayError, ConnectionError) as error:
                raise self._gone(error) from None
        return endings

    def close(self) -> None:
        try:
            for ticket in self._tickets:
                self._ray.cancel(ticket)
            self._ray.shutdown()
        except Exception:  # it is gone, and there is nothing left to free
            pass

    def _nodes(self) -> list[dict[str, Any]]:
        try:
            return [node for node in self._ray.nodes() if node["Alive"]]
        except Exception as error:
            raise self._gone(error) from None

    def _gone(self, error: BaseException) -> OptionError:
        return OptionError(
            "scheduler",
            f"{self._address} went away ({_line(error)}); what has finished is kept: give the same"
            " command again",
        )
