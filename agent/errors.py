"""What the agent refuses, as exceptions that name the field, the value and the limit.

Everything that waits is measured against the agent's clock. A decision from outside carries a time
within `SKEW` of it, or it would wait for ever, or be over before it began. What is reported of a
decision counts from the moment it came, whatever time it carries; a time it carries may only make
it later. Nothing that is logged may have happened in the future.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np

from equipoise.store.batches import Floats


class AgentError(ValueError):
    """Input that the agent refuses; nothing was logged.

    >>> issubclass(ConflictError, AgentError)
    True
    """


class UnknownDecisionError(AgentError):
    """An outcome for a decision that does not exist."""


class AwaitedError(AgentError):
    """An outcome for a decision that a decider may have made, and that is not in the log yet."""


class ConflictError(AgentError):
    """The same id again with other content, or a part of an outcome that contradicts itself."""


class BrokenError(RuntimeError):
    """The state is behind the log, after an exception between the two: only opening the store
    again helps. Nothing is logged any more."""


class ConfigError(ValueError):
    """A configuration with problems.

    problems: every one of them, as sentences that name the key, the value, the limit and the fix.
    source: the file, or what else the configuration came from.

    >>> raise ConfigError(["models: received nothing, expected a list"], "chat.toml")
    Traceback (most recent call last):
        ...
    equipoise.agent.errors.ConfigError: chat.toml: models: received nothing, expected a list
    """

    def __init__(self, problems: Sequence[str], source: str = "configuration") -> None:
        super().__init__(problems, source)
        self.problems = list(problems)
        self.source = source

    def __str__(self) -> str:
        """A line for each."""
        return "\n".join(f"{self.source}: {problem}" for problem in self.problems)


class PlanError(ValueError):
    """A plan that cannot be made. field, value, limit: what the sentence is made of."""

    def __init__(self, field: str, value: object, limit: str) -> None:
        text = f"{value:g}" if isinstance(value, float) else f"{value}"
        super().__init__(f"{field} is {text}, expected {limit}")
        self.field, self.value, self.limit = field, value, limit


SKEW = 300.0
"""Seconds by which clocks of the same installation may differ."""
APART_SECONDS = 1.0
"""Seconds from which the agent's clock and the machine's are two."""
LATEST = 1e11
"""Seconds since the epoch; about the year 5138, as in `store.records.Seconds`."""


class TimeError(AgentError):
    """A time that cannot be. field: the key that carried it; limit: what it must keep."""

    def __init__(self, message: str, limit: str) -> None:
        super().__init__(message)
        self.field, self.limit = "at", limit


def check_times(at: Floats, *, unknown: bool = False) -> None:
    """Raise TimeError for a time that is no time. unknown: NaN may stand for one."""
    if len(at) == 1 and 0.0 <= at.item() <= LATEST:
        return
    fine = (at >= 0.0) & (at <= LATEST)
    if unknown:
        fine |= np.isnan(at)
    if not fine.all():
        row = int(np.flatnonzero(~fine)[0])
        limit = f"seconds since the epoch, 0 to {LATEST:g}"
        raise TimeError(f"at row {row}: {at[row]} is not a time, expected {limit}", limit)


def check_against(at: Floats, now: float, *, history: bool) -> None:
    """Raise TimeError for a time more than `SKEW` after the agent's clock, or before it.

    history: the past may be as long ago as it likes.
    """
    check_times(at)
    ahead = at - now
    refused = np.flatnonzero((ahead > SKEW) | ((ahead < -SKEW) & (not history)))
    if len(refused):
        row = int(refused[0])
        side = "after" if ahead[row] > 0 else "before"
        limit = f"at most {SKEW:g} s {'after' if history else 'from'} the agent's clock"
        raise TimeError(
            f"at row {row}: {at[row]:.3f} ({dated(at[row])}) is {abs(ahead[row]):,.0f} s {side}"
            f" the agent's clock, {limit}",
            limit,
        )


def dated(at: float) -> str:
    """A time for people.

    >>> dated(4e9)
    '2096-10-02 07:06:40 UTC'
    """
    try:
        return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"
    except (ValueError, OverflowError, OSError):
        return f"{at:g} s after 1970"
