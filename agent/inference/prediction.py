"""The raw prediction of a reward that the score's regression starts from, frozen with a rule.

A request whose context was replayed is predicted from its own SIM row of each model, any other by
the regression of SIM outputs on the context. Garbage here costs nothing but width: `tuning` fits
the raw prediction to rewards and switches it off where it does not pay.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from equipoise.store.batches import Flags, Floats


@dataclass(frozen=True, slots=True)
class Prediction:
    """A linear scorer of rewards scaled to [0, 1].

    theta: (p,) coefficients of phi = [1, x, y, ...]; effects: (K,) added per model;
    direct: (K, 1 + d) the same for a context without SIM rows, as coefficients of [1, x].
    rows: rewards that the scorer was fitted on.
    """

    theta: Floats
    effects: Floats
    direct: Floats
    rows: float = 0.0

    @classmethod
    def of(
        cls,
        theta: Floats,
        models: int,
        model_effects: bool,
        maps: Floats,
        low: float,
        high: float,
        rows: float = 0.0,
    ) -> Self:
        """From a fitted scorer in reward units.

        theta: (p,) or, with `model_effects`, (p + K,); maps: (K, p, 1 + d) the regressions that
        predict phi from [1, x]; low, high: declared range of the reward.
        """
        width = maps.shape[1]
        scale = high - low
        scorer = theta[:width] / scale
        scorer[0] -= low / scale
        effects = theta[width:] / scale if model_effects else np.zeros(models)
        direct = np.einsum("p,kpd->kd", scorer, maps)
        direct[:, 0] += effects
        return cls(scorer, effects, direct, rows)

    @property
    def usable(self) -> bool:
        return bool(np.isfinite(self.theta).all() and np.isfinite(self.effects).all())

    def raw(self, x: Floats, phi: Floats | None, known: Flags | None) -> Floats:
        """(n, K) predictions, NaN where a model cannot be predicted.

        x: (n, d); phi: (n, K, p - 1) SIM rows and known: (n, K) which of them exist, or None.
        """
        result: Floats = self.direct[:, 0] + x @ self.direct[:, 1:].T
        if phi is not None and known is not None:
            from_row = phi @ self.theta[1:] + (self.theta[0] + self.effects)
            result = np.where(known, from_row, result)
        return result

    def encode(self) -> dict[str, Any]:
        return {
            "theta": self.theta.tolist(),
            "effects": self.effects.tolist(),
            "direct": _with_null(self.direct),
            "rows": self.rows,
        }

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        direct = np.array(fields["direct"], dtype=np.float64)
        return cls(
            np.array(fields["theta"]), np.array(fields["effects"]), direct, float(fields["rows"])
        )


def _with_null(array: Floats) -> list[list[float | None]]:
    return [[None if np.isnan(value) else value for value in row] for row in array.tolist()]
