"""Posterior and evidence of the hierarchical model, over a grid of readings of the log and scales.

A component is: a reading of the log (`log_prior`), the scale of the slopes' change since, the
share rho of the log's model effects taken to be real, and the scale of the effects beyond that.
Its evidence is that of rewards - X beta_0 - rho Z f, multivariate t with scale
I + X C X^T + tau^2 Z Z^T, C = the log's covariance + tau_scorer^2 I, sigma^2 ~ inverse gamma.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.agent.estimators.log_prior import Integrated, LogPrior, Sample, integrate_slopes
from equipoise.store.batches import Flags, Floats

TRUST = 0.97
"""Prior weight of the log's slopes against slopes that start from zero."""
CHANGES: Floats = np.array([0.0, 0.01, 0.03, 0.1, 0.3])
"""How far the slopes may have changed since the log, in sigma per standardized feature."""
CHANGE_WEIGHTS: Floats = np.array([0.8, 0.05, 0.05, 0.05, 0.05])
SIZES: Floats = np.array([0.01, 0.03, 0.1, 0.3, 1.0])
"""How large slopes are that start from zero; equal weights."""
REAL: Floats = np.array([0.0, 0.5, 1.0])
"""rho: which share of the log's model effects is real; the rest is confounding."""
REAL_WEIGHTS: Floats = np.array([0.94, 0.03, 0.03])
RELATIVE: Floats = np.array([0.0, 0.5, 1.0, 2.0])
"""Scale of the effects beyond rho f, as a multiple of the spread of f."""
RELATIVE_WEIGHTS: Floats = np.array([0.85, 0.05, 0.05, 0.05])
ABSOLUTE: Floats = np.array([0.03, 0.06, 0.12, 0.25, 0.5])
"""The same in units of sigma, whatever the log shows: effects that confounding cancels there."""
PRIOR_SHAPE = 2.0
"""Shape of the inverse gamma of sigma^2: four degrees of freedom, mean = its scale."""
LARGE = 0.12
"""Effects beyond the log's from this scale on, in units of sigma, are large."""
CAUTION, CAUTIOUS_ROWS = 0.3, 100.0
"""Least weight of readings with large effects where one is cautious, and the rewards of a model up
to which it is as much."""
INTERCEPT_WIDTH = 10.0
"""Prior standard deviation of the intercept where there is no EXP row, in units of sigma."""


@dataclass(frozen=True, slots=True)
class Posterior:
    """mean: (1 + p + K,) of intercept, slopes and model effects, in the frame; covariance alike.

    weights: (B, D, R) of the components, sum 1: readings, changes of slopes, and effects.
    real: share of the log's model effects held to be real, 0 where the log is not believed;
    tau_model: scale of what is beyond them, the log's own error in them included; tau_scorer: of
    the slopes' change, or of the slopes where they start from zero; both in units of sigma. All
    are posterior means.
    """

    mean: Floats
    covariance: Floats
    weights: Floats
    residual_variance: float
    real: float
    tau_model: float
    tau_scorer: float


def absolute_share(models: int) -> float:
    """Prior weight of ABSOLUTE against RELATIVE: higher where few models could tell the scale."""
    weight = 0.2 * (1.0 + 3.0 * min(1.0, 4.0 / max(models - 1, 1)) ** 2)
    return weight / (0.77 + weight)


