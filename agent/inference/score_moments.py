"""Sums of scores over certified rows, under several caps, for every candidate and every pair.

Squares are taken around centres that are frozen with the rule, so two sets of sums merge by plain
addition and nothing cancels: a row's centre is what the score was expected to be.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.inference.score import Rows, Tuning, scores_under
from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Floats


@dataclass(frozen=True, slots=True)
class ScoreCentres:
    """Frozen with a rule: what the low and high scores are expected to be, (C, A), in [0, 1]."""

    low: Floats
    high: Floats

    @classmethod
    def neutral(cls, caps: int, candidates: int) -> Self:
        return cls(np.full((caps, candidates), 0.5), np.full((caps, candidates), 0.5))


@dataclass(slots=True)
class ScoreMoments(Additive):
    """Sums over certified rows for C caps and A candidates.

    rows: (1,). low, high: (C, A) sums of the low and high scores. low_squares, high_squares:
    (C, A) sums of u^2 and v^2, with u = low - its centre and v = high - its centre; cross:
    (C, A, A) sums of u_a v_b.
    """

    rows: Floats
    low: Floats
    high: Floats
    low_squares: Floats
    high_squares: Floats
    cross: Floats

    @classmethod
    def empty(cls, caps: int, candidates: int) -> Self:
        one = (caps, candidates)
        return cls(
            rows=np.zeros(1),
            low=np.zeros(one),
            high=np.zeros(one),
            low_squares=np.zeros(one),
            high_squares=np.zeros(one),
            cross=np.zeros((caps, candidates, candidates)),
        )

    def update(
        self, rows: Rows, tuning: Tuning, centres: ScoreCentres, caps: tuple[float, ...]
    ) -> None:
        """Add n rows decided under one rule, in place. caps: (C,), fixed within an era."""
        if not len(rows):
            return
        self.rows += len(rows)
        for index, (low, high) in enumerate(scores_under(rows, tuning, caps)):
            self.low[index] += low.sum(axis=0)
            self.high[index] += high.sum(axis=0)
            u, v = low - centres.low[index], high - centres.high[index]
            self.low_squares[index] += (u * u).sum(axis=0)
            self.high_squares[index] += (v * v).sum(axis=0)
            self.cross[index] += u.T @ v

    def __add__(self, other: Self) -> Self:
        self.require_same_shape(other)
        pairs = zip(self.arrays().values(), other.arrays().values(), strict=True)
        return type(self)(*(mine + theirs for mine, theirs in pairs))

    def means(self) -> tuple[Floats, Floats]:
        """(C, A) mean low and high scores, NaN where there is no row."""
        rows = float(self.rows[0])
        if rows == 0:
            unknown = np.full(self.low.shape, np.nan)
            return unknown, unknown.copy()
        return self.low / rows, self.high / rows

    def contrast_squares(self) -> Floats:
        """(C, A, A) sums of (u_a - v_b)^2: squares of the low end of a less the high end of b."""
        squares = self.low_squares[:, :, None] + self.high_squares[:, None, :] - 2.0 * self.cross
        return np.maximum(squares, 0.0)

    def centres(self) -> ScoreCentres:
        """Centres for the next rule: the running means, in [0, 1]."""
        if self.rows[0] == 0:
            return ScoreCentres.neutral(*self.low.shape)
        low, high = self.means()
        return ScoreCentres(np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0))
