"""Moments for gates that look at more than x: EXP rows weighted by 1 / e throughout."""

from __future__ import annotations

import numpy as np

from equipoise.agent.moments.scorer import ScorerMoments
from equipoise.agent.moments.state import Moments


def reweighted(moments: Moments) -> Moments:
    """A view in which `exp` holds the rows weighted by 1 / e, scaled to a mean weight of 1.

    Where e depends on anything but x (the routed model, harm), rows with w = 1 are a confounded
    sample again and only these are valid. The scaling keeps weights in units of rows, so that
    penalties and the evidence mean the same; the evidence is then a pseudo-likelihood.
    """
    weighted = moments.exp_weighted
    total = float(weighted.weight.sum())
    factor = float(weighted.count.sum()) / total if total > 0 else 1.0
    scaled = ScorerMoments(
        weighted.count,
        weighted.weight * factor,
        weighted.mean,
        weighted.centre,
        weighted.scatter * factor,
    )
    parts = [source.arrays().values() for source in (moments.obs, scaled, weighted)]
    stacked = ScorerMoments(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True)))
    return Moments(moments.dimensions, stacked, moments.arms, moments.simulation, moments.routing)
