"""Assignment by the share of posterior draws in which a model is the best at this context."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

import numpy as np

from equipoise.policies.kernels.base import assignment_kernel
from equipoise.policies.kernels.floor import mix_floor
from equipoise.policies.snapshot import Flags, Floats

_BLOCK = 32  # rows scored at once, so that the scores of a block stay in the cache


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
        given = np.asarray(self.coefficients, dtype=np.float64)
        if given.ndim != 3 or not given.size:
            raise ValueError(f"coefficients have shape {given.shape}, expected (S, K, 1 + d)")
        if not np.isfinite(given).all():
            raise ValueError("coefficients hold a number that is not finite")
        draws, models, features = given.shape
        # One long row per feature: the scores are then 1 + d sweeps over K * S numbers.
        columns = given.transpose(2, 1, 0).reshape(features, models * draws).copy()
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
