"""Known truth: bias of every family over many draws of a linear, confounded world."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.estimators import FAMILIES
from equipoise.agent.estimators.ipw import naive_log

DRAWS = 100
UNBIASED = ("ipw", "representation-exp", "doubly-robust", "hierarchical")


@pytest.fixture(scope="module")
def draws(simulate):
    """Errors (draws, K) and variances (draws, K) per family; 400 EXP rows against 1,500 OBS."""
    errors, variances = {}, {}
    for seed in range(DRAWS):
        rows = simulate(seed=1000 + seed, obs=1500, exp=400, contexts=200, confounding=2.0)
        moments = rows.moments()
        for name, compute in {**FAMILIES, "naive-log": naive_log}.items():
            got = compute(moments)
            errors.setdefault(name, []).append(got.values - rows.truth)
            variances.setdefault(name, []).append(np.diagonal(got.covariance))
    return {name: (np.array(errors[name]), np.array(variances[name])) for name in errors}


@pytest.mark.parametrize("name", UNBIASED)
def test_bias_is_within_its_monte_carlo_error(draws, name):
    """|mean error| below 4.5 standard errors, plus .03 for the shrinkage that penalties and
    priors cost on purpose. False alarm below 1e-5 per model."""
    errors, _ = draws[name]
    allowed = 4.5 * errors.std(axis=0, ddof=1) / np.sqrt(DRAWS) + 0.03 * (name != "ipw")
    assert (np.abs(errors.mean(axis=0)) < allowed).all()


@pytest.mark.parametrize("name", ["obs-only", "naive-log"])
def test_the_log_is_biased_under_confounding(draws, name):
    """More than ten standard errors from the truth, and more than .2 reward units."""
    errors, _ = draws[name]
    bias = np.abs(errors.mean(axis=0))
    assert (bias > 10 * errors.std(axis=0, ddof=1) / np.sqrt(DRAWS)).any()
    assert bias.max() > 0.2


@pytest.mark.parametrize("name", ["cvci", "grounded"])
def test_grounding_takes_most_of_that_bias_away(draws, name):
    bias = np.abs(draws["obs-only"][0].mean(axis=0)).max()
    assert np.abs(draws[name][0].mean(axis=0)).max() < 0.6 * bias


@pytest.mark.parametrize("name", UNBIASED)
def test_stated_variance_is_the_variance(draws, name):
    """Mean stated variance over the variance of the errors, averaged over models.

    The variance of 100 draws has a relative standard error of .14, so that (.6, 1.8) is three
    of them below and five above: false alarm below 2e-3, and none at these seeds.
    """
    errors, variances = draws[name]
    ratio = (variances.mean(axis=0) / errors.var(axis=0, ddof=1)).mean()
    assert 0.6 < ratio < 1.8


def test_the_log_head_start_pays_and_costs_nothing(draws):
    """hierarchical's mean squared error stays below that of ipw, and near representation-exp's
    under this confounding (seeded: 100 draws)."""

    def error(name):
        return (draws[name][0] ** 2).mean()

    assert error("hierarchical") < error("ipw")
    assert error("hierarchical") < 1.3 * error("representation-exp")
