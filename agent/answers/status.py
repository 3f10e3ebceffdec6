"""The decision status: one life cycle for stopping, page, planner and API.

    exploring --> decided | equivalent          what the certified contrasts allow to say
    any ------> paused(reason) --> as before    randomizing stopped by a person, a check or a file
    any ------> restarted(drift) --> exploring  a new era whose sums hold no row yet, or too few
    any ------> ended --> restarted             ended for good by a person, until it is resumed

`decided` may go back to `exploring` only through a new era: bounds of the running average can
widen again when traffic moves, so the status is what the newest bounds say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Literal, Protocol

import msgspec
import numpy as np

from equipoise.store.batches import Flags, Floats

RESTARTING_ROWS = 100
"""Randomized rows of a new era below which its status is `restarted`."""


class State(StrEnum):
    EXPLORING = "exploring"
    DECIDED = "decided"
    EQUIVALENT = "equivalent"
    PAUSED = "paused"
    RESTARTED = "restarted"
    ENDED = "ended"


@dataclass(frozen=True, slots=True)
class Status:
    """What is decided. models: the winner, or the equivalent ones; () while nothing is.

    epsilon: reward units; delta: probability that the statement is ever wrong. sentence: for
    people.
    """

    state: State
    models: tuple[str, ...]
    epsilon: float
    delta: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class RatedMore(msgspec.Struct, frozen=True, kw_only=True):
    """A certified difference in how many requests are rated: a larger share of those of `model`
    than of those of `other`, by at least `by` of all requests."""

    model: str
    other: str
    by: float


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """What is certified. models: one, `best` of all or `within` epsilon of the best; or several,
    `alike`, within epsilon of each other. by: lower end of the lead of the best at the level of all
    pairs, which "by at least" needs; over_routing: lower end of what one is better than today's
    routing by. Reward units, larger being better. delta: probability that this is ever wrong.
    about: which requests it is about, "" for all; whole: whether that may be said of the traffic.
    rating: where it is about those who rate, what is certified of how many do on these models.
    """

    kind: Literal["best", "within", "alike"]
    models: tuple[str, ...]
    by: float
    over_routing: float
    epsilon: float
    delta: float
    about: str = ""
    whole: bool = True
    rating: tuple[RatedMore, ...] = ()


@dataclass(frozen=True, slots=True)
class Standing:
    """Where the models of an era stand, from certified contrasts turned so that more is better.

    names: (K,); decision: (K, K) lower ends of V(a) - V(b) at the level of a decision; pairs:
    (K, K) the same at the level of all pairs at once; active: (K,) models compared; epsilon: the
    smallest difference that matters. Reward units.
    """

    names: tuple[str, ...]
    decision: Floats
    pairs: Floats
    active: Flags
    epsilon: float

    def winner(self) -> tuple[int, float] | None:
        """The model certified within epsilon of the best, and the lower end of its lead."""
        if np.count_nonzero(self.active) < 2:
            return None
        others = self.active[None, :] & ~np.eye(len(self.names), dtype=bool)
        worst = np.where(others, self.decision, np.inf).min(axis=1)
        worst = np.where(self.active, worst, -np.inf)
        best = int(np.argmax(worst))
        return (best, float(worst[best])) if worst[best] > -self.epsilon else None

    @property
    def decided(self) -> bool:
        """Whether there is a winner, or all that is left is alike."""
        return self.winner() is not None or bool(self.equivalent())

    def lead(self, model: int) -> float:
        """Lower end of a model's lead over the best of the others, at the level of all pairs.

        At the level of a decision only "better than all others" is paid for: "by at least L" also
        needs the model's own lead over the second best to be true, one comparison more.
        """
        others = self.active.copy()
        others[model] = False
        return float(np.min(self.pairs[model, others], initial=np.inf))

    def equivalent(self) -> tuple[int, ...]:
        """Models not certified worse than another, if all their pairs lie within epsilon."""
        both = self.active[:, None] & self.active[None, :]
        beaten = (both & (self.pairs > 0.0)).any(axis=0)
        unbeaten = np.flatnonzero(self.active & ~beaten)
        pairs = self.pairs[np.ix_(unbeaten, unbeaten)][~np.eye(len(unbeaten), dtype=bool)]
        if self.epsilon <= 0.0 or len(unbeaten) < 2 or not (pairs > -self.epsilon).all():
            return ()
        return tuple(unbeaten.tolist())

    def claim(
        self, delta: float, over_routing: Floats, about: str = "", whole: bool = True
    ) -> Claim | None:
        """What is certified at level delta, None while nothing is.

        over_routing: (K,) lower ends of V(m) - V(today's routing), larger being better.
        """
        claim = partial(Claim, epsilon=self.epsilon, delta=delta, about=about, whole=whole)
        winner, alike = self.winner(), self.equivalent()
        best = winner is not None and winner[1] > 0.0
        # Alike comes before the best within epsilon.
        if alike and not best:
            models = tuple(self.names[index] for index in alike)
            return claim(kind="alike", models=models, by=0.0, over_routing=-np.inf)
        if winner is None:
            return None
        model = winner[0]
        return claim(
            kind="best" if best else "within",
            models=(self.names[model],),
            by=self.lead(model),
            over_routing=float(over_routing[model]),
        )


class Band(Protocol):
    """Median and ends of an 80% interval, None beyond what was simulated."""

    @property
    def low(self) -> float | None: ...
    @property
    def median(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outlook:
    """What it would take until something is certified, by a forecast.

    reason: why none is made, as `Forecast.reason`; None where one is. The other fields are those of
    a `Forecast` by the same names. fewest: rewards of a model that a forecast needs.
    """

    reason: str | None = None
    total: Band | None = None
    hours: Band | None = None
    randomized: int = 0
    planned: int | None = None
    chance: float | None = None
    limit: str | None = None
    unlimited: Band | None = None
    models: Sequence[str] = ()
    why: str = ""
    rewards: float = 0.0
    fewest: float = 0.0
    lost: float | None = None
    least_difference: float | None = None
    held_by: str | None = None
    newest_at: float = 0.0


class Activity(StrEnum):
    """What is done with requests, in the order in which one hides another.

    kill-switch: its file exists, requests are passed through. passing-through: the store fails, or
    the process stops or starts again; requests are passed through. ended: for good, until somebody
    resumes it. observing: the mode is `observe`. paused: by a person or a check. decided: the rule
    in force stopped after the decision (`budget.after_decision = "stop"`). unpriced: a budget in
    money, and no model has a price that is known. budget-spent: a hard stop is reached. ramp: the
    decision has been made and only the smallest share goes on (`after_decision = "ramp"`).
    """

    KILL_SWITCH = "kill-switch"
    PASSING_THROUGH = "passing-through"
    ENDED = "ended"
    OBSERVING = "observing"
    PAUSED = "paused"
    DECIDED = "decided"
    UNPRICED = "unpriced"
    BUDGET_SPENT = "budget-spent"
    RAMP = "ramp"
    RANDOMIZING = "randomizing"

    @property
    def randomizing(self) -> bool:
        """Whether any request may be randomized."""
        return self in (Activity.RAMP, Activity.RANDOMIZING)

    @property
    def logging(self) -> bool:
        """Whether decisions are logged."""
        return self not in (Activity.KILL_SWITCH, Activity.PASSING_THROUGH)


def activity(
    *,
    kill_switch: bool = False,
    passing_through: bool = False,
    ended: bool = False,
    observing: bool = False,
    paused: bool = False,
    decided: bool = False,
    unpriced: bool = False,
    budget_spent: bool = False,
    ramp: bool = False,
) -> Activity:
    """The word for everything that holds. Embedded, without a daemon, the first two never do.

    >>> activity(paused=True, budget_spent=True)
    <Activity.PAUSED: 'paused'>
    >>> activity().randomizing
    True
    """
    holds = {
        Activity.KILL_SWITCH: kill_switch,
        Activity.PASSING_THROUGH: passing_through,
        Activity.ENDED: ended,
        Activity.OBSERVING: observing,
        Activity.PAUSED: paused,
        Activity.DECIDED: decided,
        Activity.UNPRICED: unpriced,
        Activity.BUDGET_SPENT: budget_spent,
        Activity.RAMP: ramp,
    }
    return next((each for each in Activity if holds.get(each)), Activity.RANDOMIZING)