@dataclass(frozen=True, slots=True)
class Grid:
    """Scales of the components and their log-weights.

    scorer, log_scorer: (B, D). real: (R,). model, log_model: (B, R).
    """

    scorer: Floats
    log_scorer: Floats
    real: Floats
    model: Floats
    log_model: Floats

    @classmethod
    def of(cls, prior: LogPrior) -> Grid:
        models = prior.effects.shape[1]
        known = prior.informed[:, None]
        real = np.repeat(REAL, len(RELATIVE) + len(ABSOLUTE))
        spread = prior.spread[:, None] * RELATIVE
        scale = np.hstack([spread, np.tile(ABSOLUTE, (len(spread), 1))])
        share = absolute_share(models)
        falling = ABSOLUTE**-0.7
        weights = np.append((1.0 - share) * RELATIVE_WEIGHTS, share * falling / falling.sum())
        # Without a log all multiples of its spread are the same: no effects.
        untold = np.append(RELATIVE_WEIGHTS, np.ones(len(ABSOLUTE))) / (1 + len(ABSOLUTE))
        log_weight = np.log(np.where(known, weights, untold))
        return cls(
            scorer=np.where(known, CHANGES, SIZES),
            log_scorer=np.log(np.where(known, CHANGE_WEIGHTS, 1.0 / len(SIZES))),
            real=real,
            # What the log says of the effects has an error of its own.
            model=np.hypot(np.tile(scale, (1, len(REAL))), prior.noise[:, None] * real),
            log_model=np.tile(log_weight, (1, len(REAL)))
            + np.repeat(np.log(REAL_WEIGHTS), scale.shape[1]),
        )


def posterior(
    sample: Sample, prior: LogPrior, variance: float, cautious: bool = False
) -> Posterior:
    """Mixture posterior; `variance` is the prior mean of sigma^2, reward units squared.

    cautious: components with large effects keep together at least `least_large` of the weight.
    """
    grid = Grid.of(prior)
    root = np.sqrt(prior.variances[:, None] + grid.scorer[..., None] ** 2)
    integrated = integrate_slopes(sample, prior.vectors[:, None], root)
    freedom = max(sample.rows - 1.0, 0.0)

    # Rewards less X beta_0, then less rho Z f.
    reward = (
        integrated.half
        @ (sample.scatter[:-1, -1] - prior.slopes @ sample.scatter[:-1, :-1])[:, None, :, None]
    )
    reward = reward[..., 0]
    of_effects = sample.model_sums[:, -1] - prior.slopes @ sample.model_sums[:, :-1].T
    of_rewards = of_effects[:, None] - (integrated.cross * reward[..., None]).sum(axis=-2)
    of_rewards = _rotate(of_rewards, integrated.basis)
    start = _rotate(np.broadcast_to(prior.effects[:, None], of_rewards.shape), integrated.basis)
    square = sample.scatter[-1, -1] - 2.0 * prior.slopes @ sample.scatter[:-1, -1]
    square += ((prior.slopes @ sample.scatter[:-1, :-1]) * prior.slopes).sum(axis=1)
    square = square[:, None] - (reward**2).sum(axis=-1)
    pulled = integrated.eigenvalues * start
    unexplained = (
        square[..., None]
        - 2.0 * grid.real * (start * of_rewards).sum(axis=-1)[..., None]
        + grid.real**2 * (start * pulled).sum(axis=-1)[..., None]
    )
    residual = of_rewards[..., None, :] - grid.real[:, None] * pulled[..., None, :]
    tau2 = grid.model[:, None, :, None] ** 2
    eigenvalues = integrated.eigenvalues[..., None, :]
    shrunk = tau2 / (1.0 + tau2 * eigenvalues)
    unexplained = np.maximum(unexplained - (residual**2 * shrunk).sum(axis=-1), 0.0)

    scale = variance * (PRIOR_SHAPE - 1.0) + 0.5 * unexplained
    log_weight = (
        prior.log_weight[:, None, None]
        + grid.log_scorer[..., None]
        + grid.log_model[:, None]
        - 0.5 * integrated.log_determinant[..., None]
        - 0.5 * np.log1p(tau2 * eigenvalues).sum(axis=-1)
        - (PRIOR_SHAPE + 0.5 * freedom) * np.log(scale)
    )
    weights = np.exp(log_weight - log_weight.max())
    weights /= weights.sum()
    if cautious:
        weights = _floored(weights, grid.model >= LARGE, least_large(sample))
    weighted = weights * scale / (PRIOR_SHAPE + 0.5 * freedom - 1.0)

    effects = _rotate(shrunk * residual, integrated.basis.swapaxes(-1, -2)[..., None, :, :])
    effects += grid.real[:, None] * prior.effects[:, None, None]
    slopes = (reward[..., None, :] - effects @ integrated.cross.swapaxes(-1, -2)) @ integrated.half
    slopes += prior.slopes[:, None, None]
    components = np.concatenate([slopes, effects], axis=-1).reshape(weights.size, -1)
    mean = weights.ravel() @ components
    deviation = components - mean
    joint = _within(integrated, weighted, shrunk)
    joint += (weights.ravel()[:, None] * deviation).T @ deviation
    residual_variance = float(weighted.sum())
    full, covariance = _with_intercept(sample, mean, joint, residual_variance)
    by_reading = weights.sum(axis=1)
    return Posterior(
        mean=full,
        covariance=covariance,
        weights=weights,
        residual_variance=residual_variance,
        real=float((by_reading[prior.informed] * grid.real).sum()),
        tau_model=float((by_reading * grid.model).sum()),
        tau_scorer=float((weights.sum(axis=2) * grid.scorer).sum()),
    )


