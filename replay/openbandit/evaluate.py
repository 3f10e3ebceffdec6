"""What a policy is worth, from a log of another one: IPS, self-normalised IPS and doubly robust.

Positions are strata. Propensities belong to (position, item), click rates differ by position,
and a policy may show different items at each: so every estimate is made per position, and the
value of a policy is their mix over the log's position shares.

    IPS    mean of w r                           (Horvitz & Thompson 1952), w = pi(a|x) / p(a)
    SNIPS  sum of w r / sum of w                 (Hajek)
    DR     mean of sum_a pi(a|x) q(x, a) + w (r - q(x, a))      (Dudik, Langford, Li 2011)
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from equipoise.replay.openbandit.log import LoggedFeedback
from equipoise.replay.openbandit.values import Value, combined, unknown, weighted_rate
from equipoise.store.batches import Floats

ESTIMATORS = ("ips", "snips", "dr")


@dataclass(frozen=True, slots=True)
class Estimated:
    """One estimator's answer. mix: over positions. positions: P values, one a position.

    The influences of all of them are over all n rows.
    """

    mix: Value
    positions: tuple[Value, ...]


def policy_values(
    log: LoggedFeedback,
    target: Floats,
    predicted: Floats | None = None,
    shares: Floats | None = None,
) -> dict[str, Estimated]:
    """Estimates by name, those of ESTIMATORS; `dr` only with predictions.

    target: (n, K) probabilities of the policy to value, at each row's user and position.
    predicted: (n, K) click rates, each row's from a model that did not see the row.
    shares: (P,) weights of the positions, the log's own where absent. A position where the log
    never shows what the policy shows is unknown, NaN, and with it the mix.
    """
    rows = np.arange(len(log))
    weight = target[rows, log.item] / log.propensity
    terms = {"ips": weight * log.reward}
    if predicted is not None:
        terms["dr"] = (target * predicted).sum(axis=1) + weight * (
            log.reward - predicted[rows, log.item]
        )
    shares = log.position_shares if shares is None else shares
    result = {}
    for name in ESTIMATORS:
        if name == "snips" or name in terms:
            parts = tuple(
                _at_position(log, place, weight, terms.get(name))
                for place in range(len(log.positions))
            )
            result[name] = Estimated(combined(parts, shares.tolist()), parts)
    return result


def on_policy(log: LoggedFeedback, shares: Floats | None = None) -> Estimated:
    """The click rate of the logging policy itself: plain means per position."""
    shares = log.position_shares if shares is None else shares
    parts = tuple(
        _at_position(log, place, np.ones(len(log)), None) for place in range(len(log.positions))
    )
    return Estimated(combined(parts, shares.tolist()), parts)


def _at_position(log: LoggedFeedback, place: int, weight: Floats, terms: Floats | None) -> Value:
    """The mean of the terms at one position, or the weighted mean of rewards without terms."""
    here = np.flatnonzero(log.position == place)
    count = len(here)
    if count < 2 or not weight[here].sum() > 0.0:
        return unknown(len(log))
    found = weighted_rate(weight[here], log.reward[here])
    value, influence = found.value, found.influence
    if terms is not None:
        value = float(terms[here].mean())
        influence = (terms[here] - value) / count
    spread = np.zeros((3, len(log)))
    # Standard errors with the divisor n - 1.
    spread[0, here] = influence * math.sqrt(count / (count - 1.0))
    spread[1, here], spread[2, here] = found.weight, found.clicked
    return Value(value, *spread)
