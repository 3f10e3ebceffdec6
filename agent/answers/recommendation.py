"""What to do with production traffic: the best single model, or today's routing as it is.

Today's routing is always on the list: users may choose well, and then the best single model is
worse than what is deployed. Its value needs no identification: traffic served as routed shows it.

An estimate alone never changes what is served: the action is to keep today's routing until a model
is certified. What the estimate leans to stands beside it, always with its error, and is nothing
where the error is unknown or larger than the range of rewards, or where the difference is rounding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

import msgspec
import numpy as np

from equipoise.agent.config import parts
from equipoise.agent.estimators.base import Estimate

KEEP = parts.KEEP
"""The action, or the leaning, to leave today's routing as it is."""
KEEP_ROUTING = "(today's routing)"
"""Today's routing among the candidates."""
ROUNDING = 1e-9
"""Differences up to this share of the range of rewards are ties: sums are exact to about 1e-12."""
_DIGITS = 1e-12
"""As ROUNDING, of the size of the numbers themselves, for ranges far from 0."""


Comparing: TypeAlias = Literal[
    "nothing", "few", "wide", "tie-with-routing", "routing", "tie", "leads"
]


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """What another family says of the same models; nothing is certified. family: its
    name. favoured: its best model.
    value_of_model, value_of_second: its values of the two models that look best by the family that
    was asked. lead: by how much it holds `favoured` to be better than the first of them, 0 where
    that is the same model. lead_standard_error: of the lead. Reward units, null where unknown."""

    family: str
    favoured: str
    value_of_model: float | None
    value_of_second: float | None
    lead: float | None
    lead_standard_error: float | None


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """What a family's estimates say of every model and of today's routing; nothing is certified.

    kind: `nothing`, no model has a value; `few`, too few different rewards (of `unknown`) to give
    the best an error; `wide`, its error is larger than the range of rewards; `routing`, today's
    routing looks better than every model; ties; or one model `leads`. top: positions of the models
    that look best. leaning: a model, KEEP, or None where too little is known, and in a tie. values,
    errors: (K,) estimates and standard errors, routing, routing_error: the same of today's routing;
    reward units, NaN where unknown. digits: after the point, for people. note: what else is to be
    said, "" for nothing. about: which requests it is about, "" for all. readings: what other
    families say, where they were asked.
    """

    family: str
    models: tuple[str, ...]
    kind: Comparing
    top: tuple[int, ...]
    leaning: str | None
    values: tuple[float, ...]
    errors: tuple[float, ...]
    routing: float
    routing_error: float
    digits: int
    note: str = ""
    about: str = ""
    readings: tuple[Reading, ...] = ()

    @property
    def spread(self) -> float:
        """Largest less smallest value of the best model over the families that have one, reward
        units; NaN where there is but one."""
        if not self.top or not self.readings:
            return math.nan
        known = [self.values[self.top[0]]]
        known += [one.value_of_model for one in self.readings if one.value_of_model is not None]
        return max(known) - min(known) if len(known) > 1 else math.nan

    @property
    def unknown(self) -> list[str]:
        """Those of the best whose error is not known."""
        return [self.models[index] for index in self.top if not math.isfinite(self.errors[index])]


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A family's answer.

    model: its best single model, however sure. favoured: that, or KEEP_ROUTING where today's
    routing is worth as much by the estimates; what a replay scores. leaning: the same for people, a
    model or KEEP; None where too little is known to lean to anything, and in a tie. action: KEEP,
    or the model that is certified. value, error: of `model`, its estimate and standard error;
    routing_value, routing_error: of today's routing; reward units, NaN where unknown.
    sentence: the answer for people.
    """

    family: str
    model: str | None
    favoured: str | None
    leaning: str | None
    action: str
    value: float
    error: float
    routing_value: float
    routing_error: float
    sentence: str

    def __str__(self) -> str:
        return self.sentence


def compare(
    models: tuple[str, ...],
    estimate: Estimate,
    routing: tuple[float, float],
    sign: int = 1,
    *,
    low: float = 0.0,
    high: float = 1.0,
) -> Comparison:
    """Compare every model and today's routing (value, variance). sign -1: smaller is better.

    low, high: range of the rewards.
    """
    span = high - low
    tie = ROUNDING * span + _DIGITS * max(abs(low), abs(high))
    variances = np.append(np.diagonal(estimate.covariance), routing[1])
    # Rewards that never differed say nothing about how far their mean may be off.
    known = np.isfinite(variances) & (variances > tie**2)
    errors = np.sqrt(np.where(known, variances, np.nan))
    values = estimate.values
    turned = np.where(np.isfinite(values), sign * values, -np.inf)
    top = np.asarray(turned >= float(turned.max(initial=-np.inf)) - tie) & np.isfinite(values)
    best = np.flatnonzero(top).tolist()
    routing_known = bool(np.isfinite(routing[0]) and errors[-1] <= span)
    lead = sign * (float(values[best[0]]) - routing[0]) if best else math.nan
    kind: Comparing
    if not best:
        kind = "nothing"
    elif not np.isfinite(errors[best]).all():
        kind = "few"
    elif not float(errors[best[0]]) <= span:
        kind = "wide"
    elif routing_known and abs(lead) <= tie:
        kind = "tie-with-routing"
    elif routing_known and lead < 0.0:
        kind = "routing"
    else:
        kind = "tie" if len(best) > 1 else "leads"
    leaning = {"routing": KEEP, "leads": models[best[0]] if best else None}.get(kind)
    return Comparison(
        family=estimate.family,
        models=models,
        kind=kind,
        top=tuple(best),
        leaning=leaning,
        values=tuple(values.tolist()),
        errors=tuple(errors[:-1].tolist()),
        routing=float(routing[0]) if routing_known else math.nan,
        routing_error=float(errors[-1]) if routing_known else math.nan,
        digits=min(max(3 - math.floor(math.log10(span)), 0), 15),
    )


def _known(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def readings(
    comparison: Comparison, estimates: Iterable[Estimate], sign: int = 1
) -> tuple[Reading, ...]:
    """What families other than that of the comparison say of its models."""
    if not comparison.top:
        return ()
    first = comparison.top[0]
    own = np.where(np.isfinite(comparison.values), sign * np.array(comparison.values), -np.inf)
    own[first] = -np.inf
    second = int(own.argmax())
    result = []
    for each in estimates:
        values, spread = each.values, each.covariance
        turned = np.where(np.isfinite(values), sign * values, -np.inf)
        best = int(turned.argmax())
        if each.family == comparison.family or not np.isfinite(values[best]):
            continue
        variance = 0.0
        if best != first:
            variance = spread[best, best] + spread[first, first] - 2.0 * spread[best, first]
        knows = math.isfinite(values[first])
        result.append(
            Reading(
                family=each.family,
                favoured=comparison.models[best],
                value_of_model=_known(values[first]),
                value_of_second=_known(values[second]) if np.isfinite(own[second]) else None,
                lead=_known(sign * (values[best] - values[first])),
                lead_standard_error=_known(math.sqrt(variance))
                if knows and variance >= 0.0
                else None,
            )
        )
    return tuple(result)


def favoured(comparison: Comparison, routing: float, sign: int = 1) -> str | None:
    """The best model, or KEEP_ROUTING where today's routing is worth as much, whatever the
    errors."""
    if not comparison.top:
        return None
    best = comparison.top[0]
    keep = sign * (routing - comparison.values[best]) >= 0.0
    return KEEP_ROUTING if keep else comparison.models[best]
