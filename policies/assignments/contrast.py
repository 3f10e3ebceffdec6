"""Assignment `contrast`: the model whose reward says most for its price, request by request."""

from __future__ import annotations

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.design import average_cuts, context_cuts
from equipoise.policies.kernels import AssignmentKernel, ConstantShares, CutShares
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Snapshot


@assignment(
    "contrast", idea="more requests to the model whose reward there would narrow the contrasts most"
)
def contrast(snapshot: Snapshot) -> AssignmentKernel:
    """pi(m | x) proportional to the cut (`policies.design`) of a reward of m at x, per price.

    Without a scorer the same for all contexts, from the values' covariance and the variance of
    each model's own rewards. Uniform while the value of a model is unknown.
    """
    cuts = context_cuts(snapshot)
    if cuts is not None:
        return CutShares(cuts)
    shares = average_cuts(snapshot)
    return uniform_shares(snapshot) if shares is None else ConstantShares(shares)
