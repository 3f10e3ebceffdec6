"""What may stop the daemon from randomizing: mode, pause, kill switch, a failing store; its clock.

The kill switch needs neither the store nor HTTP: `touch <store>.kill` is enough, and removing the
file is the way back. The file is looked for a few times a second, not at every request. Where no
file can be made, SIGUSR1 turns the switch on and SIGUSR2 off again.

The pause, which checks may press too, and a changed budget are kept in the store, so a restart
does not forget them.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.answers.statements import Situation, activity_sentence
from equipoise.agent.answers.status import Activity, Outlook
from equipoise.agent.budget.cost import Basis, spent_so_far
from equipoise.agent.controls import BUDGET
from equipoise.agent.service.api.schema import (
    BudgetAnswer,
    LimitAnswer,
    Mode,
    ModeAnswer,
    PassThrough,
)
from equipoise.store.errors import FullStoreError, ReadOnlyStoreError, SlowStoreError, StoreError
from equipoise.store.records import Control

SLEW = 0.05
"""Share of the time that passes by which the agent's clock may run fast or slow to come back to the
machine's: a window is never more than a twentieth shorter or longer than declared."""
STEP_SECONDS = 1.0
"""What the machine's clock must move by, against the time that passed, to be called a step."""

APART_SECONDS = 60.0
"""Clients date requests by clocks of their own; by less than this they say nothing of ours."""


def wall_time() -> float:
    """The machine's clock, seconds since the epoch: it can be set at any moment."""
    return time.time()


