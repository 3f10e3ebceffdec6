"""The parts of an experiment's configuration: models, reward, policy, budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from typing import Literal, get_args

import msgspec

from equipoise.agent.config.registries import registry_faults
from equipoise.agent.features.problems import Problem, shown
from equipoise.agent.features.values import LARGEST
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
