"""The naive reading of a log: the mean reward of each model where production chose it.

Not an estimator family: it is the comparison the families are there to replace.
"""

from __future__ import annotations

import numpy as np

from equipoise.agent.estimators.base import Estimate
from equipoise.agent.estimators.ipw import ratio_means
from equipoise.agent.estimators.jackknife import covariance, total_covariance
from equipoise.agent.moments.state import Moments


def naive_log(moments: Moments) -> Estimate:
    """Mean OBS reward per model with its jackknife covariance over groups of units."""
    obs = moments.obs
    values, replicates = ratio_means(obs.weight, np.ascontiguousarray(obs.mean[..., -1]))
    return Estimate(
        family="naive-log",
        values=values,
        covariance=total_covariance(values, covariance(replicates)),
        diagnostics={"rows": obs.count.sum(axis=0)},
    )
