"""Certified sums for rewards in a declared range, and the bounds read off them.

A row is a decision with a gate probability of at least rate_min; rows enter in decision order.
Rewards are scaled to [0, 1]. With W_t(m) = Z 1{A = m} / (e pi(m)) for a model and
W_t(routing) = 1{served as routed} / (1 - e + e pi(routed)) for today's routing, a value's lower
end rests on D = W R and its upper end on D = W (1 - R); the contrast of a and b on
D = W(a) R + W(b) (1 - R), whose mean is 1 + V(a) - V(b). All D are non-negative, so the largest
weight does not matter (Karampatziakis, Mineiro & Ramdas 2021; Waudby-Smith et al. 2022).

A missing reward takes part with R = 0 where R helps and 1 - R = 0 where that helps, which is the
worst case; it so enters as D = 0. No simulator, scorer or log takes part in any of this.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.inference.mixture import lower_mean
from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Flags, Floats, Ints

VALUE_BOUND = 1.0
CONTRAST_BOUND = 2.0


@dataclass(frozen=True, slots=True)
class Centres:
    """The predictable c_t of a rule: what D is expected to be, frozen before the draws.

    With A = K + 1 candidates, the K models and then today's routing: gain, loss: (A,) for W R
    and W (1 - R), in [0, 1]; contrast: (A, A) in [0, 2].
    """

    gain: Floats
    loss: Floats
    contrast: Floats

    @classmethod
    def neutral(cls, models: int) -> Self:
        size = models + 1
        return cls(np.full(size, 0.5), np.full(size, 0.5), np.ones((size, size)))


@dataclass(slots=True)
class CertifiedMoments(Additive):
    """Sums over certified rows. With A = K + 1 candidates (models, then today's routing):

    rows, randomized, missing: (1,). gain, loss: (A,) sums of W R, W (1 - R).
    gain_squares, loss_squares: (A,) sums of (D - c)^2; contrast_squares: (A, A) sums of
    ((D - c) / 2)^2. Each row used the centres c of the rule it was decided under.
    """

    rows: Floats
    randomized: Floats
    missing: Floats
    gain: Floats
    loss: Floats
    gain_squares: Floats
    loss_squares: Floats
    contrast_squares: Floats

    @classmethod
    def empty(cls, models: int) -> Self:
        size = models + 1
        return cls(
            rows=np.zeros(1),
            randomized=np.zeros(1),
            missing=np.zeros(1),
            gain=np.zeros(size),
            loss=np.zeros(size),
            gain_squares=np.zeros(size),
            loss_squares=np.zeros(size),
            contrast_squares=np.zeros((size, size)),
        )

    def update(
        self,
        centres: Centres,
        model: Ints,
        weight: Floats,
        routing_weight: Floats,
        reward: Floats,
        known: Flags,
    ) -> None:
        """Add n rows decided under one rule, in place.

        model: (n,) assigned model; weight: (n,) 1 / (e pi(model)) where randomized and delivered,
        else 0; routing_weight: (n,) as above, 0 where not served as routed; reward: (n,) scaled
        to [0, 1], any finite number where not `known`.
        """
        count = len(model)
        if count == 0:
            return
        models = len(self.gain) - 1
        won = np.where(known, reward, 0.0)
        lost = np.where(known, 1.0 - reward, 0.0)
        gain, loss = np.empty(models + 1), np.empty(models + 1)
        gain_sq, loss_sq = np.empty(models + 1), np.empty(models + 1)
        by_gain, by_loss = weight * won, weight * lost
        routed_gain, routed_loss = routing_weight * won, routing_weight * lost
        gain[:models] = np.bincount(model, by_gain, models)
        loss[:models] = np.bincount(model, by_loss, models)
        gain_sq[:models] = np.bincount(model, by_gain * by_gain, models)
        loss_sq[:models] = np.bincount(model, by_loss * by_loss, models)
        gain[models], loss[models] = routed_gain.sum(), routed_loss.sum()
        gain_sq[models] = (routed_gain * routed_gain).sum()
        loss_sq[models] = (routed_loss * routed_loss).sum()

        self.rows += count
        self.randomized += np.count_nonzero(weight)
        self.missing += count - np.count_nonzero(known)
        self.gain += gain
        self.loss += loss
        self.gain_squares += gain_sq - centres.gain * (2.0 * gain - count * centres.gain)
        self.loss_squares += loss_sq - centres.loss * (2.0 * loss - count * centres.loss)
        # A row has one assigned model, so two models never share a row; today's routing and the
        # model that was both routed and drawn do, hence the cross terms in its row and column.
        squares = gain_sq[:, None] + loss_sq[None, :]
        squares[:models, models] += 2.0 * np.bincount(model, by_gain * routed_loss, models)
        squares[models, :models] += 2.0 * np.bincount(model, by_loss * routed_gain, models)
        sums = gain[:, None] + loss[None, :]
        centre = centres.contrast
        self.contrast_squares += (
            squares - centre * (2.0 * sums - count * centre)
        ) / CONTRAST_BOUND**2

    def __add__(self, other: Self) -> Self:
        pairs = zip(self.arrays().values(), other.arrays().values(), strict=True)
        return type(self)(*(mine + theirs for mine, theirs in pairs))

    def centres(self) -> Centres:
        """Centres for the next rule: the running means, the best guess of D to come."""
        rows = float(self.rows[0])
        if rows == 0:
            return Centres.neutral(len(self.gain) - 1)
        contrast = (self.gain[:, None] + self.loss[None, :]) / rows
        return Centres(
            np.clip(self.gain / rows, 0.0, VALUE_BOUND),
            np.clip(self.loss / rows, 0.0, VALUE_BOUND),
            np.clip(contrast, 0.0, CONTRAST_BOUND),
        )


@dataclass(frozen=True, slots=True)
class Bounds:
    """Certified ends in reward units, valid at all times at the levels they were asked for.

    lower, upper: (A,) values of the K models and of today's routing.
    contrast: (A, A) lower ends of V(a) - V(b); the upper end is -contrast[b, a].
    """

    lower: Floats
    upper: Floats
    contrast: Floats


def value_bounds(moments: CertifiedMoments, alpha: float) -> tuple[Floats, Floats]:
    """(A,) lower and upper ends on the [0, 1] scale, each at one-sided level alpha."""
    rows = float(moments.rows[0])
    lower = lower_mean(rows, moments.gain, moments.gain_squares, VALUE_BOUND, alpha)
    upper = 1.0 - lower_mean(rows, moments.loss, moments.loss_squares, VALUE_BOUND, alpha)
    return np.clip(lower, 0.0, 1.0), np.clip(upper, 0.0, 1.0)


def contrast_bounds(moments: CertifiedMoments, alpha: float) -> Floats:
    """(A, A) lower ends of V(a) - V(b) on the [0, 1] scale, each at one-sided level alpha."""
    total = moments.gain[:, None] + moments.loss[None, :]
    rows = float(moments.rows[0])
    lower = lower_mean(rows, total, moments.contrast_squares, CONTRAST_BOUND, alpha) - 1.0
    np.fill_diagonal(lower, 0.0)
    return np.clip(lower, -1.0, 1.0)


def certified_winner(
    moments: CertifiedMoments, delta: float, epsilon: float, sign: int
) -> int | None:
    """The model certified to be within epsilon of the best (better than all, if epsilon is 0).

    epsilon on the [0, 1] scale; each of the K - 1 comparisons at one-sided level delta / (K - 1);
    sign -1 where smaller rewards are better. None while nothing is certified.
    """
    models = len(moments.gain) - 1
    lower = contrast_bounds(moments, delta / (models - 1))[:models, :models]
    oriented = lower if sign > 0 else lower.T
    np.fill_diagonal(oriented, np.inf)
    worst = oriented.min(axis=1)
    winner = int(np.argmax(worst))
    return winner if worst[winner] > -epsilon else None
