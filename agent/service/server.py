"""Running the daemon: socket, signals, uvicorn, and an orderly end.

SIGTERM and SIGINT stop it gracefully (a second SIGINT at once); others are given by the caller.
uvicorn itself would die of SIGHUP and raise SIGTERM again after its shutdown.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

import uvicorn

from equipoise.agent.service.descriptors import BACKLOG
from equipoise.agent.service.direct import DirectProtocol
from equipoise.agent.service.front import Front
from equipoise.agent.service.logs import Log
from equipoise.agent.service.protocol import Turns
from equipoise.agent.service.settings import ServiceSettings

Signals: TypeAlias = Mapping[signal.Signals, Callable[[], None]]

SWITCH_SECONDS = 0.0002
"""How long the thread that writes to SQLite may hold up the loop; Python's default is 5 ms."""


class ListenError(ValueError):
    """The address cannot be listened on."""


def listen(settings: ServiceSettings) -> socket.socket:
    """A listening socket. Raises ListenError in one line."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((settings.host, settings.port))
    except (OSError, UnicodeError) as error:
        listener.close()
        why = error.strerror if isinstance(error, OSError) else "that is no host name"
        raise ListenError(f"cannot listen on {settings.host}:{settings.port}: {why}") from None
    listener.setblocking(False)
    return listener


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
        host, port = (sockets or self.servers[0].sockets)[0].getsockname()[:2]
        # For whoever started it with port 0, and as the sign that requests may come.
        print(f"listening on http://{f'[{host}]' if ':' in host else host}:{port}", flush=True)

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


def serve(
    front: Front,
    settings: ServiceSettings,
    listener: socket.socket,
    refused: dict[int, int],
    signals: Signals,
    log: Log,
) -> None:
    """Serve until a signal. Raises StartError where the daemon did not start."""
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
        server.run(sockets=[listener])
    except SystemExit as end:
        if end.code:
            raise StartError("the daemon did not start; its log says why") from None
    finally:
        listener.close()
