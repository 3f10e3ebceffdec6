"""The same assignment shares at every context."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.policies.kernels.base import assignment_kernel
from equipoise.policies.kernels.floor import mix_floor
from equipoise.policies.snapshot import Flags, Floats


@assignment_kernel
@dataclass(frozen=True, slots=True, eq=False)
class ConstantShares:
    """pi(. | x) proportional to shares (K,), non-negative, with a finite sum, in any unit."""

    kind: ClassVar[str] = "constant-shares"

    shares: Floats
    _mixed: tuple[float, Floats] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        shares = np.array(self.shares, dtype=np.float64)
        if shares.ndim != 1 or not len(shares):
            raise ValueError(f"shares have shape {shares.shape}, expected (K,) with K >= 1")
        with np.errstate(over="ignore", invalid="ignore"):
            total = shares.sum()
        if not (np.isfinite(total) and (shares >= 0.0).all()):
            raise ValueError(
                f"shares are {shares.tolist()}, expected numbers >= 0 with a finite sum"
            )
        shares.flags.writeable = False
        object.__setattr__(self, "shares", shares)
        self._keep_mixed(0.0)

    def __reduce__(self) -> tuple[type[Self], tuple[Floats]]:
        # An unpickled array is writable: build the shared ones anew instead.
        return type(self), (self.shares,)

    @property
    def models(self) -> int:
        return len(self.shares)

    def probabilities(self, x: Floats, eligible: Flags | None, floor: float) -> Floats:
        """(n, K) the mixed shares, n times."""
        rows = len(x)
        if eligible is not None:
            return mix_floor(self.shares, eligible, floor)
        kept, row = self._mixed
        if kept != floor:
            row = self._keep_mixed(floor)
        return row if rows == 1 else row.repeat(rows, axis=0)

    def encode(self) -> dict[str, Any]:
        return {"kind": self.kind, "shares": self.shares.tolist()}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        return cls(np.array(fields["shares"], dtype=np.float64))

    def _keep_mixed(self, floor: float) -> Floats:
        """(1, K) the shares mixed with this floor, kept: a rule has one floor for life."""
        row = mix_floor(self.shares[None, :], None, floor)
        row.flags.writeable = False
        # One assignment of a pair, so that a reader in another thread sees both or neither.
        object.__setattr__(self, "_mixed", (floor, row))
        return row
