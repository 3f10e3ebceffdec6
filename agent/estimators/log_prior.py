"""The prior of the hierarchical model: what the log says before the experiment.

R = mu + phi beta + a_m + error with beta ~ N(beta_0, sigma^2 C) and a flat intercept mu. With
centred moments the intercept takes the mean and one row, and given C the rewards inform the
effects through Z'MZ and Z'M(r - X beta_0), M = (I + X C X^T)^-1. The eigenvectors of Z'MZ serve
every scale of the effects.

OBS is read with the same model as EXP, R = phi beta + f_m + error with f_m ~ N(0, spread^2), and
`spread` integrated out by its own evidence. An f_m is either real (the model is worth more than
its outputs show) or confounding (users who rate high choose it): nothing in OBS can tell which.
But where OBS shows no such effects at all, real ones would have to be cancelled by confounding
to the last digit, so that there is most likely neither.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.estimators.linear import PSEUDO_ROW
from equipoise.store.batches import Flags, Floats

ROUNDING = 1e-13
"""Share of its own moments a feature is widened by: copies of a feature that is far larger live
than in SIM would otherwise leave a negative pivot where rounding exceeds the prior."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Centred moments of rows, features standardized; the last entry of p + 1 is the reward.

    centre: (p + 1,) mean; scatter: (p + 1, p + 1); count: (K,) rows; model_sums: (K, p + 1) sum
    of each model's rows less the centre.
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
class Integrated:
    """half: (..., p, p) with (C^-1 + X'X)^-1 = half^T half; cross: (..., p, K) half X'Z.

    Z'MZ = basis diag(eigenvalues) basis^T, (..., K, K) and (..., K). log_determinant: (...) of
    I + C X'X.
    """

    half: Floats
    cross: Floats
    eigenvalues: Floats
    basis: Floats
    log_determinant: Floats


def integrate_slopes(sample: Sample, vectors: Floats, deviations: Floats) -> Integrated:
    """C = vectors diag(deviations^2) vectors^T per unit residual variance.

    vectors: (..., p, p) orthonormal columns; deviations: (..., p), of any further leading shape
    that broadcasts.
    """
    root = vectors * deviations[..., None, :]
    inner = vectors.swapaxes(-1, -2) @ sample.scatter[:-1, :-1] @ vectors
    inner = deviations[..., :, None] * inner * deviations[..., None, :]
    lower = _cholesky(inner)
    half = np.linalg.solve(lower, root.swapaxes(-1, -2))
    cross = half @ sample.model_sums[:, :-1].T
    counts = np.diag(sample.count) - sample.count[:, None] * sample.shares
    eigenvalues, basis = np.linalg.eigh(counts - cross.swapaxes(-1, -2) @ cross)
    return Integrated(
        half=np.asarray(half),
        cross=cross,
        eigenvalues=np.maximum(eigenvalues, 0.0),
        basis=basis,
        log_determinant=2.0 * np.log(np.diagonal(lower, axis1=-2, axis2=-1)).sum(axis=-1),
    )


def _cholesky(inner: Floats) -> Floats:
    """Of I + inner, (..., p, p) up to rounding positive semidefinite."""
    diagonal = np.arange(inner.shape[-1])
    scale = inner[..., diagonal, diagonal]
    widened = inner.copy()
    widened[..., diagonal, diagonal] += 1.0 + ROUNDING * scale
    try:
        return np.asarray(np.linalg.cholesky(widened))
    except np.linalg.LinAlgError:
        # The change of basis has spread the rounding of the largest feature over all of them.
        largest = scale.max(axis=-1, keepdims=True)
        widened[..., diagonal, diagonal] += len(diagonal) * ROUNDING * largest
        return np.asarray(np.linalg.cholesky(widened))


SPREADS: Floats = np.array([0.003, 0.01, 0.03, 0.06, 0.1, 0.2, 0.4, 0.8, 1.6])
"""Grid of the spread of the log's model effects, in units of sigma; equal weights."""
MOST_SPREADS = 3
NEGLIGIBLE = 0.02
"""A spread with less than this share of the weight is left out."""


