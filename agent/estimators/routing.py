"""The value of today's routing: the status quo that a single model has to beat."""

from __future__ import annotations

from equipoise.agent.estimators.ipw import ratio_means
from equipoise.agent.estimators.jackknife import covariance
from equipoise.agent.moments.state import Moments


def routing_value(moments: Moments) -> tuple[float, float]:
    """Hajek mean of the rewards of traffic served as routed, and its jackknife variance.

    (NaN, inf) where there is no such row; an infinite variance where one group holds them all.
    """
    routing = moments.routing
    values, replicates = ratio_means(routing.weight[:, None], routing.mean[:, None])
    return float(values[0]), float(covariance(replicates)[0, 0])
