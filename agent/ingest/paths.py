"""Where a value stands in a row of a log: `messages[role=user][-1].content`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from equipoise.agent.errors import AgentError

_STEP = re.compile(
    r"(?:^|\.)(?P<name>[^.\[\]]+)"
    r"|\[(?P<index>-?\d{1,9})\]"
    r"|\[(?P<key>[^.\[\]=]+)=(?P<value>[^\[\]]*)\]"
)
GRAMMAR = "names joined by dots, [0] or [-1] for an entry of a list, [role=user] to choose entries"


@dataclass(frozen=True, slots=True)
class Chosen:
    """A step that keeps those entries of a list whose `key` is `value`."""

    key: str
    value: str


Step: TypeAlias = str | int | Chosen


@dataclass(frozen=True, slots=True)
class Path:
    """Steps from a row to a value; build it with `parse_path`."""

    text: str
    steps: tuple[Step, ...]

    @property
    def column(self) -> str:
        """The column of the row where it starts."""
        return str(self.steps[0])

    def find(self, row: Any) -> Any:
        """The value in a row of mappings and lists, None where there is none.

        >>> turns = [{"role": "user", "content": "hi"}, {"role": "model", "content": "yes?"}]
        >>> parse_path("turns[role=user][-1].content").find({"turns": turns})
        'hi'
        """
        for step in self.steps:
            if isinstance(step, str):
                row = row.get(step) if isinstance(row, Mapping) else None
            elif not isinstance(row, Sequence) or isinstance(row, str):
                return None
            elif isinstance(step, int):
                row = row[step] if -len(row) <= step < len(row) else None
            else:
                row = [each for each in row if _has(each, step)]
            if row is None:
                return None
        return row


def parse_path(text: str) -> Path:
    """The path that `text` writes. Raises AgentError with the grammar."""
    steps: list[Step] = []
    end = 0
    for found in _STEP.finditer(text):
        if found.start() != end:
            break
        end = found.end()
        if found["name"] is not None:
            steps.append(found["name"])
        elif found["index"] is not None:
            steps.append(int(found["index"]))
        else:
            steps.append(Chosen(found["key"], found["value"]))
    if end != len(text) or not steps or not isinstance(steps[0], str):
        raise AgentError(f"path {text[:60]!r} is none: expected {GRAMMAR}")
    return Path(text, tuple(steps))


def _has(entry: Any, step: Chosen) -> bool:
    return isinstance(entry, Mapping) and str(entry.get(step.key)) == step.value
