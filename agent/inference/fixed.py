"""Fixed-n intervals and tests: comparisons, never certified.

They hold at one sample size that was chosen before the data. Looked at again and again they miss
far more often than they say, which tests/statistical/coverage_study.py shows.
"""

from __future__ import annotations

import numpy as np
from scipy import special

from equipoise.store.batches import Floats

LABEL = "fixed-n comparison: holds at one sample size chosen in advance, not under peeking"


def z_half_width(rows: Floats, squares: Floats, alpha: float) -> Floats:
    """(...) one-sided half-width z_(1 - alpha) sigma / sqrt(t) of a mean of t rows.

    rows: (...) t; squares: (...) centred sum of squares; NaN where t < 2. For the two-sided
    interval at level a, use alpha = a / 2.
    """
    rows, squares = np.broadcast_arrays(np.asarray(rows, float), np.asarray(squares, float))
    enough = rows > 1
    usable = np.where(enough, rows, 2.0)
    width = special.ndtri(1.0 - alpha) * np.sqrt(squares / (usable - 1.0) / usable)
    return np.where(enough, width, np.nan)


def t_half_width(counts: Floats, squares: Floats, alpha: float) -> Floats:
    """(..., K, K) one-sided half-width of Welch's t interval for mean(a) - mean(b), unweighted.

    counts, squares: (..., K) number of rewards of each model and their centred sum of squares.
    NaN where either model has fewer than two rewards; 0 where neither varies, as the usual test
    has it.
    """
    enough = counts > 1
    usable = np.where(enough, counts, 2.0)
    share = np.where(enough, squares / (usable - 1.0) / usable, np.nan)
    spread = share[..., :, None] + share[..., None, :]
    freedom = share**2 / (usable - 1.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        degrees = spread**2 / (freedom[..., :, None] + freedom[..., None, :])
        quantile = special.stdtrit(np.where(degrees > 0, degrees, 1.0), 1.0 - alpha)
    return np.where(spread > 0, quantile * np.sqrt(spread), spread)
