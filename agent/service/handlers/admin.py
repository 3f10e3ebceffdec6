"""Handlers of what changes something beside the hot routes: bulk rows, budget, plan, pause."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Generic, TypeVar

import msgspec

from equipoise.agent.agent import Accepted
from equipoise.agent.answers.recommendation import KEEP
from equipoise.agent.controls import standing_sentence
from equipoise.agent.ingest.bulk import Places
from equipoise.agent.planning.plan import Plan
from equipoise.agent.planning.request import PlanRequest
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.analyst.client import AnalystClient
from equipoise.agent.service.analyst.connection import AnalystError
from equipoise.agent.service.api.operations import NDJSON, Operation
from equipoise.agent.service.api.problems import Refusal, refusal_of
from equipoise.agent.service.api.schema import (
    BudgetAnswer,
    BudgetRequest,
    BulkAnswer,
    EndRequest,
    ModeAnswer,
    PauseRequest,
    Rejected,
)
from equipoise.agent.service.control import Switches
from equipoise.agent.service.handlers.queries import unanswered
from equipoise.agent.service.hot_path.handlers import take_by_bisection
from equipoise.agent.service.http.endpoints import Call
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.store.records import Observation, Simulation
from equipoise.store.words import plural, verb

R = TypeVar("R", Observation, Simulation)

ROWS_AT_ONCE = 256
"""Rows that are taken together: about two milliseconds of work."""
PIECE = 16_384
"""Bytes that are cut into lines at once."""
TURN_SECONDS = 0.0003
"""Lines are read for so long between two looks at other requests, whatever they are."""
SHOWN_REJECTS = 100
LONGEST_LINE = 1 << 20


class BulkBody(Generic[R]):
    """One bulk body. take: takes records all or none, and says what became of them. most_rejects:
    refused lines after which the rest is not read."""

    def __init__(
        self, kind: type[R], take: Callable[[Sequence[R]], dict[str, int]], most_rejects: int
    ) -> None:
        self._most_rejects = most_rejects
        self._turn = time.perf_counter()
        self._decode: Callable[[bytes], R] = msgspec.json.Decoder(kind).decode
        self._take: Callable[[Sequence[R]], dict[str, int]] = take
        self._line = 0
        self._lines: list[int] = []
        self._records: list[R] = []
        self._totals: Counter[str] = Counter()
        self._rejected = 0
        self._rejects: list[Rejected] = []
        self._places: Places[int] = Places()

    async def read(self, chunks: AsyncGenerator[bytes, None]) -> BulkAnswer:
        """Take in every line of the body. What was taken stays taken if the body breaks off.

        Raises Refusal 413 for a line that is too long, or beyond the most refused lines.
        """
        rest = b""
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                for start in range(0, len(chunk), PIECE):
                    *lines, rest = (rest + chunk[start : start + PIECE]).split(b"\n")
                    for line in lines:
                        await self._read_line(line)
                if len(rest) > LONGEST_LINE:
                    limit = f"{LONGEST_LINE} bytes"
                    raise Refusal(413, f"line {self._line} is longer than {limit}", limit=limit)
        await self._read_line(rest)
        await self._flush()
        return BulkAnswer(
            rows=self._totals["rows"],
            duplicates=self._totals["duplicates"],
            rejected=self._rejected,
            rejects=sorted(self._rejects, key=lambda row: row.index),
            unrated=self._totals["unrated"],
            decided=self._totals["decided"],
        )

    async def _read_line(self, line: bytes) -> None:
        number, self._line = self._line, self._line + 1
        if line.strip():
            try:
                self._records.append(self._decode(line))
                self._lines.append(number)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                document = refusal_of(error).document
                self._reject(number, document.status, document.detail)
            if len(self._records) >= ROWS_AT_ONCE:
                await self._flush()
        await self._breathe()

    async def _breathe(self) -> None:
        """Let other requests in, if they have waited long enough."""
        if time.perf_counter() - self._turn > TURN_SECONDS:
            await asyncio.sleep(0)
            self._turn = time.perf_counter()

    async def _flush(self) -> None:
        rejected: list[Rejected] = []
        if self._records:
            rows = range(len(self._records))
            for counts in take_by_bisection(self._records, rows, self._take, rejected):
                self._totals += counts
                await self._breathe()
        refused = {row.index: row for row in rejected}
        records, lines = self._records, self._lines
        self._records, self._lines = [], []
        for at, record in enumerate(records):
            if at not in refused:
                self._places.keep(record, lines[at])
                continue
            row, detail = refused[at], refused[at].detail
            if row.status == 409:
                first = self._places.of(record)
                detail += f" (index {first[0]} of this body)" if first else ""
            self._reject(lines[at], row.status, detail)

    def _reject(self, line: int, status: int, detail: str) -> None:
        self._rejected += 1
        if len(self._rejects) < SHOWN_REJECTS:
            self._rejects.append(Rejected(index=line, status=status, detail=detail))
        if self._rejected > self._most_rejects:
            limit = plural(self._most_rejects, "refused line")
            first = self._rejects[0]
            raise Refusal(
                413,
                f"more than {limit}: the body is not read beyond line {self._line - 1}, of which "
                f"{plural(self._totals['rows'], 'row')} {verb(self._totals['rows'], 'was', 'were')}"
                f" taken; line {first.index}: {first.detail}",
                limit=limit,
            )


T = TypeVar("T")
_SWITCH: dict[str, Any] = {
    "scope": "admin",
    "body": PauseRequest,
    "optional_body": True,
    "answer": ModeAnswer,
    "problems": (429, 503),
}


class Admin:
    """with_sums: a context in which the sums are in this process, for whoever freezes a rule.
    rejects: refused lines of a bulk body after which the rest is not read."""

    def __init__(
        self,
        adapter: RecordAdapter,
        switches: Switches,
        analysis: AnalystClient,
        counters: Counters,
        log: Log,
        clock: Callable[[], float],
        with_sums: Callable[[], AbstractAsyncContextManager[None]],
        rejects: int,
    ) -> None:
        self._adapter = adapter
        self._switches = switches
        self._analysis = analysis
        self._counters = counters
        self._log = log
        self._clock = clock
        self._with_sums = with_sums
        self._rejects = rejects

    @Operation("POST", "/v1/observations", body=Observation, content=NDJSON, problems=(503,))
    async def observations(self, call: Call) -> BulkAnswer:
        """Take in rows of a usage log, one JSON object a line."""
        take = self._counted(self._adapter.ingest, "observations")
        return await BulkBody(Observation, take, self._rejects).read(call.chunks())

    @Operation("POST", "/v1/simulations", body=Simulation, content=NDJSON, problems=(503,))
    async def simulations(self, call: Call) -> BulkAnswer:
        """Take in simulated outputs, one JSON object a line."""
        take = self._counted(self._adapter.simulate, "simulations")
        return await BulkBody(Simulation, take, self._rejects).read(call.chunks())

    @Operation(
        "PUT",
        "/v1/budget",
        scope="admin",
        body=BudgetRequest,
        problems=(429, 503),
        example={"requests": 1000},
    )
    async def set_budget(self, call: Call) -> BudgetAnswer:
        """Change how many requests may be randomized."""
        body = msgspec.json.decode(call.body, type=BudgetRequest)
        self._switches.set_budget(body.requests, self._clock())
        answer = self._switches.budget(self._analysis.basis)
        self._log.info("budget", requests=answer.requests, randomized=answer.randomized)
        return answer

    @Operation(
        "POST",
        "/v1/plan",
        body=PlanRequest,
        answer=Plan,
        weight=8,
        example={"models": 3, "traffic": 500.0, "reward_rate": 0.4, "effect": 0.05},
    )
    async def plan(self, call: Call) -> msgspec.Raw:
        """Ask the planner.

        A plan from the numbers given, or, where none say otherwise, from what is known.
        """
        request = msgspec.json.decode(call.body, type=PlanRequest)
        live = request.models is None and request.reward_rate is None
        try:
            plan = await self._analysis.plan(call.body, live)
        except AnalystError as error:
            raise unanswered(error) from error
        if plan.fault:
            self._log.warning("plan-failed", sentence=plan.fault)
            raise Refusal(500, f"the planner failed on this question ({plan.fault})")
        if plan.refused:
            raise Refusal(422, plan.refused, field=plan.field, limit=plan.limit)
        return msgspec.Raw(plan.body)

    @Operation("POST", "/v1/pause", example={"reason": "a release"}, **_SWITCH)
    async def pause(self, call: Call) -> ModeAnswer:
        """Stop randomizing; requests are still logged."""
        answer = self._switches.pause(_reason(call), self._clock())
        if answer.ended is None:
            self._log.warning("paused")
        return answer

    @Operation(
        "POST",
        "/v1/end",
        **(_SWITCH | {"body": EndRequest, "problems": (409, 429, 503)}),
        example={"reason": "the answer is in"},
    )
    async def end(self, call: Call) -> ModeAnswer:
        """End the experiment.

        Nothing is randomized any more, and who is to be served from now on is kept, until somebody
        resumes it in a new era. Requests are still logged. Sent again, it changes nothing; one that
        has ended in another way is refused (409).
        """
        body = msgspec.json.decode(call.body, type=EndRequest) if call.body else EndRequest()
        if body.model is not None and body.keep:
            limit = "either model or keep"
            raise Refusal(422, f"received both, expected {limit}", field="keep", limit=limit)
        model, certified = body.model, False
        if model is not None and model not in self._adapter.agent.models:
            limit = f"one of {', '.join(self._adapter.agent.models)}"
            raise Refusal(
                422, f"model: received {model!r}, expected {limit}", field="model", limit=limit
            )
        standing = self._adapter.agent.state.ended
        if standing is not None:
            # Nothing is computed anew: the same end again is answered, another one is refused.
            model = standing.model if model is None and not body.keep else model
            if (model, body.reason or standing.reason) != (standing.model, standing.reason):
                raise Refusal(409, standing_sentence(standing))
            return self._switches.answer()
        if not body.keep:
            try:
                report = await self._analysis.read([])
            except AnalystError as error:
                raise unanswered(error) from error
            answer = report.recommendation()
            if model is None and answer.action != KEEP:
                model = answer.action
            certified = model is not None and model == answer.certified
        ended = self._switches.end(model, body.reason, self._clock(), certified=certified)
        self._log.warning("ended", serve=model or KEEP, certified=certified)
        return ended

    @Operation("POST", "/v1/resume", example={"reason": "the release is out"}, **_SWITCH)
    async def resume(self, call: Call) -> ModeAnswer:
        """Randomize again."""
        try:
            async with self._with_sums():
                answer = self._switches.resume(_reason(call), self._clock())
        except AnalystError as error:
            raise unanswered(error) from error
        self._log.warning("resumed", randomizing=answer.randomizing)
        return answer

    def _counted(
        self, take: Callable[[Sequence[T]], Accepted], name: str
    ) -> Callable[[Sequence[T]], dict[str, int]]:
        def counted(rows: Sequence[T]) -> dict[str, int]:
            accepted = take(rows)
            self._counters.bulk[name] += accepted.rows
            return {
                "rows": accepted.rows,
                "duplicates": accepted.duplicates,
                "unrated": accepted.unrated,
                "decided": accepted.decided,
            }

        return counted


def _reason(call: Call) -> str:
    return msgspec.json.decode(call.body, type=PauseRequest).reason if call.body else ""
