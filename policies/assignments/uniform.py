"""Assignment `uniform`: every eligible model alike."""

from __future__ import annotations

import numpy as np

from equipoise.policies.kernels import ConstantShares
from equipoise.policies.registry import assignment
from equipoise.policies.snapshot import Snapshot


def uniform_shares(snapshot: Snapshot) -> ConstantShares:
    """Equal shares: also what the other assignments fall back to while they know nothing."""
    return ConstantShares(np.ones(len(snapshot.models)))


@assignment("uniform", uses_estimate=False, idea="every model equally often")
def uniform(snapshot: Snapshot) -> ConstantShares:
    """Equal shares."""
    return uniform_shares(snapshot)
