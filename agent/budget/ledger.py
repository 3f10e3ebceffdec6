"""What came and what was randomized, as counts: a fold over decisions, valued by charges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.features.transform import ColumnRange
from equipoise.store.batches import DecisionBatch, Floats, Ints

PERIOD = 86_400.0
"""seconds after which traffic is expected to repeat itself"""
BINS = 144
WIDTH = PERIOD / BINS
"""seconds"""
GROWTH, SLACK = 2.0, 10.0
"""A bin is expected to hold at most GROWTH times what it held the day before, and SLACK more: a
burst is not expected to come again, and traffic that grows is followed within days."""


class Arrivals:
    """Counts of requests per bin of 10 minutes over the last two days; a fold over decisions.

    total: requests so far; first, latest: seconds since the epoch of the earliest and the newest,
    NaN before any. A request dated further back than two days counts in `total` alone.
    """

    def __init__(self) -> None:
        self.total = 0
        self.first = self.latest = np.nan
        self._counts: Floats = np.zeros(2 * BINS)
        self._newest = -1

    def take(self, at: Floats) -> None:
        """Count n requests that arrived at these times (n,)."""
        if len(at) == 1:
            self.take_one(float(at[0]))
            return
        if not len(at):
            return
        low, high = float(at.min()), float(at.max())
        if self.total == 0:
            self.first, self.latest = low, high
        self.first, self.latest = min(self.first, low), max(self.latest, high)
        self.total += len(at)
        if low // WIDTH == high // WIDTH:
            self._open(int(high // WIDTH))
            if int(high // WIDTH) > self._newest - 2 * BINS:
                self._counts[int(high // WIDTH) % (2 * BINS)] += len(at)
            return
        number: Ints = np.floor(at / WIDTH).astype(np.int64)
        self._open(int(number.max()))
        recent = number[number > self._newest - 2 * BINS]
        np.add.at(self._counts, recent % (2 * BINS), 1.0)

    def take_one(self, at: float) -> None:
        """The same for a single request, at a fraction of the cost."""
        if self.total == 0:
            self.first = self.latest = at
        elif at > self.latest:
            self.latest = at
        elif at < self.first:
            self.first = at
        self.total += 1
        number = int(at // WIDTH)
        if number > self._newest:
            self._open(number)
        if number > self._newest - 2 * BINS:
            self._counts[number % (2 * BINS)] += 1.0

    def _open(self, newest: int) -> None:
        """Make room for bins up to `newest`."""
        if newest > self._newest:
            stale = np.arange(max(self._newest + 1, newest - 2 * BINS + 1), newest + 1)
            self._counts[stale % (2 * BINS)] = 0.0
            self._newest = newest

    def expected(self, until: float) -> float:
        """Requests to expect between the newest one and `until`; 0 before any, or after `until`.

        Every bin to come is like the same one a day before; a bin that was not seen then (the
        first day) is like the mean so far.
        """
        if self.total == 0 or not until > self.latest:
            return 0.0
        elapsed = max(self.latest - self.first, 1.0)
        mean = self.total / elapsed * WIDTH
        day = self._last_day(mean)
        bins = np.arange(self._newest, int(until // WIDTH) + 1)
        start = np.maximum(bins * WIDTH, self.latest)
        share = (np.minimum((bins + 1) * WIDTH, until) - start) / WIDTH
        return float((day[bins % BINS] * np.maximum(share, 0.0)).sum())

    def _last_day(self, mean: float) -> Floats:
        """(BINS,) requests per bin by time of day, from the newest complete day."""
        # The current bin is not complete, and the one in which counting began may not be either.
        numbers = np.arange(self._newest - BINS, self._newest)
        complete = numbers > int(self.first // WIDTH)
        counts = np.where(complete, self._counts[numbers % (2 * BINS)], mean)
        earlier = numbers - BINS
        twice = earlier > int(self.first // WIDTH)
        most = GROWTH * self._counts[earlier % (2 * BINS)] + SLACK
        counts = np.where(twice, np.minimum(counts, most), counts)
        day = np.empty(BINS)
        day[numbers % BINS] = counts
        return day

    def arrays(self) -> dict[str, Floats]:
        """The state as arrays for a checkpoint."""
        head = np.array([self.total, self.first, self.latest, self._newest], dtype=np.float64)
        return {"arrivals": np.concatenate([head, self._counts])}

    def load(self, arrivals: Floats) -> None:
        """Become the state of `arrays`."""
        self.total, self._newest = int(arrivals[0]), int(arrivals[3])
        self.first, self.latest = float(arrivals[1]), float(arrivals[2])
        self._counts = np.array(arrivals[4:])


class Ledger:
    """Counts of randomized requests by routed and assigned model, and the traffic they came from.

    spent: (K, K) requests randomized from routed model (row) onto a model (column). expected:
    (K, K) the sum of e pi of all decisions, what the draws were to give on average. by_segment,
    expected_by_segment: (S,) the same per declared segment with a cap. users: requests since the
    first that was randomized, and how many of them were, by unit; empty unless `per_user`.
    drawn: grows with whatever changes `spent`.
    """

    def __init__(
        self, models: int, segments: Sequence[ColumnRange] = (), per_user: bool = False
    ) -> None:
        self.spent: Floats = np.zeros((models, models))
        self.expected: Floats = np.zeros((models, models))
        self.by_segment: Floats = np.zeros(len(segments))
        self.expected_by_segment: Floats = np.zeros(len(segments))
        self.users: dict[int, tuple[int, int]] = {}
        self.arrivals = Arrivals()
        self._segments, self._per_user = tuple(segments), per_user
        self.drawn = 0
        self._mean: tuple[float, Floats | None, Floats] = 0.0, None, np.zeros(models)

    def take_one(
        self, at: float, routed: int, rate: float, shares: Floats, model: int, randomized: bool
    ) -> None:
        """As `take` of one decision on plain numbers, the same bits, where nothing is counted by
        segment or user. shares: (1, K)."""
        self.arrivals.take_one(at)
        if rate:
            before, of, mean = self._mean
            if of is not shares or before != rate:
                mean = rate * shares[0]
                self._mean = rate, shares, mean
            row = self.expected[routed]
            np.add(row, mean, out=row)
        if randomized:
            self.spent[routed, model] += 1.0
            self.drawn += 1

    @property
    def counts_rows(self) -> bool:
        """Whether anything is counted by segment or user."""
        return self._per_user or bool(self._segments)

    def take(self, batch: DecisionBatch) -> None:
        """Add n decisions."""
        self.arrivals.take(batch.at)
        for index, segment in enumerate(self._segments):
            inside = segment.holds(batch.x)
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
                self.drawn += 1
            return
        # Cell by cell in the order of the rows, so that how the log is cut says nothing.
        models, picked = len(self.spent), batch.randomized
        cells = models * batch.routed[:, None] + np.arange(models)
        mean = batch.rate[:, None] * batch.probabilities
        np.add.at(self.expected.reshape(-1), cells.reshape(-1), mean.reshape(-1))
        np.add.at(self.spent, (batch.routed[picked], batch.model[picked]), 1.0)
        self.drawn += 1

    def _take_users(self, batch: DecisionBatch) -> None:
        users = self.users
        for user, drawn in zip(batch.unit.tolist(), batch.randomized.tolist(), strict=True):
            count, randomized = users.get(user, (0, 0))
            if randomized or drawn:
                users[user] = count + 1, randomized + drawn

    @property
    def by_model(self) -> Floats:
        """(K,) requests that were randomized onto each model."""
        return np.asarray(np.add.reduce(self.spent, axis=0))

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state as arrays for a checkpoint."""
        users = np.array(
            sorted((user, *counts) for user, counts in self.users.items()), dtype=np.int64
        )
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
        self.drawn += 1
