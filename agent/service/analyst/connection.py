"""One analyst's process from the daemon's side: started, asked in turn, ended, started again."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.service.analyst.process import (
    HEADER,
    Ask,
    Doing,
    Failure,
    Foresee,
    Open,
    Plan,
    Question,
    Reply,
    Save,
)
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.store.errors import StoreError
from equipoise.store.opening import ServedStore
from equipoise.store.records import Alert, RuleRecord
from equipoise.store.words import plural

LONGEST_SECONDS = 300.0
"""Between two tries of something that always fails."""
DEATHS = 2
"""In a row over one family, after which that family is left out."""
ALARM = 3
"""Failures in a row that make an alarm."""


class Restarts:
    """Failures in a row, by kind of question: one that fails must not keep the others waiting.

    The first is tried again at once, each later one after twice as long. off: families the process
    died or hung over, with the reason; they stay off until the daemon or the configuration starts
    anew. One that is given is added to: two processes leave out the same.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, off: dict[str, str] | None = None
    ) -> None:
        self._clock = clock
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._deaths: dict[str, list[str]] = {}
        self.off: dict[str, str] = {} if off is None else off

    def wait(self, kind: str) -> float:
        """Seconds until this kind of question may be asked again."""
        return max(0.0, self._until.get(kind, 0.0) - self._clock())

    def failures(self, kind: str) -> int:
        """Failures in a row of this kind of question."""
        return self._failures.get(kind, 0)

    def failed(self, kind: str, family: str = "", how: str = "died") -> int:
        """Count a failure; how many there are in a row. family: being computed when the process
        died, or hung and was ended."""
        count = self._failures[kind] = self.failures(kind) + 1
        if count > 1:
            seconds = min(2.0 ** min(count - 2, 20), LONGEST_SECONDS)
            self._until[kind] = self._clock() + seconds
        if family:
            deaths = self._deaths.setdefault(family, [])
            deaths.append(how)
            if len(deaths) >= DEATHS and family not in self.off:
                ends = " or ".join(sorted(set(deaths)))
                self.off[family] = f"the analyst {ends} {DEATHS} times in a row over it"
                # Without it the next try may well succeed.
                self._until.pop(kind, None)
        return count

    def worked(self, kind: str) -> bool:
        """Forget the failures of a kind; whether an alarm stood."""
        stood = self._failures.pop(kind, 0) >= ALARM
        self._until.pop(kind, None)
        if kind == "ask":
            self._deaths.clear()
        return stood


Kind: TypeAlias = type[Ask] | type[Save] | type[Plan] | type[Foresee]
T = TypeVar("T")

SETTLE_SECONDS = 5.0
"""How long a question may wait for SQLite to hold the newest rows; then it goes without them."""
OPEN_SECONDS = 3600.0
"""How long an analyst may take to read a log from its beginning."""
CLOSE_SECONDS = 2.0
_ONE_THREAD = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class AnalystError(RuntimeError):
    """The analyst did not answer; what was known before stays in force."""


class CrowdedError(AnalystError):
    """Too many ask at once."""


class WorkError(AnalystError):
    """The work itself failed. The sentence is for the log: it may hold what no client should see,
    such as paths."""


class _LostError(AnalystError):
    """The process gave no answer. how: died or hung."""

    def __init__(self, how: str, sentence: str) -> None:
        super().__init__(sentence)
        self.how = how


