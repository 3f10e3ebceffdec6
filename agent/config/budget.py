"""The `[budget]` table: hard stops of randomizing, in all, per segment and per user."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import msgspec

from equipoise.agent.config.certification import SegmentConfig
from equipoise.agent.config.parts import SHARE, Part
from equipoise.agent.features.problems import Problem, shown, suggestion
from equipoise.agent.features.values import LARGEST


class SegmentBudget(SegmentConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the traffic (low <= column < high) with a cap of its own.

    max_requests: randomized requests in it, in all.
    """

    max_requests: int

    def faults(self) -> Iterator[Problem]:
        yield from super().faults()
        if not 1 <= self.max_requests < 2**63:
            fix = "leave the segment out for no cap"
            yield Problem(
                "max_requests", shown(self.max_requests), "a whole number, 1 or more", fix
            )


class PerUser(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """share: of a user's requests (unit_id) that are randomized, at most, counted from the first
    that is; the first may always be."""

    share: float

    def faults(self) -> Iterator[Problem]:
        if not 0 < self.share <= 1:
            yield Problem("share", shown(self.share), SHARE, "leave it out for no limit")


class BudgetConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard stops of what randomizing may cost in all; None for no limit.

    requests: randomized requests. money: USD for the answers to them, by the models' prices, or by
    the mean price of their replays where none is declared; rules weigh prices only under a budget
    in money. harm: expected reward lost to randomizing, by the estimates of the rule in force.
    horizon: seconds from the first decision in which to spend: the rate then follows from what is
    left, the time left and the traffic to expect; without one it is the policy's `rate`.
    planned: randomized requests that `equipoise plan` said to plan for until the decision. It stops
    nothing; the check `plan` raises an alarm once they are used up and nothing is decided.
    segments: parts of the traffic with caps of their own. per_user: a limit for every user.
    """

    requests: int | None = None
    money: float | None = None
    harm: float | None = None
    horizon: float | None = None
    planned: int | None = None
    segments: list[SegmentBudget] = msgspec.field(default_factory=list)
    per_user: PerUser | None = None

    def faults(self) -> Iterator[Problem]:
        for key, unit in (("money", "USD"), ("harm", "reward units"), ("horizon", "seconds")):
            value = getattr(self, key)
            if value is not None and not 0 < value <= LARGEST:
                yield Problem(
                    key, shown(value), f"{unit}, more than 0", "leave it out for no limit"
                )
        if self.horizon is not None and (self.requests, self.money, self.harm) == (None,) * 3:
            limit = "a horizon together with requests, money or harm to spend in it"
            yield Problem("horizon", shown(self.horizon), limit, "add an amount, or leave it out")
        if self.requests is not None and not 1 <= self.requests < 2**63:
            fix = "leave it out for no limit"
            yield Problem("requests", shown(self.requests), "a whole number of 1 or more", fix)
        if self.planned is not None and not 1 <= self.planned < 2**63:
            fix = "leave it out where nothing was planned"
            yield Problem("planned", shown(self.planned), "a whole number of 1 or more", fix)
        counts = Counter(segment.name for segment in self.segments)
        for name in (name for name, count in counts.items() if count > 1):
            yield Problem("segments", f"{shown(name)} twice", "each name once", "rename one")


def budget_faults(config: BudgetConfig, columns: Sequence[str], sticky: bool) -> Iterator[Problem]:
    """What a budget and the rest of an experiment ask of each other."""
    for index, segment in enumerate(config.segments):
        if segment.column not in columns:
            limit = f"a column of the context: {', '.join(columns) or 'there is none'}"
            fix, rests_on = suggestion(segment.column, list(columns)), ("features", "budget")
            where = f"budget.segments[{index}].column"
            yield Problem(where, shown(segment.column), limit, fix, rests_on)
    limited = [("per_user", config.per_user is not None), ("segments", bool(config.segments))]
    for name in (name for name, given in limited if given and sticky):
        limit = "no [units] beside it: a unit keeps its model for all its requests"
        yield Problem(f"budget.{name}", "a limit", limit, "leave one of them out", ("units",))
