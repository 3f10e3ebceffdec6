"""Rows of a batch by range, by mask and by position are the same rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from equipoise.store.batches import select, slice_rows, take

KINDS = ("decisions", "outcomes", "observations", "simulations", "expiries")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(4))
def test_a_range_a_mask_and_positions_agree(
    kind: str, seed: int, new_author: Any, rows_of: Any
) -> None:
    """Four seeds, so that optional columns are there and are not."""
    author = new_author(seed)
    author.decisions(9)
    given = {"mask": seed % 2 == 0} if kind == "decisions" else {}
    batch = getattr(author, kind)(9, **given)
    inside = (np.arange(9) >= 3) & (np.arange(9) < 7)
    expected = rows_of(0, slice_rows(batch, 3, 7))
    assert rows_of(0, select(batch, inside)) == expected
    assert rows_of(0, take(batch, np.arange(3, 7))) == expected
    backwards = [row[1:] for row in rows_of(0, take(batch, np.arange(6, 2, -1)))]
    assert backwards == [row[1:] for row in reversed(expected)]
    assert len(select(batch, np.zeros(9, dtype=bool))) == 0


def test_taken_rows_are_copies(author: Any) -> None:
    batch = author.outcomes(4)
    take(batch, np.arange(4)).outputs[:] = 7.0
    assert not (batch.outputs == 7.0).any()
