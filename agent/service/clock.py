"""The agent's clock: wall time that never goes backwards and never jumps while the daemon runs."""

from __future__ import annotations

import time
from collections.abc import Callable

SLEW = 0.05
"""Share of the time that passes by which the agent's clock may run fast or slow to come back to the
machine's: a window is never more than a twentieth shorter or longer than declared."""
STEP_SECONDS = 1.0
"""What the machine's clock must move by, against the time that passed, to be called a step."""


def wall_time() -> float:
    """The machine's clock, seconds since the epoch: it can be set at any moment."""
    return time.time()


class Clock:
    """Seconds since the epoch: the machine's clock at the start plus time that has passed since.

    Someone who sets the machine's clock then moves no outcome window: a jump back would keep
    decisions waiting, a jump forward would expire all of them at once. What the two clocks differ
    by is made up for slowly (`look`), so that dates come right again without a restart.

    wall: the machine's clock; passed: one that nobody can set.
    """

    def __init__(
        self,
        wall: Callable[[], float] = wall_time,
        passed: Callable[[], float] = time.monotonic,
    ) -> None:
        self._wall, self._passed = wall, passed
        self._looked = passed()
        self._machine = self._agent = wall() - self._looked

    def __call__(self) -> float:
        return self._agent + self._passed()

    @property
    def off(self) -> float:
        """Seconds by which the machine's clock is ahead of this one."""
        return self._wall() - self()

    def look(self) -> float:
        """Come closer to the machine's clock; by how many seconds it was set since the last look,
        0.0 where it was not. To be called several times a second."""
        now = self._passed()
        machine = self._wall() - now
        most = SLEW * (now - self._looked)
        self._looked = now
        self._agent += min(max(machine - self._agent, -most), most)
        moved = machine - self._machine
        if abs(moved) < STEP_SECONDS:
            return 0.0
        self._machine = machine
        return moved
