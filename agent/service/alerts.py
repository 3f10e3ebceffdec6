"""Verdicts of checks that became graver, kept in the store and written to the log."""

from __future__ import annotations

import asyncio

from equipoise.agent.monitors.turns import last_kept, turns
from equipoise.agent.service.logs import Log
from equipoise.agent.service.schema import ChecksAnswer
from equipoise.store.contract import Store
from equipoise.store.records import Alert


class Alerts:
    """Remembers what every check said last; the store's alerts tell it after a restart."""

    def __init__(self, store: Store, log: Log) -> None:
        self._store = store
        self._log = log
        self._last: dict[str, str] = last_kept(store.alerts())

    async def hear(self, checks: ChecksAnswer) -> list[Alert]:
        """Keep an alert for every check that turned to `watch` or `alarm`, or back from them."""
        changed = turns(self._last, checks.checks, checks.at)
        for alert in changed:
            await asyncio.to_thread(self._store.put, alert)
            self._log.warning("check", check=alert.check, status=alert.status)
        return changed
