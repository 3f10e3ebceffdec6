"""The cuts of `policies.design` against what a reward really does to a Gaussian posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from equipoise.policies.design import average_cuts, context_cuts
from equipoise.policies.gates import active
from equipoise.policies.gates import contrast as contrast_gate
from equipoise.policies.kernels import ConstantRate, ScoredRate, calibrated
from equipoise.policies.kernels.context_forms import ResidualScale
from equipoise.policies.posterior import smoothed_best_probabilities
from equipoise.policies.registry import policy
from equipoise.policies.snapshot import ContextScorer, Floats, Limits, Snapshot

Scenarios = dict[str, Callable[[], Snapshot]]


def loss(directions: Floats, covariance: Floats, alpha: Floats) -> float:
    """sum over i < j of alpha_i alpha_j Var(V(i) - V(j))."""
    between = directions[:, None] - directions[None, :]
    variances = np.einsum("ijp,pq,ijq->ij", between, covariance, between)
    return float((np.outer(alpha, alpha) * variances).sum() / 2.0)


def after(covariance: Floats, phi: Floats, noise: float) -> Floats:
    """The posterior covariance once a reward with regressors phi has been seen."""
    carried = covariance @ phi
    return covariance - np.outer(carried, carried) / (noise + phi @ carried)


@pytest.fixture
def snapshot(scenarios: Scenarios) -> Snapshot:
    found = scenarios["scorer with model effects"]()
    return replace(found, costs=np.full(5, np.nan))


def test_a_cut_is_what_a_reward_takes_off_the_loss(snapshot: Snapshot) -> None:
    """Outputs known from the context (no spread): the ratio of true cuts, to rounding."""
    scorer = replace(snapshot.scorer, spread=np.zeros_like(snapshot.scorer.spread))
    snapshot = replace(snapshot, scorer=scorer)
    alpha = smoothed_best_probabilities(snapshot)
    before = loss(scorer.value_design, scorer.covariance, alpha)
    x = snapshot.contexts[:6]
    found = context_cuts(snapshot).each(x)
    expected = np.empty_like(found)
    for row, context in enumerate(x):
        for model in range(5):
            phi = np.concatenate([[1.0], context]) @ scorer.design[model]
            left = after(scorer.covariance, phi, scorer.residual_variances[model])
            expected[row, model] = before - loss(scorer.value_design, left, alpha)
    np.testing.assert_allclose(found / found[0, 0], expected / expected[0, 0], rtol=1e-6)


def test_the_spread_of_outputs_is_averaged_over(snapshot: Snapshot) -> None:
    """Gain and spread are means over regressors with the stated mean and covariance."""
    scorer = snapshot.scorer
    alpha = smoothed_best_probabilities(snapshot)
    weights = np.diag(alpha) - np.outer(alpha, alpha)
    matter = scorer.value_design.T @ weights @ scorer.value_design
    x = snapshot.contexts[:4]
    gain, spread = np.empty((4, 5)), np.empty((4, 5))
    for row, context in enumerate(x):
        for model in range(5):
            mean = np.concatenate([[1.0], context]) @ scorer.design[model]
            values, vectors = np.linalg.eigh(scorer.spread[model])
            steps = (vectors * np.sqrt(np.maximum(values, 0.0) * len(mean))).T
            points = np.concatenate([mean + steps, mean - steps])
            carried = points @ scorer.covariance
            gain[row, model] = np.einsum("np,pq,nq->n", carried, matter, carried).mean()
            noise = scorer.residual_variances[model]
            spread[row, model] = noise + (carried * points).sum(axis=1).mean()
    found = context_cuts(snapshot).each(x)
    expected = gain / spread
    np.testing.assert_allclose(found / found[0, 0], expected / expected[0, 0], rtol=1e-9)


def test_without_a_scorer_a_reward_is_news_of_its_model(scenarios: Scenarios) -> None:
    snapshot = replace(scenarios["known"](), costs=np.full(5, np.nan))
    alpha = smoothed_best_probabilities(snapshot)
    before = loss(np.eye(5), snapshot.covariance, alpha)
    expected = [
        before - loss(np.eye(5), after(snapshot.covariance, row, variance), alpha)
        for row, variance in zip(np.eye(5), snapshot.sample_variances, strict=True)
    ]
    np.testing.assert_allclose(average_cuts(snapshot), expected, rtol=1e-9)


def test_a_price_divides_a_models_share(snapshot: Snapshot) -> None:
    x = snapshot.contexts[:5]
    free = policy("fixed-rate+contrast").freeze(
        replace(snapshot, limits=Limits(0.2, 0.02, 0.8, 0.0))
    )
    costs = np.array([1.0, 2.0, 4.0, 8.0, 16.0])
    priced = policy("fixed-rate+contrast").freeze(
        replace(snapshot, costs=costs, limits=Limits(0.2, 0.02, 0.8, 0.0))
    )
    expected = free.allocate(x)[1] / costs
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(priced.allocate(x)[1], expected, rtol=1e-9)


def test_one_unknown_price_counts_as_none(snapshot: Snapshot) -> None:
    costs = np.array([1.0, 2.0, np.nan, 8.0, 16.0])
    for name in ("contrast", "neyman", "active"):
        rule = policy(name)
        free, partly = (
            rule.freeze(replace(snapshot, costs=each)) for each in (snapshot.costs, costs)
        )
        assert free.encode() == partly.encode()


def test_contrast_asks_where_an_open_slope_shows(make_snapshot: Callable[..., Snapshot]) -> None:
    """One slope is unknown, and only model 1 shows it, the more the further x is from 0."""
    design = np.zeros((2, 2, 2))
    design[:, 0, 0], design[1, 1, 1] = 1.0, 1.0
    scorer = ContextScorer(
        theta=np.zeros(2),
        covariance=np.diag([0.0, 1.0]),
        design=design,
        noise_keys=("level", "slope"),
        residual_variances=np.ones(2),
        value_design=np.array([[1.0, 0.0], [1.0, 0.5]]),
        spread=np.zeros((2, 2, 2)),
    )
    x = np.linspace(-1.0, 2.0, 7)[:, None]
    open_question = make_snapshot(
        *(2,), scorer=scorer, contexts=x, values=np.zeros(2), covariance=np.diag([0.0, 0.25])
    )
    rate, shares = policy("contrast").freeze(open_question).allocate(x)
    expected = x[:, 0] ** 2 / (1.0 + x[:, 0] ** 2)
    np.testing.assert_allclose(rate, 0.1 + 0.1 * expected / expected.mean(), rtol=1e-9)
    floor = open_question.limits.floor
    np.testing.assert_allclose(shares[0], [floor, 1.0 - floor], rtol=1e-12)
    np.testing.assert_allclose(shares[2], 0.5)  # at x = 0 neither says anything
    decided = contrast_gate(replace(open_question, certified=True))
    assert decided == ConstantRate(open_question.limits.rate_min)
    assert contrast_gate(replace(open_question, contexts=None)) == ConstantRate(0.2)


def test_active_follows_the_root_of_the_variance(make_snapshot: Callable[..., Snapshot]) -> None:
    """Means x and 1/2 of two models: variances x (1 - x) and 1/4, half of the rate uniform."""
    design = np.zeros((2, 2, 2))
    design[0, 1, 1], design[1, 0, 0] = 1.0, 0.5
    scorer = ContextScorer(
        theta=np.ones(2),
        covariance=np.eye(2),
        design=design,
        noise_keys=("level", "slope"),
        residual_variances=np.ones(2),
        value_design=np.eye(2),
        spread=np.zeros((2, 2, 2)),
    )
    x = np.array([0.0, 0.1, 0.5, 1.0])[:, None]
    snapshot = make_snapshot(2, scorer=scorer, contexts=x, reward_range=(0.0, 1.0))
    scale = np.sqrt((x[:, 0] * (1.0 - x[:, 0]) + 0.25) / 2.0)
    kernel = active(snapshot)
    np.testing.assert_allclose(kernel.rates(x), 0.1 + 0.1 * scale / scale.mean(), rtol=1e-9)
    # Outputs that vary by themselves move the mean: less is left for the residual.
    spread = np.zeros((2, 2, 2))
    spread[1, 0, 0] = 0.25
    wide = active(replace(snapshot, scorer=replace(scorer, spread=spread)))
    scale = np.sqrt(x[:, 0] * (1.0 - x[:, 0]) / 2.0)
    np.testing.assert_allclose(wide.rates(x), 0.1 + 0.1 * scale / scale.mean(), atol=1e-12)
    for missing in ({"reward_range": None}, {"contexts": None}, {"scorer": None}):
        assert active(replace(snapshot, **missing)) == ConstantRate(0.2)


def test_contrast_learns_faster_than_uniform(make_snapshot: Callable[..., Snapshot]) -> None:
    """Variance of the one open contrast after 300 rewards of 8 models: exact, no noise.

    A floor of .05 for 8 models makes 40% of the shares uniform: no share can do better than .35.
    """
    models, noise = 8, 0.25
    values = np.array([0.6, 0.59, *np.full(6, 0.3)])
    losses = {}
    for name in ("uniform", "contrast"):
        counts = np.full(models, 10.0)
        for _ in range(300):
            snapshot = make_snapshot(
                models,
                values=values,
                covariance=np.diag(noise / counts),
                sample_variances=np.full(models, noise),
            )
            counts += policy(name).freeze(snapshot).allocate(np.zeros((1, 1)))[1][0]
        losses[name] = noise / counts[0] + noise / counts[1]
    assert losses["contrast"] < 0.5 * losses["uniform"]


def test_calibration_makes_up_for_what_is_clipped(scenarios: Scenarios) -> None:
    score = context_cuts(scenarios["scorer"]())
    contexts = scenarios["scorer"]().contexts
    assert isinstance(calibrated(score, contexts[:0], 0.2, 0.0, 1.0, 0.5), ConstantRate)
    most = calibrated(score, contexts, 0.9, 0.0, 0.3, 0.5)
    np.testing.assert_allclose(most.rates(contexts), 0.3, rtol=1e-12)
    free = calibrated(score, contexts, 0.2, 0.0, 1.0, 0.5)
    assert isinstance(free, ScoredRate)
    assert free.rates(contexts).mean() == pytest.approx(0.2, abs=1e-12)
    assert free.rates(contexts).min() >= 0.1
    tight = calibrated(score, contexts, 0.2, 0.15, 0.25, 0.0)
    rates = tight.rates(contexts)
    assert rates.mean() == pytest.approx(0.2, abs=1e-12)
    assert ((rates == 0.15) | (rates == 0.25)).any()


def test_scores_that_say_nothing_give_one_rate(scenarios: Scenarios) -> None:
    snapshot = scenarios["scorer"]()
    cuts = context_cuts(snapshot)
    silent = ResidualScale(replace(cuts.forms, forms=np.zeros_like(cuts.forms.forms)))
    assert calibrated(silent, snapshot.contexts, 0.2, 0.0, 1.0, 0.5) == ConstantRate(0.2)


def test_sharing_the_cuts_changes_no_bit(scenarios: Scenarios) -> None:
    snapshot = scenarios["scorer with model effects"]()
    both = policy("contrast").freeze(snapshot)
    eligible = np.random.default_rng(0).random((9, 5)) < 0.6
    for mask in (None, eligible):
        rate, shares = both.allocate(snapshot.contexts[:9], mask)
        np.testing.assert_array_equal(rate, both.gate.rates(snapshot.contexts[:9]))
        alone = both.assignment.probabilities(snapshot.contexts[:9], mask, both.floor)
        np.testing.assert_array_equal(shares, alone)


def test_other_cuts_are_not_shared(scenarios: Scenarios) -> None:
    """A gate beside an assignment that was frozen from another snapshot."""
    snapshot = scenarios["scorer with model effects"]()
    both = policy("contrast").freeze(snapshot)
    x = snapshot.contexts[:9]
    rng = np.random.default_rng(4)
    factor = rng.normal(size=snapshot.scorer.covariance.shape)
    scorer = replace(snapshot.scorer, covariance=0.1 * factor @ factor.T)
    forms = both.assignment.cuts.forms
    moved = replace(both.assignment.cuts, forms=replace(forms, centre=forms.centre + 1.0))
    for other in (
        policy("contrast").freeze(replace(snapshot, scorer=scorer)).assignment,
        replace(both.assignment, cuts=moved),
    ):
        rate, shares = replace(both, assignment=other).allocate(x)
        np.testing.assert_array_equal(rate, both.gate.rates(x))
        np.testing.assert_array_equal(shares, other.probabilities(x, None, both.floor))
        assert not np.array_equal(shares, both.allocate(x)[1])
