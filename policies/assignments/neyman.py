"""Assignment `neyman`: the shares that make the values most precise for the money.

Neyman (1934): shares proportional to standard deviation over the square root of the cost
minimise the summed variance of the K means at a given spend. The standard deviations are
estimated, so the floor matters: a model whose few rewards happen to agree would otherwise
never be tried again (Dai, Gradu, Harshaw 2023 clip for the same reason).
"""

from __future__ import annotations

import numpy as np

from equipoise.policies.assignments.uniform import uniform_shares
from equipoise.policies.kernels import ConstantShares
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Snapshot


@assignment("neyman", uses_contexts=False, idea="more requests to models whose rewards vary more")
def neyman(snapshot: Snapshot) -> ConstantShares:
    """Shares proportional to residual standard deviation / sqrt(cost).

    Residual variances come from the scorer, or without one from the EXP rewards. An unknown
    variance counts as the largest known one; without any the shares are uniform. Costs count
    only if every one is known and positive.
    """
    scorer = snapshot.scorer
    variances = snapshot.sample_variances if scorer is None else scorer.residual_variances
    finite = np.isfinite(variances)
    if not finite.any():
        return uniform_shares(snapshot)
    deviations = np.sqrt(np.where(finite, variances, variances[finite].max()))
    return ConstantShares(deviations / np.sqrt(snapshot.prices))
