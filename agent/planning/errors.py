"""What a planner refuses: impossible or contradictory goals, by field, value and limit."""

from __future__ import annotations


class PlanError(ValueError):
    """A plan that cannot be made. field, value, limit: what the sentence is made of."""

    def __init__(self, field: str, value: object, limit: str) -> None:
        shown = f"{value:g}" if isinstance(value, float) else f"{value}"
        super().__init__(f"{field} is {shown}, expected {limit}")
        self.field, self.value, self.limit = field, value, limit
