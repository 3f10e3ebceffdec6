"""The ASGI application: a front for the hot routes, Starlette for the rest, problems for all."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import version

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from equipoise.agent.service.api import openapi
from equipoise.agent.service.api.openapi import example_request
from equipoise.agent.service.api.operation_table import operations
from equipoise.agent.service.api.operations import Operation
from equipoise.agent.service.api.problems import problem
from equipoise.agent.service.api.schema import Health
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.handlers import prometheus as metrics
from equipoise.agent.service.hot_path.application import Front
from equipoise.agent.service.http.access import Doors, Tokens
from equipoise.agent.service.http.endpoints import Endpoint, Plain


def build(daemon: Daemon, tokens: Tokens, more: Iterable[Plain] = ()) -> Front:
    """The application over one daemon. more: what else it serves, such as its page."""
    table = operations(daemon, example_request(daemon.agent.config))
    written = msgspec.json.encode(openapi.document(table, version("equipoise")))
    by_path: dict[str, dict[str, Operation | Plain]] = {}
    for operation in table:
        by_path.setdefault(operation.path, {})[operation.method] = operation
    for plain in (*_plain(daemon, written), *more):
        by_path.setdefault(plain.path, {})["GET"] = plain
    doors = Doors(tokens, daemon.settings)
    daemon.hot.rates = doors.rates
    routes = [
        Route(path, Endpoint(path, daemon, doors, serves)) for path, serves in by_path.items()
    ]
    hot = {
        "/v1/decide": daemon.hot.decide,
        "/v1/decide/batch": daemon.hot.decide_batch,
        "/v1/outcomes": daemon.hot.outcomes,
    }
    rest = Starlette(routes=routes, exception_handlers={HTTPException: _http_problem})
    gentle = {"/v1/outcomes": daemon.hot.outcomes_in_turns}
    return Front(
        hot,
        gentle,
        rest,
        daemon,
        doors,
        daemon.settings.limits,
        daemon.figures,
        daemon.log,
        daemon.barrier,
        {"/v1/decide": daemon.hot.decide_each},
        daemon.hot.instead,
    )


def _plain(daemon: Daemon, document: bytes) -> tuple[Plain, ...]:
    health = msgspec.json.encode(Health(version=version("equipoise")))

    async def healthz() -> tuple[int, bytes]:
        return 200, health

    async def readyz() -> tuple[int, bytes]:
        readiness = daemon.readiness()
        return 200 if readiness.ready else 503, msgspec.json.encode(readiness)

    exposition = metrics.Exposition(daemon)

    async def scrape() -> tuple[int, bytes]:
        return 200, await exposition.read()

    async def describe() -> tuple[int, bytes]:
        return 200, document

    json = "application/json"
    return (
        Plain("/healthz", json, healthz, scope=None),
        Plain("/readyz", json, readyz, scope=None),
        Plain("/metrics", metrics.CONTENT_TYPE, scrape, weight=1),
        Plain("/openapi.json", json, describe),
    )


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    document = problem(404, "there is nothing at this path")
    return Response(
        msgspec.json.encode(document), document.status, media_type="application/problem+json"
    )
