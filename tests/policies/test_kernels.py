"""Kernels: their formulas, row stability, exact encoding, and that nobody can change them."""

from __future__ import annotations

import json
import pickle
from typing import Any

import numpy as np
import pytest

from equipoise.policies.kernels import (
    AssignmentKernel,
    BestDrawShares,
    ConstantRate,
    ConstantShares,
    decode_assignment_kernel,
    decode_rate_kernel,
)
from equipoise.policies.kernels.rates import rate_kernel
from equipoise.policies.kernels.shares import assignment_kernel


def through_json(fields: dict[str, Any]) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(json.dumps(fields, allow_nan=False))
    return decoded


def best_draws(draws: int, models: int, context: int, seed: int = 0) -> BestDrawShares:
    return BestDrawShares(np.random.default_rng(seed).normal(size=(draws, models, 1 + context)))


def test_constant_rate() -> None:
    kernel = ConstantRate(0.25)
    np.testing.assert_array_equal(kernel.rates(np.zeros((1, 3))), [0.25])
    np.testing.assert_array_equal(kernel.rates(np.zeros((4, 0))), [0.25] * 4)
    assert kernel.rates(np.zeros((0, 3))).shape == (0,)
    assert kernel.clipped(0.3, 0.5).rate == 0.3
    assert kernel.clipped(0.1, 0.2).rate == 0.2
    assert kernel.clipped(0.1, 0.5).rate == 0.25


@pytest.mark.parametrize("rate", [-0.1, 1.1, float("nan")])
def test_an_impossible_rate_is_refused(rate: float) -> None:
    with pytest.raises(ValueError, match=f"rate is {rate}, expected 0 to 1"):
        ConstantRate(rate)


def test_constant_shares_are_normalised_and_floored() -> None:
    kernel = ConstantShares(np.array([6.0, 2.0]))
    for rows in (1, 3):
        pi = kernel.probabilities(np.zeros((rows, 2)), None, 0.1)
        np.testing.assert_allclose(pi, [[0.7, 0.3]] * rows, rtol=1e-15)
    np.testing.assert_allclose(kernel.probabilities(np.zeros((1, 2)), None, 0.0), [[0.75, 0.25]])
    one = kernel.probabilities(np.zeros((1, 2)), np.array([[False, True]]), 0.1)
    np.testing.assert_array_equal(one, [[0.0, 1.0]])
    assert kernel.probabilities(np.zeros((0, 2)), None, 0.1).shape == (0, 2)
    with pytest.raises(ValueError, match=r"floor is 0\.6"):
        kernel.probabilities(np.zeros((1, 2)), None, 0.6)


@pytest.mark.parametrize("unit", [5e-324, 1e-310, 1e-200, 1e300])
def test_the_unit_of_shares_does_not_matter(unit: float) -> None:
    kernel = ConstantShares(unit * np.array([1.0, 2.0, 1.0]))
    pi = kernel.probabilities(np.zeros((1, 0)), None, 0.0)
    np.testing.assert_allclose(pi, [[0.25, 0.5, 0.25]], rtol=1e-12)


@pytest.mark.parametrize(
    "shares", [[], [[1.0]], [1.0, -1e-9], [np.nan, 1.0], [np.inf, 1.0], [1e308, 1e308]]
)
def test_impossible_shares_are_refused(shares: Any) -> None:
    with pytest.raises(ValueError, match="shares"):
        ConstantShares(np.array(shares))


def test_best_draw_shares_count_the_draws_a_model_wins() -> None:
    """Three draws of two models at one context, by hand: 1 - x against x."""
    coefficients = np.array([[[1.0, -1.0], [0.0, 1.0]]] * 2 + [[[0.0, 0.0], [0.1, 0.0]]])
    kernel = BestDrawShares(coefficients)
    pi = kernel.probabilities(np.array([[0.2], [0.8]]), None, 0.0)
    np.testing.assert_allclose(pi, [[2 / 3, 1 / 3], [0.0, 1.0]], rtol=1e-15)


