"""What alarms do: carried out at a review, kept in the store, in force from the next rule on.

Nothing that a check finds reaches back: the rows it speaks of were certified under what was known
then. An alarm acts on the rows to come, through the rule that is frozen after it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from equipoise.agent.answers.answers import Reader
from equipoise.agent.errors import AgentError
from equipoise.agent.lifecycle.eras import DRIFT
from equipoise.agent.monitors.check import Action, Consequence, last_statuses, listed, transitions
from equipoise.policies.snapshot import Snapshot
from equipoise.store.batches import Flags
from equipoise.store.contract import Store
from equipoise.store.records import Alert

if TYPE_CHECKING:
    pass


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
        checks = self.checks(at)
        due, before = self.consequences(checks), self.alarms
        self.alarms = alarms_of(due)
        seen = None
        if always or self.alarms != before:
            seen = self._freeze_rule(self.rule.era, at)
        for alert in transitions(last_statuses(self.store.alerts()), checks, at):
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


BY_CHECK = "check "
"""How the reason of a pause begins that a check asked for."""


def alarms_of(due: Sequence[Consequence]) -> tuple[str, ...]:
    """Names of the checks whose alarms stand, in order."""
    return tuple(sorted({consequence.check.name for consequence in due}))


def carry_out(agent: Steering, due: Sequence[Consequence], at: float) -> None:
    """Do what alarms ask for. Doing it again while they stand changes nothing."""
    agent.alarms = alarms_of(due)
    for consequence in due:
        check = consequence.check
        if consequence.action is Action.PAUSE and not consequence.models and agent.paused is None:
            agent.pause(f"{BY_CHECK}{check.name}: {check.sentence}", at)
    keep, reasons = _asked(agent, due)
    if np.count_nonzero(keep) < 2:
        # With a single model left there is nothing to compare.
        if agent.paused is None and reasons:
            agent.pause(BY_CHECK + "; ".join(reasons), at)
        return
    if reasons:
        agent.open_era("; ".join(reasons), at, keep)


def begins_era(agent: Steering, due: Sequence[Consequence]) -> bool:
    """Whether `carry_out` would open an era, for which a rule is frozen from the sums."""
    keep, reasons = _asked(agent, due)
    return bool(reasons) and int(np.count_nonzero(keep)) >= 2


def _asked(agent: Steering, due: Sequence[Consequence]) -> tuple[Flags, list[str]]:
    """(K,) models to compare from now on, and why in a new era; no reason for going on as it is."""
    keep = agent.rule.active.copy()
    reasons: list[str] = []
    full = keep & agent.full_models
    if full.any():
        # Requests that a full model cannot get certify nothing: the others go on without it.
        keep &= ~full
        names = listed([agent.models[index] for index in np.flatnonzero(full).tolist()])
        reasons.append(f"cap: {names} had all randomized requests allowed")
    for consequence in due:
        check, sentence = consequence.check, consequence.check.sentence
        if consequence.action is Action.PAUSE and consequence.models:
            if keep[list(consequence.models)].any():
                keep[list(consequence.models)] = False
                reasons.append(f"{check.name}: {sentence}")
        elif consequence.action is Action.NEW_ERA:
            reasons.append(f"{DRIFT if check.name == 'drift' else check.name}: {sentence}")
    return keep, reasons
