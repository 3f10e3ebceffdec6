"""The parts of a configuration: models, reward, policy, budget, limits, guardrails.

What one key accepts stands in its type. What keys ask of each other is a `faults` of their struct,
or a function below it where the other key stands in another part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from functools import partial
from importlib import import_module
from typing import Annotated, Literal, TypeAlias, get_args

import msgspec

from equipoise.agent.features.declarations import HUGE, bound, finite, twice, unknown, unordered
from equipoise.agent.features.values import LARGEST, Problem, shown
from equipoise.store.records import ID_RULE, LONGEST_ID, Id

_LONGEST = 200

Name: TypeAlias = Annotated[
    str,
    bound(
        f"letters, digits and . _ : / @ + -, a letter or digit first, at most {_LONGEST}",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._:/@+\-]*$(?!\n)",
        max_length=_LONGEST,
    ),
]
"""A name that we declare: it becomes a key in tables, metrics and options, so it is narrower than
the ids that come from outside."""
UnitId: TypeAlias = Annotated[
    str, bound(ID_RULE, pattern=get_args(Id)[1].pattern, max_length=LONGEST_ID)
]

probability = partial(bound, gt=0.0, le=1.0)
count = partial(bound, "a whole number of 1 or more", ge=1, le=2**63 - 1)
seconds = partial(bound, "seconds, more than 0", gt=0.0, le=HUGE)
amount = partial(bound, fix="leave it out for no limit", gt=0.0, le=LARGEST)
end_of_range = partial(bound, ge=-LARGEST, le=LARGEST)


class Part(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of the parts: immutable, keyword-only, unknown keys refused."""


_PRICE = bound("USD per request, 0 or more", "leave it out where it is unknown", ge=0.0, le=LARGEST)


class ModelConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A model that requests may be sent to.

    name: what the router calls it. price: USD per request; unknown where it is left out. version: a
    new version of a model is a new treatment, and starts an era. retired: no request is randomized
    onto it any more; it stays in the list, since the log counts models by position. max_requests:
    randomized requests it may get in all; once it is full, an era without it begins.
    """

    name: Name
    price: Annotated[float, _PRICE] | None = None
    version: Annotated[
        str,
        bound(f"at most {_LONGEST} printable characters", printable=True, max_length=_LONGEST),
    ] = ""
    retired: bool = False
    max_requests: Annotated[int, count(fix="leave it out for no cap")] | None = None


class Meaning(StrEnum):
    """What it means that a reward never comes (docs/missing.md)."""

    VALUE = "value"
    WORST_CASE = "worst-case"
    RATED = "rated"
    ASKED = "asked"

    @property
    def of_raters(self) -> bool:
        """Whether answers are about the requests that are rated, and no others."""
        return self in (Meaning.RATED, Meaning.ASKED)

    @property
    def about(self) -> str:
        """Which requests answers are about, "" for all."""
        return "among those who rate" if self.of_raters else ""


NET_RANGE = (-1.0, 1.0)
"""Lowest and highest reward of `missing = "net"`."""


def with_net_range(reward: object) -> object:
    """A table of `reward` as it was given, with the range of `net` where it declares none.

    The type's own default cannot depend on another key: only here is it known what was left out.
    """
    if not isinstance(reward, dict) or reward.get("missing") != "net":
        return reward
    if "low" in reward or "high" in reward:
        return reward
    return {**reward, "low": NET_RANGE[0], "high": NET_RANGE[1]}


class RewardConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What comes back for a request.

    low, high: the declared range; a reward outside it is refused, and certified intervals rest on
    it. maximise: whether larger is better. missing: what it means that a reward never comes: a
    declared value that it counts as; `worst-case`, the lowest reward for a lower end and the
    highest for an upper one; `rated`, the answer is about the requests that are rated; `asked`, the
    same, but of the requests whose users the agent had asked, drawn with probability `ask`; `net`,
    rewards are -1, 0 or 1 (thumbs), none counts as 0, and the range is -1 to 1. rated_share: share
    of the requests that you expect to be rated, for forecasts and checks. ask: share of the
    requests whose users are asked, with `asked`. window: seconds after which a reward counts as
    missing; without one it is waited for without end.
    """

    low: Annotated[float, end_of_range(fix="declare the range that rewards can have")] = 0.0
    high: Annotated[float, end_of_range(fix="declare the range that rewards can have")] = 1.0
    maximise: bool = True
    missing: Literal["worst-case", "rated", "asked", "net"] | float = "worst-case"
    rated_share: Annotated[float, probability(fix="set it to the share that is rated")] | None = (
        None
    )
    ask: Annotated[float, probability(fix="set it to the share of users to ask")] | None = None
    window: Annotated[float, seconds(fix="leave it out to wait for ever")] | None = None

    @property
    def meaning(self) -> Meaning:
        """What a reward that never comes means."""
        if not isinstance(self.missing, str) or self.missing == "net":
            return Meaning.VALUE
        return Meaning(self.missing)

    @property
    def missing_value(self) -> float | None:
        """The declared value of a missing reward, None where none is declared."""
        if self.missing == "net":
            return 0.0
        return None if isinstance(self.missing, str) else self.missing

    @property
    def kept_missing(self) -> float | str | None:
        """As a rule keeps it: the declared value, the name of a meaning of those who rate, None for
        the worst case."""
        return self.meaning.value if self.meaning.of_raters else self.missing_value

    def faults(self) -> Iterator[Problem]:
        yield from unordered(self.low, self.high, "swap or widen the range")
        missing = self.missing_value
        if missing is not None and not self.low <= missing <= self.high:
            limit = f"a meaning or a number from {shown(self.low)} to {shown(self.high)}"
            fix = "take a reward that could occur"
            yield Problem("missing", shown(missing), limit, fix, ("low", "high"))
        elif self.missing == "net" and (self.low, self.high) != NET_RANGE:
            limit = "-1 to 1 where missing = 'net' (-1 for a thumb down, 1 for a thumb up)"
            fix = "leave out low and high, or declare low = -1 and high = 1"
            given = f"{shown(self.low)} to {shown(self.high)}"
            yield Problem("low", given, limit, fix, ("high", "missing"))
        if (self.ask is not None) != (self.missing == "asked"):
            limit = "set together with missing = 'asked', and only with it"
            fix = (
                "leave it out, or set missing = 'asked'"
                if self.ask is not None
                else "set it to the share of users to ask, such as ask = 0.25"
            )
            yield Problem("ask", shown(self.ask), limit, fix, ("missing",))


