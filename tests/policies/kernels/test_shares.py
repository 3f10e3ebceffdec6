"""The floor is mixed in: exact bounds, exact sums, and every edge of eligibility."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.policies.kernels.shares import check_floor, mix_floor


def test_a_worked_example() -> None:
    """Shares 3 : 1 : 0 with floor 0.1: 0.7 * share + 0.1."""
    pi = mix_floor(np.array([[3.0, 1.0, 0.0]]), None, 0.1)
    np.testing.assert_allclose(pi, [[0.625, 0.275, 0.1]], rtol=1e-15)


def test_eligible_models_share_among_themselves() -> None:
    shares = np.array([3.0, 1.0, 0.0, 4.0])
    eligible = np.array(
        [[True, True, False, False], [False, False, True, False], [False, False, False, False]]
    )
    pi = mix_floor(shares, eligible, 0.1)
    np.testing.assert_allclose(
        pi, [[0.8 * 0.75 + 0.1, 0.8 * 0.25 + 0.1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]], rtol=1e-15
    )


def test_no_mass_on_the_eligible_models_is_uniform() -> None:
    eligible = np.array([[True, True, False], [True, True, True]])
    pi = mix_floor(np.array([0.0, 0.0, 1.0]), eligible, 0.0)
    np.testing.assert_array_equal(pi, [[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]])
    np.testing.assert_array_equal(mix_floor(np.zeros((1, 4)), None, 0.1), [[0.25] * 4])


@pytest.mark.parametrize("models", range(1, 200))
def test_the_largest_floor_is_uniform(models: int) -> None:
    """floor = 1 / K is allowed for every K, however K * (1 / K) rounds."""
    pi = mix_floor(np.arange(models, dtype=np.float64)[None, :], None, 1.0 / models)
    np.testing.assert_allclose(pi, 1.0 / models, rtol=1e-12)


@pytest.mark.parametrize("floor", [0.26, -0.01, float("nan"), float("inf")])
def test_an_impossible_floor_is_refused(floor: float) -> None:
    with pytest.raises(ValueError, match=r"floor is .*expected 0 to 1/4 with 4 models"):
        check_floor(floor, 4)
    with pytest.raises(ValueError, match="floor is"):
        mix_floor(np.ones((1, 4)), None, floor)


@settings(deadline=None, max_examples=100)
@given(st.integers(1, 12), st.integers(1, 6), st.floats(0.0, 1.0), st.integers(0, 2**32 - 1))
def test_rows_sum_to_one_above_the_floor(models: int, rows: int, part: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    floor = part / models
    shares = rng.exponential(size=(rows, models)) ** 8 * 10.0 ** rng.integers(-200, 20)
    eligible = rng.random((rows, models)) < 0.5
    for mask in (None, eligible):
        flags = np.ones_like(eligible) if mask is None else mask
        pi = mix_floor(shares, mask, floor)
        assert (pi[flags] >= floor).all()
        assert (pi[~flags] == 0.0).all()
        np.testing.assert_allclose(pi.sum(axis=1), flags.any(axis=1), atol=1e-12)


def test_memory_order_and_batch_do_not_change_the_bits() -> None:
    rng = np.random.default_rng(3)
    shares, eligible = rng.random((300, 11)), rng.random((300, 11)) < 0.7
    for mask in (None, eligible):
        whole = mix_floor(shares, mask, 0.01)
        fortran = None if mask is None else np.asfortranarray(mask)
        np.testing.assert_array_equal(mix_floor(np.asfortranarray(shares), fortran, 0.01), whole)
        for row in range(300):
            part = slice(row, row + 1)
            alone = mix_floor(shares[part], None if mask is None else mask[part], 0.01)
            np.testing.assert_array_equal(alone, whole[part])
