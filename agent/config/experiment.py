"""The configuration of one experiment, checked as a whole and frozen as canonical text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Self

import msgspec

from equipoise.agent.config.parts import (
    KEEP,
    ROUTING,
    BudgetConfig,
    CertifyConfig,
    GuardrailConfig,
    ModelConfig,
    Name,
    Part,
    PolicyConfig,
    RewardConfig,
    UnitsConfig,
    budget_faults,
    check_faults,
    guardrail_faults,
    rating_faults,
    reference_faults,
    with_net_range,
)
from equipoise.agent.errors import ConfigError
from equipoise.agent.features.declarations import WRONG, read, twice
from equipoise.agent.features.schema import FeatureSchema, sound_columns, without_defaults
from equipoise.agent.features.values import Problem, shown

if TYPE_CHECKING:
    from equipoise.policies.snapshot import Limits

FEWEST_MODELS, MOST_MODELS = 2, 64
FLOOR_SHARE = 0.1
"""The default floor is this share of the uniform probability 1 / K."""
LOWEST_RATE = 0.01
"""The default rate_min, unless rate itself is lower."""
STICKY_RATE = 0.95
"""The highest rate with sticky units: those left as routed show what today's routing is worth."""
_LATER_PARTS = {
    "guardrails": [],
    "checks": {},
    "certify": msgspec.to_builtins(CertifyConfig()),
    "units": None,
}
"""Parts that stores of the first version do not know, and what they are if nothing is declared."""


class ExperimentConfig(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything that fixes an experiment: what is compared, on what scale, at what risk.

    name: of the experiment; with the key it fixes every draw. models: what requests may be sent to,
    2 to 64 of them. reward: what comes back. features: what is known of a request and of an answer.
    policy: which requests are randomized, and how sure a decision must be. budget: hard stops.
    certify: how certified intervals are made. units: sticky assignment, off unless declared.
    guardrails: metrics that no model may take beyond a limit. checks: what an alarm of a check
    does, by the check's name, where it is not the default.

    >>> config = config_from_dict({"name": "chat", "models": [{"name": "a"}, {"name": "b"}]})
    >>> config.limits
    Limits(rate=0.1, rate_min=0.01, rate_max=1.0, floor=0.05)
    """

    name: Name
    models: list[ModelConfig]
    reward: RewardConfig = RewardConfig()
    features: FeatureSchema = msgspec.field(default_factory=FeatureSchema)
    policy: PolicyConfig = PolicyConfig()
    budget: BudgetConfig = BudgetConfig()
    certify: CertifyConfig = CertifyConfig()
    units: UnitsConfig | None = None
    guardrails: list[GuardrailConfig] = msgspec.field(default_factory=list)
    checks: dict[str, str] = msgspec.field(default_factory=dict)

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """Read `to_json`. Raises ConfigError with every problem."""
        try:
            data = msgspec.json.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            raise ConfigError([f"this is not JSON: {error}"]) from None
        return cls.from_builtins(data)

    @classmethod
    def from_builtins(cls, data: object, source: str = "configuration") -> Self:
        """Read tables, lists, texts and numbers. Raises ConfigError with every problem."""
        problems: list[Problem] = []
        if isinstance(data, dict) and "reward" in data:
            data = {**data, "reward": with_net_range(data["reward"])}
        config = read(data, cls, problems)
        if problems or config is WRONG:
            raise ConfigError([str(problem) for problem in problems], source)
        checked: Self = config
        return checked

    def checked(self) -> Self:
        """An equal configuration that owns its lists; for one that was built in Python.

        Raises ConfigError with every problem.
        """
        try:
            data = msgspec.to_builtins(self)
        except (TypeError, ValueError, RecursionError) as error:
            raise ConfigError([f"it holds what no file could: {error}"]) from None
        return self.from_builtins(data)

    def to_json(self) -> str:
        """Canonical text, to be frozen in the store: equal configurations have equal texts.

        Parts that older versions did not have are left out while they say nothing, so that the
        text frozen in an older store is still the text of its configuration.
        """
        data = msgspec.to_builtins(self.checked())
        parts = {
            name: value
            for name, value in data.items()
            if name not in _LATER_PARTS or value != _LATER_PARTS[name]
        }
        parts["features"] = without_defaults(parts["features"])
        if self.budget.after == "continue":
            del parts["budget"]["after_decision"]
        return msgspec.json.encode(parts, order="sorted").decode()

    @property
    def model_names(self) -> tuple[str, ...]:
        """(K,) names in the order of the models' positions."""
        return tuple(model.name for model in self.models)

    @property
    def candidates(self) -> tuple[str, ...]:
        """(A,) what certified answers compare: models, today's routing, declared policies."""
        return (*self.model_names, ROUTING, *(policy.name for policy in self.certify.policies))

    @property
    def limits(self) -> Limits:
        """What every rule obeys, with the defaults filled in."""
        from equipoise.policies.snapshot import Limits

        policy = self.policy
        return Limits(
            rate=policy.rate,
            rate_min=min(policy.rate, LOWEST_RATE) if policy.rate_min is None else policy.rate_min,
            rate_max=policy.rate_max if self.units is None else min(policy.rate_max, STICKY_RATE),
            floor=FLOOR_SHARE / len(self.models) if policy.floor is None else policy.floor,
        )

    def faults(self) -> Iterator[Problem]:
        """What only the whole shows."""
        count = len(self.models)
        if not FEWEST_MODELS <= count <= MOST_MODELS:
            limit = f"{FEWEST_MODELS} to {MOST_MODELS} models"
            fix = "add the models to compare" if count < FEWEST_MODELS else "compare fewer at once"
            yield Problem("models", str(count), limit, fix, ("models",))
        elif sum(not model.retired for model in self.models) < FEWEST_MODELS:
            names = ", ".join(model.name for model in self.models if not model.retired) or "none"
            fix = "compare another one, or end the experiment"
            yield Problem("models", f"{names} not retired", f"{FEWEST_MODELS} or more", fix)
        yield from twice("models", self.model_names, "rename or remove one")
        for at, name in enumerate(self.model_names):
            if name == KEEP:
                limit = f"another name: in answers {KEEP!r} is today's routing"
                yield Problem(f"models[{at}].name", shown(name), limit)
        yield from guardrail_faults(self.guardrails)
        yield from check_faults(self.checks)
        floor, epsilon = self.policy.floor, self.policy.epsilon
        if floor is not None and count and floor > 1 / count:
            limit = f"at most 1 / {count}, since there are {count} models"
            fix = "lower it, or leave it out for 0.1 / number of models"
            yield Problem("policy.floor", shown(floor), limit, fix, ("models",))
        spread = self.reward.high - self.reward.low
        if epsilon >= spread:
            limit = f"less than the range of the reward, which is {shown(spread)}"
            fix = "lower it to a difference that matters"
            yield Problem("policy.epsilon", shown(epsilon), limit, fix, ("reward",))
        if self.units is not None and self.policy.rate > STICKY_RATE:
            limit = f"at most {STICKY_RATE} with sticky units"
            yield Problem("policy.rate", shown(self.policy.rate), limit, "lower it", ("units",))
        yield from rating_faults(self.reward, self.certify, self.units is not None)
        columns = [name for each in self.features.context for name in sound_columns(each)]
        yield from reference_faults(self.certify, columns, self.model_names)
        yield from budget_faults(self.budget, columns, self.units is not None)


def config_from_dict(data: object) -> ExperimentConfig:
    """The configuration that tables, lists, texts and numbers declare.

    Raises ConfigError with every problem.
    """
    return ExperimentConfig.from_builtins(data)
