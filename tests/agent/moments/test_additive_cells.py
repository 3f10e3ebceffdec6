"""Sorting rows into cells, against the plain loop over cells."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent.moments.additive import Cells

cell_lists = st.lists(st.one_of(st.integers(0, 4), st.integers(0, 10**12)), max_size=30)
few = settings(deadline=None, max_examples=60, derandomize=True)


@few
@given(listed=cell_lists)
def test_cells_are_those_of_a_plain_loop(listed: list[int]) -> None:
    cell = np.array(listed, dtype=np.int64)
    cells = Cells(cell)
    # Python's sort is stable: rows of a cell stay in their order.
    order = sorted(range(len(listed)), key=lambda row: listed[row])
    present = sorted(set(listed))
    assert cells.order.tolist() == order
    assert cells.sorted_cell.tolist() == sorted(listed)
    assert cells.present.tolist() == present
    assert cells.starts.tolist() == [sorted(listed).index(c) for c in present]
    assert cells.sizes.tolist() == [listed.count(c) for c in present]


@few
@given(listed=cell_lists.filter(len), width=st.integers(0, 3))
def test_sums_are_those_of_a_plain_loop(listed: list[int], width: int) -> None:
    """On integers, where every order of additions gives the same."""
    shape = (len(listed), *range(2, 2 + width))
    rows = np.random.default_rng(1).integers(-9, 10, size=shape).astype(np.float64)
    cells = Cells(np.array(listed, dtype=np.int64))
    expected = [rows[np.array(listed) == c].sum(axis=0) for c in sorted(set(listed))]
    np.testing.assert_array_equal(cells.sums(rows[cells.order]), np.array(expected))


@few
@given(listed=cell_lists)
def test_slots_are_one_to_one_and_dense(listed: list[int]) -> None:
    cells = Cells(np.array(listed, dtype=np.int64))
    rank, position = cells.slots()
    assert cells.present[rank].tolist() == sorted(listed)
    expected = [i for size in cells.sizes.tolist() for i in range(size)]
    assert position.tolist() == expected


def test_padding_by_slots_loses_no_row() -> None:
    cells = Cells(np.array([7, 3, 7, 7, 5]))
    rows = np.arange(1.0, 6.0)[cells.order]
    rank, position = cells.slots()
    padded = np.zeros((3, 3))
    padded[rank, position] = rows
    np.testing.assert_array_equal(padded, [[2, 0, 0], [5, 0, 0], [1, 3, 4]])


def test_no_rows_are_no_cells() -> None:
    cells = Cells(np.zeros(0, dtype=np.int64))
    assert len(cells.order) == len(cells.present) == len(cells.starts) == len(cells.sizes) == 0
    rank, position = cells.slots()
    assert len(rank) == len(position) == 0


@pytest.mark.parametrize("width", [(), (1,), (31,)])
def test_a_cells_sum_does_not_depend_on_the_other_cells(width: tuple[int, ...]) -> None:
    """The order of additions is a function of the cell's own rows: the same bits alone."""
    generator = np.random.default_rng(2)
    cell = generator.integers(5, size=300)
    rows = generator.normal(size=(300, *width))
    cells = Cells(cell)
    together = cells.sums(rows[cells.order])
    for c in range(5):
        alone = Cells(cell[cell == c]).sums(rows[cell == c])
        assert alone[0].tobytes() == together[c].tobytes()


def test_input_is_left_alone() -> None:
    cell = np.array([3, 1, 3])
    cell.setflags(write=False)
    cells = Cells(cell)
    assert cell.tolist() == [3, 1, 3]
    assert not np.shares_memory(cells.sorted_cell, cell)
