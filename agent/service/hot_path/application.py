"""The ASGI entry: hot routes answered at once, everything else handed to Starlette.

A hot request that arrives whole is answered while its bytes are being parsed, or together with
those that arrive in the same turn of the loop: that saves about two thirds of the server's own work
per request, and a fifth of a decision's processor time. Everything out of the ordinary (no length
given, a large or compressed body, `Expect`, an answer still under way, a client that does not read)
goes the ASGI way, which answers the same by the same functions of bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from http import HTTPStatus
from typing import Any, NamedTuple, Protocol, TypeAlias

from equipoise.agent.config.service import LimitSettings
from equipoise.agent.service.api.operations import declared
from equipoise.agent.service.hot_path.batching import GroupCommit, MicroBatcher
from equipoise.agent.service.hot_path.handlers import HotHandlers
from equipoise.agent.service.http.access import Caller, Doors
from equipoise.agent.service.http.connection_limits import GuardedProtocol
from equipoise.agent.service.http.endpoints import (
    JSON_HEADER,
    ClientGone,
    Receive,
    Scope,
    Send,
    answer_of,
    read_plain_or_packed,
    respond,
    respond_error,
)
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.store.errors import StoreError, WriteError

_HEAD = {
    status.value: (f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: ").encode()
    for status in HTTPStatus
}


class DirectProtocol(GuardedProtocol):
    """front: gives the answers. Other parameters as of `GuardedProtocol`."""

    def __init__(self, front: Application, **others: Any) -> None:
        super().__init__(**others)
        self._front = front
        self._path: str | None = None
        self._parts: list[bytes] = []
        self._late: asyncio.TimerHandle | None = None
        self._came, self._size = b"", 0
        """Of what came in one piece while nothing was under way, and the bytes of that piece."""
        self._answered_at = 0.0

    def data_received(self, data: bytes) -> None:
        # Nearly always a whole request behind the answer to the one before, from a client that
        # sends the same header again and again: then there is nothing to parse.
        if (
            self._answer_due
            or self._unparsed
            or self._in_body
            or self._answering
            or self._deadline is not None
            or self._ended
            or self.flow.write_paused
            or self.transport.is_closing()
        ):
            super().data_received(data)
            return
        end = data.find(_BLANK) + len(_BLANK)
        header = data[:end]
        known = self._front.recall(header)
        if known is None or known.length != len(data) - end:
            self._came, self._size = header, len(data)
            super().data_received(data)
            self._came = b""
            return
        self._answer_due = True
        self._front.answer_admitted(known.path, known.caller, data[end:], self._reply)

    def on_message_begin(self) -> None:
        if self._answer_due:
            self._front.settle()  # answers leave in the order of their requests, refusals too
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._begin_body()
        path = self._direct_path()
        if path is None:
            super().on_headers_complete()
        else:
            self._path = path

    def on_body(self, body: bytes) -> None:
        if self._path is None:
            super().on_body(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        path, self._path = self._path, None
        if path is None:
            super().on_message_complete()
            return
        body = b"".join(self._parts)
        self._parts.clear()
        keep_alive = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self._in_body, self._ended = False, not keep_alive

        header = self._came if keep_alive and len(self._came) + len(body) == self._size else b""
        self._answer_due = True
        reply = self._reply if keep_alive else self._reply_and_close
        self._front.answer(path, self.headers, body, reply, header)

    def _reply(self, status: int, text: bytes, headers: Mapping[str, str]) -> None:
        self._answer_due = False
        self._write(status, text, headers, True)

    def _reply_and_close(self, status: int, text: bytes, headers: Mapping[str, str]) -> None:
        self._answer_due = False
        self._write(status, text, headers, False)

    def _parsed(self) -> None:
        if self._path is not None:
            if self._late is None:
                seconds = self._guard.body_seconds
                self._late = self.loop.call_later(seconds, self._refuse, 408)
        elif self._late is not None:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._path = None
        super().connection_lost(exc)

    def _direct_path(self) -> str | None:
        """The path of a hot request that can be answered at once, None for all others."""
        path, most = self._front.direct.get(self.url, (None, 0))
        if path is None or self.parser.get_method() != b"POST":
            return None
        if self._answering or self.pipeline or self.expect_100_continue or self.flow.write_paused:
            return None
        if self.transport.is_closing() or self._body_left is None or self._body_left > most:
            return None
        if self._packed:
            return None
        return path

    def shutdown(self) -> None:
        if self._answer_due:
            self._front.settle()
        super().shutdown()

    def _refuse(self, status: int) -> None:
        if self._answer_due:
            self._front.settle()
        super()._refuse(status)

    def _write(
        self, status: int, body: bytes, headers: Mapping[str, str], keep_alive: bool
    ) -> None:
        if self.transport.is_closing():
            return
        if headers is _JSON and status == 200 and keep_alive:
            self.transport.write(_FINE % (len(body), body))
        else:
            lines = "".join(f"\r\n{name}: {value}" for name, value in headers.items())
            end = _BLANK if keep_alive else b"\r\nconnection: close\r\n\r\n"
            head = _HEAD[status], len(body), lines.encode()
            self.transport.write(b"%s%d%s%s%s" % (*head, end, body))
        self.server_state.total_requests += 1
        if not keep_alive:
            self.transport.close()
            return
        self._answered_at = self.loop.time()
        if self.timeout_keep_alive_task is None:
            self._close_later(self.timeout_keep_alive)

    def _close_later(self, seconds: float) -> None:
        self.timeout_keep_alive_task = self.loop.call_later(
            seconds, self.timeout_keep_alive_handler
        )

    def timeout_keep_alive_handler(self) -> None:
        # One timer for many requests: to set one anew at each of them costs more than the rest of
        # the answer.
        left = self._answered_at + self.timeout_keep_alive - self.loop.time()
        if left > 0.0 or self._answer_due:
            self._close_later(max(left, 1.0))
        else:
            super().timeout_keep_alive_handler()


_JSON = {"content-type": "application/json"}
_BLANK = b"\r\n\r\n"
_FINE = _HEAD[200] + b"%d\r\ncontent-type: application/json\r\n\r\n%b"
Reply: TypeAlias = Callable[[int, bytes, Mapping[str, str]], None]
Handler: TypeAlias = Callable[[bytes, Caller], bytes]

DECIDE, OUTCOMES = "/v1/decide", "/v1/outcomes"
SMALL_BYTES = 24_576
"""A body up to this size is a hundred outcomes with their tokens and some outputs."""
DIRECT_BYTES = 65_536
"""A larger body is read only once its sender was admitted, and no faster than it is taken."""


MOST_KNOWN, KNOWN_BYTES = 1024, 1024
"""Headers that are remembered, and the bytes of the longest."""


class Admitted(NamedTuple):
    """What came of the header of a whole request that was admitted: of the same bytes the same
    comes again. length: of the body."""

    path: str
    caller: Caller
    length: int


class Lifespan(Protocol):
    """What starts before the first request and stops after the last."""

    async def start(self) -> None: ...

    def begin_stop(self) -> None: ...

    async def stop(self) -> None: ...


class Application:
    """The ASGI application that the server runs.

    hot: handlers of whole bodies, for POST. base: a path under which everything is served a second
    time, "" for none. rest: the application for all other requests. barrier:
    what answers wait at, where they promise what only the disk keeps.
    """

    def __init__(
        self,
        hot: HotHandlers,
        rest: Callable[[Scope, Receive, Send], Awaitable[None]],
        lifespan: Lifespan,
        doors: Doors,
        limits: LimitSettings,
        counters: Counters,
        log: Log,
        barrier: GroupCommit | None = None,
        base: str = "",
    ) -> None:
        self._hot = hot
        self._base = base
        self._handlers: dict[str, Handler] = {
            operation.path: handler for operation, handler in declared(hot)
        }
        self._rest = rest
        self._lifespan = lifespan
        self.doors = doors
        self._limits = limits
        self._counters = counters
        self._log = log
        self._barrier = barrier
        self.direct: dict[bytes, tuple[str, int]] = {}
        """Paths that `answer` answers, and the most bytes of a body, by the bytes of their URL:
        all hot ones, unless answers have to wait for the disk."""
        if barrier is None:
            for path in self._handlers:
                most = SMALL_BYTES if path == OUTCOMES else min(limits.body_bytes, DIRECT_BYTES)
                for url in (path, base + path):
                    self.direct[url.encode()] = path, most
        self._batcher = MicroBatcher(hot.decide_each, partial(log.failed, "reply"))
        self._admitted: dict[bytes, Admitted] = {}
        self._stamp = doors.tokens.stamp

    def answer(
        self,
        path: str,
        headers: Sequence[tuple[bytes, bytes]],
        body: bytes,
        reply: Reply,
        header: bytes = b"",
    ) -> None:
        """Answer a whole POST to a hot path: `reply` is called with status, body and headers.

        header: what was parsed, to be recalled where it is admitted; b"" for nothing.
        That happens at once or at the end of the turn of the loop. Never raises.
        """
        try:
            caller = self.doors.admit("POST", headers, "route")
        except Exception as error:
            self._send(path, time.perf_counter(), reply, error)
            return
        if 0 < len(header) <= KNOWN_BYTES:
            if len(self._admitted) >= MOST_KNOWN:
                self._admitted.clear()
            known = Admitted(path, caller, len(body))
            self._admitted[self.doors.tokens.known_by(header)] = known
        self.answer_admitted(path, caller, body, reply)

    def recall(self, header: bytes) -> Admitted | None:
        """What came of the same header before, under the same tokens."""
        tokens = self.doors.tokens
        if tokens.stamp is not self._stamp:
            self._admitted.clear()
            self._stamp = tokens.stamp
        return self._admitted.get(tokens.known_by(header))

    def answer_admitted(self, path: str, caller: Caller, body: bytes, reply: Reply) -> None:
        """As `answer`, of a caller who was admitted."""
        start = time.perf_counter()
        send = partial(self._send, path, start, reply)
        try:
            if path == DECIDE:
                self.doors.count(caller)
                self._batcher.add(body, send)
                return
            self.settle()
            answer: bytes | Exception = self._handlers[path](body, caller)
        except Exception as error:
            answer = error
        send(answer)

    def _send(self, path: str, start: float, reply: Reply, answer: bytes | Exception) -> None:
        if isinstance(answer, bytes):
            status, text, headers = 200, answer, _JSON
        else:
            status, text, headers = answer_of(answer, path, self._log)
        self._counters.answered(path, status, time.perf_counter() - start)
        reply(status, text, headers)

    def begin_stop(self) -> None:
        """Told that the end is near, while requests are still answered."""
        self._lifespan.begin_stop()

    def settle(self) -> None:
        """Answer now whoever waits for the end of the loop's turn."""
        self._batcher.flush()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._base and scope["type"] == "http":
            path = scope["path"]
            if path == self._base:
                # Links of the page count from the folder that it seems to lie in.
                place = [(b"location", f"{self._base}/".encode())]
                await respond(send, 308, b"", place)
                return
            if path.startswith(f"{self._base}/"):
                scope = {**scope, "path": path.removeprefix(self._base)}
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif (
            scope["type"] == "http"
            and scope["method"] == "POST"
            and (scope["path"] in self._handlers)
        ):
            await self._answer(scope["path"], scope, receive, send)
        else:
            await self._rest(scope, receive, send)

    async def _answer(self, path: str, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        limits = self._limits
        try:
            caller = self.doors.admit("POST", scope["headers"], "route")
            if path == DECIDE:
                self.doors.count(caller)
            body = await read_plain_or_packed(scope, receive, limits.body_bytes, limits)
            start = time.perf_counter()
            if path == OUTCOMES:
                answer = await self._hot.outcomes_in_turns(body, caller)
            else:
                answer = self._handlers[path](body, caller)
            if self._barrier is not None:
                answer = await self._committed(self._barrier, path, body, answer)
        except ClientGone:
            return
        except Exception as error:
            status = await respond_error(receive, send, error, path, self._log)
        else:
            status = 200
            await respond(send, status, answer, [JSON_HEADER])
        self._counters.answered(path, status, time.perf_counter() - start)

    async def _committed(
        self, barrier: GroupCommit, path: str, body: bytes, answer: bytes
    ) -> bytes:
        """The answer, once what it promises is on the disk. Raises WriteError."""
        try:
            await barrier.wait()
        except Exception as error:
            passed = self._hot.pass_through(path, body, error)
            if passed is not None:
                return passed
            if isinstance(error, StoreError):
                raise
            raise WriteError(f"the store cannot be synced: {type(error).__name__}") from error
        return answer

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        try:
            await self._lifespan.start()
        except Exception as error:
            self._log.failed("start", error)
            await send({"type": "lifespan.startup.failed", "message": str(error)})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self._lifespan.stop()
        await send({"type": "lifespan.shutdown.complete"})
