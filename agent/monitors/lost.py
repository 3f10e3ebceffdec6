"""Rows that were lost after the draw: is it chance, or does it depend on the model?

Among randomized rows that lost something (a reward, the assignment itself) the assigned model is
distributed as pi_t whenever losing does not depend on the model, given the request and the past.
That is the same martingale as the assignment audit's, on fewer rows. Nothing needs to be known of
the rate at which rows are lost; it may move, and depend on the request.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from equipoise.agent.monitors import shares
from equipoise.agent.monitors.check import Check, by_evidence, percent
from equipoise.agent.monitors.monitor import Monitor
from equipoise.store.batches import Flags, Floats, Ints

FEWEST_ROWS = 30


class LostRows(Monitor):
    """Counts lost rows per model and tests whether losing depends on the model.

    most: the share of lost rows beyond which the check asks to be looked at, whatever the models.
    """

    what: ClassVar[str]
    """What is lost, as the subject of a sentence in the plural."""
    verb: ClassVar[str]
    harm: ClassVar[str]
    """What a loss that depends on the model does."""

    def __init__(self, models: Sequence[str], level: float = 0.01, most: float = 0.2) -> None:
        super().__init__(models, level)
        self.most = most
        count = len(self.models)
        self.sums = shares.empty(count) | {"drawn": np.zeros(count), "lost": np.zeros(count)}

    def update(self, probabilities: Floats, model: Ints, lost: Flags) -> None:
        """n randomized rows that are closed, in decision order.

        probabilities: (n, K) pi, read only where `lost`; model: (n,) assigned; lost: (n,).
        """
        count = len(self.models)
        self.sums["drawn"] += np.bincount(model, minlength=count)
        at = np.flatnonzero(lost)
        self.sums["lost"] += np.bincount(model[at], minlength=count)
        hit = model[at, None] == np.arange(count)
        shares.add(self.sums, slice(0, count), probabilities[at], hit)

    def result(self) -> Check:
        drawn, lost = self.sums["drawn"], self.sums["lost"]
        rows = float(drawn.sum())
        by_model = np.full(len(drawn), np.nan)
        np.divide(lost, drawn, out=by_model, where=drawn > 0)
        evidence = shares.log_evidence(self.sums)
        overall = float(lost.sum()) / rows if rows else float("nan")
        log_evidence = shares.together(evidence)
        figures = {
            "rows": rows,
            "share": overall,
            "shares": by_model.tolist(),
            "log_evidence": log_evidence,
        }
        status = by_evidence(log_evidence, self.level)
        if status == "ok" and rows < FEWEST_ROWS:
            sentence = f"Too few randomized requests are closed to say whether {self.what}."
            return Check(self.name, "unknown", sentence, figures, self.level)
        facts = f"{percent(overall)} of {rows:,.0f} randomized requests {self.verb}"
        if status == "ok":
            if overall > self.most:
                sentence = f"{facts}, alike for all models, but more than {self.most:.0%}."
                return Check(self.name, "watch", sentence, figures, self.level)
            sentence = f"{facts}, alike for all models."
            return Check(self.name, status, sentence, figures, self.level)
        worst = int(np.argmax(evidence))
        others = np.arange(len(drawn)) != worst
        rest = float(lost[others].sum() / max(drawn[others].sum(), 1.0))
        sentence = (
            f"{facts}: {percent(by_model[worst])} of those for {self.models[worst]}, "
            f"{percent(rest)} of the others. "
            + (self.harm if status == "alarm" else "It may still be chance.")
        )
        return Check(self.name, status, sentence, figures, self.level, (worst,))
