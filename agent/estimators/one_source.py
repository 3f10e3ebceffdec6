"""Families `obs-only` and `representation-exp`: the scorer of one source, averaged over SIM."""

from __future__ import annotations

from equipoise.agent.estimators.base import Estimate, deletions, family
from equipoise.agent.estimators.linear import (
    PSEUDO_ROW,
    averaged_over_simulation,
    choose_penalty,
    common_frame,
    fitted_scorer,
    posterior_spread,
    residual_variance,
    ridge,
    rows,
    subsets,
    unknown_estimate,
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


@family("representation-exp")
def representation_exp(moments: Moments) -> Estimate:
    """Ridge of R on phi over EXP rows of all models together; V(m) = mean phi_m theta.

    Pooling over models needs the outputs to carry all that users react to (A5). The penalty is
    chosen by cross-validation. Diagnostics: `penalty` in pseudo-rows, `errors` per penalty.
    """
    frame = common_frame(moments, moments.exp)
    if frame is None:
        return unknown_estimate("representation-exp", moments)
    blocks = frame.products(moments.exp)
    penalty, errors = choose_penalty(blocks)
    everything = blocks.sum(axis=0)
    theta = ridge(everything, penalty)
    spread, spent = posterior_spread(everything, penalty)
    variance = residual_variance(everything, theta, spent)
    return averaged_over_simulation(
        "representation-exp",
        moments,
        frame,
        theta,
        ridge(subsets(deletions(rows(blocks)), blocks), penalty),
        fitted_scorer(frame, theta, spread, variance),
        {"rows": float(rows(everything)), "penalty": penalty, "errors": errors},
    )
