"""Gate `uncertainty`: spend while the question is open, and hardly after that."""

from __future__ import annotations

from equipoise.policies.kernels import ConstantRate
from equipoise.policies.registry import gate
from equipoise.policies.snapshot import Snapshot


@gate("uncertainty")
def uncertainty(snapshot: Snapshot) -> ConstantRate:
    """The target rate while no decision is certified, rate_min while one is.

    Drift or a new model withdraws the certificate, and the rate rises again by itself.
    """
    limits = snapshot.limits
    return ConstantRate(limits.rate_min if snapshot.certified else limits.rate)
