"""The analyst: a process beside the daemon that follows its log and does the heavy reading.

It opens the store for reading, folds what the daemon logs, and on request estimates, certifies and
proposes the next rule. It holds no key and writes nothing but a state where the daemon asks for
one. That is the same fold of the same log, so what it computes is what the daemon would, and its
bytes are the daemon's checkpoint.

Messages are msgpack with a length in front, over standard input and output. When the daemon dies,
however it dies, its end of the pipe closes and the analyst leaves.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import msgspec

from equipoise.agent.answers.answers import Answers
from equipoise.agent.planning.forecast import Forecast, forecast, no_forecast
from equipoise.agent.service.analyst.messages import (
    HEADER,
    Answer,
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
from equipoise.agent.service.analyst.reports import report

if TYPE_CHECKING:
    from equipoise.agent.agent import Agent


def main() -> None:
    """Answer questions from standard input until it ends."""
    # Whatever a library prints must not end up between two messages.
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Decisions come first where both want one core: whoever waits for one wakes up at once.
    os.nice(10)
    if hasattr(os, "SCHED_IDLE"):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    _serve(sys.stdin.buffer, answers)


def _serve(questions: BinaryIO, answers: BinaryIO) -> None:
    from equipoise.agent.agent import Agent
    from equipoise.agent.config import ExperimentConfig
    from equipoise.store.journal.store import open_store

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
                reply = Answer(time.perf_counter() - start)
            else:
                assert agent is not None
                agent.answers.off = question.off
                for record in question.rules:
                    agent.controls.adopt(record)
                if len(agent.state.rules) != question.known:
                    raise ValueError(
                        f"{len(agent.state.rules)} rules, the daemon has {question.known}"
                    )
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
                    made = report(agent, question.families, time.time())
                    reply = Answer(time.perf_counter() - start, made)
        except Exception as error:  # the daemon goes on without this answer, and says why
            reply = Failure(f"{type(error).__name__}: {error}")
        send(reply)


def _planned(question: Plan, agent: Agent) -> Planned:
    from equipoise.agent.errors import PlanError
    from equipoise.agent.planning import plan_request

    try:
        made = plan_request(
            msgspec.json.decode(question.data), agent.answers if question.live else None
        )
        return Planned(msgspec.json.encode(made))
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
