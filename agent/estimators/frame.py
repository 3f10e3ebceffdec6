"""One origin and one unit for every group, so that any set of groups is a plain sum.

Moments come centred per group. A frame moves them all to one common origin and to standardized
features, as second-moment matrices of u = [1, z, r]: z the features less their origin over their
spread, r the reward less its origin. Every subset of groups (folds, delete-one-group, all of
them) is then a sum of (p + 1, p + 1) blocks. The origin lies inside the data, so nothing cancels
that the rewards' own spread does not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from equipoise.agent.moments.scorer import ScorerMoments
from equipoise.agent.moments.state import Moments
from equipoise.store.batches import Floats

CONSTANT = 1e-12
"""A feature whose spread is below this share of its mean varies by rounding alone."""


@dataclass(frozen=True, slots=True)
class Frame:
    """origin: (p,) of v = (phi without intercept, reward), in their own units.

    unit: (p - 1,) one over the spread of each feature; 0 where it never varies, which makes its
    standardized value and hence its coefficient 0.
    """

    origin: Floats
    unit: Floats

    def products(self, source: ScorerMoments) -> Floats:
        """(G, p + 1, p + 1) sums of w u u^T per group."""
        weight = source.weight.sum(axis=1)
        unit = np.append(self.unit, 1.0)
        offset = (source.centre - self.origin) * unit
        blocks = np.empty((len(weight), len(unit) + 1, len(unit) + 1))
        blocks[:, 0, 0] = weight
        blocks[:, 0, 1:] = blocks[:, 1:, 0] = weight[:, None] * offset
        blocks[:, 1:, 1:] = source.scatter * (unit[:, None] * unit)
        blocks[:, 1:, 1:] += weight[:, None, None] * offset[:, :, None] * offset[:, None, :]
        return blocks

    def standardize(self, phi: Floats) -> Floats:
        """(..., p - 1) features phi in standardized units."""
        return np.asarray((phi - self.origin[:-1]) * self.unit)

    def values(self, theta: Floats, phi: Floats) -> Floats:
        """Rewards predicted at phi (..., K, p - 1) by standardized theta (..., p): (..., K)."""
        slopes = np.matmul(self.standardize(phi), theta[..., 1:, None])[..., 0]
        return np.asarray(self.origin[-1] + theta[..., :1] + slopes)

    def original(self, theta: Floats) -> Floats:
        """Standardized coefficients (p + extra,) as coefficients of phi itself."""
        plain = self.jacobian(len(theta)) @ theta
        plain[0] += self.origin[-1]
        return np.asarray(plain)

    def jacobian(self, size: int) -> Floats:
        """(size, size) derivative of `original`; coefficients beyond the first p stay."""
        matrix = np.eye(size)
        features = np.arange(1, len(self.unit) + 1)
        matrix[features, features] = self.unit
        matrix[0, features] = -self.unit * self.origin[:-1]
        return matrix


def common_frame(moments: Moments, *sources: ScorerMoments) -> Frame | None:
    """The frame of the first source that has rows; None where none has.

    Spreads come from SIM pooled over models, the distribution the scorer is averaged over; from
    the source itself where there is no SIM.
    """
    for source in sources:
        weight = source.weight.sum(axis=1)
        if weight.sum() > 0:
            break
    else:
        return None
    origin = weight @ source.centre / weight.sum()
    simulation = moments.simulation
    features = len(origin) - 1
    cells = (simulation.count.size, features)
    spread, middle = _spread(
        simulation.count.ravel(),
        simulation.mean.reshape(cells),
        np.diagonal(simulation.scatter, axis1=-2, axis2=-1).reshape(cells),
    )
    if simulation.count.sum() == 0:
        own = np.diagonal(source.scatter, axis1=-2, axis2=-1)
        spread, middle = _spread(weight, source.centre[:, :-1], own[:, :-1])
    varies = spread > CONSTANT * np.abs(middle)
    unit = np.divide(1.0, spread, out=np.zeros(features), where=varies)
    return Frame(np.asarray(origin), unit)


def _spread(weight: Floats, mean: Floats, scatter: Floats) -> tuple[Floats, Floats]:
    """Pooled standard deviation and mean (p - 1,) of cells: weight (C,), the rest (C, p - 1)."""
    total = max(float(weight.sum()), 1e-300)
    middle = weight @ mean / total
    variance = (scatter.sum(axis=0) + weight @ (mean - middle) ** 2) / total
    return np.sqrt(variance), middle
