"""Declared options: a default, a range and a sentence, checked where they enter.

An options class is a frozen dataclass whose fields are made by `option`; the metadata is what a
command line needs for its help, and `check` is the one place that enforces it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import Field, field, fields
from numbers import Integral, Real
from typing import Any, ClassVar, Protocol, TypeVar

Value = TypeVar("Value", int, float, str)


class Declared(Protocol):
    """Any dataclass instance."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


def option(
    default: Value,
    explanation: str,
    *,
    unit: str = "",
    low: float | None = None,
    high: float | None = None,
    choices: Sequence[str] = (),
) -> Value:
    """A dataclass field with a default and metadata: explanation, unit, low, high, choices.

    low, high: inclusive limits of a number. choices: the allowed words of a text; without any it
    is free. Typed as its default, as `dataclasses.field` is.
    """
    metadata = {
        "explanation": explanation,
        "unit": unit,
        "low": low,
        "high": high,
        "choices": tuple(choices),
    }
    declared: Value = field(default=default, metadata=metadata)
    return declared


def check(options: Declared) -> None:
    """Raise ValueError with the option's name, its value and its limit.

    The type of the default decides what is accepted: a whole number where it is an int, any
    finite number where it is a float, one of `choices` where it is a text that has any.
    """
    for declared in fields(options):
        _check_one(declared, getattr(options, declared.name))


def parsed(declared: type[Declared], texts: Sequence[str]) -> dict[str, Any]:
    """Values of `NAME=VALUE` texts, each of the type of its default.

    Raises ValueError with the option's name and value.
    """
    known = {each.name: each for each in fields(declared)}
    values: dict[str, Any] = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not given:
            raise ValueError(f"{text!r} is not NAME=VALUE")
        if name not in known:
            has = f"one of {', '.join(known)}" if known else "there: it has none"
            raise ValueError(f"{name!r} is not {has}")
        default: Any = known[name].default
        try:
            values[name] = type(default)(value)
        except ValueError:
            raise ValueError(f"{name} is {value!r}, must be a number") from None
    return values


def limits(declared: Field[Any]) -> str:
    """Which values an option accepts, for people; empty where there is no limit."""
    low, high = declared.metadata["low"], declared.metadata["high"]
    if declared.metadata["choices"]:
        return ", ".join(declared.metadata["choices"])
    if low is None or high is None:
        return "" if low is None else f"{low:g} or more"
    return f"{low:g} to {high:g}"


def _check_one(declared: Field[Any], value: object) -> None:
    name, limits = declared.name, declared.metadata
    if isinstance(declared.default, str):
        if not isinstance(value, str):
            raise ValueError(f"{name} is {value!r}, must be a text")
        if limits["choices"] and value not in limits["choices"]:
            raise ValueError(f"{name} is {value!r}, must be one of {', '.join(limits['choices'])}")
        return
    whole = isinstance(declared.default, int)
    if isinstance(value, bool) or not isinstance(value, Integral if whole else Real):
        raise ValueError(f"{name} is {value!r}, must be {'a whole' if whole else 'a'} number")
    if not math.isfinite(value):
        raise ValueError(f"{name} is {value}, must be finite")
    if limits["low"] is not None and value < limits["low"]:
        raise ValueError(f"{name} is {value}, must be at least {limits['low']}")
    if limits["high"] is not None and value > limits["high"]:
        raise ValueError(f"{name} is {value}, must be at most {limits['high']}")
