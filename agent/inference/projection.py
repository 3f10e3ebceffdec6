"""The point nearest to an estimate that contradicts nothing that is certified.

Certified ends say low <= V <= high and V(a) - V(b) >= c(a, b) for all pairs. Where the truth lies
inside, projecting an estimate onto these bounds in the norm of its own variances never takes it
farther from the truth in that norm; where an estimate has no claim of its own to break them (a
family that rests on a scorer, an average over other eras), it may not be shown outside.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from equipoise.store.batches import Floats

_EXACT = 1e-12
"""Largest violation that counts as none, in units of the widest interval."""
_CONTRADICTION = 1e-9
"""Residual below which no point keeps all bounds."""


def nearest(
    values: Floats, variances: Floats, lower: Floats, upper: Floats, contrasts: Floats
) -> Floats:
    """(A,) values moved inside the certified bounds, the surer ones less; NaN where unknown.

    values, variances: (A,) of an estimate; lower, upper: (A,) certified ends; contrasts: (A, A)
    lower ends of V(a) - V(b). Values that already lie inside are returned as they are. Where the
    bounds contradict each other, every value still lies within its own ends.
    """
    finite = np.flatnonzero(np.isfinite(values))
    result = values.copy()
    if not len(finite):
        return result
    low, high = lower[finite], np.maximum(upper[finite], lower[finite])
    ahead = contrasts[np.ix_(finite, finite)].copy()
    np.fill_diagonal(ahead, -np.inf)
    result[finite] = np.clip(
        _inside(values[finite], variances[finite], low, high, ahead), low, high
    )
    return result


def within_range(numbers: ArrayLike, low: float, high: float) -> Floats:
    """Values, and ends of their intervals, as they are shown: the nearest in the known range.

    The truth lies in the range, so a value is never farther from it for that, and an interval holds
    it as before. For showing only: differences, averages over runs and errors are of the numbers
    themselves, which a projection would bias. NaN stays NaN.
    """
    result: Floats = np.clip(np.asarray(numbers, dtype=np.float64), low, high)
    return result


def _inside(values: Floats, variances: Floats, low: Floats, high: Floats, ahead: Floats) -> Floats:
    """Least-distance programming: min |z| with bounds @ z >= least, z in standard deviations, by
    non-negative least squares (Lawson & Hanson 1974, chapter 23)."""
    deviation = np.sqrt(_shares(variances))
    count = len(values)
    one = np.eye(count)
    a, b = np.nonzero(np.isfinite(ahead))
    bounds = np.vstack([one, -one, one[a] - one[b]])
    least = np.concatenate([low, -high, ahead[a, b]]) - bounds @ values
    if (least <= _EXACT * float(np.max(high - low, initial=0.0))).all():
        return values
    scaled = bounds * deviation
    # Rows of unit length and a gap of about 1 keep the programme well conditioned.
    length = np.linalg.norm(scaled, axis=1)
    scaled, least = scaled / length[:, None], least / length
    gap = float(least.max())
    target = np.zeros(count + 1)
    target[count] = 1.0
    matrix = np.vstack([scaled.T, least / gap])
    dual, distance = load_solver()(matrix, target)
    residual = matrix @ dual - target
    if distance < _CONTRADICTION:
        return values
    moved: Floats = values - deviation * gap * residual[:count] / residual[count]
    return moved


def load_solver() -> Callable[[Floats, Floats], tuple[Floats, float]]:
    """Non-negative least squares. Imported late: most estimates lie inside, and it takes a third of
    a second."""
    from scipy.optimize import nnls

    solver: Callable[[Floats, Floats], tuple[Floats, float]] = nnls
    return solver


def _shares(variances: Floats) -> Floats:
    """(A,) how far each value gives way: by its variance, within six orders of the largest."""
    finite = np.isfinite(variances) & (variances > 0.0)
    largest = float(np.max(variances[finite], initial=0.0)) or 1.0
    return np.clip(np.where(finite, variances, largest), 1e-6 * largest, largest)
