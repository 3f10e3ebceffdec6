"""Linear scorers: one frame for every group, ridge fits, and the values of the models they say.

Moments come centred per group. A frame moves them all to one common origin and to standardized
features, as second-moment matrices of u = [1, z, r]: z the features less their origin over their
spread, r the reward less its origin. Every subset of groups (folds, delete-one-group, all of
them) is then a sum of (p + 1, p + 1) blocks. The origin lies inside the data, so nothing cancels
that the rewards' own spread does not.

`products` below are (..., p + 1, p + 1) sums of w u u^T, u = [1, z, r] as in `frame`; theta are
(..., p) standardized coefficients with the intercept first, which no penalty touches.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from equipoise.agent.estimators.base import (
    Estimate,
    Scorer,
    covariance,
    deletions,
    total_covariance,
    unknown_covariance,
)
from equipoise.agent.moments.scorer import (
    ScorerMoments,
    SimulationMoments,
    kept_for_replays,
)
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Flags, Floats

CONSTANT = 1e-12
"""A feature whose spread is below this share of its mean varies by rounding alone."""
FOLDS = 5
PENALTIES: Floats = np.logspace(-1.0, 6.0, 8)
"""Penalties of EXP fits, in pseudo-rows: one pseudo-row says that one coefficient is 0."""
PSEUDO_ROW = 1.0
"""The one fixed penalty of OBS fits."""


@dataclass(frozen=True, slots=True)
class Frame:
    """origin: (p,) of v = (phi without intercept, reward), in their own units.

    unit: (p - 1,) one over the spread of each feature; 0 where it never varies, which makes its
    standardized value and hence its coefficient 0.
    """

    origin: Floats
    unit: Floats

    def products(self, source: ScorerMoments) -> Floats:
        """(G, p + 1, p + 1) sums of w u u^T per group."""
        weight = source.weight.sum(axis=1)
        unit = np.append(self.unit, 1.0)
        offset = (source.centre - self.origin) * unit
        blocks = np.empty((len(weight), len(unit) + 1, len(unit) + 1))
        blocks[:, 0, 0] = weight
        blocks[:, 0, 1:] = blocks[:, 1:, 0] = weight[:, None] * offset
        blocks[:, 1:, 1:] = source.scatter * (unit[:, None] * unit)
        blocks[:, 1:, 1:] += weight[:, None, None] * offset[:, :, None] * offset[:, None, :]
        return blocks

    def standardize(self, phi: Floats) -> Floats:
        """(..., p - 1) features phi in standardized units."""
        return np.asarray((phi - self.origin[:-1]) * self.unit)

    def values(self, theta: Floats, phi: Floats) -> Floats:
        """Rewards predicted at phi (..., K, p - 1) by standardized theta (..., p): (..., K)."""
        slopes = np.matmul(self.standardize(phi), theta[..., 1:, None])[..., 0]
        return np.asarray(self.origin[-1] + theta[..., :1] + slopes)

    def original(self, theta: Floats) -> Floats:
        """Standardized coefficients (p + extra,) as coefficients of phi itself."""
        plain = self.jacobian(len(theta)) @ theta
        plain[0] += self.origin[-1]
        return np.asarray(plain)

    def jacobian(self, size: int) -> Floats:
        """(size, size) derivative of `original`; coefficients beyond the first p stay."""
        matrix = np.eye(size)
        features = np.arange(1, len(self.unit) + 1)
        matrix[features, features] = self.unit
        matrix[0, features] = -self.unit * self.origin[:-1]
        return matrix


def common_frame(moments: Moments, *sources: ScorerMoments) -> Frame | None:
    """The frame of the first source that has rows; None where none has.

    Spreads come from SIM pooled over models, the distribution the scorer is averaged over; from
    the source itself where there is no SIM.
    """
    for source in sources:
        weight = source.weight.sum(axis=1)
        if weight.sum() > 0:
            break
    else:
        return None
    origin = weight @ source.centre / weight.sum()
    features = len(origin) - 1
    spread, middle = _replayed_spread(moments.simulation)
    if moments.simulation.count.sum() == 0:
        own = np.diagonal(source.scatter, axis1=-2, axis2=-1)
        spread, middle = _spread(weight, source.centre[:, :-1], own[:, :-1])
    varies = spread > CONSTANT * np.abs(middle)
    unit = np.divide(1.0, spread, out=np.zeros(features), where=varies)
    return Frame(np.asarray(origin), unit)


@kept_for_replays
def _replayed_spread(simulation: SimulationMoments) -> tuple[Floats, Floats]:
    """`_spread` of the SIM rows of all models."""
    cells = (simulation.count.size, simulation.mean.shape[-1])
    return _spread(
        simulation.count.ravel(),
        simulation.mean.reshape(cells),
        np.diagonal(simulation.scatter, axis1=-2, axis2=-1).reshape(cells),
    )


def _spread(weight: Floats, mean: Floats, scatter: Floats) -> tuple[Floats, Floats]:
    """Pooled standard deviation and mean (p - 1,) of cells: weight (C,), the rest (C, p - 1)."""
    total = max(float(weight.sum()), 1e-300)
    middle = weight @ mean / total
    variance = (scatter.sum(axis=0) + weight @ (mean - middle) ** 2) / total
    return np.sqrt(variance), middle


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
    freedom = float(rows(products)) - spent
    if freedom < 1e-9:
        return np.inf
    return float(squared_error(products, theta)) / freedom


def choose_penalty(products: Floats) -> tuple[float, Floats]:
    """Penalty with the least cross-validated squared error, and the mean errors of the grid.

    products: (G, p + 1, p + 1). Where a fold has no rows there is too little to judge by: the
    largest penalty, and NaN errors.
    """
    masks = held_out(len(products))
    test = subsets(masks, products)
    if (rows(test) == 0).any() or len(test) < 2:
        return float(PENALTIES[-1]), np.full(len(PENALTIES), np.nan)
    train = subsets(1.0 - masks, products)
    theta = ridge(train[:, None], PENALTIES)
    errors = squared_error(test[:, None], theta).sum(axis=0) / rows(test).sum()
    return float(PENALTIES[np.argmin(errors)]), errors


@kept_for_replays
def mean_features(simulation: SimulationMoments) -> Floats:
    """(K, p - 1) mean of phi per model, NaN where a model has no SIM row."""
    means: Floats = _means(np.ones((1, len(simulation.count))), simulation)[0]
    return means


@kept_for_replays
def mean_features_replicated(simulation: SimulationMoments) -> Floats:
    """(h, K, p - 1) the same without each non-empty group of contexts."""
    return _means(deletions(simulation.count.sum(axis=1)), simulation)


def _means(masks: Floats, simulation: SimulationMoments) -> Floats:
    """(B, K, p - 1) means over the groups of each mask (B, G)."""
    count = masks @ simulation.count
    # Around the mean of a group that has rows, so that large features keep their digits.
    first = (simulation.count > 0).argmax(axis=0)
    origin = simulation.mean[first, np.arange(simulation.count.shape[1])]
    sums = np.tensordot(masks, simulation.count[..., None] * (simulation.mean - origin), axes=1)
    shift = np.divide(
        sums, count[..., None], out=np.full_like(sums, np.nan), where=count[..., None] > 0
    )
    return np.asarray(origin + shift)


def regressions(
    masks: Floats, simulation: SimulationMoments, context: int, directions: Floats | None = None
) -> Floats:
    """Slopes (B, K, d, q) on x, per model, of phi along q directions (q, p - 1).

    Over the groups of each mask (B, G); `directions` None stands for phi itself. x is the head
    of phi, so its own columns are exact. The others are ridge with one pseudo-row per feature of
    x, which keeps constant features of x harmless; the intercept is free, so that the regression
    passes through the means of `mean_features`.
    """
    d = context
    count = masks @ simulation.count
    means = mean_features(simulation)
    origin = np.where(np.isfinite(means), means, 0.0)
    of_x = simulation.mean[..., :d] - origin[:, :d]
    weighted = simulation.count[..., None] * of_x
    rest = simulation.mean[..., d:] - origin[:, d:]
    cross = simulation.scatter[:, :, :d, d:]
    if directions is not None:
        rest, cross = rest @ directions[:, d:].T, cross @ directions[:, d:].T
    together = np.concatenate([of_x, rest], axis=-1)
    blocks = np.concatenate([simulation.scatter[:, :, :d, :d], cross], axis=-1)
    blocks += weighted[..., :, None] * together[..., None, :]
    sums = np.tensordot(masks, simulation.count[..., None] * together, axes=1)
    share = np.divide(sums, count[..., None], out=np.zeros_like(sums), where=count[..., None] > 0)
    scatter = np.tensordot(masks, blocks, axes=1) - sums[..., :d, None] * share[..., None, :]

    # The pseudo-row is one row at one standard deviation of that feature.
    diagonal = np.arange(d)
    spread = scatter[..., diagonal, diagonal]
    varies = spread > count[..., None] * (CONSTANT * origin[:, :d]) ** 2
    normal = scatter[..., :d].copy()
    normal[..., diagonal, diagonal] += np.where(
        varies, PSEUDO_ROW * spread / np.maximum(count, 1.0)[..., None], 1.0
    )
    slopes = np.linalg.solve(normal, np.where(varies[..., None], scatter[..., d:], 0.0))
    if directions is not None:
        return np.asarray(slopes + directions[:, :d].T)
    own = np.broadcast_to(np.eye(d), (*slopes.shape[:-1], d))
    return np.concatenate([own, slopes], axis=-1)


def averaged_over_simulation(
    family: str,
    moments: Moments,
    frame: Frame,
    theta: Floats,
    replicates: Floats,
    scorer: Scorer,
    diagnostics: Mapping[str, Any],
) -> Estimate:
    """The estimate V(m) = mean of phi in SIM times theta, for standardized theta (p,).

    replicates: (h, p) theta without each non-empty group of units. The covariance is the sum of
    two jackknives: units move theta, contexts move the SIM means; they are sampled apart.
    """
    phi = mean_features(moments.simulation)
    values = frame.values(theta, phi)
    units = covariance(frame.values(replicates, phi))
    contexts = covariance(frame.values(theta, mean_features_replicated(moments.simulation)))
    return Estimate(
        family=family,
        values=values,
        covariance=total_covariance(values, units, contexts),
        diagnostics={"extrapolated": extrapolated(moments), **diagnostics},
        scorer=scorer,
    )


def fitted_scorer(frame: Frame, theta: Floats, spread: Floats, variance: float) -> Scorer:
    """Scorer in original coordinates from standardized theta (p,) and its covariance per unit
    residual variance, `spread` (p, p)."""
    jacobian = frame.jacobian(len(theta))
    if not np.isfinite(variance):
        return Scorer(frame.original(theta), unknown_covariance(len(theta)), np.inf)
    spread = jacobian @ (variance * spread) @ jacobian.T
    return Scorer(frame.original(theta), 0.5 * (spread + spread.T), variance)


def unknown_estimate(family: str, moments: Moments) -> Estimate:
    """What a family returns before it has any row to learn from."""
    models = moments.dimensions.models
    return Estimate(
        family=family,
        values=np.full(models, np.nan),
        covariance=unknown_covariance(models),
        diagnostics={"extrapolated": extrapolated(moments)},
    )


def extrapolated(moments: Moments) -> Flags:
    """(K,) models that were never randomized: their values rest on the scorer alone."""
    return np.asarray(moments.arms.count.sum(axis=0) == 0)
