"""Which sequence is the certified one: a rule known in advance, never the narrower after looking.

The user declares a preference when the experiment opens. `bounded` needs nothing. Another sequence
is used at a look if its condition holds there; where it does not, the bounded one is. Both are
run all the time at levels that add up to the declared one (`levels.split_level`), so the certified
interval holds at all times even though the condition is looked at again and again: a miss is a
miss of one of the two.

`per-model`: the user declares that traffic is stationary; it is off while a drift alarm stands and
from the first rule that looked at a request.
`asymptotic`: every model that is compared has had RARER of the rarer outcome, min(sum R, sum 1 - R)
over its randomized rewards on the [0, 1] scale; that amount never falls, so the sequence opens once
in an era. tests/statistical/coverage_study.py shows what the number is worth.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import numpy as np

from equipoise.agent.inference.levels import split_level
from equipoise.store.batches import Floats

RARER = 25.0
"""Amount of the rarer outcome that each model needs before the asymptotic sequence is certified.

From 25 on at most 1.8% of runs ever missed, at a nominal 4.5%, over success rates of .01 to .99
under uniform and top-two draws; from 10 on up to 4.9%, from 5 on up to 8.2% (docs/coverage.md).
"""


class Sequence(StrEnum):
    BOUNDED = "bounded"
    PER_MODEL = "per-model"
    ASYMPTOTIC = "asymptotic"


@dataclass(frozen=True, slots=True)
class Chosen:
    """The certified sequence of a look, its share of the level, and why it is the one."""

    sequence: Sequence
    share: float
    reason: str

    def level(self, alpha: float) -> float:
        """The level at which the chosen sequence is to be read, for a declared one-sided alpha."""
        return alpha * self.share


def choose(
    declared: Sequence,
    *,
    context_free: bool,
    drift_alarm: bool,
    rarer: Floats,
    needed: float = RARER,
) -> Chosen:
    """The certified sequence of a look.

    context_free: no rule of the era looked at a request. drift_alarm: one stands. rarer: (K,)
    `RewardMoments.rarer` of the models that are compared.
    """
    preferred, fallback = split_level(1.0)
    if declared is Sequence.BOUNDED:
        return Chosen(declared, 1.0, "it needs no further assumption")
    if declared is Sequence.PER_MODEL:
        if not context_free:
            return Chosen(
                Sequence.BOUNDED, fallback, "per-model was declared, but a rule looked at requests"
            )
        if drift_alarm:
            return Chosen(
                Sequence.BOUNDED, fallback, "per-model was declared, but a drift alarm stands"
            )
        return Chosen(declared, preferred, "traffic was declared stationary")
    fewest = float(np.min(rarer, initial=np.inf))
    if not fewest >= needed:
        return Chosen(
            Sequence.BOUNDED,
            fallback,
            f"asymptotic was declared, but a model has {fewest:g} of its rarer outcome, "
            f"below {needed:g}",
        )
    return Chosen(declared, preferred, f"every model has {needed:g} of its rarer outcome")
