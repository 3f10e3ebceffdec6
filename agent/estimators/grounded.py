"""Family `grounded`: the log's scorer, corrected by what the experiment says about its errors."""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.base import Estimate, deletions, family
from equipoise.agent.estimators.linear import (
    PSEUDO_ROW,
    averaged_over_simulation,
    choose_penalty,
    common_frame,
    fitted_scorer,
    posterior_spread,
    residual_products,
    residual_variance,
    ridge,
    rows,
    subsets,
    unknown_estimate,
)
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Floats


@family("grounded")
def grounded(moments: Moments) -> Estimate:
    """theta = theta_OBS + delta, delta a ridge fit of the EXP residuals of theta_OBS.

    Removing hidden confounding by experimental grounding (Kallus, Puli & Shalit 2018). The
    penalty on delta is chosen by the folds of EXP, theta_OBS being the same in all of them.
    Without OBS it is `representation-exp`, without EXP `obs-only`.
    Diagnostics: `penalty` in pseudo-rows, `errors` per penalty, `correction` (p,) delta in
    standardized units.
    """
    frame = common_frame(moments, moments.exp, moments.obs)
    if frame is None:
        return unknown_estimate("grounded", moments)
    exp, obs = frame.products(moments.exp), frame.products(moments.obs)
    exp_all, obs_all = exp.sum(axis=0), obs.sum(axis=0)
    base = ridge(obs_all, PSEUDO_ROW)
    penalty, errors = choose_penalty(residual_products(exp, base))
    correction = ridge(residual_products(exp_all, base), penalty)
    theta = base + correction

    masks = deletions(rows(exp) + rows(obs))
    bases = ridge(subsets(masks, obs), PSEUDO_ROW)
    replicates = bases + ridge(residual_products(subsets(masks, exp), bases), penalty)

    spread, variance = _uncertainty(exp_all, obs_all, theta, penalty)
    return averaged_over_simulation(
        "grounded",
        moments,
        frame,
        theta,
        replicates,
        fitted_scorer(frame, theta, spread, variance),
        {
            "rows": float(rows(exp_all)),
            "obs_rows": float(rows(obs_all)),
            "penalty": penalty,
            "errors": errors,
            "correction": correction,
        },
    )


def _uncertainty(exp: Floats, obs: Floats, theta: Floats, penalty: float) -> tuple[Floats, float]:
    """Covariance of theta per unit residual variance, and the residual variance.

    delta is a posterior around theta_OBS, whose own error passes through as far as the penalty
    holds theta to it.
    """
    of_obs, spent = posterior_spread(obs, PSEUDO_ROW)
    if rows(exp) == 0:
        return of_obs, residual_variance(obs, theta, spent)
    spread, spent = posterior_spread(exp, penalty)
    if rows(obs) > 0:
        held = np.eye(len(spread)) - spread @ exp[:-1, :-1]
        carried = held @ of_obs @ held.T
    else:
        carried = np.zeros_like(spread)
    return spread + carried, residual_variance(exp, theta, spent)
