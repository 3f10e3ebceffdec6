"""The two clusters that take cells, Dask and Ray: as little of each as a sweep needs.

Neither package is imported before its cluster is asked for. Nothing here is waited for without end.
"""

from __future__ import annotations

import logging
import queue
import socket
import threading
import time
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from equipoise.replay.benchmarks.base import OptionError

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""How long the workers may take to say what they run, and to read a benchmark."""
LOOK = 0.5
_RAY_RETRIES = 3
"""As often as Dask's own default lets a task take its worker with it."""


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
            value, error = answer.get(timeout=LOOK)
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


def _host_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


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
                self._door = _host_port(address.removeprefix("ray://"))
                socket.create_connection(self._door, CONNECT_SECONDS).close()
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
        if address == "ray":
            self._door = _host_port(ray.get_runtime_context().gcs_address)
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
            socket.create_connection(self._door, CONNECT_SECONDS).close()
            for ticket in self._tickets:
                self._ray.cancel(ticket)
            self._ray.shutdown()
        except Exception:  # it is gone, and there is nothing left to free
            pass

    def _nodes(self) -> list[dict[str, Any]]:
        try:
            # Without its head Ray ends this process after a minute, and no exception says so.
            socket.create_connection(self._door, CONNECT_SECONDS).close()
            return [node for node in self._ray.nodes() if node["Alive"]]
        except Exception as error:
            raise self._gone(error) from None

    def _gone(self, error: BaseException) -> OptionError:
        return OptionError(
            "scheduler",
            f"{self._address} went away ({_line(error)}); what has finished is kept: give the same"
            " command again",
        )
