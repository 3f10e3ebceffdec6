"""Estimator families: pure functions of the moments (METHOD section 3), one file each."""

from __future__ import annotations

from collections.abc import Iterable

# Importing a family registers it; this is the order in which families are shown.
# isort: off
from equipoise.agent.estimators import ipw
from equipoise.agent.estimators import obs_only
from equipoise.agent.estimators import representation_exp
from equipoise.agent.estimators import cvci
from equipoise.agent.estimators import grounded
from equipoise.agent.estimators import doubly_robust
from equipoise.agent.estimators import hierarchical

# isort: on
from equipoise.agent.estimators import balanced, naive_log, routing
from equipoise.agent.estimators.base import FAMILIES, Estimate, Family, Scorer, family
from equipoise.agent.moments.state import Moments

__all__ = [
    "FAMILIES",
    "Estimate",
    "Family",
    "Scorer",
    "balanced",
    "cvci",
    "doubly_robust",
    "estimate",
    "family",
    "grounded",
    "hierarchical",
    "ipw",
    "naive_log",
    "obs_only",
    "representation_exp",
    "routing",
]


def estimate(moments: Moments, names: Iterable[str] | None = None) -> dict[str, Estimate]:
    """Estimates of the named families (all of them for None), in the order asked for.

    Every family goes by the logged probabilities: EXP rows stand for all of the traffic, however
    e and pi moved (`balanced`). Raises ValueError for a family nobody registered.
    """
    wanted = list(FAMILIES if names is None else names)
    unknown = [name for name in wanted if name not in FAMILIES]
    if unknown:
        raise ValueError(f"unknown estimator families {unknown}: known are {list(FAMILIES)}")
    even = balanced.balanced(moments)
    return {name: FAMILIES[name](even) for name in wanted}
