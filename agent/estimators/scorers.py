"""Scorers of OBS, of EXP, and of both, averaged over SIM: V(m) = mean phi_m theta.

Families `obs-only`, `representation-exp`, `cvci` and `grounded` (METHOD section 3, 2 to 5). They
differ in theta alone: a ridge of one source, one loss mixed of both, or the log's fit corrected by
what the experiment says about its errors.
"""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.base import Estimate, deletions, family
from equipoise.agent.estimators.linear import (
    PSEUDO_ROW,
    averaged_over_simulation,
    choose_penalty,
    common_frame,
    fitted_scorer,
    held_out,
    penalized,
    posterior_spread,
    residual_products,
    residual_variance,
    ridge,
    rows,
    squared_error,
    subsets,
    unknown_estimate,
)
from equipoise.agent.moments.scorer import ScorerMoments
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Floats

LAMBDAS: Floats = np.arange(11) / 10.0


@family(
    "obs-only",
    "a linear scorer of rewards fitted to the usage log; inherits its bias",
    "OBS",
    "SIM",
    without_log="no answer",
)
def obs_only(moments: Moments) -> Estimate:
    """Ridge of R on phi over OBS rows with one pseudo-row of penalty; V(m) = mean phi_m theta.

    Biased wherever a latent state moves both the routing and the reward.
    """
    return _of_one_source("obs-only", moments, moments.obs, PSEUDO_ROW)


@family(
    "representation-exp",
    "the same scorer fitted to randomized requests, all models together",
    "EXP",
    "SIM",
)
def representation_exp(moments: Moments) -> Estimate:
    """Ridge of R on phi over EXP rows of all models together; V(m) = mean phi_m theta.

    Pooling over models needs the outputs to carry all that users react to (A5). The penalty is
    chosen by cross-validation. Diagnostics: `penalty` in pseudo-rows, `errors` per penalty.
    """
    return _of_one_source("representation-exp", moments, moments.exp, None)


def _of_one_source(
    name: str, moments: Moments, source: ScorerMoments, penalty: float | None
) -> Estimate:
    """penalty: in pseudo-rows, None to choose it by cross-validation."""
    frame = common_frame(moments, source)
    if frame is None:
        return unknown_estimate(name, moments)
    blocks = frame.products(source)
    everything = blocks.sum(axis=0)
    diagnostics: dict[str, object] = {"rows": float(rows(everything))}
    if penalty is None:
        penalty, errors = choose_penalty(blocks)
        diagnostics |= {"penalty": penalty, "errors": errors}
    theta = ridge(everything, penalty)
    spread, spent = posterior_spread(everything, penalty)
    variance = residual_variance(everything, theta, spent)
    return averaged_over_simulation(
        name,
        moments,
        frame,
        theta,
        ridge(subsets(deletions(rows(blocks)), blocks), penalty),
        fitted_scorer(frame, theta, spread, variance),
        diagnostics,
    )


@family(
    "cvci",
    "one scorer for log and randomized requests; cross-validation weighs the log",
    "OBS",
    "EXP",
    "SIM",
    without_log="representation-exp",
)
def cvci(moments: Moments) -> Estimate:
    """theta minimises (1 - lambda) loss_EXP + lambda loss_OBS (mean losses), lambda by 5 folds.

    Cross-validated causal inference (Yang, Lin, Athey, Jordan & Imbens 2025). OBS is whole in
    every fold. lambda = 1 is `obs-only`; it is also the choice while EXP cannot fill its folds.
    Diagnostics: `lambda`, and `errors`, the cross-validated EXP loss along LAMBDAS.
    """
    frame = common_frame(moments, moments.exp, moments.obs)
    if frame is None:
        return unknown_estimate("cvci", moments)
    exp, obs = frame.products(moments.exp), frame.products(moments.obs)
    share, errors = _choose_share(exp, obs)
    exp_all, obs_all = exp.sum(axis=0), obs.sum(axis=0)
    mixed, penalty = _mixed(exp_all, obs_all, np.asarray(share))
    theta = ridge(mixed, penalty)
    masks = deletions(rows(exp) + rows(obs))
    replicates = ridge(*_mixed(subsets(masks, exp), subsets(masks, obs), np.asarray(share)))

    # Each source enters with weight c / n; the sandwich counts its rows and its pseudo-row once.
    bread = np.linalg.inv(penalized(mixed, penalty))
    meat = np.zeros_like(bread)
    for source, weight in ((exp_all, 1.0 - share), (obs_all, share)):
        if weight > 0:
            meat += (weight / rows(source)) ** 2 * penalized(source, PSEUDO_ROW)
    judged, weight = (exp_all, 1.0 - share) if rows(exp_all) > 0 else (obs_all, share)
    spent = weight / float(rows(judged)) * float(np.trace(bread @ judged[:-1, :-1]))
    variance = residual_variance(judged, theta, spent)
    return averaged_over_simulation(
        "cvci",
        moments,
        frame,
        theta,
        replicates,
        fitted_scorer(frame, theta, bread @ meat @ bread, variance),
        {
            "rows": float(rows(exp_all)),
            "obs_rows": float(rows(obs_all)),
            "lambda": share,
            "errors": errors,
        },
    )


def _mixed(exp: Floats, obs: Floats, share: Floats) -> tuple[Floats, Floats]:
    """Blocks (1 - share) EXP / n_EXP + share OBS / n_OBS and the penalty that goes with them.

    The penalty is one pseudo-row of each source, mixed alike. A source without rows leaves all
    the weight to the other.
    """
    n_exp, n_obs = rows(exp), rows(obs)
    share = np.where(n_exp == 0, 1.0, np.where(n_obs == 0, 0.0, share))
    of_exp = (1.0 - share) / np.maximum(n_exp, 1e-300)
    of_obs = share / np.maximum(n_obs, 1e-300)
    of_exp, of_obs = np.where(n_exp > 0, of_exp, 0.0), np.where(n_obs > 0, of_obs, 0.0)
    mixed = of_exp[..., None, None] * exp + of_obs[..., None, None] * obs
    penalty = PSEUDO_ROW * (of_exp + of_obs)
    return mixed, np.where(penalty > 0, penalty, 1.0)


def _choose_share(exp: Floats, obs: Floats) -> tuple[float, Floats]:
    """lambda, and the cross-validated EXP loss of each; exp, obs: (G, p + 1, p + 1)."""
    unjudged = np.full(len(LAMBDAS), np.nan)
    if rows(obs).sum() == 0:
        return 0.0, unjudged
    masks = held_out(len(exp))
    test = subsets(masks, exp)
    if (rows(test) == 0).any() or len(test) < 2:
        return 1.0, unjudged
    train = subsets(1.0 - masks, exp)
    theta = ridge(*_mixed(train[:, None], obs.sum(axis=0), LAMBDAS))
    errors = squared_error(test[:, None], theta).sum(axis=0) / rows(test).sum()
    return float(LAMBDAS[np.argmin(errors)]), errors


@family(
    "grounded",
    "the log's scorer, corrected on randomized requests",
    "OBS",
    "EXP",
    "SIM",
    without_log="representation-exp",
)
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
        pull = np.eye(len(spread)) - spread @ exp[:-1, :-1]
        carried = pull @ of_obs @ pull.T
    else:
        carried = np.zeros_like(spread)
    return spread + carried, residual_variance(exp, theta, spent)
