"""Family `representation-exp`: the scorer of the experiment, averaged over SIM."""

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
    choose_penalty,
    posterior_spread,
    residual_variance,
    ridge,
    rows,
    subsets,
)
from equipoise.agent.moments.state import Moments


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
