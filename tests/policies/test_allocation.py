"""The allocation: what it hands out, and that it survives storage."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest

from equipoise.policies.allocation import Allocation
from equipoise.policies.kernels import BestDrawShares, ConstantRate, ConstantShares


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
