"""Delete-one-group jackknife: covariances that respect clusters, from replicated estimates."""

from __future__ import annotations

import numpy as np

from equipoise.store.batches import Flags, Floats


def deletions(weight: Floats) -> Floats:
    """Masks (h, G) that leave out each of the h non-empty groups in turn. weight: (G,).

    An empty group has nothing to delete: it is no replicate and does not count in h.
    """
    return np.asarray(1.0 - np.eye(len(weight))[weight > 0])


def covariance(replicates: Floats) -> Floats:
    """Jackknife covariance (K, K) of replicates (h, K): (h - 1) / h times their scatter.

    +inf on the diagonal, 0 off it, where h < 2 or a replicate is unknown: a variance from one
    group does not exist.
    """
    h, models = replicates.shape
    if h < 2:
        return unknown_covariance(models)
    known: Flags = np.asarray(np.isfinite(replicates).all(axis=0))
    deviation = np.where(known, replicates - np.where(known, replicates, 0.0).mean(axis=0), 0.0)
    spread: Floats = (h - 1) / h * (deviation.T @ deviation)
    return with_unknown(spread, ~known)


def total_covariance(values: Floats, *parts: Floats) -> Floats:
    """Sum of independent covariances (K, K), unknown wherever a part or the value (K,) is."""
    unknown = ~np.isfinite(values)
    total = np.zeros((len(values), len(values)))
    for part in parts:
        unknown = unknown | ~np.isfinite(np.diagonal(part))
        total += part
    return with_unknown(total, unknown)


def with_unknown(spread: Floats, unknown: Flags) -> Floats:
    """`spread` (K, K) with +inf variance and zero covariances where `unknown` (K,) is true."""
    kept = ~(unknown[:, None] | unknown[None, :])
    result = np.where(kept, spread, 0.0)
    np.fill_diagonal(result, np.where(unknown, np.inf, np.diagonal(result)))
    return result


def unknown_covariance(models: int) -> Floats:
    """(K, K) covariance of values nobody knows."""
    return with_unknown(np.zeros((models, models)), np.ones(models, dtype=bool))
