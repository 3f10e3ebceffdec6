"""The pieces of ASGI both layers use: reading a body within limits, sending an answer."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

import msgspec

from equipoise.agent.service.api.problems import refuse
from equipoise.agent.service.api.schema import ProblemDocument

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

JSON = (b"content-type", b"application/json")
LINGER_SECONDS = 5.0
"""How long the rest of a body that was refused is read and thrown away, so that a client that
sends all before it reads gets to see the refusal."""


class ClientGone(Exception):  # noqa: N818
    """The client left before its request was whole."""


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The whole body; raises as `chunks`."""
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
        raise refuse(
            408, f"the body took longer than {seconds:g} seconds", limit=f"{seconds:g} seconds"
        ) from None


async def respond(send: Send, status: int, body: bytes, headers: list[tuple[bytes, bytes]]) -> None:
    """Send an answer whose body is whole."""
    headers.append((b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def problem_headers(document: ProblemDocument, extra: dict[str, str]) -> dict[str, str]:
    """The headers of a problem document beside its length."""
    headers = {"content-type": "application/problem+json", **extra}
    if document.retry_after is not None:
        headers["retry-after"] = str(max(1, round(document.retry_after)))
    return headers


async def respond_problem(
    receive: Receive, send: Send, document: ProblemDocument, extra: dict[str, str]
) -> None:
    """Send a problem document. After 408 and 413 the connection is closed, for the rest of the
    body would be taken for the next request; what is on its way is read first."""
    body = msgspec.json.encode(document)
    headers = [(b"content-length", b"%d" % len(body))]
    for name, value in problem_headers(document, extra).items():
        headers.append((name.encode(), value.encode()))
    closing = document.status in (408, 413)
    if closing:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": document.status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": closing})
    if closing:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                more = document.status == 413
                while more:
                    message = await receive()
                    more = message["type"] == "http.request" and message.get("more_body", False)
        await send({"type": "http.response.body", "body": b""})


def _check_length(scope: Scope, limit: int) -> None:
    """Refuse what says itself that it is too large, before any of it has come."""
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > limit:
            raise _too_large(limit)


def _too_large(limit: int) -> Exception:
    return refuse(413, f"the body is larger than {limit} bytes", limit=f"{limit} bytes")
