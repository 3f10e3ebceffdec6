"""Structured logs: one JSON object a line, on standard error.

What happened is named by `event`; ids, models, counts and durations stand beside it. Bodies,
features, tokens and anything a user wrote never enter.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from typing import TextIO

import msgspec

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
    """Writes events of `level` and above."""

    def __init__(self, level: str = "info", stream: TextIO | None = None) -> None:
        self._stream = sys.stderr if stream is None else stream
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
        line = msgspec.json.encode({"time": time.time(), "level": level, "event": event, **facts})
        try:
            self._stream.write(line.decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError):  # nobody reads our log any more; that stops no decision
            return
