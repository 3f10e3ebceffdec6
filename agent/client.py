"""The router's side: ask the daemon which model to serve, report what came of it.

Standard library only, one file: import it, or copy it into a router.

>>> with Client("http://127.0.0.1:9") as client:  # nobody listens there
...     choice = client.decide("r1", routed="large", features={"words": 12})
>>> choice.model, choice.reason
('large', 'unreachable')

`decide` answers within its time-out and never raises: whatever goes wrong, the routed model is
served, and `choice.reason` says why. Such a request is usage log (OBS) and nothing else. Where the
daemon may have logged a decision that came too late, it is told `delivered = false`; where it has
logged none, the row is sent as an observation once outputs and reward are known. `outcome` returns
at once: what it is given is delivered from a bounded buffer, again and again until the daemon
answers. Threads do the talking, so that no dripping answer can hold a caller.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any, Self, TypeAlias
from urllib.parse import unquote, urlsplit

MOST_BYTES = 1 << 20  # a longer answer is none of the daemon's
MOST_THREADS = 32  # requests under way at once
AT_ONCE, GATHER_SECONDS = 100, 0.05  # outcomes that are sent together, and wait for each other
DELIVERY_SECONDS = 2.0  # time-out of the delivery, for which nobody waits
PATIENCE, REST_SECONDS = 3, 0.5  # failures in a row, and how often the daemon is asked then
REMEMBERED = 100_000  # newest decisions with their tokens, for outcomes by their request_id
REFUSED = ("bad-input", "status-400", "status-409", "status-413", "status-422")  # for good
MOST_SECONDS = 3600.0  # of a time-out; nobody waits longer for a decision
UNDELIVERED = {"request_id", "decision_id", "served", "delivered"}
PARTS = {"served", "attempt", "delivered", "attempts", "outputs", "reward", "metrics"}
PARTS |= {"unit_id", "outcome_token"}

Features: TypeAlias = Mapping[str, Any] | Sequence[float]
Body: TypeAlias = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Choice:
    """What to serve. reason: why the daemon did not decide, "" where it did; then decision_id and
    propensity, the probability with which `model` was served, are known, and outcome_token: keep it
    where another process will report the reward. ask: whether to ask the user for a rating, where
    the experiment draws whom (`reward.missing = "asked"`)."""

    request_id: str
    model: str
    routed: str
    randomized: bool = False
    propensity: float | None = None
    decision_id: str | None = None
    reason: str = ""
    outcome_token: str | None = None
    ask: bool = False

    def span_attributes(self, experiment: str, unit_id: str | None = None) -> dict[str, Any]:
        """Attributes for the caller's own OpenTelemetry span, or its baggage: the daemon then takes
        the model call within that span as the outcome of this decision, and evaluations of it as
        its reward. Names of `feature_flag.*` are OpenTelemetry's (release candidate)."""
        attributes = {
            "feature_flag.key": experiment,
            "feature_flag.provider.name": "equipoise",
            "feature_flag.result.variant": self.model,
            "feature_flag.result.reason": "split" if self.randomized else "default",
            "feature_flag.context.id": unit_id,
            "equipoise.decision_id": self.decision_id,
            "equipoise.propensity": self.propensity,
            "equipoise.outcome_token": self.outcome_token,
        }
        return {name: value for name, value in attributes.items() if value is not None}


@dataclass(slots=True)
class Counters:
    """Requests and rows since the client was made. decided: answered by the daemon. fallbacks:
    served as routed, by reason. delivered: outcomes it took in; observations: rows. refused: what
    it, or JSON, does not take. dropped: lost since the buffer was full, or at the close.
    incomplete: rows of fallbacks forgotten before outputs and reward were known. unserved: rows of
    fallbacks that no model answered. retries: of deliveries."""

    decided: int = 0
    fallbacks: dict[str, int] = field(default_factory=dict)
    delivered: int = 0
    observations: int = 0
    refused: int = 0
    dropped: int = 0
    incomplete: int = 0
    unserved: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Address:
    """Where a daemon listens: host and port, or a Unix socket's file; path: of a proxy, or ""."""

    secure: bool
    host: str
    port: int | None
    path: str = ""
    socket_file: str = ""

    @classmethod
    def of(cls, url: str) -> Self:
        """The address that `url` writes: http://HOST:PORT, https://HOST:PORT, either with the path
        of a proxy, unix:///PATH, or http+unix://PATH with %2F for each slash. Raises ValueError."""
        kinds = "http://HOST:PORT or https://HOST:PORT, or unix:///SOCKET"
        refusal = f"url is {url!r}, expected {kinds}"
        if not isinstance(url, str):
            raise ValueError(refusal)
        try:
            parts = urlsplit(url)
            port = parts.port if parts.scheme in ("http", "https") else None
        except ValueError as error:  # a port that is none, a bracket that is not closed
            raise ValueError(f"{refusal} ({error})") from None
        path = parts.path.rstrip("/")
        if parts.scheme in ("http", "https") and parts.hostname and port != 0:
            return cls(parts.scheme == "https", parts.hostname, port, path)
        if parts.scheme == "http+unix" and parts.netloc:
            return cls(False, "localhost", None, path, unquote(parts.netloc))
        if parts.scheme == "unix" and not parts.netloc and path:
            return cls(False, "localhost", None, "", unquote(parts.path))
        raise ValueError(refusal)

    def connection(self, timeout: float) -> HTTPConnection:
        """A connection that is not open yet."""
        if self.socket_file:
            return _UnixConnection(self.socket_file, timeout)
        kind = _SecureConnection if self.secure else _Connection
        return kind(self.host, self.port, timeout=timeout)


