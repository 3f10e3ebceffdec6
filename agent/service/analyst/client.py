"""The daemon's side of its analysts, of which there are two.

One answers what the daemon itself needs: the next rule, checks, checkpoints. The other, which is
there only while somebody asks, answers what clients ask beyond that: plans, and families that
nobody decides by. So no question of a client holds up a refresh.
"""

from __future__ import annotations

import asyncio
import glob
import mmap
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from equipoise.agent.agent import Agent
from equipoise.agent.budget.cost import Basis
from equipoise.agent.planning.forecast import Forecast
from equipoise.agent.service.analyst.connection import (
    AnalystConnection,
    AnalystError,
    CrowdedError,
    Kind,
    WorkError,
)
from equipoise.agent.service.analyst.process import (
    Answer,
    Ask,
    Foresee,
    Foreseen,
    Plan,
    Planned,
    Reply,
    Save,
    State,
)
from equipoise.agent.service.analyst.reports import Report
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.store.batches import Buffer
from equipoise.store.opening import ServedStore
from equipoise.store.records import RuleRecord

T = TypeVar("T")

READ_SECONDS = 30.0
"""How long a client waits for a report that is not there yet."""
IDLE_SECONDS = 300.0
"""After so long without a question the analyst of clients ends."""
MOST_WAITING = 8
"""Questions of clients that wait for that analyst; more are refused."""
RESTS = 4.0
MOST_REST_SECONDS = 2.0
"""Reports that clients ask for follow each other after so many times what the last one took."""
STATE = ".state-"
"""Between the store's name and that of a state on its way."""
MAPPED_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """A state after the rows before `seq`."""

    seq: int
    state: Buffer


