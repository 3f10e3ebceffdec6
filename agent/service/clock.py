"""Wall time that never goes backwards while the daemon runs."""

from __future__ import annotations

import time


class Clock:
    """Seconds since the epoch: the wall clock at the start plus time that has passed since.

    Someone who sets the machine's clock then moves no outcome window: a jump back would keep
    decisions waiting, a jump forward would expire all of them at once.
    """

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()
