"""Every operation of the interface in one table: Starlette's routes and the OpenAPI document."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from equipoise.agent.config.service import Scope
from equipoise.agent.service.http.access import ANYBODY, Caller

Content: TypeAlias = Literal["application/json", "application/x-ndjson"]


@dataclass(frozen=True, slots=True)
class Call:
    """A request to an operation. path, query: parameters by name. body: b"" where the operation
    streams it by `chunks` or has none. caller: who asks."""

    path: Mapping[str, str]
    query: Mapping[str, str]
    body: bytes
    chunks: Callable[[], AsyncGenerator[bytes, None]]
    caller: Caller = ANYBODY


@dataclass(frozen=True, slots=True)
class Parameter:
    """A path or query parameter, which is text."""

    name: str
    where: Literal["path", "query"]
    description: str
    pattern: str | None = None


@dataclass(frozen=True, slots=True)
class Operation:
    """method and path (Starlette's syntax, which is OpenAPI's); handler: Call to answer struct.

    scope: what a token needs, None for what is open to all. body, answer: types of the schema.
    statuses: the problems it may answer with, beyond those every operation has. example: a valid
    body. ok: the statuses of an answer that is no problem. weight: of `limits.reads`, for what the
    analyst has to answer.
    """

    method: Literal["GET", "POST", "PUT"]
    path: str
    name: str
    summary: str
    handler: Callable[[Call], Awaitable[Any]]
    scope: Scope | None = "route"
    body: Any = None
    answer: Any = None
    content: Content = "application/json"
    optional_body: bool = False
    statuses: tuple[int, ...] = ()
    ok: tuple[int, ...] = (200,)
    parameters: tuple[Parameter, ...] = ()
    example: Any = None
    headers: Mapping[str, str] = field(default_factory=dict)
    weight: int = 0
