"""The mean among those who rate, q(m) = E[S R | do(m)] / E[S | do(m)] with S = 1 if rated.

A reward that never comes counts as theta, for every theta in [0, 1] at once:
    Y(theta) = S R + (1 - S) theta,      E[Y(theta)] - theta = E[S] (q - theta),
so q <= theta just where Y(theta) has a mean of at most theta, and the bounded sequence of `mixture`
tests that. Y is affine in theta, A + theta B, hence so is its score
    psi(theta) = mu(theta) + W (Y(theta) - mu(theta)),      mu(theta) = a + (1 - b) theta,
with frozen predictions a of S R and b of S, 0 <= a <= b <= 1. Where few rate, Y hardly varies and
mu takes nearly all of what varies away. Caps as in `score`, by a factor, which stays affine:
    gamma = min(1, k / (1/p - 1)),   mu_low = gamma mu,   mu_high = 1 - gamma (1 - mu)
give psi_low >= -k and psi_high <= 1 + k for every theta in [0, 1].

Sums of the two parts and of their products, around frozen affine centres in [0, 1], give the sum
and the sum of squares at every theta, and for two candidates at every two: they add, and the
thetas are chosen when they are read.

A value: theta is in the interval unless it is rejected; the end is the edge of what is rejected
from the border on. A contrast: if q(m) <= q(b) + D, then at theta = q(b) both q(m) <= theta + D and
q(b) >= theta, so D is ruled out once one of three tests rejects at every theta: of m alone, of b
alone, or the contrast of psi(theta + D) of m and psi(theta) of b, with LONE, LONE and the rest of
the level. The true theta is among them, so no union over theta is paid. Alone, two intervals would
be sqrt(2) wider; the contrast alone fails where models differ in how many rate. Between the points
of a grid the sum is linear and the sum of squares convex in (theta, D): the smallest and the
largest value at the corners of a cell bound them inside, so nothing is missed between points.

Whom the product asks for a rating may be drawn (`asked`), by the uniform of the decision: its bits
are mixed (the finalizer of splitmix64, Steele, Lea & Flood 2014), so the second draw follows from
what is logged and says nothing about the first. Who was not asked counts as not drawn, with a
chance that much smaller, and S then tells refusals alone.

Everything holds where q stays what it is while the sequence runs, whatever becomes of how many
rate: under drift the test of one theta is of the running mean of Y(theta), and q moves away from
that theta.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.mixture import contrast_bound, evidence_of, tuned_weights
from equipoise.agent.inference.score import Rows, ScoreCentres, ScoreMoments, Tuning, with_policies
from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Flags, Floats, Ints

LONE = 0.1
"""Share of a contrast's level for each of the two tests of one model alone. Half or twice as much
changes the width by 2 to 3%; other weights of the two scores gain less than they cost."""
_CELLS = 16
"""Cells of one pass over thetas."""
_PASSES = 4
_HALVINGS = 16
"""Of [-1, 1], for the end of a contrast."""


@dataclass(frozen=True, slots=True)
class RatedRows:
    """Certified rows, and what a reward that never comes leaves open. n rows.

    rows: their `low` and `high` are ends of S. low, high: (n, 2) A and B of Y = A + theta B, for
    lower and upper ends: (R, 0) if rated, (0, 1) if not; a draw that was not delivered is unknown,
    (0, 0) and (1, 0). Of a unit: the means over its requests.
    """

    rows: Rows
    low: Floats
    high: Floats

    @property
    def rewards(self) -> Rows:
        """The same rows with S R as their reward, unknown where the draw was not delivered."""
        return _with_ends(self.rows, self.low[:, 0], self.high[:, 0])


def ends_of_rating(low: Floats, high: Floats) -> tuple[Floats, Floats]:
    """(n,) lower and upper ends of S, from the parts (n, 2) of `RatedRows`."""
    unknown = high[:, 0] - low[:, 0]
    return np.clip(1.0 - high[:, 1] - unknown, 0.0, 1.0), 1.0 - low[:, 1]


def _with_ends(rows: Rows, low: Floats, high: Floats) -> Rows:
    return Rows(rows.chance, rows.drawn, rows.predicted, low, high, rows.shares)


@dataclass(frozen=True, slots=True)
class RatedFrozen:
    """Frozen with a rule. tuning: of the prediction of S R. low, high: (2, C, A) parts of the
    affine centres: each, and the sum of the two, in [0, 1]."""

    tuning: Tuning
    low: Floats
    high: Floats

    @classmethod
    def neutral(cls, models: int, caps: int, candidates: int, share: float = 0.5) -> Self:
        """Before anything is known but the share of requests that are rated, perhaps."""
        centre = np.empty((2, caps, candidates))
        centre[0], centre[1] = 0.5 * share, 1.0 - share
        half = Tuning(np.full(models + 1, 0.5 * share), np.zeros(models + 1))
        return cls(half, centre, centre.copy())


def neutral_rating(
    models: int, caps: int, candidates: int, share: float
) -> tuple[Tuning, ScoreCentres]:
    """(Tuning, ScoreCentres) of S before anything is known but the share that is rated."""
    tuning = Tuning(np.full(models + 1, share), np.zeros(models + 1))
    return tuning, ScoreCentres(*(np.full((caps, candidates), share) for _ in range(2)))


def parts_under(
    rows: RatedRows, rating: Tuning, rewards: Tuning, caps: tuple[float, ...]
) -> Iterator[tuple[Floats, Floats]]:
    """(2, n, A) parts of the low and high scores under each of several caps.

    rating, rewards: predictions of S and of S R, from the raw ones.
    """
    plain = rows.rows
    b = rating.apply(plain.predicted)
    a = np.minimum(rewards.apply(plain.predicted), b)
    full = 1.0 / plain.chance
    weight = np.where(plain.drawn, full, 0.0)
    rest = 1.0 - weight
    for cap in caps:
        # Where the weight is 1 there is nothing to bound.
        gamma = np.minimum(
            np.divide(cap, full - 1.0, out=np.full_like(full, np.inf), where=full > 1.0), 1.0
        )
        fixed, free = gamma * a, gamma * (1.0 - b)
        low = [weight * rows.low[:, 0, None] + rest * fixed]
        high = [weight * rows.high[:, 0, None] + rest * (1.0 - gamma + fixed)]
        low.append(weight * rows.low[:, 1, None] + rest * free)
        high.append(weight * rows.high[:, 1, None] + rest * free)
        both = [with_policies(plain, *pair) for pair in zip(low, high, strict=True)]
        yield np.stack([both[0][0], both[1][0]]), np.stack([both[0][1], both[1][1]])


@dataclass(slots=True)
class RatedMoments(Additive):
    """Sums over certified rows for C caps and A candidates, part i of the score being A or B.

    rows: (1,). low, high: (2, C, A) sums of the parts. low_products, high_products: (3, C, A) sums
    of u_A^2, u_A u_B, u_B^2 with u the low part less its centre, and of the high ones v;
    cross: (2, 2, C, A, A) sums of u_i of one candidate times v_j of another. draws: (2, K) draws of
    each model, and how many of them were rated (of units: what is rated of them).
    """

    rows: Floats
    low: Floats
    high: Floats
    low_products: Floats
    high_products: Floats
    cross: Floats
    draws: Floats

    @classmethod
    def empty(cls, caps: int, candidates: int, models: int = 0) -> Self:
        one = (caps, candidates)
        return cls(
            np.zeros(1),
            np.zeros((2, *one)),
            np.zeros((2, *one)),
            np.zeros((3, *one)),
            np.zeros((3, *one)),
            np.zeros((2, 2, *one, candidates)),
            np.zeros((2, models)),
        )

    def update(
        self, rows: RatedRows, rating: Tuning, frozen: RatedFrozen, caps: tuple[float, ...]
    ) -> None:
        """Add n rows decided under one rule, in place. rating: the frozen prediction of S."""
        self.rows += len(rows.rows)
        for index, (low, high) in enumerate(parts_under(rows, rating, frozen.tuning, caps)):
            self.low[:, index] += low.sum(axis=1)
            self.high[:, index] += high.sum(axis=1)
            u = low - frozen.low[:, None, index]
            v = high - frozen.high[:, None, index]
            for products, part in ((self.low_products, u), (self.high_products, v)):
                for place, (i, j) in enumerate(((0, 0), (0, 1), (1, 1))):
                    products[place, index] += (part[i] * part[j]).sum(axis=0)
            for i in range(2):
                for j in range(2):
                    self.cross[i, j, index] += u[i].T @ v[j]

    def count(self, rows: RatedRows, model: Ints, drawn: Ints) -> None:
        """Count draws. model: (d,) of the rows at positions `drawn` (d,)."""
        models = self.draws.shape[1]
        self.draws[0] += np.bincount(model, minlength=models)
        self.draws[1] += np.bincount(model, rows.rows.low[drawn], models)

    def freeze(self, tuning: Tuning, share: float | None = None) -> RatedFrozen:
        """What the next rule freezes: the running means as centres. tuning: of S R; share: of
        requests that are rated, as far as it is known."""
        if self.rows[0] == 0:
            caps, candidates = self.low.shape[1:]
            if share is None:
                return RatedFrozen.neutral(len(tuning.offset) - 1, caps, candidates)
            neutral = RatedFrozen.neutral(len(tuning.offset) - 1, caps, candidates, share)
            return replace(neutral, tuning=tuning)
        low, high = (_affine(sums / self.rows[0]) for sums in (self.low, self.high))
        return RatedFrozen(tuning, low, high)

    def taken(self, used: Any) -> Self:
        """The sums of some caps."""
        return type(self)(
            self.rows,
            self.low[:, used],
            self.high[:, used],
            self.low_products[:, used],
            self.high_products[:, used],
            self.cross[:, :, used],
            self.draws,
        )

    def at(self, theta: float) -> ScoreMoments:
        """The sums of psi(theta), as a declared value theta of a missing reward would have them."""
        low, high = (
            part[0] + 2.0 * theta * part[1] + theta**2 * part[2]
            for part in (self.low_products, self.high_products)
        )
        cross = self.cross[0, 0] + theta * (self.cross[0, 1] + self.cross[1, 0])
        return ScoreMoments(
            self.rows.copy(),
            self.low[0] + theta * self.low[1],
            self.high[0] + theta * self.high[1],
            low,
            high,
            cross + theta**2 * self.cross[1, 1],
        )

    def ratios(self) -> Floats:
        """(A,) estimates of q under the last cap, NaN where nobody rated."""
        fixed, free = self.low[:, -1]
        rated = self.rows[0] - free
        seen = rated > 0.0
        return np.where(seen, fixed / np.where(seen, rated, 1.0), np.nan)

    def fixed_squares(self) -> Floats:
        """(A, A) sums of squares whose root, over the rows, is the standard error of the difference
        of two `ratios` (the delta method). An estimate: no bound rests on it."""
        q = self.ratios()
        share = (self.rows[0] - self.low[1, -1]) / self.rows[0]
        one = self.low_products[:, -1]
        own = (one[0] + 2.0 * q * one[1] + q * q * one[2]) / share**2
        cross = self.cross[:, :, -1]
        shared = cross[0, 0] + q[:, None] * cross[1, 0] + q * cross[0, 1]
        shared = (shared + q[:, None] * q * cross[1, 1]) / (share[:, None] * share)
        result: Floats = np.maximum(own[:, None] + own - 2.0 * shared, 0.0)
        return result


def _affine(means: Floats) -> Floats:
    """(2, ...) affine functions with values in [0, 1] on [0, 1], near the given ones."""
    start = np.clip(means[0], 0.0, 1.0)
    return np.stack([start, np.clip(means[0] + means[1], 0.0, 1.0) - start])


def value_bounds(
    moments: RatedMoments,
    caps: tuple[float, ...],
    alpha: float,
    prior: EraPrior | None = None,
) -> tuple[Floats, Floats]:
    """(A,) lower and upper ends of q, each at one-sided level alpha. prior: see `mixture`."""
    sums, finite = _finite(moments, caps)
    levels = np.full(moments.low.shape[2], alpha)
    low, high = _lower(sums, finite, levels, prior), _upper(sums, finite, levels, prior)
    return low, np.maximum(high, low)


def _finite(moments: RatedMoments, caps: tuple[float, ...]) -> tuple[RatedMoments, Floats]:
    """The sums under finite caps, and those."""
    used = np.flatnonzero(np.isfinite(caps))
    return moments.taken(used), np.asarray(caps)[used]


def _lower(sums: RatedMoments, caps: Floats, alpha: Floats, prior: EraPrior | None) -> Floats:
    """Lower ends of q, of the candidates along the first axis of alpha (A, ...)."""
    over = (..., *(None,) * (alpha.ndim - 1))
    slope = sums.low[1] - sums.rows[0]
    return _edge(sums.low[0][over], slope[over], sums.low_products[over], caps, alpha, prior)


def _upper(sums: RatedMoments, caps: Floats, alpha: Floats, prior: EraPrior | None) -> Floats:
    """Upper ends of q, of the candidates along the last axis of alpha (..., A): the lower ends in
    1 - theta."""
    over = (slice(None), *(None,) * (alpha.ndim - 1))
    one, both, two = sums.high_products
    products = np.stack([(one + 2.0 * both + two)[over], -(both + two)[over], two[over]])
    start, slope = sums.rows[0] - sums.high[0] - sums.high[1], sums.high[1] - sums.rows[0]
    return 1.0 - _edge(start[over], slope[over], products, caps, alpha, prior)


def _edge(
    start: Floats,
    slope: Floats,
    products: Floats,
    caps: Floats,
    alpha: Floats,
    prior: EraPrior | None,
) -> Floats:
    """(...) the first theta that is not rejected at level alpha (...). start, slope: (C, ...) of
    the sum of xi times its bound; products: (3, C, ...) coefficients of its sum of squares."""
    needed, bound = np.log(1.0 / alpha), (caps + 1.0)[:, *(None,) * alpha.ndim]
    weights = None
    if prior is not None:
        weights = tuned_weights(prior.requests, prior.variance, caps, caps + 1.0, alpha, part=0.5)
    low, high = np.zeros(alpha.shape), np.ones(alpha.shape)
    for _ in range(_PASSES):
        edges = low + (high - low) * np.linspace(0.0, 1.0, _CELLS + 1)[:, *(None,) * alpha.ndim]
        theta = edges[:, None]
        sums = (start + theta * slope) / bound
        squares = products[0] + 2.0 * theta * products[1] + theta**2 * products[2]
        evidence = _least_evidence(sums, squares / bound**2, weights)
        open_ = evidence < needed
        first = np.where(open_.any(axis=0), open_.argmax(axis=0), _CELLS - 1)[None]
        low = np.take_along_axis(edges, first, axis=0)[0]
        high = np.take_along_axis(edges, first + 1, axis=0)[0]
    return low


def _least_evidence(
    sums: Floats,
    squares: Floats,
    weights: Floats | None,
    others: tuple[Floats, Floats] | None = None,
) -> Floats:
    """(cells, ...) what the evidence is at least inside each cell. sums, squares: (cells + 1, C,
    ...) at its corners; others: the same at its other two, where it has four."""
    smallest, largest = sums, squares
    if others is not None:
        smallest, largest = np.minimum(sums, others[0]), np.maximum(squares, others[1])
    smallest = np.minimum(smallest[:-1], smallest[1:])
    largest = np.maximum(largest[:-1], largest[1:])
    return evidence_of(np.moveaxis(smallest, 1, -1), np.moveaxis(largest, 1, -1), weights)


@dataclass(frozen=True, slots=True)
class Contrasts:
    """Tests of q(a) - q(b) of every pair of candidates (a, b), each at one-sided level alpha.

    sums: under the finite caps. bound: (C, A, A) of xi. needed: (A, A) of evidence, for the
    contrast of two scores; weights: of its bets. lower, upper: (A, A) what a alone, and b alone,
    leave open.
    """

    sums: RatedMoments
    bound: Floats
    needed: Floats
    weights: Floats | None
    lower: Floats
    upper: Floats

    @classmethod
    def of(
        cls,
        moments: RatedMoments,
        caps: tuple[float, ...],
        models: int,
        alpha: Floats | float,
        prior: EraPrior | None = None,
    ) -> Self:
        """alpha: (A, A) or one. prior: see `mixture`."""
        sums, finite = _finite(moments, caps)
        size = moments.low.shape[2]
        bound = contrast_bound(finite, size, models)
        levels = np.broadcast_to(np.asarray(alpha, dtype=float), (size, size))
        most, weights = levels * (1.0 - 2.0 * LONE), None
        if prior is not None:
            own = np.moveaxis(bound, 0, -1)
            weights = tuned_weights(prior.requests, prior.variance, finite, own, most)
        alone = levels * LONE
        lower = _lower(sums, finite, alone, prior)
        upper = _upper(sums, finite, alone, prior)
        return cls(sums, bound, np.log(1.0 / most), weights, lower, upper)

    def ruled_out(self, most: Floats, least: Floats | None = None) -> Flags:
        """(A, A) whether every difference from `least` to `most` is ruled out; of one alone where
        least is None. most: (A, A) at most 1 less `upper`, so that no theta exceeds 1."""
        # The thetas of b that neither candidate alone rules out.
        low = np.maximum(np.maximum(self.lower - most, -most), 0.0)
        grid = np.linspace(0.0, 1.0, _CELLS + 1)[:, None, None, None]
        theta = low + np.maximum(self.upper - low, 0.0) * grid
        others = None if least is None else self._at(theta + least, theta)
        evidence = _least_evidence(*self._at(theta + most, theta), self.weights, others)
        ruled_out: Flags = (evidence >= self.needed).all(axis=0) | (low > self.upper)
        return ruled_out

    def ends(self) -> Floats:
        """(A, A) lower ends."""
        low, high = np.full_like(self.upper, -1.0), 1.0 - self.upper
        for _ in range(_HALVINGS):
            middle = 0.5 * (low + high)
            out = self.ruled_out(middle)
            low, high = np.where(out, middle, low), np.where(out, high, middle)
        # That all below is ruled out too, as it must be, is made sure of in cells of double widths.
        end = edge = low
        width = 2.0 * 0.5**_HALVINGS
        while (edge > -1.0).any():
            further = np.maximum(edge - width, -1.0)
            out = self.ruled_out(edge, further)
            end = np.where(out | (edge <= -1.0), end, further)
            edge, width = further, 2.0 * width
        np.fill_diagonal(end, 0.0)
        return end

    def _at(self, x: Floats, theta: Floats) -> tuple[Floats, Floats]:
        """(..., C, A, A) sums of xi and of xi^2 at the thetas x of a and theta of b, both
        (..., 1, A, A)."""
        moments, rows = self.sums, self.sums.rows[0]
        one, other, cross = moments.low_products, moments.high_products, moments.cross
        a, b = np.s_[:, :, None], np.s_[:, None, :]
        sums = moments.low[0][a] + x * (moments.low[1] - rows)[a]
        sums = sums - moments.high[0][b] - theta * (moments.high[1] - rows)[b]
        squares = one[0][a] + x * (2.0 * one[1][a] + x * one[2][a])
        squares = squares + other[0][b] + theta * (2.0 * other[1][b] + theta * other[2][b])
        both = cross[0, 0] + x * cross[1, 0] + theta * (cross[0, 1] + x * cross[1, 1])
        squares = squares - 2.0 * both
        return sums / self.bound, np.maximum(squares, 0.0) / self.bound**2


def contrast_bounds(
    moments: RatedMoments,
    caps: tuple[float, ...],
    models: int,
    alpha: Floats | float,
    prior: EraPrior | None = None,
) -> Floats:
    """(A, A) lower ends of q(a) - q(b), each at its one-sided level. alpha: (A, A) or one."""
    return Contrasts.of(moments, caps, models, alpha, prior).ends()


_MIX = tuple(
    (np.uint64(shift), np.uint64(factor))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, 1))
)
_ODD = np.uint64(0x9E3779B97F4A7C15)


def asked(uniform: Floats, share: Floats | float) -> Flags:
    """(n,) whether users are asked for a rating, by the uniforms (n,) of their decisions: each with
    chance `share`, independent of what else was drawn by the uniform."""
    word = (np.asarray(uniform) * 2.0**53).astype(np.uint64) + _ODD
    for shift, factor in _MIX:
        word = (word ^ (word >> shift)) * factor
    result: Flags = (word >> np.uint64(11)) * 2.0**-53 < share
    return result
