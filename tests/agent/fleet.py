"""An authority and its deciders in one process, in steps that a test calls one by one."""

from __future__ import annotations

from dataclasses import dataclass, field

import msgspec
import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.lanes.lane import lane_caps, lane_config
from equipoise.agent.lanes.publishing import Limits, TicketOffice, publication
from equipoise.agent.lanes.sequencing import Sequencer, closed_version
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import Batch, DecisionBatch, OutcomeBatch, RequestBatch
from equipoise.store.format.frames import batch_to_body
from equipoise.store.lanes import LaneStatus, Parcel, Publication, Tickets
from equipoise.store.lanes.contract import Spent
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Era, RuleRecord


@dataclass
class Lane:
    """A decider: an agent over its own lane, what it has not shipped, and what the hub knows.

    skew: by how many seconds its clock is ahead.
    """

    number: int
    agent: Agent
    version: int = 0
    ended: float | None = None
    skew: float = 0.0
    adopted: int = 0
    unshipped: list[Parcel] = field(default_factory=list)
    places: int = 0
    said: Spent = field(default_factory=Spent)
    whole: bool = False

    @property
    def spent(self) -> Spent:
        ledger = self.agent.light.ledger
        return Spent(
            int(ledger.by_model.sum()),
            tuple(ledger.by_model.astype(int).tolist()),
            tuple(ledger.by_segment.astype(int).tolist()),
        )

    def adopt(self, made: Publication, documents: dict[str, str]) -> None:
        store = self.agent.store
        store.put(msgspec.json.decode(documents[f"era:{made.era}"], type=Era))
        record = msgspec.json.decode(documents[f"rule:{made.rule_id}"], type=RuleRecord)
        store.put(record)
        self.agent.controls.adopt(record)
        self.agent.state.paused = made.off
        self.agent.state.observing_only = made.observing
        unnamed = Tickets() if made.uncounted else Tickets(draws=0)
        self.agent.limit(made.tickets.get(self.number, unnamed), made.exhausted)
        self.agent.state.caps = lane_caps(lane_config(self.agent.config), made.closed_segments)
        self.version = made.version

    def decide(self, requests: RequestBatch) -> DecisionBatch:
        batch = self.agent.decide(
            RequestBatch(
                requests.unit,
                requests.context,
                requests.at + self.skew,
                requests.x,
                requests.routed,
                requests.eligible,
                requests.request_id,
                requests.unit_id,
                requests.context_id,
            )
        )
        self._pack("decisions", self.version, batch)
        return batch

    def observe(self, outcomes: OutcomeBatch) -> None:
        self.agent.observe(outcomes)
        self._pack("outcomes", 0, outcomes)

    def report(self, body: bytes, rows: int = 1) -> None:
        self.unshipped.append(Parcel(self.number, self.places, "reports", 0, rows, body))
        self.places += 1

    def _pack(self, kind, version: int, batch: Batch) -> None:
        body = batch_to_body(batch)
        self.unshipped.append(Parcel(self.number, self.places, kind, version, len(batch), body))
        self.places += 1


class Fleet:
    """An experiment with deciders. now: the clock of the hub, which the test sets."""

    def __init__(self, config: ExperimentConfig, key: bytes, lanes: int, store=None) -> None:
        self.config, self.key, self.now = config, key, 0.0
        store = MemoryStore() if store is None else store
        self.main = Agent(config, store, key)
        self.main.controls.set_lanes(True, 0.0)
        self.office = TicketOffice(len(config.models), len(config.budget.segments))
        adapter = RecordAdapter(self.main, lambda: self.now)
        self.sequencer = Sequencer(self.main, adapter, self.office.count)
        self.newest: Publication | None = None
        self.documents: dict[str, str] = {}
        self.shipped: list[Parcel] = []
        self.waiting: list[Parcel] = []
        self.lanes: list[Lane] = []
        self.publish()
        for _ in range(lanes):
            self.join()
        self.publish()
        self.adopt()

    def join(self) -> Lane:
        number = len(self.lanes) + 1
        agent = Agent(self.config, MemoryStore(), self.key, lane=number)
        lane = Lane(number, agent, adopted=self.newest.version)
        self.lanes.append(lane)
        lane.adopt(self.newest, self.documents)
        return lane

    def statuses(self) -> list[LaneStatus]:
        return [
            LaneStatus(
                lane=each.number,
                name="test",
                joined=0.0,
                until=np.inf,
                ended=each.ended,
                lost=each.ended is not None,
                adopted=each.adopted,
                places=each.places,
                spent=each.said,
                whole=each.whole,
            )
            for each in self.lanes
        ]

    def publish(self) -> Publication:
        version = 1 if self.newest is None else self.newest.version + 1
        self.office.grant(Limits.of(self.main), self.statuses(), version)
        made, documents = publication(self.main, version, self.office, self.statuses(), 60.0)
        self.newest = msgspec.structs.replace(made, at=self.now)
        self.documents |= documents
        self.sequencer.versions[version] = self.newest
        return self.newest

    def adopt(self, *lanes: Lane) -> None:
        for lane in lanes or self.lanes:
            if lane.ended is None:
                lane.adopt(self.newest, self.documents)

    def ship(self, *lanes: Lane) -> None:
        for lane in lanes or self.lanes:
            late = lane.ended is not None
            for parcel in lane.unshipped:
                self.shipped.append(
                    Parcel(
                        parcel.lane,
                        parcel.place,
                        parcel.kind,
                        parcel.version,
                        parcel.rows,
                        parcel.body,
                        self.now,
                        late,
                    )
                )
            lane.unshipped = []
            lane.said = lane.spent
            if not late:
                lane.adopted = lane.version
            else:
                lane.whole = True

    def lose(self, lane: Lane) -> None:
        """The authority ends a lane whose lease ran out."""
        lane.ended = self.now

    def sequence(self) -> None:
        """As the authority does in a turn."""
        closed = closed_version(self.newest.version, self.statuses())
        decisions = [each for each in self.shipped if each.kind == "decisions"]
        due = sorted(
            (each for each in decisions if each.version <= closed),
            key=lambda each: (each.late, 0 if each.late else each.version, each.lane, each.place),
        )
        finished = {name for some in self.sequencer.decisions(iter(due)) for name in some}
        assert finished == {(each.lane, each.place) for each in due}
        self.sequencer.closed = max(self.sequencer.closed, closed)
        others = [each for each in self.shipped if each.kind != "decisions"]
        finished |= set(self.sequencer.outcomes(others, self.now))
        self.shipped = [each for each in self.shipped if (each.lane, each.place) not in finished]

    def tidy(self) -> None:
        """Forget lanes of which nothing is left to come."""
        waiting = {parcel.lane for parcel in self.shipped}
        self.office.forget(
            [each.number for each in self.lanes if each.whole and each.number not in waiting]
        )

    def turn(self, refresh: bool = True) -> None:
        """Ship, sequence, refresh, publish, adopt: everybody in step."""
        self.ship()
        self.sequence()
        if refresh:
            self.main.refresh(self.now, review=False)
        self.publish()
        self.adopt()
