"""The kernels behind the moment classes, on numbers that can be checked by hand."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.moments.additive import (
    Cells,
    add_means,
    add_scatter,
    add_variation,
    between,
    merged_mean,
)

ONE_CELL = np.zeros(2, dtype=np.int64)


def test_variation_of_two_weighted_values_and_then_a_third() -> None:
    """Weights 1, 3 at values 2, 6: mean 5, scatter 9 + 3 = 12. Then weight 4 at value 9."""
    total, mean, scatter = np.zeros(1), np.zeros(1), np.zeros(1)
    add_variation(Cells(ONE_CELL), np.array([1.0, 3.0]), np.array([2.0, 6.0]), total, mean, scatter)
    assert (total[0], mean[0], scatter[0]) == (4.0, 5.0, 12.0)
    add_variation(Cells(ONE_CELL[:1]), np.array([4.0]), np.array([9.0]), total, mean, scatter)
    # Mean (4·5 + 4·9) / 8 = 7, scatter 12 + 4·4/8·4² = 44.
    assert (total[0], mean[0], scatter[0]) == (8.0, 7.0, 44.0)


def test_scatter_of_two_weighted_rows_and_then_a_third() -> None:
    weight, rows = np.array([1.0, 3.0]), np.array([[2.0, 0.0], [6.0, 4.0]])
    total, centre, scatter = np.zeros(1), np.zeros((1, 2)), np.zeros((1, 2, 2))
    add_scatter(Cells(ONE_CELL), weight, rows, total, centre, scatter)
    assert total[0] == 0.0, "the weight is the caller's to add"
    np.testing.assert_array_equal(centre, [[5.0, 3.0]])
    np.testing.assert_allclose(scatter, [[[12.0, 12.0], [12.0, 12.0]]], rtol=1e-15)
    total[0] = 4.0
    add_scatter(
        Cells(ONE_CELL[:1]), np.array([4.0]), np.array([[9.0, 1.0]]), total, centre, scatter
    )
    np.testing.assert_array_equal(centre, [[7.0, 2.0]])
    np.testing.assert_allclose(scatter, [[[44.0, -4.0], [-4.0, 20.0]]], rtol=1e-14)


def test_means_of_two_weighted_rows_and_then_a_third() -> None:
    total, mean = np.zeros(1), np.zeros((1, 2))
    weight, rows = np.array([1.0, 3.0]), np.array([[2.0, 0.0], [6.0, 4.0]])
    add_means(Cells(ONE_CELL), weight, rows, total, mean)
    add_means(Cells(ONE_CELL[:1]), np.array([4.0]), np.array([[9.0, 1.0]]), total, mean)
    assert total[0] == 8.0
    np.testing.assert_array_equal(mean, [[7.0, 2.0]])


def test_cells_without_rows_are_left_alone() -> None:
    cells = Cells(np.array([2, 2]))
    weight, values, rows = np.ones(2), np.array([1.0, 2.0]), np.array([[1.0], [2.0]])
    total, mean, scatter = np.full(4, 9.0), np.full(4, 9.0), np.full(4, 9.0)
    add_variation(cells, weight, values, total, mean, scatter)
    means, second = np.full((4, 1), 9.0), np.full((4, 1, 1), 9.0)
    add_scatter(cells, weight, rows, np.full(4, 9.0), means, second)
    for array in (total, mean, scatter, means, second):
        assert (np.delete(array, 2, axis=0) == 9.0).all()
        assert (array[2] != 9.0).all()


def test_merged_mean_by_hand() -> None:
    merged = merged_mean(np.array(1.0), np.array(2.0), np.array(3.0), np.array(6.0))
    assert merged == 5.0
    merged = merged_mean(
        np.array([1.0, 0.0, 2.0, 0.0]),
        np.array([[2.0, 0.0], [7.0, 7.0], [0.1, -0.0], [0.0, 0.0]]),
        np.array([3.0, 1.0, 0.0, 0.0]),
        np.array([[6.0, 4.0], [0.1, -0.0], [7.0, 7.0], [0.0, 0.0]]),
    )
    np.testing.assert_array_equal(merged, [[5.0, 3.0], [0.1, 0.0], [0.1, 0.0], [0.0, 0.0]])
    assert np.signbit(merged[1:3, 1]).all(), "the other side's bits, the sign of zero included"


def test_between_by_hand() -> None:
    """1·3/4 times the step (4, -2): 12 on the first, 3 on the second, -6 across."""
    step = between(np.array(1.0), np.array([2.0, 6.0]), np.array(3.0), np.array([6.0, 4.0]))
    np.testing.assert_array_equal(step, [[12.0, -6.0], [-6.0, 3.0]])
    assert between(np.array(1.0), np.array(2.0), np.array(3.0), np.array(6.0)) == 12.0


@pytest.mark.parametrize("side", [0, 1])
def test_between_is_nothing_where_a_side_is_empty(side: int) -> None:
    weight = np.array([0.0, 5.0])
    mine, theirs = weight[[side]], weight[[1 - side]]
    assert not between(mine, np.array([0.0]), theirs, np.array([1e6])).any()
    assert not between(mine, np.array([[0.0, 3.0]]), theirs, np.array([[1e6, 2.0]])).any()


def test_scatter_stays_symmetric_to_the_last_bit() -> None:
    """Factorizations read one triangle: were the other one different, they would depend on it."""
    generator = np.random.default_rng(1)
    cells, rows = Cells(np.sort(generator.integers(4, size=90))), generator.normal(size=(90, 9))
    weight, centre = generator.uniform(1, 3, size=90), np.zeros((4, 9))
    scatter = np.zeros((4, 9, 9))
    add_scatter(cells, weight, rows, np.zeros(4), centre, scatter)
    add_scatter(cells, weight, rows, np.full(4, 9.0), centre, scatter)
    step = between(weight[:4], rows[:4], weight[4:8], rows[4:8])
    for matrix in (scatter, step):
        assert matrix.tobytes() == matrix.transpose(0, 2, 1).tobytes()
