"""The evidence of shares: products of factors, by every route the same."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.monitors import assignment as shares


def by_hand(probability, hit):
    """Sum over rows of the logs of the factors, one at a time."""
    at_hit, at_miss = shares.factors(probability)
    return np.log(np.where(hit[..., None], at_hit, at_miss)).sum(axis=0)


@pytest.mark.parametrize("kind", ["moving", "constant", "extreme", "certain"])
@pytest.mark.parametrize("rows", [1, 7, 8, 1000])
def test_sums_are_the_logs_of_the_factors(kind, rows):
    rng = np.random.default_rng(rows)
    probability = rng.uniform(0.02, 0.98, (rows, 3))
    if kind == "constant":
        probability[:] = probability[0]
    elif kind == "extreme":
        probability[:] = 10.0 ** rng.uniform(-12, -0.1, (rows, 3))
    elif kind == "certain":
        probability[rng.random((rows, 3)) < 0.5] = 0.0
        probability[rng.random((rows, 3)) < 0.2] = 1.0
    hit = rng.random((rows, 3)) < probability
    sums = shares.empty(4)
    shares.add(sums, slice(1, 4), probability, hit)
    np.testing.assert_allclose(sums["evidence"][1:], by_hand(probability, hit), rtol=1e-9)
    assert (sums["evidence"][0] == 0).all()
    assert sums["rows"].tolist() == [0, rows, rows, rows]
    assert sums["hits"][1:].tolist() == hit.sum(axis=0).tolist()
    np.testing.assert_allclose(sums["expected"][1:], probability.sum(axis=0), rtol=1e-12)
    assert not sums["impossible"].any()


def test_no_rows_change_nothing():
    sums = shares.empty(2)
    shares.add(sums, slice(0, 2), np.zeros((0, 2)), np.zeros((0, 2), dtype=bool))
    assert not any(array.any() for array in sums.values())


def test_what_cannot_happen_is_counted():
    sums = shares.empty(1)
    shares.add(sums, slice(0, 1), np.array([[0.0], [0.5], [1.0]]), np.array([[True], [1], [False]]))
    for p, was in ((0.0, [True, True]), (1.0, [False, False])):
        shares.add(sums, slice(0, 1), np.full((2, 1), p), np.array(was)[:, None])
    shares.add(sums, slice(0, 1), np.array([[0.0], [1.0], [0.0]]), np.array([[False], [1], [0]]))
    assert sums["impossible"].tolist() == [6]
    assert sums["hits"].tolist() == [5]
    assert shares.log_evidence(sums)[0] == np.inf
