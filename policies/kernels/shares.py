"""Assignment kernels: constant shares, shares of cuts, of posterior draws; the floor under all.

pi = (1 - k * floor) * share + floor over the k eligible models. Raising small shares to the floor
and renormalising would push others below it; mixing cannot, and it keeps pi a smooth function of
the shares.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Protocol, Self, TypeVar

import numpy as np

from equipoise.policies.kernels.context_forms import Cuts
from equipoise.policies.snapshot import Flags, Floats


class AssignmentKernel(Protocol):
    """pi(. | x): the probabilities with which a randomized request goes to each of K models."""

    kind: ClassVar[str]

    @property
    def models(self) -> int:
        """K."""
        ...

    def probabilities(self, x: Floats, eligible: Flags | None, floor: float) -> Floats:
        """(n, K) probabilities for contexts x (n, d), mixed with the floor.

        eligible: (n, K), or None where every model is. Rows sum to 1 over the eligible models; a
        row without one is all 0. The result may be shared: do not write it. ValueError where
        floor * K > 1.
        """
        ...

    def encode(self) -> dict[str, Any]:
        """A dict of JSON types with the `kind` and everything `decode` needs."""
        ...

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        """The kernel that `encode` wrote, bit for bit."""
        ...


AssignmentClass = TypeVar("AssignmentClass", bound=type[AssignmentKernel])
ASSIGNMENT_KERNELS: dict[str, type[AssignmentKernel]] = {}


def assignment_kernel(cls: AssignmentClass) -> AssignmentClass:
    """Register a class of assignment kernels under its `kind`."""
    if cls.kind in ASSIGNMENT_KERNELS:
        raise ValueError(f"assignment kernel {cls.kind!r} is registered twice")
    ASSIGNMENT_KERNELS[cls.kind] = cls
    return cls


def decode_assignment_kernel(fields: Mapping[str, Any]) -> AssignmentKernel:
    """The assignment kernel that wrote `fields`. ValueError where its kind is not known."""
    kind = fields.get("kind")
    if kind not in ASSIGNMENT_KERNELS:
        kinds = sorted(ASSIGNMENT_KERNELS)
        raise ValueError(f"assignment kernel kind {kind!r} is not one of {kinds}")
    return ASSIGNMENT_KERNELS[kind].decode(fields)


_ROUNDING = 1e-12  # lets floor = 1 / K pass where K * (1 / K) rounds above 1


def check_floor(floor: float, models: int) -> None:
    """ValueError unless 0 <= floor <= 1 / models."""
    if not 0.0 <= floor * models <= 1.0 + _ROUNDING:
        raise ValueError(f"floor is {floor}, expected 0 to 1/{models} with {models} models")


def mix_floor(shares: Floats, eligible: Flags | None, floor: float) -> Floats:
    """(n, K) probabilities: the shares over the eligible models, mixed with the floor.

    shares: (n, K), or (K,) for every row of eligible alike; non-negative, in any unit; a row
    without mass on its eligible models counts as uniform over them. eligible: (n, K), or None
    where every model is; a row without an eligible model comes back all 0. ValueError where
    floor * K > 1.
    """
    models = shares.shape[-1]
    check_floor(floor, models)
    if eligible is None:
        count: Floats | float = float(models)
        raw = shares
    else:
        count = np.add.reduce(eligible, axis=1, dtype=np.float64, keepdims=True)
        raw = np.where(eligible, shares, 0.0)
    # A row that is contiguous is summed in one order, whatever the rows around it.
    raw = np.ascontiguousarray(raw)
    total = np.add.reduce(raw, axis=1, keepdims=True)
    if not total.all():
        bare = total == 0.0
        raw = np.where(bare, 1.0 if eligible is None else eligible.astype(np.float64), raw)
        # 1 for rows with no eligible model at all: 0 / 1 keeps them 0.
        total = np.where(bare, np.maximum(count, 1.0), total)
    # Divided first: a share of the total is at most 1, whatever the unit.
    left = 1.0 - count * floor
    mixed = raw / total * (max(left, 0.0) if eligible is None else np.maximum(left, 0.0))
    return np.asarray(mixed + (floor if eligible is None else floor * eligible), dtype=np.float64)


def mix_one(shares: list[float], eligible: Flags | None, floor: float) -> list[float]:
    """As `mix_floor` of one row of K shares, the same bits on plain numbers; for a floor that was
    checked. eligible: (1, K), or None where every model is."""
    on = [True] * len(shares) if eligible is None else eligible[0].tolist()
    raw = [share if able else 0.0 for share, able in zip(shares, on, strict=True)]
    count = float(sum(on))
    # Not `sum`: of eight numbers and more NumPy adds several at once, in an order of its own.
    total = float(np.add.reduce(np.array(raw)))
    if total == 0.0:
        raw, total = [float(able) for able in on], max(count, 1.0)
    left = max(1.0 - count * floor, 0.0)
    return [share / total * left + floor * able for share, able in zip(raw, on, strict=True)]


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


_BLOCK = 32  # rows scored at once, so that the scores of a block stay in the cache


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


@assignment_kernel
@dataclass(frozen=True, slots=True, eq=False)
class BestDrawShares:
    """pi(m | x) = share of draws s in which m has the largest [1, x] @ coefficients[s, m].

    coefficients: (S, K, 1 + d), finite, larger is better. Only eligible models compete. A draw
    that several models win counts for each of them, so that copies of a model are treated alike.
    """

    kind: ClassVar[str] = "best-draw-shares"

    coefficients: Floats
    _columns: Floats = field(init=False, repr=False)

    def __post_init__(self) -> None:
        coefficients = np.asarray(self.coefficients, dtype=np.float64)
        if coefficients.ndim != 3 or not coefficients.size:
            raise ValueError(
                f"coefficients have shape {coefficients.shape}, expected (S, K, 1 + d)"
            )
        if not np.isfinite(coefficients).all():
            raise ValueError("coefficients hold a number that is not finite")
        draws, models, features = coefficients.shape
        # One long row per feature: the scores are then 1 + d sweeps over K * S numbers.
        columns = coefficients.transpose(2, 1, 0).reshape(features, models * draws).copy()
        columns.flags.writeable = False
        object.__setattr__(self, "_columns", columns)
        view = columns.reshape(features, models, draws).transpose(2, 1, 0)
        object.__setattr__(self, "coefficients", view)

    def __reduce__(self) -> tuple[type[Self], tuple[Floats]]:
        return type(self), (self.coefficients,)

    @property
    def models(self) -> int:
        return int(self.coefficients.shape[1])

    def probabilities(self, x: Floats, eligible: Flags | None, floor: float) -> Floats:
        """(n, K) shares of the draws, mixed with the floor."""
        rows = len(x)
        if rows <= _BLOCK:
            return mix_floor(self._wins(x, eligible), eligible, floor)
        wins = np.empty((rows, self.models))
        for start in range(0, rows, _BLOCK):
            block = slice(start, start + _BLOCK)
            wins[block] = self._wins(x[block], None if eligible is None else eligible[block])
        return mix_floor(wins, eligible, floor)

    def encode(self) -> dict[str, Any]:
        raw = np.ascontiguousarray(self.coefficients, dtype="<f8").tobytes()
        return {
            "kind": self.kind,
            "shape": list(self.coefficients.shape),
            "float64": b64encode(raw).decode("ascii"),
        }

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        flat = np.frombuffer(b64decode(fields["float64"], validate=True), dtype="<f8")
        return cls(flat.reshape(fields["shape"]))

    def scores(self, x: Floats) -> Floats:
        """(n, K, S) [1, x] @ coefficients: what each draw says each model is worth."""
        draws, models, features = self.coefficients.shape
        z = np.empty((len(x), features))
        z[:, 0] = 1.0
        z[:, 1:] = x
        # einsum adds the features in order for every row, however many rows there are. A BLAS
        # product is up to twice as fast, but its order of summation depends on the shape.
        flat = np.einsum("nd,dj->nj", z, self._columns)
        return np.asarray(flat.reshape(len(x), models, draws), dtype=np.float64)

    def _wins(self, x: Floats, eligible: Flags | None) -> Floats:
        """(n, K) number of draws won."""
        scores = self.scores(x)
        if eligible is not None:
            scores[~eligible] = -np.inf
        won = scores == np.maximum.reduce(scores, axis=1, keepdims=True)
        return np.asarray(np.add.reduce(won, axis=2, dtype=np.float64))
