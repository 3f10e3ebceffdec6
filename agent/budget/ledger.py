"""What was randomized, as counts: a fold over decisions, valued by whatever charges hold today."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.bands import Band
from equipoise.agent.budget.arrivals import Arrivals
from equipoise.store.batches import DecisionBatch, Floats, Ints


class Ledger:
    """Counts of randomized requests by routed and assigned model, and the traffic they came from.

    spent: (K, K) requests randomized from routed model (row) onto a model (column). expected:
    (K, K) the sum of e pi of all decisions, what the draws were to give on average. by_segment,
    expected_by_segment: (S,) the same per declared segment with a cap. users: requests since the
    first that was randomized, and how many of them were, by unit; empty unless `per_user`.
    """

    def __init__(self, models: int, bands: Sequence[Band] = (), per_user: bool = False) -> None:
        self.spent: Floats = np.zeros((models, models))
        self.expected: Floats = np.zeros((models, models))
        self.by_segment: Floats = np.zeros(len(bands))
        self.expected_by_segment: Floats = np.zeros(len(bands))
        self.users: dict[int, tuple[int, int]] = {}
        self.arrivals = Arrivals()
        self._bands, self._per_user = tuple(bands), per_user

    def take(self, batch: DecisionBatch) -> None:
        """Add n decisions."""
        self.arrivals.take(batch.at)
        for index, band in enumerate(self._bands):
            inside = band.holds(batch.x)
            self.by_segment[index] += np.count_nonzero(inside & batch.randomized)
            # Added up in order, so that how the log is cut says nothing.
            rates = np.where(inside, batch.rate, 0.0)
            total = np.add.accumulate(np.concatenate([self.expected_by_segment[[index]], rates]))
            self.expected_by_segment[index] = total[-1]
        if self._per_user:
            self._take_users(batch)
        if len(batch) == 1:
            routed = int(batch.routed[0])
            self.expected[routed] += batch.rate[0] * batch.probabilities[0]
            if batch.randomized[0]:
                self.spent[routed, batch.model[0]] += 1.0
            return
        np.add.at(self.expected, batch.routed, batch.rate[:, None] * batch.probabilities)
        picked = batch.randomized
        np.add.at(self.spent, (batch.routed[picked], batch.model[picked]), 1.0)

    def _take_users(self, batch: DecisionBatch) -> None:
        users = self.users
        for user, drawn in zip(batch.unit.tolist(), batch.randomized.tolist(), strict=True):
            seen, got = users.get(user, (0, 0))
            if got or drawn:
                users[user] = seen + 1, got + drawn

    @property
    def by_model(self) -> Floats:
        """(K,) requests that were randomized onto each model."""
        return np.asarray(np.add.reduce(self.spent, axis=0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state as arrays for a checkpoint."""
        users = np.array(sorted((user, *held) for user, held in self.users.items()), dtype=np.int64)
        return {
            "spent": self.spent,
            "expected": self.expected,
            "by_segment": self.by_segment,
            "expected_by_segment": self.expected_by_segment,
            "users": users.reshape(-1, 3),
            **self.arrivals.arrays(),
        }

    def load(
        self,
        spent: Floats,
        expected: Floats,
        by_segment: Floats,
        expected_by_segment: Floats,
        users: Ints,
        arrivals: Floats,
    ) -> None:
        """Become the state of `arrays`."""
        self.spent, self.expected = np.array(spent), np.array(expected)
        self.by_segment = np.array(by_segment)
        self.expected_by_segment = np.array(expected_by_segment)
        self.users = {user: (seen, got) for user, seen, got in users.tolist()}
        self.arrivals.load(arrivals)
