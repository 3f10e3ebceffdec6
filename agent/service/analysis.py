"""The daemon's end of the analyst: asks, waits without blocking, starts it again when it dies."""

from __future__ import annotations

import asyncio
import contextlib
import glob
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.planning.forecast import Forecast
from equipoise.agent.service.analyst import (
    HEADER,
    Answer,
    Ask,
    Doing,
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
from equipoise.agent.service.restarts import ALARM, Restarts
from equipoise.store.batches import Buffer
from equipoise.store.errors import StoreError
from equipoise.store.journaled import JournaledStore
from equipoise.store.records import Alert, RuleRecord

Asked: TypeAlias = Ask | Save | Plan | Foresee

SETTLE_SECONDS = 5.0
"""How long a report may wait for SQLite to hold the newest rows; then it goes without them."""
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


STATE = ".state-"
"""Between the store's name and that of a state on its way."""
MAPPED_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Saved:
    """A state after the rows before `seq`."""

    seq: int
    state: Buffer


class AnalysisError(RuntimeError):
    """The analyst did not answer; what was known before stays in force."""


class Analysis:
    """Reports on the log of `agent`, which decides meanwhile.

    clock: seconds since the epoch, which reports, rules and forecasts are dated by.
    newest: the last report that was made; forecast: the last one of those. open_bytes: of memory
    that the analyst may keep open decisions in.
    """

    def __init__(
        self,
        agent: Agent,
        store: JournaledStore,
        figures: Figures,
        log: Log,
        clock: Callable[[], float],
        open_bytes: int | None = None,
    ) -> None:
        self._agent = agent
        self._open_bytes = open_bytes
        for left in store.path.parent.glob(f"{glob.escape(store.path.name)}{STATE}*"):
            left.unlink(missing_ok=True)  # of a daemon that was killed
        self._store = store
        self._figures = figures
        self._log = log
        self._clock = clock
        self._turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._adopted: list[RuleRecord] = []
        self._decode = msgspec.msgpack.Decoder(Reply).decode
        self._families: dict[str, None] = {}
        self._restarts = Restarts()
        self._doing = ""
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
        self._restarts = Restarts()
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

    async def state(self) -> Saved:
        """The analyst's state, which is the daemon's after as many rows. Raises AnalysisError."""
        # By a file, and mapped where it is large: it may be larger than memory should be.
        folder, name = self._store.path.parent, self._store.path.name
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{name}{STATE}") as file:
                async with self._turn:
                    reply = await self._ask(self._question(Save, file.name))
                assert isinstance(reply, State)
                if reply.size < MAPPED_BYTES:
                    return Saved(reply.seq, Path(file.name).read_bytes())
                mapped = mmap.mmap(file.fileno(), reply.size, access=mmap.ACCESS_READ)
                return Saved(reply.seq, mapped)
        except OSError as error:
            raise AnalysisError(f"no file for a state beside the store: {error}") from error

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
        asked = question()
        kind = str(type(asked).__struct_config__.tag)
        seconds = self._restarts.wait(kind)
        if seconds:
            raise AnalysisError(
                f"the analyst failed {self._restarts.failures(kind)} times in a row; it is asked "
                f"again in {seconds:.0f} s"
            )
        rows = self._agent.fold.next_seq
        await asyncio.to_thread(self._store.settle, rows, SETTLE_SECONDS)
        self._doing = ""
        try:
            process = await self._started()
            asked = question()
            reply = await self._exchange(process, asked)
        except AnalysisError as error:
            await self._failed(kind, str(error), self._doing)
            raise
        if isinstance(reply, Failure):
            self._figures.refresh_failures += 1
            await self._end(process)  # the next one begins with what is in the store
            await self._failed(kind, reply.sentence)
            raise AnalysisError(reply.sentence)
        if self._restarts.worked(kind):
            await self._tell("ok", "The analyst answers again.")
        del self._adopted[: len(asked.rules)]
        return reply

    async def _failed(self, kind: str, sentence: str, family: str = "") -> None:
        """Count a failure, say so, and raise an alarm where it is not the first."""
        off = set(self._restarts.off)
        count = self._restarts.failed(kind, family)
        wait = round(self._restarts.wait(kind), 1)
        self._log.warning(
            "analyst-failed",
            sentence=sentence,
            asked=kind,
            in_a_row=count,
            again_in_seconds=wait,
            families_off=sorted(self._restarts.off),
        )
        if count == ALARM or off != set(self._restarts.off):
            left = ", ".join(self._restarts.off)
            without = f" It goes on without {left}." if left else ""
            await self._tell(
                "alarm",
                f"The analyst failed {count} times in a row: {sentence}.{without} Decisions go on "
                f"under the last rule.",
            )

    async def _tell(self, status: str, sentence: str) -> None:
        """Keep an alert about the analyst itself, and log it."""
        self._log.warning("check", check="analyst", status=status)
        alert = Alert(at=time.time(), check="analyst", status=status, sentence=sentence)
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self._store.put, alert)

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
        question = Open(
            str(self._store.path),
            self._agent.config.to_json(),
            dict(self._restarts.off),
            self._open_bytes,
        )
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
            while True:
                header = await process.stdout.readexactly(HEADER.size)
                body = await process.stdout.readexactly(HEADER.unpack(header)[0])
                reply: Reply = self._decode(body)
                if not isinstance(reply, Doing):
                    return reply
                self._doing = reply.family
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            self._figures.refresh_failures += 1
            self._log.warning("analyst-died", over=self._doing)
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
