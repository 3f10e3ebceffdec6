"""The gates, each against its definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from equipoise.policies.registry import policy
from equipoise.policies.snapshot import Limits, Snapshot


@pytest.mark.parametrize(
    ("name", "certified", "expected"),
    [
        ("fixed-rate", False, 0.2),
        ("fixed-rate", True, 0.2),
        ("uncertainty", False, 0.2),
        ("uncertainty", True, 0.02),
    ],
)
def test_rates(
    make_snapshot: Callable[..., Snapshot], name: str, certified: bool, expected: float
) -> None:
    allocation = policy(f"{name}+uniform").freeze(make_snapshot(3, certified=certified))
    assert allocation.allocate(np.zeros((1, 2)))[0].tolist() == [expected]


def test_no_rate_in_observe_mode(make_snapshot: Callable[..., Snapshot]) -> None:
    limits = Limits(rate=0.0, rate_min=0.0, rate_max=0.0, floor=0.1)
    for name in ("fixed-rate", "uncertainty"):
        allocation = policy(f"{name}+uniform").freeze(make_snapshot(3, limits=limits))
        assert allocation.allocate(np.zeros((1, 2)))[0].tolist() == [0.0]
