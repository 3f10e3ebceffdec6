"""Functions of a context that kernels share: quadratic forms, residual scale, cuts."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.policies.snapshot import Floats, Ints


@dataclass(frozen=True, slots=True, eq=False)
class QuadraticForms:
    """F functions of a context x: z^T form z with z = [1, x - centre].

    centre: (d,), where the forms are taken around, so that contexts far from 0 keep their digits.
    forms: (F, 1 + d, 1 + d) symmetric, finite. A context must have the d features of `centre`.
    """

    centre: Floats
    forms: Floats
    _left: Ints = field(init=False, repr=False)
    _right: Ints = field(init=False, repr=False)
    _columns: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        centre = np.array(self.centre, dtype=np.float64)
        forms = np.array(self.forms, dtype=np.float64)
        size = 1 + len(centre)
        if forms.ndim != 3 or forms.shape[1:] != (size, size) or not len(forms):
            raise ValueError(f"forms have shape {forms.shape}, expected (F, {size}, {size})")
        if not (np.isfinite(forms).all() and np.isfinite(centre).all()):
            raise ValueError("forms or centre hold a number that is not finite")
        left, right = np.triu_indices(size)
        # z_i z_j stands for both halves of a symmetric form.
        columns = (forms[:, left, right] + np.where(left < right, forms[:, right, left], 0.0)).T
        for name, array in (("centre", centre), ("forms", forms)):
            array.flags.writeable = False
            object.__setattr__(self, name, array)
        object.__setattr__(self, "_left", left)
        object.__setattr__(self, "_right", right)
        object.__setattr__(self, "_columns", np.ascontiguousarray(columns))

    def __reduce__(self) -> tuple[type[Self], tuple[Floats, Floats]]:
        return type(self), (self.centre, self.forms)

    def __len__(self) -> int:
        return len(self.forms)

    def at(self, x: Floats, stable: bool = True) -> Floats:
        """(n, F) values at contexts x (n, d), the same bits alone and in any batch.

        stable: False where only an average counts; the last bits then depend on the batch.
        """
        z = np.empty((len(x), 1 + len(self.centre)))
        z[:, 0] = 1.0
        np.subtract(x, self.centre, out=z[:, 1:])
        products = z.take(self._left, axis=1)
        products *= z.take(self._right, axis=1)
        if not stable:
            return np.asarray(products @ self._columns, dtype=np.float64)
        # einsum adds in order for every row; a BLAS product's order depends on the batch.
        return np.asarray(np.einsum("nj,jf->nf", products, self._columns), dtype=np.float64)

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types; `decode` restores the forms bit for bit."""
        raw = np.ascontiguousarray(self.forms, dtype="<f8").tobytes()
        return {
            "centre": self.centre.tolist(),
            "shape": list(self.forms.shape),
            "float64": b64encode(raw).decode("ascii"),
        }

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The forms that `encode` wrote."""
        flat = np.frombuffer(b64decode(fields["float64"], validate=True), dtype="<f8")
        centre = np.array(fields["centre"], dtype=np.float64)
        return cls(centre, flat.reshape(fields["shape"]))


@dataclass(frozen=True, slots=True, eq=False)
class _OfForms:
    """What is computed from quadratic forms alone, and encoded by them and its `kind`."""

    kind: ClassVar[str]

    forms: QuadraticForms

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types with the `kind`."""
        return {"kind": self.kind, "forms": self.forms.encode()}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The object that `encode` wrote, bit for bit."""
        return cls(QuadraticForms.decode(fields["forms"]))


@dataclass(frozen=True, slots=True, eq=False)
class ResidualScale(_OfForms):
    """Square root of the mean over K models of a variance that is quadratic in the context.

    forms: K forms, the variances; one below 0 (a prediction outside the range) counts as 0.
    """

    kind: ClassVar[str] = "residual-scale"

    def scores(self, x: Floats, stable: bool = True) -> Floats:
        """(n,) root mean variance at contexts x (n, d)."""
        variances = np.maximum(self.forms.at(x, stable), 0.0)
        return np.asarray(np.sqrt(np.add.reduce(variances, axis=1) / len(self.forms)))


@dataclass(frozen=True, slots=True, eq=False)
class Cuts(_OfForms):
    """K ratios of quadratic forms of the context: cut of model m = gain_m(x) / spread_m(x).

    forms: 2 K forms, the K gains first, then the K spreads. A gain below 0 is rounding and
    counts as 0; a spread must be positive, and a cut is 0 where it is not.
    """

    kind: ClassVar[str] = "cuts"

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

    def of_one(self, x: Floats) -> list[float]:
        """As `each` of one context x (1, d), on plain numbers: K cuts."""
        both = self.forms.at(x)[0].tolist()
        return [
            (0.0 if gain <= 0.0 else gain) / spread if spread > 0.0 else 0.0
            for gain, spread in zip(both[: self.models], both[self.models :], strict=True)
        ]

    def scores(self, x: Floats, stable: bool = True) -> Floats:
        """(n,) the best attainable cut."""
        return best_of(self.each(x, stable))


def best_of(cuts: Floats) -> Floats:
    """(n,) the largest of each row of cuts (n, K)."""
    return np.asarray(np.maximum.reduce(cuts, axis=1), dtype=np.float64)
