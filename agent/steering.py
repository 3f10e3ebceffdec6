"""What people and checks do to a running experiment: eras, pauses, budgets, reviews."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.agent.monitors.actions import Consequence
from equipoise.agent.monitors.turns import last_kept, turns
from equipoise.agent.reader import Reader
from equipoise.agent.review import BY_CHECK, alarms_of, carry_out
from equipoise.policies.snapshot import Snapshot
from equipoise.store.batches import Flags
from equipoise.store.contract import Store
from equipoise.store.records import Alert

_PAUSE = "pause"
"""The name under which pausing and resuming are kept among the alerts."""


class Steering(Reader, ABC):
    """The controls of one experiment; `Agent`, which decides under them, is one."""

    @property
    @abstractmethod
    def full_models(self) -> Flags:
        """(K,) models that have had all the randomized requests they may get."""

    @abstractmethod
    def _freeze_rule(self, era: int, at: float) -> Snapshot:
        """Freeze the next rule, the first one of a new era perhaps."""

    @abstractmethod
    def _revalue(self) -> None:
        """Put prices and values as they are known now in force for the budget."""

    def open_era(self, reason: str, at: float = 0.0, active: Flags | None = None) -> None:
        """Start certified sums afresh from the next decision on.

        reason: for people, and kept; active: (K,) models to compare from now on, None for those
        compared so far. What the estimators know stays.
        Raises AgentError where fewer than two models would be left.
        """
        keep = self.rule.active if active is None else active
        if np.count_nonzero(keep) < 2:
            raise AgentError(f"an era needs two models to compare, {reason!r} leaves fewer")
        newest = self.eras.newest
        if newest is None:
            raise AgentError("the store has no era yet: it was opened for reading")
        self.eras.open(newest.era + 1, reason, at, keep, newest)
        self.alarms = ()
        self._freeze_rule(newest.era + 1, at)

    def pause(self, reason: str, at: float = 0.0) -> None:
        """Randomize nothing until `resume`; kept in the store, so a restart stays paused."""
        self.paused = reason
        self.store.put(Alert(at=at, check=_PAUSE, status="paused", sentence=reason))

    def resume(self, at: float = 0.0, said: str = "") -> None:
        """Randomize again. After a check has paused, in a new era: what it found is past.

        said: why, for people.
        """
        reason, self.paused = self.paused, None
        if reason is None:
            return
        self.store.put(Alert(at=at, check=_PAUSE, status="resumed", sentence=said or reason))
        if reason.startswith(BY_CHECK):
            self.open_era(f"resumed after {reason}", at)

    def review(self, at: float = 0.0) -> list[Consequence]:
        """Ask every check, keep what changed, and carry out what alarms ask for.

        In force from the rule that is frozen before this returns: none is where no alarm came or
        went. `refresh` does the same and always freezes one.
        """
        return self._reviewed(at, always=False)[0]

    def _reviewed(self, at: float, always: bool) -> tuple[list[Consequence], Snapshot | None]:
        """What alarms ask for, and what the policy saw if a rule was frozen (`always`, or since
        alarms changed). The order is the daemon's: a rule under the alarms that stand, then what
        they ask for, which may begin an era with a rule of its own.
        """
        checks = self.checks(at or None)
        due, before = self.consequences(checks), self.alarms
        self.alarms = alarms_of(due)
        seen = None
        if always or self.alarms != before:
            seen = self._freeze_rule(self.rule.era, at)
        for alert in turns(last_kept(self.store.alerts()), checks, at):
            self.store.put(alert)
        carry_out(self, due, at)
        return due, seen

    @property
    def budget(self) -> int | None:
        """The hard stop in requests that is in force, None for none."""
        limit = self.purse.limits.get("requests")
        return None if limit is None else int(limit)

    def set_budget(self, requests: int | None) -> None:
        """Change the hard stop in requests, counted from the start; None for no such limit."""
        self.purse.limit_requests(requests)
        self._revalue()


def standing_pause(store: Store) -> str | None:
    """Why randomizing is paused, by the newest word in the store."""
    said = [alert for alert in store.alerts() if alert.check == _PAUSE]
    return said[-1].sentence if said and said[-1].status == "paused" else None
