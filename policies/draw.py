"""The one place where chance enters: from a uniform number to the model that is served.

One uniform u serves both choices. u < e randomizes; given that, v = u / e is again uniform on
[0, 1) and picks the model along the cumulated probabilities. So [0, 1) is cut into one interval
of length e * pi(m) per model and [e, 1) for the routed model, and anyone who has the logged u, e
and pi can draw again.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right

import numpy as np

from equipoise.policies.snapshot import Flags, Floats, Ints


def draw(uniform: Floats, rate: Floats, probabilities: Floats, routed: Ints) -> tuple[Ints, Flags]:
    """The model to serve (n,) and whether it came from the draw (n,).

    uniform: (n,) in [0, 1). rate: (n,) e, in [0, 1]. probabilities: (n, K) pi, rows summing to 1
    or all 0. routed: (n,) the model production chose, served where the row is not randomized.
    A row with e = 0 or pi all 0 is never randomized; a model with pi = 0 is never drawn.
    """
    model, randomized = np.array(routed, dtype=np.int64), uniform < rate
    rows = np.flatnonzero(randomized)
    if not len(rows):
        return model, randomized
    # A cumulated sum runs in order: row-stable, and flat exactly where a probability is 0.
    cumulated = np.add.accumulate(probabilities[rows], axis=1)
    total = cumulated[:, -1:]
    v = uniform[rows] / rate[rows]
    # Rounding may leave the total a little under v: the search then ends where the sum last grew.
    passed = (cumulated <= v[:, None]) & (cumulated < total)
    drawn = np.add.reduce(passed, axis=1, dtype=np.int64)
    if not total.all():
        some = total[:, 0] > 0.0
        randomized[rows] = some
        rows, drawn = rows[some], drawn[some]
    model[rows] = drawn
    return model, randomized


def draw_one(uniform: float, rate: float, cumulated: list[float], routed: int) -> tuple[int, bool]:
    """As `draw` of one request on plain numbers, the same bits: the model to serve, and whether it
    came from the draw. cumulated: K sums of the probabilities, in order."""
    total = cumulated[-1]
    if not (uniform < rate and total > 0.0):
        return routed, False
    # How many sums are passed, and how many may be: both are counted from the first on.
    return min(bisect_right(cumulated, uniform / rate), bisect_left(cumulated, total)), True


def propensity(rate: Floats, probabilities: Floats, model: Ints, routed: Ints) -> Floats:
    """(n,) probability with which `draw` serves `model`: e * pi(model) + (1 - e) * 1{routed}.

    Shapes as in `draw`; model: (n,). It is over the whole draw, randomized or not.
    """
    rows = np.arange(len(model))
    effective = np.where(probabilities.any(axis=1), rate, 0.0)
    return np.asarray(
        effective * probabilities[rows, model] + (1.0 - effective) * (model == routed),
        dtype=np.float64,
    )
