"""Posterior and evidence of a linear model with model effects, over a grid of prior scales.

With centred EXP moments (the flat intercept takes the mean and one row), slopes beta ~ N(beta_0,
sigma^2 C), effects a ~ N(0, sigma^2 tau_a^2 I), sigma^2 ~ inverse gamma:
    rewards - X beta_0 ~ multivariate t with scale I + X C X^T + tau_a^2 Z Z^T.
C = U diag(tau^2 + 1/g) U^T for every tau once OBS's normal matrix is U diag(g) U^T, and given
(prior, tau) the slopes integrate out to a K x K problem whose eigenvectors serve every tau_a.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from equipoise.store.batches import Floats

TAU_SCORER: Floats = np.array([0.003, 0.01, 0.03, 0.1, 0.3, 1.0])
"""Grid of the slopes' prior scale, in units of sigma per standardized feature; equal weights."""
TAU_MODEL: Floats = np.array([0.001, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4])
"""Grid of the model effects' prior scale, in units of sigma."""
PRIOR_SHAPE = 2.0
"""Shape of the inverse gamma of sigma^2: four degrees of freedom, mean = its scale."""
INTERCEPT_WIDTH = 10.0
"""Prior standard deviation of the intercept where there is no EXP row, in units of sigma."""


@dataclass(frozen=True, slots=True)
class Experiment:
    """Centred moments of EXP, standardized; the last entry of p is the reward.

    centre: (p,) mean; scatter: (p, p); count: (K,) rows; model_sums: (K, p) sum of each model's
    rows less the centre.
    """

    rows: float
    centre: Floats
    scatter: Floats
    count: Floats
    model_sums: Floats

    @property
    def reward_variance(self) -> float:
        """With divisor n - 1; 0 where it does not exist."""
        return float(self.scatter[-1, -1]) / (self.rows - 1.0) if self.rows > 1 else 0.0

    @property
    def shares(self) -> Floats:
        """(K,) share of each model in the rows."""
        return self.count / max(self.rows, 1.0)


@dataclass(frozen=True, slots=True)
class SlopePriors:
    """J priors of the slopes: means (J, p - 1); eigenvectors (J, p - 1, p - 1) and inverse
    eigenvalues (J, p - 1) of the precision that OBS gives, per unit residual variance."""

    mean: Floats
    vectors: Floats
    inverse: Floats

    @classmethod
    def of(cls, means: Sequence[Floats], precisions: Sequence[Floats]) -> SlopePriors:
        """An infinite precision stands for a prior without an error of its own."""
        size = len(means[0])
        vectors = np.tile(np.eye(size), (len(means), 1, 1))
        inverse = np.zeros((len(means), size))
        for at, precision in enumerate(precisions):
            if np.isfinite(precision).all() and size:
                eigenvalues, vectors[at] = np.linalg.eigh(precision)
                inverse[at] = 1.0 / eigenvalues
        return cls(np.array(means), vectors, inverse)


@dataclass(frozen=True, slots=True)
class Posterior:
    """mean: (p + K,) of intercept, slopes and model effects, in the frame; covariance alike.

    weights: (J, tau_scorer, tau_model) evidence weights, sum 1.
    """

    mean: Floats
    covariance: Floats
    weights: Floats
    residual_variance: float


def log_prior_tau_model(models: int) -> Floats:
    """Log-weight of TAU_MODEL: keeps off zero where few models could tell the scale."""
    strength = 2.0 * min(1.0, 4.0 / max(models - 1, 1)) ** 2
    weight: Floats = strength * (np.log(TAU_MODEL) - np.log1p((TAU_MODEL / 0.2) ** 2))
    return weight


