"""Family `obs-only`: the scorer of the confounded log, averaged over SIM."""

from __future__ import annotations

from equipoise.agent.estimators.base import Estimate, family
from equipoise.agent.estimators.frame import common_frame
from equipoise.agent.estimators.jackknife import deletions
from equipoise.agent.estimators.linear import (
    averaged_over_simulation,
    fitted_scorer,
    unknown_estimate,
)
from equipoise.agent.estimators.ridge import (
    PSEUDO_ROW,
    posterior_spread,
    residual_variance,
    ridge,
    rows,
    subsets,
)
from equipoise.agent.moments.state import Moments


@family("obs-only")
def obs_only(moments: Moments) -> Estimate:
    """Ridge of R on phi over OBS rows with one pseudo-row of penalty; V(m) = mean phi_m theta.

    Biased wherever a latent state moves both the routing and the reward.
    """
    frame = common_frame(moments, moments.obs)
    if frame is None:
        return unknown_estimate("obs-only", moments)
    blocks = frame.products(moments.obs)
    everything = blocks.sum(axis=0)
    theta = ridge(everything, PSEUDO_ROW)
    spread, spent = posterior_spread(everything, PSEUDO_ROW)
    variance = residual_variance(everything, theta, spent)
    return averaged_over_simulation(
        "obs-only",
        moments,
        frame,
        theta,
        ridge(subsets(deletions(rows(blocks)), blocks), PSEUDO_ROW),
        fitted_scorer(frame, theta, spread, variance),
        {"rows": float(rows(everything))},
    )
