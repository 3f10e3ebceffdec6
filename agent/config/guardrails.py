"""Guardrail metrics: what else is measured besides the reward, and the limit each must keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

from equipoise.agent.config.parts import Part, id_faults
from equipoise.agent.features.problems import Problem, shown
from equipoise.agent.features.values import LARGEST

MOST_GUARDRAILS = 16


class GuardrailConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A metric that no model may take beyond its limit on average.

    name: what outcomes call it. low, high: its declared range, outside of which a value is
    refused; a latency is best sent as "was above its limit", 0 or 1. limit: the mean that is
    still allowed, strictly inside the range. direction: whether the mean must stay `at-most` or
    `at-least` the limit.

    A metric counts if it comes before the decision is closed by its reward or its expiry, or
    with the part that closes it.
    """

    name: str
    limit: float
    low: float = 0.0
    high: float = 1.0
    direction: Literal["at-most", "at-least"] = "at-most"

    def faults(self) -> Iterator[Problem]:
        yield from id_faults("name", self.name)
        for key, value in (("low", self.low), ("high", self.high)):
            if not abs(value) <= LARGEST:
                fix = "declare the range that the metric can have"
                yield Problem(key, shown(value), f"a number within ±{LARGEST:g}", fix)
        if self.high <= self.low:
            limit = f"a number above low, which is {shown(self.low)}"
            yield Problem("high", shown(self.high), limit, "swap or widen the range", ("low",))
        elif not self.low < self.limit < self.high:
            inside = f"a number between low and high, {shown(self.low)} and {shown(self.high)}"
            fix = "a limit at an end could never be crossed, or never be kept"
            yield Problem("limit", shown(self.limit), inside, fix, ("low", "high"))


def guardrail_faults(guardrails: Sequence[GuardrailConfig]) -> Iterator[Problem]:
    """What only all guardrails together show."""
    if len(guardrails) > MOST_GUARDRAILS:
        limit, fix = f"at most {MOST_GUARDRAILS} guardrails", "keep those that would stop you"
        yield Problem("guardrails", str(len(guardrails)), limit, fix)
    for name, times in Counter(item.name for item in guardrails).items():
        if times > 1:
            received = f"{shown(name)} {times} times"
            yield Problem("guardrails", received, "each name once", "rename or remove the others")
