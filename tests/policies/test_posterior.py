"""Draws from the posterior: keyed by name, with the right moments, blind to the order of models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from equipoise.policies.posterior import best_probabilities, covariance_root, keyed_normals
from equipoise.policies.snapshot import Snapshot


def test_noise_belongs_to_a_name() -> None:
    first = keyed_normals(1, ("a", "b", "c"), 64)
    second = keyed_normals(1, ("c", "a"), 64)
    np.testing.assert_array_equal(second, first[:, [2, 0]])
    assert not np.array_equal(keyed_normals(2, ("a",), 64), first[:, :1])
    np.testing.assert_array_equal(first[:32], -first[32:])


def test_seed_and_name_cannot_be_confused() -> None:
    assert not np.array_equal(keyed_normals(1, ("2:a",), 8), keyed_normals(12, ("a",), 8))
    assert not np.array_equal(keyed_normals(1, ("2a",), 8), keyed_normals(12, ("a",), 8))


def test_noise_is_standard_normal_and_independent() -> None:
    """Kolmogorov-Smirnov on the first half of each column and correlation between columns.

    False-alarm rate 1e-4 each.
    """
    noise = keyed_normals(3, ("a", "b"), 40_000)[:20_000]
    for column in noise.T:
        assert stats.kstest(column, "norm").pvalue > 1e-4
    assert stats.pearsonr(noise[:, 0], noise[:, 1]).pvalue > 1e-4


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 8), st.integers(1, 8), st.integers(0, 2**32 - 1))
def test_the_root_squares_to_the_covariance_and_permutes(size: int, rank: int, seed: int) -> None:
    """Also for singular covariances and scales that differ by many orders of magnitude."""
    rng = np.random.default_rng(seed)
    factor = rng.normal(size=(size, rank)) * 10.0 ** rng.uniform(-6, 6, size=(size, 1))
    covariance = factor @ factor.T
    root = covariance_root(covariance)
    deviation = np.sqrt(np.diagonal(covariance))
    unit = np.outer(deviation, deviation)
    np.testing.assert_allclose((root @ root.T) / unit, covariance / unit, atol=1e-11)
    order = rng.permutation(size)
    moved = covariance_root(covariance[np.ix_(order, order)])
    expected = root[np.ix_(order, order)]
    np.testing.assert_allclose(moved / deviation[order, None], expected / deviation[order, None],
                               atol=1e-8)  # fmt: skip


def test_a_value_without_error_has_no_noise() -> None:
    np.testing.assert_array_equal(covariance_root(np.zeros((2, 2))), np.zeros((2, 2)))
    root = covariance_root(np.diag([4.0, 0.0]))
    np.testing.assert_allclose(root, np.diag([2.0, 0.0]), atol=1e-15)


@pytest.mark.parametrize("correlation", [-0.9, 0.0, 0.5])
def test_two_models_against_the_normal_distribution(
    make_snapshot: Callable[..., Snapshot], correlation: float
) -> None:
    """P(first is best) = Phi(gap / sd of the difference); false-alarm rate below 1e-5."""
    covariance = np.array([[4.0, 6.0 * correlation], [6.0 * correlation, 9.0]])
    snapshot = make_snapshot(2, values=np.array([1.5, 1.0]), covariance=covariance)
    exact = stats.norm.cdf(0.5 / np.sqrt(13.0 - 12.0 * correlation))
    shares = best_probabilities(snapshot, draws=200_000)
    assert shares is not None
    assert shares.sum() == pytest.approx(1.0, abs=1e-12)
    # Antithetic pairs never hurt here: the plain binomial error bounds the true one.
    assert abs(shares[0] - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 100_000)
    smaller = make_snapshot(2, values=np.array([1.5, 1.0]), covariance=covariance, sign=-1)
    other = best_probabilities(smaller, draws=200_000)
    assert other is not None
    assert abs(other[1] - exact) < 4.5 * np.sqrt(exact * (1 - exact) / 100_000)


def test_an_unknown_model_makes_the_best_unknown(make_snapshot: Callable[..., Snapshot]) -> None:
    values, covariance = np.array([0.1, 0.2]), np.diag([1.0, np.inf])
    assert best_probabilities(make_snapshot(2, values=values, covariance=covariance)) is None
    values, covariance = np.array([0.1, np.nan]), np.eye(2)
    assert best_probabilities(make_snapshot(2, values=values, covariance=covariance)) is None


def test_certain_values_and_ties(make_snapshot: Callable[..., Snapshot]) -> None:
    certain = make_snapshot(3, values=np.array([0.1, 0.3, 0.3]), covariance=np.zeros((3, 3)))
    np.testing.assert_allclose(best_probabilities(certain), [0.0, 0.5, 0.5], atol=1e-15)
