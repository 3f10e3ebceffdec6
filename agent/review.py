"""What alarms do: carried out at a review, kept in the store, in force from the next rule on.

Nothing that a check finds reaches back: the rows it speaks of were certified under what was known
then. An alarm acts on the rows to come, through the rule that is frozen after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from equipoise.agent.eras import DRIFT
from equipoise.agent.monitors.actions import Action, Consequence
from equipoise.agent.monitors.check import listed
from equipoise.store.batches import Flags

if TYPE_CHECKING:
    from equipoise.agent.steering import Steering

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
