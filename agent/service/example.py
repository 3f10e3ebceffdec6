"""A request that `/v1/decide` accepts in this experiment, to be shown in the OpenAPI document."""

from __future__ import annotations

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.features.boolean import Boolean
from equipoise.agent.features.category import Category
from equipoise.agent.features.feature import Feature
from equipoise.agent.features.number import Number
from equipoise.agent.features.text import Text
from equipoise.agent.features.vector import Vector


def example_request(config: ExperimentConfig) -> dict[str, object]:
    """A valid body with a value for every context feature."""
    return {
        "request_id": "request-1",
        "routed": config.models[0].name,
        "features": {feature.name: _value(feature) for feature in config.features.context},
        "unit_id": "user-1",
    }


def _value(feature: Feature) -> object:
    if isinstance(feature, Boolean):
        return True
    if isinstance(feature, Category):
        return (feature.values or ["other"])[0]
    if isinstance(feature, Text):
        return "How do I sort a list?"
    if isinstance(feature, Vector):
        return [0.0] * feature.length
    if isinstance(feature, Number):
        low = feature.low if feature.low is not None else 0.0 if feature.log else None
        if low is not None and low > 0:
            return low
        return feature.high if feature.high is not None and feature.high < 0 else low or 0.0
    raise TypeError(f"no example for a feature of type {type(feature).__name__}")
