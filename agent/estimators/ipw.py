"""Family `ipw`: the inverse-propensity-weighted mean reward of each model, as an A/B test."""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.base import Estimate, family
from equipoise.agent.estimators.jackknife import covariance, deletions, total_covariance
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Floats


@family("ipw")
def ipw(moments: Moments) -> Estimate:
    """Hajek mean of the EXP rewards per model, w = 1 / (e pi): valid whatever e and pi looked at.

    Where every e pi of a model was the same it is the plain mean. Where they moved, be it only from
    rule to rule, the plain mean is not used: the rows of a model then come from some times more
    than from others, and rewards that move with time would pass for the model's worth.
    Diagnostics: `effective_rows` (K,) = (sum w)^2 / sum w^2.
    """
    arms = moments.arms
    weight, squares = arms.weight.sum(axis=0), arms.weight_sq.sum(axis=0)
    effective = np.divide(weight * weight, squares, out=np.zeros_like(weight), where=squares > 0)
    values, replicates = ratio_means(arms.weight, arms.mean)
    return Estimate(
        family="ipw",
        values=values,
        covariance=total_covariance(values, covariance(replicates)),
        diagnostics={"rows": arms.count.sum(axis=0), "effective_rows": effective},
    )


def ratio_means(weight: Floats, mean: Floats) -> tuple[Floats, Floats]:
    """Means (K,) over all groups of cells weight, mean (G, K), and (h, K) without each group.

    NaN where nothing is left.
    """
    total = weight.sum()
    origin = (weight * mean).sum() / total if total > 0 else 0.0
    masks = np.vstack([np.ones(len(weight)), deletions(weight.sum(axis=1))])
    below = masks @ weight
    above = masks @ (weight * (mean - origin))
    shift = np.divide(above, below, out=np.full_like(above, np.nan), where=below > 0)
    means = origin + shift
    return means[0], means[1:]