def test_best_draw_shares_against_a_plain_loop() -> None:
    kernel = best_draws(101, 6, 3)
    rng = np.random.default_rng(1)
    x, eligible = rng.normal(size=(80, 3)), rng.random((80, 6)) < 0.5
    eligible[7] = False
    for mask in (None, eligible):
        pi = kernel.probabilities(x, mask, 0.02)
        for row in range(80):
            models = range(6) if mask is None else np.flatnonzero(mask[row]).tolist()
            wins = np.zeros(6)
            for draw in kernel.coefficients:
                score = {m: float(draw[m] @ [1.0, *x[row]]) for m in models}
                if score:
                    wins[max(score, key=score.__getitem__)] += 1
            expected = np.zeros(6)
            for m in models:
                expected[m] = (1 - 0.02 * len(models)) * wins[m] / 101 + 0.02
            np.testing.assert_allclose(pi[row], expected, atol=1e-12)


def test_models_that_tie_get_the_same_share() -> None:
    """Bit-identical coefficients tie in every draw; a context of zeros ties where they agree."""
    coefficients = np.random.default_rng(2).normal(size=(64, 3, 4))
    coefficients[:, 2] = coefficients[:, 0]
    pi = BestDrawShares(coefficients).probabilities(
        np.random.default_rng(3).normal(size=(40, 3)), None, 0.0
    )
    np.testing.assert_array_equal(pi[:, 0], pi[:, 2])
    same = BestDrawShares(np.ones((8, 5, 2))).probabilities(np.zeros((1, 1)), None, 0.0)
    np.testing.assert_allclose(same, [[0.2] * 5], rtol=1e-15)


@pytest.mark.parametrize(
    ("draws", "models", "context"),
    [(256, 8, 16), (256, 3, 5), (1, 1, 0), (1, 2, 1), (7, 5, 3), (255, 7, 1), (3, 1, 40)],
)
def test_a_row_gives_the_same_bits_in_any_batch(draws: int, models: int, context: int) -> None:
    """n = 1 … 300, each a prefix of one batch, and every row alone; also other memory layouts."""
    kernel = best_draws(draws, models, context)
    rng = np.random.default_rng(4)
    x = 10.0 ** rng.uniform(-6, 6, size=(300, context)) * rng.choice([-1.0, 1.0], (300, context))
    eligible = rng.random((300, models)) < 0.7
    for mask in (None, eligible):
        whole = kernel.probabilities(x, mask, 0.01)
        for rows in range(1, 301):
            part = None if mask is None else mask[:rows]
            np.testing.assert_array_equal(kernel.probabilities(x[:rows], part, 0.01), whole[:rows])
        for row in range(300):
            here = slice(row, row + 1)
            part = None if mask is None else mask[here]
            np.testing.assert_array_equal(kernel.probabilities(x[here], part, 0.01), whole[here])
        np.testing.assert_array_equal(kernel.probabilities(np.asfortranarray(x), mask, 0.01), whole)


@pytest.mark.parametrize(("models", "context"), [(8, 16), (5, 3)])
def test_scores_have_the_same_bits_in_any_batch(models: int, context: int) -> None:
    """Shares are coarse and would hide a changed last bit: the scores themselves are compared."""
    kernel = best_draws(256, models, context)
    x = np.random.default_rng(5).normal(size=(300, context))
    whole = kernel.scores(x)
    expected = np.einsum("nd,skd->nks", np.hstack([np.ones((300, 1)), x]), kernel.coefficients)
    np.testing.assert_allclose(whole, expected, rtol=1e-9, atol=1e-12)
    for rows in range(1, 301):
        np.testing.assert_array_equal(kernel.scores(x[:rows]), whole[:rows])
        np.testing.assert_array_equal(kernel.scores(x[rows - 1 : rows]), whole[rows - 1 : rows])


