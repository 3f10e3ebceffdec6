"""The bounded sequence with the regression in it: capped scores, mixed over caps.

By (*) of `score`, with centres g, h in [0, 1] frozen before the draw,
    psi_low - g >= -(k + 1),       h - psi_high >= -(k + 1),
and for two models, which are never both drawn,
    (psi_low(a) - g_a) - (psi_high(b) - h_b) >= -(k + 2):
if a was drawn the first term is at least -k - 1 and psi_high(b) = mu_high(b) <= 1; if b was drawn
psi_low(a) >= 0 and psi_high(b) <= 1 + k. Today's routing or a policy may share its row with
anything, hence 2 k + 2 there. Divided by these bounds the differences are the xi >= -1 of
`mixture`, for each cap, so every cap gives a bounded, mergeable sequence for the same means: no
cap's validity depends on mu.

Cap 0 never needs large samples, and its squares grow like W^2 R^2. With a cap at or above the
usual weight less one they grow like W^2 (R - mu)^2: at a rate of .9 a contrast then has 5.6 times
less variance. In exchange xi is divided by k + 2, so the gain sets in after some
(k + 2) / weight * 10 rewards per model. Which one is narrower is not known in advance, and picking
it afterwards would break the level; the equal mixture of the two costs log 2 of evidence.
"""

from __future__ import annotations

import numpy as np

from equipoise.agent.inference.mixture import lower_mean_of
from equipoise.agent.inference.score_moments import ScoreMoments
from equipoise.store.batches import Floats


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
    moments: ScoreMoments, caps: tuple[float, ...], alpha: float
) -> tuple[Floats, Floats]:
    """(A,) lower and upper ends on the [0, 1] scale, each at one-sided level alpha.

    Infinite caps take no part.
    """
    used = np.flatnonzero(np.isfinite(caps))
    bound = np.asarray(caps)[used] + 1.0
    rows = float(moments.rows[0])
    low_squares = moments.low_squares[used].T / bound**2
    high_squares = moments.high_squares[used].T / bound**2
    low = lower_mean_of(rows, moments.low[used].T, low_squares, bound, alpha)
    high = -lower_mean_of(rows, -moments.high[used].T, high_squares, bound, alpha)
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def contrast_bounds(
    moments: ScoreMoments, caps: tuple[float, ...], models: int, alpha: float
) -> Floats:
    """(A, A) lower ends of V(a) - V(b) on the [0, 1] scale, each at one-sided level alpha."""
    used = np.flatnonzero(np.isfinite(caps))
    candidates = moments.low.shape[1]
    bound = contrast_bound(np.asarray(caps)[used], candidates, models)
    squares = moments.contrast_squares()[used] / bound**2
    totals = moments.low[used][:, :, None] - moments.high[used][:, None, :]
    totals, squares, bound = (np.moveaxis(part, 0, -1) for part in (totals, squares, bound))
    lower = lower_mean_of(float(moments.rows[0]), totals, squares, bound, alpha)
    np.fill_diagonal(lower, 0.0)
    return np.clip(lower, -1.0, 1.0)
