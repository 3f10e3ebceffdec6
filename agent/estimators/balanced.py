"""EXP moments in which a model's rows stand for all of the traffic, by logged probabilities.

Where e pi(m) moves, with the request or from rule to rule, the rows of a model come from some
requests and times more than from others. What a scorer makes of its mean then holds for those: with
rewards that rise while shares move, a model looks better for having been drawn later. Weights
1 / (e pi) undo that, as in `ipw`.
"""

from __future__ import annotations

import numpy as np

from equipoise.agent.moments.scorer import ScorerMoments
from equipoise.agent.moments.state import Moments
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
    exp, weighted, arms = moments.exp, moments.exp_weighted, moments.arms
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
    left = np.divide(total, before, out=np.zeros_like(total), where=before > 0)
    within = exp.scatter - _between(exp.count, exp.mean - exp.centre[:, None])
    scatter = left[:, None, None] * within
    scatter += _between(rows, weighted.mean - centre[:, None])
    own = ScorerMoments(exp.count, rows, weighted.mean, centre, scatter)
    parts = [source.arrays().values() for source in (moments.obs, own, weighted)]
    stacked = ScorerMoments(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return Moments(moments.dimensions, stacked, arms, moments.simulation, moments.routing)


def _between(rows: Floats, offset: Floats) -> Floats:
    """(G, p, p) scatter of model means `offset` (G, K, p) from their group's centre."""
    return np.asarray(np.einsum("gk,gkp,gkq->gpq", rows, offset, offset, optimize=True))
