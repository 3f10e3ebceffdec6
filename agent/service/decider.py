"""A decider that serves: hot routes and flags are answered here, the rest by the authority.

A decider has no store, no analyst and no jobs. It decides by what its keeper adopts, which runs in
a thread beside the loop, and hands every request that is none of its own to the authority.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import httpx
import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from starlette.applications import Starlette
from starlette.routing import Route

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.service import LimitSettings, ServiceSettings
from equipoise.agent.lanes.decider import LaneKeeper
from equipoise.agent.lanes.lane import Lane
from equipoise.agent.service.api.operations import declared
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.api.schema import Health, PassThrough
from equipoise.agent.service.control import POLL_SECONDS, Breaker, Clock, KillSwitch
from equipoise.agent.service.handlers import prometheus
from equipoise.agent.service.handlers.ofrep import Ofrep
from equipoise.agent.service.hot_path.application import Application
from equipoise.agent.service.hot_path.batching import GroupCommit
from equipoise.agent.service.hot_path.handlers import HotHandlers
from equipoise.agent.service.http.access import Doors, OutcomeTokens, Rates, Tokens
from equipoise.agent.service.http.endpoints import (
    ClientGone,
    Endpoint,
    Plain,
    Receive,
    Scope,
    Send,
    Served,
    chunks,
    respond_error,
)
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.store.errors import StoreError
from equipoise.store.lanes import Hub
from equipoise.store.lanes.lane_store import LaneStore

UNIX = "unix:"
"""How the address of an authority begins that is the path of a socket."""
AUTHORITY = "authority"
"""Its name among the processes whose metrics can be asked for."""
STOP_SHARE = 0.8
"""Of the seconds a stop may take, for shipping what is left."""
AT_ONCE = 64
"""Requests that the authority answers for one decider at once."""
ANSWER_SECONDS = 300.0
_OWN_HOP = frozenset(
    (
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    )
)
"""Headers that are for one connection."""


class DeciderReadiness(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests are decided here now.

    problems: why not. lane: that is leased, null without one. publication: that it acts by.
    waiting_rows: that the hub does not have yet. rule_id: in force here.
    """

    ready: bool
    problems: list[str]
    lane: int | None
    publication: int
    waiting_rows: int
    rule_id: str | None