class AnalystClient(AnalystConnection):
    """Reports on the log of `agent`, which decides meanwhile.

    newest: the last report; forecast: the last forecast. open_bytes, seconds: as of
    `AnalystConnection`, each.
    """

    def __init__(
        self,
        agent: Agent,
        store: ServedStore,
        counters: Counters,
        log: Log,
        open_bytes: int | None = None,
        seconds: float = 120.0,
    ) -> None:
        off: dict[str, str] = {}  # what one process died or hung over, the other leaves out too
        super().__init__(agent, store, log, seconds, open_bytes, off, counters)
        for leftover in store.path.parent.glob(f"{glob.escape(store.path.name)}{STATE}*"):
            leftover.unlink(missing_ok=True)  # of a daemon that was killed
        self._seconds_of_refresh = counters.refresh_seconds
        self.newest: Report | None = None
        self.forecast: Forecast | None = None
        self.freezing = asyncio.Lock()
        """Held by whoever stores a rule: memory numbers them in the order of the store."""
        self._clients = AnalystConnection(agent, store, log, seconds, open_bytes, off)
        self._client_report: Report | None = None
        self._waiting_questions = 0
        self._idle: asyncio.TimerHandle | None = None
        self._paces = {wide: _Pace() for wide in (False, True)}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()

    @property
    def basis(self) -> Basis | None:
        """What the newest report values spent requests by, None before there is one."""
        return None if self.newest is None else self.newest.basis

    @property
    def hung(self) -> str | None:
        """What to say of an analyst that owes an answer for long; it is started again at the end of
        its time."""
        silent = self.silent_seconds
        if silent < self._patience / 2:  # reading a long log from its beginning may take long
            return None
        return (
            f"The analyst has not answered for {silent:.0f} seconds: nothing is estimated or "
            "checked, decisions go on under the last rule."
        )

    async def report(self, families: Sequence[str] = ()) -> Report:
        """A report on everything logged so far, with these families beside the configured one.

        Callers that come together share one. Raises AnalystError.
        """
        rows = self._agent.light.next_seq
        if families and not self._covers(self.newest, 0, families):
            return await self._report_to_client(families, rows)
        async with self.turn:
            newest = self.newest
            if newest is None or not self._covers(newest, rows, families):
                newest, seconds = _reported(await self.ask(Ask, []))
                self.newest = newest
                self._seconds_of_refresh.add(seconds)
            return newest

    async def read(self, families: Sequence[str] = ()) -> Report:
        """As `report`, for a client: at a pace that leaves the analyst to the daemon, and waiting
        for so long only. Raises AnalystError."""
        rows = self._agent.light.next_seq
        report = self._covering(rows, families)
        if report is not None:
            return report
        pace = self._paces[bool(families) and not self._covers(self.newest, 0, families)]

        async def paced() -> Report:
            async with pace.turn:
                report = self._covering(rows, families)
                if report is not None:
                    return report
                await asyncio.sleep(pace.next - time.monotonic())
                start = time.monotonic()
                try:
                    return await self.report(families)
                finally:
                    end = time.monotonic()
                    pace.next = end + min(RESTS * (end - start), MOST_REST_SECONDS)

        return await self._within(READ_SECONDS, paced())

    async def refresh(self) -> bool:
        """Act by the newest proposal from now on; whether that is another rule than before."""
        proposed = (await self.report()).rule
        agent = self._agent
        async with self.freezing:
            # An era may have begun meanwhile: a proposal from before it is out of date.
            if proposed.rule_id == agent.rule.rule_id or proposed.era != agent.rule.era:
                return False
            # SQLite may be busy with a transaction; the loop does not wait for it.
            await asyncio.to_thread(self._store.put, proposed)
            agent.controls.adopt(proposed)
            self.adopt(proposed)
        return True

    def forget(self) -> None:
        self._off.clear()
        super().forget()
        self._clients.forget()

    def adopt(self, record: RuleRecord) -> None:
        """Tell the analysts, when they are asked next, of a rule that the agent froze itself."""
        super().adopt(record)
        self._clients.adopt(record)

    async def checkpoint(self, at: float) -> int:
        """Save the analyst's state, which is ours, as a checkpoint; the rows it covers."""
        reply = await self.state()
        await asyncio.to_thread(self._store.checkpoint, reply.seq, reply.state, at)
        return reply.seq

    async def state(self) -> Saved:
        """The analyst's state, which is the daemon's after as many rows. Raises AnalystError."""
        # By a file, and mapped where it is large: it may be larger than memory should be.
        folder, name = self._store.path.parent, self._store.path.name
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}{STATE}") as file:
                async with self.turn:
                    reply = await self.ask(Save, file.name)
                assert isinstance(reply, State)
                if reply.size < MAPPED_BYTES:
                    return Saved(reply.seq, Path(file.name).read_bytes())
                mapped = mmap.mmap(file.fileno(), reply.size, access=mmap.ACCESS_READ)
                return Saved(reply.seq, mapped)
        except OSError as error:
            raise WorkError(f"no file for a state beside the store: {error}") from error

    async def plan(self, data: bytes, live: bool) -> Planned:
        """A plan from what the log says, or from numbers alone.

        data: JSON, as the planner takes it. Raises AnalystError, CrowdedError.
        """
        reply = await self._within(None, self._ask_for_client(Plan, data, live))
        assert isinstance(reply, Planned)
        return reply

    async def foresee(self) -> Forecast:
        """When it will be decided, by what is logged so far. Raises AnalystError."""
        async with self.turn:
            reply = await self.ask(Foresee)
        assert isinstance(reply, Foreseen)
        self.forecast = reply.forecast
        return reply.forecast

    async def read_forecast(self) -> Forecast:
        """As `foresee`, for a client that waits for so long only."""
        return await self._within(READ_SECONDS, self.foresee())

    def abandon(self) -> None:
        """Let nobody wait any longer: the daemon is about to stop."""
        self._stopping.set()

    async def close(self) -> None:
        """Let both processes end."""
        self.abandon()
        if self._idle is not None:
            self._idle.cancel()
        self._clients.release()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._clients.close()
        await super().close()

    def _covers(self, report: Report | None, rows: int, families: Sequence[str]) -> bool:
        """Whether a report says everything about these families, of so many rows."""
        return (
            report is not None
            and report.log_rows >= rows
            # An era that was opened since has no row yet, and still is another answer.
            and report.estimates.era == self._agent.rule.era
            # So is one without a family that cost an analyst its life since.
            and report.off == list(self._off)
            and report.facts.keys() >= set(families)
        )

    def _covering(self, rows: int, families: Sequence[str]) -> Report | None:
        reports = (self.newest, self._client_report)
        return next((each for each in reports if self._covers(each, rows, families)), None)

    async def _report_to_client(self, families: Sequence[str], rows: int) -> Report:
        async with self._clients.turn:
            report = self._client_report
            if report is None or not self._covers(report, rows, families):
                # Refreshes never compute what only a client wants to see.
                report, _ = _reported(await self._clients.ask(Ask, list(families)))
                self._client_report = report
                self._rest_later()
            return report

    async def _ask_for_client(self, kind: Kind, *more: Any) -> Reply:
        if self._waiting_questions >= MOST_WAITING:
            raise CrowdedError("too many questions wait for the analyst")
        self._waiting_questions += 1
        try:
            async with self._clients.turn:
                reply = await self._clients.ask(kind, *more)
                self._rest_later()
                return reply
        finally:
            self._waiting_questions -= 1

    def _rest_later(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._rest)

    def _rest(self) -> None:
        if not self._clients.turn.locked():
            self._clients.release()

    async def _within(self, seconds: float | None, work: Coroutine[Any, Any, T]) -> T:
        """What the work returns, unless it takes too long or the daemon stops; then it goes on by
        itself, for an exchange with the analyst that is cut off ends the analyst."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        stop = asyncio.get_running_loop().create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stop), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if task.done():
            return task.result()
        task.add_done_callback(_discard_result)
        raise AnalystError(
            "the daemon is stopping" if self._stopping.is_set() else "the analyst is still at work"
        )


def _reported(reply: Reply) -> tuple[Report, float]:
    """The report of an answer, and the seconds it took."""
    assert isinstance(reply, Answer)
    assert reply.report is not None
    return reply.report, reply.seconds


class _Pace:
    """Reports for clients: one at a time, not before `next`."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.next = 0.0


def _discard_result(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
