"""A value with the part each logged row has in its error.

Influences make every comparison a subtraction: two values from the same log share rows, so the
standard error of their difference is that of the difference of their influences.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.agent.inference.projection import within_range
from equipoise.replay.experiments.findings import Measured
from equipoise.store.batches import Floats

Z95 = 1.959963984540054


FEW_CLICKS = 10.0
"""Below this many (effective) clicks the spread of the clicks seen says little about the rest."""


@dataclass(frozen=True, slots=True)
class Brief:
    """A value without its influences, as it is shown: estimate and 95% interval, which lie in
    [0, 1] as clicks do, and standard error; NaN where unknown."""

    value: float
    se: float
    low: float
    high: float
    effective_rows: float

    @property
    def measured(self) -> Measured:
        """For tables: null where unknown."""
        if math.isnan(self.value):
            return Measured(None)
        return Measured(self.value, self.low, self.high)


@dataclass(frozen=True, slots=True, eq=False)
class Value:
    """An estimate in clicks per row, NaN where unknown. It may lie outside [0, 1], as importance
    weighted and doubly robust ones do: sums and differences are of such values, `brief` and
    `measured` of those nearest in the range.

    influence: (n,) how far each row of the log moved the estimate; their squares sum to its
    variance. weight: (n,) the share of each row in it, summing to 1, or all 0 where unknown.
    clicked: (n,) the same of the clicks: weight times reward.
    """

    value: float
    influence: Floats
    weight: Floats
    clicked: Floats

    @property
    def se(self) -> float:
        """Standard error."""
        return math.sqrt(float(self.influence @ self.influence))

    @property
    def effective_rows(self) -> float:
        """As many rows of equal weight say as much (Kish 1965); 0 where unknown."""
        squares = float(self.weight @ self.weight)
        return float(self.weight.sum()) ** 2 / squares if squares else 0.0

    @property
    def effective_clicks(self) -> float:
        """The same of the clicks."""
        squares = float(self.clicked @ self.clicked)
        return float(self.clicked.sum()) ** 2 / squares if squares else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        """95%, within [0, 1]: Wilson's (1927) for a rate seen over as many rows as give this
        standard error.

        Clicks are rare: a normal interval around three of them would reach below 0, and around
        none it would have no width. Under FEW_CLICKS a standard error is not believed to be
        smaller than that of a rate over `effective_rows`. Where the value is outside (0, 1), as
        doubly robust values can be, Wilson's over `effective_rows` for a rate at that end, or the
        normal one where it reaches farther in.
        """
        value, se, few = self.value, self.se, self.effective_clicks < FEW_CLICKS
        if math.isnan(value):
            return math.nan, math.nan
        rate, seen = _shown(value), self.effective_rows
        inside = 0.0 < rate < 1.0
        rows = rate * (1.0 - rate) / se**2 if se > 0.0 and inside else math.inf
        if few or not inside:
            rows = min(rows, seen)
        if math.isinf(rows) or not rows > 0.0:
            low, high = value - Z95 * se, value + Z95 * se
        else:
            low, high = wilson(rate, rows)
            if not inside:
                low, high = min(low, value - Z95 * se), max(high, value + Z95 * se)
        return min(_shown(low), rate), max(_shown(high), rate)

    @property
    def brief(self) -> Brief:
        """What tables need."""
        unknown = math.isnan(self.value)
        return Brief(
            _shown(self.value),
            math.nan if unknown else self.se,
            *self.interval,
            self.effective_rows,
        )

    @property
    def measured(self) -> Measured:
        """For tables: null where unknown."""
        return self.brief.measured


def _shown(value: float) -> float:
    """The nearest that a click rate can be."""
    return float(within_range(value, 0.0, 1.0))


def wilson(rate: float, rows: float) -> tuple[float, float]:
    """Wilson's 95% interval of a rate seen in `rows` (not necessarily whole) rows."""
    scale = 1.0 + Z95**2 / rows
    centre = (rate + Z95**2 / (2.0 * rows)) / scale
    spread = Z95 * math.sqrt(rate * (1.0 - rate) / rows + Z95**2 / (4.0 * rows**2)) / scale
    return max(0.0, centre - spread), min(1.0, centre + spread)


def difference(first: Value, second: Value, *, same_log: bool) -> Measured:
    """first - second with its normal 95% interval; null where one is unknown.

    same_log: both influences are over the rows of one log; else the logs are independent.
    """
    gap = first.value - second.value
    if math.isnan(gap):
        return Measured(None)
    if same_log:
        moved = first.influence - second.influence
        se = math.sqrt(float(moved @ moved))
    else:
        se = math.hypot(first.se, second.se)
    return Measured(gap, gap - Z95 * se, gap + Z95 * se)


def combined(values: Sequence[Value], shares: Sequence[float]) -> Value:
    """The weighted sum of values over the rows of one log; values without a share do not count.

    Unknown where one of the others is.
    """
    used = [(share, value) for share, value in zip(shares, values, strict=True) if share > 0]
    parts = [
        sum((share * getattr(value, name) for share, value in used), np.zeros(()))
        for name in ("value", "influence", "weight", "clicked")
    ]
    return Value(float(parts[0]), *parts[1:])


def unknown(rows: int) -> Value:
    """The value of what the log never shows."""
    return Value(math.nan, np.zeros(rows), np.zeros(rows), np.zeros(rows))


def weighted_rate(weight: Floats, reward: Floats) -> Value:
    """The weighted mean of all rewards (n,) by weights (n,); unknown where they are all 0."""
    total = float(weight.sum())
    if not total > 0.0:
        return unknown(len(reward))
    share = weight / total
    value = float(share @ reward)
    return Value(value, share * (reward - value), share, share * reward)
