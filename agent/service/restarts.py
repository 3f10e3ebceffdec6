"""When an analyst that failed may be started again, and what it then leaves out."""

from __future__ import annotations

import time
from collections.abc import Callable

LONGEST_SECONDS = 300.0
"""Between two tries of something that always fails."""
DEATHS = 2
"""In a row over one family, after which that family is left out."""
ALARM = 3
"""Failures in a row that make an alarm."""


class Restarts:
    """Failures in a row, by kind of question: one that fails must not keep the others waiting.

    The first is tried again at once, each later one after twice as long. off: families the process
    died or hung over, with the reason; they stay off until the daemon or the configuration starts
    anew. One that is given is added to: two processes leave out the same.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, off: dict[str, str] | None = None
    ) -> None:
        self._clock = clock
        self._failures: dict[str, int] = {}
        self._until: dict[str, float] = {}
        self._deaths: dict[str, list[str]] = {}
        self.off: dict[str, str] = {} if off is None else off

    def wait(self, kind: str) -> float:
        """Seconds until this kind of question may be asked again."""
        return max(0.0, self._until.get(kind, 0.0) - self._clock())

    def failures(self, kind: str) -> int:
        """Failures in a row of this kind of question."""
        return self._failures.get(kind, 0)

    def failed(self, kind: str, family: str = "", how: str = "died") -> int:
        """Count a failure; how many there are in a row. family: being computed when the process
        died, or hung and was ended."""
        count = self._failures[kind] = self.failures(kind) + 1
        if count > 1:
            seconds = min(2.0 ** min(count - 2, 20), LONGEST_SECONDS)
            self._until[kind] = self._clock() + seconds
        if family:
            deaths = self._deaths.setdefault(family, [])
            deaths.append(how)
            if len(deaths) >= DEATHS and family not in self.off:
                ends = " or ".join(sorted(set(deaths)))
                self.off[family] = f"the analyst {ends} {DEATHS} times in a row over it"
                # Without it the next try may well succeed.
                self._until.pop(kind, None)
        return count

    def worked(self, kind: str) -> bool:
        """Forget the failures of a kind; whether an alarm stood."""
        stood = self._failures.pop(kind, 0) >= ALARM
        self._until.pop(kind, None)
        if kind == "ask":
            self._deaths.clear()
        return stood
