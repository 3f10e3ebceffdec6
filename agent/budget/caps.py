"""Caps: full models, users and segments at their limit, closed to randomizing before the draw.

A segment that has had its randomized requests gets no more; a user whose share is used up is served
as routed until enough of their requests have come. Both depend on draws before a request alone, so
what is closed is known before it is drawn.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.features.transform import ColumnRange
from equipoise.policies.allocation import Allocation
from equipoise.policies.draw import draw, draw_one
from equipoise.store.batches import Closure, Flags, Floats, Ints, RequestBatch, text_keys


@dataclass(frozen=True, slots=True)
class Quotas:
    """segments, caps: parts of the traffic and the randomized requests that each may get, (S,).
    share: of a user's requests from the first that is randomized on, None for no limit."""

    segments: tuple[ColumnRange, ...]
    caps: tuple[int, ...]
    share: float | None

    @classmethod
    def of(cls, config: ExperimentConfig) -> Self:
        caps = tuple(segment.max_requests for segment in config.budget.segments)
        per_user = config.budget.per_user
        return cls(segment_ranges(config), caps, None if per_user is None else per_user.share)

    def __bool__(self) -> bool:
        return bool(self.segments) or self.share is not None


class QuotaCount:
    """Limits over one batch, whose rows are looked at in order. ledger: as before the batch."""

    def __init__(self, quotas: Quotas, ledger: Ledger) -> None:
        self._segments, self._share = quotas.segments, quotas.share
        spent = ledger.by_segment.tolist()
        self._left = [cap - int(count) for cap, count in zip(quotas.caps, spent, strict=True)]
        self._users, self._since = ledger.users, dict[int, tuple[int, int]]()

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
        inside = np.array([segment.holds(x) for segment in self._segments]).reshape(
            len(left), len(x)
        )
        rows = [np.flatnonzero(column).tolist() for column in inside.T]
        result = np.zeros(len(x), dtype=np.int64)
        for row, (segments, user, hit) in enumerate(
            zip(rows, unit.tolist(), drawn.tolist(), strict=True)
        ):
            shut = any(left[segment] <= 0 for segment in segments)
            reason = Closure.SEGMENT if shut else Closure.OPEN
            count, randomized = since.get(user) or self._users.get(user) or (0, 0)
            if (
                self._share is not None
                and randomized
                and randomized + 1 > self._share * (count + 1)
            ):
                shut, reason = True, reason or Closure.USER
            result[row] = reason
            if self._share is not None and (randomized or (hit and not shut)):
                since[user] = count + 1, randomized + (hit and not shut)
            if hit and not shut:
                for segment in segments:
                    left[segment] -= 1
        return result


def segment_ranges(config: ExperimentConfig) -> tuple[ColumnRange, ...]:
    """(S,) the declared segments with caps."""
    columns = config.features.context_columns()
    return tuple(
        ColumnRange.of(segment.column, segment.low, segment.high, columns)
        for segment in config.budget.segments
    )


@dataclass(frozen=True, slots=True)
class CappedDraw:
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


