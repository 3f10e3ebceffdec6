"""Estimator families: pure functions of the moments (METHOD section 3).

ipw            `ipw`; the naive log and today's routing, which the families are compared with
scorers        `obs-only`, `representation-exp`, `cvci`, `grounded`
doubly_robust  `doubly-robust`
hierarchical   `hierarchical` and `hierarchical-cautious`; `log_prior`, `evidence`: their parts
base           what a family returns, the registry, jackknife covariances
linear         frames and ridge fits that several families share
outliers       moments without the groups in which a value far off drowns all others

A new family is one function with `@family(name)` in a file that is imported here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import TypeAlias

import numpy as np

# Importing a family registers it; this is the order in which families are shown.
# isort: off
from equipoise.agent.estimators import ipw
from equipoise.agent.estimators import scorers
from equipoise.agent.estimators import doubly_robust
from equipoise.agent.estimators import hierarchical

# isort: on
from equipoise.agent.estimators.base import (
    FAMILIES,
    Estimate,
    Family,
    Scorer,
    family,
    own_families,
    unknown_covariance,
)
from equipoise.agent.estimators.outliers import LeftOut, without_far_groups
from equipoise.agent.moments.state import Moments

__all__ = [
    "FAMILIES",
    "Estimate",
    "Family",
    "LeftOut",
    "Scorer",
    "doubly_robust",
    "estimate",
    "family",
    "hierarchical",
    "ipw",
    "scorers",
    "without_far_groups",
]


Off: TypeAlias = Mapping[str, str]
"""Families that are not to be computed, and why."""
Made: TypeAlias = tuple[str, str | None, tuple[float, float] | None]
"""What an estimate depends on beside the moments: family, why it is off, range of the reward."""
TOO_FAR = "values far off are in too many groups to be left out"
_FAR_OUTSIDE = 100.0
"""Ranges of the reward beyond which a value is no estimate but lost digits."""


def estimate(
    moments: Moments,
    names: Iterable[str] | None = None,
    *,
    sound: tuple[Moments, Sequence[LeftOut]] | None = None,
    even: Moments | None = None,
    off: Off = MappingProxyType({}),
    before: Callable[[str], None] | None = None,
    reward_range: tuple[float, float] | None = None,
    made: dict[Made, Estimate] | None = None,
) -> dict[str, Estimate]:
    """Estimates of the named families (all but variants for None), in the order asked for.

    Every family goes by the logged probabilities: EXP rows stand for all of the traffic, however
    e and pi moved (`balanced`).
    sound: what `without_far_groups` makes of the moments, where it is known already; every family
    but `ipw` is given that; even: what `balanced` makes of those.
    before: told of each family before it is computed, and of "" at the end.
    reward_range: a value many ranges away is no estimate. made: estimates of the same moments that
    were made before; they are not made again, and new ones are added.

    A family that cannot be computed, whatever the reason, does not keep others from it: its values
    are unknown, and its diagnostics say why under `failed`. What was left out of the moments is
    under `left_out`. Raises ValueError for a family nobody registered.
    """
    wanted = list(own_families() if names is None else names)
    unknown = [name for name in wanted if name not in FAMILIES]
    if unknown:
        raise ValueError(f"unknown estimator families {unknown}: known are {list(FAMILIES)}")
    sound_moments, left_out = without_far_groups(moments) if sound is None else sound
    even = ipw.balanced(sound_moments) if even is None else even
    estimates, told = {}, False
    known = {} if made is None else made
    for name in wanted:
        key = name, off.get(name), reward_range
        if key in known:
            estimates[name] = known[key]
            continue
        plain = name == "ipw"
        of = moments if plain else even
        if name in off:
            estimates[name] = known[key] = _failed(name, of, off[name])
            continue
        if not plain and any(each.too_many for each in left_out):
            result = _failed(name, of, TOO_FAR)
        else:
            if before is not None:
                before(name)
                told = True
            result = _attempt(name, FAMILIES[name], of, reward_range)
        if left_out and not plain:
            noted = {**result.diagnostics, "left_out": tuple(left_out)}
            result = replace(result, diagnostics=noted)
        estimates[name] = known[key] = result
    if before is not None and told:
        before("")
    return estimates


def _attempt(
    name: str, function: Family, moments: Moments, reward_range: tuple[float, float] | None
) -> Estimate:
    try:
        result = function(moments)
    except Exception as error:  # any: the other families, and the experiment itself, go on
        return _failed(name, moments, f"{type(error).__name__}: {error}")
    fault = _fault(result, reward_range)
    return result if fault is None else _failed(name, moments, fault)


def _fault(result: Estimate, reward_range: tuple[float, float] | None) -> str | None:
    """Why an estimate cannot be used, None if it can: unknown values are no fault."""
    variance = np.diagonal(result.covariance)
    if np.isinf(result.values).any() or np.isnan(result.covariance).any() or (variance < 0).any():
        return "its sums have overflowed or lost their digits"
    if reward_range is not None:
        low, high = reward_range
        off = np.maximum(low - result.values, result.values - high)
        if (off > _FAR_OUTSIDE * (high - low)).any():
            return "its sums have lost their digits: a value is far outside the range of rewards"
    scorer = result.scorer
    if scorer is not None and not np.isfinite(scorer.theta).all():
        return "its coefficients have overflowed"
    return None


def _failed(name: str, moments: Moments, reason: str) -> Estimate:
    """What stands for a family that could not be computed."""
    models = moments.dimensions.models
    return Estimate(
        family=name,
        values=np.full(models, np.nan),
        covariance=unknown_covariance(models),
        diagnostics={"failed": reason},
    )
