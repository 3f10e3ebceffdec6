"""From which decision on randomizing was stopped, and by what: kept for whoever recomputes a log.

Pausing, observing and a changed budget are decided outside of the log. Every decision that such a
stop serves as routed says `capped`; so that this can be checked too, each change is kept among the
controls, with the number of the first decision it holds for.
"""

from __future__ import annotations

import contextlib

import msgspec

from equipoise.store.contract import Store
from equipoise.store.errors import StoreError
from equipoise.store.records import Control

STOPS = "stops"
"""The name under which changes are kept among the controls."""
OBSERVING = "observing only"
_RETRY = 1000
"""Decisions until what could not be kept is tried again."""


class Stops(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What holds from decision number `since` on.

    off: why nothing is randomized, None where it is. requests: the hard stop, None for none.
    config: which version of the configuration. The first note of a store is made before its first
    decision; where it is not, an older version made the decisions before it.
    """

    since: int
    off: str | None = None
    requests: float | None = None
    config: int = 0


def read_stops(store: Store) -> list[Stops]:
    """Every change, in order."""
    return [
        msgspec.json.decode(control.value, type=Stops)
        for control in store.controls()
        if control.name == STOPS
    ]


class StopNotes:
    """Keeps changes as decisions are made. decisions: how many there are already."""

    def __init__(self, store: Store, decisions: int) -> None:
        self._store = store
        kept = read_stops(store)
        self._last = kept[-1] if kept else None
        self._waiting: list[tuple[Stops, float]] = []
        self._again = decisions

    def begin(self, requests: float | None, at: float) -> None:
        """Note what holds before the first decision of a new store; no change later."""
        if self._last is None and not self._again:
            self._last = Stops(since=0, requests=requests)
            self._keep(self._last, at)

    def note(
        self, since: int, off: str | None, requests: float | None, config: int, at: float
    ) -> None:
        """Say what holds for the next decision, `since`; written only where it is new."""
        last = self._last
        if last is None or (off, requests, config) != (last.off, last.requests, last.config):
            self._last = Stops(since=since, off=off, requests=requests, config=config)
            self._waiting.append((self._last, at))
            self._again = since
        if self._waiting and since >= self._again:
            self._again = since + _RETRY
            # A store that cannot be written must not stop a decision: it is tried again.
            with contextlib.suppress(StoreError):
                while self._waiting:
                    self._keep(*self._waiting[0])
                    del self._waiting[0]

    def _keep(self, stops: Stops, at: float) -> None:
        value = msgspec.json.encode(stops).decode()
        self._store.put(Control(at=at, name=STOPS, value=value))
