"""What rows may say: outcomes each part once, decisions "as routed" where they had to be.

`PartAudit` follows what is known of each decision's outcome, `StopAudit` what stood in the way of
randomizing it: limits, caps, excluded users and stops, recomputed from the log.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from equipoise.agent.budget.caps import QuotaCount, Quotas, model_caps, segment_ranges
from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.eras import Stops, read_stops
from equipoise.agent.state.chunk import occurrence, widened
from equipoise.policies.draw import draw
from equipoise.store.batches import (
    LEFT_OUT,
    Closure,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Floats,
    OutcomeBatch,
    select,
    slice_rows,
    text_keys,
)
from equipoise.store.contract import Store


class PartAudit:
    """What is known of each decision's outcome while the log is read.

    configs: every configuration that was in force. first: the first decision of the log.
    """

    def __init__(
        self, config: ExperimentConfig, configs: Sequence[ExperimentConfig], first: int
    ) -> None:
        self._reward, self._models = config.reward, len(config.models)
        self._guardrails = config.guardrails
        windows = [each.reward.window for each in configs]
        self._window = min((window for window in windows if window is not None), default=np.inf)
        self._first = first
        self._size = 0
        self._columns: dict[str, Floats] = {
            "at": np.empty(1024),
            "reward": np.empty(1024),
            "expired": np.empty(1024),
            "elsewhere": np.empty(1024),
        }
        self._outputs: Floats | None = None
        self._metrics: Floats = np.empty((1024, len(self._guardrails)))

    def decided(self, batch: DecisionBatch, number: int, elsewhere: bool = False) -> None:
        """Take in decisions, whose first has this number; those left out before it are lost.

        elsewhere: whether they were drawn elsewhere: what did not come with them never comes.
        """
        end = number - self._first + len(batch)
        while end > len(self._metrics):
            grown = {name: np.resize(each, 2 * len(each)) for name, each in self._columns.items()}
            self._columns = grown
            self._metrics = np.resize(
                self._metrics, (2 * len(self._metrics), self._metrics.shape[1])
            )
            if self._outputs is not None:
                shape = 2 * len(self._outputs), self._outputs.shape[1]
                self._outputs = np.resize(self._outputs, shape)
        rows = slice(self._size, end)
        self._columns["at"][rows] = np.nan
        self._columns["at"][end - len(batch) : end] = batch.at
        self._columns["reward"][rows] = np.nan
        self._columns["expired"][rows] = 0.0
        self._columns["elsewhere"][rows] = elsewhere
        if batch.closed_by is not None:
            # Closed once the other decision of its request was rated.
            again = batch.closed_by == Closure.AGAIN
            self._columns["elsewhere"][end - len(batch) : end][again] = 1.0
        self._metrics[rows] = np.nan
        if self._outputs is not None:
            self._outputs[rows] = np.nan
        self._size = end

    def answered(self, batch: OutcomeBatch | ExpiryBatch) -> Iterator[tuple[Flags, str]]:
        """Faults of outcomes or expiries of decisions that exist: (n,) which rows, and what."""
        known = batch.number >= self._first
        lost = np.zeros(len(batch), dtype=bool)
        lost[known] = np.isnan(self._columns["at"][batch.number[known] - self._first])
        yield lost, "is answered for and was lost"
        if isinstance(batch, ExpiryBatch):
            yield from self._expired(batch, known)
            return
        unknown = (batch.served < 0) | (batch.served >= self._models)
        yield unknown, "was answered by a model that does not exist"
        reward = batch.reward
        inside = (reward >= self._reward.low) & (reward <= self._reward.high)
        off: Flags = np.logical_not(np.isnan(reward) | inside)
        yield off, "has a reward outside the declared range"
        if batch.metrics is not None:
            low = np.array([item.low for item in self._guardrails])
            high = np.array([item.high for item in self._guardrails])
            outside = ~((batch.metrics >= low) & (batch.metrics <= high))
            present = np.logical_not(np.isnan(batch.metrics))
            bad: Flags = np.logical_or.reduce(outside & present, axis=1)
            yield bad, "has a metric outside its declared range"
        twice = np.zeros(len(batch), dtype=bool)
        empty = np.zeros(len(batch), dtype=bool)
        # Parts of one decision may meet in one batch: how the log is cut says nothing.
        turn = np.where(known, occurrence(batch.number), -1)
        for index in range(int(turn.max(initial=-1)) + 1):
            rows = np.flatnonzero(turn == index)
            twice[rows], empty[rows] = self._take(select(batch, turn == index))
        yield twice, "has a part of its outcome twice, with different values"
        yield empty, "has a part of its outcome twice"

    def _take(self, batch: OutcomeBatch) -> tuple[Flags, Flags]:
        """(n,) which rows contradict what is known, and which say nothing new."""
        rows = batch.number - self._first
        if self._outputs is None:
            self._outputs = np.full((len(self._metrics), batch.outputs.shape[1]), np.nan)
        parts: list[tuple[Floats, Floats]] = [
            (self._columns["reward"][:, None], batch.reward[:, None]),
            (self._outputs, batch.outputs),
        ]
        if batch.metrics is not None:
            parts.append((self._metrics, batch.metrics))
        contradicts = np.zeros(len(batch), dtype=bool)
        news = np.zeros(len(batch), dtype=bool)
        told_any = np.zeros(len(batch), dtype=bool)
        for column, values in parts:
            before, present = column[rows], ~np.isnan(values)
            fresh = present & np.isnan(before)
            contradicts |= (present & ~fresh & (before != values)).any(axis=1)
            news |= fresh.any(axis=1)
            told_any |= present.any(axis=1)
            column[rows] = np.where(fresh, values, before)
        # What a part says of attempts is merged from all of them and may be new (`attempts`).
        return contradicts, told_any & ~news & ~contradicts & (batch.attempt == 0)

    def _expired(self, batch: ExpiryBatch, known: Flags) -> Iterator[tuple[Flags, str]]:
        rows = np.where(known, batch.number - self._first, 0)
        if not known.any():
            return
        at = self._columns["at"][rows]
        # Closed before it was made: by a clock that was set back since (docs/runbook.md).
        elsewhere = self._columns["elsewhere"][rows] > 0
        early = ~(batch.at > at + self._window) & (batch.at >= at) & ~elsewhere
        again = (self._columns["expired"][rows] > 0) | (occurrence(batch.number) > 0)
        self._columns["expired"][rows[known]] = 1.0
        # A part that comes after its window closes its decision, complete or not: it is late.
        yield known & early, "expired before its window ended"
        yield known & again, "expired twice"


_ROUNDING = 1e-9


@dataclass(slots=True)
class StopFaults:
    """(n,) flags of one batch. shut: served as routed where nothing stopped it; loose: randomized,
    or claimed to be, where something did; full: open to a model that had had all it may get."""

    shut: Flags
    loose: Flags
    full: Flags


class StopAudit:
    """Follows a log and recomputes `capped`. unproven: by reason, how many rows could not be."""

    def __init__(self, store: Store, config: ExperimentConfig, first: int) -> None:
        texts = stored_config.versions(store)
        self._configs = {number: ExperimentConfig.from_json(text) for number, text in texts.items()}
        self._configs = self._configs or {0: config}
        self._models = len(config.models)
        self._ledger = Ledger(
            self._models, segment_ranges(config), config.budget.per_user is not None
        )
        self._counted = first == 0
        notes = read_stops(store)
        # What an older version decided it did not note.
        self._known_from = notes[0].since if notes else None
        self._notes = notes
        self.unproven: dict[str, int] = {}

    def check(
        self,
        batch: DecisionBatch,
        number: int,
        rate: Floats,
        shares: Floats,
        active: Flags,
        opened_rate: Floats | None,
        decided: bool = False,
    ) -> StopFaults:
        """number: of the first decision. rate, shares: (n,), (n, K) as the rule gives them. active:
        (K,) models its era compares. opened_rate: (n,) the logged rate of the decision that opened
        the unit, NaN where the row opened it; None without units. decided: whether the rule stops
        since its era is decided."""
        parts = []
        for start, stop, note in self._spans(number, len(batch)):
            rows = slice(start, stop)
            parts.append(
                self._check(
                    slice_rows(batch, start, stop),
                    rate[rows],
                    shares[rows],
                    active,
                    None if opened_rate is None else opened_rate[rows],
                    note,
                    decided,
                )
            )
        return StopFaults(
            *(
                np.concatenate([getattr(part, name) for part in parts])
                for name in StopFaults.__slots__
            )
        )

    def _spans(self, number: int, count: int) -> list[tuple[int, int, Stops | None]]:
        """(start, stop, note) of runs of rows under one note; None where it is not known."""
        edges = {0, count}
        known = self._known_from
        cuts = [note.since for note in self._notes] + ([] if known is None else [known])
        edges |= {cut - number for cut in cuts if 0 < cut - number < count}
        ordered = sorted(edges)
        spans: list[tuple[int, int, Stops | None]] = []
        for start, stop in pairwise(ordered):
            note = None
            if known is not None and number + start >= known:
                note = [each for each in self._notes if each.since <= number + start][-1]
            spans.append((start, stop, note))
        return spans

    def _check(
        self,
        batch: DecisionBatch,
        rate: Floats,
        shares: Floats,
        active: Flags,
        opened_rate: Floats | None,
        note: Stops | None,
        decided: bool,
    ) -> StopFaults:
        count = len(batch)
        config = self._configs.get(0 if note is None else note.config)
        before = self._ledger.by_model, float(self._ledger.by_model.sum())
        no_model: Flags = np.zeros(count, dtype=bool)
        if batch.eligible is not None:
            np.logical_not(batch.eligible.any(axis=1), out=no_model)
        if note is None or config is None:
            self._take(batch, active)
            self._cannot("of times before what stops them was noted", batch.capped & ~no_model)
            none = np.zeros(count, dtype=bool)
            return StopFaults(none, no_model & ~batch.capped, none)
        of_lanes = batch.draw is not None
        sliced = left_out = np.zeros(count, dtype=bool)
        if of_lanes and batch.closed_by is not None:
            sliced = batch.closed_by == Closure.SLICE
            left_out = np.isin(batch.closed_by, LEFT_OUT)
        closed = no_model
        if config.policy.exclude:
            closed = closed | np.isin(batch.unit, text_keys("unit", config.policy.exclude))
        quotas, unsure = Quotas.of(config), np.zeros(count, dtype=bool)
        # A decider knows its tickets and not the counts of others: what the log had counted when a
        # row got its number does not close it. That a cap was kept shows in those it randomized.
        limited = np.zeros(count, dtype=bool)
        if quotas:
            if of_lanes and self._counted:
                limited |= self._beyond(quotas, batch)
                unsure |= batch.capped & (batch.closed_by == Closure.SEGMENT)
            elif self._counted:
                would = draw(batch.uniform, np.where(closed, 0.0, rate), shares, batch.routed)[1]
                run = QuotaCount(quotas, self._ledger)
                closed = closed | (run.closed(batch.x, batch.unit, would) > 0)
            else:
                unsure[:] = True
        if opened_rate is not None:
            follows = ~np.isnan(opened_rate)
            closed = np.where(follows, self._of_followers(batch, opened_rate, shares), closed)
        onto = (batch.model[:, None] == np.arange(self._models)) & batch.randomized[:, None]
        stopped = np.full(count, note.off is not None)
        if decided:
            stopped |= np.ones(count, dtype=bool) if opened_rate is None else np.isnan(opened_rate)
        if note.requests is not None:
            if self._counted:
                spent = before[1] + np.cumsum(batch.randomized) - batch.randomized
                over = spent + 1.0 > note.requests * (1.0 + _ROUNDING)
                if of_lanes:
                    limited |= over
                    stopped |= over & (batch.closed_by == Closure.BUDGET)
                    unsure |= batch.capped & (batch.closed_by == Closure.BUDGET)
                else:
                    stopped |= over
            else:
                unsure[:] = True
        if config.budget.money is not None or config.budget.harm is not None:
            unsure[:] = True
        full = np.zeros(count, dtype=bool)
        caps = model_caps(config)
        if np.isfinite(caps).any() and self._counted:
            had = before[0] + np.cumsum(onto, axis=0) - onto
            models = batch.probabilities.shape[1]
            shut = (had[:, : len(caps)] >= caps)[:, :models]
            eligible = np.ones((count, models), dtype=bool)
            if batch.eligible is not None:
                eligible = batch.eligible
            full = (shut & eligible[:, : shut.shape[1]]).any(axis=1)
            if of_lanes:
                # Open as it was when the rule began; what it may not be is randomized onto it.
                full = (shut[:, : onto.shape[1]] & onto[:, : shut.shape[1]]).any(axis=1)
        self._take(batch, active)
        expected = closed | stopped
        alone = batch.capped & ~expected
        self._cannot("by a decider's slice of a budget", alone & sliced)
        self._cannot("before they were left out", alone & left_out)
        sliced |= left_out
        self._cannot(
            "by a budget of money or harm, or counts of removed rows", alone & unsure & ~sliced
        )
        loose = (expected & ~batch.capped) | (limited & batch.randomized)
        return StopFaults(alone & ~unsure & ~sliced, loose, full)

    def _beyond(self, quotas: Quotas, batch: DecisionBatch) -> Flags:
        """(n,) rows that were randomized in a segment that had had all it may get."""
        result = np.zeros(len(batch), dtype=bool)
        spent = self._ledger.by_segment
        for index, (segment, cap) in enumerate(zip(quotas.segments, quotas.caps, strict=True)):
            inside = (segment.holds(batch.x) & batch.randomized).astype(np.int64)
            result |= (inside > 0) & (spent[index] + np.cumsum(inside) > cap)
        return result

    @staticmethod
    def _of_followers(batch: DecisionBatch, opened_rate: Floats, shares: Floats) -> Flags:
        rate = np.where(np.isnan(opened_rate), 0.0, opened_rate)
        model, randomized = draw(batch.uniform, rate, shares, batch.routed)
        closed: Flags = rate == 0.0
        if batch.eligible is not None:
            closed |= randomized & ~batch.eligible[np.arange(len(batch)), model]
        return closed

    def _take(self, batch: DecisionBatch, active: Flags) -> None:
        if batch.probabilities.shape[1] < self._models:
            batch, _ = widened(batch, active, self._models)
        self._ledger.take(batch)

    def _cannot(self, why: str, rows: Flags) -> None:
        count = int(np.count_nonzero(rows))
        if count:
            self.unproven[why] = self.unproven.get(why, 0) + count
