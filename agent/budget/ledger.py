"""What was randomized, as counts: a fold over decisions, valued by whatever charges hold today."""

from __future__ import annotations

import numpy as np

from equipoise.agent.budget.arrivals import Arrivals
from equipoise.store.batches import DecisionBatch, Floats


class Ledger:
    """Counts of randomized requests by routed and assigned model, and the traffic they came from.

    spent: (K, K) requests randomized from routed model (row) onto a model (column). expected:
    (K, K) the sum of e pi of all decisions, what the draws were to give on average.
    """

    def __init__(self, models: int) -> None:
        self.spent: Floats = np.zeros((models, models))
        self.expected: Floats = np.zeros((models, models))
        self.arrivals = Arrivals()

    def take(self, batch: DecisionBatch) -> None:
        """Add n decisions."""
        self.arrivals.take(batch.at)
        if len(batch) == 1:
            routed = int(batch.routed[0])
            self.expected[routed] += batch.rate[0] * batch.probabilities[0]
            if batch.randomized[0]:
                self.spent[routed, batch.model[0]] += 1.0
            return
        np.add.at(self.expected, batch.routed, batch.rate[:, None] * batch.probabilities)
        picked = batch.randomized
        np.add.at(self.spent, (batch.routed[picked], batch.model[picked]), 1.0)

    @property
    def by_model(self) -> Floats:
        """(K,) requests that were randomized onto each model."""
        return np.asarray(np.add.reduce(self.spent, axis=0))

    def arrays(self) -> dict[str, Floats]:
        """The state as arrays for a checkpoint."""
        return {"spent": self.spent, "expected": self.expected, **self.arrivals.arrays()}

    def load(self, spent: Floats, expected: Floats, arrivals: Floats) -> None:
        """Become the state of `arrays`."""
        self.spent, self.expected = np.array(spent), np.array(expected)
        self.arrivals.load(arrivals)
