"""Where each id of an intake stands, so that a refusal can name both rows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

from equipoise.agent.keys import text_key
from equipoise.store.records import Observation, Outcome, Simulation

P = TypeVar("P")


class Places(Generic[P]):
    """The place of the first row that said something of an id and was not refused.

    A place is what the caller counts by: a line, a file and a row. Some 150 bytes a row.
    """

    def __init__(self) -> None:
        self._first: dict[int, P] = {}

    def keep(self, record: Observation | Outcome | Simulation, place: P) -> None:
        """The row at this place was taken, or was a repeat."""
        for key in _keys(record):
            self._first.setdefault(key, place)

    def of(self, record: Observation | Outcome | Simulation) -> list[P]:
        """Where what this record says of its id was said before, each place once."""
        found = [self._first[key] for key in _keys(record) if key in self._first]
        return list(dict.fromkeys(found))


def _keys(record: Observation | Outcome | Simulation) -> Iterator[int]:
    if isinstance(record, Observation):
        if record.request_id is not None:
            yield text_key("observation", record.request_id)
    elif isinstance(record, Simulation):
        yield text_key("simulation", f"{record.context_id}\n{record.model}")
    else:
        by = "decision" if record.decision_id is not None else "request"
        name = record.decision_id or record.request_id or ""
        # Each part of an outcome counts once, whichever row brings it.
        parts = [part for part in ("reward", "outputs") if getattr(record, part) is not None]
        for part in (*parts, *(f"metric {metric}" for metric in record.metrics)):
            yield text_key(by, f"{name}\n{part}")
