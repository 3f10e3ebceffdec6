"""What an estimator family returns, and the registry of families."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Floats


@dataclass(frozen=True, slots=True)
class Scorer:
    """A fitted linear scorer of rewards, for policies that look at contexts.

    theta: (P,) coefficients of phi = [1, x, y, interactions] (the first p), followed by one
    effect per model where `model_effects` (P = p + K). covariance: (P, P).
    residual_variance: variance of a reward around the scorer, reward units squared.
    """

    theta: Floats
    covariance: Floats
    residual_variance: float
    model_effects: bool = False


@dataclass(frozen=True, slots=True)
class Estimate:
    """Values of the K models from one family.

    values: (K,) in reward units, NaN where unknown. covariance: (K, K), +inf on the diagonal
    (0 off it) where unknown. diagnostics: named numbers or arrays that explain the values.
    """

    family: str
    values: Floats
    covariance: Floats
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    scorer: Scorer | None = None


Family: TypeAlias = Callable[[Moments], Estimate]
FAMILIES: dict[str, Family] = {}


def family(name: str) -> Callable[[Family], Family]:
    """Register a function of the moments as the estimator family `name`."""

    def register(function: Family) -> Family:
        if name in FAMILIES:
            raise ValueError(f"estimator family {name!r} is registered twice")
        FAMILIES[name] = function
        return function

    return register
