"""Open decisions: those that still wait for an outcome or for their place in decision order.

A table of columns over consecutive decision numbers, first in, first out. Finished rows leave
from the front when the table is full, so its size follows the number of open decisions and not
the length of history.

A table that outgrows its memory moves to a file of mapped columns (`ColumnFile`) beside the store.
The file is unlinked when it is made and holds nothing that the log does not; a row is read and
written as before, the system keeps what is used and may take the rest, and `release` gives back
what has not been used lately.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.lifecycle.drawn import LEAST_OPEN, Drawn
from equipoise.agent.monitors.progress import Behind
from equipoise.agent.state.attempts import Attempts, effective_attempt, reported_attempt
from equipoise.store.batches import (
    Closure,
    DecisionBatch,
    Flags,
    Floats,
    Ints,
    OutcomeBatch,
    left_out,
)
from equipoise.store.files import ColumnFile

BLOCK = 1 << 14
"""Rows that are moved at once."""
LEFT = 1 << 15
"""Rows that have left of which the model is remembered, 256 kB."""
NEWEST = 4096
"""Rows that stay in memory where the table lies in a file: their outcomes are yet to come."""

VOID = -1.0
"""The uniform of a row that is no decision; those of decisions lie in [0, 1)."""


_SLICE = int(Closure.SLICE)


def span(rows: Ints) -> Ints | slice:
    """Rows (n,) as a slice where they follow each other: their columns are then views."""
    first, count = int(rows[0]) if len(rows) else 0, len(rows)
    if count and int(rows[-1]) - first == count - 1 and (rows[1:] > rows[:-1]).all():
        return slice(first, first + count)
    return rows


_DTYPES = {"Floats": np.float64, "Ints": np.int64, "Flags": np.bool_}


class OpenDecisions:
    """Columns of decisions `base` … `base + size - 1`; row of decision i is i - base.

    x (n, d), y (n, q), probabilities (n, K), metrics (n, G), reward, unit, context, routed, model,
    served, randomized, rate, uniform, propensity (pi of the assigned model), routed_share (pi of
    the routed model), rule (ordinal), era, certifiable, capped, open_to_all (every model that the
    era compares was eligible); flags: has_outputs, has_reward, delivered, expired, folded, filled
    (expired, and the reward is the declared value of a missing one), waits (gathered for the sums
    of a chunk that is not finished), summed (its reward is in the sums of the families, or gathered
    for them as it came).
    served, delivered: of the attempt that counts (`attempts.py`); confirmed: some part says that
    the first attempt was delivered by the assigned model. reward_at: when the reward came.
    most_bytes: of memory that the table may take; beyond it lies in a file in `folder`, as long as
    there is room for one. closed_by: a `Closure`. leader: the decision that opened the unit, itself
    where units are not sticky; until: the time up to which the unit may grow, -inf where this row
    opened none.
    """

    x: Floats
    y: Floats
    probabilities: Floats
    metrics: Floats
    # In this order in a checkpoint, after the four that have a width.
    reward: Floats
    unit: Ints
    context: Ints
    routed: Ints
    model: Ints
    served: Ints
    rate: Floats
    propensity: Floats
    routed_share: Floats
    rule: Ints
    era: Ints
    at: Floats
    leader: Ints
    uniform: Floats
    until: Floats
    closed_by: Ints
    reward_at: Floats
    randomized: Flags
    certifiable: Flags
    capped: Flags
    open_to_all: Flags
    has_outputs: Flags
    has_reward: Flags
    delivered: Flags
    confirmed: Flags
    expired: Flags
    folded: Flags
    filled: Flags
    waits: Flags
    summed: Flags

    def __init__(
        self,
        context: int,
        outputs: int,
        models: int,
        metrics: int = 0,
        ttl: float | None = None,
        capacity: int = 4096,
        most_bytes: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.base = 0
        self.size = 0
        self.ttl = ttl
        self.clock = 0.0
        self.attempts = Attempts()
        self._left = np.zeros(0, dtype=np.int64)
        """Models that the newest rows which left were assigned: repeats ask for them."""
        self._most_bytes, self._folder = most_bytes, folder
        self._file: ColumnFile | None = None
        self._blank = 0
        """The rows from `size` up to here are as `_blank_rows` leaves them."""
        widths = {"x": context, "y": outputs, "probabilities": models, "metrics": metrics}
        self._columns: dict[str, NDArray[Any]] = {
            name: np.zeros((capacity, widths[name]) if name in widths else capacity, _DTYPES[kind])
            for name, kind in self.__annotations__.items()
        }
        self._bind()

    def _bind(self) -> None:
        """Every column as an attribute: looking one up by name in a dict costs more."""
        for name, column in self._columns.items():
            setattr(self, name, column)

    @property
    def next(self) -> int:
        """The number that the next decision will have."""
        return self.base + self.size

    def insert(
        self,
        batch: DecisionBatch,
        rule: int,
        rate_min: float,
        watermark: int,
        active: Flags,
        drawn: Drawn | None = None,
    ) -> None:
        """Append decisions. watermark: the first decision that is not closed; active: (K,) models
        that the batch's era compares; drawn: what is declared of draws that were made elsewhere."""
        count = len(batch)
        rows = self._next_rows(count, watermark)
        shares, index = batch.probabilities, np.arange(count)
        self.propensity[rows] = shares[index, batch.model]
        self.routed_share[rows] = shares[index, batch.routed]
        self.x[rows] = batch.x
        self.unit[rows] = batch.unit
        self.context[rows] = batch.context
        self.at[rows] = batch.at
        self.routed[rows] = batch.routed
        self.model[rows] = batch.model
        self.served[rows] = batch.model
        self.randomized[rows] = batch.randomized
        self.rate[rows] = batch.rate
        self.rule[rows] = rule
        self.era[rows] = batch.era
        self.certifiable[rows] = batch.rate >= rate_min
        self.probabilities[rows] = shares
        self.capped[rows] = batch.capped
        closed_by = batch.closed_by
        if closed_by is None:
            # Logs that do not say what closed a row: a limit on a part of the traffic, perhaps.
            closed_by = np.where(batch.capped, int(Closure.SEGMENT), 0)
        self.closed_by[rows] = closed_by
        if closed_by.max(initial=0) > _SLICE:
            self.certifiable[rows] &= ~left_out(closed_by)
            # Nobody is told to rate what was decided before: it waits for nothing.
            self.expired[rows] = closed_by == Closure.REPEATED
        if batch.eligible is not None:
            # A model that cannot be drawn here has no weight here: such rows identify nothing
            # for it and are left out, by a rule known before the draw.
            self.open_to_all[rows] = batch.eligible[:, active].all(axis=1)
            self.certifiable[rows] &= self.open_to_all[rows]
        if drawn is not None and drawn.certifies:
            self.open_to_all[rows] &= (shares[:, active] >= LEAST_OPEN).all(axis=1)
            self.certifiable[rows] &= self.open_to_all[rows]
        self.uniform[rows] = batch.uniform
        self.leader[rows] = batch.number if batch.leader is None else batch.leader
        if self.ttl is not None:
            self.clock = max(self.clock, float(batch.at.max()))
            opens = self.leader[rows] == batch.number
            self.certifiable[rows] &= opens
            until = batch.at + self.ttl
            if drawn is not None:
                # Their units last as long as the reading, whatever the time-to-live of ours.
                until = np.full(count, np.inf if drawn.how == "unit" else -np.inf)
            self.until[rows] = np.where(opens, until, -np.inf)

    def insert_one(
        self, row: tuple[Any, ...], rule: int, rate_min: float, watermark: int, active: Flags | None
    ) -> bool:
        """As `insert` of the only row of a batch (`DecisionBatch.row`), the same bits, where units
        are not sticky. active: None where the era compares every model. Returns whether a model
        that it compares was not eligible."""
        number, unit, context, at, x, routed, rate, shares, uniform, model, randomized = row[:11]
        capped, _, era, eligible = row[11:15]
        here = self.size
        if here >= self._blank:
            self._next_rows(1, watermark)
            here = self.size - 1
        else:
            self.size = here + 1
        self.x[here], self.probabilities[here] = x, shares
        self.propensity[here] = shares[0, model]
        self.routed_share[here] = shares[0, routed]
        self.unit[here], self.context[here], self.at[here] = unit, context, at
        self.routed[here], self.model[here], self.served[here] = routed, model, model
        self.rate[here], self.uniform[here] = rate, uniform
        self.rule[here], self.era[here], self.leader[here] = rule, era, number
        if randomized:
            self.randomized[here] = True
        if capped:
            self.capped[here], self.closed_by[here] = True, row[19]
        masked = False
        if eligible is not None:
            masked = not (eligible if active is None else eligible[:, active]).all()
        if masked:
            self.open_to_all[here] = False
        elif rate >= rate_min:
            self.certifiable[here] = True
        return masked

    def _next_rows(self, count: int, watermark: int) -> slice:
        """Room for `count` more rows, as `_blank_rows` leaves them."""
        start, end = self.size, self.size + count
        if end > len(self.rate):
            self._make_room(count, watermark)
            start, end = self.size, self.size + count
        if end > self._blank:
            self._blank_rows(start, min(max(end, start + NEWEST), len(self.rate)))
        self.size = end
        return slice(start, end)

    def _blank_rows(self, start: int, end: int) -> None:
        """What holds of a decision until something else is known, of rows that have left or were
        never used: many at once, so that a decision writes only what is its own."""
        rows = slice(start, end)
        self.reward[rows], self.y[rows], self.closed_by[rows] = 0.0, 0.0, 0
        self.metrics[rows] = self.reward_at[rows] = np.nan
        self.until[rows] = -np.inf
        self.has_outputs[rows] = self.y.shape[1] == 0
        for column in (self.randomized, self.certifiable, self.capped, self.has_reward):
            column[rows] = False
        for column in (self.confirmed, self.expired, self.folded, self.filled, self.waits):
            column[rows] = False
        self.summed[rows] = False
        self.delivered[rows] = self.open_to_all[rows] = True
        self._blank = end

    def skip(self, count: int, rule: int, era: int, watermark: int) -> None:
        """Append `count` rows for numbers that no decision has: their rows of the log were lost.

        They are closed, enter no sum, and are known by a uniform of -1. rule, era: of the decision
        that follows.
        """
        if self.size + count > len(self.rate):
            self._make_room(count, watermark)
        rows = slice(self.size, self.size + count)
        for column in self._columns.values():
            column[rows] = 0
        self.uniform[rows] = VOID
        self.until[rows] = -np.inf
        self.leader[rows] = np.arange(self.next, self.next + count)
        self.rule[rows], self.era[rows] = rule, era
        self.metrics[rows] = self.reward_at[rows] = np.nan
        # No limit closed them and no model was shut out: they are left out of no count either.
        self.expired[rows] = self.open_to_all[rows] = True
        self.size += count
        self._blank = max(self._blank, self.size)

    def assigned(self, numbers: Ints) -> tuple[Ints, Flags]:
        """(n,) the models that decisions assigned, and whether that is known here."""
        at = numbers - self.base
        held = (at >= 0) & (at < self.size)
        if held.all():
            return self.model[at], held
        left = (at < 0) & (at >= -len(self._left))
        models = np.zeros(len(at), dtype=np.int64)
        models[held], models[left] = self.model[at[held]], self._left[at[left]]
        return models, held | left

    def is_void(self, rows: slice | Ints) -> Flags:
        """Which rows stand for numbers that no decision has."""
        void: Flags = self.uniform[rows] == VOID
        return void

    def rows(self, numbers: Ints) -> Ints:
        """Rows of decision numbers that the caller knows to be held."""
        return numbers - self.base

    def as_drawn(self, at: Ints | slice) -> Flags:
        """(n,) whether rows `at` were delivered, and by the model that they were assigned."""
        drawn: Flags = self.delivered[at] & (self.served[at] == self.model[at])
        return drawn

    def take_attempts(self, batch: OutcomeBatch) -> None:
        """Merge what parts of distinct decisions say of who answered at which attempt."""
        if not batch.attempt.any():
            return
        if len(batch) == 1 and not len(self.attempts):
            row = batch.number.item() - self.base
            usual = batch.delivered.item() and batch.served.item() == self.model[row]
            if batch.attempt.item() == 1 and usual:
                self.confirmed[row] = True
                return
        rows = self.rows(batch.number)
        where = span(rows)
        plain = (batch.attempt == 1) & batch.delivered & (batch.served == self.model[where])
        self.confirmed[where] |= plain
        if not len(self.attempts) and plain.all():
            return
        more = ~plain & (batch.attempt != 0)
        again = more if not len(self.attempts) else more | self.attempts.among(batch.number)
        for index in np.flatnonzero(again).tolist():
            number, row = int(batch.number[index]), int(rows[index])
            assigned, report = int(self.model[row]), reported_attempt(batch, index)
            if more[index] and report is not None:
                self.attempts.take(number, *report, assigned)
            attempts = self.attempts.of(number, bool(self.confirmed[row]), assigned)
            self.delivered[row], self.served[row] = effective_attempt(
                attempts, assigned, int(self.routed[row])
            )

    def too_late(self, numbers: Ints, watermark: int) -> Flags:
        """(n,) decisions of which nothing more can be used.

        Those that expired, and those that are complete and were entered: even a metric would come
        after the checks have passed. Decisions that left the table are one or the other.
        """
        if not len(numbers):
            return np.zeros(0, dtype=bool)
        lowest = int(numbers.min())
        if lowest >= watermark:
            return self.expired[numbers - self.base]
        released = numbers < self.base
        at = np.where(released, 0, numbers - self.base)
        entered = (numbers < watermark) & self.has_reward[at] & self.has_outputs[at]
        late: Flags = released | self.expired[at] | entered
        return late

    def closed(self, start: int) -> Flags:
        """Which rows from `start` on have everything they wait for; the caller's watermark is at
        `start`, so the leader of every open row lies there or later."""
        done = self._done(slice(start, self.size))
        if self.ttl is None:
            return done
        leader = self.leader[start : self.size] - self.base - start
        waiting = np.bincount(leader[~done], minlength=len(done)) > 0
        closed: Flags = done & ~waiting & (self.until[start : self.size] < self.clock)
        return closed

    def passed(self, start: int) -> int:
        """How many rows from `start` on, the watermark, are closed before the first open one."""
        if self.ttl is not None:
            return _leading(self.closed(start))
        stop = start
        while stop < self.size:
            # A piece at a time: behind the first open row there may be very many.
            piece = self._done(slice(stop, min(stop + BLOCK, self.size)))
            stop += _leading(piece)
            if not piece.all():
                break
        return stop - start

    def _done(self, rows: slice) -> Flags:
        """(n,) rows that nobody has to wait for: what came late enters no sum in order."""
        late = self.closed_by[rows] == Closure.LATE
        result: Flags = self.has_reward[rows] | self.expired[rows] | late
        return result

    def reward_ends(
        self, at: Ints | slice, scaled: Callable[[Floats], Floats], missing: float | None
    ) -> tuple[Floats, Floats, Flags]:
        """Rewards of rows `at` (n,) on the [0, 1] scale, for lower and for upper ends (n,), and
        whether each came.

        missing: declared value of a reward that never comes, None for the worst case. A draw that
        was not delivered, or that another model answered, has no reward of its model to be missing:
        what that would have got is unknown, whatever is declared, so it always enters as the worst
        case. What was got instead lies within those ends too.
        """
        delivered = self.as_drawn(at)
        known: Flags = self.has_reward[at] & delivered
        reward = scaled(self.reward[at])
        if known.all():
            return reward, reward, known
        low, high = (
            np.where(
                known, reward, np.where(delivered & (missing is not None), missing or 0.0, end)
            )
            for end in (0.0, 1.0)
        )
        return low, high, known

    def rated_ends(
        self, at: Ints | slice, scaled: Callable[[Floats], Floats]
    ) -> tuple[Floats, Floats, Flags]:
        """A and B of the rewards A + theta B of rows `at` (n,), a missing one counting as theta,
        for lower and for upper ends (n, 2), and whether each came.

        What a draw that was not delivered would have got is unknown, as in `reward_ends`.
        """
        delivered = self.as_drawn(at)
        known: Flags = self.has_reward[at] & delivered
        reward = np.where(known, scaled(self.reward[at]), 0.0)
        free = (delivered & ~known).astype(np.float64)
        low = np.column_stack([reward, free])
        high = np.column_stack([np.where(delivered, reward, 1.0), free])
        return low, high, known

    def behind(self, start: int) -> Behind:
        """What lies from decision `start` on, where a watermark stands that can go no further."""
        first = start - self.base
        rows = slice(first, self.size)
        done = self._done(rows)
        if not len(done):
            return Behind()
        holder = 0
        if self.ttl is not None and done[0]:
            # Its own reward is there: one of its unit waits, or the unit may still grow.
            open_ = np.flatnonzero((self.leader[rows] == start) & ~done)
            holder = int(open_[0]) if len(open_) else 0
        took = self.reward_at[rows] - self.at[rows]
        took = took[self.has_reward[rows] & ~np.isnan(took)]
        waiting = int(np.count_nonzero(~done))
        return Behind(
            waiting,
            len(done) - waiting - int(done[holder]),
            start + holder,
            float(self.at[first + holder]),
            float(self.until[first]),
            float(took.mean()) if len(took) else np.nan,
        )

    @property
    def newest_at(self) -> float:
        """The time of the newest decision that is held, 0 where none is."""
        return float(self.at[self.size - 1]) if self.size else 0.0

    def unit_rewards(
        self, at: Ints, scaled: Callable[[Floats], Floats], missing: float | None
    ) -> tuple[Floats, Floats, Flags]:
        """Mean rewards of the units that rows `at` (n,), ascending, opened, on the [0, 1] scale.

        missing: declared value of a missing one, None for the worst case. Returns (n,) the mean
        for lower ends, for upper ends, and whether every reward came.
        """
        member, unit = self._members(at)
        low, high, known = self.reward_ends(member, scaled, missing)
        count = np.bincount(unit, minlength=len(at))
        ends = [np.bincount(unit, end, len(at)) / count for end in (low, high)]
        return ends[0], ends[1], np.bincount(unit, known, len(at)) == count

    def unit_rated_ends(
        self, at: Ints, scaled: Callable[[Floats], Floats]
    ) -> tuple[Floats, Floats, Flags]:
        """`rated_ends` of units: means over the requests that rows `at` (n,), ascending, opened,
        so a unit counts by the share of its requests that is rated."""
        member, unit = self._members(at)
        low, high, known = self.rated_ends(member, scaled)
        count = np.bincount(unit, minlength=len(at))
        ends = [
            np.column_stack([np.bincount(unit, part, len(at)) / count for part in end.T])
            for end in (low, high)
        ]
        return ends[0], ends[1], np.bincount(unit, known, len(at)) == count

    def _members(self, at: Ints) -> tuple[Ints, Ints]:
        """Rows of the units that rows `at` (n,), ascending, opened, and which unit each is of."""
        start = int(at[0])
        position = np.full(self.size - start, -1, dtype=np.int64)
        position[at - start] = np.arange(len(at))
        leader = self.leader[start : self.size] - self.base - start
        member = np.flatnonzero(leader >= 0)
        unit = position[leader[member]]
        return member[unit >= 0] + start, unit[unit >= 0]

    def front(self, watermark: int) -> int:
        """The first decision that is still needed: not closed, or not folded yet.

        When rows really leave depends on how requests were batched; this does not.
        """
        done = ((self.folded | self.expired) & ~self.waits)[: self.size]
        unfolded = self.size if done.all() else int(np.argmin(done))
        return min(self.base + unfolded, watermark)

    def arrays(self, first: int) -> dict[str, NDArray[Any]]:
        """The rows of decisions `first` and later, for a checkpoint."""
        rows = slice(first - self.base, self.size)
        columns = {name: column[rows] for name, column in self._columns.items()}
        return columns | {"attempts": self.attempts.array(first)}

    def load(self, base: int, arrays: dict[str, NDArray[Any]]) -> None:
        self.base, self.size = base, len(arrays["rate"])
        self._left = self._left[:0]
        self._blank = self.size
        while len(self.rate) < self.size:
            self._grow()
        for name, column in self._columns.items():
            for start in range(0, self.size, BLOCK):
                column[start : min(start + BLOCK, self.size)] = arrays[name][start : start + BLOCK]
        self.attempts.load(arrays["attempts"])
        self.release()

    def _make_room(self, count: int, watermark: int) -> None:
        drop = self.front(watermark) - self.base
        remaining = self.size - drop
        # Moving is worth it while it frees at least half; else the table doubles.
        while remaining + count > len(self.rate) // 2:
            self._grow()
        if drop:
            self._left = np.concatenate([self._left, self.model[:drop]])[-LEFT:]
            for column in self._columns.values():
                # Block by block: the table may be larger than the memory it is allowed.
                for start in range(0, remaining, BLOCK):
                    stop = min(start + BLOCK, remaining)
                    column[start:stop] = column[drop + start : drop + stop].copy()
            self.base, self.size = self.base + drop, remaining
            self._blank = remaining
            self.attempts.forget(self.base)
            self.release()

    def release(self) -> None:
        """Where the table lies in a file, give back the memory of all but its newest rows."""
        if self._file is not None:
            self._file.release(max(self.size - NEWEST, 0))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return sum(column[:1].nbytes for column in self._columns.values())

    def _grow(self) -> None:
        capacity = 2 * len(self.rate)
        if self._most_bytes is not None and capacity * self.row_bytes > self._most_bytes:
            try:
                self._move_to_file(capacity)
                return
            except OSError:
                # No room for a file: memory, as long as there is any.
                self._most_bytes = None
        # Only what is held is touched: pages of the rest are taken as decisions come.
        for name, column in self._columns.items():
            grown = np.zeros((capacity, *column.shape[1:]), column.dtype)
            held = column[: self.size]
            grown[: len(held)] = held
            self._columns[name] = grown
        self._blank, self._file = self.size, None
        self._bind()

    def _move_to_file(self, capacity: int) -> None:
        assert self._folder is not None
        file = self._file or ColumnFile(self._folder)
        columns: dict[str, NDArray[Any]] = {}
        for name, column in self._columns.items():
            columns[name] = file.column(name, (capacity, *column.shape[1:]), column.dtype)
            if self._file is None:
                for start in range(0, len(column), BLOCK):
                    columns[name][start : start + BLOCK][: len(column) - start] = column[
                        start : start + BLOCK
                    ]
        self._file, self._columns = file, columns
        self._bind()


def _leading(flags: Flags) -> int:
    """How many are true before the first that is not."""
    return len(flags) if flags.all() else int(np.argmin(flags))
