"""One rate for every request."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.policies.kernels.base import rate_kernel
from equipoise.policies.snapshot import Floats


@rate_kernel
@dataclass(frozen=True, slots=True)
class ConstantRate:
    """e(x) = rate, in [0, 1]."""

    kind: ClassVar[str] = "constant-rate"

    rate: float
    _row: Floats = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= 1.0:
            raise ValueError(f"rate is {self.rate}, expected 0 to 1")
        row = np.array([self.rate], dtype=np.float64)
        row.flags.writeable = False
        object.__setattr__(self, "_row", row)

    def __reduce__(self) -> tuple[type[Self], tuple[float]]:
        # An unpickled array is writable: build the shared row anew instead.
        return type(self), (self.rate,)

    def rates(self, x: Floats) -> Floats:
        """(n,) the rate, n times."""
        rows = len(x)
        return self._row if rows == 1 else np.full(rows, self.rate)

    def clipped(self, low: float, high: float) -> ConstantRate:
        """The rate moved into [low, high]."""
        return ConstantRate(min(max(self.rate, low), high))

    def encode(self) -> dict[str, Any]:
        return {"kind": self.kind, "rate": self.rate}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        return cls(float(fields["rate"]))
