"""Sticky units: which decision opened the unit a request belongs to.

A unit is a user or a session. Its first request draws; every request within the time-to-live takes
over that assignment, so a user keeps one model and the unit is the row of the certified sums. The
decision of such a request names its leader, so the log alone says who belongs to whom.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np

from equipoise.agent.state.open_decisions import OpenDecisions
from equipoise.policies.draw import draw
from equipoise.store.batches import Closure, DecisionBatch, Ints, RequestBatch
from equipoise.store.format.sql_rows import joined


class StickyUnits:
    """Unit key -> the decision that opened it. A function of the log, rebuilt from pending rows."""

    def __init__(self) -> None:
        self._leader: dict[int, int] = {}
        self._cleaned = 1024

    def __len__(self) -> int:
        return len(self._leader)

    def take(self, batch: DecisionBatch, table: OpenDecisions) -> None:
        """Note the units that a batch, already in the table, opened."""
        leader = batch.number if batch.leader is None else batch.leader
        opens = np.flatnonzero(leader == batch.number)
        self._leader.update(
            zip(batch.unit[opens].tolist(), batch.number[opens].tolist(), strict=True)
        )
        if len(self._leader) > 2 * self._cleaned:
            self.rebuild(table)

    def rebuild(self, table: OpenDecisions) -> None:
        """From the rows of the table alone; closed units are forgotten."""
        opened = np.flatnonzero(table.until[: table.size] >= table.clock)
        self._leader = dict(
            zip(table.unit[opened].tolist(), (opened + table.base).tolist(), strict=True)
        )
        self._cleaned = max(len(self._leader), 1024)

    def leaders(self, requests: RequestBatch, table: OpenDecisions, first: int) -> Ints:
        """(n,) the decision that each request takes its assignment from, which is its own number
        for one that opens its unit. first: the number of the first. Later requests of a unit in
        one batch follow its first."""
        fresh: dict[int, int] = {}
        result = np.empty(len(requests), dtype=np.int64)
        clock = max(table.clock, float(requests.at.max(initial=0.0)))
        for row, (unit, at) in enumerate(
            zip(requests.unit.tolist(), requests.at.tolist(), strict=True)
        ):
            leader = fresh.get(unit)
            if leader is None:
                leader = self._leader.get(unit, -1)
                # The clock, and not only this request's own time: what is closed stays closed.
                if leader < table.base or table.until[leader - table.base] < max(at, clock):
                    leader = fresh[unit] = first + row
            result[row] = leader
        return result


def follow(batch: DecisionBatch, table: OpenDecisions) -> DecisionBatch:
    """The batch with every follower's assignment taken over from its leader.

    batch: decisions as if each request were its own unit, with `leader` set. A follower whose
    unit's model may not serve it (`eligible`) is served as routed, and its row says `capped`: for
    the unit that is part of what the assignment is worth (intention to treat).
    """
    leader = batch.leader
    if leader is None or (leader == batch.number).all():
        return batch
    first = int(batch.number[0])
    within = leader >= first
    own = np.where(within, leader - first, 0)
    earlier = np.where(within, 0, leader - table.base)

    # A row that opens its unit is its own leader, so it takes over what it has.
    rate = np.where(within, batch.rate[own], table.rate[earlier])
    uniform = np.where(within, batch.uniform[own], table.uniform[earlier])
    shares = np.where(within[:, None], batch.probabilities[own], table.probabilities[earlier])
    model, randomized = draw(uniform, rate, shares, batch.routed)
    follows = leader != batch.number
    if batch.eligible is None:
        closed = np.zeros(len(batch), dtype=bool)
    else:
        closed = follows & randomized & ~batch.eligible[np.arange(len(batch)), model]
    rate = np.where(closed, 0.0, rate)
    model, randomized = draw(uniform, rate, shares, batch.routed)
    mine = np.zeros(len(batch), dtype=np.int64) if batch.closed_by is None else batch.closed_by
    # A follower is closed by what closed its leader, or because its unit's model may not serve it.
    closed_by = np.where(within, mine[own], table.closed_by[earlier])
    closed_by = np.where(closed, int(Closure.INELIGIBLE), closed_by)
    return replace(
        batch,
        rate=rate,
        probabilities=shares,
        uniform=uniform,
        model=model,
        randomized=randomized,
        capped=np.where(follows, rate == 0.0, batch.capped),
        closed_by=closed_by,
    )


def one_by_one(
    decide: Callable[[RequestBatch], DecisionBatch], requests: RequestBatch
) -> DecisionBatch:
    """Decide every request alone, in order, and return the decisions together.

    For caps per model: which model a follower gets is its leader's draw, so that what is left of a
    cap is known only once the row before has been decided.
    """
    parts = []
    for row in range(len(requests)):
        columns: dict[str, Any] = {}
        for field in fields(RequestBatch):
            column = getattr(requests, field.name)
            columns[field.name] = None if column is None else column[row : row + 1]
        parts.append(decide(RequestBatch(**columns)))
    if any(part.eligible is not None for part in parts):
        every = np.ones_like(parts[0].probabilities, dtype=np.bool_)
        parts = [replace(each, eligible=every) if each.eligible is None else each for each in parts]
    return joined(parts)
