"""Scorer moments as regressions read them: within models, by weight, by part."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from equipoise.agent.moments.scorer import ScorerMoments
from tests.agent.moments.raw_rows import SHAPE, Rows
from tests.agent.moments.table import CASES, arrays_of, assert_same_bits

SCORER = CASES[0]


def within(moments: ScorerMoments) -> NDArray[Any]:
    """(p, p) scatter around the means of the models, over all groups."""
    step = moments.mean - moments.centre[:, None, :]
    between = np.einsum("gk,gki,gkj->gij", moments.weight, step, step)
    per_group = moments.scatter - between
    # The groups' model means differ too: what merging the groups adds is subtracted likewise.
    total = moments.weight.sum(axis=0)
    mean = (moments.weight[..., None] * moments.mean).sum(axis=0) / total[:, None]
    step = moments.mean - mean
    groups = np.einsum("gk,gki,gkj->ij", moments.weight, step, step)
    return np.asarray(per_group.sum(axis=0) + groups)


def demeaned(rows: Rows) -> NDArray[Any]:
    """Raw rows less the weighted mean of their model."""
    v: NDArray[Any] = rows["v"].copy()
    for model in range(SHAPE.models):
        mine = rows["model"] == model
        v[mine] -= np.average(v[mine], axis=0, weights=rows["weight"][mine])
    return v


@pytest.mark.parametrize("weighted", [False, True])
def test_within_model_moments_by_subtraction_equal_demeaned_rows(weighted: bool) -> None:
    rows = SCORER.rows(np.random.default_rng(1), 400)
    if not weighted:
        rows["weight"][:] = 1.0
    v = demeaned(rows)
    expected = (rows["weight"][:, None] * v).T @ v
    np.testing.assert_allclose(within(SCORER.of([rows])), expected, atol=1e-12 * expected.max())


def test_within_model_slopes_are_those_of_a_regression_with_model_dummies() -> None:
    """Frisch, Waugh and Lovell: demeaning by model is a dummy per model."""
    rows = SCORER.rows(np.random.default_rng(2), 400)
    root = np.sqrt(rows["weight"])[:, None]
    dummies = np.eye(SHAPE.models)[rows["model"]]
    design = np.hstack([rows["v"][:, :-1], dummies]) * root
    expected = np.linalg.lstsq(design, rows["v"][:, -1] * root[:, 0], rcond=None)[0]
    moments = within(SCORER.of([rows]))
    slopes = np.linalg.solve(moments[:-1, :-1], moments[:-1, -1])
    np.testing.assert_allclose(slopes, expected[: SHAPE.features - 1], rtol=1e-11)


def test_within_model_moments_survive_an_offset_of_a_million() -> None:
    """Rewards near 1e6 with variance 1e-3: relative error of the within-model variance < 1e-6."""
    generator = np.random.default_rng(3)
    rows = SCORER.rows(generator, 20_000)
    offset = 1e6
    rows["v"] = offset + generator.normal(0.0, np.sqrt(1e-3), size=rows["v"].shape)
    moments = SCORER.of(
        {name: column[i : i + 256] for name, column in rows.items()} for i in range(0, 20_000, 256)
    )
    # Subtracting the offset from numbers near it is exact.
    v = demeaned(rows | {"v": rows["v"] - offset})
    expected = (rows["weight"][:, None] * v).T @ v
    scale = np.sqrt(np.outer(np.diag(expected), np.diag(expected)))
    assert (np.abs(within(moments) - expected) / scale).max() < 1e-6


def test_a_column_constant_within_models_leaves_only_rounding() -> None:
    """Such as a price: its within-model variance is not exactly 0, and may be negative.

    What is left is rounding of the whole spread, 1e-12 of it at most; readers must take it for 0.
    """
    rows = SCORER.rows(np.random.default_rng(6), 20_000)
    rows["v"][:, 0] = 0.3 + 0.1 * rows["model"]
    size = len(rows["group"])
    moments = SCORER.of(
        {name: column[i : i + 256] for name, column in rows.items()} for i in range(0, size, 256)
    )
    whole = moments.scatter.sum(axis=0)
    scale = np.sqrt(np.diag(whole) * whole[0, 0])
    assert (np.abs(within(moments)[0]) <= 1e-12 * scale).all()


def test_the_groups_centre_is_the_mean_of_its_models_means() -> None:
    moments = SCORER.of([SCORER.rows(np.random.default_rng(4), 300)])
    mean = np.einsum("gk,gki->gi", moments.weight, moments.mean)
    mean /= moments.weight.sum(axis=1)[:, None]
    np.testing.assert_allclose(moments.centre, mean, rtol=1e-13)


def test_a_part_is_a_view_of_its_groups() -> None:
    moments = SCORER.of([SCORER.rows(np.random.default_rng(5), 100)])
    part = moments.part(slice(1, 3))
    for name, array in arrays_of(part).items():
        assert np.shares_memory(array, arrays_of(moments)[name])
        np.testing.assert_array_equal(array, arrays_of(moments)[name][1:3])
    assert_same_bits(moments.part(slice(None)), moments)
