"""Whether outcomes say each part once and nothing that was refused, over a whole log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from equipoise.agent.columns import occurrence
from equipoise.agent.config import ExperimentConfig
from equipoise.store.batches import DecisionBatch, ExpiryBatch, Flags, Floats, OutcomeBatch
from equipoise.store.slicing import select


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
        }
        self._outputs: Floats | None = None
        self._metrics: Floats = np.empty((1024, len(self._guardrails)))

    def decided(self, batch: DecisionBatch, number: int) -> None:
        """Take in decisions, whose first has this number; those left out before it are lost."""
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
            told = np.logical_not(np.isnan(batch.metrics))
            bad: Flags = np.logical_or.reduce(outside & told, axis=1)
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
        for held, given in parts:
            before, told = held[rows], ~np.isnan(given)
            fresh = told & np.isnan(before)
            contradicts |= (told & ~fresh & (before != given)).any(axis=1)
            news |= fresh.any(axis=1)
            told_any |= told.any(axis=1)
            held[rows] = np.where(fresh, given, before)
        # What a part says of attempts is merged from all of them and may be new (`attempts`).
        return contradicts, told_any & ~news & ~contradicts & (batch.attempt == 0)

    def _expired(self, batch: ExpiryBatch, known: Flags) -> Iterator[tuple[Flags, str]]:
        rows = np.where(known, batch.number - self._first, 0)
        if not known.any():
            return
        at = self._columns["at"][rows]
        # Closed before it was made: by a clock that was set back since (docs/runbook.md).
        early = ~(batch.at > at + self._window) & (batch.at >= at)
        again = (self._columns["expired"][rows] > 0) | (occurrence(batch.number) > 0)
        self._columns["expired"][rows[known]] = 1.0
        # A part that comes after its window closes its decision, complete or not: it is late.
        yield known & early, "expired before its window ended"
        yield known & again, "expired twice"
