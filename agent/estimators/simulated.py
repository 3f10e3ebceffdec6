"""What SIM says about each model: its mean features, and how far they would move."""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.frame import CONSTANT
from equipoise.agent.estimators.jackknife import deletions
from equipoise.agent.estimators.ridge import PSEUDO_ROW
from equipoise.agent.moments.simulation import SimulationMoments
from equipoise.store.batches import Floats


def mean_features(simulation: SimulationMoments) -> Floats:
    """(K, p - 1) mean of phi per model, NaN where a model has no SIM row."""
    means: Floats = _means(np.ones((1, len(simulation.count))), simulation)[0]
    return means


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
