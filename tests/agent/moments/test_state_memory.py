"""What the moments keep of what they are given: nothing but sums, in memory of their own."""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np
import pytest

from tests.agent.moments.raw_rows import SHAPE, Arrays
from tests.agent.moments.table import (
    Case,
    arrays_of,
    assert_close,
    assert_same_bits,
    cut,
    every_case,
)


def share_memory(a: Arrays, b: Arrays) -> bool:
    return any(np.shares_memory(mine, theirs) for mine in a.values() for theirs in b.values())


def held_bytes(moments: Any) -> int:
    """Bytes of the arrays, and of whatever they are views of."""
    owners = [a if a.base is None else a.base for a in arrays_of(moments).values()]
    return sum(owner.nbytes for owner in owners)


@every_case
def test_size_does_not_grow_with_the_rows(case: Case) -> None:
    generator = np.random.default_rng(1)
    moments = case.of([case.rows(generator, 10)])
    few = held_bytes(moments)
    batch = case.rows(generator, 1000)
    for _ in range(100):
        case.update(moments, batch)
    assert held_bytes(moments) == few
    assert held_bytes(moments + moments) == few
    assert held_bytes(moments.copy()) == few


@every_case
def test_a_copy_is_independent(case: Case) -> None:
    generator = np.random.default_rng(2)
    moments = case.of([case.rows(generator, 60)])
    copy = moments.copy()
    assert_same_bits(copy, moments)
    assert not share_memory(arrays_of(copy), arrays_of(moments))
    kept = moments.copy()
    case.update(copy, case.rows(generator, 60))
    assert_same_bits(moments, kept)
    with pytest.raises(AssertionError):
        assert_close(copy, moments)


@every_case
@pytest.mark.parametrize("empty_side", ["neither", "left", "right"])
def test_a_sum_shares_no_memory_with_its_terms(case: Case, empty_side: str) -> None:
    """Also where the other term is the identity and the values come back untouched."""
    generator = np.random.default_rng(3)
    a, b = (
        case.empty(SHAPE.groups) if side == empty_side else case.of([case.rows(generator, 60)])
        for side in ("left", "right")
    )
    before = a.copy(), b.copy()
    total = a + b
    for term in (a, b):
        assert not share_memory(arrays_of(total), arrays_of(term))
    case.update(total, case.rows(generator, 60))
    assert_same_bits(a, before[0])
    assert_same_bits(b, before[1])


@every_case
def test_inputs_are_neither_changed_nor_kept(case: Case) -> None:
    rows = case.rows(np.random.default_rng(4), 60)
    before = {name: column.copy() for name, column in rows.items()}
    for column in rows.values():
        column.setflags(write=False)
    moments = case.empty(SHAPE.groups)
    case.update(moments, rows)
    case.update(moments, rows)
    for name, column in rows.items():
        assert column.tobytes() == before[name].tobytes(), name
    assert not share_memory(arrays_of(moments), rows)
    watched = [weakref.ref(column) for column in rows.values()]
    del column, rows
    assert all(reference() is None for reference in watched)


@every_case
def test_later_changes_of_the_inputs_do_not_matter(case: Case) -> None:
    rows = case.rows(np.random.default_rng(5), 1)
    moments = case.of([rows])
    before = moments.copy()
    for column in rows.values():
        column[...] = 1
    assert_same_bits(moments, before)


@every_case
def test_strided_columns_give_the_same_bits(case: Case) -> None:
    """Callers pass columns of wider tables; update may not depend on the layout."""
    rows = case.rows(np.random.default_rng(6), 70)
    strided = {name: np.repeat(column, 2, axis=0)[::2] for name, column in rows.items()}
    strided["v"] = np.asfortranarray(strided["v"])
    assert_same_bits(case.of([strided]), case.of([rows]))


@every_case
def test_arrays_stay_contiguous(case: Case) -> None:
    """update writes through reshaped views, which would silently be copies otherwise."""
    rows = case.rows(np.random.default_rng(7), 70)
    first, second = (case.of([part]) for part in cut(rows, (30,)))
    for moments in (
        first,
        first + second,
        first.copy(),
        case.empty(1),
        case.empty(1) + case.empty(1),
    ):
        for name, array in arrays_of(moments).items():
            assert array.flags.c_contiguous, name
            assert array.dtype == np.float64, name
