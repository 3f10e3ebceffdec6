"""From a fitted scorer and its replicates to the values of the models: families 2 to 5."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from equipoise.agent.estimators.base import Estimate, Scorer
from equipoise.agent.estimators.frame import Frame
from equipoise.agent.estimators.jackknife import (
    covariance,
    total_covariance,
    unknown_covariance,
)
from equipoise.agent.estimators.simulated import mean_features, mean_features_replicated
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Flags, Floats


def averaged_over_simulation(
    family: str,
    moments: Moments,
    frame: Frame,
    theta: Floats,
    replicates: Floats,
    scorer: Scorer,
    diagnostics: Mapping[str, Any],
) -> Estimate:
    """The estimate V(m) = mean of phi in SIM times theta, for standardized theta (p,).

    replicates: (h, p) theta without each non-empty group of units. The covariance is the sum of
    two jackknives: units move theta, contexts move the SIM means; they are sampled apart.
    """
    phi = mean_features(moments.simulation)
    values = frame.values(theta, phi)
    units = covariance(frame.values(replicates, phi))
    contexts = covariance(frame.values(theta, mean_features_replicated(moments.simulation)))
    return Estimate(
        family=family,
        values=values,
        covariance=total_covariance(values, units, contexts),
        diagnostics={"extrapolated": extrapolated(moments), **diagnostics},
        scorer=scorer,
    )


def fitted_scorer(frame: Frame, theta: Floats, spread: Floats, variance: float) -> Scorer:
    """Scorer in original coordinates from standardized theta (p,) and its covariance per unit
    residual variance, `spread` (p, p)."""
    jacobian = frame.jacobian(len(theta))
    if not np.isfinite(variance):
        return Scorer(frame.original(theta), unknown_covariance(len(theta)), np.inf)
    spread = jacobian @ (variance * spread) @ jacobian.T
    return Scorer(frame.original(theta), 0.5 * (spread + spread.T), variance)


def unknown_estimate(family: str, moments: Moments) -> Estimate:
    """What a family returns before it has any row to learn from."""
    models = moments.dimensions.models
    return Estimate(
        family=family,
        values=np.full(models, np.nan),
        covariance=unknown_covariance(models),
        diagnostics={"extrapolated": extrapolated(moments)},
    )


def extrapolated(moments: Moments) -> Flags:
    """(K,) models that were never randomized: their values rest on the scorer alone."""
    return np.asarray(moments.arms.count.sum(axis=0) == 0)
