"""Parts of the traffic: requests with a context column between two ends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.store.batches import Flags, Floats


@dataclass(frozen=True, slots=True)
class ColumnRange:
    """low <= x[column] < high."""

    column: int
    low: float
    high: float

    @classmethod
    def of(cls, name: str, low: float | None, high: float | None, columns: Sequence[str]) -> Self:
        """As declared; a missing end is open. columns: names of the context columns in order."""
        return cls(
            columns.index(name), -np.inf if low is None else low, np.inf if high is None else high
        )

    def holds(self, x: Floats) -> Flags:
        """(n,) whether rows of x (n, d) lie in it."""
        value = x[:, self.column]
        return (value >= self.low) & (value < self.high)
