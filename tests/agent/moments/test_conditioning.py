"""Rewards near 1e6 with variance 1e-3: variances keep six digits where raw sums keep none.

All values are given; the seeds are fixed, so that there are no false alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.agent.moments.raw_rows import Rows
from tests.agent.moments.table import CASES, Case, arrays_of, every_case, one_group

OFFSET, VARIANCE = 1e6, 1e-3
N = 100_000
ROUTING = CASES[3]


def far_rows(case: Case, n: int) -> Rows:
    """All columns around 1e6, every row in group 0 and model 0 (and source 0)."""
    generator = np.random.default_rng(1)
    rows = case.rows(generator, n)
    zeros = np.zeros(n, dtype=np.int64)
    far = OFFSET + generator.normal(0.0, np.sqrt(VARIANCE), size=rows["v"].shape)
    return rows | {"group": zeros, "model": zeros, "source": zeros, "v": far}


def scatters(moments: Any) -> dict[str, NDArray[Any]]:
    """First cell of every scatter: a number, or a (q, q) matrix."""
    found = {}
    for name, array in arrays_of(one_group(moments, 0)).items():
        if name.endswith("scatter"):
            square = array.ndim >= 3
            found[name] = array.reshape(-1, *array.shape[-2:])[0] if square else array.ravel()[0]
    return found


def naive(rows: Rows, size: int) -> float:
    """Variance of the reward by raw sums, in the same batches: sum r^2 / n - (sum r / n)^2."""
    reward = rows["v"][:, -1]
    total = total_sq = 0.0
    for start in range(0, len(reward), size):
        part = reward[start : start + size]
        total += float(part.sum())
        total_sq += float((part * part).sum())
    return total_sq / len(reward) - (total / len(reward)) ** 2


def check(case: Case, rows: Rows, size: int, add: Callable[[Case, Rows, int], Any]) -> None:
    n = len(rows["group"])
    found = scatters(add(case, rows, size))
    # Subtracting the offset from numbers near it is exact, so these statistics lose nothing.
    near = rows | {"v": rows["v"] - OFFSET}
    raw = arrays_of(one_group(case.of([near]), 0))
    whole = case.raw(near, 1)
    assert raw.keys() == whole.keys()
    for name, scatter in found.items():
        expected = whole[name].reshape(-1, *np.shape(scatter))[0]
        diagonal = np.diag(expected) if expected.ndim else expected
        scale = np.sqrt(np.multiply.outer(diagonal, diagonal)) if expected.ndim else expected
        assert (np.abs(scatter - expected) / scale).max() < 1e-6, name
    truth = float(np.cov(near["v"][:, -1], ddof=0))
    assert abs(naive(rows, size) / truth - 1.0) > 1e-3, "raw sums would have done as well"
    assert n * truth > 0


def in_batches(case: Case, rows: Rows, size: int) -> Any:
    return case.of(
        {name: column[start : start + size] for name, column in rows.items()}
        for start in range(0, len(rows["group"]), size)
    )


def merged_shards(case: Case, rows: Rows, size: int) -> Any:
    total = case.empty(3)
    for start in range(0, len(rows["group"]), size):
        total = total + case.of([{n: c[start : start + size] for n, c in rows.items()}])
    return total


@every_case
def test_in_batches_of_256(case: Case) -> None:
    check(case, far_rows(case, N), 256, in_batches)


@every_case
def test_in_one_batch(case: Case) -> None:
    check(case, far_rows(case, N), N, in_batches)


@every_case
def test_in_merged_shards_of_256(case: Case) -> None:
    check(case, far_rows(case, N), 256, merged_shards)


@pytest.mark.parametrize("case", CASES[:3], ids=[case.name for case in CASES[:3]])
def test_one_row_at_a_time(case: Case) -> None:
    check(case, far_rows(case, 5_000), 1, in_batches)


def test_a_hundred_thousand_rows_one_at_a_time() -> None:
    """The cheapest class only: the kernels are the same."""
    check(ROUTING, far_rows(ROUTING, N), 1, in_batches)
