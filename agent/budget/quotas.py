"""Limits per segment and per user: who is closed to randomizing by what was drawn before.

A segment that has had its randomized requests gets no more; a user whose share is used up is served
as routed until enough of their requests have come. Both depend on draws before a request alone, so
what is closed is known before it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Self

import numpy as np

from equipoise.agent.bands import Band
from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.config import ExperimentConfig
from equipoise.store.batches import Closure, Flags, Floats, Ints


class Quotas:
    """bands, caps: parts of the traffic and the randomized requests that each may get, (S,); share:
    of a user's requests from the first that is randomized on, None for no limit."""

    def __init__(self, bands: Sequence[Band], caps: Sequence[int], share: float | None) -> None:
        self._bands = tuple(bands)
        self._caps = tuple(caps)
        self._share = share

    @classmethod
    def of(cls, config: ExperimentConfig) -> Self:
        segments, per_user = config.budget.segments, config.budget.per_user
        caps = [segment.max_requests for segment in segments]
        return cls(bands_of(config), caps, None if per_user is None else per_user.share)

    def __bool__(self) -> bool:
        return bool(self._bands) or self._share is not None

    def begin(self, ledger: Ledger) -> Run:
        """What is left before a batch."""
        return Run(
            self._bands,
            [cap - int(spent) for cap, spent in zip(self._caps, ledger.by_segment, strict=True)],
            self._share,
            ledger.users,
        )


class Run:
    """Limits over one batch, whose rows are looked at in order."""

    def __init__(
        self,
        bands: tuple[Band, ...],
        left: list[int],
        share: float | None,
        users: dict[int, tuple[int, int]],
    ) -> None:
        self._bands, self._left, self._share = bands, left, share
        self._users, self._since = users, dict[int, tuple[int, int]]()

    def closed(self, x: Floats, unit: Ints, drawn: Flags) -> Ints:
        """(n,) `Closure` of every row. drawn: (n,) those that are randomized unless closed."""
        return self._scan(x, unit, drawn, list(self._left), dict(self._since))

    def take(self, x: Floats, unit: Ints, randomized: Flags) -> None:
        """Go on behind these rows; randomized: (n,) as they were decided."""
        self._scan(x, unit, randomized, self._left, self._since)

    def _scan(
        self,
        x: Floats,
        unit: Ints,
        drawn: Flags,
        left: list[int],
        since: dict[int, tuple[int, int]],
    ) -> Ints:
        inside = np.array([band.holds(x) for band in self._bands]).reshape(len(left), len(x))
        rows = [np.flatnonzero(column).tolist() for column in inside.T]
        result = np.zeros(len(x), dtype=np.int64)
        for row, (segments, user, hit) in enumerate(
            zip(rows, unit.tolist(), drawn.tolist(), strict=True)
        ):
            shut = any(left[segment] <= 0 for segment in segments)
            reason = Closure.SEGMENT if shut else Closure.OPEN
            seen, got = since.get(user) or self._users.get(user) or (0, 0)
            if self._share is not None and got and got + 1 > self._share * (seen + 1):
                shut, reason = True, reason or Closure.USER
            result[row] = reason
            if self._share is not None and (got or (hit and not shut)):
                since[user] = seen + 1, got + (hit and not shut)
            if hit and not shut:
                for segment in segments:
                    left[segment] -= 1
        return result


def bands_of(config: ExperimentConfig) -> tuple[Band, ...]:
    """(S,) the declared segments with caps."""
    columns = config.features.context_columns()
    return tuple(
        Band.of(segment.column, segment.low, segment.high, columns)
        for segment in config.budget.segments
    )