def least_large(sample: Sample) -> float:
    """phi = CAUTION min(1, (CAUTIOUS_ROWS / n)^2), n the rewards per model: it vanishes faster than
    the error of a mean, so what many rewards say stands."""
    rows = sample.rows / max(len(sample.count), 1)
    return CAUTION * min(1.0, (CAUTIOUS_ROWS / max(rows, 1.0)) ** 2)


def _floored(weights: Floats, large: Flags, least: float) -> Floats:
    """Weights (B, D, R) with at least `least` on the components (B, R) that are large."""
    chosen = np.broadcast_to(large[:, None], weights.shape)
    together = float(weights[chosen].sum())
    if not 0.0 < together < least:
        return weights
    raised: Floats = weights * np.where(chosen, least / together, (1 - least) / (1 - together))
    return raised


def _rotate(vectors: Floats, basis: Floats) -> Floats:
    """(..., K) vectors in the eigenbasis: basis^T v."""
    return np.asarray((vectors[..., None, :] @ basis)[..., 0, :])


def _within(integrated: Integrated, weighted: Floats, shrunk: Floats) -> Floats:
    """(p + K, p + K) covariance of (slopes, effects) inside the components, averaged.

    weighted: (B, D, R) weight times sigma^2; shrunk: (B, D, R, K).
    """
    features = integrated.cross.shape[-2]
    diagonal = (weighted[..., None] * shrunk).sum(axis=2)
    # Slopes are their own spread given the effects, less half^T cross times the effects.
    own = np.sqrt(weighted.sum(axis=2))[..., None, None] * integrated.half
    effects = integrated.basis * np.sqrt(diagonal)[..., None, :]
    carried = integrated.half.swapaxes(-1, -2) @ (integrated.cross @ effects)
    both = np.concatenate([-carried, effects], axis=-2)
    joint = np.tensordot(both, both, axes=((0, 1, 3), (0, 1, 3)))
    joint[:features, :features] += np.tensordot(own, own, axes=((0, 1, 2), (0, 1, 2)))
    return np.asarray(joint)


def _with_intercept(
    sample: Sample, mean: Floats, joint: Floats, variance: float
) -> tuple[Floats, Floats]:
    """Add the intercept: mean reward less what slopes and effects give the average row."""
    average = np.concatenate([sample.centre[:-1], sample.shares])
    change = np.vstack([-average, np.eye(len(mean))])
    full = change @ mean
    full[0] += sample.centre[-1]
    covariance = change @ joint @ change.T
    covariance[0, 0] += variance * (1.0 / sample.rows if sample.rows > 0 else INTERCEPT_WIDTH**2)
    return full, covariance
