"""Missingness: do rewards that never come depend on the model?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from equipoise.agent.monitors.check import Check, percent
from equipoise.agent.monitors.lost import FEWEST_ROWS, LostRows


class Missingness(LostRows):
    """Rewards that never came, per model. lost: delivered, and expired without a reward.

    declared: what such a reward counts as, in reward units, None for the worst case. Where a value
    is declared nothing is lost: a model that gets fewer rewards is worth what they add up to, and
    that its share differs is what the experiment is about.
    """

    name = "missingness"
    what = "rewards go missing more often for some models"
    verb = "never got a reward"
    harm = (
        "Averages over the rewards that came are biased; certified intervals hold if missing "
        "rewards count as the worst case."
    )

    _cure = (
        "As the worst case counts for each, no difference below that share can be certified:"
        " declare what a missing reward is worth (reward.missing)."
    )

    def __init__(
        self,
        models: Sequence[str],
        level: float = 0.01,
        most: float = 0.2,
        *,
        declared: float | None = None,
    ) -> None:
        super().__init__(models, level, most)
        self._declared = declared

    def result(self) -> Check:
        check = super().result()
        rows = float(self.sums["drawn"].sum())
        if self._declared is None or rows < FEWEST_ROWS:
            if check.status == "watch" and not check.models:
                return replace(check, sentence=f"{check.sentence} {self._cure}")
            return check
        sentence = (
            f"{percent(check.figures['share'])} of {rows:,.0f} randomized requests {self.verb} "
            f"and count as {self._declared:g}, as declared."
        )
        return Check(self.name, "ok", sentence, check.figures, self.level)
