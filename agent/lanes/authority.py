"""The authority: publishes what deciders act by, and lets what they ship into the log.

One turn after another, each as far as the hub can be reached: renew the term, end leases that ran
out, publish, give numbers to decisions, then take outcomes. The hub is asked in a thread; the agent
is touched by the event loop's thread alone.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol, TypeVar

import msgspec

from equipoise.agent.agent import Agent
from equipoise.agent.lanes.publishing import Limits, TicketOffice, publication
from equipoise.agent.lanes.sequencing import PORTION_ROWS, Sequenced, Sequencer, closed_version
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.lanes import (
    Hub,
    HubError,
    LaneStatus,
    Parcel,
    Publication,
    Report,
    Term,
    TermEndedError,
)

T = TypeVar("T")
TURN_SECONDS = 0.1
MOST_VERSIONS = 10_000
"""Publications that are kept for lanes that were lost; what is shipped later still enters."""
OUTCOMES_AT_ONCE = 64
"""Parcels of outcomes of one turn of theirs."""
_KEEP_SHARE = 1 / 3
"""Of a term that may pass before it is renewed."""


class Logger(Protocol):
    """What is written for operators."""

    def info(self, event: str, **facts: Any) -> None: ...

    def warning(self, event: str, **facts: Any) -> None: ...


class LaneReport(msgspec.Struct, frozen=True, kw_only=True):
    """A lane as its authority sees it.

    lane: its number. name: of its decider. held: whether its decider may draw. lost: whether it
    lost its lease. whole: whether nothing of it is left to come. version: of the publication that
    it acts by. seconds: until its lease runs out, below 0 where it did. draws: how many requests it
    has randomized, as it said last. tickets: how many it may randomize in all, null for any number.
    """

    lane: int
    name: str
    held: bool
    lost: bool
    whole: bool
    version: int
    seconds: float
    draws: int
    tickets: int | None


class LanesReport(msgspec.Struct, frozen=True, kw_only=True):
    """All lanes, and what became of what they shipped since the authority started. Nothing at all
    where requests are decided here.

    lanes: those that are held, or of which something is left to come. version: of the newest
    publication, 0 before any. sequenced: the newest of which all decisions are in the log. behind:
    seconds since that one was followed by another, 0 where it was not. waiting: rows that are
    shipped and not in the log, by kind. decisions: that entered the log. late: those of them that
    came after their lane was lost, and count as usage alone. repeated: those whose request another
    lane had decided. bounded: those whose time was moved into what is possible. outcomes: parts
    that entered. duplicates: parts that said nothing new. out_of_time: parts that came after their
    window. refused: parts that the log cannot take, by reason. problem: why the hub cannot be
    reached, null where it can.
    """

    lanes: list[LaneReport] = []
    version: int = 0
    sequenced: int = 0
    behind: float = 0.0
    waiting: dict[str, int] = {}
    decisions: int = 0
    late: int = 0
    repeated: int = 0
    bounded: int = 0
    outcomes: int = 0
    duplicates: int = 0
    out_of_time: int = 0
    refused: dict[str, int] = {}
    problem: str | None = None


class Authority:
    """One experiment's authority, from its election on.

    agent: of the whole log, with its key; adapter: its names; hub, term: where it was elected, as
    `name`.
    term_seconds: for how long a term is kept. publish_seconds: between two publications; stale: how
    long deciders may go on by one; grace: seconds that a lane has to ship after its lease ran out.
    vouch: as of `Sequencer`. settled: called before the hub is told to forget rows, and returns
    once they are as durable as the store promises; deposed: called once another authority was
    elected.
    """

    def __init__(
        self,
        agent: Agent,
        adapter: RecordAdapter,
        hub: Hub,
        term: Term,
        log: Logger,
        *,
        name: str = "authority",
        term_seconds: float = 10.0,
        publish_seconds: float = 1.0,
        stale_seconds: float = 60.0,
        grace: float = 5.0,
        vouch: Callable[[Report, str], None] = lambda report, name: None,
        settled: Callable[[], Any] = lambda: None,
        deposed: Callable[[], None] = lambda: None,
    ) -> None:
        self._agent, self._hub, self._term, self._log = agent, hub, term, log
        self._name = name
        self._term_seconds, self._publish_seconds = term_seconds, publish_seconds
        self._stale_seconds, self._grace = stale_seconds, grace
        self._settled, self._deposed = settled, deposed
        self._office = TicketOffice(len(agent.models), len(agent.config.budget.segments))
        self._sequencer = Sequencer(agent, adapter, self._office.count, vouch)
        self._newest: Publication | None = None
        self._signature: tuple[object, ...] = ()
        self._published = self._kept = 0.0
        self._sequenced = 0
        self._lanes: list[LaneStatus] = []
        self._waiting: dict[str, int] = {}
        self._hub_ahead = 0.0
        self._turn = asyncio.Lock()
        self.problem: str | None = None
        """Why the hub cannot be reached, None while it can."""
        self.over = False
        """Whether another authority was elected."""
        self.heard = -math.inf
        """Until when all outcomes that came of decisions of the log are in it too, by the hub's
        clock: windows that ended later may not be closed yet. -inf where decisions entered since.
        """

    @property
    def done(self) -> Sequenced:
        """What became of what came, since the start."""
        return self._sequencer.done

    async def start(self) -> None:
        """Go on where the authority before stopped, and publish. Raises HubError."""
        publications = await self._ask(self._hub.publications, 0)
        self._office.resume(publications)
        self._sequencer.versions = {each.version: each for each in publications}
        self._newest = publications[-1] if publications else None
        self._kept = time.monotonic()
        await self._look()
        await self._publish()

    async def turn(self) -> None:
        """Do what is due. A hub that cannot be reached is tried again by the next turn."""
        async with self._turn:
            await self._safely(self._work)

    async def stop(self) -> None:
        """Take what deciders have shipped that left, and give the office back."""
        async with self._turn:
            if not self.over:
                await self._safely(self._finish)

    async def _safely(self, work: Callable[[], Any]) -> None:
        if self.over:
            return
        try:
            try:
                await work()
            except TermEndedError:
                # It ran out while this process slept, or the machine was short of time. Where
                # nobody else was elected it goes on: the log has had no other writer.
                if not await self._elected_again():
                    raise
                self._log.warning("elected-again")
        except TermEndedError as error:
            self.over = True
            self.problem = str(error)
            self._log.warning("deposed", problem=str(error))
            self._deposed()
        except HubError as error:
            if self.problem is None:
                self._log.warning("hub-away", problem=str(error))
            self.problem = str(error)
        else:
            if self.problem is not None:
                self._log.info("hub-back")
            self.problem = None

    async def _elected_again(self) -> bool:
        term = await self._ask(self._hub.elect, self._name, self._term_seconds)
        if term is None:
            return False
        self._term, self._kept = term, time.monotonic()
        assert self._newest is not None
        # What another one may have published, and given away, in between.
        others = await self._ask(self._hub.publications, self._newest.version + 1)
        if others:
            self._office.resume(others)
            self._sequencer.versions |= {each.version: each for each in others}
        await self._look()
        await self._publish()
        return True

    async def _work(self) -> None:
        await self._renew()
        await self._look()
        for lane in await self._ask(self._hub.end_lapsed, self._term, self._grace):
            self._log.warning("lane-lost", lane=lane)
        if self._is_due():
            await self._publish()
        await self._sequence()
        await self._take_outcomes()
        self._sequencer.close_again(time.time() + self._hub_ahead)
        await self._tidy()

    async def _renew(self) -> None:
        """Renew the term where that is due: in the middle of a long turn too."""
        now = time.monotonic()
        if now - self._kept >= self._term_seconds * _KEEP_SHARE:
            self._term = await self._ask(self._hub.keep, self._term)
            self._kept = now

    async def _finish(self) -> None:
        await self._look()
        await self._publish()
        # Twice: what was decided by the newest publication is closed by the next one.
        await self._look()
        await self._sequence()
        await self._take_outcomes()
        await self._ask(self._hub.resign, self._term)

    async def _look(self) -> None:
        # First the newest: of a publication whose answer was lost it is known only here.
        newest = await self._ask(self._hub.newest)
        if newest is not None:
            self._newest = self._sequencer.versions[newest.version] = newest
        self._lanes = await self._ask(self._hub.lanes)
        self._hub_ahead = await self._ask(self._hub.now) - time.time()
        self._waiting = await self._ask(self._hub.waiting)

    def _is_due(self) -> bool:
        age = time.monotonic() - self._published
        if age >= self._publish_seconds or self._signed() != self._signature:
            return True
        return self._office.wants(Limits.of(self._agent), self._lanes)

    def _signed(self) -> tuple[object, ...]:
        """What is published at once where it changes."""
        state = self._agent.state
        spent = self._agent.light.ledger.by_segment.tolist()
        caps = [segment.max_requests for segment in state.config.budget.segments]
        closed = tuple(had >= cap for cap, had in zip(caps, spent, strict=True))
        budget = self._agent.controls.budget
        return state.rule.rule_id, state.paused, state.observing_only, budget, closed

    async def _publish(self) -> None:
        version = 1 if self._newest is None else self._newest.version + 1
        self._office.grant(Limits.of(self._agent), self._lanes, version)
        signature = self._signed()
        made, documents = publication(
            self._agent, version, self._office, self._lanes, self._stale_seconds
        )
        # Known before it is published: what may have been published is acted by.
        self._sequencer.versions[version] = made
        at = await self._ask(self._hub.publish, self._term, made, documents)
        self._newest = msgspec.structs.replace(made, at=at)
        self._sequencer.versions[version] = self._newest
        self._signature, self._published = signature, time.monotonic()

    async def _sequence(self) -> None:
        assert self._newest is not None
        closed = closed_version(self._newest.version, self._lanes)
        while True:
            parcels = await self._ask(self._fetch, closed)
            if not parcels:
                break
            self.heard = -math.inf
            for finished in self._sequencer.decisions(iter(parcels)):
                await self._forget(finished)
                await self._renew()
        self._sequenced = self._sequencer.closed = max(self._sequenced, closed)

    def _fetch(self, version: int) -> list[Parcel]:
        parcels, rows = list[Parcel](), 0
        for parcel in self._hub.decisions(version):
            if parcel.version > version:
                # It came late, and of others of its time some may still come: those enter first.
                continue
            parcels.append(parcel)
            rows += parcel.rows
            if rows >= PORTION_ROWS:
                break
        return parcels

    async def _take_outcomes(self) -> None:
        """One after another those that came, past those that wait for their decisions."""
        began = await self._ask(self._hub.now)
        parcels = await self._ask(self._hub.outcomes, OUTCOMES_AT_ONCE)
        while parcels:
            now = time.time() + self._hub_ahead
            finished = self._sequencer.outcomes(parcels, now)
            if finished:
                await self._forget(finished)
            await self._renew()
            if len(parcels) < OUTCOMES_AT_ONCE:
                break
            parcels = await self._ask(self._hub.later_outcomes, parcels[-1], OUTCOMES_AT_ONCE)
        self.heard = began

    async def _forget(self, finished: list[tuple[int, int]]) -> None:
        await asyncio.to_thread(self._settled)
        await self._ask(self._hub.forget, self._term, finished)

    async def _tidy(self) -> None:
        """Forget lanes and publications that nobody can ask for again."""
        gone = [lane.lane for lane in self._lanes if lane.ended is not None and lane.whole]
        if gone:
            await self._ask(self._hub.forget_lanes, self._term, gone)
            still = {lane.lane for lane in await self._ask(self._hub.lanes)}
            self._office.forget([lane for lane in gone if lane not in still])
        versions = self._sequencer.versions
        needed = min(
            [self._sequenced, *(lane.adopted for lane in self._lanes if not lane.whole)],
            default=0,
        )
        if self._newest is not None:
            # A lane that was lost and never comes back must not keep them all.
            needed = max(needed, self._newest.version - MOST_VERSIONS)
        old = [version for version in versions if version < needed]
        if old:
            await self._ask(self._hub.forget_publications, self._term, needed)
            for version in old:
                del versions[version]

    async def _ask(self, call: Callable[..., T], *arguments: Any) -> T:
        return await asyncio.to_thread(call, *arguments)

    def awaits(self, lane: int) -> bool:
        """Whether decisions of a lane may come that the log has not."""
        return any(each.lane == lane for each in self._lanes)

    def report(self) -> LanesReport:
        """All lanes as they were at the last turn."""
        done, newest = self.done, self._newest
        now = time.time() + self._hub_ahead
        follower = self._sequencer.versions.get(self._sequenced + 1)
        tickets = self._office.tickets(self._lanes)
        return LanesReport(
            version=0 if newest is None else newest.version,
            sequenced=self._sequenced,
            behind=0.0 if follower is None or not follower.at else max(now - follower.at, 0.0),
            lanes=list(self._lane_reports(now, tickets)),
            waiting=self._waiting,
            decisions=done.decisions,
            late=done.late,
            repeated=done.repeated,
            bounded=done.bounded,
            outcomes=done.outcomes,
            duplicates=done.duplicates,
            out_of_time=done.out_of_time,
            refused=done.refused,
            problem=self.problem,
        )

    def _lane_reports(self, now: float, tickets: dict[int, Any]) -> Iterator[LaneReport]:
        for lane in self._lanes:
            own = tickets.get(lane.lane)
            yield LaneReport(
                lane=lane.lane,
                name=lane.name,
                held=lane.ended is None,
                lost=lane.lost,
                whole=lane.whole,
                version=lane.adopted,
                seconds=lane.until - now,
                draws=lane.spent.draws,
                tickets=0 if own is None else own.draws,
            )
