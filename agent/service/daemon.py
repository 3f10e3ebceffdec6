"""The daemon: one agent over one store, what its handlers share, and its life from start to stop.

Only the event loop's thread touches the agent. Reading is done by the analyst's process, writing
to SQLite by the store's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import NamedTuple

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.service import JOBS, ServiceSettings
from equipoise.agent.errors import AgentError
from equipoise.agent.lanes.authority import TURN_SECONDS, Authority
from equipoise.agent.lifecycle import stored_config
from equipoise.agent.lifecycle.opening import with_after_decision
from equipoise.agent.maintenance.audit_chain import append_anchor
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.agent.service.analyst.client import AnalystClient
from equipoise.agent.service.analyst.connection import AnalystError
from equipoise.agent.service.analyst.reports import Report
from equipoise.agent.service.api.problems import Refusal
from equipoise.agent.service.api.schema import PassThrough, Readiness
from equipoise.agent.service.control import (
    APART_SECONDS,
    POLL_SECONDS,
    Breaker,
    Clock,
    KillSwitch,
    Switches,
)
from equipoise.agent.service.hot_path.batching import GroupCommit
from equipoise.agent.service.hot_path.handlers import HotHandlers
from equipoise.agent.service.http.access import ANYBODY, OutcomeTokens, Rates
from equipoise.agent.service.telemetry import Counters, Log
from equipoise.agent.service.upkeep.announcer import Announcer
from equipoise.agent.service.upkeep.jobs import Jobs, Retention
from equipoise.agent.service.upkeep.shadow import Shadow
from equipoise.store.errors import StoreError, TornAppendError
from equipoise.store.lanes import Hub, Term
from equipoise.store.lanes import Report as Shipped
from equipoise.store.opening import ServedStore

SHORTEST_REFRESH_SECONDS = 0.25
WARNING_SECONDS = 60.0
STOP_SHARE = 0.8
"""Of the seconds a stop may take, for the last work of the analyst; it may be hung."""
BROKEN = 70
"""Exit code where the state is behind the log (EX_SOFTWARE): start it again."""
DEPOSED = 75
"""Exit code where another authority was elected (EX_TEMPFAIL): start it again, to stand by."""
RESTS = 4.0
"""Between two refreshes, in times of what the last one took, but no longer than between two by
the clock."""


class Office(NamedTuple):
    """An authority's: where it was elected, and its term."""

    hub: Hub
    term: Term


