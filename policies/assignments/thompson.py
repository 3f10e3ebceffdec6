"""Assignment `thompson`: a model's share is the probability that it is the best one.

Thompson (1933). Freezing the posterior draws into the rule turns sampling into a propensity
that can be logged and recomputed.
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import AssignmentKernel, BestDrawShares, ConstantShares
from equipoise.policies.posterior import best_probabilities, covariance_root, keyed_normals
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import ContextScorer, Snapshot

SCORER_DRAWS = 256


@assignment(
    "thompson",
    uses_contexts=False,
    idea="as often to each model as it is likely to be the best",
)
def thompson(snapshot: Snapshot) -> AssignmentKernel:
    """The best at this context by the scorer's posterior, else the best overall by the values.

    Uniform while the value of a model is unknown.
    """
    if not snapshot.known.all():
        return uniform_shares(snapshot)
    if snapshot.scorer is not None and _is_finite(snapshot.scorer):
        return _by_scorer(snapshot, snapshot.scorer)
    shares = best_probabilities(snapshot)
    return uniform_shares(snapshot) if shares is None else ConstantShares(shares)


def _by_scorer(snapshot: Snapshot, scorer: ContextScorer) -> BestDrawShares:
    """Draws of theta, carried to one linear function of [1, x] per model."""
    noise = keyed_normals(snapshot.seed, scorer.noise_keys, SCORER_DRAWS)
    # The noise is added after the sign, so that the mirrored problem sees the same draws.
    theta = snapshot.sign * scorer.theta + noise @ covariance_root(scorer.covariance).T
    # einsum sums in one order at every position: models with the same design tie exactly.
    return BestDrawShares(np.einsum("sp,mfp->smf", theta, scorer.design))


def _is_finite(scorer: ContextScorer) -> bool:
    return all(
        bool(np.isfinite(array).all()) for array in (scorer.theta, scorer.covariance, scorer.design)
    )
