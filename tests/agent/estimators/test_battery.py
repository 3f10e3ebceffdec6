"""What every registered family must satisfy, just by being listed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from equipoise.agent.estimators import FAMILIES, estimate
from equipoise.agent.estimators.base import Scorer, family

READS_NO_OBS = ("ipw", "representation-exp", "doubly-robust")
ORDER = (
    "ipw",
    "obs-only",
    "representation-exp",
    "cvci",
    "grounded",
    "doubly-robust",
    "hierarchical",
    "hierarchical-cautious",
)

every_family = pytest.mark.parametrize("name", list(FAMILIES))


@pytest.fixture(scope="module")
def rows(simulate):
    return simulate(seed=21, models=4, obs=600, exp=300)


def numbers(got):
    """Every array of an estimate, in a fixed order."""
    arrays = [got.values, got.covariance]
    if got.scorer is not None:
        arrays += [got.scorer.theta, got.scorer.covariance]
        arrays += [np.array(got.scorer.residual_variance)]
    return arrays


def same_bits(one, other):
    pairs = zip(numbers(one), numbers(other), strict=True)
    return all(a.tobytes() == b.tobytes() for a, b in pairs)


def test_families_are_listed_in_the_order_of_the_method():
    assert tuple(FAMILIES)[: len(ORDER)] == ORDER


def test_unknown_family_is_named():
    with pytest.raises(ValueError, match=r"unknown estimator families \['dowsing'\]"):
        estimate(None, ["ipw", "dowsing"])


def test_a_name_is_registered_once():
    with pytest.raises(ValueError, match="'ipw' is registered twice"):
        family("ipw")(lambda moments: None)


@every_family
def test_shapes_and_a_positive_covariance(rows, name):
    got = FAMILIES[name](rows.moments())
    assert got.family == name
    assert got.values.shape == (rows.models,)
    assert got.covariance.shape == (rows.models, rows.models)
    assert np.isfinite(got.values).all()
    np.testing.assert_allclose(got.covariance, got.covariance.T, rtol=1e-12, atol=1e-15)
    assert np.linalg.eigvalsh(got.covariance).min() > -1e-12
    if isinstance(got.scorer, Scorer):
        size = rows.features + 1 + got.scorer.model_effects * rows.models
        assert got.scorer.theta.shape == (size,)
        assert got.scorer.covariance.shape == (size, size)
        assert np.linalg.eigvalsh(got.scorer.covariance).min() > -1e-12
        assert got.scorer.residual_variance > 0


@every_family
def test_pure_and_repeatable(rows, name):
    moments = rows.moments()
    before = moments.copy()
    first, second = FAMILIES[name](moments), FAMILIES[name](moments)
    assert same_bits(first, second)
    assert moments.to_bytes() == before.to_bytes()
    for array in numbers(first):
        for part in (moments.scorers, moments.arms, moments.simulation):
            assert not any(np.shares_memory(array, held) for held in part.arrays().values())


@every_family
def test_relabelling_models_permutes_everything(rows, name):
    order = np.array([2, 0, 3, 1])
    plain = FAMILIES[name](rows.moments())
    moved = FAMILIES[name](rows.relabelled(order).moments())
    np.testing.assert_allclose(moved.values, plain.values[order], rtol=1e-9)
    np.testing.assert_allclose(
        moved.covariance, plain.covariance[np.ix_(order, order)], rtol=1e-8, atol=1e-12
    )
    if plain.scorer is not None:
        at = np.arange(rows.features + 1)
        if plain.scorer.model_effects:
            at = np.concatenate([at, rows.features + 1 + order])
        np.testing.assert_allclose(
            moved.scorer.theta, plain.scorer.theta[at], rtol=1e-8, atol=1e-10
        )


@every_family
@pytest.mark.parametrize(("times", "plus"), [(3.7, -20.0), (-1.0, 0.0), (1e-4, 5.0), (1.0, 1e6)])
def test_rewards_on_another_scale(rows, name, times, plus):
    """Values follow a c + b; times = -1 is minimising instead of maximising."""
    plain = FAMILIES[name](rows.moments())
    moved = FAMILIES[name](rows.rescaled(times, plus).moments())
    # Rewards near 1e6 are themselves rounded to 1e-10.
    digits = 1e-8 if abs(plus) < 1e3 else 1e-6
    np.testing.assert_allclose(
        (moved.values - plus) / times, plain.values, rtol=digits, atol=digits
    )
    np.testing.assert_allclose(moved.covariance / times**2, plain.covariance, rtol=1e-6, atol=1e-9)
    if plain.scorer is not None:
        ratio = moved.scorer.residual_variance / plain.scorer.residual_variance
        assert ratio == pytest.approx(times**2, rel=1e-6)
        np.testing.assert_allclose(
            moved.scorer.covariance / times**2, plain.scorer.covariance, rtol=1e-6, atol=1e-9
        )


@every_family
def test_features_in_other_units(rows, name):
    """Outputs counted in thousands instead of units, from another zero: same values."""
    unit = np.geomspace(1e-3, 1e3, rows.features)
    zero = np.linspace(-5.0, 5.0, rows.features) * unit

    def change(phi):
        return phi * unit + zero

    moved = replace(
        rows,
        obs=replace(rows.obs, phi=change(rows.obs.phi)),
        exp=replace(rows.exp, phi=change(rows.exp.phi), predicted=change(rows.exp.predicted)),
        sim_phi=change(rows.sim_phi),
    )
    plain, got = FAMILIES[name](rows.moments()), FAMILIES[name](moved.moments())
    np.testing.assert_allclose(got.values, plain.values, rtol=1e-7)
    np.testing.assert_allclose(got.covariance, plain.covariance, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize("name", READS_NO_OBS)
@pytest.mark.parametrize("kind", ["garbage", "none", "huge"])
def test_obs_cannot_touch_families_fitted_on_exp(rows, name, kind):
    """Bit for bit: with EXP and SIM fixed, nothing in OBS reaches them."""
    rng = np.random.default_rng(22)
    if kind == "none":
        other = rows.without_obs()
    else:
        scale = 1e12 if kind == "huge" else 1.0
        obs = replace(
            rows.obs,
            phi=scale * rng.standard_cauchy(rows.obs.phi.shape),
            reward=scale * rng.standard_cauchy(len(rows.obs)),
            model=rng.integers(0, rows.models, len(rows.obs)),
            group=rng.integers(0, 20, len(rows.obs)),
        )
        other = replace(rows, obs=obs)
    assert same_bits(FAMILIES[name](rows.moments()), FAMILIES[name](other.moments()))


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in READS_NO_OBS])
def test_the_other_families_do_read_obs(rows, name):
    moved = rows.with_rewards(obs=-rows.obs.reward)
    assert not same_bits(FAMILIES[name](rows.moments()), FAMILIES[name](moved.moments()))


@every_family
def test_shards_add_up(rows, name):
    rng = np.random.default_rng(23)
    total = None
    shard = [rng.integers(0, 3, len(source)) for source in (rows.obs, rows.exp, rows.sim_group)]
    for at in range(3):
        part = rows.part(*(which == at for which in shard)).moments()
        total = part if total is None else total + part
    whole, merged = FAMILIES[name](rows.moments()), FAMILIES[name](total)
    np.testing.assert_allclose(merged.values, whole.values, rtol=1e-10)
    np.testing.assert_allclose(merged.covariance, whole.covariance, rtol=1e-8, atol=1e-13)


@every_family
def test_the_unit_of_the_weights_does_not_matter(rows, name):
    """Weights 1 / (e pi) are no frequencies: doubling all of them adds no rows."""
    doubled = replace(rows, exp=replace(rows.exp, weight=2.0 * rows.exp.weight))
    plain, got = (FAMILIES[name](each.moments()) for each in (rows, doubled))
    np.testing.assert_allclose(got.values, plain.values, rtol=1e-9)
    np.testing.assert_allclose(got.covariance, plain.covariance, rtol=1e-7, atol=1e-14)
