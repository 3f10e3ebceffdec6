"""OTLP over HTTP: spans of model calls and evaluations, as OpenTelemetry's exporters send them.

Bodies are decoded, read and noted in a thread; a job logs what has become whole. Answers are those
of the protocol: 200 says that everything was kept but what the partial success counts, refusals are
a google.rpc.Status in the encoding of the request, and 429 and 503 are what exporters send again
after.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from equipoise.agent.agent import Accepted
from equipoise.agent.config.ingest import IngestMapping, Rewards
from equipoise.agent.config.service import LimitSettings, OtlpSettings
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import FeatureError, shown, shown_sent
from equipoise.agent.ingest import otlp, protobuf
from equipoise.agent.ingest.arrivals import Arrival, Call, Decided, Rating, Within
from equipoise.agent.ingest.joining import Joining, Ready
from equipoise.agent.ingest.records import mapped
from equipoise.agent.ingest.sinks import take_by_bisection
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.api.operations import Operation
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.api.schema import OtlpAnswer, ProblemDocument
from equipoise.agent.service.http.access import Caller, Doors, OutcomeTokens
from equipoise.agent.service.http.endpoints import (
    Call as Asked,
)
from equipoise.agent.service.http.endpoints import (
    ClientGone,
    Receive,
    Room,
    Scope,
    Send,
    read_plain_or_packed,
    respond,
    respond_error,
)
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.store.records import Observation, decision_id

PROTOBUF, JSON = b"application/x-protobuf", b"application/json"
SETTLE_EVERY_SECONDS = 1.0
LARGEST_AT_ONCE = 4
"""So many bodies of the largest size, or as many smaller ones as have their bytes, are under way;
who comes beyond them is asked to come again."""
READ_AT_ONCE = 2
"""Bodies that are messages in memory, many times their size; the rest wait for their turn."""
ROWS_AT_ONCE = 128
SHOWN_REASONS = 3
_CODES = {400: 3, 401: 16, 403: 7, 404: 5, 408: 4, 413: 8, 415: 3, 429: 8, 500: 13, 503: 14}
"""Status of HTTP to the code of google.rpc."""
_MESSAGES = {"traces": "rejectedSpans", "logs": "rejectedLogRecords"}


@dataclass(slots=True)
class _Read:
    """What one body holds. rejected: how much of it is refused; reasons: why, and why spans can be
    nothing but outcomes; fault: the first of ours among them."""

    arrivals: list[Arrival] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    rejected: int = 0
    reasons: dict[str, None] = field(default_factory=dict)
    fault: Exception | None = None

    def reject(self, reason: str) -> None:
        self.rejected += 1
        self.reasons[reason] = None

    @property
    def message(self) -> str:
        """The reasons in one line."""
        shown = list(self.reasons)[:SHOWN_REASONS]
        more = len(self.reasons) - len(shown)
        return "; ".join(shown) + (f"; and {more} more reasons" if more else "")


class Otlp:
    """joining: where spans wait, None where no OTLP is taken. unwell: why nothing can be noted now,
    "" for nothing. mapping: how a span's row becomes an observation. committed: awaited before what
    was logged is forgotten here, where only the disk keeps it."""

    def __init__(
        self,
        adapter: RecordAdapter,
        tokens: OutcomeTokens,
        counters: Counters,
        log: Log,
        clock: Callable[[], float],
        unwell: Callable[[], str],
        settings: OtlpSettings | None = None,
        mapping: IngestMapping | None = None,
        joining: Joining | None = None,
        committed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        self._committed = committed
        self._adapter, self._tokens = adapter, tokens
        self._counters, self._log, self._clock = counters, log, clock
        self._unwell = unwell
        self._settings = settings
        self._joining = joining
        self._turns = asyncio.Semaphore(READ_AT_ONCE)
        self._last_refusal = ""
        if mapping is not None:
            full = dict(otlp.FIELDS) | mapping.fields
            mapping = msgspec.structs.replace(mapping, preset=None, fields=full)
            self._rewards = Rewards(mapping.rewards) if mapping.rewards else None
            self._to_record = mapped(mapping, adapter.agent.config.features)

    @Operation("GET", "/v1/otlp", problems=(404,))
    async def otlp_counts(self, call: Asked) -> OtlpAnswer:
        """What came by OTLP, and what became of it."""
        joining = self._required()
        waiting = await asyncio.to_thread(joining.waiting)
        counts = {
            name: self._counters.spans[name]
            for name in OtlpAnswer.__struct_fields__
            if not name.startswith(("waiting_", "last_"))
        }
        return OtlpAnswer(
            waiting_calls=waiting["calls"],
            waiting_evaluations=waiting["evaluations"],
            **counts,
            last_refusal=self._last_refusal,
        )

    async def take(self, signal: otlp.Signal, kind: bytes, body: bytes, caller: Caller) -> bytes:
        """Note what a body holds; the answer, in its encoding.

        Raises Refusal: 400 for what cannot be decoded, 404 where no OTLP is taken, 413 for more
        messages than are read at once, 503 where it is to be sent again.
        """
        self._required()
        why = self._unwell()
        if why:
            raise Refusal(503, why, retry_after=2.0)
        try:
            async with self._turns:
                read = await asyncio.to_thread(self._note, signal, kind, body, caller)
        except sqlite3.Error as error:
            self._log.failed("otlp-file", error)
            raise Refusal(
                503, "spans cannot be kept now: their file fails", retry_after=5.0
            ) from None
        if read.fault is not None:
            self._log.failed("otlp-row", read.fault, signal=signal, rejected=read.rejected)
        self._counters.spans.update(read.counts)
        self._counters.spans["rejected"] += read.rejected
        if read.reasons:
            self._last_refusal = read.message
        if kind == PROTOBUF:
            return protobuf.answer(read.rejected, read.message)
        partial: dict[str, str] = {}
        if read.rejected:
            partial[_MESSAGES[signal]] = str(read.rejected)
        if read.reasons:
            partial["errorMessage"] = read.message
        return msgspec.json.encode({"partialSuccess": partial} if partial else {})

    async def settle(self) -> None:
        """Log what has become whole; run once every SETTLE_EVERY_SECONDS."""
        joining = self._required()
        more = True
        while more:
            this = await asyncio.to_thread(joining.judge, self._clock())
            more = this.more
            counts, refused, reasons = this.left_out, list[Ready](), list(this.refusals)
            ready = sorted(this.ready, key=lambda each: each.what)
            for start, stop in _portions(ready):
                some = ready[start:stop]
                for counted, refusal in take_by_bisection(some, range(len(some)), self._log_all):
                    counts += counted
                    if refusal is not None:
                        refused.append(some[refusal[0]])
                        reasons.append(f"{some[refusal[0]].what}: {refusal[1]}")
                    await asyncio.sleep(0)
            counts["refused"] += len(refused)
            if ready:
                left = set(map(id, refused))
                done = [each for each in ready if id(each) not in left]
                if self._committed is not None:
                    await self._committed()
                await asyncio.to_thread(joining.finish, done, refused)
            self._counters.spans.update(counts)
            if reasons:
                self._last_refusal = reasons[-1]
                self._log.warning("otlp-refused", count=counts["refused"])
            if ready or counts or not self._counters.waiting:
                self._counters.waiting = await asyncio.to_thread(joining.waiting)

    def _log_all(self, ready: Sequence[Ready]) -> dict[str, int]:
        """Log records of one kind, all or none."""
        what, records = ready[0].what, [each.record for each in ready]
        take: Callable[[Any], Accepted] = (
            self._adapter.ingest if what == "observations" else self._adapter.observe
        )
        accepted = take(records)
        counts = {
            what: accepted.rows,
            "duplicates": accepted.duplicates,
            "unrated": accepted.unrated,
            "decided": accepted.decided,
        }
        if what == "observations":
            self._counters.bulk["observations"] += accepted.rows
        else:
            known = {"accepted": accepted.rows, "duplicates": accepted.duplicates}
            self._counters.outcomes.update({**known, "late": accepted.late})
            counts["refused"] = accepted.late
        return counts

    def _required(self) -> Joining:
        if self._joining is None:
            raise Refusal(404, "no OTLP is taken here: declare [service.otlp]")
        return self._joining

    def _note(self, signal: otlp.Signal, kind: bytes, body: bytes, caller: Caller) -> _Read:
        assert self._joining is not None
        try:
            if kind == PROTOBUF:
                message = protobuf.decode(body, signal)
            elif body.count(b"{") > protobuf.MOST_MESSAGES:
                raise protobuf.TooManyError
            else:
                message = otlp.from_json(body, signal)
        except protobuf.TooManyError:
            limit = f"{protobuf.MOST_MESSAGES} messages"
            detail = f"more than {limit} in one body (spans, events, attributes and their values)"
            raise Refusal(413, f"{detail}; send smaller batches", limit=limit) from None
        except protobuf.ProtobufError as error:
            raise Refusal(400, f"the body is not OTLP in Protobuf: {error}") from None
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            why = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise Refusal(400, f"the body is not OTLP in JSON: {why}") from None
        read = self._read(message, caller)
        if read.arrivals:
            noted = self._joining.note(read.arrivals, self._clock())
            read.rejected += (beyond := noted.pop("beyond", 0))
            if beyond:
                most = self._joining.most
                read.reasons[f"{most} spans or evaluations wait for each other already"] = None
            read.counts.update(noted)
        return read

    def _read(self, message: otlp.Traces | otlp.Logs, caller: Caller) -> _Read:
        read, ignored, parents = _Read(), Counter[str](), dict[str, str]()
        relevant = False
        for row in otlp.rows(message, ignored, parents):
            try:
                arrival = self._arrival(row, caller, read)
            except (AgentError, FeatureError, Refusal) as error:
                read.reject(_words(error))
                continue
            except Exception as fault:
                # Exporters never send a body again after 500: all the others' would be lost.
                read.fault = read.fault or fault
                read.reject("the daemon could not read this row; its log says why")
                continue
            if arrival is not None:
                relevant = True
                read.arrivals.append(arrival)
        read.counts["ignored"] += sum(ignored.values())
        if relevant or parents:
            read.arrivals[:0] = [Within(span, parent) for span, parent in parents.items()]
        return read

    def _arrival(
        self, row: otlp.Row | otlp.Rejected, caller: Caller, read: _Read
    ) -> Arrival | None:
        """What a row is, None for what does not count here. Raises AgentError, FeatureError or
        Refusal."""
        if isinstance(row, otlp.Rejected):
            raise AgentError(row.reason)
        decision = row["decision_id"]
        if decision is not None:
            self._check_decision(decision, row["outcome_token"], caller)
        if row["kind"] == "evaluation":
            return self._rating(row, read)
        span = f"{row['trace_id']}-{row['span_id']}"
        if row["kind"] == "decision":
            assert decision is not None
            return Decided(span=span, decision=decision)
        assert self._settings is not None
        for name, wanted in self._settings.only.items():
            value = row["attributes"].get(name, row["resource"].get(name))
            if str(value) != wanted:
                read.counts["other"] += 1
                return None
        return self._call(row, span, decision, read)

    def _call(self, row: otlp.Row, span: str, decision: str | None, read: _Read) -> Call:
        assert self._settings is not None
        agent = self._adapter.agent
        transform = agent.state.transform
        record = self._to_record(row)
        assert isinstance(record, Observation)
        if record.routed not in agent.models:
            known = ", ".join(agent.models)
            raise AgentError(f"model: {shown_sent(record.routed, 'name')} is not one of {known}")
        outputs, kept, refusal = None, None, ""
        try:
            outputs = transform.output_rows([record.outputs])[0].tolist()
        except FeatureError as error:
            if decision is None and row["parent_span_id"] is None:
                raise
            refusal = _words(error)
        if outputs is not None:
            try:
                features = transform.context_rows([record.features])[0].tolist()
            except FeatureError as error:
                if decision is None and row["parent_span_id"] is None:
                    raise
                refusal = _words(error)
            else:
                kept = msgspec.structs.replace(
                    record, features=features, outputs=outputs, reward=None
                )
        if refusal and decision is None:
            read.reasons[f"{refusal}: this can only be the outcome of a decision"] = None
        parent = row["parent_span_id"]
        return Call(
            span=span,
            parent=None if parent is None else f"{row['trace_id']}-{parent}",
            answer=row["response_id"],
            tokens=row["output_tokens"],
            provider=row["provider"],
            decision=decision,
            ended=(row["at"] or 0.0) + (row["seconds"] or 0.0),
            seconds=row["seconds"],
            failed=row["failed"] and not row["answered"],
            served=record.routed,
            reward=record.reward,
            outputs=outputs,
            row=kept,
            refusal=refusal,
        )

    def _rating(self, row: otlp.Row, read: _Read) -> Rating | None:
        assert self._settings is not None
        wanted = self._settings.evaluation
        if wanted is None:
            raise AgentError(
                f"gen_ai.evaluation.name: {shown_sent(row['name'], 'name')} came, and "
                "service.otlp.evaluation does not say which one is the reward"
            )
        if row["name"] != wanted or row["failed"]:
            read.counts["other"] += 1
            return None
        reward = row["score"]
        if self._rewards is not None and (row["label"] is not None or reward is None):
            reward = self._rewards.find(row["label"])
        if reward is None:
            raise AgentError(
                f"gen_ai.evaluation.score.value: {wanted!r} has none; give its labels rewards in "
                "ingest.rewards"
            )
        try:
            reward = float(reward)
        except OverflowError:
            raise AgentError(
                f"gen_ai.evaluation.score.value: {shown(reward)} is too large a number"
            ) from None
        scale = self._adapter.agent.config.reward
        if not scale.low <= reward <= scale.high:
            raise AgentError(f"reward: {reward:g} is not from {scale.low:g} to {scale.high:g}")
        rating = Rating(
            reward=reward,
            at=self._clock() if row["at"] is None else row["at"],
            span=f"{row['trace_id']}-{row['span_id']}"
            if row["trace_id"] and row["span_id"]
            else "",
            answer=row["response_id"] or "",
            decision=row["decision_id"] or "",
        )
        if not (rating.span or rating.answer or rating.decision):
            raise AgentError(f"evaluation {wanted!r}: neither span, response nor decision is named")
        return rating

    def _check_decision(self, name: str, token: str | None, caller: Caller) -> None:
        number = self._adapter.number(name)
        if number is None or not 0 <= number < self._adapter.agent.light.pending.next:
            raise AgentError(f"equipoise.decision_id: {shown_sent(name)} does not exist")
        self._tokens.check(decision_id(self._adapter.position(number)), token, caller)


def _words(error: Exception) -> str:
    """Its sentence, in which a row of features has no place in a batch."""
    return str(error).replace("context row 0: ", "features.").replace("outputs row 0: ", "outputs.")


def _portions(ready: Sequence[Ready]) -> Iterator[tuple[int, int]]:
    """Where to cut records that are sorted by kind, so that no part holds two of one decision."""
    start, kind, decisions = 0, "", set[str | None]()
    for at, each in enumerate(ready):
        decision = getattr(each.record, "decision_id", None)
        if (
            each.what != kind
            or at - start >= ROWS_AT_ONCE
            or (decision is not None and decision in decisions)
        ):
            if at > start:
                yield start, at
            start, kind = at, each.what
            decisions.clear()
        decisions.add(decision)
    if len(ready) > start:
        yield start, len(ready)


class OtlpEndpoint:
    """One path of OTLP, by ASGI. room: of all its paths."""

    def __init__(
        self,
        path: str,
        signal: otlp.Signal,
        otlp: Otlp,
        doors: Doors,
        limits: LimitSettings,
        counters: Counters,
        log: Log,
        room: Room,
    ) -> None:
        self._path, self._signal = path, signal
        self._otlp, self._doors, self._limits, self._room = otlp, doors, limits, room
        self._counters, self._log = counters, log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start, kind = time.perf_counter(), JSON
        for name, value in scope["headers"]:
            if name == b"content-type":
                kind = value.partition(b";")[0].strip().lower()
        try:
            if scope["method"] != "POST":
                raise Refusal(405, "this path takes POST", headers={"allow": "POST"})
            caller = self._doors.admit("POST", scope["headers"], "route", (PROTOBUF, JSON))
            limits = self._limits
            with self._room.share() as need:
                body = await read_plain_or_packed(scope, receive, limits.otlp_bytes, limits, need)
                answer = await self._otlp.take(self._signal, kind, body, caller)
        except ClientGone:
            return
        except Exception as error:
            render = _protobuf_status if kind == PROTOBUF else _json_status
            status = await respond_error(receive, send, error, self._path, self._log, render)
        else:
            status = 200
            await respond(send, status, answer, [(b"content-type", kind)])
        self._counters.answered(self._path, status, time.perf_counter() - start)


def _protobuf_status(document: ProblemDocument) -> tuple[bytes, str]:
    code = _CODES.get(document.status, 2)
    return protobuf.status(code, document.detail), PROTOBUF.decode()


def _json_status(document: ProblemDocument) -> tuple[bytes, str]:
    code = _CODES.get(document.status, 2)
    return msgspec.json.encode({"code": code, "message": document.detail}), JSON.decode()
