"""What a reward of each model, at a context, would take off an uncertainty."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.policies.kernels.base import assignment_kernel
from equipoise.policies.kernels.floor import mix_floor
from equipoise.policies.kernels.quadratic import QuadraticForms
from equipoise.policies.snapshot import Flags, Floats


@dataclass(frozen=True, slots=True, eq=False)
class Cuts:
    """K ratios of quadratic forms of the context: cut of model m = gain_m(x) / spread_m(x).

    forms: 2 K forms, the K gains first, then the K spreads. A gain below 0 is rounding and
    counts as 0; a spread must be positive, and a cut is 0 where it is not.
    """

    kind: ClassVar[str] = "cuts"

    forms: QuadraticForms

    def __post_init__(self) -> None:
        if len(self.forms) % 2:
            raise ValueError(f"cuts need an even number of forms, got {len(self.forms)}")

    @property
    def models(self) -> int:
        """K."""
        return len(self.forms) // 2

    def each(self, x: Floats, stable: bool = True) -> Floats:
        """(n, K) cut of every model at contexts x (n, d), each >= 0."""
        both = self.forms.at(x, stable)
        gain = np.maximum(both[:, : self.models], 0.0)
        spread = both[:, self.models :]
        positive = spread > 0.0
        if positive.all():
            return np.asarray(gain / spread, dtype=np.float64)
        return np.divide(gain, spread, out=np.zeros_like(gain), where=positive)

    def scores(self, x: Floats, stable: bool = True) -> Floats:
        """(n,) the best attainable cut."""
        return best_of(self.each(x, stable))

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types with the `kind`."""
        return {"kind": self.kind, "forms": self.forms.encode()}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The cuts that `encode` wrote, bit for bit."""
        return cls(QuadraticForms.decode(fields["forms"]))


def best_of(cuts: Floats) -> Floats:
    """(n,) the largest of each row of cuts (n, K)."""
    return np.asarray(np.maximum.reduce(cuts, axis=1), dtype=np.float64)


@assignment_kernel
@dataclass(frozen=True, slots=True, eq=False)
class CutShares:
    """pi(m | x) proportional to the cut of model m at x; uniform where nothing can be cut."""

    kind: ClassVar[str] = "cut-shares"

    cuts: Cuts

    @property
    def models(self) -> int:
        return self.cuts.models

    def probabilities(self, x: Floats, eligible: Flags | None, floor: float) -> Floats:
        """(n, K) shares of the cuts, mixed with the floor."""
        return mix_floor(self.cuts.each(x), eligible, floor)

    def encode(self) -> dict[str, Any]:
        return {"kind": self.kind, "cuts": self.cuts.encode()}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        return cls(Cuts.decode(fields["cuts"]))