@pytest.mark.parametrize("shape", [(3, 4), (0, 2, 2), (2, 2, 2, 2)])
def test_coefficients_of_another_shape_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="coefficients have shape"):
        BestDrawShares(np.ones(shape))


def test_coefficients_that_are_not_finite_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        BestDrawShares(np.full((2, 2, 2), np.nan))


AWKWARD = [0.1, 1.0 / 3.0, 5e-324, 1.7976931348623157e308, 2.0**-53, 0.0]


@pytest.mark.parametrize("rate", [0.0, 0.1, 1.0 / 3.0, 5e-324, 1.0])
def test_a_rate_kernel_survives_json(rate: float) -> None:
    kernel = decode_rate_kernel(through_json(ConstantRate(rate).encode()))
    assert kernel == ConstantRate(rate)


def test_shares_survive_json() -> None:
    kernel = ConstantShares(np.array(AWKWARD))
    again = decode_assignment_kernel(through_json(kernel.encode()))
    assert isinstance(again, ConstantShares)
    assert again.shares.tobytes() == kernel.shares.tobytes()


def test_coefficients_survive_json() -> None:
    coefficients = np.random.default_rng(6).normal(size=(5, 3, 2))
    coefficients.flat[:6] = AWKWARD
    coefficients.flat[6] = -0.0
    again = decode_assignment_kernel(through_json(BestDrawShares(coefficients).encode()))
    assert isinstance(again, BestDrawShares)
    assert again.coefficients.tobytes() == coefficients.tobytes()


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match=r"rate kernel kind 'magic' is not one of .*constant-rate"):
        decode_rate_kernel({"kind": "magic"})
    with pytest.raises(
        ValueError, match=r"assignment kernel kind None is not one of .*constant-sh"
    ):
        decode_assignment_kernel({"shares": [1.0]})


def test_a_kind_is_registered_once() -> None:
    with pytest.raises(ValueError, match="'constant-rate' is registered twice"):
        rate_kernel(ConstantRate)
    with pytest.raises(ValueError, match="'constant-shares' is registered twice"):
        assignment_kernel(ConstantShares)


@pytest.mark.parametrize(
    "kernel", [ConstantShares(np.array([1.0, 2.0])), best_draws(4, 2, 1)], ids=lambda k: k.kind
)
def test_a_kernel_cannot_be_changed(kernel: AssignmentKernel) -> None:
    """Not through its fields, the arrays it was made of, shared results, or a pickled copy."""
    x = np.zeros((1, 1))
    for one in (kernel, pickle.loads(pickle.dumps(kernel))):
        before = one.probabilities(x, None, 0.1).copy()
        shared = one.probabilities(x, None, 0.1)
        if isinstance(one, ConstantShares):
            with pytest.raises(ValueError, match="read-only"):
                one.shares[0] = 5.0
            with pytest.raises(ValueError, match="read-only"):
                shared[0, 0] = 5.0
        else:
            assert isinstance(one, BestDrawShares)
            with pytest.raises(ValueError, match="read-only"):
                one.coefficients[0, 0, 0] = 5.0
        np.testing.assert_array_equal(one.probabilities(x, None, 0.1), before)
        np.testing.assert_array_equal(before, kernel.probabilities(x, None, 0.1))


def test_a_kernel_copies_what_it_is_made_of() -> None:
    shares, coefficients = np.array([1.0, 3.0]), np.ones((2, 2, 1))
    constant, best = ConstantShares(shares), BestDrawShares(coefficients)
    shares[0], coefficients[0, 0, 0] = 100.0, 100.0
    np.testing.assert_array_equal(constant.shares, [1.0, 3.0])
    np.testing.assert_array_equal(best.coefficients, np.ones((2, 2, 1)))


def test_a_shared_rate_cannot_be_written() -> None:
    for kernel in (ConstantRate(0.3), pickle.loads(pickle.dumps(ConstantRate(0.3)))):
        with pytest.raises(ValueError, match="read-only"):
            kernel.rates(np.zeros((1, 1)))[0] = 1.0
