"""The daemon's end of the analyst: asks, waits without blocking, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.planning.forecast import Forecast
from equipoise.agent.service.analyst import (
    HEADER,
    Answer,
    Ask,
    Failure,
    Foresee,
    Foreseen,
    Open,
    Plan,
    Planned,
    Question,
    Reply,
    Save,
    State,
)
from equipoise.agent.service.figures import Figures
from equipoise.agent.service.logs import Log
from equipoise.agent.service.reports import Report
from equipoise.store.journaled import JournaledStore
from equipoise.store.records import RuleRecord

Asked: TypeAlias = Ask | Save | Plan | Foresee

SETTLE_SECONDS = 5.0
"""How long a report may wait for SQLite to hold the newest rows; then it goes without them."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class AnalysisError(RuntimeError):
    """The analyst did not answer; what was known before stays in force."""


class Analysis:
    """Reports on the log of `agent`, which decides meanwhile.

    clock: seconds since the epoch, which reports, rules and forecasts are dated by.
    newest: the last report that was made; forecast: the last one of those.
    """

    def __init__(
        self,
        agent: Agent,
        store: JournaledStore,
        figures: Figures,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        self._agent = agent
        self._store = store
        self._figures = figures
        self._log = log
        self._clock = clock
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._adopted: list[RuleRecord] = []
        self._decode = msgspec.msgpack.Decoder(Reply).decode
        self._families: dict[str, None] = {}
        self.newest: Report | None = None
        self.forecast: Forecast | None = None

    async def report(self, families: Sequence[str] = ()) -> Report:
        """A report on everything logged so far, with these families beside the configured one.

        Callers that come together share one. Raises AnalysisError.
        """
        self._families.update(dict.fromkeys(families))
        async with self._turn:
            rows = self._agent.fold.next_seq
            newest = self.newest
            if (
                newest is not None
                and newest.log_rows >= rows
                # An era that was opened since has no row yet, and still is another answer.
                and newest.estimates.era == self._agent.rule.era
                and newest.recommendations.keys() >= set(families)
            ):
                return newest
            reply = await self._ask(self._question(Ask, list(self._families), self._clock()))
            assert isinstance(reply, Answer)
            assert reply.report is not None
            self.newest = reply.report
            self._figures.refresh_seconds.add(reply.seconds)
            return reply.report

    async def refresh(self) -> bool:
        """Act by the newest proposal from now on; whether that is another rule than before."""
        proposed = (await self.report()).rule
        agent = self._agent
        if proposed.rule_id == agent.rule.rule_id or proposed.era != agent.rule.era:
            return False
        # SQLite may be busy with a transaction; the loop does not wait for it.
        await asyncio.to_thread(self._store.put, proposed)
        agent.learn(proposed)
        self._adopted.append(proposed)
        return True

    def forget(self) -> None:
        """Let the analyst go that knows an older configuration; the next report starts another."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def adopt(self, record: RuleRecord) -> None:
        """Tell the analyst, when it is asked next, of a rule that the agent froze itself."""
        self._adopted.append(record)

    async def checkpoint(self, at: float) -> int:
        """Save the analyst's state, which is ours, as a checkpoint; the rows it covers."""
        reply = await self.state()
        await asyncio.to_thread(self._store.checkpoint, reply.seq, reply.state, at)
        return reply.seq

    async def state(self) -> State:
        """The analyst's state, which is the daemon's after as many rows. Raises AnalysisError."""
        async with self._turn:
            reply = await self._ask(self._question(Save))
        assert isinstance(reply, State)
        return reply

    async def plan(self, data: bytes, live: bool) -> Planned:
        """A plan from what the log says, or from numbers alone.

        data: JSON, as the planner takes it. Raises AnalysisError.
        """
        async with self._turn:
            reply = await self._ask(self._question(Plan, data, live))
        assert isinstance(reply, Planned)
        return reply

    async def foresee(self) -> Forecast:
        """When it will be decided, by what is logged so far. Raises AnalysisError."""
        async with self._turn:
            reply = await self._ask(self._question(Foresee, self._clock()))
        assert isinstance(reply, Foreseen)
        self.forecast = reply.forecast
        return reply.forecast

    async def start(self) -> None:
        """Start the process; the first report would do it too."""
        async with self._turn:
            await self._started()

    async def close(self) -> None:
        """Let the process end."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), 2.0)
                return
            process.kill()
            await process.wait()

    def _question(self, kind: Callable[..., Asked], *more: object) -> Callable[[], Asked]:
        """A question with the rules to tell of when it is sent.

        A copy: while the analyst works, the list may grow by a rule that it does not hear of.
        """
        return lambda: kind(list(self._adopted), len(self._agent.rules), *more)

    async def _ask(self, question: Callable[[], Asked]) -> Reply:
        """Send a question once everything logged can be read, and wait for the reply."""
        rows = self._agent.fold.next_seq
        await asyncio.to_thread(self._store.settle, rows, SETTLE_SECONDS)
        process = await self._started()
        asked = question()
        reply = await self._exchange(process, asked)
        if isinstance(reply, Failure):
            self._figures.refresh_failures += 1
            self._log.warning("analyst-failed", sentence=reply.sentence)
            await self._end(process)  # the next one begins with what is in the store
            raise AnalysisError(reply.sentence)
        del self._adopted[: len(asked.rules)]
        return reply

    async def _started(self) -> asyncio.subprocess.Process:
        process = self._process
        if process is not None and process.returncode is None:
            return process
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "equipoise.agent.service.analyst",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            # Signals of the terminal are for the daemon, which ends the analyst itself.
            start_new_session=True,
        )
        # It reads every rule that is in the store by now.
        self._adopted.clear()
        self._process = process
        question = Open(str(self._store.path), self._agent.config.to_json())
        reply = await self._exchange(process, question)
        if isinstance(reply, Failure):
            await self.close()
            raise AnalysisError(reply.sentence)
        return process

    async def _exchange(self, process: asyncio.subprocess.Process, question: Question) -> Reply:
        assert process.stdin is not None
        assert process.stdout is not None
        body = msgspec.msgpack.encode(question)
        try:
            process.stdin.write(HEADER.pack(len(body)) + body)
            await process.stdin.drain()
            header = await process.stdout.readexactly(HEADER.size)
            reply: Reply = self._decode(await process.stdout.readexactly(HEADER.unpack(header)[0]))
            return reply
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            self._figures.refresh_failures += 1
            self._log.warning("analyst-died")
            await self._end(process)
            raise AnalysisError("the analyst's process died; it is started again") from error
        except BaseException:
            # Cancelled between question and answer: the next question would get this answer.
            await self._end(process)
            raise

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        self._process = None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
