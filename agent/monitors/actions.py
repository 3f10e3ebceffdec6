"""What an alarm does: explicit, configurable, and data until somebody carries it out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType

from equipoise.agent.errors import AgentError
from equipoise.agent.monitors.check import Check


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


def action_table(overrides: Mapping[str, str] | None = None) -> dict[str, Action]:
    """The default table with some checks' actions replaced.

    Raises AgentError naming a check or an action that does not exist.

    >>> action_table({"drift": "widen"})["drift"]
    <Action.WIDEN: 'widen'>
    """
    table = dict(DEFAULT_ACTIONS)
    for name, action in (overrides or {}).items():
        if name not in table:
            raise AgentError(f"no check is called {name!r}: there are {', '.join(table)}")
        if action not in list(Action):
            known = ", ".join(Action)
            raise AgentError(f"action of check {name} is {action!r}, must be one of {known}")
        table[name] = Action(action)
    return table


def due(checks: Iterable[Check], table: Mapping[str, Action]) -> list[Consequence]:
    """What the alarms among the checks ask for, in their order; nothing is done here.

    Only a guardrail names models to be paused: any other check that pauses finds the experiment
    itself at fault, and stops all of it.
    """
    return [
        Consequence(table[check.name], check, check.models if check.name == "guardrail" else ())
        for check in checks
        if check.status == "alarm"
    ]
