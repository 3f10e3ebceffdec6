"""How far a sweep is: a bar on a terminal, a line for every tenth elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TextIO, TypeAlias

Advance: TypeAlias = Callable[[int], None]
"""Called with the number of finished cells; first with that of those finished by an earlier run."""

_LINES = 10


@contextmanager
def shown_progress(total: int, stream: TextIO | None = None) -> Iterator[Advance]:
    """Yield what to call with the number of finished cells of `total`. stream: standard error."""
    stream = sys.stderr if stream is None else stream
    if stream.isatty():
        with _bar(total, stream) as advance:
            yield advance
    else:
        yield Lines(total, stream)


class Lines:
    """Plain lines for logs: what was found at the start, then one for every tenth of the cells."""

    def __init__(
        self, total: int, stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total, self._stream, self._clock = total, stream, clock
        self._resumed: int | None = None
        self._tenth = 0

    def __call__(self, done: int) -> None:
        if self._resumed is None:
            self._resumed, self._started = done, self._clock()
            if done:
                self._say(f"{done} of {self._total} cells were finished earlier")
        elif done * _LINES // self._total > self._tenth:
            pace = (self._clock() - self._started) / max(done - self._resumed, 1)
            left = in_words(pace * (self._total - done))
            self._say(f"{done} of {self._total} cells" + (f", {left} left" * (done < self._total)))
        self._tenth = done * _LINES // self._total

    def _say(self, text: str) -> None:
        print(f"replaying: {text}", file=self._stream, flush=True)


def in_words(seconds: float) -> str:
    """A rough duration.

    >>> in_words(0.4), in_words(50), in_words(400), in_words(9000)
    ('1 second', '50 seconds', '7 minutes', '2.5 hours')
    """
    if seconds < 90:
        whole = max(round(seconds), 1)
        return f"{whole} second" + "s" * (whole > 1)
    if seconds < 5400:
        return f"{round(seconds / 60)} minutes"
    return f"{seconds / 3600:.1f} hours"


@contextmanager
def _bar(total: int, stream: TextIO) -> Iterator[Advance]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("replaying"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(file=stream)) as shown:
        task = shown.add_task("replaying", total=total)
        resumed = False

        def advance(done: int) -> None:
            nonlocal resumed
            if resumed:
                shown.update(task, completed=done)
            else:
                # Cells of an earlier run say nothing about the pace of this one.
                shown.reset(task, completed=done)
                resumed = True

        yield advance