class Decider:
    """Everything of one decider that runs. config: names the experiment and its features; what is
    decided by comes from the hub. connect: opens the hub. key: as of `Agent`."""

    def __init__(
        self,
        config: ExperimentConfig,
        settings: ServiceSettings,
        connect: Callable[[], Hub],
        key: bytes,
        folder: Path,
        log: Log,
    ) -> None:
        self.settings = settings
        self.log = log
        self.clock = Clock()
        self.counters = Counters()
        self.breaker = Breaker()
        self.kill_switch = KillSwitch(settings.kill_switch_path)
        rate = settings.limits.decide_per_second
        self.rates = None if rate is None else Rates(rate)
        self.tokens = OutcomeTokens(key, config.name, required=settings.outcomes == "signed")
        self.hot = HotHandlers(
            None,
            self.kill_switch,
            self.breaker,
            self.counters,
            settings.limits.rows,
            self.tokens,
            self.rates,
            self._off,
        )
        self.keeper = LaneKeeper(
            connect,
            key,
            folder,
            f"{socket.gethostname()}:{os.getpid()}",
            settings.lanes,
            settings.durability,
            run=self._soon,
            clock=self.clock,
            say=self._say,
            changed=self._changed,
        )
        power = settings.durability == "power"
        self.barrier = GroupCommit(self._begin_sync) if power else None
        self.config = config
        self.stopping = False
        self._stores: list[LaneStore] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._polling: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to look for a lane; requests that come before are passed through."""
        self._loop = asyncio.get_running_loop()
        self.keeper.start()
        self._poll()
        self.log.info("started", experiment=self.config.name, role="decider")

    def begin_stop(self) -> None:
        """A signal came: nothing waits for it."""

    async def stop(self) -> None:
        """Decide nothing any more, ship what is left, and give the lane back."""
        self.stopping = self.hot.stopping = True
        if self._polling is not None:
            self._polling.cancel()
        seconds = STOP_SHARE * self.settings.shutdown_seconds
        shipped = await asyncio.to_thread(self.keeper.close, seconds)
        self.log.info("stopped", shipped=shipped)

    def readiness(self) -> DeciderReadiness:
        """Whether requests are decided here now, else why not."""
        lane, problems = self.keeper.lane, []
        if self.stopping:
            problems.append("The decider is stopping.")
        if self.kill_switch.on:
            problems.append("The kill switch is on: its file exists.")
        if self.keeper.fault is not None:
            problems.append(f"It cannot ever decide: {self.keeper.fault}.")
        elif not self.keeper.decides:
            why = self.keeper.trouble or "its lease or its publication ran out"
            problems.append(f"No lane is held: {why}.")
        if self.breaker.reason is not None:
            problems.append(f"The lane's journal refused a write: {self.breaker.reason}.")
        return DeciderReadiness(
            ready=not problems,
            problems=problems,
            lane=None if lane is None else lane.lease.lane,
            publication=0 if lane is None else lane.publication.version,
            waiting_rows=0 if lane is None else lane.store.waiting,
            rule_id=None if lane is None else lane.agent.rule.rule_id,
        )

    def metrics(self) -> bytes:
        """The metrics of this decider alone."""
        return prometheus.exposition_text(self._families())

    def _families(self) -> Iterator[Metric]:
        yield from prometheus.traffic(self.counters, self.config.model_names)
        lane = self.keeper.lane
        gauges: dict[str, tuple[str, float]] = {
            "equipoise_lane": ("The lane that is held, 0 for none.", 0.0),
            "equipoise_lane_decides": ("1 while requests are decided.", self.keeper.decides),
            "equipoise_lane_publication": ("The publication that is acted by.", 0.0),
            "equipoise_lane_waiting_rows": ("Rows that the hub does not have.", 0.0),
            "equipoise_kill_switch": ("1 while the kill switch is on.", self.kill_switch.on),
        }
        if lane is not None:
            known = (lane.lease.lane, lane.publication.version, lane.store.waiting)
            for name, count in zip(("", "_publication", "_waiting_rows"), known, strict=True):
                gauges[f"equipoise_lane{name}"] = gauges[f"equipoise_lane{name}"][0], float(count)
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=float(value))
        yield CounterMetricFamily(
            "equipoise_lane_recovered_rows",
            "Rows of killed deciders that were shipped for them.",
            value=self.keeper.recovered,
        )

    def _off(self) -> PassThrough | None:
        return None if self.keeper.decides else "lane-lost"

    def _soon(self, work: Callable[[], None]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody decides any more
            self._loop.call_soon_threadsafe(work)

    def _say(self, event: str, facts: Mapping[str, object]) -> None:
        grave = event not in ("lane", "lane-recovered", "lane-shipped-late")
        (self.log.warning if grave else self.log.info)(event, **facts)

    def _changed(self, lane: Lane | None) -> None:
        """Decide in another lane from now on. Outcomes go on to the one before until there is."""
        if lane is not None:
            self.hot.adapter = lane.records
            self._stores = [*self._stores[-1:], lane.store]
            self.breaker.close()
        else:
            self.hot.adapter = None

    def _begin_sync(self) -> Callable[[], None]:
        # What was decided a moment ago may be in the lane before.
        syncs = [store.begin_sync() for store in self._stores]

        def sync() -> None:
            for each in syncs:
                each()

        return sync

    def _poll(self) -> None:
        """Several times a second: kill switch, clock and files."""
        self._polling = asyncio.get_running_loop().call_later(POLL_SECONDS, self._poll)
        moved = self.clock.adjust()
        if moved:
            self.counters.clock_steps += 1
            self.log.warning("clock-set", seconds=round(moved, 1), ahead=round(self.clock.off, 1))
        if self.kill_switch.poll():
            self.log.warning("kill-switch", on=self.kill_switch.on)
        lane = self.keeper.lane
        if lane is None:
            return
        displaced = lane.store.check_files()
        if displaced is not None:
            self.breaker.trip(displaced)
        if self.breaker.reason is not None and not self.breaker.open:
            try:
                lane.store.probe()
            except StoreError as error:
                self.breaker.trip(error)
            else:
                self.breaker.close()
                self.log.info("store-works-again")


def build_decider(
    decider: Decider,
    tokens: Tokens,
    authority: str | None,
    name: str = "decider",
    others: Mapping[str, str] | None = None,
) -> Application:
    """The application of one decider. authority: where the rest is answered, None for nowhere.
    name: of this process; others: where those are that share its address, by their names."""
    settings, counters, log = decider.settings, decider.counters, decider.log
    limits, hot = settings.limits, decider.hot
    committed = None if decider.barrier is None else decider.barrier.wait
    flags = Ofrep(
        hot,
        decider.config.name,
        lambda: decider.config.model_names,
        frozenset(feature.name for feature in decider.config.features.context),
        lambda: decider.settings.ofrep,
        committed,
    )
    by_path: dict[str, dict[str, Served]] = {}
    for operation, _ in declared(hot):
        by_path.setdefault(operation.path, {})[operation.method] = None
    for operation, handler in declared(flags):
        by_path.setdefault(operation.path, {})[operation.method] = operation, handler
    for plain in _plain(decider):
        by_path.setdefault(plain.path, {})["GET"] = plain
    doors = Doors(tokens, settings, decider.rates)
    routes = [
        Route(path, Endpoint(path, served, doors, limits, counters, log))
        for path, served in by_path.items()
    ]
    own = Starlette(routes=routes)
    own.router.redirect_slashes = False
    forward = Forward(authority, limits, log, settings.base_path)
    processes = {
        AUTHORITY: forward,
        **{
            other: Forward(address, limits, log, settings.base_path)
            for other, address in (others or {}).items()
        },
    }
    here = {path for path in by_path if "{" not in path}

    async def rest(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path == "/metrics" and (wanted := _process(scope)) not in (None, name):
            other = processes.get(wanted)
            if other is None:
                known = ", ".join(sorted((name, *processes)))
                unknown = Refusal(404, f"process is {wanted[:64]!r}, expected one of {known}")
                await respond_error(receive, send, unknown, path, log)
            else:
                await other(scope, receive, send)
            return
        is_ours = path in here or path.startswith("/ofrep/")
        await (own if is_ours else forward)(scope, receive, send)

    base = settings.base_path
    return Application(hot, rest, decider, doors, limits, counters, log, decider.barrier, base)


def _process(scope: Scope) -> str | None:
    """Whose metrics are asked for; None for whoever answers."""
    given = parse_qs(scope["query_string"].decode("latin-1")).get("process")
    return given[-1] if given else None


def _plain(decider: Decider) -> tuple[Plain, ...]:
    async def readyz() -> tuple[int, bytes]:
        readiness = decider.readiness()
        return 200 if readiness.ready else 503, msgspec.json.encode(readiness)

    async def metrics() -> tuple[int, bytes]:
        return 200, decider.metrics()

    json, health = "application/json", msgspec.json.encode(Health(version=version("equipoise")))
    return (
        Plain.fixed("/healthz", json, health, scope=None),
        Plain("/readyz", json, readyz, scope=None),
        Plain("/metrics", prometheus.CONTENT_TYPE, metrics, weight=1),
    )


class Forward:
    """Hands requests to the authority as they came, and its answers back as they come.

    target: its address, or `unix:` and the path of its socket; None where nobody said. base: a path
    that is left out in front. Tokens and hosts are the authority's to judge.
    """

    def __init__(self, target: str | None, limits: LimitSettings, log: Log, base: str) -> None:
        self._limits, self._log, self._base = limits, log, base.encode()
        self._under_way = 0
        self._client: httpx.AsyncClient | None = None
        self._address = "http://authority" if target is None else target.rstrip("/")
        self._uds: str | None = None
        if target is not None and target.startswith(UNIX):
            self._address, self._uds = "http://authority", target.removeprefix(UNIX)
        self._known = target is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            if not self._known:
                raise Refusal(
                    503,
                    "only the authority answers this: ask there, or say where it is by `authority`"
                    " of [service.lanes]",
                )
            if self._under_way >= AT_ONCE:
                limit = f"{AT_ONCE} at once"
                raise Refusal(503, f"more for the authority than {limit}", retry_after=1.0)
            self._under_way += 1
            try:
                await self._ask(scope, receive, send)
            finally:
                self._under_way -= 1
        except ClientGone:
            return
        except Exception as error:
            await respond_error(receive, send, error, path, self._log)

    async def _ask(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._client is None:
            timeout = httpx.Timeout(ANSWER_SECONDS, connect=2.0)
            transport = httpx.AsyncHTTPTransport(uds=self._uds, retries=0)
            self._client = httpx.AsyncClient(transport=transport, timeout=timeout)
            self._client.headers.clear()  # what the caller did not say is not said
        raw: bytes = scope.get("raw_path") or scope["path"].encode()
        if self._base and raw.startswith(self._base + b"/"):
            raw = raw.removeprefix(self._base)
        query: bytes = scope["query_string"]
        place = raw + b"?" + query if query else raw
        url = httpx.URL(self._address + place.decode("latin-1"))
        headers = [pair for pair in scope["headers"] if pair[0].lower() not in _OWN_HOP]
        has_body = scope["method"] in ("POST", "PUT", "PATCH", "DELETE")
        content = self._body(scope, receive) if has_body else None
        request = self._client.build_request(scope["method"], url, headers=headers, content=content)
        try:
            answer = await self._client.send(request, stream=True)
        except httpx.TransportError as error:
            self._log.warning("authority-away", fault=type(error).__name__)
            raise Refusal(
                503, "the authority does not answer: send this anew", retry_after=1.0
            ) from None
        try:
            await self._pass_on(answer, send)
        finally:
            await answer.aclose()

    async def _body(self, scope: Scope, receive: Receive) -> AsyncIterator[bytes]:
        limits = self._limits
        async for part in chunks(scope, receive, limits.bulk_bytes, limits.bulk_seconds):
            yield part

    async def _pass_on(self, answer: httpx.Response, send: Send) -> None:
        headers = [(k.lower(), v) for k, v in answer.headers.raw if k.lower() not in _OWN_HOP]
        start: dict[str, Any] = {"type": "http.response.start", "status": answer.status_code}
        await send({**start, "headers": headers})
        try:
            async for part in answer.aiter_raw():
                await send({"type": "http.response.body", "body": part, "more_body": True})
        except httpx.TransportError:
            return  # the answer breaks off where the authority's did
        await send({"type": "http.response.body", "body": b""})
