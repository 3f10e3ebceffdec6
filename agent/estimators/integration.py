"""A linear model with model effects: the slopes integrated out, K x K problems left.

R = mu + phi beta + a_m + error with beta ~ N(beta_0, sigma^2 C) and a flat intercept mu. With
centred moments the intercept takes the mean and one row, and given C the rewards inform the
effects through Z'MZ and Z'M(r - X beta_0), M = (I + X C X^T)^-1. The eigenvectors of Z'MZ serve
every scale of the effects.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.store.batches import Floats

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
