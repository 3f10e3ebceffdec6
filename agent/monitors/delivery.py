"""Delivery: do assignments that were not carried out depend on the model?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from equipoise.agent.monitors.check import Check
from equipoise.agent.monitors.lost import LostRows
from equipoise.store.batches import Flags, Floats, Ints


class Delivery(LostRows):
    """Assignments that were not served as drawn, per model. lost: never delivered, or answered by
    another model than the assigned one.

    Figures, each (K,) by assigned model: decided, the draws that are closed; delivered, those whose
    user got an answer; exposed, those whose user got the answer of the assigned model.
    """

    name = "delivery"
    what = "assignments are carried out less often for some models"
    verb = "were not served as drawn"
    harm = (
        "Requests that still count for this model are no longer a random part of the traffic, "
        "so its value is biased; certified intervals are about being sent to it."
    )

    def __init__(self, models: Sequence[str], level: float = 0.01, most: float = 0.2) -> None:
        super().__init__(models, level, most)
        self.sums |= {"other": np.zeros(len(self.models))}

    def update(
        self, probabilities: Floats, model: Ints, lost: Flags, other: Flags | None = None
    ) -> None:
        """As `LostRows.update`. other: (n,) which of the lost rows another model answered."""
        super().update(probabilities, model, lost)
        if other is not None:
            self.sums["other"] += np.bincount(model[other], minlength=len(self.models))

    def result(self) -> Check:
        check = super().result()
        exposed, other = self.sums["drawn"] - self.sums["lost"], self.sums["other"]
        figures = {
            "decided": self.sums["drawn"].tolist(),
            "delivered": (exposed + other).tolist(),
            "exposed": exposed.tolist(),
        }
        told = f" Another model answered {other.sum():,.0f} of them." if other.any() else ""
        sentence = check.sentence + told if check.status != "unknown" else check.sentence
        return replace(check, sentence=sentence, figures={**check.figures, **figures})