def posterior(experiment: Experiment, priors: SlopePriors, variance: float) -> Posterior:
    """Mixture posterior; `variance` is the prior mean of sigma^2, reward units squared."""
    models = len(experiment.count)
    freedom = max(experiment.rows - 1.0, 0.0)
    vectors = priors.vectors
    gram = experiment.scatter[:-1, :-1]
    cross = experiment.model_sums[:, :-1].T
    of_slopes = experiment.scatter[:-1, -1] - priors.mean @ gram
    of_effects = experiment.model_sums[:, -1] - priors.mean @ cross
    square = experiment.scatter[-1, -1] - (
        priors.mean * (experiment.scatter[:-1, -1] + of_slopes)
    ).sum(axis=1)

    # In the eigenbasis of each prior: C = root^2, P = (C^-1 + X'X)^-1 = half^T half.
    root = np.sqrt(TAU_SCORER[:, None] ** 2 + priors.inverse[:, None])
    rotated = vectors.swapaxes(1, 2) @ gram @ vectors
    inner = root[..., :, None] * rotated[:, None] * root[..., None, :]
    lower = np.linalg.cholesky(inner + np.eye(len(gram)))
    half = np.linalg.inv(lower) * root[..., None, :]
    log_slopes = 2.0 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1)
    half_cross = half @ (vectors.swapaxes(1, 2) @ cross)[:, None]
    half_reward = (half @ (of_slopes[:, None] @ vectors)[:, None].swapaxes(-1, -2))[..., 0]

    # What is left for the model effects: Z'MZ and Z'Mr with M = (I + X C X')^-1.
    counts = np.diag(experiment.count) - experiment.count[:, None] * experiment.shares
    left = counts - half_cross.swapaxes(-1, -2) @ half_cross
    eigenvalues, basis = np.linalg.eigh(left)
    eigenvalues = np.maximum(eigenvalues, 0.0)[..., None, :]
    seen = of_effects[:, None] - (half_cross * half_reward[..., None]).sum(axis=-2)
    seen = (basis.swapaxes(-1, -2) @ seen[..., None]).swapaxes(-1, -2)
    shrunk = 1.0 / (TAU_MODEL[:, None] ** -2.0 + eigenvalues)
    log_effects = np.log1p(TAU_MODEL[:, None] ** 2 * eigenvalues).sum(axis=-1)
    unexplained = (square[:, None] - (half_reward**2).sum(axis=-1))[..., None]
    unexplained = np.maximum(unexplained - (seen**2 * shrunk).sum(axis=-1), 0.0)

    scale = variance * (PRIOR_SHAPE - 1.0) + 0.5 * unexplained
    log_weight = (
        log_prior_tau_model(models)
        - 0.5 * (log_slopes[..., None] + log_effects)
        - (PRIOR_SHAPE + 0.5 * freedom) * np.log(scale)
    )
    weights = np.exp(log_weight - log_weight.max())
    weights /= weights.sum()
    sigma2 = scale / (PRIOR_SHAPE + 0.5 * freedom - 1.0)
    weighted = weights * sigma2

    effects = (shrunk * seen) @ basis.swapaxes(-1, -2)
    slopes = (half_reward[..., None, :] - effects @ half_cross.swapaxes(-1, -2)) @ half
    slopes = priors.mean[:, None, None] + slopes @ vectors.swapaxes(1, 2)[:, None]

    # Within-component covariance of (slopes, effects), summed over the grid.
    of_a = (basis * (weighted[..., None] * shrunk).sum(axis=2)[..., None, :]) @ basis.swapaxes(
        -1, -2
    )
    carried = half.swapaxes(-1, -2) @ half_cross
    spread = carried @ of_a
    of_b = spread @ carried.swapaxes(-1, -2)
    of_b += weighted.sum(axis=2)[..., None, None] * (half.swapaxes(-1, -2) @ half)
    of_b = (vectors @ of_b.sum(axis=1) @ vectors.swapaxes(1, 2)).sum(axis=0)
    between = -(vectors @ spread.sum(axis=1)).sum(axis=0)
    joint = np.block([[of_b, between], [between.T, of_a.sum(axis=(0, 1))]])

    components = np.concatenate([slopes, effects], axis=-1).reshape(weights.size, -1)
    mean = weights.ravel() @ components
    deviation = components - mean
    joint += (weights.ravel()[:, None] * deviation).T @ deviation
    residual_variance = float(weighted.sum())
    return _with_intercept(experiment, mean, joint, weights, residual_variance)


def _with_intercept(
    experiment: Experiment, mean: Floats, joint: Floats, weights: Floats, variance: float
) -> Posterior:
    """Add the intercept: mean reward less what slopes and effects give the average row."""
    average = np.concatenate([experiment.centre[:-1], experiment.shares])
    change = np.vstack([-average, np.eye(len(mean))])
    full = change @ mean
    full[0] += experiment.centre[-1]
    covariance = change @ joint @ change.T
    covariance[0, 0] += variance * (
        1.0 / experiment.rows if experiment.rows > 0 else INTERCEPT_WIDTH**2
    )
    return Posterior(full, covariance, weights, variance)