class Daemon:
    """Everything that runs. key: as of `Agent`. office: of an authority, whose deciders draw; None
    where requests are decided here.

    Raises what `Agent` raises where the store was opened with another configuration or key.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        settings: ServiceSettings,
        store: ServedStore,
        key: bytes,
        log: Log,
        office: Office | None = None,
    ) -> None:
        self.settings = settings
        self.store = store
        self.log = log
        self.clock = Clock()
        open_bytes = settings.limits.open_bytes
        config = with_after_decision(config, store)
        before = stored_config.load(store)
        self.agent = Agent(config, store, key, at=self.clock(), open_bytes=open_bytes)
        self.agent.when_broken = self._broke
        # While the sums are here: what was certified of rows drawn elsewhere is kept.
        self.agent.end_drawn(self.clock())
        self.agent.controls.set_lanes(office is not None, self.clock())
        self.exit_code = 0
        """What the process ends with: BROKEN where it has to be started again, DEPOSED where
        another authority was elected."""
        self.end: Callable[[], None] = lambda: None
        """Ends the process that serves, soon; set by who runs it."""
        self.counters = Counters()
        self.breaker = Breaker()
        kill_switch = KillSwitch(settings.kill_switch_path)
        self.switches = Switches(self.agent, settings.mode, kill_switch, self._passes_through)
        requests = config.budget.requests
        if before is not None and ExperimentConfig.from_json(before).budget.requests != requests:
            # The file was changed since: its word is newer than any that was given meanwhile.
            self.switches.set_budget(requests, self.clock())
        self.adapter = RecordAdapter(self.agent, self.clock, lambda: self.clock.off)
        rate = settings.limits.decide_per_second
        self.rates = None if rate is None else Rates(rate)
        self.tokens = OutcomeTokens(key, config.name, required=settings.outcomes == "signed")
        self.authority = None if office is None else self._authority(office)
        if self.authority is not None:
            self.adapter.awaits = self.authority.awaits
        self.hot = HotHandlers(
            self.adapter,
            kill_switch,
            self.breaker,
            self.counters,
            settings.limits.rows,
            self.tokens,
            self.rates,
            self._leaves_deciding,
        )
        self.analysis = AnalystClient(
            self.agent, store, self.counters, log, open_bytes, settings.limits.analyst_seconds
        )
        self.barrier = GroupCommit(store.begin_sync) if store.must_sync else None
        self.jobs = Jobs(self.counters, log)
        shadow = settings.shadow
        self.shadow = None if shadow is None else Shadow(self.adapter, shadow, log)
        days = settings.retention
        self.retention = (
            None if days is None else Retention(days, self.analysis, store, self.counters, log)
        )
        self.announcer = Announcer(config.name, settings.webhook, store, log)
        self.stopping = False
        self._seen: tuple[object, ...] = ()
        self._refused_logged, self._refused_logged_at = 0, -math.inf
        self._polling: asyncio.TimerHandle | None = None
        self._reloads: set[asyncio.Task[None]] = set()
        self._folded = self._outcomes = 0
        self._away = 0.0
        self._checkpointed = self.agent.light.next_seq
        self._displaced = ""

    def _authority(self, office: Office) -> Authority:
        lanes = self.settings.lanes
        return Authority(
            self.agent,
            self.adapter,
            office.hub,
            office.term,
            self.log,
            term_seconds=lanes.lease_seconds,
            publish_seconds=lanes.publish_seconds,
            stale_seconds=lanes.stale_seconds,
            grace=lanes.lease_seconds / 2.0,
            vouch=self._vouch,
            settled=self._settled,
            deposed=self._deposed,
        )

    def _leaves_deciding(self) -> PassThrough | None:
        return None if self.authority is None else "no-decider"

    def _vouch(self, report: Shipped, decision_id: str) -> None:
        """Refuse what came to a decider with the token of another decision."""
        if report.token is not None:
            try:
                self.tokens.check(decision_id, report.token, ANYBODY)
            except Refusal as error:
                raise AgentError("an outcome with the token of another decision") from error

    def _settled(self) -> None:
        """Return once what was appended is as durable as the store promises; in any thread."""
        if self.store.must_sync:
            self.store.begin_sync()()

    def _deposed(self) -> None:
        self.exit_code = DEPOSED
        self.end()

    async def start(self) -> None:
        """Begin the jobs; requests may come from now on."""
        settings = self.settings
        if self.authority is not None:
            await self.authority.start()
            self.jobs.add("lanes", TURN_SECONDS, self.authority.turn)
        for name, job in zip(
            JOBS, (self._refresh, self._checkpoint, self._expire, self._foresee), strict=True
        ):
            self.jobs.add(name, getattr(settings, f"{name}_seconds"), job)
        if self.shadow is not None and settings.shadow is not None:
            self.jobs.add("shadow", settings.shadow.every_seconds, self._shadow)
        if self.retention is not None and settings.retention is not None:
            self.jobs.add("retention", settings.retention.every_seconds, self._retain)
        self._lighten()
        self._compare_clocks()
        self.announcer.start(self.clock())
        self.jobs.start()
        self.jobs.soon("refresh")
        self._poll()
        self.log.info(
            "started",
            experiment=self.agent.config.name,
            log_rows=self.agent.light.next_seq,
            rule=self.agent.rule.rule_id,
            mode=settings.mode,
            durability=settings.durability,
        )
        self._log_recovery()

    def _log_recovery(self) -> None:
        """Log what the start found beside the database."""
        recovery = self.store.leftovers
        if recovery.files:
            self.log.info(
                "tail",
                rows=recovery.recovered,
                files=len(recovery.files),
                stopped_at=recovery.stopped,
            )
        for gap in recovery.gaps:
            self.log.error("loss", rows=gap.rows, numbers=gap.numbers, sentence=gap.sentence)

    @asynccontextmanager
    async def with_sums(self) -> AsyncIterator[None]:
        """A context with the sums in the daemon's own process, for whoever freezes a rule here;
        nothing may be awaited inside. They come from the analyst, which hears of the rule of a new
        era. Raises AnalystError, StoreError."""
        async with self.analysis.freezing:
            experiment = self.agent.state
            if not experiment.keeps_sums:
                # Rows that come meanwhile are read from the store; then everything is in step.
                state = (await self.analysis.state()).state
                before = experiment.light.to_bytes()
                experiment.load_sums(state)
                try:
                    self.agent.follow()
                except StoreError:
                    # Rows in the tail cannot be read back now: be what we were.
                    experiment.light.load_bytes(before)
                    experiment.lighten()
                    raise
            era = self.agent.rule.era
            try:
                yield
            finally:
                if self.agent.rule.era != era:
                    self.analysis.adopt(self.agent.rule.record(self.clock()))
                self._lighten()

    def _lighten(self) -> None:
        """Leave sums to the analyst: a chunk of rows costs several decisions' time to sum up.

        A budget in money or harm is valued by them at every decision's side, and shadow replay
        counts what it spent, so they keep theirs.
        """
        if self.agent.state.purse.limits.keys() <= {"requests"} and self.shadow is None:
            self.agent.state.lighten()

    def run_with_sums(self, work: Callable[[], None]) -> None:
        """Do the work of a reload with sums at hand, once they are."""

        async def run() -> None:
            try:
                async with self.with_sums():
                    work()
            except (AnalystError, StoreError) as error:
                self.log.failed("reload", error)

        task = asyncio.get_running_loop().create_task(run())
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)

    def begin_stop(self) -> None:
        """A signal came: nobody waits for an answer of the analyst any longer."""
        self.analysis.abandon()

    async def stop(self) -> None:
        """End the jobs, save a last checkpoint, move everything into SQLite, let go."""
        self.stopping = self.hot.stopping = True
        if self._polling is not None:
            self._polling.cancel()
        self.begin_stop()
        seconds = self.settings.shutdown_seconds
        end = time.monotonic() + STOP_SHARE * seconds
        await self.jobs.stop(seconds * STOP_SHARE / 2)
        if self.authority is not None and self.agent.broken is None:
            await self.authority.stop()
        if self.shadow is not None:
            await self.shadow.close()
        await self.announcer.close()
        try:
            whole = self.agent.broken is None and self.store.displaced is None
            if self.agent.light.next_seq > self._checkpointed and whole:
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    await self.analysis.checkpoint(self.clock())
                    await self._anchor()
        except (StoreError, AnalystError, TimeoutError) as error:
            # A checkpoint only saves time; the log itself is whole without it.
            self.log.failed("checkpoint", error)
        await self.analysis.close()
        self.store.close()
        self.log.info("stopped", log_rows=self.agent.light.next_seq)

    def _broke(self, error: BaseException) -> None:
        """Have the process end: the state is behind the log, and only a start brings it back.

        Requests are passed through until then.
        """
        self.exit_code = BROKEN
        self.log.failed("state-behind-log", error, exit_code=BROKEN)
        self.end()

    def apply(self, settings: ServiceSettings) -> None:
        """Take other settings while running: intervals, mode, log level."""
        self.settings = settings
        self.log.level = settings.log_level
        self.switches.set_mode(settings.mode)
        for name in JOBS:
            self.jobs.change(name, getattr(settings, f"{name}_seconds"))

    def reconfigure(self, config: ExperimentConfig) -> None:
        """Take over what may change in a running experiment. Raises AgentError for the rest."""
        config = with_after_decision(config, self.store)
        changes = self.agent.reconfigure(config, self.clock())
        if any(change.key == "budget.requests" for change in changes):
            self.switches.set_budget(config.budget.requests, self.clock())
        else:
            self.agent.controls.keep_budget()
        # The next analyst reads the configuration, and every rule, from the store.
        self.analysis.forget()

    def _passes_through(self) -> bool:
        """Whether requests are passed through, be the kill switch on or not."""
        return (
            self.stopping
            or self.agent.broken is not None
            or self.store.displaced is not None
            or self.breaker.reason is not None
        )

    def can_log(self) -> bool:
        """Whether rows can be logged now, as far as is known before it is tried."""
        return not (
            self.stopping
            or self.agent.broken is not None
            or self.store.displaced is not None
            or self.breaker.open
        )

    def readiness(self) -> Readiness:
        """Whether requests are decided and logged now, else why not."""
        problems = []
        if self.stopping:
            problems.append("The daemon is stopping.")
        if self.agent.broken is not None:
            problems.append("The state is behind the log: the daemon is starting again.")
        if self.switches.kill_switch.on:
            problems.append("The kill switch is on: its file exists.")
        if self.store.displaced is not None:
            problems.append(f"The store cannot keep what is logged: {self.store.displaced}.")
        elif self.breaker.reason is not None:
            problems.append(f"The store refused a write: {self.breaker.reason}.")
        elif self.store.trouble is not None:
            problems.append(
                "SQLite does not take what waits in the tail."
                if self.store.waiting
                else f"The database does not answer: {self.store.trouble}."
            )
        if (silent := self.analysis.hung) is not None:
            problems.append(silent)
        if self.authority is not None and self.authority.problem is not None:
            problems.append(f"Deciders cannot be heard: {self.authority.problem}.")
        return Readiness(
            ready=not problems,
            problems=problems,
            mode=self.switches.answer(),
            log_rows=self.agent.light.next_seq,
            rule_id=self.agent.rule.rule_id,
            losses=[gap.sentence for gap in self.agent.state.gaps],
        )

    def poll_store(self) -> None:
        """Whether a store that failed works again, without waiting for a request to find out.

        A daemon that is not ready may get no requests. And whether its files are in their places,
        which no request would find out.
        """
        displaced = self.store.check_files()
        if displaced is not None:
            if str(displaced) != self._displaced:
                self.log.error("files-displaced", problem=str(displaced))
            self.breaker.trip(displaced)
        self._displaced = str(displaced or "")
        if self.breaker.reason is not None and not self.breaker.open:
            try:
                self.store.probe()
            except StoreError as error:
                self.breaker.trip(error)
            except TornAppendError as error:
                self._broke(error)
            else:
                self.breaker.close()
                self.log.info("store-works-again")

    def _poll(self) -> None:
        """Several times a second: kill switch, clock, store, and the number of outcomes."""
        loop = asyncio.get_running_loop()
        self._polling = loop.call_later(POLL_SECONDS, self._poll)
        moved = self.clock.adjust()
        if moved:
            self.counters.clock_steps += 1
            self.log.warning("clock-set", seconds=round(moved, 1), ahead=round(self.clock.off, 1))
        if self.switches.kill_switch.poll():
            self.log.warning("kill-switch", on=self.switches.kill_switch.on)
        self.poll_store()
        self._look()
        self._log_refused()
        outcomes = self.counters.outcomes["accepted"]
        if outcomes - self._outcomes >= self.settings.refresh_outcomes:
            self._outcomes = outcomes
            self.jobs.soon("refresh")

    def _look(self) -> None:
        """Announce what the status is now, where it may be another than before."""
        state, report = self.agent.state, self.analysis.newest
        seen = id(report), state.paused, state.ended, self.agent.rule.era
        if report is None or seen == self._seen:
            return
        self._seen = seen
        if report.estimates.era != self.agent.rule.era:
            return  # what it says is of an era that has ended
        answer = report.recommendation(situation=self.switches.situation())
        self.announcer.look(answer, report.estimates.era, self.clock())

    def _log_refused(self) -> None:
        """Log, once a minute at the most, that connections were refused."""
        count, now = self.counters.refused[503], time.monotonic()
        more = count - self._refused_logged
        if more and now - self._refused_logged_at >= WARNING_SECONDS:
            limit = self.settings.limits.connections
            self.log.warning("connections-refused", limit=limit, count=more)
            self._refused_logged, self._refused_logged_at = count, now

    async def _refresh(self) -> None:
        rows = self.agent.light.next_seq
        if self.store.displaced is not None:
            return  # who reads by name would read something else
        report = self.analysis.newest
        of_this_era = report is None or report.estimates.era == self.agent.rule.era
        if rows == self._folded and of_this_era:
            # Started before there is anything to do, the analyst is there when there is.
            await self.analysis.start()
            return
        self._outcomes, start = self.counters.outcomes["accepted"], time.monotonic()
        if await self.analysis.refresh():
            self.log.debug("rule", rule=self.agent.rule.rule_id, log_rows=rows)
        report = self.analysis.newest
        if report is not None:
            await self._review(report)
        self._folded = rows
        # Under a flood of outcomes this bounds how often a rule is frozen, and leaves the core to
        # decisions most of the time.
        rest = max(SHORTEST_REFRESH_SECONDS, RESTS * (time.monotonic() - start))
        await asyncio.sleep(min(rest, self.settings.refresh_seconds))

    async def _review(self, report: Report) -> None:
        """As `Controls.review`, with the checks that the analyst asked: keep what changed, and do
        what alarms ask for: an era, a pause, a model left out."""
        agent, controls = self.agent, self.agent.controls
        checks = report.checks
        for alert in await asyncio.to_thread(controls.keep_alerts, checks.checks, checks.at):
            self.log.warning("check", check=alert.check, status=alert.status)
        consequences = [action.consequence() for action in report.actions]
        era = report.estimates.era
        freezes = era == agent.rule.era and controls.begins_era(consequences)
        async with self.with_sums() if freezes else contextlib.nullcontext():
            if era != agent.rule.era:
                return  # what it says is of an era that has ended
            paused = agent.state.paused
            controls.apply_alarm_actions(consequences, self.clock())
        if agent.rule.era != era:
            reason = agent.state.eras.reason(agent.rule.era)
            self.log.warning("era", era=agent.rule.era, reason=reason)
        if agent.state.paused != paused:
            self.log.warning("paused", reason=agent.state.paused)

    async def _checkpoint(self) -> None:
        if self.agent.light.next_seq > self._checkpointed and self.store.displaced is None:
            self._checkpointed = await self.analysis.checkpoint(self.clock())
            self.log.debug("checkpoint", log_rows=self._checkpointed)
            await self._anchor()

    async def _anchor(self) -> None:
        """Say where the hash chain stands, to a file that nobody can take it back from."""
        if self.settings.anchor is not None:
            try:
                anchor = await asyncio.to_thread(self.store.anchor, self.clock())
                await asyncio.to_thread(append_anchor, Path(self.settings.anchor), anchor)
            except OSError as error:
                self.log.failed("anchor", error)

    async def _foresee(self) -> None:
        before = self.analysis.forecast
        new = before is None or before.log_rows < self.agent.light.next_seq
        if new and self.store.displaced is None:
            forecast = await self.analysis.foresee()
            self.log.debug("forecast", sentence=forecast.sentence)

    async def _retain(self) -> None:
        assert self.retention is not None
        if self.store.displaced is not None:
            return
        await self.retention.run(self.clock())

    async def _shadow(self) -> None:
        assert self.shadow is not None
        if not self.switches.kill_switch.on and self.agent.state.ended is None:
            rows = await self.shadow.run()
            if rows:
                self.counters.bulk["shadow"] += rows
                self.log.info("shadow", rows=rows, spent_usd=round(self.shadow.spent, 4))

    def _compare_clocks(self) -> None:
        """Say it where the log and the machine's clock cannot both be right."""
        newest = self.agent.light.ledger.arrivals.latest
        self._away = self.clock() - newest  # not a number before any decision
        if self._away < -APART_SECONDS:
            self.log.warning("clock-behind-log", seconds=round(-self._away, 1))

    async def _expire(self) -> None:
        now = self.clock()
        if self.authority is not None:
            # What came in time and waits in the hub must not find its decision closed.
            now = min(now, self.authority.heard)
            if now < 0.0:
                return
        with contextlib.suppress(StoreError):  # they expire when the store works again
            count = self.agent.expire(now)
            if count:
                self.counters.outcomes["expired"] += count
                window = self.agent.config.reward.window
                if window is not None and self._away > window:
                    # Everything that waited, at once: the daemon was down, or the clock was set.
                    self.log.warning("expired-at-start", decisions=count, away=round(self._away, 1))
                self.log.debug("expired", decisions=count)
            self._away = 0.0