_EPSILON = bound(
    "a number of 0 or more",
    "set it to the smallest difference in reward that matters",
    ge=0.0,
    le=LARGEST,
)


class PolicyConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which requests are randomized and onto which model, and how sure a decision must be.

    gate: decides which requests are randomized. assignment: decides onto which model. estimator:
    the family of estimates that rules and answers use. rate: target share of requests to randomize.
    rate_min, rate_max: bounds of the probability of randomizing a request; rate_min is the smaller
    of `rate` and 0.01 unless declared. floor: smallest assignment probability of an eligible
    model, 0.1 / K unless declared. The largest weight a reward can get is 1 / (rate_min * floor).
    delta: allowed probability of a wrong decision. epsilon: smallest difference that matters, in
    reward units. exclude: unit ids (users) that are never randomized.
    """

    gate: str = "fixed-rate"
    assignment: str = "top-two"
    rate: Annotated[float, probability(fix="set it to the share of requests to randomize")] = 0.1
    rate_min: float | None = None
    rate_max: float = 1.0
    floor: Annotated[float, probability(fix="leave it out for 0.1 / number of models")] | None = (
        None
    )
    estimator: str = "hierarchical"
    delta: Annotated[
        float, bound(fix="0.05 allows one wrong decision in twenty", gt=0.0, le=0.5)
    ] = 0.05
    epsilon: Annotated[float, _EPSILON] = 0.0
    exclude: list[UnitId] = []

    def faults(self) -> Iterator[Problem]:
        yield from registry_faults(self.gate, self.assignment, self.estimator)
        if self.rate_min is not None and not 0 < self.rate_min <= self.rate:
            limit = f"a number above 0, at most rate, which is {shown(self.rate)}"
            yield Problem("rate_min", shown(self.rate_min), limit, "lower it", ("rate",))
        if not self.rate <= self.rate_max <= 1:
            limit = f"a number from rate, which is {shown(self.rate)}, to 1"
            fix = "raise it or lower rate" if self.rate_max < self.rate else "lower it"
            yield Problem("rate_max", shown(self.rate_max), limit, fix, ("rate",))


SequenceName: TypeAlias = Literal["bounded", "per-model", "asymptotic"]

ROUTING = "(today's routing)"
"""The name of what is deployed, among the candidates."""
KEEP = "keep"
"""What answers say instead of a model to serve where today's routing is to be left as it is."""


class SegmentConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A declared part of the traffic that gets certified answers of its own.

    name: what answers call it. column: a column of the context features. low: the smallest value in
    the segment, open where it is left out. high: the value at which the segment ends, not in it,
    open where it is left out.

    Half of delta is spent on the whole traffic, half on all segments together.
    """

    name: Name
    column: str
    low: float | None = None
    high: float | None = None

    def faults(self) -> Iterator[Problem]:
        if self.low is None and self.high is None:
            yield Problem("low", "no end", "low, high or both", "say where the segment lies")
        low = -math.inf if self.low is None else self.low
        high = math.inf if self.high is None else self.high
        yield from unordered(low, high, "swap them")


class DeclaredPolicy(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A per-request policy whose value is certified beside that of every single model.

    name: what answers call it. column: a column of the context features. at_least: the value of the
    column from which on a request would get `model`. model: what those requests would get.
    otherwise: what all others would get.
    """

    name: Name
    column: str
    at_least: Annotated[float, finite()]
    model: str
    otherwise: str


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
    tuned_rows: Annotated[
        int,
        bound("1 or more", "set it to the number of requests you expect to need", ge=1),
    ] = 10_000
    limits: Literal["name", "freeze"] = "name"
    lifetime: bool = False
    segments: list[SegmentConfig] = msgspec.field(default_factory=list)
    policies: list[DeclaredPolicy] = msgspec.field(default_factory=list)

    def faults(self) -> Iterator[Problem]:
        yield from twice("segments", (segment.name for segment in self.segments))
        yield from twice("policies", (policy.name for policy in self.policies))


class UnitsConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sticky assignment: all requests of a unit (user, session) get what its first one drew.

    ttl: seconds after a unit's first request in which it is the same unit; its reward is the mean
    over these requests. A later request opens the unit anew.
    """

    ttl: Annotated[float, seconds(fix="set it to how long a user should keep a model")]


def rating_faults(reward: RewardConfig, certify: CertifyConfig, units: bool) -> Iterator[Problem]:
    """Sequences that say nothing of those who rate. units: whether units are sticky."""
    if not reward.meaning.of_raters:
        return
    limit = (
        f"one that can certify the mean among those who rate (reward.missing = {reward.missing!r})"
    )
    fix = "take 'bounded', or another meaning of missing rewards"
    if certify.sequence == "asymptotic":
        yield Problem("certify.sequence", shown(certify.sequence), limit, fix, ("reward.missing",))
    elif certify.sequence == "per-model" and units:
        limit += " of sticky units, which are rated in part"
        names = ("reward.missing", "units")
        yield Problem("certify.sequence", shown(certify.sequence), limit, fix, names)


def reference_faults(
    config: CertifyConfig, columns: Sequence[str], models: Sequence[str]
) -> Iterator[Problem]:
    """Columns and models that segments and policies name and that do not exist."""
    named = [(f"segments[{i}]", part.column) for i, part in enumerate(config.segments)]
    named += [(f"policies[{i}]", part.column) for i, part in enumerate(config.policies)]
    for where, column in named:
        yield from _no_column(f"certify.{where}", column, columns, "certify")
    for index, policy in enumerate(config.policies):
        where, rests_on = f"certify.policies[{index}]", ("models", "certify")
        yield from unknown(f"{where}.model", policy.model, models, rests_on)
        yield from unknown(f"{where}.otherwise", policy.otherwise, models, rests_on)
        if policy.name in models:
            limit = "a name that no model has"
            yield Problem(
                f"{where}.name", shown(policy.name), limit, "rename the policy", ("models",)
            )


def _no_column(key: str, column: str, columns: Sequence[str], part: str) -> Iterator[Problem]:
    limit = f"a column of the context: {', '.join(columns) or 'there is none'}"
    yield from unknown(f"{key}.column", column, columns, ("features", part), limit)


class SegmentBudget(SegmentConfig, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the traffic (low <= column < high) with a cap of its own.

    max_requests: randomized requests in it, in all.
    """

    max_requests: Annotated[int, count(fix="leave the segment out for no cap")]


