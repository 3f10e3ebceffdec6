"""Counters of the running daemon, and its log: one JSON object a line on standard error.

Counters are plain numbers and lists: an increment costs far less than a metrics library's, and the
loop's thread is the only one that counts. `handlers/prometheus.py` writes them down when asked.

A line of the log names what happened by `event`; ids, models, counts and durations stand beside it.
Bodies, features, tokens and anything a user wrote never enter.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from bisect import bisect_left
from collections import Counter
from typing import TextIO

import msgspec

SECONDS = (5e-5, 1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 2.5)


class Histogram:
    """Counts of values up to each bound; the last cell is for everything above."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(bound as text, values up to it), the last one "+Inf"."""
        rows, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            rows.append((bound, float(so_far)))
        return rows


class Counters:
    """decisions: by (model, randomized); repeated: requests decided before; passed_through: by
    reason; outcomes: by what became of them; bulk: rows by kind; responses: by (route, status);
    seconds: inside a handler, by route; refused: answers by status that a connection got before
    any handler saw a request; spans: what came by OTLP, by what became of it; waiting: of it what
    waits, by kind; clock_steps: times the machine's clock was set; moved_out: old rows
    that left the store, None where they stay for ever."""

    def __init__(self) -> None:
        self.decisions: Counter[tuple[str, bool]] = Counter()
        self.repeated = 0
        self.passed_through: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.bulk: Counter[str] = Counter()
        self.responses: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.refresh_seconds = Histogram((0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0))
        self.refresh_failures = 0
        self.job_failures: Counter[str] = Counter()
        self.refused: Counter[int] = Counter()
        self.spans: Counter[str] = Counter()
        self.waiting: dict[str, int] = {}
        self.clock_steps = 0
        self.moved_out: int | None = None

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A response of `status` that took so long inside the handler."""
        self.responses[route, status] += 1
        histogram = self.seconds.get(route)
        if histogram is None:
            histogram = self.seconds[route] = Histogram()
        histogram.add(seconds)


LEVELS = ("debug", "info", "warning", "error")


class LibraryLines(logging.Handler):
    """What libraries log, as events: kind and template alone, for what they fill in may quote."""

    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        facts: dict[str, object] = {"logger": record.name, "message": str(record.msg)}
        if record.exc_info and record.exc_info[1] is not None:
            facts["fault"] = type(record.exc_info[1]).__name__
        write = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        write("library", **facts)


def gather_library_lines(log: Log) -> None:
    """Have every line of a library of this process go through `log`."""
    root = logging.getLogger()
    root.handlers = [LibraryLines(log)]
    logging.captureWarnings(True)


class Log:
    """Writes events of `level` and above. process: which one of several writes, "" for the only
    one."""

    def __init__(
        self, level: str = "info", stream: TextIO | None = None, process: str = ""
    ) -> None:
        self._stream = sys.stderr if stream is None else stream
        self._always = {"process": process} if process else {}
        self.level = level

    def debug(self, event: str, **facts: object) -> None:
        self._write("debug", event, facts)

    def info(self, event: str, **facts: object) -> None:
        self._write("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        self._write("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        self._write("error", event, facts)

    def failed(self, event: str, error: BaseException, **facts: object) -> None:
        """A fault of ours: kind and place in the code, without what the message may quote."""
        frames = traceback.extract_tb(error.__traceback__)
        where = [f"{frame.name} line {frame.lineno}" for frame in frames[-4:]]
        self._write("error", event, {**facts, "fault": type(error).__name__, "where": where})

    def _write(self, level: str, event: str, facts: dict[str, object]) -> None:
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        head = {"time": time.time(), "level": level, "event": event, **self._always}
        line = msgspec.json.encode({**head, **facts})
        try:
            self._stream.write(line.decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads our log any more; that stops no decision
            return
