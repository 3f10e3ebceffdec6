"""EXP moments under logged probabilities, against the rows; drift while shares move."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.estimators import FAMILIES, estimate
from equipoise.agent.estimators.ipw import balanced

CONSTANT = np.array([3.0, 11.0, 40.0])


def test_model_means_and_rows_are_those_of_the_weighted_rows(simulate):
    rows = simulate(seed=1, exp=400)
    exp, got = rows.exp, balanced(rows.moments()).exp
    values = np.column_stack([exp.phi, exp.reward])
    for model in range(rows.models):
        own = exp.model == model
        weight = exp.weight[own]
        mean = np.average(values[own], axis=0, weights=weight)
        total = got.weight[:, model].sum()
        assert total == pytest.approx(weight.sum() ** 2 / (weight**2).sum())
        np.testing.assert_allclose(
            got.weight[:, model] @ got.mean[:, model] / total, mean, rtol=1e-9
        )


def test_scatter_is_that_of_rows_around_their_model_and_of_models(simulate):
    """Within a group: the rows' own scatter around their model's mean, scaled to the rows that
    are left, and the spread of the weighted means."""
    rows = simulate(seed=2, exp=600)
    exp, got = rows.exp, balanced(rows.moments()).exp
    values = np.column_stack([exp.phi, exp.reward])
    effective = np.array(
        [
            exp.weight[exp.model == m].sum() ** 2 / (exp.weight[exp.model == m] ** 2).sum()
            for m in range(rows.models)
        ]
    )
    for group in range(20):
        inside = exp.group == group
        within, between, total = 0.0, [], 0
        for model in range(rows.models):
            own = inside & (exp.model == model)
            if not own.any():
                continue
            off = values[own] - values[own].mean(axis=0)
            within = within + off.T @ off
            every = exp.weight[exp.model == model].sum()
            share = effective[model] * exp.weight[own].sum() / every
            between.append((share, np.average(values[own], axis=0, weights=exp.weight[own])))
            total += int(own.sum())
        if not total:
            continue
        shares = np.array([share for share, _ in between])
        means = np.array([mean for _, mean in between])
        centre = shares @ means / shares.sum()
        expected = within * shares.sum() / total
        expected = expected + (shares[:, None] * (means - centre)).T @ (means - centre)
        np.testing.assert_allclose(got.centre[group], centre, rtol=1e-9)
        np.testing.assert_allclose(got.scatter[group], expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_constant_probabilities_change_nothing(simulate, name):
    """Each model drawn with one probability throughout: the moments themselves, bit for bit."""
    rows = simulate(seed=3)
    moments = replace(rows, exp=replace(rows.exp, weight=CONSTANT[rows.exp.model])).moments()
    assert balanced(moments) is moments
    one, other = estimate(moments, [name])[name], FAMILIES[name](moments)
    np.testing.assert_array_equal(one.values, other.values)


def test_empty_and_unweighted_moments(simulate):
    bare = simulate(seed=4).without_exp().moments()
    assert balanced(bare) is bare


@pytest.mark.parametrize("name", ["ipw", "doubly-robust", "hierarchical"])
def test_rewards_that_rise_while_shares_move_flatter_nobody(simulate, name):
    """All models are worth the same at every moment; rewards rise by 1 from the first half to the
    second, in which model 0 is drawn ten times as often. Model means without weights differ by
    .4; the families stay within four of their own standard errors of no difference (seeded; a
    false alarm is rarer than 1 in 1,000)."""
    rng = np.random.default_rng(12)
    rows = simulate(seed=5, exp=6000, obs=0, contexts=300).without_obs()
    exp = rows.exp
    late = np.arange(len(exp)) >= 3000
    shares = np.where(late[:, None], [10 / 12, 1 / 12, 1 / 12], [1 / 3, 1 / 3, 1 / 3])
    model = (rng.random((len(exp), 1)) > shares.cumsum(axis=1)).sum(axis=1)
    reward = 1.0 * late + rng.normal(size=len(exp))
    # Outputs say nothing here, so that what differs between models is their effect alone.
    phi = rng.normal(size=exp.phi.shape)
    exp = replace(
        exp,
        model=model,
        phi=phi,
        predicted=phi,
        reward=reward,
        weight=1.0 / shares[np.arange(len(exp)), model],
    )
    moved = replace(rows, exp=exp, sim_phi=rng.normal(size=rows.sim_phi.shape))
    plain = np.array([reward[model == m].mean() for m in range(3)])
    assert np.ptp(plain) > 0.3
    got = estimate(moved.moments(), [name])[name]
    contrast = np.array([[1.0, -1.0, 0.0], [1.0, 0.0, -1.0]])
    error = np.sqrt(np.diagonal(contrast @ got.covariance @ contrast.T))
    assert (np.abs(contrast @ got.values) < 4.0 * error).all()
    assert (error < 0.1).all()


def test_a_former_version_counts_as_many_rows_as_it_was_worth(simulate):
    """As a model of its own: nothing about the rows is known any less."""
    moments = simulate(seed=4).moments()
    whole, renewed = balanced(moments), balanced(moments.renewed(1))
    assert (whole.exp.weight != moments.exp.weight).any()
    np.testing.assert_allclose(renewed.exp.weight[:, -1], whole.exp.weight[:, 1], rtol=1e-12)
    np.testing.assert_array_equal(renewed.exp.weight[:, 1], 0.0)
    np.testing.assert_allclose(renewed.exp.scatter, whole.exp.scatter, rtol=1e-9, atol=1e-9)
