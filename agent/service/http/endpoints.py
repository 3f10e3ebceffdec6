"""Endpoints in ASGI: token, body within its limits, handler, answer, counters; problems for all.

Every request but the plain hot ones, which are answered before they become ASGI, comes this way.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Iterator,
    Mapping,
    MutableMapping,
)
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from urllib.parse import parse_qsl

import msgspec

from equipoise.agent.config.service import LimitSettings
from equipoise.agent.config.service import Scope as TokenScope
from equipoise.agent.service.api.operations import NDJSON, Method, Operation
from equipoise.agent.service.api.problems import Refusal, logged_refusal_of
from equipoise.agent.service.api.schema import ProblemDocument
from equipoise.agent.service.http.access import ANYBODY, Caller, Doors, Headers
from equipoise.agent.service.http.encodings import encoding_of, unpacked, unpacked_pieces
from equipoise.agent.service.telemetry import Counters, Log

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

JSON_HEADER = (b"content-type", b"application/json")
_encode = msgspec.json.Encoder().encode
LINGER_SECONDS = 5.0
"""How long the rest of a body that was refused is read and thrown away, so that a client that
sends all before it reads gets to see the refusal."""


class ClientGone(Exception):  # noqa: N818
    """The client left before its request was whole."""


class Room:
    """Memory for bodies under way. most: bytes of all of them; the largest one must fit."""

    def __init__(self, most: int) -> None:
        self._most, self._taken = most, 0

    @contextlib.contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Call what it gives with the bytes that one body needs now, as often as that changes; it
        raises Refusal 429 where there is no room for them."""
        mine = 0

        def need(size: int) -> None:
            nonlocal mine
            if self._taken - mine + size > self._most:
                limit = f"{self._most} bytes at once"
                raise Refusal(429, f"bodies of more than {limit}", limit=limit, retry_after=1.0)
            self._taken += size - mine
            mine = size

        try:
            yield need
        finally:
            self._taken -= mine


def _anything(size: int) -> None:
    """Room for a body, where nobody counts it."""


