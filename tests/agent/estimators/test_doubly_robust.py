"""`doubly-robust` against a loop over raw rows, and the property that gives it its name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import Ridge

from equipoise.agent.estimators import FAMILIES, estimate


class Reference:
    """Every number of the family from raw rows, in the units of the full sample's SIM."""

    def __init__(self, rows, penalty):
        self.penalty = penalty
        self.scale = rows.sim_phi.std(axis=0)

    def theta(self, source):
        fit = Ridge(alpha=self.penalty).fit(source.phi / self.scale, source.reward)
        return fit.intercept_, fit.coef_ / self.scale

    def output(self, rows, model, x):
        """SIM regression of phi on x: ridge with one row at one standard deviation per x."""
        phi = rows.sim_phi[rows.sim_model == model]
        d = rows.context
        scale = phi[:, :d].std(axis=0)
        fit = Ridge(alpha=1.0).fit(phi[:, :d] / scale, phi[:, d:])
        return np.column_stack([x, fit.predict(x / scale)])

    def terms(self, rows):
        """Direct and correction, (K,) each."""
        exp = rows.exp
        direct, above = np.zeros(rows.models), np.zeros(rows.models)
        for fold in range(5):
            held = exp.group % 5 == fold
            intercept, slopes = self.theta(exp.take(~held))
            direct += held.mean() * (intercept + rows.mean_phi() @ slopes)
            for model in range(rows.models):
                test = exp.take(held & (exp.model == model))
                if len(test) == 0:
                    continue
                live = self.output(rows, model, test.phi[:, : rows.context])
                phi = np.where(test.simulated[:, None], test.predicted, live)
                above[model] += (test.weight * (test.reward - intercept - phi @ slopes)).sum()
        below = np.bincount(exp.model, weights=exp.weight, minlength=rows.models)
        return direct, above / below


@pytest.mark.parametrize(("seed", "covered"), [(1, 0.5), (2, 0.0), (3, 1.0)])
def test_against_raw_rows(simulate, seed, covered):
    rows = simulate(seed=seed, covered=covered, exp=250)
    moments = rows.moments()
    got = {name: FAMILIES[name](moments) for name in ("doubly-robust", "representation-exp")}
    penalty = got["representation-exp"].diagnostics["penalty"]
    got = got["doubly-robust"]
    assert got.diagnostics["penalty"] == penalty
    reference = Reference(rows, penalty)
    direct, correction = reference.terms(rows)
    np.testing.assert_allclose(got.diagnostics["direct"], direct, rtol=1e-8)
    np.testing.assert_allclose(got.diagnostics["correction"], correction, rtol=1e-8)
    np.testing.assert_allclose(got.values, direct + correction, rtol=1e-8)
    expected = rows.jackknife(lambda part: sum(reference.terms(part)))
    np.testing.assert_allclose(got.covariance, expected, rtol=1e-7, atol=1e-10)


def test_without_x_the_predictor_of_a_row_without_sim_is_the_sim_mean(simulate):
    rows = simulate(seed=4, context=0, outputs=4, covered=0.0)
    got = FAMILIES["doubly-robust"](rows.moments())
    exp = rows.exp
    scorer = Reference(rows, got.diagnostics["penalty"])
    residual = np.zeros(rows.models)
    for fold in range(5):
        held = exp.group % 5 == fold
        intercept, slopes = scorer.theta(exp.take(~held))
        for model in range(rows.models):
            test = exp.take(held & (exp.model == model))
            error = test.reward - intercept - rows.mean_phi()[model] @ slopes
            residual[model] += (test.weight * error).sum()
    residual /= np.bincount(exp.model, weights=exp.weight)
    np.testing.assert_allclose(got.diagnostics["correction"], residual, rtol=1e-8)


def test_one_nonempty_fold_gives_the_hajek_mean(simulate):
    """Nothing to train on outside the fold: the predictor is constant and cancels."""
    rows = simulate(seed=5)
    one = rows.part(rows.obs.group >= 0, rows.exp.group % 5 == 1, rows.sim_group >= 0)
    got = estimate(one.moments(), ["ipw", "doubly-robust"])
    np.testing.assert_allclose(got["doubly-robust"].values, got["ipw"].values, rtol=1e-10)
    finite = np.isfinite(np.diagonal(got["ipw"].covariance))
    assert np.array_equal(finite, np.isfinite(np.diagonal(got["doubly-robust"].covariance)))


def test_a_wrong_simulator_moves_the_direct_method_and_not_the_value(simulate):
    """SIM outputs all shifted by 2: a known bias of `direct`, which the correction takes back.

    Deviation of the value from the truth is tested at 4.5 standard errors of 12 seeds
    (false alarm below 1e-5 per model).
    """
    errors, direct, truth = [], [], None
    for seed in range(12):
        rows = simulate(seed=100 + seed, exp=1500, contexts=400, covered=1.0)
        shift = np.zeros(rows.features)
        shift[rows.context :] = 2.0
        wrong = replace(
            rows,
            sim_phi=rows.sim_phi + shift,
            exp=replace(rows.exp, predicted=rows.exp.predicted + shift),
        )
        got = FAMILIES["doubly-robust"](wrong.moments())
        truth = rows.truth
        errors.append(got.values - truth)
        direct.append(got.diagnostics["direct"] - truth)
    errors = np.array(errors)
    allowed = 4.5 * errors.std(axis=0, ddof=1) / np.sqrt(len(errors))
    assert (np.abs(errors.mean(axis=0)) < allowed + 0.01).all()
    assert (np.abs(np.mean(direct, axis=0)) > 0.3).all()