class _Connection(HTTPConnection):
    """Sends a request in one piece, which one reading takes in: the library sends two."""

    _head = b""

    def send(self, data: Any) -> None:
        self._head += data
        if not data.endswith(b"\r\n\r\n"):  # as a header does, and no body
            super().send(self._head)
            self._head = b""


class _SecureConnection(_Connection, HTTPSConnection): ...


class _UnixConnection(_Connection):
    def __init__(self, file: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._file = file

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._file)


class Client:
    """One per process, for any number of threads and event loops.

    url: of the daemon, http, https, or unix:///PATH of its socket. token: of scope `route`, where
    the daemon asks for one. timeout: seconds that `decide` may take. buffer: outcomes kept while
    the daemon is away, and rows of fallbacks kept until they are complete; the oldest are dropped
    and counted. Raises ValueError for what cannot be one of these. `close` delivers what is left.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8080",
        token: str | None = None,
        *,
        timeout: float = 0.05,
        buffer: int = 10_000,
    ) -> None:
        self._address = Address.of(url)
        if token is not None and not (
            isinstance(token, str) and token.isascii() and token.isprintable()
        ):
            raise ValueError("token holds characters that no header can carry")
        if type(timeout) not in (int, float) or not 0.0 < timeout <= MOST_SECONDS:
            raise ValueError(
                f"timeout is {timeout!r}, expected seconds above 0 and at most {MOST_SECONDS:g}"
            )
        if type(buffer) is not int or buffer < 1:
            raise ValueError(f"buffer is {buffer!r}, expected a whole number of rows, at least 1")
        self._headers = {"Content-Type": "application/json"}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"
        self.timeout, self.counters, self._buffer = timeout, Counters(), buffer
        self._start()

    def decide(self, request_id: str, routed: str, features: Features, **options: Any) -> Choice:
        """The model to serve this request, within `timeout` seconds.

        routed: what production would serve. features: named values as configured, or the vector.
        Options: unit_id, whose request it is; context_id, of a replayed context; eligible models.
        """
        call = _Call({"request_id": request_id, "routed": routed, "features": features, **options})
        try:
            return self._ask(call).result(self.timeout)
        except Exception as error:
            return self._fallback(call, error)

    async def decide_async(
        self, request_id: str, routed: str, features: Features, **options: Any
    ) -> Choice:
        """As `decide`, without blocking the caller's event loop."""
        call = _Call({"request_id": request_id, "routed": routed, "features": features, **options})
        try:
            import asyncio  # slow to import, and whoever awaits has it already

            return await asyncio.wait_for(asyncio.wrap_future(self._ask(call)), self.timeout)
        except Exception as error:
            return self._fallback(call, error)

    def outcome(self, request: Choice | str, **parts: Any) -> None:
        """Report what came of a request, by its choice or its request_id; returns at once.

        Parts: outputs, which come with the response ({} where none are configured); reward, which
        may come later; metrics; served, the model that answered where it is another than the chosen
        one; attempt; delivered, False where the chosen model was never tried; or, in place of these
        three, attempts, all in their order: [{"model": …, "status": "failed", "seconds": 1.2,
        "cost": 0.0}, …], status delivered, failed, discarded or cached. Each counts once. unit_id,
        whose it is: the daemon refuses that of another unit's decision. outcome_token, as in the
        choice, only where neither the choice is given nor this client made it, or 100,000 choices
        ago. Raises TypeError for another part, and nothing else.
        """
        if not parts.keys() <= PARTS:
            raise TypeError(f"{parts.keys() - PARTS} is no part of an outcome: {sorted(PARTS)}")
        name = request.request_id if isinstance(request, Choice) else request
        try:
            decided, token = self._decided.get(name, (None, None))
            if isinstance(request, Choice) and request.decision_id is not None:
                decided, token = request.decision_id, request.outcome_token or token
            token = parts.pop("outcome_token", None) or token
            parts |= {} if token is None else {"outcome_token": token}
            body = json.loads(_dumps(parts))  # may change after we return
            self._start_after_fork()
            with self._changed:
                call = self._fallbacks.get(name)
                if call is None:
                    # The daemon finds a decision by its id without a look into its log.
                    by = ("request_id", name) if decided is None else ("decision_id", decided)
                    self._put(_Item(body | dict((by,))))
                    return
                call.parts |= body
                if call.parts.keys() >= {"outputs", "reward"}:
                    del self._fallbacks[name]
                    if call.logged:
                        self._put(_Item(call.undelivered(), call, request=call.request))
                    else:
                        self._put_row(call)
        except Exception:
            self.counters.refused += 1

    def undelivered(self, request_id: str, served: str, path: str, request: Body) -> None:
        """Report that nobody got what was asked for by another protocol, if it was decided at all.

        served: the model that answered instead. request: the body that asked at `path`; what it is
        answered with `again` holds the outcome token. Returns at once and raises nothing.
        """
        body = {"request_id": request_id, "served": served, "delivered": False}
        with contextlib.suppress(Exception):
            self._start_after_fork()
            with self._changed:
                self._put(_Item(body, request=json.loads(_dumps(request)), path=path))

    def flush(self, timeout: float = 5.0) -> bool:
        """Wait until everything is delivered; whether it was, within `timeout` seconds."""
        with self._changed:
            self._hurries += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(lambda: not (self._items or self._busy), timeout)
            finally:
                self._hurries -= 1

    def close(self, timeout: float = 1.0) -> None:
        """Deliver what is left, for `timeout` seconds at the most, count the rest, and stop."""
        self.flush(timeout)
        self._closed = True
        with self._changed:
            self.counters.dropped += len(self._items)
            self._changed.notify_all()
        self._threads.shutdown(wait=False, cancel_futures=True)
        while self._idle:
            self._idle.pop().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        self._pid, self._closed, self._busy = os.getpid(), False, False
        self._failures, self._rest, self._hurries = 0, 0.0, 0
        self._idle: deque[HTTPConnection] = deque()
        self._items: deque[_Item] = deque()
        self._fallbacks: OrderedDict[str, _Call] = OrderedDict()
        self._decided: OrderedDict[str, tuple[str, str | None]] = OrderedDict()
        self._changed: threading.Condition = threading.Condition()
        self._threads: ThreadPoolExecutor = ThreadPoolExecutor(MOST_THREADS, "equipoise")
        threading.Thread(target=self._deliver_forever, name="equipoise", daemon=True).start()

    def _start_after_fork(self) -> None:
        if self._pid != os.getpid():
            self._start()

    def _ask(self, call: _Call) -> Future[Choice]:
        call.body = _dumps(call.request)
        now = time.monotonic()
        if self._failures >= PATIENCE and now < self._rest:
            raise _Failure("resting", logged=False)
        self._rest = now + REST_SECONDS
        self._start_after_fork()
        return self._threads.submit(self._decide, call)

    def _decide(self, call: _Call) -> Choice:
        status, answer = self._post("/v1/decide", call.body, self.timeout, call)
        if status != 200:
            raise _Failure(f"status-{status}", logged=status >= 500)
        name, routed = call.request["request_id"], call.request["routed"]
        try:
            if answer["request_id"] != name:
                raise KeyError(name)
            if answer["decision_id"] is None:
                raise _Failure(str(answer["reason"]), logged=False)
            drawn = bool(answer["randomized"]), float(answer["propensity"]), answer["decision_id"]
            token = answer.get("outcome_token")  # an older daemon has none
            ask = bool(answer.get("ask", False))
            served = str(answer["model"])
            choice = Choice(name, served, routed, *drawn, outcome_token=token, ask=ask)
        except (KeyError, TypeError, ValueError, AttributeError):
            raise _Failure("garbage") from None
        with self._changed:
            self._decided[name] = drawn[2], token if isinstance(token, str) else None
            if len(self._decided) > REMEMBERED:
                self._decided.popitem(last=False)
        self._failures = 0
        self.counters.decided += 1
        return choice

    def _fallback(self, call: _Call, error: Exception) -> Choice:
        if not isinstance(error, _Failure):
            late, unsent = isinstance(error, TimeoutError), not call.body
            error = _Failure("time-out" if late else "bad-input" if unsent else repr(error))
        name, reason = call.request["request_id"], error.reason
        with contextlib.suppress(Exception), self._changed:
            self._failures += reason not in (*REFUSED, "resting")
            reasons = self.counters.fallbacks
            reasons[reason] = reasons.get(reason, 0) + 1
            if reason in REFUSED:
                self.counters.refused += 1
            else:
                call.give_up(error.logged)
                self._fallbacks[name] = call
                if call.logged:  # who answers instead is not known yet
                    body = {"request_id": name, "delivered": False}
                    self._put(_Item(body, request=call.request))
                if len(self._fallbacks) > self._buffer:
                    self._fallbacks.popitem(last=False)
                    self.counters.incomplete += 1
        return Choice(name, call.request["routed"], call.request["routed"], reason=reason)

    def _put(self, *items: _Item) -> None:
        self._items.extend(items)
        while len(self._items) > self._buffer:
            self._items.popleft()
            self.counters.dropped += 1
        self._changed.notify_all()

    def _deliver_forever(self) -> None:
        pause = 0.0
        while not self._closed:
            with self._changed:
                self._busy = False
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._items or self._closed)
                # One request for many costs the router, which shares our interpreter, far less.
                self._changed.wait_for(self._due, GATHER_SECONDS)
                batch, self._busy = self._batch(), True
            unwell = batch and not self._deliver(batch)
            pause = min(1.0, 2 * pause + 0.02) if unwell else 0.0
            time.sleep(pause)

    def _due(self) -> bool:
        return bool(self._hurries) or self._closed or len(self._items) >= AT_ONCE

    def _batch(self) -> list[_Item]:
        """The next items, all of one kind, no two about one request."""
        batch: dict[str, _Item] = {}
        while self._items and len(batch) < AT_ONCE:
            name = (item := self._items[0]).body.get("decision_id") or item.body["request_id"]
            if name in batch or any(item.row != other.row for other in batch.values()):
                break
            batch[name] = self._items.popleft()
        return list(batch.values())

    def _deliver(self, batch: list[_Item]) -> bool:
        """Whether the daemon answered; what it did not take in is back in the buffer."""
        if not self._find_tokens(batch):
            return False
        rows, lines = batch[0].row, [_dumps(item.body) for item in batch]
        path, name = ("/v1/observations", "rejects") if rows else ("/v1/outcomes", "rejected")
        text = b"\n".join(lines) if rows else b"[" + b",".join(lines) + b"]"
        try:
            status, answer = self._post(path, text, DELIVERY_SECONDS)
            if status in (401, 403, 408, 429) or status >= 500:
                raise _Failure(f"status-{status}")
            refused = {row["index"]: row["status"] for row in answer[name]} if status == 200 else {}
        except Exception:
            self._put_back(batch)
            return False
        decided = rows and status == 200 and answer.get("decided")
        if len(batch) > 1 and (decided or status != 200):
            # One by one shows which was decided, or is unreadable; the others are repeats.
            answered = [self._deliver([item]) for item in batch]
            return all(answered)
        with self._changed:
            for index, item in enumerate(batch):
                if decided and item.call is not None:
                    # It decided after all, when nobody waited any more.
                    self._put(_Item(item.call.undelivered(), request=item.call.request))
                else:
                    self._settle(item, refused.get(index, status))
        return True

    def _find_tokens(self, batch: list[_Item]) -> bool:
        """Ask for the outcome tokens of decisions whose answers never came; whether all answered.
        Nothing is decided by that; where nothing was, the outcome gets a 404 and becomes a row."""
        for item in batch:
            if not item.tried or item.request is None:
                continue
            try:
                body = _dumps({**item.request, "again": True})
                status, answer = self._post(item.path, body, DELIVERY_SECONDS)
                if status == 200:
                    item.body["outcome_token"] = answer.get("metadata", answer)["outcome_token"]
                elif status in (401, 403, 408, 429) or status >= 500:
                    raise _Failure(f"status-{status}")
            except Exception:
                self._put_back(batch)
                return False
            item.request = None
        return True

    def _put_back(self, batch: list[_Item]) -> None:
        with self._changed:
            self.counters.retries += len(batch)
            self._items.extendleft(reversed(batch))
            self._put()

    def _put_row(self, call: _Call) -> None:
        row = call.observation()
        self.counters.unserved += row is None
        if row is not None:
            self._put(row)

    def _settle(self, item: _Item, status: int) -> None:
        if status == 404 and item.call is not None:
            self._put_row(item.call)
        elif status == 403 and item.request is not None and not item.tried:
            item.tried = True
            self._put(item)
        elif status == 503:  # its decision is on its way to the log
            self._put(item)
        elif status != 200:
            self.counters.refused += not item.body.keys() <= UNDELIVERED
        elif item.row:
            self.counters.observations += 1
        else:
            self.counters.delivered += 1

    def _post(self, path: str, body: bytes, timeout: float, call: _Call | None = None) -> Any:
        """(status, decoded body). A request that finds a stale connection is sent once more."""
        sent = False  # perhaps to a daemon that logged it, and died before it could answer
        while True:
            try:
                connection, fresh = self._idle.pop(), False
                connection.sock.settimeout(timeout)
            except IndexError:
                connection, fresh = self._address.connection(timeout), True
            try:
                if fresh:
                    connection.connect()
            except OSError:
                connection.close()
                raise _Failure("unreachable", logged=sent) from None
            try:
                if call is not None:
                    call.sends_on(connection)
                connection.request("POST", self._address.path + path, body, self._headers)
                response = connection.getresponse()
                answer = response.status, json.loads(response.read(MOST_BYTES))
            except (OSError, HTTPException, ValueError) as error:
                connection.close()
                sent = True
                closed = isinstance(error, ConnectionError)  # RemoteDisconnected is one of them
                if closed and not fresh:
                    continue
                late = isinstance(error, TimeoutError)
                raise _Failure("time-out" if late else "closed" if closed else "garbage") from None
            if connection.sock is None or self._closed:
                connection.close()
            else:
                self._idle.append(connection)
            return answer


