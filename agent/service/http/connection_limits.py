"""Limits that only the connection can keep: how many, how slow, how much header.

uvicorn bounds none of these by itself: a client may connect and say nothing, send a header a byte
a minute, send headers without end, or send thousands of requests at once and read no answer. And
its parser takes a request that offers `Upgrade: h2c`, as many HTTP/2 clients do, for one without a
body. Here bytes reach the parser a request at a time: its whole header without the offer to
upgrade, then its body. What comes behind a request waits, unparsed and unread, until that one is
answered, and then for its turn among all connections that do so.

Connections need file descriptors, of which shells and containers often allow 1,024. The soft limit
may be raised up to the hard one by anybody, so `serve` does; where that is not enough fewer
connections are taken, and `serve --check` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import resource
from collections import Counter, deque
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from equipoise.agent.config.service import LimitSettings

FILES = 128
"""Store, tail, pipes and libraries: some 30, and more while files are changed or copied."""
BACKLOG = 2048
"""Connections that the kernel keeps for us. All may be taken in one turn of the loop before those
beyond the limit are closed again."""


@dataclass(frozen=True, slots=True)
class Descriptors:
    """soft, hard: limits of the process. needed: for `wanted` connections; connections: as many of
    those as can be taken once the soft limit is raised."""

    soft: int
    hard: int
    needed: int
    wanted: int
    connections: int

    @property
    def sentence(self) -> str:
        """What is wrong, "" where nothing is."""
        if self.connections >= self.wanted:
            return ""
        return (
            f"service.limits.connections is {self.wanted}, which needs {self.needed} file "
            f"descriptors; the hard limit is {self.hard}: {self.connections} connections are taken "
            "(raise LimitNOFILE or ulimit -Hn)"
        )


def descriptors(wanted: int) -> Descriptors:
    """What the limits of this process mean for so many connections."""
    soft, hard = (
        2**31 if each == resource.RLIM_INFINITY else each
        for each in resource.getrlimit(resource.RLIMIT_NOFILE)
    )
    needed = wanted + min(wanted, BACKLOG) + FILES
    room = hard - FILES
    connections = wanted if hard >= needed else max(1, min(room // 2, wanted))
    return Descriptors(soft, hard, needed, wanted, connections)


def raise_limit(wanted: int) -> Descriptors:
    """Raise the soft limit as far as needed and allowed; what that comes to."""
    limits = descriptors(wanted)
    target = min(limits.needed, limits.hard)
    if limits.soft < target:
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        with contextlib.suppress(OSError, ValueError):  # some kernels have a lower one of their own
            resource.setrlimit(resource.RLIMIT_NOFILE, (target, hard))
            return limits
        room = max(1, min((limits.soft - FILES) // 2, wanted))
        return Descriptors(limits.soft, limits.soft, limits.needed, wanted, room)
    return limits


HEADER_BYTES = 32_768
"""Request line and headers together."""
REQUESTS_A_TURN = 8
"""Requests of one connection that are taken before other connections have a turn."""
PIECES_A_TURN = 256
"""Pieces of a body in chunks that are parsed before others have a turn: half a millisecond."""
TURNS_AT_ONCE = 2
"""Connections with requests in waiting that have their turn in one turn of the loop."""
BODY_PIECE = 65_536

WEBSOCKET = b"x-equipoise-websocket"
"""The header that stands for an offer to go on as a WebSocket."""
_END = re.compile(rb"\n\r?\n")
"""The end of a header, and of a body in chunks."""
_UPGRADE = re.compile(rb"\nupgrade[ \t]*:[^\n]*(?:\n[ \t][^\n]*)*(?=\n)", re.IGNORECASE)
_WEBSOCKET = re.compile(rb"\nupgrade[ \t]*:[^\n]*websocket", re.IGNORECASE)

_REFUSALS = {
    400: ("Bad Request", "this is no HTTP request"),
    408: ("Request Timeout", "see the limits of this server"),
    431: ("Request Header Fields Too Large", "see the limits of this server"),
    503: ("Service Unavailable", "see the limits of this server"),
}


class Turns:
    """Connections that wait for their next turn; a few are served in each turn of the loop."""

    def __init__(self) -> None:
        self._waiting: deque[GuardedProtocol] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, connection: GuardedProtocol) -> None:
        """Call `connection.take_turn` when those before it had theirs."""
        self._waiting.append(connection)
        if len(self._waiting) == 1:
            connection.loop.call_soon(self._serve)

    def _serve(self) -> None:
        for _ in range(min(TURNS_AT_ONCE, len(self._waiting))):
            try:
                # It stays in the queue meanwhile, so that nobody starts a second round.
                self._waiting[0].take_turn()
            finally:
                self._waiting.popleft()
        if self._waiting:
            self._waiting[0].loop.call_soon(self._serve)


class _Flow(FlowControl):
    """uvicorn's, which reads on whenever an answer is made; here not while bytes are unparsed."""

    stopped = False

    def resume_reading(self) -> None:
        if not self.stopped:
            super().resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within `limits`.

    refused: answers given before any request was whole, by status. turns: shared by all
    connections of a server.
    """

    def __init__(
        self, limits: LimitSettings, refused: Counter[int], turns: Turns, **others: Any
    ) -> None:
        super().__init__(**others)
        self._guard = limits
        self._refused = refused
        self._turns = turns
        self._queued = False
        self._unparsed = b""
        self._body_left: int | None = 0
        """Bytes of the present body that are to come, None for a body in chunks."""
        self._packed = False
        """Whether the present body is compressed."""
        self._in_body = False
        self._ended = False
        """Whether the last request was taken: what comes after it is none."""
        self._answer_due = False
        """Whether an answer comes with the end of the loop's turn."""
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.flow = _Flow(transport)
        if len(self.connections) > self._guard.connections:
            self._refuse(503)
            return
        self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unparsed = b""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._ended:
            return
        self._unset_keepalive_if_required()
        self._unparsed = self._unparsed + data if self._unparsed else data
        if not self._queued:
            self._parse()

    def take_turn(self) -> None:
        """Parse what waits; called by `Turns`."""
        self._queued = False
        if not self.transport.is_closing():
            self._parse()

    def _parse(self) -> None:
        """Give the parser what it may have now; the rest waits, and no more is read."""
        unparsed, at, requests, pieces = self._unparsed, 0, 0, 0
        while at < len(unparsed) and not self.transport.is_closing() and not self._ended:
            if self._in_body:
                piece = self._body_piece(unparsed, at)
                pieces += 1
                if pieces > PIECES_A_TURN:
                    self._queue()
                    break
            elif self._answering:
                break
            elif requests == REQUESTS_A_TURN:
                self._queue()
                break
            else:
                piece = self._header(unparsed, at)
                requests += 1
            if not piece:
                break
            at += len(piece)
            super().data_received(piece if self._in_body else _without_upgrade(piece))
        self._unparsed = b"" if self._ended or self.transport.is_closing() else unparsed[at:]
        self._pause_or_resume()
        if self._in_body or self._answering or self._ended:
            self._stop_waiting()
        elif self._deadline is None and not (self._queued or self._answer_due):
            idle = self.timeout_keep_alive_task is not None
            if self._unparsed or not idle:  # what came is no whole header, if only an empty line
                self._wait_for_header()
        self._parsed()

    def _parsed(self) -> None:
        """Called after every turn."""

    @property
    def _answering(self) -> bool:
        """Whether an answer is under way that the next request must not overtake."""
        return self.cycle is not None and not self.cycle.response_complete

    def _queue(self) -> None:
        if not self._queued:
            self._queued = True
            self._turns.wait(self)

    def _header(self, unparsed: bytes, at: int) -> bytes:
        """The next header with its empty line, b"" while it is not whole."""
        match = _END.search(unparsed, at)
        end = len(unparsed) if match is None else match.end()
        if end - at > HEADER_BYTES:
            self._refuse(431)
            return b""
        return b"" if match is None else unparsed[at:end]

    def _body_piece(self, unparsed: bytes, at: int) -> bytes:
        """The next piece of a body, nothing of what follows it."""
        if self._body_left is not None:
            piece = unparsed[at : at + self._body_left]
            self._body_left -= len(piece)
            return piece
        match = _END.search(unparsed, at, at + BODY_PIECE)
        if match is not None:
            return unparsed[at : match.end()]
        # The first half of an end waits for the second.
        return unparsed[at : at + BODY_PIECE].removesuffix(b"\r").removesuffix(b"\n")

    def _pause_or_resume(self) -> None:
        assert isinstance(self.flow, _Flow)
        # What is kept back inside a body waits for more of it, and not for an answer.
        waits = self._unparsed and self._answering and not self._in_body
        self.flow.stopped = self._queued or bool(waits)
        if self.flow.stopped:
            self.flow.pause_reading()
        elif self.cycle is None or len(self.cycle.body) <= HIGH_WATER_LIMIT:
            self.flow.resume_reading()

    def _begin_body(self) -> None:
        """A header is whole: how much of its body is to come."""
        self._in_body, self._body_left, self._packed = True, 0, False
        self._stop_waiting()
        for name, value in self.headers:
            if name == b"content-length":
                self._body_left = int(value)  # the parser has checked that it is a number
            elif name == b"transfer-encoding":
                self._body_left = None
            elif name == b"content-encoding":
                self._packed = True

    def on_headers_complete(self) -> None:
        self._begin_body()
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        self._ended = not self.parser.should_keep_alive()
        if self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        # A body that nobody reads would hold the connection for as long as it drips.
        if self.cycle is not None and self.cycle.more_body and not self.transport.is_closing():
            self.transport.close()
        super().on_response_complete()
        if self._unparsed and not self.transport.is_closing():
            self._unset_keepalive_if_required()
            self._queue()
            self._pause_or_resume()

    def send_400_response(self, msg: str) -> None:
        self._refuse(400)

    def _wait_for_header(self) -> None:
        self._deadline = self.loop.call_later(self._guard.header_seconds, self._refuse, 408)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int) -> None:
        if self.transport.is_closing():
            return
        self._refused[status] += 1
        title, detail = _REFUSALS[status]
        body = b'{"title":"%s","status":%d,"detail":"%s","type":"urn:equipoise:problem:limit"}' % (
            title.encode(),
            status,
            detail.encode(),
        )
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, title.encode(), len(body), body)
        )
        self.transport.close()


def _without_upgrade(header: bytes) -> bytes:
    """A header without any offer to go on in another protocol, which a server may ignore (RFC 9110,
    7.8). One to go on as a WebSocket leaves a trace, for that is refused."""
    if b"\nupgrade" not in header.lower():
        return header
    trace = b"\n%s: 1\r" % WEBSOCKET if _WEBSOCKET.search(header) else b""
    return _UPGRADE.sub(trace, header)
