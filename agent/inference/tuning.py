"""How much of a prediction the score uses: least squares on past rows, off where it does not pay.

The variance of psi(m) depends on mu only through E[(1/p - 1) (E[R | x, do(m)] - mu)^2], so the best
mu = offset + factor * raw is the weighted least-squares fit of R on the raw prediction over the
rows that drew m, with weights W (W - 1) (the coefficient of PPI++, Angelopoulos, Duchi & Zrnic
2023, for a score with an intercept). A factor alone would not do: at 0 it leaves mu = 0, far worse
than a running mean; with the offset a useless prediction falls back to the running mean.
The fit at a refresh rests on rows that are closed by then and is used for later decisions only, so
mu stays predictable and no sequence loses its validity, however bad the fit.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.agent.inference.score import Rows, Tuning
from equipoise.agent.moments.additive import Additive
from equipoise.store.batches import Floats


@dataclass(slots=True)
class TuningMoments(Additive):
    """Sums over rows that drew each of K + 1 candidates, all (K + 1,), with v = W (W - 1).

    weight, weight_sq: sum v, sum v^2. With q the raw prediction and r the reward, both less 1/2:
    q, qq, r, qr, rr: sums of v q, v q^2, v r, v q r, v r^2. Rows without a reward are left out:
    they would only blur the fit, which needs no validity.
    """

    weight: Floats
    weight_sq: Floats
    q: Floats
    qq: Floats
    r: Floats
    qr: Floats
    rr: Floats

    @classmethod
    def empty(cls, models: int) -> Self:
        return cls(*(np.zeros(models + 1) for _ in range(7)))

    def update(self, rows: Rows) -> None:
        """Add n rows in place."""
        known = rows.drawn & (rows.low == rows.high)[:, None] & np.isfinite(rows.predicted)
        weight = np.where(known, (1.0 / rows.chance - 1.0) / rows.chance, 0.0)
        q = np.where(known, rows.predicted - 0.5, 0.0)
        r = rows.low[:, None] - 0.5
        self.weight += weight.sum(axis=0)
        self.weight_sq += (weight * weight).sum(axis=0)
        self.q += (weight * q).sum(axis=0)
        self.qq += (weight * q * q).sum(axis=0)
        self.r += (weight * r).sum(axis=0)
        self.qr += (weight * q * r).sum(axis=0)
        self.rr += (weight * r * r).sum(axis=0)

    def __add__(self, other: Self) -> Self:
        self.require_same_shape(other)
        pairs = zip(self.arrays().values(), other.arrays().values(), strict=True)
        return type(self)(*(mine + theirs for mine, theirs in pairs))

    def tuning(self) -> Tuning:
        """The fit for the next rule: factor in [0, 1], offset the rest of the running mean.

        The slope is shrunk by its own noise, max(0, 1 - 1 / t^2) with t its t-statistic, so that
        garbage is switched off and not merely made small; the mean is shrunk to 1/2 by one row.
        """
        seen = self.weight > 0
        weight = np.where(seen, self.weight, 1.0)
        effective = np.where(seen, weight**2 / np.where(seen, self.weight_sq, 1.0), 0.0)
        mean_q, mean_r = self.q / weight, self.r / weight
        spread = np.maximum(self.qq / weight - mean_q**2, 0.0)
        shared = self.qr / weight - mean_q * mean_r
        noise = np.maximum(self.rr / weight - mean_r**2, 0.0)
        usable = seen & (spread > 1e-12) & (effective > 3.0)
        spread = np.where(usable, spread, 1.0)
        slope = np.where(usable, shared / spread, 0.0)
        left = np.maximum(noise - slope * shared, 1e-12)
        t_squared = slope**2 * spread * np.maximum(effective - 2.0, 1.0) / left
        shrunk = slope * np.maximum(1.0 - 1.0 / np.maximum(t_squared, 1.0), 0.0)
        factor = np.clip(shrunk, 0.0, 1.0)
        mean = mean_r * effective / (effective + 1.0) + 0.5
        return Tuning(mean - factor * (mean_q + 0.5), factor)
