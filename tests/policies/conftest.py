"""Snapshots for the tests of policies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from equipoise.policies.snapshot import Limits, Snapshot


def _snapshot(models: int, **changes: Any) -> Snapshot:
    """A snapshot of `models` models of which nothing is known, with `changes` made to it."""
    fields: dict[str, Any] = {
        "models": tuple(f"model-{position}" for position in range(models)),
        "values": np.full(models, np.nan),
        "covariance": np.diag(np.full(models, np.inf)),
        "counts": np.zeros(models),
        "sample_means": np.full(models, np.nan),
        "sample_variances": np.full(models, np.nan),
        "costs": np.full(models, np.nan),
        "limits": Limits(rate=0.2, rate_min=0.02, rate_max=0.8, floor=0.05),
    }
    return Snapshot(**(fields | changes))


@pytest.fixture(scope="session")
def make_snapshot() -> Callable[..., Snapshot]:
    """`make_snapshot(models, **fields)`: nothing is known but what the fields say."""
    return _snapshot
