"""Caps: full models, users and segments at their limit, closed to randomizing before the draw.

A segment that has had its randomized requests gets no more; a user whose share is used up is served
as routed until enough of their requests have come. Both depend on draws before a request alone, so
what is closed is known before it is drawn.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.features.column_range import Band
from equipoise.policies.allocation import Allocation
from equipoise.policies.draw import draw
from equipoise.store.batches import Closure, Flags, Floats, Ints, RequestBatch, text_keys


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


@dataclass(frozen=True, slots=True)
class Drawn:
    """n requests under an allocation: rate (n,), shares (n, K), model (n,), randomized (n,).

    closed_by: (n,) a `Closure`, with the rate set to 0 where it is not OPEN: an excluded user, a
    limit that is reached, or no model that is eligible. eligible: (n, K),
    None where every model may serve every request.
    """

    rate: Floats
    shares: Floats
    model: Ints
    randomized: Flags
    closed_by: Ints
    eligible: Flags | None


class Closed:
    """Excluded users, caps per model, and limits per segment and user of one experiment.

    excluded: ids of users who are never randomized. caps: (K,) randomized requests each model may
    get in all, inf for no cap. quotas: limits per segment and user.
    """

    def __init__(self, excluded: list[str], caps: Floats, quotas: Quotas | None = None) -> None:
        self._excluded = np.sort(text_keys("unit", excluded))
        self._caps = caps
        self._capped = bool(np.isfinite(caps).any())
        self._quotas = quotas or None

    @property
    def counts_models(self) -> bool:
        """Whether any model has a cap."""
        return self._capped

    def full(self, ledger: Ledger) -> Flags:
        """(K,) models that have had all they may get."""
        result: Flags = ledger.by_model >= self._caps
        return result

    def draw(
        self, allocation: Allocation, requests: RequestBatch, uniform: Floats, ledger: Ledger
    ) -> Drawn:
        """Allocate and draw n requests. uniform: (n,). ledger: what each model got so far.

        A model that is full is no longer eligible from the next request on, inside a batch too:
        what is closed to a request depends on draws before it alone.
        """
        excluded = None
        if len(self._excluded):
            excluded = np.isin(requests.unit, self._excluded)
        run = None if self._quotas is None else self._quotas.begin(ledger)
        if not self._capped or not len(requests):
            rows = slice(None)
            found = _draw(allocation, requests, uniform, rows, requests.eligible, excluded)
            return found if run is None else _within(found, run, requests, rows)
        left = np.maximum(self._caps - ledger.by_model, 0.0)
        count, models = len(requests), len(left)
        mask = np.ones((count, models), dtype=bool)
        if requests.eligible is not None:
            mask &= requests.eligible
        parts: list[Drawn] = []
        start = 0
        while start < count:
            mask[start:, left <= 0.0] = False
            rows = slice(start, count)
            found = _draw(allocation, requests, uniform, rows, mask[rows], excluded)
            if run is not None:
                found = _within(found, run, requests, rows)
            onto = np.cumsum(
                (found.model[:, None] == np.arange(models)) & found.randomized[:, None], axis=0
            )
            full = ((onto >= left) & (left > 0.0)).any(axis=1)
            stop = int(full.argmax()) + 1 if full.any() else count - start
            parts.append(_head(found, stop))
            if run is not None:
                done = slice(start, start + stop)
                run.take(requests.x[done], requests.unit[done], found.randomized[:stop])
            left = left - onto[stop - 1]
            start += stop
        return _joined(parts, None if mask.all() and requests.eligible is None else mask)


def model_caps(config: ExperimentConfig) -> Floats:
    """(K,) the declared caps, inf where there is none."""
    caps = [model.max_requests for model in config.models]
    return np.array([np.inf if cap is None else float(cap) for cap in caps])


def _draw(
    allocation: Allocation,
    requests: RequestBatch,
    uniform: Floats,
    rows: slice,
    eligible: Flags | None,
    excluded: Flags | None,
) -> Drawn:
    rate, shares = allocation.allocate(requests.x[rows], eligible)
    routed = requests.routed[rows]
    closed_by = np.zeros(len(routed), dtype=np.int64)
    if eligible is not None:
        # No eligible model: nothing to randomize.
        closed_by[~eligible.any(axis=1)] = Closure.INELIGIBLE
    if excluded is not None:
        closed_by[excluded[rows]] = Closure.EXCLUDED
    if eligible is not None or excluded is not None:
        rate = np.where(closed_by > 0, 0.0, rate)
    model, randomized = draw(uniform[rows], rate, shares, routed)
    return Drawn(rate, shares, model, randomized, closed_by, eligible)


def _within(drawn: Drawn, run: Run, requests: RequestBatch, rows: slice) -> Drawn:
    """The draw with every row that a limit closes served as routed."""
    found = run.closed(requests.x[rows], requests.unit[rows], drawn.randomized)
    shut = found > 0
    if not shut.any():
        return drawn
    return replace(
        drawn,
        rate=np.where(shut, 0.0, drawn.rate),
        model=np.where(shut, requests.routed[rows], drawn.model),
        randomized=drawn.randomized & ~shut,
        closed_by=np.where(drawn.closed_by > 0, drawn.closed_by, found),
    )


def _head(drawn: Drawn, rows: int) -> Drawn:
    return Drawn(
        rate=drawn.rate[:rows],
        shares=drawn.shares[:rows],
        model=drawn.model[:rows],
        randomized=drawn.randomized[:rows],
        closed_by=drawn.closed_by[:rows],
        eligible=None,
    )


def _joined(parts: list[Drawn], eligible: Flags | None) -> Drawn:
    return Drawn(
        rate=np.concatenate([part.rate for part in parts]),
        shares=np.concatenate([part.shares for part in parts]),
        model=np.concatenate([part.model for part in parts]),
        randomized=np.concatenate([part.randomized for part in parts]),
        closed_by=np.concatenate([part.closed_by for part in parts]),
        eligible=eligible,
    )
