"""Weighted means: family `ipw`, the naive reading of a log, and the value of today's routing.

Where e pi(m) moves, with the request or from rule to rule, the rows of a model come from some
requests and times more than from others. What a scorer makes of its mean then holds for those: with
rewards that rise while shares move, a model looks better for having been drawn later. Weights
1 / (e pi) undo that, as in `ipw`.

Not an estimator family: it is the comparison the families are there to replace.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from equipoise.agent.estimators.base import (
    Estimate,
    covariance,
    deletions,
    family,
    total_covariance,
)
from equipoise.agent.moments.scorer import ScorerMoments
from equipoise.agent.moments.state import Moments, joined_arms
from equipoise.store.batches import Floats

CONSTANT = 1e-9
"""Share of its rows by which a model's effective rows may fall short through rounding alone."""


def balanced(moments: Moments) -> Moments:
    """A view whose `exp` has every model's weighted means, and as many rows as those are worth.

    A model's n rows count as n' = n (sum w)^2 / (n sum w^2) effective ones (Kish 1965), spread over
    the groups by their weight; the scatter around the models' means is that of the rows themselves,
    scaled by what is left of them: slopes hold wherever the scorer does. Where every e pi of a
    model was the same, w is constant and this is `moments` itself.
    """
    exp, weighted = moments.exp, moments.exp_weighted
    arms = joined_arms(moments.arms, moments.former)
    count, weight = exp.count.sum(axis=0), weighted.weight.sum(axis=0)
    squares = arms.weight_sq.sum(axis=0) * arms.count.sum(axis=0)
    share = np.divide(
        arms.weight.sum(axis=0) ** 2, squares, out=np.ones_like(count), where=squares > 0
    )
    if (share >= 1.0 - CONSTANT).all():
        return moments
    rows = np.divide(
        weighted.weight * count * share,
        weight,
        out=np.zeros_like(weighted.weight),
        where=weight > 0,
    )
    total, before = rows.sum(axis=1), exp.count.sum(axis=1)
    centre = np.einsum("gk,gkp->gp", rows, weighted.mean)
    centre = np.divide(centre, total[:, None], out=np.zeros_like(centre), where=total[:, None] > 0)
    remaining = np.divide(total, before, out=np.zeros_like(total), where=before > 0)
    within = exp.scatter - _between(exp.count, exp.mean - exp.centre[:, None])
    scatter = remaining[:, None, None] * within
    scatter += _between(rows, weighted.mean - centre[:, None])
    own = ScorerMoments(exp.count, rows, weighted.mean, centre, scatter)
    parts = [source.arrays().values() for source in (moments.obs, own, weighted)]
    stacked = ScorerMoments(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return replace(moments, scorers=stacked)


def _between(rows: Floats, offset: Floats) -> Floats:
    """(G, p, p) scatter of model means `offset` (G, K, p) from their group's centre."""
    return np.asarray((rows[..., None] * offset).swapaxes(1, 2) @ offset)


@family("ipw", "weighted mean of the rewards of each model, as an A/B test", "EXP")
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


def naive_log(moments: Moments) -> Estimate:
    """Mean OBS reward per model with its jackknife covariance over groups of units."""
    obs, models = moments.obs, moments.dimensions.models
    rewards = np.ascontiguousarray(obs.mean[:, :models, -1])
    values, replicates = ratio_means(np.ascontiguousarray(obs.weight[:, :models]), rewards)
    return Estimate(
        family="naive-log",
        values=values,
        covariance=total_covariance(values, covariance(replicates)),
        diagnostics={"rows": obs.count.sum(axis=0)[:models]},
    )


def routing_value(moments: Moments) -> tuple[float, float]:
    """Hajek mean of the rewards of traffic served as routed, and its jackknife variance.

    (NaN, inf) where there is no such row; an infinite variance where one group holds them all.
    """
    routing = moments.routing
    values, replicates = ratio_means(routing.weight[:, None], routing.mean[:, None])
    return float(values[0]), float(covariance(replicates)[0, 0])
