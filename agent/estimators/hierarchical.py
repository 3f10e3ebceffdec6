"""Families `hierarchical` and `hierarchical-cautious`: a scorer that starts from the log, plus an
effect of every model."""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.base import (
    Estimate,
    Scorer,
    covariance,
    family,
    total_covariance,
    unknown_covariance,
)
from equipoise.agent.estimators.evidence import TRUST, posterior
from equipoise.agent.estimators.linear import (
    CONSTANT,
    Frame,
    common_frame,
    extrapolated,
    mean_features,
    mean_features_replicated,
    unknown_estimate,
)
from equipoise.agent.estimators.log_prior import LogPrior, Sample
from equipoise.agent.moments.scorer import ScorerMoments
from equipoise.agent.moments.state import Moments

ENOUGH_ROWS = 10
"""EXP rows from which its own variance, rather than that of OBS, scales the prior of sigma^2."""


@family(
    "hierarchical",
    "a scorer that starts from the log, if there is one, plus an effect of every model",
    "OBS",
    "EXP",
    "SIM",
)
def hierarchical(moments: Moments) -> Estimate:
    """R = phi (beta_0 + delta) + rho f_m + a_m + error, averaged over scales by evidence on EXP.

    beta_0 and f_m are what OBS says under the same model (`log_prior`): its slopes, which hold
    wherever the latent type moves the choice of model but not the outputs given the model, and
    its effects per model, of which a share rho in {0, 1/2, 1} is real and the rest confounding.
    delta ~ N(0, sigma^2 (tau_scorer^2 I + the log's own covariance)) on standardized slopes,
    a_m ~ N(0, sigma^2 tau_model^2), or slopes that start from zero where the log fails; sigma^2
    inverse gamma and integrated out, the intercept flat. V(m) = mean phi_m beta + the effect of
    m; the covariance is the mixture's, plus the jackknife over contexts of SIM. Before the first
    EXP row the intercept is that of OBS, ten sigma wide.
    Diagnostics: `log_weight` of the components that start from the log, `real` the posterior mean
    of rho, 0 where the log is not believed, `log_effects` (K,) f as the log alone says, reward
    units, `tau_model` and `tau_scorer` posterior means in units of sigma, `residual_variance`,
    `model_effects` (K,) in reward units, around the intercept.
    """
    return _estimate("hierarchical", moments)


@family(
    "hierarchical-cautious",
    "hierarchical, ready for models that are worth more than their outputs show",
    "OBS",
    "EXP",
    "SIM",
    variant_of="hierarchical",
)
def hierarchical_cautious(moments: Moments) -> Estimate:
    """As `hierarchical`, but readings with large model effects keep a share of the weight while
    rewards are few (`evidence.least_large`).

    It loses less where outputs say little of the reward, as in preferences for a better writer,
    and somewhat more where the log is right.
    """
    return _estimate("hierarchical-cautious", moments)


def _estimate(name: str, moments: Moments) -> Estimate:
    frame = common_frame(moments, moments.exp, moments.obs)
    if frame is None:
        return unknown_estimate(name, moments)
    experiment = _sample(moments.exp, frame)
    prior = LogPrior.of(_sample(moments.obs, frame), TRUST)
    scale = _prior_variance(experiment, prior.residual_variance)
    known = scale > 0
    # Without any spread of rewards the unit is arbitrary: values stand, variances are unknown.
    cautious = name == "hierarchical-cautious"
    result = posterior(experiment, prior, scale if known else 1.0, cautious)

    models = moments.dimensions.models
    phi = frame.standardize(mean_features(moments.simulation))
    # Former versions have effects of their own, and no value.
    effects = np.eye(models, models + moments.dimensions.former)
    design = np.hstack([np.ones((models, 1)), phi, effects])
    values = frame.origin[-1] + design @ result.mean
    replicated = frame.standardize(mean_features_replicated(moments.simulation))
    contexts = replicated @ result.mean[1 : 1 + phi.shape[1]]
    spread = total_covariance(values, design @ result.covariance @ design.T, covariance(contexts))

    jacobian = frame.jacobian(len(result.mean))
    of_theta = jacobian @ result.covariance @ jacobian.T
    variance = result.residual_variance
    if not known:
        spread, of_theta = unknown_covariance(models), unknown_covariance(len(jacobian))
        variance = np.inf
    kept = len(jacobian) - moments.dimensions.former
    by_reading = result.weights.sum(axis=(1, 2))
    return Estimate(
        family=name,
        values=values,
        covariance=0.5 * (spread + spread.T),
        diagnostics={
            "extrapolated": extrapolated(moments),
            "rows": experiment.rows,
            "log_weight": float(by_reading[prior.informed].sum()),
            "real": result.real,
            "log_effects": np.exp(prior.log_weight)[prior.informed]
            @ prior.effects[prior.informed][:, :models]
            / (TRUST if prior.informed.any() else 1.0),
            "tau_model": result.tau_model,
            "tau_scorer": result.tau_scorer,
            "residual_variance": variance,
            "model_effects": result.mean[1 + phi.shape[1] : kept],
        },
        scorer=Scorer(
            theta=frame.original(result.mean)[:kept],
            covariance=0.5 * (of_theta + of_theta.T)[:kept, :kept],
            residual_variance=variance,
            model_effects=True,
        ),
    )


def _sample(source: ScorerMoments, frame: Frame) -> Sample:
    """All groups together, around the source's own mean: nothing cancels, however far from the
    frame's origin that lies."""
    unit = np.append(frame.unit, 1.0)
    weight = source.weight.sum(axis=1)
    n = float(weight.sum())
    offset = (source.centre - frame.origin) * unit
    centre = weight @ offset / max(n, 1e-300)
    offset -= centre
    scatter = source.scatter.sum(axis=0) * (unit[:, None] * unit)
    scatter += (weight[:, None] * offset).T @ offset
    sums = (source.weight[..., None] * (source.mean - frame.origin)).sum(axis=0) * unit
    count = source.weight.sum(axis=0)
    sums -= count[:, None] * centre
    # Of the origin too: what is subtracted from zeros leaves its rounding.
    largest = max(abs(frame.origin[-1] + centre[-1]), abs(frame.origin[-1]))
    if scatter[-1, -1] <= n * (CONSTANT * largest) ** 2:
        # Rewards that vary by rounding alone do not vary.
        scatter[-1] = scatter[:, -1] = sums[:, -1] = 0.0
    return Sample(n, centre, scatter, count, sums)


def _prior_variance(experiment: Sample, obs_variance: float) -> float:
    """Prior mean of sigma^2; 0 where nothing tells. OBS's is taken while EXP is small, and only
    then, so that a log on another scale cannot widen what a real experiment says."""
    own = experiment.reward_variance
    if not np.isfinite(obs_variance) or obs_variance <= 0:
        return own
    return own if experiment.rows >= ENOUGH_ROWS and own > 0 else obs_variance
