"""What a rule freezes for the certified sums of the rows it decides: everything predictable."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from equipoise.agent.inference.asymptotic import Opening
from equipoise.agent.inference.per_model import RewardCentres
from equipoise.agent.inference.score import Tuning
from equipoise.agent.inference.score_moments import ScoreCentres
from equipoise.store.batches import Floats


@dataclass(frozen=True, slots=True)
class Frozen:
    """Predictable quantities of one set of certified sums (the whole traffic, or a segment).

    tuning: how much of the raw prediction the score uses. centres, rewards: what scores and
    rewards are expected to be. opening: of the asymptotic sequence, None until it opens.
    seen: (K,) rewards of each model that this was frozen from, None for none.
    """

    tuning: Tuning
    centres: ScoreCentres
    rewards: RewardCentres
    opening: Opening | None = None
    seen: Floats | None = None

    @classmethod
    def neutral(cls, models: int, candidates: int, caps: int) -> Self:
        """Before anything is known."""
        return cls(
            Tuning.off(models),
            ScoreCentres.neutral(caps, candidates),
            RewardCentres.neutral(models),
        )

    def encode(self) -> dict[str, Any]:
        opening = self.opening
        return {
            "offset": self.tuning.offset.tolist(),
            "factor": self.tuning.factor.tolist(),
            "usual": None if self.tuning.usual is None else self.tuning.usual.tolist(),
            "score_low": self.centres.low.tolist(),
            "score_high": self.centres.high.tolist(),
            "reward_low": self.rewards.low.tolist(),
            "reward_high": self.rewards.high.tolist(),
            "seen": None if self.seen is None else self.seen.tolist(),
            "opening": None
            if opening is None
            else [_to_text(part) for part in (opening.low, opening.high, opening.contrast)],
        }

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        def array(name: str) -> Floats:
            return np.array(fields[name], dtype=np.float64)

        opening = fields["opening"]
        return cls(
            Tuning(
                array("offset"),
                array("factor"),
                None if fields["usual"] is None else array("usual"),
            ),
            ScoreCentres(array("score_low"), array("score_high")),
            RewardCentres(array("reward_low"), array("reward_high")),
            None if opening is None else Opening(*(_from_text(part) for part in opening)),
            None if fields["seen"] is None else array("seen"),
        )


def _to_text(array: Floats) -> Any:
    """Nested lists with null for infinity: rho is infinite where nothing has varied yet."""
    if array.ndim > 1:
        return [_to_text(row) for row in array]
    return [value if math.isfinite(value) else None for value in array.tolist()]


def _from_text(values: Any) -> Floats:
    array = np.array(values, dtype=np.float64)
    return np.where(np.isnan(array), np.inf, array)
