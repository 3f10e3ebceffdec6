"""What to do with production traffic: the best single model, or today's routing as it is.

Today's routing is always on the list: users may choose well, and then the best single model is
worse than what is deployed. Its value needs no identification: traffic served as routed shows it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.agent.estimators.base import Estimate

KEEP_ROUTING = "(today's routing)"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A family's answer. `model` is its best single model, `action` that or KEEP_ROUTING.

    value, error: its value and standard error; routing_value, routing_error: of today's routing,
    all in reward units, NaN where unknown. sentence: the answer for people.
    """

    family: str
    model: str | None
    action: str | None
    value: float
    error: float
    routing_value: float
    routing_error: float
    sentence: str


def recommend(
    models: tuple[str, ...],
    estimate: Estimate,
    routing: tuple[float, float],
    sign: int = 1,
) -> Recommendation:
    """Compare every model and today's routing (value, variance). sign -1: smaller is better."""
    values = estimate.values
    routing_value, routing_error = routing[0], float(np.sqrt(routing[1]))
    if not np.isfinite(values).any():
        return Recommendation(
            estimate.family,
            None,
            None,
            np.nan,
            np.nan,
            routing_value,
            routing_error,
            "No model has a value yet.",
        )
    best = int(np.nanargmax(sign * values))
    value, error = float(values[best]), float(np.sqrt(estimate.covariance[best, best]))
    keep = bool(np.isfinite(routing_value)) and sign * (routing_value - value) >= 0
    gain = sign * (value - routing_value)
    if keep:
        sentence = (
            f"No single model beats what you deploy: the best one, {models[best]}, is worth "
            f"{value:.3f}, today's routing {routing_value:.3f}."
        )
    elif np.isfinite(routing_value):
        sentence = (
            f"Serve {models[best]}: it is worth {value:.3f}, {gain:+.3f} against today's "
            f"routing ({routing_value:.3f})."
        )
    else:
        sentence = f"Serve {models[best]}: it is worth {value:.3f}."
    return Recommendation(
        estimate.family,
        models[best],
        KEEP_ROUTING if keep else models[best],
        value,
        error,
        routing_value,
        routing_error,
        sentence,
    )
