"""Delivery: do assignments that never reached the user depend on the model?"""

from __future__ import annotations

from equipoise.agent.monitors.lost import LostRows


class Delivery(LostRows):
    """Assignments that the client never delivered, per model. lost: not delivered."""

    name = "delivery"
    what = "assignments are delivered less often for some models"
    verb = "were never delivered"
    harm = (
        "Requests that still count for this model are no longer a random part of the traffic, "
        "so its value is biased."
    )
