"""Work arrays kept between updates: they may never show in a result."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np

from equipoise.agent.moments.additive import Scratch
from tests.agent.moments.raw_rows import SHAPE
from tests.agent.moments.table import Case, assert_same_bits, cut, every_case


def test_arrays_have_the_shape_asked_for_and_keep_their_memory() -> None:
    scratch = Scratch()
    large = scratch.array("a", 3, 4, 5)
    assert large.shape == (3, 4, 5)
    assert large.dtype == np.float64
    small = scratch.array("a", 2, 2)
    assert small.shape == (2, 2)
    assert np.shares_memory(small, large)
    assert scratch.array("a", 0, 7).shape == (0, 7)
    assert np.shares_memory(scratch.array("a", 60), large)
    assert scratch.array("a", 61).shape == (61,)


def test_names_do_not_share_memory() -> None:
    scratch = Scratch()
    assert not np.shares_memory(scratch.array("a", 8), scratch.array("b", 8))


def test_threads_do_not_share_memory() -> None:
    scratch = Scratch()
    mine = scratch.array("a", 8)
    with ThreadPoolExecutor(1) as pool:
        theirs = pool.submit(scratch.array, "a", 8).result()
    assert not np.shares_memory(mine, theirs)


@every_case
def test_an_earlier_batch_leaves_no_trace(case: Case) -> None:
    """The same bits whether the work arrays are new, or hold a larger or a smaller batch."""
    generator = np.random.default_rng(1)
    rows = case.rows(generator, 40)
    first = case.of([rows])
    for size in (1000, 3):
        other = case.rows(generator, size)
        other["v"] = other["v"] * 1e9
        case.of([other])
        assert_same_bits(case.of([rows]), first)


@every_case
def test_moments_updated_in_turn_do_not_touch_each_other(case: Case) -> None:
    rows = case.rows(np.random.default_rng(2), 200)
    one, other = case.empty(SHAPE.groups), case.empty(SHAPE.groups)
    for part in cut(rows, (50, 130)):
        case.update(one, part)
        before = one.copy()
        case.update(other, part)
        assert_same_bits(one, before)
    assert_same_bits(one, other)


@every_case
def test_threads_may_update_their_own_moments_at_once(case: Case) -> None:
    """Where threads shared work arrays, some of these would mix; a lucky run passes, never fails.

    Each of four threads repeats its fold 20 times beside the others, from a common start.
    """
    shards = [cut(case.rows(np.random.default_rng(seed), 600), (200, 400)) for seed in range(4)]
    barrier = Barrier(len(shards))

    def folded(shard: list[dict[str, Any]]) -> list[Any]:
        barrier.wait(timeout=30)
        return [case.of(shard) for _ in range(20)]

    with ThreadPoolExecutor(len(shards)) as pool:
        found = list(pool.map(folded, shards))
    for shard, results in zip(shards, found, strict=True):
        alone = case.of(shard)
        for result in results:
            assert_same_bits(result, alone)
