"""Retention as a job: states are kept in time, and the log begins at one of them when it is old."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.agent.config.service import SECONDS_A_DAY, RetentionSettings

if TYPE_CHECKING:
    from equipoise.agent.service.analyst.client import Analysis
    from equipoise.agent.service.telemetry import Log
    from equipoise.store.journal import JournaledStore

STEPS = 8
"""States kept within `days`: rows stay at most a quarter longer than they have to. All but one of
them must have been kept since, so that a clock that jumps once removes nothing."""


class Retention:
    """Keeps states for later and trims the log."""

    def __init__(
        self, settings: RetentionSettings, analysis: Analysis, store: JournaledStore, log: Log
    ) -> None:
        self._settings = settings
        self._analysis = analysis
        self._store = store
        self._log = log
        self.rows = 0
        """Rows moved out since the start."""

    async def run(self, now: float) -> None:
        """One look. now: seconds since the epoch."""
        from equipoise.agent.lifecycle.rules import (
            unused_rules,  # late: the settings above need none of it
        )

        age = self._settings.days * SECONDS_A_DAY
        last = await asyncio.to_thread(self._store.last_base_kept, now)
        if last is None or now - last >= age / STEPS:
            state = await self._analysis.state()
            await asyncio.to_thread(self._store.keep_base, state.seq, state.state, now)
        archive = self._settings.archive
        folder = None if archive is None else Path(archive)
        trimmed = await asyncio.to_thread(self._store.trim, now - age, now, folder, STEPS - 1)
        if trimmed is not None:
            self.rows += trimmed.rows
            unused = await asyncio.to_thread(unused_rules, self._store)
            await asyncio.to_thread(self._store.remove_rules, unused)
            self._log.info(
                "retention",
                rows=trimmed.rows,
                rules=len(unused),
                log_begins=trimmed.seq,
                digest=trimmed.digest,
                files=[path.name for path in trimmed.files],
            )
