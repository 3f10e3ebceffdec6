"""The asymptotic confidence sequence: valid at all times for large t, not by itself certified.

Waudby-Smith, Arbour, Sinha, Kennedy & Ramdas 2024, Lyapunov form, from t rows with centred sum of
squares V = t sigma^2:
    two-sided: sqrt(2 (V rho^2 + 1) / (t^2 rho^2) log(sqrt(V rho^2 + 1) / alpha)),
the normal mixture of Robbins; one-sided: the half-normal mixture, the root z of
    z^2 / 2 + log Phi(z) = log(sqrt(V rho^2 + 1) / (2 alpha)),  width z sqrt(V + 1 / rho^2) / t.
rho is frozen when the sequence opens; the sequence is tightest where V is the V it was tuned for.
In units of 1 / sigma rho is a function of the level and that sample size alone, so the width is
the same at every reward scale. Rare outcomes not seen yet leave sigma far too small:
`certificate` states when this sequence may be the certified one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from scipy import special

from equipoise.agent.inference.score import ScoreMoments
from equipoise.store.batches import Floats

_NEWTON_STEPS = 6


def tuned_rho(variance: Floats, alpha: float) -> Floats:
    """(...) rho that makes the two-sided width smallest where V is `variance` (all > 0).

    The minimum has V rho^2 = x with x = 2 log(1/alpha) + log(1 + x); this takes one step of that
    iteration, from x = 2 log(1/alpha), and is within 0.1% of the smallest width for alpha up to
    0.2. For a one-sided sequence at level alpha pass 2 alpha. Zero variances give inf, with which
    there is no bound.
    """
    evidence = 2.0 * np.log(1.0 / alpha)
    with np.errstate(divide="ignore"):
        result: Floats = np.sqrt((evidence + np.log1p(evidence)) / np.asarray(variance, float))
    return result


def one_sided_half_width(
    rows: float, squares: Floats, rho: Floats, alpha: Floats | float
) -> Floats:
    """(...) half-width of one end alone at level alpha; squares is V. inf where t = 0 or rho is not
    positive and finite."""
    squares, rho = np.broadcast_arrays(np.asarray(squares, float), np.asarray(rho, float))
    usable = (rho > 0) & np.isfinite(rho) & np.isfinite(squares) & (rows > 0)
    spread = np.where(usable, squares + 1.0 / np.where(usable, rho, 1.0) ** 2, 1.0)
    if not usable.any():
        return np.full(usable.shape, np.inf)
    root = np.sqrt(spread) * np.where(usable, rho, 1.0)
    needed = np.log(root / (2.0 * alpha))
    # The left side is convex and increasing; Newton from the right, where log Phi is replaced by
    # log(1/2), stays to the right: stopping early gives a wider, still valid end.
    z = np.sqrt(2.0 * np.maximum(needed + np.log(2.0), 0.0))
    for _ in range(_NEWTON_STEPS):
        tail = special.log_ndtr(z)
        slope = z + np.exp(-0.5 * z * z - tail) / np.sqrt(2.0 * np.pi)
        z = z - (0.5 * z * z + tail - needed) / slope
    return np.where(usable, z * np.sqrt(spread) / max(rows, 1.0), np.inf)


@dataclass(frozen=True, slots=True)
class Opening:
    """What is frozen when the sequence opens: rho of each end.

    low, high: (A,) for the lower and upper ends of values; contrast: (A, A) for lower ends of
    V(a) - V(b).
    """

    low: Floats
    high: Floats
    contrast: Floats

    @classmethod
    def tuned(cls, moments: ScoreMoments, rows: float, alpha: float) -> Self:
        """Tightest at `rows` rows and one-sided level alpha, if the spread stays as it is now."""
        seen = max(float(moments.rows[0]), 1.0)
        scale, level = rows / seen, min(2.0 * alpha, 0.5)
        full = len(moments.low) - 1
        return cls(
            tuned_rho(scale * moments.low_squares[full], level),
            tuned_rho(scale * moments.high_squares[full], level),
            tuned_rho(scale * moments.contrast_squares()[full], level),
        )


def value_bounds(moments: ScoreMoments, opening: Opening, alpha: float) -> tuple[Floats, Floats]:
    """(A,) lower and upper ends on the [0, 1] scale, each at one-sided level alpha.

    Read off the score with the last cap, which should be infinite. [0, 1] where t = 0.
    """
    rows = float(moments.rows[0])
    if rows == 0:
        return np.zeros(moments.low.shape[1]), np.ones(moments.low.shape[1])
    mean_low, mean_high = moments.means()
    low = mean_low[-1] - one_sided_half_width(rows, moments.low_squares[-1], opening.low, alpha)
    high = mean_high[-1] + one_sided_half_width(rows, moments.high_squares[-1], opening.high, alpha)
    return np.clip(low, 0.0, 1.0), np.clip(high, 0.0, 1.0)


def contrast_bounds(moments: ScoreMoments, opening: Opening, alpha: Floats | float) -> Floats:
    """(A, A) lower ends of V(a) - V(b) on the [0, 1] scale, each at one-sided level alpha.

    -1 where t = 0.
    """
    rows = float(moments.rows[0])
    squares = moments.contrast_squares()[-1]
    width = one_sided_half_width(rows, squares, opening.contrast, alpha)
    total = moments.low[-1][:, None] - moments.high[-1][None, :]
    lower = total / max(rows, 1.0) - width
    np.fill_diagonal(lower, 0.0)
    result: Floats = np.clip(lower, -1.0, 1.0)
    return result
