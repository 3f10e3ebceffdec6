"""Verdicts of checks that became graver, kept in the store and written to the log."""

from __future__ import annotations

import asyncio

from equipoise.agent.service.logs import Log
from equipoise.agent.service.schema import ChecksAnswer, CheckStatus
from equipoise.store.contract import Store
from equipoise.store.records import Alert

_GRAVE = ("watch", "alarm")


class Alerts:
    """Remembers what every check said last; the store's alerts tell it after a restart."""

    def __init__(self, store: Store, log: Log) -> None:
        self._store = store
        self._log = log
        self._last: dict[str, str] = {alert.check: alert.status for alert in store.alerts()}

    async def hear(self, checks: ChecksAnswer) -> list[Alert]:
        """Keep an alert for every check that turned to `watch` or `alarm`, or back from them."""
        changed = []
        for check in checks.checks:
            before = self._last.get(check.name, "ok")
            if check.status == before or not self._matters(before, check.status):
                continue
            self._last[check.name] = check.status
            changed.append(
                Alert(at=checks.at, check=check.name, status=check.status, sentence=check.sentence)
            )
        for alert in changed:
            await asyncio.to_thread(self._store.put, alert)
            self._log.warning("check", check=alert.check, status=alert.status)
        return changed

    @staticmethod
    def _matters(before: str, status: CheckStatus) -> bool:
        return status in _GRAVE or before in _GRAVE
