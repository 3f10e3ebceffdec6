"""The bounded sequence: a mixture over bets on capped scores.

For xi_t >= -1 with conditional mean zero and lambda in [0, 1),
    exp(lambda * sum xi - psi(lambda) * sum xi^2),  psi(l) = -log(1 - l) - l,
is a supermartingale (Fan, Grama & Liu 2015, Prop. 4.1 and eq. 24; Howard, Ramdas, McAuliffe &
Sekhon 2021). Ours is xi_t = (D_t - c_t) / b with D_t >= 0 and a predictable c_t in [0, b]: the
square is taken around c_t, the sum around the unknown mean. A mixture over a fixed grid of lambda
keeps the property, and Ville's inequality turns it into a bound for all times at once.

By (*) of `score`, with centres g, h in [0, 1] frozen before the draw,
    psi_low - g >= -(k + 1),       h - psi_high >= -(k + 1),
and for two models, which are never both drawn,
    (psi_low(a) - g_a) - (psi_high(b) - h_b) >= -(k + 2):
if a was drawn the first term is at least -k - 1 and psi_high(b) = mu_high(b) <= 1; if b was drawn
psi_low(a) >= 0 and psi_high(b) <= 1 + k. Today's routing or a policy may share its row with
anything, hence 2 k + 2 there. Divided by these bounds the differences are xi >= -1 as
above, for each cap, so every cap gives a bounded, mergeable sequence for the same means: no
cap's validity depends on mu.

Cap 0 never needs large samples, and its squares grow like W^2 R^2. With a cap at or above the
usual weight less one they grow like W^2 (R - mu)^2: at a rate of .9 a contrast then has 5.6 times
less variance. In exchange xi is divided by k + 2, so the gain sets in after some
(k + 2) / weight * 10 rewards per model. Which one is narrower is not known in advance, and picking
it afterwards would break the level: the two are mixed.

Weights. A mixture with any weights that were fixed before the rows keeps the property, so they may
be laid where a decision is expected: log-normal around the bet that is best for the planned size,
    lambda* = b sqrt(2 log(1 / alpha) / V),
with V the variance that the sum of D will have by then: k for each request with the cap 0, at most,
and 2 k v with the cap k of the usual weight, v that of the reward. A plan that is wrong by a factor
of four costs up to a quarter of the requests; equal weights, which an era without a plan keeps,
cost a third to a half more (docs/decided.md).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.score import ScoreMoments
from equipoise.store.batches import Floats

SPREAD = 0.7
"""Standard deviation of log lambda around the bet that is best for the planned size."""
LAST_SHARE = 0.9
"""Share of the weights that the last finite cap has; those before it have the rest in equal parts.
Chosen with SPREAD on the cells of docs/decided.md, with the planned size off by four both ways."""
LARGEST_BET = 0.9
LAMBDAS: Floats = np.geomspace(1.5e-4, 0.97, 18)
"""Grid of the mixture: best for effective sums of squares from about 3 to 1e8."""
_LOG_WEIGHT = -np.log(len(LAMBDAS))
_STEPS = 12
_FAINT = -25.0
"""Log weight of a bet below which it is left out."""
_PSI: Floats = -np.log1p(-LAMBDAS) - LAMBDAS


def lower_mean(rows: float, total: Floats, squares: Floats, bound: float, alpha: float) -> Floats:
    """Lower bound for the running mean of E[D_t | past], valid at all times at once.

    rows: number of rows t so far. total: (...) sum of D_t; squares: (...) sum of xi_t^2 with
    xi = (D - c) / bound. alpha: one-sided error level. Returns (...) bounds, -inf where t = 0.

    The bound theta solves sum_j w_j exp(lambda_j (total - t theta) / b - psi_j squares) = 1/alpha.
    """
    if rows <= 0:
        return np.full(np.shape(total), -np.inf)
    # In s = (total - t theta) / b the log of the mixture is convex and increasing. Newton's steps
    # from the right, where a single component already suffices, stay to the right of the root:
    # stopping early only gives a smaller, still valid bound.
    needed = np.log(1.0 / alpha)
    penalty = _PSI * np.asarray(squares)[..., None]
    s = ((needed - _LOG_WEIGHT + penalty) / LAMBDAS).min(axis=-1)

    def step(s: Floats) -> Floats:
        exponent = LAMBDAS * s[..., None] - penalty
        peak = exponent.max(axis=-1, keepdims=True)
        share = np.exp(exponent - peak)
        mass = share.sum(axis=-1)
        excess = peak[..., 0] + np.log(mass) + _LOG_WEIGHT - needed
        return np.asarray(s - excess * mass / (share @ LAMBDAS))

    result: Floats = (np.asarray(total) - bound * _newton(s, step)) / rows
    return result


def tuned_weights(
    requests: Floats | float,
    variance: float,
    caps: Floats,
    bounds: Floats,
    alpha: Floats | float,
    part: float = 1.0,
) -> Floats:
    """(..., C, J) log weights of the bets of C sequences for the size an era is planned for.

    requests, variance: of the `EraPrior`; caps: (..., C) finite, the last one the usual weight;
    bounds: (..., C) of xi; alpha: one-sided level; part: of a contrast's variance that the sum has.
    Leading axes broadcast. They sum to 1 over C and J.
    """
    usual, count = np.asarray(caps)[..., -1:], np.shape(caps)[-1]
    noise = np.ones(count)
    noise[-1] = max(2.0 * variance, 1e-12)
    total = part * np.asarray(requests, dtype=float)[..., None] * usual * noise
    evidence = np.log(1.0 / np.asarray(alpha, dtype=float))[..., None]
    best = np.minimum(np.asarray(bounds) * np.sqrt(2.0 * evidence / total), LARGEST_BET)
    weight = -0.5 * ((np.log(LAMBDAS) - np.log(best)[..., None]) / SPREAD) ** 2
    weight -= np.log(np.exp(weight).sum(axis=-1, keepdims=True))
    share = np.full(count, (1.0 - LAST_SHARE) / max(count - 1, 1))
    share[-1] = 1.0 if count == 1 else LAST_SHARE
    result: Floats = weight + np.log(share)[:, None]
    return result


def lower_mean_of(
    rows: float,
    totals: Floats,
    squares: Floats,
    bounds: Floats,
    alpha: Floats | float,
    weights: Floats | None = None,
) -> Floats:
    """As `lower_mean`, for C sequences on the same conditional means, mixed.

    totals, squares: (..., C) sum of D and of xi^2 of each sequence; bounds: broadcasts to them.
    alpha: (...) or one. weights: (..., C, J) logs of `tuned_weights`, equal ones if None. Returns
    (...) bounds, -inf where t = 0. The average of supermartingales is one, so whichever sequence
    happens to be narrow is used and only its share of the weights is paid for the others.
    """
    if rows <= 0:
        return np.full(np.shape(totals)[:-1], -np.inf)
    shape = (*np.shape(totals), len(LAMBDAS))
    rate = np.broadcast_to(LAMBDAS / np.asarray(bounds, dtype=float)[..., None], shape)
    rate = rate.reshape(*shape[:-2], -1)
    offset = rate * np.repeat(totals, len(LAMBDAS), axis=-1)
    offset = offset - (_PSI * np.asarray(squares)[..., None]).reshape(rate.shape)
    offset = offset - _needed(alpha, shape, weights)
    if weights is not None:
        # Without bets that next to nothing was laid on the bound is lower, by less than rounding.
        flat = np.reshape(weights, (-1, weights.shape[-2] * weights.shape[-1]))
        used = np.flatnonzero(flat.max(axis=0) > _FAINT)
        rate, offset = rate[..., used], offset[..., used]
    # In theta the log of the mixture is convex and decreasing: Newton's steps from the left of
    # the root, where a single component already suffices, stay to its left.
    theta = (offset / rate).max(axis=-1) / rows
    pull = rows * rate

    def step(theta: Floats) -> Floats:
        exponent = offset - pull * theta[..., None]
        peak = exponent.max(axis=-1)
        share = np.exp(exponent - peak[..., None])
        mass = share.sum(axis=-1)
        slope = rows * (share * rate).sum(axis=-1)
        return np.asarray(theta + (peak + np.log(mass)) * mass / slope)

    return _newton(theta, step)


def _newton(at: Floats, step: Callable[[Floats], Floats]) -> Floats:
    """Where so many steps lead. Once they stand still, or go to and fro between two neighbouring
    numbers, the rest of them is known and not taken."""
    before: Floats | None = None
    for left in reversed(range(_STEPS)):
        older, before, at = before, at, step(at)
        if np.array_equal(at, before):
            break
        if older is not None and np.array_equal(at, older):
            return before if left % 2 else at
    return at


def _needed(
    alpha: Floats | float, shape: tuple[int, ...], weights: Floats | None
) -> Floats | float:
    """log(1 / alpha) less the log weights, to be taken from exponents of (..., C * J). shape:
    (..., C, J)."""
    if weights is None:
        level = np.log(1.0 / np.asarray(alpha, dtype=float)) + np.log(shape[-2] * shape[-1])
        return level[..., None] if np.ndim(level) else float(level)
    flat = np.broadcast_to(weights, shape).reshape(*shape[:-2], -1)
    result: Floats = np.log(1.0 / np.asarray(alpha, dtype=float))[..., None] - flat
    return result


def evidence_of(sums: Floats, squares: Floats, weights: Floats | None = None) -> Floats:
    """(...) log of the mixture that `lower_mean_of` bounds, at one mean.

    sums: (..., C) sum of xi of each sequence at that mean; squares: (..., C) sum of xi^2. Larger
    than log(1 / alpha) just where the bound lies above the mean.
    """
    exponent = LAMBDAS * np.asarray(sums)[..., None] - _PSI * np.asarray(squares)[..., None]
    needed = _needed(1.0, exponent.shape, weights)
    exponent = exponent.reshape(*exponent.shape[:-2], -1) - needed
    peak = exponent.max(axis=-1)
    total = np.exp(exponent - peak[..., None]).sum(axis=-1)
    result: Floats = peak + np.log(total)
    return result


def reach(level: Floats, squares: Floats) -> Floats:
    """(...) the largest s with log(w_0 + sum_j w_j exp(lambda_j s - psi_j squares)) <= level.

    The same mixture with a component lambda = 0 added, which keeps it above w_0: -inf where the
    level is not above log(w_0) = LOWEST_LEVEL. s is the sum of the xi that the level admits.
    """
    weight = 1.0 / (len(LAMBDAS) + 1)
    above = np.maximum(np.exp(level) - weight, 0.0)
    with np.errstate(divide="ignore"):
        needed = np.log(above / weight)
    needed, squares = np.broadcast_arrays(needed, squares)
    penalty = _PSI * squares[..., None]
    finite = np.where(np.isfinite(needed), needed, 0.0)
    s: Floats = ((finite[..., None] + penalty) / LAMBDAS).min(axis=-1)

    def step(s: Floats) -> Floats:
        exponent = LAMBDAS * s[..., None] - penalty
        peak = exponent.max(axis=-1)
        share = np.exp(exponent - peak[..., None])
        mass = share.sum(axis=-1)
        return np.asarray(s - (peak + np.log(mass) - finite) * mass / (share @ LAMBDAS))

    return np.where(np.isfinite(needed), _newton(s, step), -np.inf)


LOWEST_LEVEL = float(-np.log(len(LAMBDAS) + 1))


def usual_caps(models: int, rate: float) -> tuple[float, float, float]:
    """Caps of an era: 0, the weight of a uniform draw at the target rate, and none.

    Fixed before the era, as the bounds are. The infinite one is for the asymptotic sequence.
    """
    return (0.0, models / rate, np.inf)


def contrast_bound(caps: Floats, candidates: int, models: int) -> Floats:
    """(C, A, A) bound b of xi = (u_a - v_b) / b."""
    result = np.empty((len(caps), candidates, candidates))
    result[:] = 2.0 * caps[:, None, None] + 2.0
    result[:, :models, :models] = caps[:, None, None] + 2.0
    return result


def value_bounds(
    moments: ScoreMoments,
    caps: tuple[float, ...],
    alpha: float,
    prior: EraPrior | None = None,
) -> tuple[Floats, Floats]:
    """(A,) lower and upper ends on the [0, 1] scale, each at one-sided level alpha.

    Infinite caps take no part. prior: what the era is planned for, None for equal weights.
    """
    used = np.flatnonzero(np.isfinite(caps))
    finite = np.asarray(caps)[used]
    bound = finite + 1.0
    rows = float(moments.rows[0])
    weights = None
    if prior is not None:
        weights = tuned_weights(prior.requests, prior.variance, finite, bound, alpha, part=0.5)
    low_squares = moments.low_squares[used].T / bound**2
    high_squares = moments.high_squares[used].T / bound**2
    low = lower_mean_of(rows, moments.low[used].T, low_squares, bound, alpha, weights)
    high = -lower_mean_of(rows, -moments.high[used].T, high_squares, bound, alpha, weights)
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def contrast_bounds(
    moments: ScoreMoments,
    caps: tuple[float, ...],
    models: int,
    alpha: Floats | float,
    prior: EraPrior | None = None,
) -> Floats:
    """(A, A) lower ends of V(a) - V(b) on the [0, 1] scale, each at its one-sided level.

    alpha: (A, A) or one. prior: what the era is planned for, None for equal weights.
    """
    used = np.flatnonzero(np.isfinite(caps))
    candidates = moments.low.shape[1]
    bound = contrast_bound(np.asarray(caps)[used], candidates, models)
    squares = moments.contrast_squares()[used] / bound**2
    totals = moments.low[used][:, :, None] - moments.high[used][:, None, :]
    totals, squares, bound = (np.moveaxis(part, 0, -1) for part in (totals, squares, bound))
    weights = None
    if prior is not None:
        finite = np.asarray(caps)[used]
        weights = tuned_weights(prior.requests, prior.variance, finite, bound, alpha)
    lower = lower_mean_of(float(moments.rows[0]), totals, squares, bound, alpha, weights)
    np.fill_diagonal(lower, 0.0)
    return np.clip(lower, -1.0, 1.0)
