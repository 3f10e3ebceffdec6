"""The parts of a configuration that say what is certified, and how."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal, TypeAlias

import msgspec

from equipoise.agent.config.parts import Part, id_faults
from equipoise.agent.features.problems import Problem, shown, suggestion

SequenceName: TypeAlias = Literal["bounded", "per-model", "asymptotic"]

ROUTING = "(today's routing)"
"""The name of what is deployed, among the candidates."""


class SegmentConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A declared part of the traffic that gets certified answers of its own.

    column: a column of the context features. The segment holds low <= value < high; a missing end
    is open. Half of delta is spent on the whole traffic, half on all segments together.
    """

    name: str
    column: str
    low: float | None = None
    high: float | None = None

    def faults(self) -> Iterator[Problem]:
        yield from id_faults("name", self.name)
        ends = [end for end in (self.low, self.high) if end is not None]
        if not ends:
            yield Problem("low", "no end", "low, high or both", "say where the segment lies")
        if len(ends) == 2 and not ends[0] < ends[1]:
            limit = f"a number above low, which is {shown(self.low)}"
            yield Problem("high", shown(self.high), limit, "swap them", ("low",))


class DeclaredPolicy(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A per-request policy whose value is certified beside that of every single model.

    Requests with column >= at_least would get `model`, the others `otherwise`.
    """

    name: str
    column: str
    at_least: float
    model: str
    otherwise: str

    def faults(self) -> Iterator[Problem]:
        yield from id_faults("name", self.name)


class CertifyConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How certified intervals are made (docs/guarantees.md).

    sequence: `bounded` needs no assumption; `per-model` assumes stationary traffic and
    probabilities that never depended on the request; `asymptotic` is used once every model has had
    enough of its rarer outcome. tuned_rows: certified requests at which the asymptotic one is
    tightest. limits: what a limit on a segment or a user that is reached does to certified answers:
    `name`, they go on about the requests that are still open to the experiment, and every sentence
    says so; `freeze`, no later row enters, and they stay about the whole traffic. lifetime: whether
    delta holds over all eras together rather than in each. segments: declared parts of the traffic.
    policies: declared per-request policies.
    """

    sequence: SequenceName = "bounded"
    tuned_rows: int = 10_000
    limits: Literal["name", "freeze"] = "name"
    lifetime: bool = False
    segments: list[SegmentConfig] = msgspec.field(default_factory=list)
    policies: list[DeclaredPolicy] = msgspec.field(default_factory=list)

    def faults(self) -> Iterator[Problem]:
        if self.tuned_rows < 1:
            fix = "set it to the number of requests you expect to need"
            yield Problem("tuned_rows", shown(self.tuned_rows), "1 or more", fix)
        for key, parts in (("segments", self.segments), ("policies", self.policies)):
            counts = Counter(part.name for part in parts)
            for name in (name for name, count in counts.items() if count > 1):
                yield Problem(key, f"{shown(name)} twice", "each name once", "rename one")


class UnitsConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sticky assignment: all requests of a unit (user, session) get what its first one drew.

    ttl: seconds after a unit's first request in which it is the same unit; its reward is the mean
    over these requests. A later request opens the unit anew.
    """

    ttl: float

    def faults(self) -> Iterator[Problem]:
        if not (self.ttl > 0 and math.isfinite(self.ttl)):
            fix = "set it to how long a user should keep a model"
            yield Problem("ttl", shown(self.ttl), "seconds, more than 0", fix)


def reference_faults(
    config: CertifyConfig, columns: Sequence[str], models: Sequence[str]
) -> Iterator[Problem]:
    """Columns and models that segments and policies name and that do not exist."""
    named = [(f"segments[{i}]", part.column) for i, part in enumerate(config.segments)]
    named += [(f"policies[{i}]", part.column) for i, part in enumerate(config.policies)]
    for where, column in named:
        if column not in columns:
            limit = f"a column of the context: {', '.join(columns) or 'there is none'}"
            fix, rests_on = suggestion(column, list(columns)), ("features", "certify")
            yield Problem(f"certify.{where}.column", shown(column), limit, fix, rests_on)
    for index, policy in enumerate(config.policies):
        for name in ("model", "otherwise"):
            value = getattr(policy, name)
            if value not in models:
                limit = f"one of {', '.join(models)}"
                where = f"certify.policies[{index}].{name}"
                fix = suggestion(value, list(models))
                yield Problem(where, shown(value), limit, fix, ("models", "certify"))
        if policy.name in models:
            fix = "rename the policy"
            where = f"certify.policies[{index}].name"
            yield Problem(where, shown(policy.name), "a name that no model has", fix, ("models",))
