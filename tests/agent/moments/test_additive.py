"""What every moment class promises: an addition with an identity, blind to how rows were grouped.

Equality up to rounding means 1e-12 of a field's natural scale (`table.assert_close`). Nothing here
is random beyond its rows, whose seeds are fixed, so that there are no false alarms.
"""

from __future__ import annotations

import importlib
import pkgutil
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from equipoise.agent import moments as package
from equipoise.agent.moments.additive import Additive
from tests.agent.moments.raw_rows import SHAPE, take
from tests.agent.moments.table import (
    CASES,
    Case,
    arrays_of,
    assert_close,
    assert_same_bits,
    cut,
    every_case,
    joined,
    one_group,
)

few = settings(deadline=None, max_examples=40, derandomize=True)
seeds = st.integers(0, 2**32 - 1)


def test_every_moment_class_is_in_the_table() -> None:
    for module in pkgutil.iter_modules(package.__path__):
        importlib.import_module(f"{package.__name__}.{module.name}")
    written = {
        kind.__name__
        for kind in Additive.__subclasses__()
        if kind.__module__.startswith(package.__name__)
    }
    assert {case.name for case in CASES} == written | {"Moments"}


@every_case
def test_empty_is_the_identity_bit_for_bit(case: Case) -> None:
    moments = case.of([case.rows(np.random.default_rng(1), 200)])
    assert_same_bits(case.empty(SHAPE.groups) + moments, moments)
    assert_same_bits(moments + case.empty(SHAPE.groups), moments)
    empty = case.empty(SHAPE.groups)
    assert_same_bits(empty + case.empty(SHAPE.groups), empty)


@every_case
def test_empty_cells_are_an_identity_too(case: Case) -> None:
    """Where only one side has rows of a group, that side's bits come back."""
    rows = case.rows(np.random.default_rng(2), 200)
    apart = [take(rows, rows["group"] == group) for group in range(SHAPE.groups)]
    merged = reduce(add, (case.of([part]) for part in apart))
    for group, part in enumerate(apart):
        assert_same_bits(one_group(merged, group), one_group(case.of([part]), group))


@every_case
def test_addition_commutes(case: Case) -> None:
    generator = np.random.default_rng(3)
    a, b = (case.of([case.rows(generator, n)]) for n in (150, 40))
    assert_close(a + b, b + a)


@every_case
def test_addition_associates(case: Case) -> None:
    generator = np.random.default_rng(4)
    a, b, c = (case.of([case.rows(generator, n)]) for n in (150, 40, 7))
    assert_close((a + b) + c, a + (b + c))


@every_case
def test_merge_equals_one_batch(case: Case) -> None:
    generator = np.random.default_rng(5)
    first, second = case.rows(generator, 150), case.rows(generator, 40)
    assert_close(case.of([first]) + case.of([second]), case.of([joined(first, second)]))


@every_case
def test_a_sum_can_be_updated(case: Case) -> None:
    generator = np.random.default_rng(6)
    parts = [case.rows(generator, n) for n in (30, 20, 10)]
    merged = case.of(parts[:1]) + case.of(parts[1:2])
    case.update(merged, parts[2])
    assert_close(merged, case.of([joined(*parts)]))


@every_case
def test_one_row_at_a_time_equals_one_batch(case: Case) -> None:
    rows = case.rows(np.random.default_rng(7), 120)
    assert_close(case.of(cut(rows, range(1, 120))), case.of([rows]))


@every_case
@few
@given(seed=seeds, n=st.integers(1, 60), data=st.data())
def test_any_split_equals_one_batch(case: Case, seed: int, n: int, data: st.DataObject) -> None:
    """Batches one after another, and each by itself then merged in any order."""
    rows = case.rows(np.random.default_rng(seed), n)
    parts = cut(rows, data.draw(st.lists(st.integers(0, n), max_size=6), label="cuts"))
    order = data.draw(st.permutations(range(len(parts))), label="order")
    whole = case.of([rows])
    assert_close(case.of(parts), whole)
    assert_close(reduce(add, (case.of([parts[i]]) for i in order)), whole)


@every_case
@few
@given(seed=seeds, n=st.integers(1, 60))
def test_fields_equal_the_raw_rows_statistics(case: Case, seed: int, n: int) -> None:
    rows = case.rows(np.random.default_rng(seed), n)
    assert_close(arrays_of(case.of([rows])), case.raw(rows, SHAPE.groups))