class PerUser(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """share: of a user's requests (unit_id) that are randomized, at most, counted from the first
    that is; the first may always be."""

    share: Annotated[float, probability(fix="leave it out for no limit")]


AfterDecision: TypeAlias = Literal["stop", "ramp", "continue"]


class BudgetConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Hard stops of what randomizing may cost in all; without an amount there is no limit.

    requests: randomized requests. money: USD for the answers to them, by the models' prices, or by
    the mean price of their replays where none is declared; rules weigh prices only under a budget
    in money. harm: expected reward lost to randomizing, by the estimates of the rule in force.
    horizon: seconds from the first decision in which to spend: the rate then follows from what is
    left, the time left and the traffic to expect; without one it is the policy's `rate`.
    planned: randomized requests that `equipoise plan` said to plan for until the decision. It stops
    nothing; the check `plan` raises an alarm once they are used up and nothing is decided. An era
    that begins is narrowest at this size and valid at any; without it, at the size that finds a
    difference of a tenth of the reward's standard deviation beyond epsilon.
    after_decision: what goes on once the status is decided or equivalent: nothing is randomized
    until a new era (`stop`), only the smallest share, rate_min (`ramp`), or all (`continue`). Left
    out it is `stop` in a new store, and in one that is there what that store has.
    segments: parts of the traffic with caps of their own. per_user: a limit for every user.
    """

    requests: Annotated[int, count(fix="leave it out for no limit")] | None = None
    money: Annotated[float, amount("USD, more than 0")] | None = None
    harm: Annotated[float, amount("reward units, more than 0")] | None = None
    horizon: Annotated[float, amount("seconds, more than 0")] | None = None
    planned: Annotated[int, count(fix="leave it out where nothing was planned")] | None = None
    after_decision: AfterDecision | None = None
    segments: list[SegmentBudget] = msgspec.field(default_factory=list)
    per_user: PerUser | None = None

    @property
    def after(self) -> AfterDecision:
        """`after_decision` as it is acted by; stores that say nothing of it go on."""
        return self.after_decision or "continue"

    def faults(self) -> Iterator[Problem]:
        if self.horizon is not None and (self.requests, self.money, self.harm) == (None,) * 3:
            limit = "a horizon together with requests, money or harm to spend in it"
            yield Problem("horizon", shown(self.horizon), limit, "add an amount, or leave it out")
        yield from twice("segments", (segment.name for segment in self.segments))


def budget_faults(config: BudgetConfig, columns: Sequence[str], sticky: bool) -> Iterator[Problem]:
    """What a budget and the rest of an experiment ask of each other."""
    for index, segment in enumerate(config.segments):
        yield from _no_column(f"budget.segments[{index}]", segment.column, columns, "budget")
    limited = [("per_user", config.per_user is not None), ("segments", bool(config.segments))]
    for name in (name for name, is_set in limited if is_set and sticky):
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

    name: Name
    limit: float
    low: Annotated[float, end_of_range(fix="declare the range that the metric can have")] = 0.0
    high: Annotated[float, end_of_range(fix="declare the range that the metric can have")] = 1.0
    direction: Literal["at-most", "at-least"] = "at-most"

    def faults(self) -> Iterator[Problem]:
        yield from unordered(self.low, self.high, "swap or widen the range")
        if self.low < self.high and not self.low < self.limit < self.high:
            inside = f"a number between low and high, {shown(self.low)} and {shown(self.high)}"
            fix = "a limit at an end could never be crossed, or never be kept"
            yield Problem("limit", shown(self.limit), inside, fix, ("low", "high"))


def guardrail_faults(guardrails: Sequence[GuardrailConfig]) -> Iterator[Problem]:
    """What only all guardrails together show."""
    if len(guardrails) > MOST_GUARDRAILS:
        limit, fix = f"at most {MOST_GUARDRAILS} guardrails", "keep those that would stop you"
        yield Problem("guardrails", str(len(guardrails)), limit, fix)
    yield from twice("guardrails", (each.name for each in guardrails), "rename or remove one")


def check_faults(checks: Mapping[str, str]) -> Iterator[Problem]:
    """A problem for each check that does not exist, and each action that does not.

    checks: name of a check -> action, as `monitors.action_table` takes them.
    """
    if not checks:
        return
    from equipoise.agent.monitors.check import DEFAULT_ACTIONS, Action

    for name, action in checks.items():
        yield from unknown("checks", name, DEFAULT_ACTIONS)
        if name in DEFAULT_ACTIONS:
            yield from unknown(f"checks.{name}", action, Action)


def registry_faults(gate: str, assignment: str, estimator: str) -> Iterator[Problem]:
    """A problem for each name that no registry has, with the names it does have."""
    from equipoise.agent.estimators import FAMILIES
    from equipoise.policies.registry import ASSIGNMENTS, GATES

    # Importing these packages fills the registries.
    import_module("equipoise.policies.gates")
    import_module("equipoise.policies.assignments")

    yield from unknown("gate", gate, GATES)
    yield from unknown("assignment", assignment, ASSIGNMENTS)
    yield from unknown("estimator", estimator, FAMILIES)
