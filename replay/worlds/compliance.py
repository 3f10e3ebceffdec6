"""Assignments that are not carried out: fallbacks to another model, and lost answers.

Two things go wrong independently of everything else, request by request:

- undelivered: the client timed out before it heard the agent's answer, and asked the routed model;
- non-compliance: the model that was asked failed and the fallback answered in its place, either
  the routed model or one model named beforehand. It hits routed traffic like any other, so it was
  there in the usage log too, which records the model that answered.

What a model is worth is then read by intention to treat: the mean reward of requests that are
*sent to* it and delivered, with the fallbacks that this brings. It is
(1 - p) · E[R | served m] + p · E[R | fallback], so it differs from the worth of the model itself,
and the differences between models shrink by 1 - p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.replay.worlds.options import ROUTED, WorldError, WorldOptions
from equipoise.store.batches import Flags, Floats, Ints


@dataclass(frozen=True, slots=True)
class Service:
    """How n decisions were carried out.

    model: (n,) who answered. attempt: (n,) 1, or 2 where the fallback did; the fallback may be the
    model that was asked first. delivered: (n,) false where the assignment was never heard of.
    """

    model: Ints
    attempt: Ints
    delivered: Flags

    @property
    def as_assigned(self) -> Flags:
        """(n,) whether the answer is due to the assignment."""
        as_assigned: Flags = self.delivered & (self.attempt == 1)
        return as_assigned


class Compliance:
    """Fallbacks and lost answers of a world. active: whether there are any."""

    def __init__(self, models: Sequence[str], options: WorldOptions) -> None:
        """Raises WorldError where the fallback is not one of the models."""
        self.active = options.noncompliance > 0 or options.undelivered > 0
        self._fails = options.noncompliance
        self._lost = options.undelivered
        self.fallback: int | None = None
        if options.fallback != ROUTED:
            if options.fallback not in models:
                known = ", ".join([ROUTED, *models])
                raise WorldError(f"fallback is {options.fallback!r}, must be one of {known}")
            self.fallback = list(models).index(options.fallback)

    def serve(self, asked: Ints, routed: Ints, rng: np.random.Generator) -> Service:
        """Who answers requests that the agent sent to `asked` (n,), production to `routed`."""
        count = len(asked)
        if not self.active:
            return Service(asked, np.ones(count, dtype=np.int64), np.ones(count, dtype=bool))
        lost = rng.random(count) < self._lost
        fails = rng.random(count) < self._fails
        instead = routed if self.fallback is None else self.fallback
        model = np.where(fails, instead, np.where(lost, routed, asked))
        return Service(model, 1 + fails.astype(np.int64), ~lost)

    def answered(self, choice: Floats) -> Floats:
        """(..., K) who answers routed traffic, from the probabilities (..., K) of routing."""
        if self.fallback is None or not self._fails:
            return choice
        answered = (1.0 - self._fails) * choice
        answered[..., self.fallback] += self._fails
        return answered

    def intended(self, values: Floats, routing: float) -> tuple[Floats, float]:
        """Values (K,) and value of today's routing by intention to treat, from those as served."""
        if not self._fails:
            return values, routing
        instead = routing if self.fallback is None else float(values[self.fallback])
        return (
            (1.0 - self._fails) * values + self._fails * instead,
            (1.0 - self._fails) * routing + self._fails * instead,
        )
