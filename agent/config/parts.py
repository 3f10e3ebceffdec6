"""The parts of a configuration: models, reward, policy, budget, limits, guardrails."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from typing import Literal, TypeAlias, get_args

import msgspec

from equipoise.agent.features.values import LARGEST, Problem, shown, suggestion
from equipoise.store.records import ID_RULE, LONGEST_ID, Id

_ID = re.compile(str(get_args(Id)[1].pattern))
_LONGEST = 200
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+\-]*")
_NAME_LIMIT = f"letters, digits and . _ : / @ + -, a letter or digit first, at most {_LONGEST}"
SHARE = "a number above 0, at most 1"


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts: immutable, keyword-only, unknown keys refused."""

    def faults(self) -> Iterator[Problem]:
        """Everything wrong with values whose types are right."""
        yield from ()


class ModelConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that requests may be sent to.

    name: what the router calls it. price: USD per request, None where unknown. version: a new
    version of a model is a new treatment, and starts an era. retired: no request is randomized onto
    it any more; it stays in the list, since the log counts models by position. max_requests:
    randomized requests it may get in all; once it is full, an era without it begins.
    """

    name: str
    price: float | None = None
    version: str = ""
    retired: bool = False
    max_requests: int | None = None

    def faults(self) -> Iterator[Problem]:
        yield from id_faults("name", self.name)
        if self.price is not None and not 0 <= self.price <= LARGEST:
            fix = "leave it out where it is unknown"
            yield Problem("price", shown(self.price), "USD per request, 0 or more", fix)
        if self.max_requests is not None and not 1 <= self.max_requests < 2**63:
            fix = "leave it out for no cap"
            limit = "a whole number of 1 or more"
            yield Problem("max_requests", shown(self.max_requests), limit, fix)
        if len(self.version) > _LONGEST or not self.version.isprintable():
            limit = f"at most {_LONGEST} printable characters"
            yield Problem("version", shown(self.version), limit)


class RewardConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes back for a request.

    low, high: the declared range; a reward outside it is refused, and certified intervals rest on
    it. maximise: whether larger is better. missing: what a certified interval takes for a reward
    that never comes: a declared value, or the worst case for either end. window: seconds after
    which a reward counts as missing; None waits for ever.
    """

    low: float = 0.0
    high: float = 1.0
    maximise: bool = True
    missing: Literal["worst-case"] | float = "worst-case"
    window: float | None = None

    @property
    def missing_value(self) -> float | None:
        """The declared value of a missing reward, None for the worst case."""
        return None if isinstance(self.missing, str) else self.missing

    def faults(self) -> Iterator[Problem]:
        for key, value in (("low", self.low), ("high", self.high)):
            if not abs(value) <= LARGEST:
                fix = "declare the range that rewards can have"
                yield Problem(key, shown(value), f"a number within ±{LARGEST:g}", fix)
        if self.high <= self.low:
            limit = f"a number above low, which is {shown(self.low)}"
            yield Problem("high", shown(self.high), limit, "swap or widen the range", ("low",))
        missing = self.missing_value
        if missing is not None and not self.low <= missing <= self.high:
            limit = f"'worst-case' or a number from {shown(self.low)} to {shown(self.high)}"
            fix = "take a reward that could occur"
            yield Problem("missing", shown(missing), limit, fix, ("low", "high"))
        if self.window is not None and not (self.window > 0 and math.isfinite(self.window)):
            fix = "leave it out to wait for ever"
            yield Problem("window", shown(self.window), "seconds, more than 0", fix)


class PolicyConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests are randomized and onto which model, and how sure a decision must be.

    gate, assignment, estimator: registered names. rate: target share of requests to randomize.
    rate_min, rate_max: bounds of the probability of randomizing a request; rate_min is the smaller
    of `rate` and 0.01 unless declared. floor: smallest assignment probability of an eligible
    model, 0.1 / K unless declared. The largest weight a reward can get is 1 / (rate_min * floor).
    delta: allowed probability of a wrong decision. epsilon: smallest difference that matters, in
    reward units. exclude: unit ids (users) that are never randomized.
    """

    gate: str = "fixed-rate"
    assignment: str = "top-two"
    rate: float = 0.1
    rate_min: float | None = None
    rate_max: float = 1.0
    floor: float | None = None
    estimator: str = "hierarchical"
    delta: float = 0.05
    epsilon: float = 0.0
    exclude: list[str] = []

    def faults(self) -> Iterator[Problem]:
        yield from registry_faults(self.gate, self.assignment, self.estimator)
        if not 0 < self.rate <= 1:
            fix = "set it to the share of requests to randomize"
            yield Problem("rate", shown(self.rate), SHARE, fix)
        if self.rate_min is not None and not 0 < self.rate_min <= self.rate:
            limit = f"a number above 0, at most rate, which is {shown(self.rate)}"
            yield Problem("rate_min", shown(self.rate_min), limit, "lower it", ("rate",))
        if not self.rate <= self.rate_max <= 1:
            limit = f"a number from rate, which is {shown(self.rate)}, to 1"
            fix = "raise it or lower rate" if self.rate_max < self.rate else "lower it"
            yield Problem("rate_max", shown(self.rate_max), limit, fix, ("rate",))
        if self.floor is not None and not 0 < self.floor <= 1:
            fix = "leave it out for 0.1 / number of models"
            yield Problem("floor", shown(self.floor), SHARE, fix)
        if not 0 < self.delta <= 0.5:
            fix = "0.05 allows one wrong decision in twenty"
            yield Problem("delta", shown(self.delta), "a number above 0, at most 0.5", fix)
        for name in self.exclude:
            if not _ID.fullmatch(name) or len(name) > LONGEST_ID:
                yield Problem("exclude", shown(name), ID_RULE)
        if not 0 <= self.epsilon <= LARGEST:
            fix = "set it to the smallest difference in reward that matters"
            yield Problem("epsilon", shown(self.epsilon), "a number of 0 or more", fix)


def id_faults(key: str, name: str) -> Iterator[Problem]:
    """A problem unless the name can be one that we declare: it becomes a key in tables, metrics
    and options, so it is narrower than the ids that come from outside."""
    if not _NAME.fullmatch(name) or len(name) > _LONGEST:
        yield Problem(key, shown(name), _NAME_LIMIT)


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


def check_faults(checks: Mapping[str, str]) -> Iterator[Problem]:
    """A problem for each check that does not exist, and each action that does not.

    checks: name of a check -> action, as `monitors.action_table` takes them.
    """
    if not checks:
        return
    from equipoise.agent.monitors.check import DEFAULT_ACTIONS, Action

    for name, action in checks.items():
        if name not in DEFAULT_ACTIONS:
            limit = f"one of {', '.join(DEFAULT_ACTIONS)}"
            yield Problem("checks", shown(name), limit, suggestion(name, DEFAULT_ACTIONS))
        elif action not in list(Action):
            limit = f"one of {', '.join(Action)}"
            yield Problem(f"checks.{name}", shown(action), limit, suggestion(action, Action))


def registry_faults(gate: str, assignment: str, estimator: str) -> Iterator[Problem]:
    """A problem for each name that no registry has, with the names it does have."""
    from equipoise.agent.estimators import FAMILIES
    from equipoise.policies.registry import ASSIGNMENTS, GATES

    # Importing these packages fills the registries.
    import_module("equipoise.policies.gates")
    import_module("equipoise.policies.assignments")

    yield from _unknown("gate", gate, GATES)
    yield from _unknown("assignment", assignment, ASSIGNMENTS)
    yield from _unknown("estimator", estimator, FAMILIES)


def _unknown(key: str, name: str, known: Iterable[str]) -> Iterator[Problem]:
    names = list(known)
    if name not in names:
        limit = f"one of {', '.join(names)}"
        yield Problem(key, shown(name), limit, suggestion(name, names))
