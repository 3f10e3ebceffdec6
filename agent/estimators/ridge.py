"""Ridge fits of the scorer from second-moment matrices, many subsets of groups at once.

`products` below are (..., p + 1, p + 1) sums of w u u^T, u = [1, z, r] as in `frame`; theta are
(..., p) standardized coefficients with the intercept first, which no penalty touches.
"""

from __future__ import annotations

import numpy as np

from equipoise.store.batches import Floats

FOLDS = 5
PENALTIES: Floats = np.logspace(-1.0, 6.0, 8)
"""Penalties of EXP fits, in pseudo-rows: one pseudo-row says that one coefficient is 0."""
PSEUDO_ROW = 1.0
"""The one fixed penalty of OBS fits."""


def held_out(groups: int) -> Floats:
    """(folds, G) masks of the folds: group g belongs to fold g mod 5."""
    folds = min(FOLDS, groups)
    return np.asarray((np.arange(groups) % folds == np.arange(folds)[:, None]).astype(float))


def subsets(masks: Floats, products: Floats) -> Floats:
    """Sums of group blocks (G, p + 1, p + 1) over the groups of each mask (..., G)."""
    return np.asarray(np.tensordot(masks, products, axes=1))


def rows(products: Floats) -> Floats:
    """(...) weight of each block."""
    weight: Floats = products[..., 0, 0]
    return weight


def penalized(products: Floats, penalty: Floats | float) -> Floats:
    """(..., p, p) normal matrices sum w [1, z][1, z]^T + penalty on every slope.

    Where a block is empty the intercept's entry is 1, so that its fit is exactly 0.
    """
    gram = products[..., :-1, :-1]
    penalty = np.asarray(penalty, dtype=float)
    shape = np.broadcast_shapes(gram.shape[:-2], penalty.shape)
    normal = np.broadcast_to(gram, shape + gram.shape[-2:]).copy()
    slopes = np.arange(1, gram.shape[-1])
    normal[..., slopes, slopes] += penalty[..., None]
    normal[..., 0, 0] += normal[..., 0, 0] == 0
    return normal


def ridge(products: Floats, penalty: Floats | float) -> Floats:
    """theta that minimises sum w (r - theta [1, z])^2 + penalty |slopes|^2; 0 for empty blocks."""
    normal = penalized(products, penalty)
    moment = np.broadcast_to(products[..., :-1, -1:], (*normal.shape[:-1], 1))
    return np.asarray(np.linalg.solve(normal, moment)[..., 0])


def posterior_spread(products: Floats, penalty: Floats | float) -> tuple[Floats, float]:
    """Covariance (p, p) of a ridge fit per unit residual variance, and the parameters it spends.

    The penalty is read as a Gaussian prior. Spent: trace of the hat matrix.
    """
    spread: Floats = np.asarray(np.linalg.inv(penalized(products, penalty)))
    return spread, float(np.trace(spread @ products[:-1, :-1]))


def residual_products(products: Floats, theta: Floats) -> Floats:
    """The same blocks with r replaced by r - theta [1, z]."""
    size = products.shape[-1]
    change = np.broadcast_to(np.eye(size), (*theta.shape[:-1], size, size)).copy()
    change[..., -1, :-1] = -theta
    return np.asarray(change @ products @ change.swapaxes(-1, -2))


def squared_error(products: Floats, theta: Floats) -> Floats:
    """(...) sum w (r - theta [1, z])^2."""
    direction = np.concatenate([-theta, np.ones((*theta.shape[:-1], 1))], axis=-1)
    image = np.matmul(products, direction[..., None])[..., 0]
    return np.asarray(np.maximum((direction * image).sum(axis=-1), 0.0))


def residual_variance(products: Floats, theta: Floats, spent: float) -> float:
    """Mean squared residual with `spent` effective parameters taken off; +inf where none is left.

    products: (p + 1, p + 1).
    """
    left = float(rows(products)) - spent
    if left < 1e-9:
        return np.inf
    return float(squared_error(products, theta)) / left


def choose_penalty(products: Floats) -> tuple[float, Floats]:
    """Penalty with the least cross-validated squared error, and the mean errors of the grid.

    products: (G, p + 1, p + 1). Where a fold has no rows there is too little to judge by: the
    largest penalty, and NaN errors.
    """
    masks = held_out(len(products))
    held = subsets(masks, products)
    if (rows(held) == 0).any() or len(held) < 2:
        return float(PENALTIES[-1]), np.full(len(PENALTIES), np.nan)
    train = subsets(1.0 - masks, products)
    theta = ridge(train[:, None], PENALTIES)
    errors = squared_error(held[:, None], theta).sum(axis=0) / rows(held).sum()
    return float(PENALTIES[np.argmin(errors)]), errors