async def read_plain_or_packed(
    scope: Scope,
    receive: Receive,
    limit: int,
    limits: LimitSettings,
    need: Callable[[int], None] = _anything,
) -> bytes:
    """The whole body, unpacked where it came compressed. limit: of its bytes, packed or not. need:
    of a `Room`, told before bytes are read or unpacked how many there may be.

    Raises as `read_body`, `unpacked` and `need`.
    """
    encoding = encoding_of(scope["headers"])
    if not encoding:
        need(_most_bytes(scope, limit))
        body = await read_body(scope, receive, limit, limits.body_seconds)
    else:
        most = min(limit, limits.packed_bytes)
        need(_most_bytes(scope, most))
        packed = await read_body(scope, receive, most, limits.body_seconds)
        need(len(packed) + limit)
        body = await unpacked(packed, encoding, limit)
    need(len(body))
    return body


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The whole body as it came; raises as `chunks`."""
    _check_length(scope, limit)
    message = await receive()
    if message["type"] == "http.request" and not message.get("more_body"):
        body: bytes = message["body"]
        if len(body) <= limit:  # nearly always: it came in one piece with its header
            return body

    async def again() -> Message:
        nonlocal message
        first, message = message, {}
        return first or await receive()

    return b"".join([part async for part in chunks(scope, again, limit, seconds)])


async def chunks(
    scope: Scope, receive: Receive, limit: int, seconds: float
) -> AsyncGenerator[bytes, None]:
    """The parts of a body as they come; to be closed where they are not read to the end.

    Raises Refusal 413 beyond `limit` bytes, 408 where the body takes longer than `seconds`,
    ClientGone where it breaks off.
    """
    _check_length(scope, limit)
    size = 0
    try:
        async with asyncio.timeout(seconds):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                size += len(message["body"])
                if size > limit:
                    raise _too_large(limit)
                if message["body"]:
                    yield message["body"]
                if not message.get("more_body"):
                    return
    except TimeoutError:
        raise Refusal(
            408, f"the body took longer than {seconds:g} seconds", limit=f"{seconds:g} seconds"
        ) from None


async def bulk_chunks(
    scope: Scope, receive: Receive, limits: LimitSettings
) -> AsyncGenerator[bytes, None]:
    """As `chunks` of a bulk body, unpacked where it comes compressed: then it is there as a whole
    before the first part is read."""
    encoding = encoding_of(scope["headers"])
    if not encoding:
        parts = chunks(scope, receive, limits.bulk_bytes, limits.bulk_seconds)
    else:
        most = min(limits.packed_bytes, limits.bulk_bytes)
        packed = await read_body(scope, receive, most, limits.bulk_seconds)
        parts = unpacked_pieces(packed, encoding, limits.bulk_bytes)
    async with contextlib.aclosing(parts):
        async for part in parts:
            yield part


async def respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send an answer whose body is whole."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


Render: TypeAlias = Callable[[ProblemDocument], tuple[bytes, str]]
"""A refusal as a body and its content type, for interfaces that are not ours."""


def answer_of(
    error: Exception, path: str, log: Log, render: Render | None = None
) -> tuple[int, bytes, dict[str, str]]:
    """The status, body and headers (but the length) for whatever a handler raised."""
    refusal = logged_refusal_of(error, path, log)
    document = refusal.document
    body, content = _encode(document), "application/problem+json"
    if render is not None:
        body, content = render(document)
    headers = {"content-type": content, **refusal.headers}
    if document.retry_after is not None:
        headers["retry-after"] = str(max(1, round(document.retry_after)))
    return document.status, body, headers


async def _respond_unchanged(send: Send, answer: Whole) -> None:
    await send({"type": "http.response.start", "status": 304, "headers": answer.headers})
    await send({"type": "http.response.body", "body": b""})


async def respond_error(
    receive: Receive,
    send: Send,
    error: Exception,
    path: str,
    log: Log,
    render: Render | None = None,
) -> int:
    """Send the problem document of an error, or what is rendered of it; its status.

    After 408 and 413 the connection is closed, for the rest of the body would be taken for the next
    request; what is on its way is read first.
    """
    status, body, named = answer_of(error, path, log, render)
    headers = [(b"content-length", b"%d" % len(body))]
    headers += [(name.encode(), value.encode()) for name, value in named.items()]
    closing = status in (408, 413)
    if closing:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": closing})
    if closing:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                more = status == 413
                while more:
                    message = await receive()
                    more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})
    return status


def _check_length(scope: Scope, limit: int) -> None:
    """Refuse what says itself that it is too large, before any of it has come."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)


def _most_bytes(scope: Scope, limit: int) -> int:
    """How long a body can become: as it says itself, or `limit`. Raises Refusal 413 beyond it."""
    _check_length(scope, limit)
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit():
            return int(value)
    return limit


def _too_large(limit: int) -> Exception:
    return Refusal(413, f"the body is larger than {limit} bytes", limit=f"{limit} bytes")


