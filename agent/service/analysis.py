"""The daemon's end of the analyst: asks, waits without blocking, starts it again when it dies.

There are two of them. One answers what the daemon itself needs: the next rule, checks, checkpoints.
The other, which is there only while somebody asks, answers what clients ask beyond that: plans, and
families that nobody decides by. So no question of a client holds up a refresh.
"""

from __future__ import annotations

import asyncio
import contextlib
import glob
import mmap
import os
import sys
import tempfile
import time
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

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
T = TypeVar("T")

SETTLE_SECONDS = 5.0
"""How long a report may wait for SQLite to hold the newest rows; then it goes without them."""
OPEN_SECONDS = 3600.0
"""How long an analyst may take to read a log from its beginning."""
READ_SECONDS = 30.0
"""How long a client waits for a report that is not there yet."""
CLOSE_SECONDS = 2.0
IDLE_SECONDS = 300.0
"""After so long without a question the analyst of clients ends."""
MOST_WAITING = 8
"""Questions of clients that wait for that analyst; more are refused."""
RESTS = 4.0
MOST_REST_SECONDS = 2.0
"""Reports that clients ask for follow each other after so many times what the last one took."""
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


class CrowdedError(AnalysisError):
    """Too many ask at once."""


class Analyst:
    """One process: who asks waits for `turn`, then for the answer.

    seconds: how long a question may take. open_bytes: of memory that it may keep open decisions in.
    figures: where failures are counted, and alerts kept; None for nowhere.
    """

    def __init__(
        self,
        agent: Agent,
        store: JournaledStore,
        log: Log,
        seconds: float,
        open_bytes: int | None = None,
        figures: Figures | None = None,
    ) -> None:
        self._agent = agent
        self._store = store
        self._log = log
        self._seconds = seconds
        self._open_bytes = open_bytes
        self._counted = figures
        self._restarts = Restarts()
        self._doing = ""
        self.turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._adopted: list[RuleRecord] = []
        self._asked_at: float | None = None
        self._patience = seconds
        self._decode = msgspec.msgpack.Decoder(Reply).decode

    @property
    def silent_seconds(self) -> float:
        """For how long it has owed an answer."""
        return 0.0 if self._asked_at is None else time.monotonic() - self._asked_at

    def forget(self) -> None:
        """Let the process go, as one that knows an older configuration; the next question starts
        another."""
        process, self._process = self._process, None
        self._restarts = Restarts()
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    def adopt(self, record: RuleRecord) -> None:
        """Tell the analyst, when it is asked next, of a rule that it does not know."""
        if self._process is not None:
            self._adopted.append(record)

    async def start(self) -> None:
        """Start the process; the first question would do it too."""
        async with self.turn:
            await self._started()

    async def close(self) -> None:
        """Let the process end."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(process.wait(), CLOSE_SECONDS)
                return
            process.kill()
            await process.wait()

    async def ask(self, kind: type[Asked], *more: Any) -> Reply:
        """Send a question once everything logged can be read, and wait for the reply.

        To be called in one's turn. Raises AnalysisError.
        """
        tag = str(kind.__struct_config__.tag)
        seconds = self._restarts.wait(tag)
        if seconds:
            raise AnalysisError(
                f"the analyst failed {self._restarts.failures(tag)} times in a row; it is asked "
                f"again in {seconds:.0f} s"
            )
        rows = self._agent.fold.next_seq
        await asyncio.to_thread(self._store.settle, rows, SETTLE_SECONDS)
        self._doing = ""
        try:
            process = await self._started()
            # A copy: while the analyst works, the list may grow by a rule that it does not hear of.
            asked = kind(list(self._adopted), len(self._agent.rules), *more)
            reply = await self._exchange(process, asked, self._seconds)
        except AnalysisError as error:
            await self._failed(tag, str(error), self._doing)
            raise
        if isinstance(reply, Failure):
            self._count()
            await self._end(process)  # the next one begins with what is in the store
            await self._failed(tag, reply.sentence)
            raise AnalysisError(reply.sentence)
        if self._restarts.worked(tag):
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
        """Keep an alert about the analyst itself, and log it; that of clients alarms nobody."""
        if self._counted is None:
            return
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
        reply = await self._exchange(process, question, max(self._seconds, OPEN_SECONDS))
        if isinstance(reply, Failure):
            await self.close()
            raise AnalysisError(reply.sentence)
        return process

    async def _exchange(
        self, process: asyncio.subprocess.Process, question: Question, seconds: float
    ) -> Reply:
        assert process.stdin is not None
        assert process.stdout is not None
        body = msgspec.msgpack.encode(question)
        self._asked_at, self._patience = time.monotonic(), seconds
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(HEADER.pack(len(body)) + body)
                await process.stdin.drain()
                while True:
                    header = await process.stdout.readexactly(HEADER.size)
                    body = await process.stdout.readexactly(HEADER.unpack(header)[0])
                    reply: Reply = self._decode(body)
                    if not isinstance(reply, Doing):
                        return reply
                    self._doing = reply.family
        except TimeoutError:  # before OSError, of which it is one
            self._count()
            self._log.warning("analyst-hung", seconds=seconds, over=self._doing)
            await self._end(process)
            raise AnalysisError(
                f"the analyst took longer than {seconds:g} seconds; it is started again"
            ) from None
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            self._count()
            self._log.warning("analyst-died", over=self._doing)
            await self._end(process)
            raise AnalysisError("the analyst's process died; it is started again") from error
        except BaseException:
            # Cancelled between question and answer: the next question would get this answer.
            await self._end(process)
            raise
        finally:
            self._asked_at = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if self._process is process:
            self._process = None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()

    def _count(self) -> None:
        if self._counted is not None:
            self._counted.refresh_failures += 1


class Analysis(Analyst):
    """Reports on the log of `agent`, which decides meanwhile.

    newest: the last report that was made; forecast: the last one of those. open_bytes, seconds: as
    of `Analyst`, each.
    """

    def __init__(
        self,
        agent: Agent,
        store: JournaledStore,
        figures: Figures,
        log: Log,
        open_bytes: int | None = None,
        seconds: float = 120.0,
    ) -> None:
        super().__init__(agent, store, log, seconds, open_bytes, figures)
        for left in store.path.parent.glob(f"{glob.escape(store.path.name)}{STATE}*"):
            left.unlink(missing_ok=True)  # of a daemon that was killed
        self._figures = figures
        self.newest: Report | None = None
        self.forecast: Forecast | None = None
        self._clients = Analyst(agent, store, log, seconds, open_bytes)
        self._wide: Report | None = None
        self._waiting = 0
        self._idle: asyncio.TimerHandle | None = None
        self._paces = {wide: _Pace() for wide in (False, True)}
        self._reads: set[asyncio.Task[Any]] = set()
        self._stopping = asyncio.Event()

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

        Callers that come together share one. Raises AnalysisError.
        """
        rows = self._agent.fold.next_seq
        if families and not self._holds(self.newest, 0, families):
            return await self._wider(families, rows)
        async with self.turn:
            if self._holds(self.newest, rows, families):
                assert self.newest is not None
                return self.newest
            reply = await self.ask(Ask, [])
            assert isinstance(reply, Answer)
            assert reply.report is not None
            self.newest = reply.report
            self._figures.refresh_seconds.add(reply.seconds)
            return reply.report

    async def read(self, families: Sequence[str] = ()) -> Report:
        """As `report`, for a client: at a pace that leaves the analyst to the daemon, and waiting
        for so long only. Raises AnalysisError."""
        rows = self._agent.fold.next_seq
        for known in (self.newest, self._wide):
            if self._holds(known, rows, families):
                assert known is not None
                return known

        pace = self._paces[bool(families) and not self._holds(self.newest, 0, families)]

        async def paced() -> Report:
            async with pace.turn:
                for known in (self.newest, self._wide):
                    if self._holds(known, rows, families):
                        assert known is not None
                        return known
                await asyncio.sleep(pace.next - time.monotonic())
                start = time.monotonic()
                try:
                    return await self.report(families)
                finally:
                    end = time.monotonic()
                    pace.next = end + min(RESTS * (end - start), MOST_REST_SECONDS)

        return await self._awaited(paced(), READ_SECONDS)

    async def refresh(self) -> bool:
        """Act by the newest proposal from now on; whether that is another rule than before."""
        proposed = (await self.report()).rule
        agent = self._agent
        if proposed.rule_id == agent.rule.rule_id or proposed.era != agent.rule.era:
            return False
        # SQLite may be busy with a transaction; the loop does not wait for it.
        await asyncio.to_thread(self._store.put, proposed)
        agent.learn(proposed)
        self.adopt(proposed)
        return True

    def forget(self) -> None:
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
        """The analyst's state, which is the daemon's after as many rows. Raises AnalysisError."""
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
            raise AnalysisError(f"no file for a state beside the store: {error}") from error

    async def plan(self, data: bytes, live: bool) -> Planned:
        """A plan from what the log says, or from numbers alone.

        data: JSON, as the planner takes it. Raises AnalysisError, CrowdedError.
        """
        reply = await self._awaited(self._of_clients(Plan, data, live), None)
        assert isinstance(reply, Planned)
        return reply

    async def foresee(self) -> Forecast:
        """When it will be decided, by what is logged so far. Raises AnalysisError."""
        async with self.turn:
            reply = await self.ask(Foresee)
        assert isinstance(reply, Foreseen)
        self.forecast = reply.forecast
        return reply.forecast

    async def read_forecast(self) -> Forecast:
        """As `foresee`, for a client that waits for so long only."""
        return await self._awaited(self.foresee(), READ_SECONDS)

    def abandon(self) -> None:
        """Let nobody wait any longer: the daemon is about to stop."""
        self._stopping.set()

    async def close(self) -> None:
        """Let both processes end."""
        self.abandon()
        if self._idle is not None:
            self._idle.cancel()
        self._clients.forget()
        for task in self._reads:
            task.cancel()
        await asyncio.gather(*self._reads, return_exceptions=True)
        await self._clients.close()
        await super().close()

    def _holds(self, known: Report | None, rows: int, families: Sequence[str]) -> bool:
        """Whether a report says all that is asked, of so many rows."""
        return (
            known is not None
            and known.log_rows >= rows
            # An era that was opened since has no row yet, and still is another answer.
            and known.estimates.era == self._agent.rule.era
            and known.recommendations.keys() >= set(families)
        )

    async def _wider(self, families: Sequence[str], rows: int) -> Report:
        async with self._clients.turn:
            if self._holds(self._wide, rows, families):
                assert self._wide is not None
                return self._wide
            # Refreshes never compute what only a client wants to see.
            reply = await self._clients.ask(Ask, list(families))
            assert isinstance(reply, Answer)
            assert reply.report is not None
            self._wide = reply.report
            self._rest_later()
            return reply.report

    async def _of_clients(self, kind: type[Asked], *more: Any) -> Reply:
        if self._waiting >= MOST_WAITING:
            raise CrowdedError("too many questions wait for the analyst")
        self._waiting += 1
        try:
            async with self._clients.turn:
                reply = await self._clients.ask(kind, *more)
                self._rest_later()
                return reply
        finally:
            self._waiting -= 1

    def _rest_later(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._rest)

    def _rest(self) -> None:
        if not self._clients.turn.locked():
            self._clients.forget()

    async def _awaited(self, work: Coroutine[Any, Any, T], seconds: float | None) -> T:
        """What the work returns, unless it takes too long or the daemon stops; then it goes on by
        itself, for an exchange with the analyst that is cut off ends the analyst."""
        task = asyncio.get_running_loop().create_task(work)
        self._reads.add(task)
        task.add_done_callback(self._reads.discard)
        stop = asyncio.get_running_loop().create_task(self._stopping.wait())
        try:
            await asyncio.wait((task, stop), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stop.cancel()
        if task.done():
            return task.result()
        task.add_done_callback(_heard)
        raise AnalysisError(
            "the daemon is stopping" if self._stopping.is_set() else "the analyst is still at work"
        )


class _Pace:
    """Who may have a report made now: one at a time, not before `next`."""

    def __init__(self) -> None:
        self.turn = asyncio.Lock()
        self.next = 0.0


def _heard(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
