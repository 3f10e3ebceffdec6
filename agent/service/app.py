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

from equipoise.agent.config.ingest import IngestMapping
from equipoise.agent.ingest.joining import Joining
from equipoise.agent.ingest.otlp import Signal
from equipoise.agent.service.api.operations import declared, document, example_request
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.api.schema import Health
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.handlers import prometheus
from equipoise.agent.service.handlers.admin import Admin
from equipoise.agent.service.handlers.ofrep import Ofrep
from equipoise.agent.service.handlers.otlp import LARGEST_AT_ONCE, Otlp, OtlpEndpoint
from equipoise.agent.service.handlers.queries import Queries
from equipoise.agent.service.hot_path.application import Application
from equipoise.agent.service.http.access import Doors, Tokens
from equipoise.agent.service.http.endpoints import Endpoint, Plain, Room, Served


def build(
    daemon: Daemon, tokens: Tokens, more: Iterable[Plain] = (), otlp: Otlp | None = None
) -> Application:
    """The application over one daemon. more: what else it serves, such as its page. otlp: what
    takes spans, none of them without it."""
    otlp = otlp_of(daemon) if otlp is None else otlp
    limits, counters, log = daemon.settings.limits, daemon.counters, daemon.log
    hot = list(declared(daemon.hot))
    evaluations = _evaluations(daemon)
    operations = list(declared(*_handlers(daemon), evaluations, otlp))
    described = [operation for operation, _ in (*hot, *operations)]
    request = example_request(daemon.agent.config)
    openapi = msgspec.json.encode(
        document(described, version("equipoise"), request, daemon.settings.base_path)
    )
    by_path: dict[str, dict[str, Served]] = {}
    for operation, _ in hot:
        by_path.setdefault(operation.path, {})[operation.method] = None
    for operation, handler in operations:
        by_path.setdefault(operation.path, {})[operation.method] = operation, handler
    for plain in (*_plain(daemon, openapi), *more):
        by_path.setdefault(plain.path, {})["GET"] = plain
    doors = Doors(tokens, daemon.settings, daemon.rates)
    committed = None if daemon.barrier is None else daemon.barrier.wait
    itself = {operation.path for operation, _ in declared(evaluations)}  # waits for the disk itself
    routes = []
    for path, served in by_path.items():
        waits = None if path in itself else committed
        routes.append(Route(path, Endpoint(path, served, doors, limits, counters, log, waits)))
    room = Room(LARGEST_AT_ONCE * (limits.otlp_bytes + limits.packed_bytes))
    for signal in SIGNALS:
        path = f"/v1/{signal}"
        served_by = OtlpEndpoint(path, signal, otlp, doors, limits, counters, log, room)
        routes.append(Route(path, served_by))
    rest = Starlette(routes=routes, exception_handlers={HTTPException: _http_problem})
    # A redirect would send a token to another path before anybody asked for it.
    rest.router.redirect_slashes = False
    base = daemon.settings.base_path
    barrier = daemon.barrier
    return Application(daemon.hot, rest, daemon, doors, limits, counters, log, barrier, base)


SIGNALS: tuple[Signal, ...] = ("traces", "logs")


def otlp_of(
    daemon: Daemon, mapping: IngestMapping | None = None, joining: Joining | None = None
) -> Otlp:
    """What takes OTLP for a daemon."""
    settings = daemon.settings.otlp

    def unwell() -> str:
        return "" if daemon.can_log() else "nothing can be logged now"

    return Otlp(
        daemon.adapter,
        daemon.tokens,
        daemon.counters,
        daemon.log,
        daemon.clock,
        unwell,
        settings,
        mapping,
        joining,
        None if daemon.barrier is None else daemon.barrier.wait,
    )


def _handlers(daemon: Daemon) -> tuple[Queries, Admin]:
    adapter, switches, analysis, log = daemon.adapter, daemon.switches, daemon.analysis, daemon.log
    queries = Queries(adapter, daemon.store, switches, analysis, log, daemon.authority)
    return queries, Admin(
        adapter,
        switches,
        analysis,
        daemon.counters,
        log,
        daemon.clock,
        daemon.with_sums,
        daemon.settings.limits.rejects,
    )


def _evaluations(daemon: Daemon) -> Ofrep:
    config = daemon.agent.config
    return Ofrep(
        daemon.hot,
        config.name,
        lambda: daemon.agent.models,
        frozenset(feature.name for feature in config.features.context),
        lambda: daemon.settings.ofrep,
        None if daemon.barrier is None else daemon.barrier.wait,
    )


def _plain(daemon: Daemon, openapi: bytes) -> tuple[Plain, ...]:
    health = msgspec.json.encode(Health(version=version("equipoise")))

    async def readyz() -> tuple[int, bytes]:
        readiness = daemon.readiness()
        return 200 if readiness.ready else 503, msgspec.json.encode(readiness)

    exposition = prometheus.Exposition(
        daemon.agent,
        daemon.store,
        daemon.counters,
        daemon.switches,
        daemon.breaker,
        daemon.analysis,
        daemon.clock,
        daemon.authority,
    )

    async def metrics() -> tuple[int, bytes]:
        return 200, await exposition.read()

    json = "application/json"
    return (
        Plain.fixed("/healthz", json, health, scope=None),
        Plain("/readyz", json, readyz, scope=None),
        Plain("/metrics", prometheus.CONTENT_TYPE, metrics, weight=1),
        Plain.fixed("/openapi.json", json, openapi),
    )


async def _http_problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    document = Refusal(404, "there is nothing at this path").document
    return Response(
        msgspec.json.encode(document), document.status, media_type="application/problem+json"
    )
