"""Routing moments by hand."""

from __future__ import annotations

import numpy as np

from equipoise.agent.moments.arms import RoutingMoments
from tests.agent.moments.table import arrays_of


def test_by_hand() -> None:
    """Group 2: weights 1, 3 at rewards 2, 6, then weight 4 at reward 9. Group 0: one row."""
    moments = RoutingMoments.empty(3)
    moments.update(np.array([2, 0, 2]), np.array([1.0, 2.0, 3.0]), np.array([2.0, 7.0, 6.0]))
    moments.update(np.array([2]), np.array([4.0]), np.array([9.0]))
    expected = {
        "count": [1.0, 0.0, 3.0],
        "weight": [2.0, 0.0, 8.0],
        "mean": [7.0, 0.0, 7.0],
        "scatter": [0.0, 0.0, 44.0],
    }
    for name, array in arrays_of(moments).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)
