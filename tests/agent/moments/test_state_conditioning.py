"""Rewards near 1e6 with variance 1e-3: variances keep six digits where raw sums keep none.

The seeds are fixed, so that there are no false alarms.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.moments.additive import Cells, add_variation
from tests.agent.moments.raw_rows import SHAPE, Rows
from tests.agent.moments.table import CASES, Case, arrays_of, every_case, one_group

OFFSET, VARIANCE = 1e6, 1e-3
N = 100_000


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
    found = scatters(add(case, rows, size))
    # Subtracting the offset from numbers near it is exact, so these statistics lose nothing.
    near = rows | {"v": rows["v"] - OFFSET}
    raw = case.raw(near, 1)
    for name, scatter in found.items():
        expected = raw[name].reshape(-1, *np.shape(scatter))[0]
        spread = np.sqrt(np.diag(expected) if expected.ndim else expected)
        scale = np.multiply.outer(spread, spread) if expected.ndim else expected
        assert (np.abs(scatter - expected) / scale).max() < 1e-6, name
    truth = float(np.cov(near["v"][:, -1], ddof=0))
    assert abs(naive(rows, size) / truth - 1.0) > 1e-3, "raw sums would have done as well"


def in_batches(case: Case, rows: Rows, size: int) -> Any:
    return case.of(
        {name: column[start : start + size] for name, column in rows.items()}
        for start in range(0, len(rows["group"]), size)
    )


def merged_shards(case: Case, rows: Rows, size: int) -> Any:
    total = case.empty(SHAPE.groups)
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


@every_case
def test_one_row_at_a_time(case: Case) -> None:
    check(case, far_rows(case, 2_000), 1, in_batches)


def test_a_hundred_thousand_rows_one_at_a_time() -> None:
    """By the kernel itself, which costs less than a class around it."""
    cells, weight = Cells(np.zeros(1, dtype=np.int64)), np.ones(1)
    total, mean, scatter = np.zeros(1), np.zeros(1), np.zeros(1)
    rows = far_rows(CASES[0], N)
    reward = rows["v"][:, -1]
    for row in range(N):
        add_variation(cells, weight, reward[row : row + 1], total, mean, scatter)
    truth = np.cov(reward - OFFSET, ddof=0)
    assert total[0] == N
    assert abs(scatter[0] / N / truth - 1.0) < 1e-6
    assert abs(mean[0] - OFFSET - (reward - OFFSET).mean()) < 1e-8
    assert abs(naive(rows, 1) / truth - 1.0) > 1e-3