@dataclass(frozen=True, slots=True)
class LogPrior:
    """B readings of the log, in standardized features and units of sigma.

    slopes: (B, p); their covariance is vectors diag(variances) vectors^T per residual variance,
    vectors (B, p, p) and variances (B, p). effects: (B, K) the log's model effects f, shrunk;
    noise: (B,) standard deviation of their error; spread: (B,) that of f itself.
    log_weight: (B,), their weights sum to 1. informed: (B,) False for the reading that knows
    nothing: slopes 0. residual_variance: of OBS around its pooled ridge without model effects,
    reward units squared; +inf where it is not known.
    """

    slopes: Floats
    vectors: Floats
    variances: Floats
    effects: Floats
    noise: Floats
    spread: Floats
    log_weight: Floats
    informed: Flags
    residual_variance: float

    @classmethod
    def ignorant(cls, features: int, models: int) -> Self:
        """The one reading of an empty log."""
        return cls(
            slopes=np.zeros((1, features)),
            vectors=np.eye(features)[None],
            variances=np.zeros((1, features)),
            effects=np.zeros((1, models)),
            noise=np.zeros(1),
            spread=np.zeros(1),
            log_weight=np.zeros(1),
            informed=np.array([False]),
            residual_variance=np.inf,
        )

    @classmethod
    def of(cls, log: Sample, trust: float) -> Self:
        """Readings of OBS, sharing the prior weight `trust`, and the ignorant one."""
        models, features = len(log.count), len(log.centre) - 1
        none = cls.ignorant(features, models)
        if log.rows == 0:
            return none
        integrated = integrate_slopes(log, np.eye(features), np.full(features, PSEUDO_ROW**-0.5))
        reward = integrated.half @ log.scatter[:-1, -1]
        of_rewards = integrated.basis.T @ (log.model_sums[:, -1] - integrated.cross.T @ reward)
        unexplained = log.scatter[-1, -1] - reward @ reward
        shrunk = SPREADS[:, None] ** 2 / (1.0 + SPREADS[:, None] ** 2 * integrated.eigenvalues)
        error = np.maximum(unexplained - shrunk @ of_rewards**2, 0.0)
        variance = _residual_variance(log, integrated, reward)
        # Inverse gamma of shape 1 and scale half of what the pooled fit leaves. Where that is
        # unknown or nothing, so is `error`, and the unit does not matter.
        rate = variance if 0.0 < variance < np.inf else 1.0
        log_weight = -0.5 * np.log1p(SPREADS[:, None] ** 2 * integrated.eigenvalues).sum(axis=1)
        log_weight -= 0.5 * (log.rows + 1.0) * np.log(rate + error)
        weight = np.exp(log_weight - log_weight.max())
        weight /= weight.sum()
        # Spreads that the log cannot tell apart, where it shows one model, tie: the smallest stay.
        likely = np.sort(np.argsort(-weight, kind="stable")[:MOST_SPREADS])
        likely = likely[weight[likely] >= NEGLIGIBLE]

        effects = (shrunk[likely] * of_rewards) @ integrated.basis.T
        of_effects = (integrated.basis * shrunk[likely][:, None]) @ integrated.basis.T
        carried = integrated.half.T @ integrated.cross
        covariance = integrated.half.T @ integrated.half + carried @ of_effects @ carried.T
        variances, vectors = np.linalg.eigh(0.5 * (covariance + covariance.swapaxes(1, 2)))
        share = np.log(weight[likely] / weight[likely].sum()) + np.log(trust)
        return cls(
            slopes=np.vstack(
                [(reward - effects @ integrated.cross.T) @ integrated.half, none.slopes]
            ),
            vectors=np.concatenate([vectors, none.vectors]),
            variances=np.vstack([np.maximum(variances, 0.0), none.variances]),
            effects=np.vstack([effects, none.effects]),
            noise=np.append(_contrast_deviation(of_effects), 0.0),
            spread=np.append(SPREADS[likely], 0.0),
            log_weight=np.append(share, np.log1p(-trust)),
            informed=np.append(np.ones(len(likely), dtype=bool), False),
            residual_variance=variance,
        )


def _residual_variance(log: Sample, integrated: Integrated, reward: Floats) -> float:
    """Mean squared residual of the ridge on pooled OBS, the parameters it spends taken off.

    integrated: slopes with the ridge's penalty as their prior; reward: (p,) half X'r.
    """
    spent = 1.0 + len(reward) - PSEUDO_ROW * float((integrated.half**2).sum())
    if log.rows - spent < 1e-9:
        return np.inf
    slopes = reward @ integrated.half
    error = log.scatter[-1, -1] - reward @ reward - PSEUDO_ROW * (slopes @ slopes)
    return max(float(error), 0.0) / (log.rows - spent)


def _contrast_deviation(covariance: Floats) -> Floats:
    """(B,) root mean variance of effects (B, K, K) less their mean, which no data show."""
    models = covariance.shape[-1]
    total = np.trace(covariance, axis1=1, axis2=2) - covariance.sum(axis=(1, 2)) / models
    deviation: Floats = np.sqrt(np.maximum(total, 0.0) / max(models - 1, 1))
    return deviation
