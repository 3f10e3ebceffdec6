"""The analyst: a process beside the daemon that follows its log and does the heavy reading.

It opens the store for reading, folds what the daemon logs, and on request estimates, certifies and
proposes the next rule. It holds no key and writes nothing but a state where the daemon asks for
one. That is the same fold of the same log, so what it computes is what the daemon would, and its
bytes are the daemon's checkpoint.

Messages, which come first here, are msgpack with a length in front, over standard input and
output. When the daemon dies, however it dies, its end of the pipe closes and the analyst leaves;
one that is in the middle of its work, or hangs, hears nothing of that and is ended (`_end_with`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO, TypeAlias

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.answers.answers import Answers
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.errors import PlanError
from equipoise.agent.inference.projection import load_solver
from equipoise.agent.planning import plan_request
from equipoise.agent.planning.forecast import Forecast, forecast, no_forecast
from equipoise.agent.service.analyst.reports import Report, report
from equipoise.store.opening import open_store
from equipoise.store.records import RuleRecord

HEADER = struct.Struct("<I")


class Open(msgspec.Struct, frozen=True, tag="open"):
    """The first message: what to follow. open_bytes: of memory for open decisions."""

    store: str
    config: str
    open_bytes: int | None = None


class _Following(msgspec.Struct, frozen=True):
    """rules: those adopted since the last message, in order; rules_in_all: how many the daemon
    knows, for a state that numbers them otherwise is of no use. off: families that are not to be
    computed, and why."""

    rules: list[RuleRecord]
    rules_in_all: int
    off: dict[str, str]


class Ask(_Following, frozen=True, tag="ask"):
    """Follow the log and report."""

    families: list[str]


class Save(_Following, frozen=True, tag="save"):
    """Follow the log and write the whole state to a file that is there."""

    path: str


class Plan(_Following, frozen=True, tag="plan"):
    """Follow the log and plan: from what the experiment knows, or from numbers alone. data: the
    fields of a request to the planner, as JSON."""

    data: bytes
    live: bool


class Foresee(_Following, frozen=True, tag="foresee"):
    """Follow the log and say when it will be decided."""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    """To `Open` (without a report) and `Ask`. seconds: what the work took."""

    seconds: float
    report: Report | None = None


class State(msgspec.Struct, frozen=True, tag="state"):
    """To `Save`: the state after the rows before `seq`, so many bytes, is in the file."""

    seq: int
    size: int


class Planned(msgspec.Struct, frozen=True, tag="planned"):
    """To `Plan`: the plan as JSON, or why there is none. fault: a failure that the asker did not
    cause; the analyst goes on."""

    body: bytes = b""
    field: str = ""
    limit: str = ""
    refused: str = ""
    fault: str = ""


class Foreseen(msgspec.Struct, frozen=True, tag="foreseen"):
    """To `Foresee`."""

    forecast: Forecast


class Doing(msgspec.Struct, frozen=True, tag="doing"):
    """Ahead of an answer: the family that is computed next, "" once all are. If the process dies
    or hangs now, it does so over that."""

    family: str


class Failure(msgspec.Struct, frozen=True, tag="failure"):
    """The work failed; the sentence is for the daemon's log."""

    sentence: str


Question: TypeAlias = Open | Ask | Save | Plan | Foresee
Reply: TypeAlias = Answer | State | Planned | Foreseen | Doing | Failure


def main() -> None:
    """Answer questions from standard input until it ends."""
    _end_with(os.getppid())
    # Whatever a library prints must not end up between two messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Decisions come first where both want one core, unless Linux groups processes by session.
    os.nice(10)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _serve(sys.stdin.buffer, answers)


_DEATH_SIGNAL = 1
"""PR_SET_PDEATHSIG of prctl."""
_WATCH_SECONDS = 1.0


def _end_with(daemon: int) -> None:
    """Have this process end when the daemon, its parent, is gone, whatever it does at the time."""
    if sys.platform == "linux":
        # The kernel ends it, even where it hangs in a library or is stopped.
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, signal.SIGKILL)
    threading.Thread(target=_watch, args=(daemon,), name="watch", daemon=True).start()


def _watch(daemon: int) -> None:
    while os.getppid() == daemon:
        time.sleep(_WATCH_SECONDS)
    os._exit(0)


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
    decode = msgspec.msgpack.Decoder(Question).decode
    agent: Agent | None = None

    def send(reply: Reply) -> None:
        body = msgspec.msgpack.encode(reply)
        try:
            answers.write(HEADER.pack(len(body)) + body)
            answers.flush()
        except BrokenPipeError:
            # Nobody is there to hear it, nor to be told so at the end of this process.
            os._exit(0)

    while True:
        header = questions.read(HEADER.size)
        if len(header) < HEADER.size:
            return
        size = HEADER.unpack(header)[0]
        text = questions.read(size)
        if len(text) < size:
            return  # the daemon died in the middle of it
        question = decode(text)
        start = time.perf_counter()
        reply: Reply
        try:
            if isinstance(question, Open):
                store = open_store(question.store, read_only=True)
                agent = Agent(
                    ExperimentConfig.from_json(question.config),
                    store,
                    None,
                    open_bytes=question.open_bytes,
                )
                agent.answers.before = lambda family: send(Doing(family))
                # Loaded now, and not in the first refresh in which a value has to move.
                load_solver()
                reply = Answer(time.perf_counter() - start)
            else:
                assert agent is not None
                agent.answers.off = question.off
                for record in question.rules:
                    agent.controls.adopt(record)
                rules = len(agent.state.rules)
                if rules != question.rules_in_all:
                    raise ValueError(f"{rules} rules, the daemon has {question.rules_in_all}")
                seq = agent.follow()
                if isinstance(question, Plan):
                    reply = _planned(question, agent)
                elif isinstance(question, Foresee):
                    # Its reports say from now on whether the plan slips by it.
                    newest = _forecast(agent.answers)
                    agent.answers.forecast = newest.foreseen
                    reply = Foreseen(newest)
                elif isinstance(question, Save):
                    with Path(question.path).open("r+b") as file:
                        reply = State(seq, agent.fold.write(file))
                else:
                    result = report(agent, question.families, time.time())
                    reply = Answer(time.perf_counter() - start, result)
        except Exception as error:  # the daemon goes on without this answer, and says why
            reply = Failure(f"{type(error).__name__}: {error}")
        send(reply)


def _planned(question: Plan, agent: Agent) -> Planned:
    try:
        answers = agent.answers if question.live else None
        plan = plan_request(msgspec.json.decode(question.data), answers)
        return Planned(msgspec.json.encode(plan))
    except PlanError as error:
        return Planned(field=error.field, limit=error.limit, refused=str(error))
    except Exception as error:  # one question must not cost all others their answers
        return Planned(fault=f"{type(error).__name__}: {error}")


def _forecast(answers: Answers) -> Forecast:
    """The forecast, or that there is none: the sums are read and not changed, so a failure leaves
    the analyst as it was."""
    now = time.time()
    try:
        return forecast(answers, now)
    except Exception as error:  # as for a plan
        return no_forecast(answers, now, f"the planner failed ({type(error).__name__}: {error})")


if __name__ == "__main__":
    main()
