"""The medians of all models and sources at once are those of each alone, by numpy."""

from __future__ import annotations

import numpy as np
import pytest

from equipoise.agent.estimators.outliers import _median, _squares


@pytest.mark.parametrize("seed", range(6))
def test_squares_and_typical_sizes(seed):
    rng = np.random.default_rng(seed)
    count = rng.integers(0, 3, (20, 4)).astype(float)
    count[:, 3] = 0.0
    mean, variance = rng.normal(size=(20, 4, 5)), rng.random((20, 4, 5))
    variance[:, :, 1] = mean[:, :, 1] = 0.0  # never varies
    variance[rng.random(variance.shape) < 0.1] = np.inf
    if seed % 2:
        mean[3, 1, 2] = np.nan
        count[3, 1] = 1.0
    with np.errstate(all="ignore"):
        square, typical = _squares(count, mean, variance)
        for model in range(4):
            present = count[:, model] > 0
            rows = mean[present, model]
            centre = np.median(rows, axis=0) if len(rows) else np.zeros(5)
            np.testing.assert_array_equal(_median(mean[:, model], present), centre)
            own = variance[:, model] + (mean[:, model] - centre) ** 2
            np.testing.assert_array_equal(square[:, model], own)
            for feature in range(5):
                values = own[present, feature]
                values = values[np.isfinite(values) & (values > 0)]
                wanted = np.median(values) if len(values) else np.nan
                np.testing.assert_array_equal(typical[model, feature], wanted)
