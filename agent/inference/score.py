"""The score psi: what one certified row says of every candidate's value, and sums of scores.

With A = K + 1 + P candidates (the K models, today's routing, then P declared per-request
policies), a row with chance p(m) of serving m as drawn, weight W(m) = 1{drawn m} / p(m) and frozen
prediction mu(m) in [0, 1] scores
    psi(m) = mu(m) + W(m) (R - mu(m)),       E[psi(m) | past, x] = E[R | x, do(m)]
whatever mu is, as E[W(m) | past, x] = 1. p(m) = e pi(m) for a model; for today's routing
p = 1 - e + e pi(routed), W = 1{served as routed} / p, mu = mu(routed); a policy d scores
sum_m d(m | x) psi(m).

A missing reward enters as a declared value, or as the worst case: 0 in the `low` score, which
lower ends rest on, and 1 in the `high` one.

Caps. psi is bounded below by -(1 / p - 1) mu, which is useless where p is small. With a cap k >= 0
    mu_low = min(mu, k / (1/p - 1)),    mu_high = max(mu, 1 - k / (1/p - 1))
are predictable as mu is, so both scores keep their conditional mean, and
    psi_low >= -k,    psi_high <= 1 + k                                            (*)
for every chance p. Proof: where W = 0, psi_low = mu_low >= 0. Where W = 1/p,
psi_low = R / p - (1/p - 1) mu_low >= -k. The upper one is the lower one of 1 - R and 1 - mu.
For a policy, at most one W(m) is not 0, so psi_low >= -d(m) k >= -k. Cap 0 gives W R and
1 - W (1 - R), whose sequence `bounded` keeps; no cap gives psi itself. The clipped control variate
of Waudby-Smith, Wu, Ramdas, Karampatziakis & Mineiro 2022 is the same idea for values.

Squares are taken around centres that are frozen with the rule, so two sets of sums merge by plain
addition and nothing cancels: a row's centre is what the score was expected to be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Flags, Floats, Ints


@dataclass(frozen=True, slots=True)
class Rows:
    """Columns of n certified rows, all but the rewards frozen in the decision.

    chance: (n, K + 1) p of every model and of today's routing, in (0, 1].
    drawn: (n, K + 1) whether the row was served as that candidate would have it.
    predicted: (n, K + 1) raw predictions of the snapshot in force, [0, 1] scale.
    low, high: (n,) reward on the [0, 1] scale for the lower and for the upper ends; they differ
    where the reward is missing and the worst case is declared.
    shares: (n, P, K) what each declared policy would have done.
    """

    chance: Floats
    drawn: Flags
    predicted: Floats
    low: Floats
    high: Floats
    shares: Floats

    @classmethod
    def of(
        cls,
        rate: Floats,
        probabilities: Floats,
        randomized: Flags,
        model: Ints,
        routed: Ints,
        predicted: Floats,
        reward: Floats,
        known: Flags,
        missing: float | None = None,
        shares: Floats | None = None,
    ) -> Self:
        """Rows from a decision's columns.

        rate: (n,) e > 0; probabilities: (n, K) pi; randomized: (n,) Z; model: (n,) the assigned
        one; routed: (n,); predicted: (n, K) raw; reward: (n,) scaled, any number where not known;
        missing: declared value on the [0, 1] scale, None for the worst case.
        """
        count, models = probabilities.shape
        index = np.arange(count)
        # A candidate's numbers lie together: there are many rows and few candidates, and numpy
        # takes a column at a time many times faster than a row.
        chance = np.empty((models + 1, count)).T
        np.multiply(probabilities.T, rate, out=chance[:, :models].T)
        chance[:, models] = 1.0 - rate + rate * probabilities[index, routed]
        drawn = np.zeros((models + 1, count), dtype=np.bool_).T
        drawn[index, model] = randomized
        drawn[:, models] = model == routed
        guess = np.empty((models + 1, count)).T
        guess[:, :models] = predicted
        guess[:, models] = predicted[index, routed]
        low, high = (0.0, 1.0) if missing is None else (missing, missing)
        return cls(
            chance,
            drawn,
            guess,
            np.where(known, reward, low),
            np.where(known, reward, high),
            np.zeros((count, 0, models)) if shares is None else shares,
        )

    def __len__(self) -> int:
        return len(self.low)


@dataclass(frozen=True, slots=True)
class Tuning:
    """Frozen with a rule: mu = clip(offset + factor * raw prediction, 0, 1), each (K + 1,).

    usual: the raw prediction to assume where there is none, 1/2 if not given.
    """

    offset: Floats
    factor: Floats
    usual: Floats | None = None

    @classmethod
    def off(cls, models: int) -> Self:
        """No prediction: every mu is one half."""
        return cls(np.full(models + 1, 0.5), np.zeros(models + 1))

    def apply(self, predicted: Floats) -> Floats:
        """(n, K + 1) predictions in force."""
        known = np.isfinite(predicted)
        if not known.all():
            predicted = np.where(known, predicted, 0.5 if self.usual is None else self.usual)
        result: Floats = self.factor * predicted
        result += self.offset
        return np.clip(result, 0.0, 1.0, out=result)

    def apply_own(self, predicted: Floats, model: Ints) -> Floats:
        """(n,) the same of one model (n,) a row, of its raw prediction (n,)."""
        usual = 0.5 if self.usual is None else self.usual[model]
        raw = np.where(np.isfinite(predicted), predicted, usual)
        result: Floats = np.clip(self.offset[model] + self.factor[model] * raw, 0.0, 1.0)
        return result


def scores_under(
    rows: Rows, tuning: Tuning, caps: tuple[float, ...]
) -> Iterator[tuple[Floats, Floats]]:
    """(n, A) low and high scores under each of several caps, infinity for none."""
    mu = tuning.apply(rows.predicted)
    full = 1.0 / rows.chance
    weight = full * rows.drawn
    low_end = weight * rows.low[:, None]
    high_end = low_end if rows.low is rows.high else weight * rows.high[:, None]
    # psi = mu + W (R - mu) = W R + (1 - W) mu.
    rest = 1.0 - weight
    full -= 1.0
    # Where the weight is 1 there is nothing to bound.
    free = full <= 0.0
    bounded = not free.any()
    if not bounded:
        full[free] = 1.0
    for cap in caps:
        if cap == 0.0 and bounded:
            low, high = low_end, rest + high_end
        elif np.isinf(cap):
            low = rest * mu
            high = low if high_end is low_end else low + high_end
            low += low_end
        else:
            room = cap / full
            if not bounded:
                room[free] = np.inf
            low, high = np.minimum(mu, room), np.maximum(mu, np.subtract(1.0, room, out=room))
            for psi, end in ((low, low_end), (high, high_end)):
                psi *= rest
                psi += end
        yield with_policies(rows, low, high)


def with_policies(rows: Rows, low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """The scores of declared policies appended to those of models and of today's routing."""
    if not rows.shares.shape[1]:
        return low, high
    models = rows.shares.shape[2]
    # Row by row, so that a row alone and in a batch has the same bits.
    of_low, of_high = (
        np.einsum("npk,nk->np", rows.shares, np.ascontiguousarray(psi[:, :models]))
        for psi in (low, high)
    )
    return np.hstack([low, of_low]), np.hstack([high, of_high])


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
            centre_low, centre_high = centres.low[index], centres.high[index]
            u = low.T - centre_low[:, None]
            if high is low and np.array_equal(centre_low, centre_high):
                v, sums = u, low.sum(axis=0)
                self.low[index] += sums
                self.high[index] += sums
            else:
                v = high.T - centre_high[:, None]
                self.low[index] += low.sum(axis=0)
                self.high[index] += high.sum(axis=0)
            cross = u @ v.T
            self.cross[index] += cross
            for squares, part in ((self.low_squares, u), (self.high_squares, v)):
                own = np.diagonal(cross) if v is u else np.einsum("an,an->a", part, part)
                squares[index] += own

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

    def centres(self, known: Floats | None = None, share: Floats | None = None) -> ScoreCentres:
        """Centres for the next rule: the running means, in [0, 1].

        known: (A,) what the scores are expected to be, and share: (A,) how much of it counts.
        """
        if self.rows[0] == 0:
            if known is None:
                return ScoreCentres.neutral(*self.low.shape)
            every = np.broadcast_to(known, self.low.shape)
            return ScoreCentres(every.copy(), every.copy())
        low, high = self.means()
        if known is not None and share is not None:
            low, high = (mean + share * (known - mean) for mean in (low, high))
        return ScoreCentres(np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0))
