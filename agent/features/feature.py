"""What every kind of feature declares, and what it compiles to."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from typing import TypeAlias

import msgspec

from equipoise.agent.features.problems import Problem, shown
from equipoise.agent.features.values import LARGEST, LIMIT

Encoder: TypeAlias = Callable[[object, list[float]], None]
"""Appends the columns of one value to a list. Raises Refused, and nothing else."""

NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.\-]*")
LONGEST_NAME = 100


class Feature(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag_field="type"
):
    """Base of the kinds of features.

    name: a letter, then letters, digits, `_`, `.` or `-`.
    missing: the number that each column of the feature takes, after the transform, where its
    value is absent or null. Without it a row that lacks the feature is refused.
    """

    name: str
    missing: float | None = None

    def faults(self) -> Iterator[Problem]:
        """Everything wrong with the declaration whose types are right."""
        if not NAME.fullmatch(self.name) or len(self.name) > LONGEST_NAME:
            yield Problem(
                "name",
                shown(self.name),
                f"a letter, then letters, digits, '_', '.' or '-', at most {LONGEST_NAME} in all",
            )
        if self.missing is not None and not abs(self.missing) <= LARGEST:
            yield Problem("missing", shown(self.missing), f"a number within ±{LARGEST:g}")

    def columns(self) -> list[str]:
        """Names of the columns it becomes."""
        raise NotImplementedError

    def limits(self) -> list[float]:
        """Largest magnitude of each column."""
        return [max(LIMIT, abs(self.missing or 0.0))] * len(self.columns())

    def encoder(self) -> Encoder:
        """The compiled transform of one value."""
        raise NotImplementedError


def limit_fault(limit: float | None) -> Iterator[Problem]:
    """A problem if a declared limit is none."""
    if limit is not None and not 0 < limit <= LARGEST:
        fix = f"leave it out for {LIMIT:g}"
        yield Problem("limit", shown(limit), f"a number above 0, at most {LARGEST:g}", fix)


def finite_fault(key: str, value: float | None) -> Iterator[Problem]:
    """A problem if a declared number is NaN or infinite."""
    if value is not None and not math.isfinite(value):
        yield Problem(key, shown(value), "a finite number", "leave it out for no limit")
