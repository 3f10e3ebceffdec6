"""Retention as a job: states are kept in time, and the log begins at one of them when it is old."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from equipoise.agent.config.parts import Part
from equipoise.agent.features.problems import Problem, shown

if TYPE_CHECKING:
    from equipoise.agent.service.analysis import Analysis
    from equipoise.agent.service.logs import Log
    from equipoise.store.journaled import JournaledStore

SECONDS_A_DAY = 86_400.0
STEPS = 8
"""States kept within `days`: rows stay at most a quarter longer than they have to. All but one of
them must have been kept since, so that a clock that jumps once removes nothing."""


class RetentionSettings(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How long rows stay in the store. Without this table they stay for ever.

    days: after which rows are moved out; until then a request_id that comes again gets its
    decision, and outcomes of it are taken. archive: the folder for their Parquet files; or delete:
    keep nothing of them. every_seconds: between two looks.
    """

    days: float
    archive: str | None = None
    delete: bool = False
    every_seconds: float = 3600.0

    def faults(self) -> Iterator[Problem]:
        if not 0 < self.days <= 36_500:
            yield Problem("days", shown(self.days), "days, above 0, at most 36,500")
        if bool(self.archive) is self.delete:
            given = "beside delete = true" if self.delete else "nothing"
            yield Problem("archive", given, "a folder for old rows, or else delete = true")
        if not 0 < self.every_seconds <= SECONDS_A_DAY:
            yield Problem("every_seconds", shown(self.every_seconds), "seconds, at most a day")


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
        from equipoise.agent.rules import unused_rules  # late: the settings above need none of it

        age = self._settings.days * SECONDS_A_DAY
        last = await asyncio.to_thread(self._store.last_root_kept, now)
        if last is None or now - last >= age / STEPS:
            state = await self._analysis.state()
            await asyncio.to_thread(self._store.keep_root, state.seq, state.state, now)
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


def retention_faults(
    settings: RetentionSettings | None, window: float | None, ttl: float | None
) -> Iterator[Problem]:
    """What an experiment needs of retention. window, ttl: seconds, of outcomes and of units."""
    if settings is None:
        return
    for name, needed in (("reward.window", window), ("units.ttl", ttl)):
        if needed is not None and settings.days * SECONDS_A_DAY < needed:
            limit = f"at least {needed / SECONDS_A_DAY:.3g}: {name} is {needed:g} seconds"
            yield Problem("service.retention.days", shown(settings.days), limit)
