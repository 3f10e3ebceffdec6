"""What a changed configuration means for a running experiment: applied, later, or never.

`reload_plan` is a pure function; carrying its verdicts out is the daemon's. The rules:

- applied: what a predictable policy may change at any time without breaking a promise;
- restart: what a running daemon holds open or has counted by, taken over at its next start;
- era: what changes the meaning of the certified sums, taken over at the next start, where they
  start afresh;
- refused: what an experiment cannot change at all.

What waits for a start is no mistake: the rest of the file is applied without it (`in_force`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import msgspec

from equipoise.agent.errors import ConfigError
from equipoise.agent.features.schema import without_limits
from equipoise.agent.features.values import shown

if TYPE_CHECKING:
    from equipoise.agent.config import ExperimentConfig
    from equipoise.agent.config.file import ConfigFile

Effect: TypeAlias = Literal["applied", "restart", "era", "refused"]

_COUNTED = "what was randomized is counted by what was declared at first: start a new store"
_RESTART = "the running daemon keeps the old value"
_ANOTHER = "it would be another experiment: start a new store"
_SCALE = "rewards on another scale cannot be added to those in the log: start a new store"

NEED_RESTART = (
    "store",
    "host",
    "port",
    "uds",
    "uds_mode",
    "base_path",
    "durability",
    "key",
    "kill_switch",
    "anchor",
    "limits",
    "shadow",
    "otlp",
    "retention",
    "names",
    "outcomes",
    "webhook",
    "lanes",
)
"""Keys of `[service]` that keep their value until the next start."""

RULES: Mapping[str, tuple[Effect, str]] = MappingProxyType(
    {
        "name": ("refused", _ANOTHER),
        "models": ("refused", "models are only added at the end, or retired: start a new store"),
        "models[]": ("era", "a model is added at the end"),
        "models[].retired": ("era", "other models are compared"),
        "models[].version": ("era", "another version of a model is another treatment"),
        "models[].price": ("applied", "the next rule allocates by it"),
        "models[].max_requests": ("applied", "from the next decision on"),
        "reward.low": ("refused", _SCALE),
        "reward.high": ("refused", _SCALE),
        "reward.maximise": ("refused", _ANOTHER),
        "certify.limits": ("era", "other rows are certified"),
        "reward.missing": ("era", "missing rewards count otherwise"),
        "reward.rated_share": ("applied", "forecasts and checks expect it"),
        "reward.ask": ("era", "other users are asked"),
        "reward.window": ("era", "other rewards come in time"),
        "features": ("refused", "rows in the log are made of the old ones: start a new store"),
        "features.limits": ("applied", "from the next row on"),
        "policy.gate": ("applied", "from the next rule on"),
        "policy.assignment": ("applied", "from the next rule on"),
        "policy.estimator": ("applied", "from the next rule on"),
        "policy.rate": ("era", "the bounded sequence is made for a rate"),
        "policy.rate_max": ("applied", "from the next rule on"),
        "policy.rate_min": ("era", "other requests are certified"),
        "policy.floor": ("era", "the largest weight is another"),
        "policy.delta": ("era", "a promise keeps its error level for an era"),
        "policy.exclude": ("applied", "from the next decision on"),
        "policy.epsilon": ("applied", "intervals hold for every difference at once"),
        "budget": ("applied", "from the next decision on"),
        "budget.after_decision": ("applied", "from the next rule on"),
        "budget.segments": ("refused", _COUNTED),
        "budget.segments[].max_requests": ("applied", "from the next decision on"),
        "budget.per_user": ("refused", _COUNTED),
        "budget.per_user.share": ("applied", "from the next decision on"),
        "certify": ("era", "other answers are certified, or otherwise"),
        "units": ("refused", "who belongs to whom is in the log: start a new store"),
        "guardrails": ("refused", "the log holds one column for each: start a new store"),
        "checks": ("applied", "from the next look on"),
        **{f"service.{name}": ("restart", _RESTART) for name in NEED_RESTART},
        "service": ("applied", "at once"),
        "ingest": ("applied", "`equipoise ingest` reads it anew each time, OTLP at the next start"),
        "capacity": ("applied", "`serve --check` reads it anew each time"),
    }
)
"""By the longest key that a changed key begins with."""


@dataclass(frozen=True, slots=True)
class Change:
    """A key whose value changed, and what follows. values: from what to what, no secrets; why: the
    reason, for people."""

    key: str
    effect: Effect
    values: str
    why: str

    @property
    def sentence(self) -> str:
        """For people and logs."""
        return f"{self.key} {self.values}: {_WORDS[self.effect]}, {self.why}"

    @property
    def postponed(self) -> Change:
        """The same for the next start, because another change that it needs waits for it."""
        return replace(self, effect="restart", why="it needs what the next start takes over")

    @property
    def of_experiment(self) -> bool:
        """Whether it concerns the experiment and not the daemon around it."""
        return not self.key.startswith(("service", "ingest", "capacity"))


@dataclass(frozen=True, slots=True)
class ReloadPlan:
    """Every change. What waits keeps its old value until the next start."""

    changes: tuple[Change, ...]

    def of(self, effect: Effect) -> tuple[Change, ...]:
        """The changes with this effect."""
        return tuple(change for change in self.changes if change.effect == effect)

    @property
    def effect(self) -> Effect:
        """The gravest effect, "applied" where nothing changed."""
        effects: tuple[Effect, ...] = ("refused", "era", "restart")
        return next((effect for effect in effects if self.of(effect)), "applied")

    @property
    def waiting(self) -> tuple[Change, ...]:
        """The changes that the next start takes over."""
        return tuple(change for change in self.changes if change.effect in ("era", "restart"))


def experiment_changes(old: ExperimentConfig, new: ExperimentConfig) -> tuple[Change, ...]:
    """Every change of an experiment alone."""
    return tuple(_changes(msgspec.to_builtins(old), msgspec.to_builtins(new), ""))


def reload_plan(old: ConfigFile, new: ConfigFile) -> ReloadPlan:
    """What a running experiment does with `new`.

    >>> from equipoise.agent.config.file import file_from_dict
    >>> text = {"name": "chat", "models": [{"name": "a"}, {"name": "b"}]}
    >>> changed = text | {"policy": {"epsilon": 0.2}}
    >>> plan = reload_plan(file_from_dict(text), file_from_dict(changed))
    >>> [(change.key, change.effect) for change in plan.changes]
    [('policy.epsilon', 'applied')]
    """
    return ReloadPlan(tuple(_changes(_builtins(old), _builtins(new), "")))


def in_force(
    plan: ReloadPlan, old: ExperimentConfig, new: ExperimentConfig
) -> tuple[ReloadPlan, ExperimentConfig]:
    """The experiment until the next start, which is `new` but for what waits, and the plan for it.

    Where the rest makes no experiment without what waits (it names a model that is added), the
    whole experiment waits.
    """
    waiting = [change for change in plan.waiting if change.of_experiment]
    before, after = msgspec.to_builtins(old), msgspec.to_builtins(new)
    # From the last key on: models are added at the end, and taken away from there.
    for change in reversed(waiting):
        _put_back(list(_path(change.key)), before, after)
    try:
        return plan, type(new).from_builtins(after)
    except ConfigError:
        later = (
            change.postponed if change.of_experiment and change.effect == "applied" else change
            for change in plan.changes
        )
        return ReloadPlan(tuple(later)), old


def _put_back(path: list[str], before: Any, after: Any) -> None:
    """Give a key of `after` the value that it has in `before`, or remove it where it has none."""
    for part in path[:-1]:
        step: Any = int(part) if isinstance(before, list) else part
        before, after = before[step], after[step]
    last: Any = int(path[-1]) if isinstance(before, list) else path[-1]
    if isinstance(before, list) and last >= len(before):
        del after[last]
    else:
        after[last] = before[last]


def rule_of(key: str) -> tuple[Effect, str] | None:
    """The rule for a key such as `models[0].price`; None where there is none."""
    general = "".join("[]" if part.isdecimal() else part for part in _split(key))
    steps = [at for at in range(len(general) + 1) if general[at : at + 1] in ("", ".", "[")]
    for end in reversed(steps):
        if general[:end] in RULES:
            return RULES[general[:end]]
    return None


def _path(key: str) -> Iterator[str]:
    """The steps to a key: `models[2].price` is models, 2, price."""
    for part in _split(key):
        yield from filter(None, part.split("."))


def _split(key: str) -> Iterator[str]:
    for part in key.replace("[", "\0").replace("]", "\0").split("\0"):
        if part:
            yield part


def _builtins(file: ConfigFile) -> dict[str, Any]:
    return {
        **msgspec.to_builtins(file.experiment),
        "service": msgspec.to_builtins(file.service),
        "ingest": msgspec.to_builtins(file.ingest),
        "capacity": msgspec.to_builtins(file.capacity),
    }


def _changes(old: Any, new: Any, key: str) -> Iterator[Change]:
    if old == new:
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for name in dict.fromkeys((*old, *new)):
            yield from _changes(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return
    if key in ("features.context", "features.outputs") and _same_but_limits(old, new):
        for before, after in zip(old, new, strict=True):
            for name in ("limit", "winsorize"):
                if before.get(name) != after.get(name):
                    values = f"from {shown(before.get(name))} to {shown(after.get(name))}"
                    yield _change(f"features.limits.{before['name']}.{name}", values)
        return
    if key == "budget.segments" and [each["name"] for each in old] == [e["name"] for e in new]:
        for at, pair in enumerate(zip(old, new, strict=True)):
            yield from _changes(*pair, f"{key}[{at}]")
        return
    if isinstance(old, list) and isinstance(new, list) and key == "models":
        if [model["name"] for model in old] == [model["name"] for model in new[: len(old)]]:
            for at, pair in enumerate(zip(old, new, strict=False)):
                yield from _changes(*pair, f"{key}[{at}]")
            for at in range(len(old), len(new)):
                yield _change(f"{key}[{at}]", f"added: {new[at]['name']}")
            return
        names = ["/".join(model["name"] for model in side) for side in (old, new)]
        yield _change(key, f"from {names[0]} to {names[1]}")
        return
    # Of a list only the length is shown, so that no token gets into a log.
    yield _change(key, f"from {shown(old)} to {shown(new)}")


def _same_but_limits(old: Any, new: Any) -> bool:
    """Whether two lists of features make the same numbers of the rows that both take."""
    sides = [without_limits({"context": side})["context"] for side in (old, new)]
    return isinstance(old, list) and bool(sides[0] == sides[1])


def _change(key: str, values: str) -> Change:
    effect, why = rule_of(key) or ("refused", _ANOTHER)
    return Change(key, effect, values, why)


_WORDS: Mapping[Effect, str] = MappingProxyType(
    {
        "applied": "applied",
        "restart": "at the next start",
        "era": "at the next start, in a new era",
        "refused": "refused",
    }
)
