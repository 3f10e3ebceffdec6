"""Monte Carlo draws from what a snapshot believes, in a way that ignores the order of the models.

Three choices make a policy's answer follow its models when they are relabelled, up to rounding:
the noise belongs to a *name*, not to a position; the covariance enters through a square root
that permutes with it (a Cholesky factor does not); and models that tie share the draw.
Noise comes in pairs (z, -z), so that a symmetric question gets a symmetric answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b

import numpy as np

from equipoise.policies.snapshot import Floats, Snapshot

VALUE_DRAWS = 4096
# Eigenvalues of a correlation matrix below this are rounding: their square roots would be noise.
_SMALLEST_EIGENVALUE = 1e-12
# Values that agree to this share of the largest standard deviation are equal.
_TIE = 1e-9


def keyed_normals(seed: int, keys: Sequence[str], draws: int) -> Floats:
    """(draws, len(keys)) standard normals in pairs (z, -z); column j depends on seed and keys[j].

    draws: an even number. The second half is the negative of the first.
    """
    half = np.empty((draws // 2, len(keys)))
    for column, key in enumerate(keys):
        digest = blake2b(
            f"{seed}:{key}".encode(), digest_size=16, person=b"equipoise-policy"
        ).digest()
        philox = np.random.Philox(key=np.frombuffer(digest, dtype="<u8"))
        half[:, column] = np.random.Generator(philox).standard_normal(draws // 2)
    return np.concatenate([half, -half])


def covariance_root(covariance: Floats) -> Floats:
    """(K, K) matrix A with A @ A.T = covariance, which permutes when the covariance does.

    A = D R^(1/2): standard deviations times the symmetric root of the correlations. Going
    through the correlations keeps coefficients of very different scales apart from rounding.
    A covariance that is not positive semidefinite is moved to the nearest such correlation.
    """
    scale = np.sqrt(np.maximum(np.diagonal(covariance), 0.0))
    unit = np.where(scale > 0.0, scale, 1.0)
    correlation = covariance / np.outer(unit, unit)
    eigenvalues, vectors = np.linalg.eigh((correlation + correlation.T) / 2.0)
    eigenvalues[eigenvalues < _SMALLEST_EIGENVALUE * max(eigenvalues[-1], 0.0)] = 0.0
    root = (vectors * np.sqrt(np.maximum(eigenvalues, 0.0))) @ vectors.T
    return np.asarray(scale[:, None] * root, dtype=np.float64)


def best_probabilities(snapshot: Snapshot, draws: int = VALUE_DRAWS) -> Floats | None:
    """(K,) posterior probability that a model is the best, or None while a model is unknown.

    From Gaussian values: draws of N(values, covariance), larger being better by `sign`.
    """
    if not snapshot.known.all():
        return None
    root = covariance_root(snapshot.covariance)
    noise = keyed_normals(snapshot.seed, snapshot.models, draws)
    # The noise is added after the sign, so that the mirrored problem sees the same draws.
    # (K, draws): what is asked of every draw runs along memory.
    values = np.ascontiguousarray((snapshot.oriented_values + noise @ root.T).T)
    spread = np.sqrt(np.diagonal(snapshot.covariance).max(initial=0.0))
    best = values >= values.max(axis=0) - _TIE * spread
    sharing = best.sum(axis=0)
    if (sharing == 1).all():
        return np.asarray(best.sum(axis=1) / draws, dtype=np.float64)
    return np.asarray(np.ascontiguousarray((best / sharing).T).mean(axis=0), dtype=np.float64)


def smoothed_best_probabilities(snapshot: Snapshot) -> Floats | None:
    """(K,) as `best_probabilities`, each inside (0, 1), their sum 1; None while one is unknown.

    Half a draw more for every model: a share of 0 or 1 is Monte Carlo error.
    """
    alpha = best_probabilities(snapshot)
    if alpha is None:
        return None
    return np.asarray((alpha * VALUE_DRAWS + 0.5) / (VALUE_DRAWS + 0.5 * len(alpha)))
