"""Assignment `top-two`: split the requests between the likely best model and its challengers.

Top-two probability sampling (Russo 2016, *Simple Bayesian algorithms for best-arm
identification*): draw the best model from its posterior probabilities alpha; with probability
beta play it, else draw again until another model comes up. In closed form

    pi_i = alpha_i * (beta + (1 - beta) * sum over j != i of alpha_j / (1 - alpha_j)).

Thompson sampling starves the challengers once the leader is fairly sure; this keeps (1 - beta)
of the requests on the comparison that is still open.
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.posterior import smoothed_best_probabilities
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Floats, Snapshot

BETA = 0.5


@assignment(
    "top-two",
    uses_contexts=False,
    idea="mostly to the two models that are likeliest to be the best",
)
def top_two(snapshot: Snapshot) -> ConstantShares:
    """Russo's shares from the values and their covariance; uniform while a model is unknown."""
    alpha = smoothed_best_probabilities(snapshot)
    if alpha is None or len(alpha) == 1:
        return uniform_shares(snapshot)
    return ConstantShares(top_two_shares(alpha, BETA))


def top_two_shares(alpha: Floats, beta: float) -> Floats:
    """(K,) shares pi from the probabilities alpha (K,) of being the best, each inside (0, 1)."""
    odds = alpha / (1.0 - alpha)
    return np.asarray(alpha * (beta + (1.0 - beta) * (odds.sum() - odds)), dtype=np.float64)
