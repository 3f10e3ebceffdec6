"""Gate `fixed-rate`: randomize every request with the same probability."""

from __future__ import annotations

from equipoise.policies.kernels import ConstantRate
from equipoise.policies.registry import gate
from equipoise.policies.snapshot import Snapshot


@gate("fixed-rate", uses_estimate=False)
def fixed_rate(snapshot: Snapshot) -> ConstantRate:
    """The target rate, whatever is known."""
    return ConstantRate(snapshot.limits.rate)
