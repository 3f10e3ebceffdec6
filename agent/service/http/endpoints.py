"""Operations as ASGI endpoints: token, body, handler, answer, figures; problems for all errors."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

import msgspec

from equipoise.agent.config.service import Scope as TokenScope
from equipoise.agent.service.api.operations import Call, Operation
from equipoise.agent.service.api.problems import Refusal, document_of, problem, refuse
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.http.access import ANYBODY, Caller, Doors
from equipoise.agent.service.http.asgi import (
    JSON,
    ClientGone,
    Receive,
    Scope,
    Send,
    chunks,
    read_body,
    respond,
    respond_problem,
)

HEALTH = "/healthz"
_encode = msgspec.json.Encoder().encode


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
    headers: Mapping[str, str] = field(default_factory=dict)
    weight: int = 0


class Endpoint:
    """Everything at one path: operations by method, or something plain by GET."""

    def __init__(
        self, path: str, daemon: Daemon, doors: Doors, serves: Mapping[str, Operation | Plain]
    ) -> None:
        self._path = path
        self._daemon = daemon
        self._doors = doors
        self._serves = dict(serves)
        if "GET" in self._serves:
            self._serves["HEAD"] = self._serves["GET"]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start = time.perf_counter()
        status = 200
        try:
            serve = self._serves.get(scope["method"])
            if serve is None:
                allowed = ", ".join(sorted(self._serves))
                document = problem(405, f"this path takes {allowed}", limit=allowed)
                raise Refusal(document, {"allow": allowed})
            caller = self._admit(scope, serve.scope)
            if isinstance(serve, Plain):
                with self._doors.reading(caller, serve.weight):
                    status, body = await serve.read()
                headers = [(b"content-type", serve.content_type.encode())]
                headers += [(name.encode(), text.encode()) for name, text in serve.headers.items()]
                await respond(send, status, body, headers)
            else:
                await respond(send, 200, await self._operate(serve, scope, receive, caller), [JSON])
        except ClientGone:
            return
        except Exception as error:
            document = document_of(error, self._path, self._daemon.log)
            status = document.status
            extra = error.headers if isinstance(error, Refusal) else {}
            await respond_problem(receive, send, document, extra)
        self._daemon.figures.answered(self._path, status, time.perf_counter() - start)

    async def _operate(
        self, operation: Operation, scope: Scope, receive: Receive, caller: Caller
    ) -> bytes:
        limits = self._daemon.settings.limits
        bulk = operation.content == "application/x-ndjson"
        body = b""
        if operation.body is not None and not bulk:
            body = await read_body(scope, receive, limits.body_bytes, limits.body_seconds)

        def stream() -> AsyncGenerator[bytes, None]:
            return chunks(scope, receive, limits.bulk_bytes, limits.bulk_seconds)

        call = Call(scope["path_params"], _query(operation, scope), body, stream, caller)
        with self._doors.reading(caller, operation.weight):
            answer: Any = await operation.handler(call)
        if operation.method != "GET" and self._daemon.barrier is not None:
            await self._daemon.barrier.wait()
        return answer if isinstance(answer, bytes) else _encode(answer)

    def _admit(self, scope: Scope, needed: TokenScope | None) -> Caller:
        if self._path == HEALTH:
            return ANYBODY  # says nothing, and whoever probes it may call us by any name
        caller = self._doors.admit(scope["method"], scope["headers"], needed)
        if needed == "admin":
            self._daemon.log.info("admin", path=self._path, token=caller.name)
        return caller


def _query(operation: Operation, scope: Scope) -> dict[str, str]:
    """The query's parameters; an unknown or repeated one is refused."""
    known = [each.name for each in operation.parameters if each.where == "query"]
    try:
        pairs = parse_qsl(scope["query_string"].decode(), keep_blank_values=True, errors="strict")
    except (UnicodeError, ValueError):
        raise refuse(422, "the query is not readable", field="query") from None
    found: dict[str, str] = {}
    for name, value in pairs:
        if name not in known or name in found:
            limit = f"each of {', '.join(known)} once" if known else "no parameters"
            raise refuse(422, f"query: expected {limit}", field="query", limit=limit)
        found[name] = value
    return found
