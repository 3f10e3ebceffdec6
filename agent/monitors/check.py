"""Checks: what one says, when that becomes an alert, what an alarm does, what monitors share."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol, Self, TypeAlias, TypeVar

import numpy as np

from equipoise.agent.errors import AgentError
from equipoise.store.batches import Floats
from equipoise.store.records import Alert

Status: TypeAlias = Literal["ok", "watch", "alarm", "unknown"]


@dataclass(frozen=True, slots=True)
class Check:
    """The verdict of one check at one moment.

    name: which check. status: `unknown` while it has seen too little, `watch` where there is
    reason to look, `alarm` where its level is reached. sentence: plain words. figures: named
    numbers, or sequences in the order of the models; NaN where unknown. level: the share of honest
    experiments in which this check may ever raise an alarm, NaN where it promises none.
    models: positions of the models that an alarm concerns; () for none in particular.
    """

    name: str
    status: Status
    sentence: str
    figures: Mapping[str, Any] = field(default_factory=dict)
    level: float = float("nan")
    models: tuple[int, ...] = ()


def by_evidence(log_evidence: float, level: float) -> Status:
    """The status of a test by its log e-value: Ville's inequality makes 1 / level the threshold.

    Reaching a tenth of the evidence is `watch`: honest experiments do so with probability 10 level.

    >>> [by_evidence(math.log(e), 0.01) for e in (5, 10, 100)]
    ['ok', 'watch', 'alarm']
    """
    needed = -math.log(level)
    if log_evidence >= needed - 1e-12:
        return "alarm"
    return "watch" if log_evidence >= needed - math.log(10.0) - 1e-12 else "ok"


def percent(share: float) -> str:
    """A share in words.

    >>> percent(0.0213), percent(float("nan"))
    ('2.1%', 'an unknown share')
    """
    return "an unknown share" if math.isnan(share) else f"{share:.1%}"


def listed(names: Sequence[str]) -> str:
    """Names in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"])
    ('a', 'a, b and c')
    """
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


class Action(StrEnum):
    """What is done when a check raises an alarm; every alarm is also reported.

    report: nothing else. widen: certify by the interval with the fewest assumptions, the bounded
    one, with the worst case for missing rewards. new-era: certified sums start afresh.
    drop-simulation: families that rest on SIM leave the recommendation. pause: randomizing onto
    the models concerned stops, on all of them if the check names none.
    """

    REPORT = "report"
    WIDEN = "widen"
    NEW_ERA = "new-era"
    DROP_SIMULATION = "drop-simulation"
    PAUSE = "pause"


DEFAULT_ACTIONS: Mapping[str, Action] = MappingProxyType(
    {
        "assignment": Action.PAUSE,
        "fidelity": Action.DROP_SIMULATION,
        "drift": Action.NEW_ERA,
        "representation": Action.REPORT,
        "missingness": Action.WIDEN,
        "delivery": Action.WIDEN,
        "outputs": Action.REPORT,
        "floors": Action.REPORT,
        "guardrail": Action.PAUSE,
        "plan": Action.REPORT,
        "watermark": Action.REPORT,
        "estimators": Action.REPORT,
    }
)


@dataclass(frozen=True, slots=True)
class Consequence:
    """An action that is due, the alarm behind it, and the models it concerns.

    models: positions; () for the whole experiment.
    """

    action: Action
    check: Check
    models: tuple[int, ...]


def action_table(
    overrides: Mapping[str, str] | None = None, pauses: bool = True
) -> dict[str, Action]:
    """The default table with some checks' actions replaced; pauses: whether any may pause, which is
    reported instead otherwise.

    Raises AgentError naming a check or an action that does not exist.

    >>> action_table({"drift": "widen"})["drift"]
    <Action.WIDEN: 'widen'>
    """
    table = dict(DEFAULT_ACTIONS)
    for name, action in (overrides or {}).items():
        if name not in table:
            raise AgentError(f"no check is called {name!r}: there are {', '.join(table)}")
        if action not in list(Action):
            actions = ", ".join(Action)
            raise AgentError(f"action of check {name} is {action!r}, must be one of {actions}")
        table[name] = Action(action)
    if not pauses:
        table = {
            name: Action.REPORT if each is Action.PAUSE else each for name, each in table.items()
        }
    return table


def consequences(checks: Iterable[Check], table: Mapping[str, Action]) -> list[Consequence]:
    """What the alarms among the checks ask for, in their order; nothing is done here.

    Only a guardrail names models to be paused: any other check that pauses finds the experiment
    itself at fault, and stops all of it.
    """
    return [
        Consequence(table[check.name], check, check.models if check.name == "guardrail" else ())
        for check in checks
        if check.status == "alarm"
    ]


GRAVITY: Mapping[str, int] = {"unknown": 0, "ok": 1, "watch": 2, "alarm": 3}
_GRAVE = ("watch", "alarm")


class Verdict(Protocol):
    """What a check says, inside or on the wire."""

    @property
    def name(self) -> str: ...

    @property
    def status(self) -> str: ...

    @property
    def sentence(self) -> str: ...


V = TypeVar("V", bound=Verdict)


def gravest_by_name(checks: Iterable[V]) -> list[V]:
    """One verdict a name, in order: of several guardrails the one that needs most attention."""
    gravest: dict[str, V] = {}
    for check in checks:
        other = gravest.get(check.name)
        if other is None or GRAVITY[check.status] > GRAVITY[other.status]:
            gravest[check.name] = check
    return list(gravest.values())


def transitions(last: dict[str, str], checks: Iterable[Verdict], at: float) -> list[Alert]:
    """An alert for every check that turned to `watch` or `alarm`, or back from them.

    last: status by name of what was kept last, "ok" where nothing was; brought up to date.
    """
    alerts = []
    for check in gravest_by_name(checks):
        before = last.get(check.name, "ok")
        if check.status != before and (check.status in _GRAVE or before in _GRAVE):
            last[check.name] = check.status
            alerts.append(
                Alert(at=at, check=check.name, status=check.status, sentence=check.sentence)
            )
    return alerts


def last_statuses(alerts: Iterable[Alert]) -> dict[str, str]:
    """Status by name of the newest of these alerts, which come in the order they were kept."""
    return {alert.check: alert.status for alert in alerts}


class Monitor(ABC):
    """A check that is fed rows and says at any moment what it makes of them.

    name: what the check is called. models: (K,) names, for its sentences. level: share of honest
    experiments in which it may ever raise an alarm. sums: float64 arrays, all of its state.
    `update` takes columns of n rows, in decision order, and differs from check to check.

    One owner updates in place; `a + b` is the check of both sets of rows.
    """

    name: ClassVar[str]
    maxima: ClassVar[frozenset[str]] = frozenset()
    """The names of sums that combine by their maximum."""

    def __init__(self, models: Sequence[str], level: float = 0.01) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level of {self.name} is {level}, must be above 0 and below 1")
        self.models = tuple(models)
        self.level = level
        self.sums: dict[str, Floats] = {}

    @abstractmethod
    def result(self) -> Check:
        """The verdict on all rows so far."""

    def arrays(self) -> dict[str, Floats]:
        """The state by name, for a checkpoint: views, not copies."""
        return dict(self.sums)

    def load(self, arrays: Mapping[str, Floats]) -> None:
        """Become the state of `arrays`. Raises ValueError where names or shapes do not fit."""
        shapes = {name: array.shape for name, array in arrays.items()}
        expected = {name: array.shape for name, array in self.sums.items()}
        if shapes != expected:
            raise ValueError(f"state of {self.name} has {shapes}, must be {expected}")
        self.sums = {name: np.array(arrays[name], dtype=np.float64) for name in self.sums}

    def copy(self) -> Self:
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        twin.sums = {name: array.copy() for name, array in self.sums.items()}
        return twin

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self) or other.models != self.models:
            raise TypeError(f"{self.name} cannot be added to a check of something else")
        total = self.copy()
        for name, array in total.sums.items():
            theirs = other.sums[name]
            if array.shape != theirs.shape:
                raise ValueError(f"{self.name}: {name} has {array.shape} and {theirs.shape}")
            if name in self.maxima:
                np.maximum(array, theirs, out=array)
            else:
                array += theirs
        return total


class Checks(list[Check]):
    """Checks in their order; printed, a line each."""

    def __str__(self) -> str:
        return "\n".join(f"{check.name}: {check.status}: {check.sentence}" for check in self)
