"""How noisy a reward at a context is expected to be, over all models."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.policies.kernels.quadratic import QuadraticForms
from equipoise.policies.snapshot import Floats


@dataclass(frozen=True, slots=True, eq=False)
class ResidualScale:
    """Square root of the mean over K models of a variance that is quadratic in the context.

    forms: K forms, the variances; one below 0 (a prediction outside the range) counts as 0.
    """

    kind: ClassVar[str] = "residual-scale"

    forms: QuadraticForms

    def scores(self, x: Floats, stable: bool = True) -> Floats:
        """(n,) root mean variance at contexts x (n, d)."""
        variances = np.maximum(self.forms.at(x, stable), 0.0)
        return np.asarray(np.sqrt(np.add.reduce(variances, axis=1) / len(self.forms)))

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types with the `kind`."""
        return {"kind": self.kind, "forms": self.forms.encode()}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The scale that `encode` wrote, bit for bit."""
        return cls(QuadraticForms.decode(fields["forms"]))
