"""Missingness: do rewards that never come depend on the model?"""

from __future__ import annotations

from equipoise.agent.monitors.lost import LostRows


class Missingness(LostRows):
    """Rewards that never came, per model. lost: delivered, and expired without a reward."""

    name = "missingness"
    what = "rewards go missing more often for some models"
    verb = "never got a reward"
    harm = (
        "Averages over the rewards that came are biased; certified intervals hold if missing "
        "rewards count as the worst case."
    )