class Caps:
    """Excluded users, caps per model, and limits per segment and user of one experiment.

    excluded: ids of users who are never randomized. caps: (K,) randomized requests each model may
    get in all, inf for no cap. quotas: limits per segment and user.
    """

    def __init__(self, excluded: list[str], caps: Floats, quotas: Quotas | None = None) -> None:
        self._excluded = np.sort(text_keys("unit", excluded))
        self._excluded_units = frozenset(self._excluded.tolist())
        self._caps = caps
        self._capped = bool(np.isfinite(caps).any())
        self._quotas = quotas or None
        self._open: tuple[Ledger | None, int, Flags] = None, -1, np.zeros((1, 0), dtype=bool)

    @property
    def counts_models(self) -> bool:
        """Whether any model has a cap."""
        return self._capped

    @property
    def counts_rows(self) -> bool:
        """Whether a segment or a user has a limit, which every row before may use up."""
        return self._quotas is not None

    def full(self, ledger: Ledger) -> Flags:
        """(K,) models that have had all they may get."""
        result: Flags = ledger.by_model >= self._caps
        return result

    def shut(self, ledger: Ledger) -> Flags:
        """(S,) segments that have had all they may get."""
        caps = () if self._quotas is None else self._quotas.caps
        result: Flags = ledger.by_segment[: len(caps)] >= np.array(caps, dtype=float)
        return result

    def draw(
        self, allocation: Allocation, requests: RequestBatch, uniform: Floats, ledger: Ledger
    ) -> CappedDraw:
        """Allocate and draw n requests. uniform: (n,). ledger: what each model got so far.

        A model that is full is no longer eligible from the next request on, inside a batch too:
        what is closed to a request depends on draws before it alone.
        """
        excluded = None
        if len(self._excluded):
            excluded = np.isin(requests.unit, self._excluded)
        run = None if self._quotas is None else QuotaCount(self._quotas, ledger)
        if not self._capped or not len(requests):
            rows = slice(None)
            part = _draw(allocation, requests, uniform, rows, requests.eligible, excluded)
            return part if run is None else _within(part, run, requests, rows)
        room = np.maximum(self._caps - ledger.by_model, 0.0)
        count, models = len(requests), len(room)
        mask = np.ones((count, models), dtype=bool)
        if requests.eligible is not None:
            mask &= requests.eligible
        parts: list[CappedDraw] = []
        start = 0
        while start < count:
            mask[start:, room <= 0.0] = False
            rows = slice(start, count)
            part = _draw(allocation, requests, uniform, rows, mask[rows], excluded)
            if run is not None:
                part = _within(part, run, requests, rows)
            onto = np.cumsum(
                (part.model[:, None] == np.arange(models)) & part.randomized[:, None], axis=0
            )
            full = ((onto >= room) & (room > 0.0)).any(axis=1)
            stop = int(full.argmax()) + 1 if full.any() else count - start
            parts.append(_head(part, stop))
            if run is not None:
                done = slice(start, start + stop)
                run.take(requests.x[done], requests.unit[done], part.randomized[:stop])
            room = room - onto[stop - 1]
            start += stop
        return _joined(parts, None if mask.all() and requests.eligible is None else mask)

    def draw_one(
        self,
        allocation: Allocation,
        unit: int,
        x: Floats,
        routed: int,
        eligible: Flags | None,
        uniform: float,
        ledger: Ledger,
    ) -> tuple[float, Floats, int, bool, int, Flags | None]:
        """As `draw` of one request on plain numbers, the same bits, where no row has limits
        (`counts_rows`). x: (1, d); eligible: (1, K). Returns the columns of `CappedDraw`, shares
        and eligible (1, K)."""
        given = eligible is not None
        if self._capped:
            everybody = self._still_open(ledger)
            eligible = everybody if eligible is None else eligible & everybody
        rate, shares, cumulated = allocation.allocate_one(x, eligible)
        closed_by = 0
        if eligible is not None and not eligible.any():
            closed_by = _INELIGIBLE
        if unit in self._excluded_units:
            closed_by = _EXCLUDED
        if closed_by:
            rate = 0.0
        model, randomized = draw_one(uniform, rate, cumulated, routed)
        if not given and eligible is not None and eligible.all():
            eligible = None
        return rate, shares, model, randomized, closed_by, eligible

    def _still_open(self, ledger: Ledger) -> Flags:
        """(1, K) models that may get more; looked at anew only after a draw."""
        of, drawn, still = self._open
        if of is not ledger or drawn != ledger.drawn:
            still = ~self.full(ledger)[None, :]
            self._open = ledger, ledger.drawn, still
        return still


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
) -> CappedDraw:
    rate, shares = allocation.allocate(requests.x[rows], eligible)
    routed = requests.routed[rows]
    closed_by = np.zeros(len(routed), dtype=np.int64)
    if eligible is not None:
        # No eligible model: nothing to randomize.
        closed_by[~eligible.any(axis=1)] = _INELIGIBLE
    if excluded is not None:
        closed_by[excluded[rows]] = _EXCLUDED
    if eligible is not None or excluded is not None:
        rate = np.where(closed_by > 0, 0.0, rate)
    model, randomized = draw(uniform[rows], rate, shares, routed)
    return CappedDraw(rate, shares, model, randomized, closed_by, eligible)


def _within(drawn: CappedDraw, run: QuotaCount, requests: RequestBatch, rows: slice) -> CappedDraw:
    """The draw with every row that a limit closes served as routed."""
    reason = run.closed(requests.x[rows], requests.unit[rows], drawn.randomized)
    shut = reason > 0
    if not shut.any():
        return drawn
    return replace(
        drawn,
        rate=np.where(shut, 0.0, drawn.rate),
        model=np.where(shut, requests.routed[rows], drawn.model),
        randomized=drawn.randomized & ~shut,
        closed_by=np.where(drawn.closed_by > 0, drawn.closed_by, reason),
    )


_INELIGIBLE, _EXCLUDED = int(Closure.INELIGIBLE), int(Closure.EXCLUDED)
_COLUMNS = ("rate", "shares", "model", "randomized", "closed_by")


def _head(drawn: CappedDraw, rows: int) -> CappedDraw:
    columns = {name: getattr(drawn, name)[:rows] for name in _COLUMNS}
    return CappedDraw(**columns, eligible=None)


def _joined(parts: list[CappedDraw], eligible: Flags | None) -> CappedDraw:
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in parts]) for name in _COLUMNS
    }
    return CappedDraw(**columns, eligible=eligible)
