"""The snapshot: everything a policy may look at when it freezes its next rule.

Arrays run over the K models in the order of `models`. Values are in reward units; unknown values
are NaN with an infinite variance, never 0. A policy must treat `sign` = -1 (smaller is better)
as the mirror image of +1; `oriented_values` does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Flags: TypeAlias = NDArray[np.bool_]
Ints: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Limits:
    """What every rule obeys: rate_min <= e <= rate_max, and pi >= floor for each eligible model."""

    rate: float
    """target share of requests to randomize"""
    rate_min: float
    rate_max: float
    floor: float
    """smallest assignment probability of an eligible model; at most 1 / K"""


@dataclass(frozen=True, slots=True)
class ContextScorer:
    """A posterior for the value of every model at a context.

    The value of model m at context features x is [1, x] @ design[m] @ theta.
    theta: (P,); covariance: (P, P); design: (K, 1 + d, P).
    noise_keys: P names, so that Monte Carlo draws follow a coefficient when models are relabelled.
    residual_variances: (K,) variance of a reward around the scorer's prediction.
    value_design: (K, P), the value of model m over all traffic is value_design[m] @ theta.
    spread: (K, P, P) covariance of a reward's own regressors around [1, x] @ design[m]: what the
    context does not tell about the output.
    """

    theta: Floats
    covariance: Floats
    design: Floats
    noise_keys: tuple[str, ...]
    residual_variances: Floats
    value_design: Floats
    spread: Floats


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Frozen view of what is known; the argument of every gate and assignment.

    values: (K,), covariance: (K, K) of the estimator in force, +inf on the diagonal where unknown.
    counts: (K,) EXP rewards seen; sample_means, sample_variances: (K,) of those rewards,
    unweighted, with divisor n - 1, NaN where they do not exist.
    costs: (K,) what a randomized request is expected to cost on each model, in the unit of the
    budget; NaN where that is the same for all (a budget in requests) or unknown.
    requests: decisions so far; certified: whether the running decision is certified;
    epsilon: smallest difference that matters (reward units); delta: error level.
    seed: seed of Monte Carlo work while a rule is frozen, so that freezing is reproducible.
    contexts: (n, d) context features of recent traffic, over which a gate's rates average to the
    target; None where nothing has been seen. reward_range: declared lowest and highest reward.
    """

    models: tuple[str, ...]
    values: Floats
    covariance: Floats
    counts: Floats
    sample_means: Floats
    sample_variances: Floats
    costs: Floats
    limits: Limits
    requests: int = 0
    certified: bool = False
    epsilon: float = 0.0
    delta: float = 0.05
    sign: int = 1
    seed: int = 0
    scorer: ContextScorer | None = None
    contexts: Floats | None = None
    reward_range: tuple[float, float] | None = None

    @property
    def oriented_values(self) -> Floats:
        """(K,) values with the sign flipped when smaller is better, so that larger is better."""
        return self.sign * self.values

    @property
    def known(self) -> Flags:
        """(K,) models whose value and variance are finite."""
        return np.isfinite(self.values) & np.isfinite(np.diagonal(self.covariance))

    @property
    def prices(self) -> Floats:
        """(K,) costs relative to their mean; 1 for every model unless all are known and > 0."""
        if not bool((np.isfinite(self.costs) & (self.costs > 0.0)).all()):
            return np.ones(len(self.models))
        return np.asarray(self.costs / self.costs.mean(), dtype=np.float64)
