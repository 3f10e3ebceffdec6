"""The anytime lower bound for sums of bounded-below differences, mergeable form.

For xi_t >= -1 with conditional mean zero and lambda in [0, 1),
    exp(lambda * sum xi - psi(lambda) * sum xi^2),  psi(l) = -log(1 - l) - l,
is a supermartingale (Fan, Grama & Liu 2015, Prop. 4.1 and eq. 24; Howard, Ramdas, McAuliffe &
Sekhon 2021). Ours is xi_t = (D_t - c_t) / b with D_t >= 0 and a predictable c_t in [0, b]: the
square is taken around c_t, the sum around the unknown mean. A mixture over a fixed grid of lambda
keeps the property, and Ville's inequality turns it into a bound for all times at once.
"""

from __future__ import annotations

import numpy as np

from equipoise.store.batches import Floats

LAMBDAS: Floats = np.geomspace(1.5e-4, 0.97, 18)
"""Grid of the mixture: best for effective sums of squares from about 3 to 1e8."""
_LOG_WEIGHT = -np.log(len(LAMBDAS))
_STEPS = 12
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
    for _ in range(_STEPS):
        exponent = LAMBDAS * s[..., None] - penalty
        peak = exponent.max(axis=-1, keepdims=True)
        share = np.exp(exponent - peak)
        mass = share.sum(axis=-1)
        excess = peak[..., 0] + np.log(mass) + _LOG_WEIGHT - needed
        s = s - excess * mass / (share @ LAMBDAS)
    result: Floats = (np.asarray(total) - bound * s) / rows
    return result
