"""The draw: exact intervals of u, frequencies, rounding, replay."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from equipoise.policies.draw import draw, draw_one, propensity
from equipoise.policies.snapshot import Flags, Floats, Ints


def draw_row(
    uniform: Floats, rate: float, probabilities: list[float], routed: int
) -> tuple[Ints, Flags]:
    """One rate, distribution and routed model for every uniform."""
    rows = len(uniform)
    return draw(
        uniform,
        np.full(rows, rate),
        np.tile(np.array(probabilities), (rows, 1)),
        np.full(rows, routed, dtype=np.int64),
    )


def test_the_unit_interval_is_cut_into_the_right_pieces() -> None:
    """e and pi are multiples of 2^-k, so every boundary is a float: no count may be off by one."""
    uniform = np.arange(4096) / 4096
    model, randomized = draw_row(uniform, 0.5, [0.25, 0.0, 0.5, 0.25], routed=1)
    np.testing.assert_array_equal(randomized, uniform < 0.5)
    expected = np.repeat([0, 2, 3, 1], [512, 1024, 512, 2048])
    np.testing.assert_array_equal(model, expected)


@settings(deadline=None, max_examples=200)
@given(
    st.floats(1e-9, 1.0),
    st.lists(st.sampled_from([0.0, 1e-12, 0.1, 1.0, 3.0]), min_size=1, max_size=9),
    st.integers(0, 2**32 - 1),
)
def test_every_model_owns_an_interval_of_the_right_length(
    rate: float, shares: list[float], seed: int
) -> None:
    """Below e * cum(m) - 1e-15 the models before m + 1 are drawn, above it the later ones."""
    if sum(shares) == 0.0:
        shares[0] = 1.0
    probabilities = np.array(shares) / sum(shares)
    rng = np.random.default_rng(seed)
    edges = rate * np.cumsum(probabilities)
    uniform = np.sort(
        np.concatenate([rng.random(50) * rate, edges[:-1] - 1e-15, edges[:-1] + 1e-15])
    )
    uniform = uniform[(uniform >= 0.0) & (uniform < rate)]
    model, randomized = draw_row(uniform, rate, probabilities.tolist(), routed=0)
    assert randomized.all()
    assert (np.diff(model) >= 0).all()
    assert (probabilities[model] > 0.0).all()
    lower = np.concatenate([[0.0], edges])[model]
    assert (uniform >= lower - 2e-15).all()
    assert (uniform <= edges[model] + 2e-15).all()


def test_frequencies_match_the_probabilities() -> None:
    """Chi-square over served model and flag, 200,000 draws; false-alarm rate 1e-4 per case."""
    rng = np.random.default_rng(8)
    rows = 200_000
    for rate, probabilities in (
        (0.2, [0.1, 0.6, 0.3]),
        (0.03, [0.25, 0.25, 0.25, 0.25]),
        (1.0, [0.02, 0.0, 0.98]),
    ):
        model, randomized = draw_row(rng.random(rows), rate, probabilities, routed=1)
        pi = np.array(probabilities)
        observed = [*np.bincount(model[randomized], minlength=len(pi)), (~randomized).sum()]
        expected = rows * np.array([*(rate * pi), 1.0 - rate])
        possible = expected > 0
        assert np.array(observed)[~possible].sum() == 0
        result = stats.chisquare(np.array(observed)[possible], expected[possible])
        assert result.pvalue > 1e-4


def test_the_served_model_has_its_propensity() -> None:
    """Rows with their own e, pi and routed model: the summed martingale is standard normal.

    False-alarm rate 1e-4 per model, two-sided.
    """
    rng = np.random.default_rng(9)
    rows, models = 100_000, 4
    rate, pi = rng.uniform(0.01, 0.9, rows), rng.dirichlet(np.ones(models), rows)
    routed = rng.integers(0, models, rows)
    model, _ = draw(rng.random(rows), rate, pi, routed)
    limit = stats.norm.isf(0.5e-4)
    for m in range(models):
        p = propensity(rate, pi, np.full(rows, m), routed)
        z = ((model == m) - p).sum() / np.sqrt((p * (1.0 - p)).sum())
        assert abs(z) < limit


@pytest.mark.parametrize("count", [3, 6, 7, 10, 11, 49, 100, 1000])
def test_rounding_never_reaches_a_model_without_probability(count: int) -> None:
    """Ten times 0.1 adds up to less than 1; the gap belongs to the last model with a share."""
    pi = [0.0] + [1.0 / count] * count + [0.0, 0.0]
    for rate in (1.0, 0.7, 0.1, 1e-9, 5e-324):
        uniform = np.array([0.0, np.nextafter(rate, 0.0), rate])
        model, randomized = draw_row(uniform, rate, pi, routed=0)
        assert randomized.tolist() == [True, True, False]
        assert model[0] == 1
        assert model[1] == (count if rate > 1e-300 else 1)
        assert model[2] == 0


def test_a_sum_short_of_one_is_given_to_the_last_model() -> None:
    """The largest v there is lies above this cumulated sum."""
    pi = [0.5, 0.5 - 1e-12, 0.0]
    model, _ = draw_row(np.array([np.nextafter(1.0, 0.0)]), 1.0, pi, routed=2)
    assert model.tolist() == [1]


def test_rows_that_cannot_be_randomized_keep_their_model() -> None:
    uniform = np.zeros(4)
    rate = np.array([0.0, 0.5, 0.0, 0.5])
    pi = np.array([[0.5, 0.5], [0.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
    routed = np.array([1, 1, 0, 0])
    model, randomized = draw(uniform, rate, pi, routed)
    assert randomized.tolist() == [False, False, False, True]
    assert model.tolist() == [1, 1, 0, 1]
    np.testing.assert_array_equal(propensity(rate, pi, model, routed), [1.0, 1.0, 1.0, 0.5])
    np.testing.assert_array_equal(propensity(rate, pi, 1 - routed, routed), [0.0, 0.0, 0.0, 0.5])


def test_a_worked_propensity() -> None:
    rate, pi = np.array([0.2, 0.2]), np.array([[0.25, 0.75]] * 2)
    p = propensity(rate, pi, np.array([0, 1]), np.array([0, 0]))
    np.testing.assert_allclose(p, [0.2 * 0.25 + 0.8, 0.2 * 0.75], rtol=1e-15)


def test_a_draw_can_be_replayed_alone_and_in_any_batch() -> None:
    rng = np.random.default_rng(10)
    rows = 300
    rate, pi = rng.uniform(0, 1, rows), rng.dirichlet(np.ones(6), rows)
    uniform, routed = rng.random(rows), rng.integers(0, 6, rows)
    inputs = [array.copy() for array in (uniform, rate, pi, routed)]
    model, randomized = draw(uniform, rate, pi, routed)
    assert 0 < randomized.sum() < rows
    for row in range(rows):
        here = slice(row, row + 1)
        a_model, a_flag = draw(uniform[here], rate[here], pi[here], routed[here])
        assert (a_model[0], a_flag[0]) == (model[row], randomized[row])
    again = draw(uniform, rate, np.asfortranarray(pi), routed)
    np.testing.assert_array_equal(again[0], model)
    for array, before in zip((uniform, rate, pi, routed), inputs, strict=True):
        np.testing.assert_array_equal(array, before)
    model[:] = -1
    np.testing.assert_array_equal(routed, inputs[3])


def test_an_empty_batch() -> None:
    none = np.empty(0)
    model, randomized = draw(none, none, np.empty((0, 3)), np.empty(0, dtype=np.int64))
    assert model.shape == randomized.shape == (0,)
    assert model.dtype == np.int64


@given(
    st.lists(st.sampled_from([0.0, 0.1, 0.25, 1 / 3, 0.5]), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.1, 0.5, 1.0]),
    st.floats(0.0, 1.0, exclude_max=True),
)
def test_one_request_is_drawn_like_a_row(shares: list[float], rate: float, uniform: float) -> None:
    cumulated = np.add.accumulate(np.array(shares)).tolist()
    routed = len(shares) // 2
    for u in (uniform, *(min(rate * each, 1 - 2**-53) for each in cumulated)):
        model, randomized = draw(
            np.array([u]), np.array([rate]), np.array([shares]), np.array([routed])
        )
        assert draw_one(u, rate, cumulated, routed) == (model.item(), randomized.item())
