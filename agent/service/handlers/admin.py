"""Handlers of what changes something beside the hot routes: bulk rows, budget, pause."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from equipoise.agent.agent import Accepted
from equipoise.agent.ingest.bulk import Places
from equipoise.agent.planning.request import PlanRequest
from equipoise.agent.service.analyst.connection import AnalysisError
from equipoise.agent.service.api.operations import Call
from equipoise.agent.service.api.problems import Refusal, problem, problem_of, refuse
from equipoise.agent.service.api.schema import (
    BudgetAnswer,
    BudgetRequest,
    BulkAnswer,
    ModeAnswer,
    PauseRequest,
    Rejected,
)
from equipoise.agent.service.daemon import Daemon
from equipoise.agent.service.handlers.queries import unanswered
from equipoise.agent.service.hot_path.handlers import take_apart
from equipoise.store.records import Observation, Simulation

R = TypeVar("R", Observation, Simulation)

ROWS_AT_ONCE = 256
"""Rows that are taken together: about two milliseconds of work."""
PIECE = 16_384
"""Bytes that are cut into lines at once."""
TURN_SECONDS = 0.0003
"""Lines are read for so long between two looks at other requests, whatever they are."""
SHOWN_REJECTS = 100
LONGEST_LINE = 1 << 20


class Bulk(Generic[R]):
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
                    raise refuse(413, f"line {self._line} is longer than {limit}", limit=limit)
        await self._read_line(rest)
        await self._flush()
        return BulkAnswer(
            rows=self._totals["rows"],
            duplicates=self._totals["duplicates"],
            rejected=self._rejected,
            rejects=sorted(self._rejects, key=lambda row: row.index),
        )

    async def _read_line(self, line: bytes) -> None:
        number, self._line = self._line, self._line + 1
        if line.strip():
            try:
                self._records.append(self._decode(line))
                self._lines.append(number)
            except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
                document = problem_of(error)
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
            for taken in take_apart(self._records, rows, self._take, rejected):
                self._totals += taken
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
                same = [str(line) for line in self._places.of(record)]
                detail += f" (index {same[0]} of this body)" if same else ""
            self._reject(lines[at], row.status, detail)

    def _reject(self, line: int, status: int, detail: str) -> None:
        self._rejected += 1
        if len(self._rejects) < SHOWN_REJECTS:
            self._rejects.append(Rejected(index=line, status=status, detail=detail))
        if self._rejected > self._most_rejects:
            limit, first = f"{self._most_rejects} refused lines", self._rejects[0]
            raise refuse(
                413,
                f"more than {limit}: the body is not read beyond line {self._line - 1}, of which "
                f"{self._totals['rows']} rows were taken; line {first.index}: {first.detail}",
                limit=limit,
            )


T = TypeVar("T")


class Acting:
    """Handlers that act on one daemon."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon
        self._most_rejects = daemon.settings.limits.rejects

    async def observations(self, call: Call) -> BulkAnswer:
        take = self._taking(self._daemon.gateway.ingest, "observations")
        return await Bulk(Observation, take, self._daemon.settings.limits.rejects).read(
            call.chunks()
        )

    async def simulations(self, call: Call) -> BulkAnswer:
        take = self._taking(self._daemon.gateway.simulate, "simulations")
        return await Bulk(Simulation, take, self._daemon.settings.limits.rejects).read(
            call.chunks()
        )

    async def set_budget(self, call: Call) -> BudgetAnswer:
        body = msgspec.json.decode(call.body, type=BudgetRequest)
        daemon = self._daemon
        answer = daemon.switches.set_budget(body.requests, daemon.clock())
        daemon.log.info("budget", requests=answer.requests, randomized=answer.randomized)
        return answer

    async def pause(self, call: Call) -> ModeAnswer:
        answer = self._daemon.switches.pause(_reason(call), self._daemon.clock())
        self._daemon.log.warning("paused")
        return answer

    async def resume(self, call: Call) -> ModeAnswer:
        daemon, era = self._daemon, self._daemon.agent.rule.era
        try:
            async with daemon.whole():
                answer = daemon.switches.resume(_reason(call), daemon.clock())
        except AnalysisError as error:
            raise unanswered(error) from error
        if daemon.agent.rule.era != era:
            daemon.analysis.adopt(daemon.agent.rule.record(daemon.clock()))
        self._daemon.log.warning("resumed", randomizing=answer.randomizing)
        return answer

    async def plan(self, call: Call) -> msgspec.Raw:
        """A plan from the numbers given, or, where none say otherwise, from what is known."""
        asked = msgspec.json.decode(call.body, type=PlanRequest)
        live = asked.models is None and asked.reward_rate is None
        try:
            made = await self._daemon.analysis.plan(call.body, live)
        except AnalysisError as error:
            raise unanswered(error) from error
        if made.fault:
            self._daemon.log.warning("plan-failed", sentence=made.fault)
            raise Refusal(problem(500, f"the planner failed on this question ({made.fault})"))
        if made.refused:
            raise refuse(422, made.refused, field=made.field, limit=made.limit)
        return msgspec.Raw(made.body)

    def _taking(
        self, take: Callable[[Sequence[T]], Accepted], name: str
    ) -> Callable[[Sequence[T]], dict[str, int]]:
        def taken(rows: Sequence[T]) -> dict[str, int]:
            accepted = take(rows)
            self._daemon.figures.bulk[name] += accepted.rows
            return {"rows": accepted.rows, "duplicates": accepted.duplicates}

        return taken


def _reason(call: Call) -> str:
    return msgspec.json.decode(call.body, type=PauseRequest).reason if call.body else ""
