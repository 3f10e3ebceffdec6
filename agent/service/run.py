"""From a configuration file to a running daemon, and back to an orderly end.

SIGTERM and SIGINT stop it gracefully (a second SIGINT at once); others are given by the caller.
uvicorn itself would die of SIGHUP and raise SIGTERM again after its shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import os
import signal
import socket
import sqlite3
import stat
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import msgspec
import uvicorn

from equipoise.agent.config import ConfigError, ExperimentConfig
from equipoise.agent.config.file import ConfigFile, load_file
from equipoise.agent.config.parts import Meaning
from equipoise.agent.config.reload import (
    NEED_RESTART,
    ReloadPlan,
    in_force,
    reload_plan,
)
from equipoise.agent.config.service import ServiceSettings
from equipoise.agent.ingest.joining import Joining
from equipoise.agent.lifecycle.opening import with_after_decision
from equipoise.agent.lifecycle.stored_config import changes
from equipoise.agent.maintenance.key_file import open_key
from equipoise.agent.monitors.lost_rows import smallest_certifiable
from equipoise.agent.service.app import build, otlp_of
from equipoise.agent.service.daemon import BROKEN, Daemon, Office
from equipoise.agent.service.handlers.otlp import SETTLE_EVERY_SECONDS
from equipoise.agent.service.hot_path.application import Application, DirectProtocol
from equipoise.agent.service.http.access import Tokens
from equipoise.agent.service.http.connection_limits import BACKLOG, Turns, descriptors, raise_limit
from equipoise.agent.service.page import page
from equipoise.agent.service.telemetry import Log, gather_library_lines
from equipoise.agent.service.upkeep.capacity import Needs, growth, needs
from equipoise.store.address import beside, files_of, is_url, shown
from equipoise.store.errors import StoreError, StoreInUseError
from equipoise.store.opening import ServedStore, open_served, open_store

Signals: TypeAlias = Mapping[signal.Signals, Callable[[], None]]

SWITCH_SECONDS = 0.0002
"""How long the thread that writes to SQLite may hold up the loop; Python's default is 5 ms."""


class ListenError(ValueError):
    """The address cannot be listened on."""


def listen(settings: ServiceSettings, *, shared: bool = False) -> socket.socket:
    """A listening socket. shared: with other processes of this user at the same port. Raises
    ListenError in one line."""
    if settings.uds is not None:
        return _listen_on_file(settings.uds, int(settings.uds_mode, 8))
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else "that is no host name"
        raise ListenError(f"cannot listen on {settings.host}:{settings.port}: {why}") from None
    listener.setblocking(False)
    return listener


