"""Gate `contrast`: randomize the requests that say most about the contrasts that still matter."""

from __future__ import annotations

from equipoise.policies.design import context_cuts
from equipoise.policies.kernels import ConstantRate, RateKernel, calibrated
from equipoise.policies.registry import gate
from equipoise.policies.snapshot import Snapshot

UNIFORM = 0.5
"""share of the rate that every request gets alike: no weight more than doubles by the gate"""


@gate("contrast")
def contrast(snapshot: Snapshot) -> RateKernel:
    """e proportional to the best attainable cut (`policies.design`) per price, half of it uniform.

    rate_min once a decision is certified: no contrast matters then. The target rate for every
    request where the context tells nothing: without a scorer or traffic, or while a model is
    unknown.
    """
    limits = snapshot.limits
    if snapshot.certified:
        return ConstantRate(limits.rate_min)
    cuts = context_cuts(snapshot)
    if cuts is None or snapshot.contexts is None:
        return ConstantRate(limits.rate)
    return calibrated(
        cuts, snapshot.contexts, limits.rate, limits.rate_min, limits.rate_max, UNIFORM
    )