@every_case
def test_no_rows_at_all_equal_the_raw_statistics_of_none(case: Case) -> None:
    none = case.rows(np.random.default_rng(8), 0)
    assert_close(arrays_of(case.empty(SHAPE.groups)), case.raw(none, SHAPE.groups))


@every_case
def test_the_order_of_rows_does_not_matter(case: Case) -> None:
    generator = np.random.default_rng(9)
    rows = case.rows(generator, 200)
    assert_close(case.of([take(rows, generator.permutation(200))]), case.of([rows]))


@every_case
def test_groups_add_up_to_the_whole(case: Case) -> None:
    rows = case.rows(np.random.default_rng(10), 300)
    moments = case.of([rows])
    total = reduce(add, (one_group(moments, group) for group in range(SHAPE.groups)))
    assert_close(total, case.of([rows | {"group": np.zeros(300, dtype=np.int64)}], groups=1))


@every_case
def test_weight_two_is_the_row_twice(case: Case) -> None:
    """In the fields that see weights only; where a case lists none, weights must not matter."""
    rows = case.rows(np.random.default_rng(11), 100)
    doubled = arrays_of(case.of([rows | {"weight": 2.0 * rows["weight"]}]))
    twice = arrays_of(case.of([joined(rows, rows)]))
    once = arrays_of(case.of([rows]))
    weighted = case.weighted
    assert_close({name: doubled[name] for name in weighted}, {n: twice[n] for n in weighted})
    if not weighted:
        assert all(doubled[name].tobytes() == once[name].tobytes() for name in once)


@every_case
def test_the_same_batches_give_the_same_bits(case: Case) -> None:
    rows = case.rows(np.random.default_rng(12), 500)
    cuts = (1, 130, 131, 386)
    first = case.of(cut(rows, cuts))
    # Other allocations in between: the bits may not depend on where arrays happen to lie.
    kept = [np.empty(1 + 8 * i) for i in range(50)]
    assert_same_bits(case.of(cut(rows, cuts)), first)
    assert len(kept) == 50


@every_case
def test_an_empty_batch_changes_nothing(case: Case) -> None:
    generator = np.random.default_rng(13)
    moments = case.of([case.rows(generator, 50)])
    before = moments.copy()
    case.update(moments, case.rows(generator, 0))
    assert_same_bits(moments, before)
    fresh = case.empty(SHAPE.groups)
    case.update(fresh, case.rows(generator, 0))
    assert_same_bits(fresh, case.empty(SHAPE.groups))


@every_case
def test_equal_rewards_have_no_spread_at_all(case: Case) -> None:
    """Exactly zero, not the rounding of a difference: .1 has no finite binary form."""
    rows = case.rows(np.random.default_rng(14), 90)
    rows |= {"v": np.full_like(rows["v"], 0.1)}
    parts = cut(rows, (20, 21, 50))
    batched, merged = case.of(parts), reduce(add, (case.of([part]) for part in parts))
    for moments in (batched, merged):
        for name, array in arrays_of(moments).items():
            if name.endswith("scatter"):
                assert not array.any(), name


@every_case
@pytest.mark.parametrize("spread", [0.0, 1e-9, 1.0])
def test_merging_never_gives_a_negative_scatter(case: Case, spread: float) -> None:
    """Far from 0, nearly constant, with weights from 1 to 1e6, merged in any order: nothing is
    subtracted from sums, so the diagonal cannot fall below 0."""
    rng = np.random.default_rng(15)
    rows = case.rows(rng, 60)
    rows |= {"v": 1e8 + spread * rng.normal(size=rows["v"].shape)}
    if "weight" in rows:
        rows |= {"weight": 10.0 ** rng.uniform(0.0, 6.0, 60)}
    for order in (np.arange(60), rng.permutation(60)):
        shuffled = {name: column[order] for name, column in rows.items()}
        parts = [case.of([part]) for part in cut(shuffled, tuple(range(3, 60, 3)))]
        while len(parts) > 1:
            merged = parts.pop(int(rng.integers(len(parts)))) + parts.pop()
            parts.append(merged)
            for name, array in arrays_of(merged).items():
                if name.endswith("scatter"):
                    square = array.ndim >= 2 and array.shape[-1] == array.shape[-2] > 1
                    own = np.diagonal(array, axis1=-2, axis2=-1) if square else array
                    assert (own >= 0.0).all(), name