def _listen_on_file(path: str, mode: int) -> socket.socket:
    """A socket at a path, which nobody may write to before it has its permissions. One that another
    daemon left there is replaced, one that is in use is not."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    before = os.umask(0o777 & ~mode)
    try:
        if _is_left_over(path):
            os.unlink(path)
        listener.bind(path)
    except (OSError, ValueError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ListenError(f"cannot listen on {path}: {why}") from None
    finally:
        os.umask(before)
    listener.setblocking(False)
    return listener


def _is_left_over(path: str) -> bool:
    """Whether there is a socket that nobody listens at. Raises ValueError for anything else that is
    there, and where somebody does."""
    try:
        kind = os.stat(path).st_mode
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(kind):
        raise ValueError("there is a file that is no socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return True
        except OSError as error:
            raise ValueError(f"whoever listens there does not answer ({error})") from None
    raise ValueError("another program listens there")


@contextlib.contextmanager
def listening(settings: ServiceSettings, *, shared: bool = False) -> Iterator[socket.socket]:
    """A listening socket, whose file is removed in the end, unless another took its place."""
    listener = listen(settings, shared=shared)
    file = settings.uds and os.stat(settings.uds).st_ino
    try:
        yield listener
    finally:
        listener.close()
        with suppress(OSError):
            if settings.uds and os.stat(settings.uds).st_ino == file:
                os.unlink(settings.uds)


class StartError(ValueError):
    """The daemon did not start; its log says why."""


class Server(uvicorn.Server):
    """uvicorn's server with our signals. signals: what to call at which, beside the two that end
    it; ending: called when one of those came."""

    def __init__(
        self, config: uvicorn.Config, signals: Signals, log: Log, ending: Callable[[], None]
    ) -> None:
        super().__init__(config)
        self._ending = ending
        self._signals = signals
        self._log = log

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        # What is there by now stays: the collector need not look at it again and again.
        gc.collect()
        gc.freeze()
        place = (sockets or self.servers[0].sockets)[0].getsockname()
        if isinstance(place, str):
            address = f"unix://{os.path.abspath(place)}"
        else:
            host, port = place[:2]
            address = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        # For whoever started it with port 0, and as the sign that requests may come.
        print(f"listening on {address}", flush=True)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop, number)
        for number, call in self._signals.items():
            loop.add_signal_handler(number, call)
        try:
            yield
        finally:
            # Until the process ends a late signal must not cut the end short.
            for number in (signal.SIGTERM, signal.SIGINT, *self._signals):
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_IGN)

    def _stop(self, number: int) -> None:
        self._log.info("stopping", signal=signal.Signals(number).name)
        if self.should_exit and number == signal.SIGINT:
            self.force_exit = True
        self.should_exit = True
        self._ending()


def serve_front(
    front: Application,
    settings: ServiceSettings,
    listener: socket.socket,
    refused: Counter[int],
    signals: Signals,
    log: Log,
    others: Sequence[socket.socket] = (),
) -> None:
    """Serve until a signal. others: sockets beside the one that is named. Raises StartError where
    the daemon did not start."""
    protocol: Any = functools.partial(
        DirectProtocol, front, limits=settings.limits, refused=refused, turns=Turns()
    )
    config = uvicorn.Config(
        front,
        http=protocol,
        loop="uvloop",
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,
        proxy_headers=False,
        timeout_keep_alive=max(1, round(settings.limits.idle_seconds)),
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
        backlog=BACKLOG,
    )
    server = Server(config, signals, log, front.begin_stop)
    # The log is one JSON object a line; what clients send that is no HTTP is counted.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    sys.setswitchinterval(SWITCH_SECONDS)
    try:
        server.run(sockets=[listener, *others])
    except SystemExit as end:
        if end.code:
            raise StartError("the daemon did not start; its log says why") from None
    finally:
        listener.close()


_SURELY_SECONDS = 5.0


def check_only(
    path: Path,
    overrides: Mapping[str, object],
    deciders: int | None = None,
    *,
    authority: bool = True,
) -> dict[str, Any]:
    """What a configuration that is fine amounts to, with the growth of its store. deciders,
    authority: what is to run here, as of `Needs.sentence`.

    Raises ConfigError with every problem, AgentError where the store that is there refuses it.
    """
    file = load_file(path, overrides)
    Tokens(file.service.tokens)  # those of the environment may be missing
    later = _changes_of_store(file)
    files = descriptors(file.service.limits.connections)
    needed = _possible(file)
    expected = growth(
        file.experiment,
        None if is_url(file.service.store) else files_of(file.service.store),
        file.capacity.requests_per_second,
    )
    return {
        "config": str(path),
        "experiment": file.experiment.name,
        "models": list(file.experiment.model_names),
        "mode": file.service.mode,
        "store": shown(file.service.store),
        "growth": asdict(expected),
        "needs": asdict(needed),
        "new_era": later,
        "descriptors": asdict(files),
        "longest_wait_seconds": longest_wait(file.experiment),
        "rated": file.capacity.rated,
        "sentence": "\n".join(
            [
                f"{path}: {file.experiment.name} compares {', '.join(file.experiment.model_names)};"
                f" mode {file.service.mode}, store {shown(file.service.store)}",
                *([f"the next start begins a new era: {'; '.join(later)}"] if later else []),
                str(expected),
                *([files.sentence] if files.sentence else []),
                waiting_sentence(file.experiment),
                *rated_sentences(file),
                needed.sentence(deciders, authority=authority),
                *_retention(file),
            ]
        ),
    }


def longest_wait(config: ExperimentConfig) -> float | None:
    """Seconds after which a decision is certified at the latest, None where it may be never."""
    if config.reward.window is None:
        return None
    return config.reward.window + (0.0 if config.units is None else config.units.ttl)


def waiting_sentence(config: ExperimentConfig) -> str:
    """What the declared window means for certified answers."""
    longest = longest_wait(config)
    if longest is None:
        return (
            "no reward.window: a reward that never comes is waited for without end, and nothing"
            " decided after its request is ever certified; declare reward.window"
        )
    return f"requests are certified {longest:g} s after they were decided at the latest"


def rated_sentences(file: ConfigFile) -> list[str]:
    """What the worst case for missing rewards leaves to be certified, at the share that is rated;
    what a meaning of those who rate is about. Nothing where a value is declared or every request
    is rated."""
    reward, rated = file.experiment.reward, file.capacity.rated
    if reward.rated_share is not None:
        rated = reward.rated_share
    if reward.meaning.of_raters:
        who = "those who rate" if reward.ask is None else "those who rate when they are asked"
        asked = "" if reward.ask is None else f", and {100.0 * reward.ask:.3g}% are asked"
        return [
            f"answers are about {who}{asked}: what the others think stays unknown, and fewer"
            " ratings take more requests (equipoise plan says how many: docs/missing.md)"
        ]
    if reward.meaning is not Meaning.WORST_CASE or rated == 1.0:
        return []
    scale = reward.high - reward.low
    epsilon = file.experiment.policy.epsilon / scale
    cure = (
        'declare what a missing reward means (reward.missing, now "worst-case"; a number, "rated"'
        ' or "asked": docs/missing.md)'
    )
    if rated is None:
        most = smallest_certifiable(0.03, epsilon) * scale
        return [
            "which share of the requests is ever rated is not declared (capacity.rated): each"
            f" missing reward counts as the worst case, so with 97% rated no difference below"
            f" {most:.3g} is ever certified, and with less than half nothing is; unless nearly all"
            f" are rated, {cure}"
        ]
    least = smallest_certifiable(1.0 - rated, epsilon)
    below = "no difference" if least >= 1.0 else f"no difference below {least * scale:.3g}"
    return [f"warning: with {100.0 * rated:.3g}% rated, {below} is ever certified: {cure}"]


def _possible(file: ConfigFile) -> Needs:
    """What it needs. Raises ConfigError where that cannot work."""
    needed = needs(file.experiment, file.service, file.capacity.requests_per_second)
    problem = needed.problem(file.experiment)
    if problem is not None:
        raise ConfigError([str(problem)])
    return needed


def _changes_of_store(file: ConfigFile) -> list[str]:
    """What starting on the store that is there begins anew. Raises AgentError for what it refuses.

    A store that cannot be read now, such as one of an older schema, says nothing.
    """
    where = file.service.store
    with suppress(StoreError):
        if is_url(where) or Path(where).is_file():
            with open_store(where, read_only=True) as store:
                differences = changes(store, file.experiment)
            eras = (change for change in differences if change.effect == "era")
            return [f"{change.key} {change.values} ({change.why})" for change in eras]
    return []


def _retention(file: ConfigFile) -> list[str]:
    """What retention means for the room that is needed."""
    retention = file.service.retention
    if retention is None:
        return []
    where = "are deleted" if retention.archive is None else f"go to {retention.archive}"
    days = "a day" if retention.days == 1 else f"{retention.days:g} days"
    return [f"rows older than {days} {where}: the store stops growing by then"]


Elected: TypeAlias = Callable[[ServiceSettings], contextlib.AbstractContextManager[Office]]
"""Waits until this process is the authority; what it gives is held while the experiment opens."""


def run(
    path: Path,
    overrides: Mapping[str, object],
    elected: Elected | None = None,
    process: str = "",
) -> int:
    """Serve until a signal; the exit code. elected: of an authority, None where requests are
    decided here. process: which one of several it is, for its log.

    Raises ConfigError, StoreError, AgentError or ListenError.
    """
    file = load_file(path, overrides)
    _possible(file)
    config, settings = file.experiment, file.service
    log, settings = begin_log(settings, process)
    tokens = Tokens(settings.tokens)
    with listening(settings) as listener, contextlib.ExitStack() as opened:
        # First the office: who stands by has no store, which the authority holds.
        with contextlib.nullcontext() if elected is None else elected(settings) as office:
            store = opened.enter_context(_opened(settings, patient=office is not None))
            joining = opened.enter_context(_joining(file, log))
            key = open_key(store, settings.key)
            daemon = Daemon(config, settings, store, key, log, office)
        switch = daemon.switches.kill_switch
        signals: Signals = {
            signal.SIGHUP: partial(
                daemon.run_with_sums, partial(reread, path, overrides, daemon, tokens)
            ),
            signal.SIGUSR1: partial(switch.signal, True),
            signal.SIGUSR2: partial(switch.signal, False),
        }
        daemon.end = partial(_end, settings.shutdown_seconds + _SURELY_SECONDS)
        otlp = None
        if settings.otlp is not None:
            otlp = otlp_of(daemon, file.mapping(settings.otlp.mapping), joining)
            daemon.jobs.add("otlp", SETTLE_EVERY_SECONDS, otlp.settle)
        front = build(daemon, tokens, page(daemon.analysis, daemon.jobs), otlp)
        serve_front(front, settings, listener, daemon.counters.refused, signals, log)
        return daemon.exit_code


def begin_log(settings: ServiceSettings, process: str = "") -> tuple[Log, ServiceSettings]:
    """The log of a process that serves, and the settings with as many connections as it may
    open."""
    log = Log(settings.log_level, process=process)
    gather_library_lines(log)
    files = raise_limit(settings.limits.connections)
    if files.sentence:
        log.warning("descriptors", sentence=files.sentence)
        fewer = msgspec.structs.replace(settings.limits, connections=files.connections)
        settings = msgspec.structs.replace(settings, limits=fewer)
    return log, settings


def _end(seconds: float) -> None:
    """End this process in order, and in any case after so many seconds: what broke it, such as
    memory that is short, may break the orderly end too."""
    timer = threading.Timer(seconds, os._exit, (BROKEN,))
    timer.daemon = True
    timer.start()
    os.kill(os.getpid(), signal.SIGTERM)


_LET_GO_SECONDS = 30.0
"""How long an authority waits for the store that the one before it still holds, which was deposed
and is about to end."""


def _opened(settings: ServiceSettings, *, patient: bool) -> ServedStore:
    """The store. patient: wait for a writer that is on its way out."""
    until = time.monotonic() + (_LET_GO_SECONDS if patient else 0.0)
    while True:
        try:
            return open_served(
                settings.store,
                settings.durability,
                busy_seconds=settings.limits.store_seconds,
                waiting_rows=settings.limits.waiting_rows,
                grouped=True,
            )
        except StoreInUseError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


@contextlib.contextmanager
def _joining(file: ConfigFile, log: Log) -> Iterator[Joining | None]:
    """Where spans wait. Raises StoreError where their file fails."""
    settings = file.service
    if settings.otlp is None:
        yield None
        return
    path = beside(settings.store, ".spans")
    try:
        joining = Joining(
            path,
            settings.otlp.settle_seconds,
            settings.otlp.wait_seconds,
            most=settings.otlp.waiting,
            keep_unrated=file.experiment.reward.missing_value is not None,
            safe=settings.durability == "power",
        )
    except (OSError, sqlite3.Error) as error:
        raise StoreError(f"{path}, where spans wait, cannot be opened: {error}") from None
    if joining.put_aside is not None:
        log.warning("otlp-file-damaged", path=str(path), kept=str(joining.put_aside))
    with joining:
        yield joining


def reread(path: Path, overrides: Mapping[str, object], daemon: Daemon, tokens: Tokens) -> None:
    """Take over what may change while the daemon runs; say what waits for its next start.

    A file with a mistake, or with a change that no start would take, changes nothing.
    """
    log, old, config = daemon.log, daemon.settings, daemon.agent.config
    try:
        file = load_file(path, overrides)
        file = replace(file, experiment=with_after_decision(file.experiment, daemon.store))
        before = replace(file, experiment=config, service=old)
        plan = reload_plan(before, file)
        if any(change.of_experiment for change in plan.changes):
            changes(daemon.store, file.experiment)  # raises AgentError for what no start would take
            plan, experiment = in_force(plan, config, file.experiment)
            if experiment != config:
                daemon.reconfigure(experiment)
        new = file.service
        tokens.replace(new.tokens)
    except ValueError as error:
        problems = error.problems if isinstance(error, ConfigError) else [str(error)]
        log.error("reload-refused", problems=problems)
        return
    unchanged = {name: getattr(old, name) for name in NEED_RESTART}
    daemon.apply(msgspec.structs.replace(new, **unchanged))
    log.info("reloaded", changes=[change.sentence for change in plan.of("applied")])
    if plan.waiting:
        log.warning(
            "restart-needed",
            sentence=_restart_sentence(plan),
            changes=[change.sentence for change in plan.waiting],
        )


def _restart_sentence(plan: ReloadPlan) -> str:
    era = ", which begins a new era" if plan.of("era") else ""
    return f"Restart the daemon to take over these changes{era}; the rest of the file is in force."
