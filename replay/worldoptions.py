"""Options of a world by name and text, for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from equipoise.agent.errors import AgentError
from equipoise.replay.benchmarks.options import limits, parsed
from equipoise.replay.worlds import WorldOptions

_OWN_FLAGS = ("alpha", "confounding")


def describe_options() -> list[dict[str, str]]:
    """Name, default, unit, limits and explanation of every option, those with own flags too."""
    return [
        {
            "option": declared.name,
            "default": str(declared.default),
            "unit": declared.metadata["unit"],
            "limits": limits(declared),
            "what it does": declared.metadata["explanation"],
        }
        for declared in fields(WorldOptions)
    ]


def parse_options(texts: Sequence[str]) -> WorldOptions:
    """The world of `NAME=VALUE` texts. Raises AgentError naming option, value and limit."""
    for text in texts:
        if (name := text.partition("=")[0]) in _OWN_FLAGS:
            raise AgentError(f"--world: {name} has a flag of its own, --{name}")
    try:
        return WorldOptions(**parsed(WorldOptions, texts))
    except ValueError as error:
        raise AgentError(f"--world: {error}") from None
