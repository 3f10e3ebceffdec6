"""Options of a world by name and text, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import Field, fields
from typing import Any

from equipoise.agent.errors import AgentError
from equipoise.replay.worlds import WorldOptions

_OWN_FLAGS = ("alpha", "confounding")


def describe_options() -> list[dict[str, str]]:
    """Name, default, unit, limits and explanation of every option, those with own flags too."""
    return [
        {
            "option": declared.name,
            "default": str(declared.default),
            "unit": declared.metadata["unit"],
            "limits": _limits(declared),
            "what it does": declared.metadata["explanation"],
        }
        for declared in fields(WorldOptions)
    ]


def _limits(declared: Field[Any]) -> str:
    """Which values are accepted, for people; empty where there is no limit."""
    low, high = declared.metadata["low"], declared.metadata["high"]
    if declared.metadata["choices"]:
        return ", ".join(declared.metadata["choices"])
    if low is None or high is None:
        return "" if low is None else f"{low:g} or more"
    return f"{low:g} to {high:g}"


def parse_options(texts: Sequence[str]) -> WorldOptions:
    """The world of `NAME=VALUE` texts. Raises AgentError naming option, value and limit."""
    known = {declared.name: declared for declared in fields(WorldOptions)}
    values: dict[str, Any] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not given:
            raise AgentError(f"--world: {text!r} is not NAME=VALUE")
        if name in _OWN_FLAGS:
            raise AgentError(f"--world: {name} has a flag of its own, --{name}")
        if name not in known:
            raise AgentError(f"--world: {name!r} is not one of {', '.join(known)}")
        default: Any = known[name].default
        try:
            values[name] = type(default)(value)
        except ValueError:
            raise AgentError(f"--world: {name} is {value!r}, must be a number") from None
    try:
        return WorldOptions(**values)
    except ValueError as error:
        raise AgentError(f"--world: {error}") from None