class Clock:
    """Seconds since the epoch: the machine's clock at the start plus time that has passed since.

    Someone who sets the machine's clock then moves no outcome window: a jump back would keep
    decisions waiting, a jump forward would expire all of them at once. What the two clocks differ
    by is made up for slowly (`adjust`), so that dates come right again without a restart.

    wall: the machine's clock; passed: one that nobody can set.
    """

    def __init__(
        self,
        wall: Callable[[], float] = wall_time,
        passed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._passed = wall, passed
        self._adjusted = passed()
        self._machine = self._agent = wall() - self._adjusted

    def __call__(self) -> float:
        return self._agent + self._passed()

    @property
    def off(self) -> float:
        """Seconds by which the machine's clock is ahead of this one."""
        return self._wall() - self()

    def adjust(self) -> float:
        """Come closer to the machine's clock; by how many seconds it was set since the last call,
        0.0 where it was not. To be called several times a second."""
        now = self._passed()
        machine = self._wall() - now
        most = SLEW * (now - self._adjusted)
        self._adjusted = now
        self._agent += min(max(machine - self._agent, -most), most)
        moved = machine - self._machine
        if abs(moved) < STEP_SECONDS:
            return 0.0
        self._machine = machine
        return moved


POLL_SECONDS = 0.1


class KillSwitch:
    """on: whether the file was there at the last poll, or the signal said so."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.on = False
        self._signalled = False
        self.poll()

    def signal(self, on: bool) -> None:
        """What a signal says holds until another one, whatever file there is."""
        self._signalled = on

    def poll(self) -> bool:
        """Look for the file; whether the switch changed."""
        # A path that cannot be looked at (no permission, a dead mount) stops nothing.
        before, self.on = self.on, self._signalled or os.path.lexists(self.path)
        return self.on is not before


RETRY_SECONDS = 0.5


class Breaker:
    """After a failure nothing is tried for half a second: requests are passed through at once.

    A store that is slow to refuse (a locked database, a hanging disk) would otherwise make every
    request slow. reason: why requests are passed through now, None while the store works.
    """

    def __init__(self) -> None:
        self.reason: PassThrough | None = None
        self._until = 0.0

    @property
    def open(self) -> bool:
        """Whether to pass through without trying."""
        return self.reason is not None and time.monotonic() < self._until

    def trip(self, error: StoreError) -> PassThrough:
        """Remember a failure; the reason it gives."""
        self.reason = _reason(error)
        self._until = time.monotonic() + RETRY_SECONDS
        return self.reason

    def close(self) -> None:
        """The store worked again."""
        self.reason = None


def _reason(error: StoreError) -> PassThrough:
    reasons: dict[type[StoreError], PassThrough] = {
        FullStoreError: "store-full",
        SlowStoreError: "store-slow",
        ReadOnlyStoreError: "store-read-only",
    }
    return next((reasons[kind] for kind in reasons if isinstance(error, kind)), "store-failed")


NO_REASON = "an operator paused it"
"""The reason of a pause for which none was given."""


class Switches:
    """What an operator turns: mode (as configured), pause, end, budget, kill switch.

    passing_through: whether requests are passed through for another reason than the kill switch.
    """

    def __init__(
        self,
        agent: Agent,
        mode: Mode,
        kill_switch: KillSwitch,
        passing_through: Callable[[], bool] = lambda: False,
    ) -> None:
        self._agent = agent
        self.kill_switch = kill_switch
        self._passing_through = passing_through
        self.set_mode(mode)

    def pause(self, reason: str, at: float) -> ModeAnswer:
        """Log decisions from now on with e = 0."""
        self._agent.controls.pause(reason or NO_REASON, at)
        return self.answer()

    def resume(self, reason: str, at: float) -> ModeAnswer:
        """Randomize again, if the mode is `run`; after a check had paused, or an end, in a new
        era."""
        self._agent.controls.resume(at, reason)
        return self.answer()

    def end(self, model: str | None, reason: str, at: float, *, certified: bool) -> ModeAnswer:
        """Randomize no more, and keep who is to be served. Raises AgentError for no model of
        ours."""
        self._agent.controls.end(model, reason, at, certified=certified)
        return self.answer()

    @property
    def paused(self) -> bool:
        """Whether a person or a check paused the experiment."""
        return self._agent.state.paused is not None

    @property
    def reason(self) -> str:
        """Why it is paused, "" where it is not or nobody said."""
        reason = self._agent.state.paused
        return "" if reason is None or reason == NO_REASON else reason

    def set_budget(self, requests: int | None, at: float) -> None:
        """Change the hard stop; counted from the start of the experiment."""
        value = msgspec.json.encode(requests).decode()
        self._agent.store.put(Control(at=at, name=BUDGET, value=value))
        self._agent.controls.set_budget(requests)

    def set_mode(self, mode: Mode) -> None:
        """Take another mode, from a configuration that was read again."""
        self._mode = mode
        self._agent.state.observing_only = mode == "observe"

    def budget(self, basis: Basis | None) -> BudgetAnswer:
        """The budget in force and what was spent. basis: what that is valued by, as far as it is
        known."""
        agent = self._agent
        limit, spent = agent.controls.budget, agent.light.randomized
        declared = [model.price for model in agent.config.models]
        return BudgetAnswer(
            requests=limit,
            randomized=spent,
            left=None if limit is None else max(limit - spent, 0),
            after_decision=agent.config.budget.after,
            limits=[
                LimitAnswer(
                    resource=each.resource,
                    limit=each.limit,
                    spent=_finite(each.spent),
                    expected=_finite(each.expected),
                    planned=_finite(each.planned),
                )
                for each in agent.answers.spending()
            ],
            spent=spent_so_far(agent.models, agent.light.ledger.spent, basis, declared),
        )

    @property
    def activity(self) -> Activity:
        """What is done with requests now."""
        return self._agent.answers.activity(
            kill_switch=self.kill_switch.on, passing_through=self._passing_through()
        )

    def answer(self) -> ModeAnswer:
        """What they say together."""
        activity = self.activity
        return ModeAnswer(
            mode=self._mode,
            paused=self.paused,
            reason=self.reason,
            kill_switch=self.kill_switch.on,
            randomizing=activity.randomizing,
            activity=activity,
            activity_sentence=activity_sentence(activity, self.reason),
            ended=self._agent.state.ended,
        )

    def situation(self, outlook: Outlook | None = None) -> Situation:
        """What happens to requests now. outlook: what the newest forecast says."""
        known = self._agent.answers.situation()
        reason = "" if known.reason == NO_REASON else known.reason
        return replace(known, activity=self.activity, reason=reason, outlook=outlook)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