@dataclass(frozen=True, slots=True)
class Call:
    """A request to an operation. path, query: parameters by name. body: b"" where the operation
    streams it by `chunks` or has none. caller: who asks. headers: names in lower case."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    chunks: Callable[[], AsyncGenerator[bytes, None]]
    caller: Caller = ANYBODY
    headers: Headers = ()


@dataclass(frozen=True, slots=True)
class Whole:
    """An answer with a status and headers of its own; 304 has no body, and no length of one."""

    status: int
    body: bytes
    headers: list[tuple[bytes, bytes]]


HEALTH = "/healthz"


@dataclass(frozen=True, slots=True)
class Plain:
    """Something served by GET that is no operation of the interface: a page, metrics, health.

    read: (status, body). scope: what a token needs, None for what is open to all. weight: as of an
    operation.
    """

    path: str
    content_type: str
    read: Callable[[], Awaitable[tuple[int, bytes]]]
    scope: TokenScope | None = "route"
    more_headers: Mapping[str, str] = field(default_factory=dict)
    weight: int = 0

    @classmethod
    def fixed(cls, path: str, content_type: str, body: bytes, **others: Any) -> Plain:
        """The same body every time."""

        async def read() -> tuple[int, bytes]:
            return 200, body

        return cls(path, content_type, read, **others)

    def headers(self) -> list[tuple[bytes, bytes]]:
        """As ASGI sends them."""
        named = {"content-type": self.content_type, **self.more_headers}
        return [(name.encode(), text.encode()) for name, text in named.items()]


Served: TypeAlias = Plain | tuple[Operation, Method] | None
"""None: answered before it comes here."""


class Endpoint:
    """Everything at one path: operations by method, or something plain by GET.

    committed: awaited before what changes something is answered, where the answer promises what
    only the disk keeps.
    """

    def __init__(
        self,
        path: str,
        served: Mapping[str, Served],
        doors: Doors,
        limits: LimitSettings,
        counters: Counters,
        log: Log,
        committed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._path = path
        self._served = dict(served)
        if "GET" in self._served:
            self._served["HEAD"] = self._served["GET"]
        self._doors = doors
        self._limits = limits
        self._counters = counters
        self._log = log
        self._committed = committed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        try:
            served = self._served.get(scope["method"])
            if served is None:
                allowed = ", ".join(sorted(self._served))
                detail = f"this path takes {allowed}"
                raise Refusal(405, detail, limit=allowed, headers={"allow": allowed})
            if isinstance(served, Plain):
                caller = self._admit(scope, served.scope)
                with self._doors.reading(caller, served.weight):
                    status, body = await served.read()
                await respond(send, status, body, served.headers())
            else:
                operation, handler = served
                caller = self._admit(scope, operation.scope)
                answer = await self._operate(operation, handler, scope, receive, caller)
                status = answer.status
                if status == 304:
                    await _respond_unchanged(send, answer)
                else:
                    await respond(send, status, answer.body, answer.headers)
        except ClientGone:
            return
        except Exception as error:
            status = await respond_error(receive, send, error, self._path, self._log)
        self._counters.answered(self._path, status, time.perf_counter() - start)

    async def _operate(
        self, operation: Operation, handler: Method, scope: Scope, receive: Receive, caller: Caller
    ) -> Whole:
        limits = self._limits
        body = b""
        if operation.body is not None and operation.content != NDJSON:
            body = await read_plain_or_packed(scope, receive, limits.body_bytes, limits)

        def stream() -> AsyncGenerator[bytes, None]:
            return bulk_chunks(scope, receive, limits)

        query, headers = _query(operation, scope), scope["headers"]
        call = Call(scope["path_params"], query, body, stream, caller, headers)
        with self._doors.reading(caller, operation.weight):
            answer: Any = await handler(call)
        if operation.method != "GET" and self._committed is not None:
            await self._committed()
        if isinstance(answer, Whole):
            return answer
        body = answer if isinstance(answer, bytes) else _encode(answer)
        return Whole(200, body, [JSON_HEADER])

    def _admit(self, scope: Scope, needed: TokenScope | None) -> Caller:
        if self._path == HEALTH:
            return ANYBODY  # says nothing, and whoever probes it may call us by any name
        caller = self._doors.admit(scope["method"], scope["headers"], needed)
        if needed == "admin":
            self._log.info("admin", path=self._path, token=caller.name)
        return caller


def _query(operation: Operation, scope: Scope) -> dict[str, str]:
    """The query's parameters; an unknown or repeated one is refused."""
    names = [each.name for each in operation.parameters if each.where == "query"]
    try:
        pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True, errors="strict")
    except (UnicodeError, ValueError):
        raise Refusal(422, "the query is not readable", field="query") from None
    values: dict[str, str] = {}
    for name, value in pairs:
        if name not in names or name in values:
            limit = f"each of {', '.join(names)} once" if names else "no parameters"
            raise Refusal(422, f"query: expected {limit}", field="query", limit=limit)
        values[name] = value
    return values