class _Failure(Exception):  # noqa: N818 - stays inside this file
    """The daemon did not decide. logged: whether it may have logged a decision all the same."""

    def __init__(self, reason: str, logged: bool = True) -> None:
        super().__init__(reason)
        self.reason, self.logged = reason, logged


@dataclass(slots=True)
class _Call:
    """A request, and what came of it if it was served as routed. body: `request` as JSON."""

    request: Body
    at: float = field(default_factory=time.time)
    body: bytes = b""
    connection: HTTPConnection | None = None
    abandoned: bool = False
    logged: bool = False
    parts: Body = field(default_factory=dict)

    def sends_on(self, connection: HTTPConnection) -> None:
        self.connection = connection
        if self.abandoned:
            raise TimeoutError

    def give_up(self, logged: bool) -> None:
        """Nobody waits any more: end the exchange, keep what the row needs."""
        self.abandoned, self.logged = True, logged
        self.request = json.loads(self.body)  # the caller may change what it gave us
        if self.connection is not None and self.connection.sock is not None:
            with contextlib.suppress(OSError):
                self.connection.sock.shutdown(socket.SHUT_RDWR)

    def undelivered(self) -> Body:
        parts = {name: part for name, part in self.parts.items() if name != "attempts"}
        body = {**parts, "request_id": self.request["request_id"], "delivered": False}
        served = self.served()
        return body if served is None else {**body, "served": served}

    def served(self) -> str | None:
        """The model that answered in the end, None where none did."""
        attempts = self.parts.get("attempts")
        if attempts is not None:
            models = [each["model"] for each in attempts if each["status"] == "delivered"]
            return models[-1] if models else None
        if self.parts.get("delivered") is False:
            return None
        return str(self.parts.get("served") or self.request["routed"])

    def observation(self) -> _Item | None:
        """The row of a usage log; None where no model answered, so that there is none."""
        served = self.served()
        if served is None:
            return None
        names = ("request_id", "features", "unit_id")
        body = {name: self.request[name] for name in names if name in self.request}
        body["routed"] = served
        body |= {"outputs": self.parts["outputs"], "reward": self.parts["reward"], "at": self.at}
        return _Item(body, self, row=True)


@dataclass(slots=True)
class _Item:
    """Something to deliver: a part of an outcome, or a row. call: what it is about, where that was
    served as routed: after a 404 it becomes a row, and a row whose request was decided a part.
    request: one whose answer never came, with its outcome token, and the path it was sent to;
    tried: whether that is missed."""

    body: Body
    call: _Call | None = None
    row: bool = False
    request: Body | None = None
    path: str = "/v1/decide"
    tried: bool = False


def _dumps(body: Body) -> bytes:
    """JSON without NaN; NumPy's numbers and arrays are taken as Python's."""
    return json.dumps(body, allow_nan=False, default=lambda value: value.tolist()).encode()
