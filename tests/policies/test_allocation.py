"""The allocation: what it hands out, and that it survives storage."""

from __future__ import annotations

import itertools
import json
import pickle

import numpy as np
import pytest

from equipoise.policies.allocation import Allocation
from equipoise.policies.kernels import (
    BestDrawShares,
    ConstantRate,
    ConstantShares,
    Cuts,
    CutShares,
    QuadraticForms,
    ResidualScale,
    ScoredRate,
)


def constant(floor: float = 0.1) -> Allocation:
    shares = ConstantShares(np.array([3.0, 1.0, 0.0]))
    return Allocation(ConstantRate(0.2), shares, floor, "fixed-rate", "toy")


def test_rates_and_probabilities() -> None:
    rate, pi = constant().allocate(np.zeros((2, 4)))
    np.testing.assert_array_equal(rate, [0.2, 0.2])
    np.testing.assert_allclose(pi, [[0.625, 0.275, 0.1]] * 2, rtol=1e-15)
    eligible = np.array([[False, True, True], [False, False, False]])
    rate, pi = constant().allocate(np.zeros((2, 4)), eligible)
    np.testing.assert_allclose(pi, [[0.0, 0.9, 0.1], [0.0, 0.0, 0.0]], rtol=1e-15)


def test_an_impossible_floor_is_refused_when_the_rule_is_made() -> None:
    with pytest.raises(ValueError, match=r"floor is 0\.4, expected 0 to 1/3 with 3 models"):
        constant(0.4)


def test_the_encoding_is_canonical() -> None:
    assert constant().encode() == {
        "gate": {"kind": "constant-rate", "rate": 0.2},
        "assignment": {"kind": "constant-shares", "shares": [3.0, 1.0, 0.0]},
        "floor": 0.1,
        "gate_name": "fixed-rate",
        "assignment_name": "toy",
    }


def test_it_survives_json_and_pickle_bit_for_bit() -> None:
    rng = np.random.default_rng(0)
    best = BestDrawShares(rng.normal(size=(33, 3, 5)))
    x = rng.normal(size=(60, 4))
    for one in (constant(), Allocation(ConstantRate(1 / 3), best, 0.01, "a", "b")):
        for again in (
            Allocation.decode(json.loads(json.dumps(one.encode(), allow_nan=False))),
            pickle.loads(pickle.dumps(one)),
        ):
            assert again.encode() == one.encode()
            for here, there in zip(one.allocate(x), again.allocate(x), strict=True):
                np.testing.assert_array_equal(here, there)


@pytest.mark.parametrize("models", range(1, 21))
def test_one_context_gives_the_bits_of_a_batch(models: int) -> None:
    rng = np.random.default_rng(models)
    size = 4
    forms = rng.normal(size=(2 * models, size, size))
    forms = forms @ forms.transpose(0, 2, 1)
    forms[models] = -forms[models]  # a spread that is not positive: nothing can be cut
    forms[:models] -= 0.5 * forms[rng.integers(0, models)]  # gains below 0
    cuts, variances = (
        kind(QuadraticForms(rng.normal(size=3), each))
        for kind, each in ((Cuts, forms), (ResidualScale, forms[:models]))
    )
    kernels = (
        ConstantShares(rng.random(models)),
        BestDrawShares(rng.integers(-2, 3, size=(32, models, size)).astype(float)),
        CutShares(cuts),
    )
    gates = (
        ConstantRate(0.3),
        *(ScoredRate(score, 0.01, 0.07, 0.02, 0.9) for score in (cuts, variances)),
    )
    x = rng.normal(size=(40, 3))
    x[-1] = 1e200  # beyond what doubles hold: no number comes out
    mask = rng.random((40, models)) < 0.6
    mask[0], mask[1] = False, True
    for gate, kernel, eligible in itertools.product(gates, kernels, (None, mask)):
        one = Allocation(gate, kernel, 0.3 / models, "a", "b")
        with np.errstate(all="ignore"):
            rates, pi = one.allocate(x, eligible)
            for row in range(len(x)):
                able = None if eligible is None else eligible[row : row + 1]
                rate, shares, cumulated = one.allocate_one(x[row : row + 1], able)
                assert type(rate) is float
                alone = np.array([rate]), shares[0], np.array(cumulated)
                whole = rates[row : row + 1], pi[row], np.add.accumulate(pi[row])
                for ours, theirs in zip(alone, whole, strict=True):
                    # The sign of what is no number is nobody's.
                    same = ours.tobytes() == theirs.tobytes()
                    assert same or (np.isnan(ours).all() and np.isnan(theirs).all())