class AnalystConnection:
    """One process: who asks waits for `turn`, then for the answer.

    seconds: how long a question may take. open_bytes: of memory that it may keep open decisions
    in. off: families that are not to be computed, and why; it grows by those the process died or
    hung over, and every question says what is in it. counters: where failures are counted, None for
    an analyst of clients alone.
    """

    def __init__(
        self,
        agent: Agent,
        store: ServedStore,
        log: Log,
        seconds: float,
        open_bytes: int | None,
        off: dict[str, str],
        counters: Counters | None = None,
    ) -> None:
        self._agent = agent
        self._store = store
        self._log = log
        self._seconds = seconds
        self._open_bytes = open_bytes
        self._off = off
        self._counters = counters
        self.turn = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None
        self._ending: set[asyncio.Future[int]] = set()
        self._adopted: list[RuleRecord] = []
        self._question_at: float | None = None
        self._patience = seconds
        self._doing = ""
        self._restarts = Restarts(off=off)
        self._decode = msgspec.msgpack.Decoder(Reply).decode

    @property
    def silent_seconds(self) -> float:
        """For how long it has owed an answer."""
        return 0.0 if self._question_at is None else time.monotonic() - self._question_at

    def release(self) -> None:
        """Let the process go; the next question starts another."""
        process, self._process = self._process, None
        if process is not None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            ending = asyncio.ensure_future(process.wait())
            self._ending.add(ending)
            ending.add_done_callback(self._ending.discard)

    def forget(self) -> None:
        """Let the process go that knows an older configuration, with what it failed at."""
        self.release()
        self._restarts = Restarts(off=self._off)

    def adopt(self, record: RuleRecord) -> None:
        """Tell the analyst, when it is asked next, of a rule that it does not know."""
        if self._process is not None:
            self._adopted.append(record)

    async def start(self) -> None:
        """Start the process; the first question would do it too. Raises AnalystError."""
        async with self.turn:
            await self._attempt("open", self._started)

    async def close(self) -> None:
        """Let the process end, and wait for those that were let go."""
        process, self._process = self._process, None
        if process is not None:
            assert process.stdin is not None
            process.stdin.close()
            try:
                await asyncio.wait_for(process.wait(), CLOSE_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        await asyncio.gather(*self._ending)

    async def ask(self, kind: Kind, *more: Any) -> Reply:
        """Send a question once everything logged can be read, and wait for the reply.

        To be called in one's turn. Raises AnalystError, at once where the same kind of question
        has failed lately.
        """

        async def answered() -> Reply:
            rows = self._agent.light.next_seq
            await asyncio.to_thread(self._store.settle, rows, SETTLE_SECONDS)
            process = await self._started()
            # Copies: while the analyst works, they may grow by what it does not hear of.
            question = kind(
                list(self._adopted), len(self._agent.state.rules), dict(self._off), *more
            )
            reply = await self._exchange(process, question, self._seconds)
            if isinstance(reply, Failure):
                await self._end(process)  # the next one begins with what is in the store
                raise WorkError(reply.sentence)
            del self._adopted[: len(question.rules)]
            return reply

        return await self._attempt(str(kind.__struct_config__.tag), answered)

    async def _attempt(self, kind: str, work: Callable[[], Awaitable[T]]) -> T:
        """What the work makes, unless it failed lately; how it ends is counted."""
        restarts = self._restarts
        seconds = restarts.wait(kind)
        if seconds:
            raise AnalystError(
                f"the analyst failed {plural(restarts.failures(kind), 'time')} in a row; it is"
                f" asked again in {seconds:.0f} s"
            )
        self._doing = ""
        try:
            result = await work()
        except AnalystError as error:
            # One that was let go meanwhile, for another configuration, has not failed.
            if restarts is self._restarts:
                await self._failed(kind, error)
            raise
        if restarts.worked(kind) and self._counters is not None:
            await self._alert("ok", "The analyst answers again.")
        return result

    async def _failed(self, kind: str, error: AnalystError) -> None:
        """Count a failure, say so, and raise an alarm where it is not the first."""
        if self._counters is not None:
            self._counters.refresh_failures += 1
        before = set(self._off)
        if isinstance(error, _LostError):
            count = self._restarts.failed(kind, self._doing, error.how)
        else:
            count = self._restarts.failed(kind)
        self._log.warning(
            "analyst-failed",
            sentence=str(error),
            asked=kind,
            clients=self._counters is None,
            in_a_row=count,
            again_in_seconds=round(self._restarts.wait(kind), 1),
            families_off=sorted(self._off),
        )
        # A question of a client that fails alarms nobody, unless it costs the daemon a family.
        alarms = count == ALARM and self._counters is not None
        if alarms or before != set(self._off):
            families = ", ".join(self._off)
            without = f" It goes on without {families}." if families else ""
            await self._alert(
                "alarm",
                f"The analyst failed {plural(count, 'time')} in a row: {error}.{without} Decisions"
                " go on under the last rule.",
            )

    async def _alert(self, status: str, sentence: str) -> None:
        """Keep an alert about the analyst itself, and log it."""
        self._log.warning("check", check="analyst", status=status)
        alert = Alert(at=time.time(), check="analyst", status=status, sentence=sentence)
        with contextlib.suppress(StoreError):
            await asyncio.to_thread(self._store.put, alert)

    async def _started(self) -> asyncio.subprocess.Process:
        process = self._process
        if process is not None and process.returncode is None:
            return process
        if self._store.displaced is not None:
            # A new process reads by name, which would be another file, or none.
            raise AnalystError("the files of the store are not in their places")
        environment = {**os.environ, **dict.fromkeys(_ONE_THREAD, "1")}
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "equipoise.agent.service.analyst.process",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            env=environment,
            # Signals of the terminal are for the daemon, which ends the analyst itself.
            start_new_session=True,
        )
        # It reads every rule that is in the store by now.
        self._adopted.clear()
        self._process = process
        question = Open(self._store.where, self._agent.config.to_json(), self._open_bytes)
        reply = await self._exchange(process, question, max(self._seconds, OPEN_SECONDS))
        if isinstance(reply, Failure):
            await self._end(process)
            raise WorkError(reply.sentence)
        return process

    async def _exchange(
        self, process: asyncio.subprocess.Process, question: Question, seconds: float
    ) -> Reply:
        """The answer to a question, within so many seconds in all, whatever it says ahead of it."""
        assert process.stdin is not None
        assert process.stdout is not None
        body = msgspec.msgpack.encode(question)
        self._question_at, self._patience = time.monotonic(), seconds
        try:
            async with asyncio.timeout(seconds):
                process.stdin.write(HEADER.pack(len(body)) + body)
                await process.stdin.drain()
                while True:
                    header = await process.stdout.readexactly(HEADER.size)
                    length = HEADER.unpack(header)[0]
                    reply: Reply = self._decode(await process.stdout.readexactly(length))
                    if not isinstance(reply, Doing):
                        return reply
                    self._doing = reply.family
        except TimeoutError:  # before OSError, of which it is one
            self._log.warning("analyst-hung", seconds=seconds, over=self._doing)
            await self._end(process)
            raise _LostError(
                "hung", f"the analyst took longer than {seconds:g} seconds; it is started again"
            ) from None
        except (OSError, asyncio.IncompleteReadError, msgspec.MsgspecError) as error:
            if self._process is process:  # else it was let go
                self._log.warning("analyst-died", over=self._doing)
            await self._end(process)
            raise _LostError("died", "the analyst's process died; it is started again") from error
        except BaseException:
            # Cancelled between question and answer: the next question would get this answer.
            await self._end(process)
            raise
        finally:
            self._question_at = None

    async def _end(self, process: asyncio.subprocess.Process) -> None:
        if self._process is process:
            self._process = None
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
