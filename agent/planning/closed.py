"""Closed forms: where a simulation should look, and what it is checked against.

Gaussian algebra for a contrast of two models under fixed shares. `anytime_rows` replaces the
quantile of a fixed-n test by what a mixture needs; `fewest_rewards` is Garivier & Kaufmann's lower
bound, which no policy at a sound level can beat on average.
"""

from __future__ import annotations

import math

import numpy as np
from scipy import special

from equipoise.policies.optimal_weights import leaders, optimal_weights
from equipoise.store.batches import Floats

MIXTURE = math.log(18.0)
"""Evidence that a mixture over a grid of 18 pays on top of log(1 / alpha)."""


def contrast_variance(
    variances: Floats, chance: Floats, a: int, b: int, unexplained: float = 1.0
) -> float:
    """Variance per request of the score contrast of a and b, drawn with chance (K,) each."""
    return float(unexplained * (variances[a] / chance[a] + variances[b] / chance[b]))


def fixed_rows(variance: float, effect: float, alpha: float, power: float) -> float:
    """Requests after which a one-sided fixed-n test at level alpha finds `effect` with `power`."""
    quantiles = special.ndtri(1.0 - alpha) + special.ndtri(power)
    return float(variance * (quantiles / effect) ** 2)


def anytime_rows(variance: float, effect: float, alpha: float, bound: float) -> float:
    """Requests after which a mixture at level alpha typically certifies `effect` > 0.

    Solves t effect = sqrt(2 t variance L) + bound L / 3 with L = log(1 / alpha) + MIXTURE: the
    boundary of sums that are bounded below by -bound (Bernstein's form).
    """
    evidence = math.log(1.0 / alpha) + MIXTURE
    linear, root = bound * evidence / 3.0, math.sqrt(2.0 * variance * evidence)
    return ((root + math.sqrt(root * root + 4.0 * effect * linear)) / (2.0 * effect)) ** 2


def fewest_rewards(values: Floats, variances: Floats, epsilon: float, delta: float) -> float:
    """Garivier & Kaufmann's lower bound on the expected rewards of any delta-correct rule.

    values, variances: (K,), larger is better, Gaussian rewards. kl(delta, 1 - delta) / c with
    c the best min over i of gap_i^2 / (2 (v_L / w_L + v_i / w_i)). inf where two models tie and
    epsilon is 0.
    """
    top = leaders(values)
    if top.sum() > 1 and epsilon == 0.0:
        return math.inf
    weights = optimal_weights(values, variances, epsilon)
    leader = int(np.argmax(values))
    others = np.arange(len(values)) != leader
    gaps = values[leader] - values[others] + epsilon
    noise = variances / np.maximum(weights, 1e-300)
    with np.errstate(divide="ignore", over="ignore"):
        rate = float((gaps**2 / (2.0 * (noise[leader] + noise[others]))).min())
    information = (1.0 - 2.0 * delta) * math.log((1.0 - delta) / delta)
    return information / rate
