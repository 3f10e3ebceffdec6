"""An authority in a few lines, for tests of deciders: it publishes, and reads what came."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.file import file_from_dict
from equipoise.agent.config.service import LaneSettings
from equipoise.agent.lanes.decider import LaneKeeper
from equipoise.agent.lanes.publishing import TicketOffice, publication
from equipoise.store.batches import DecisionBatch
from equipoise.store.format.frames import body_to_batch
from equipoise.store.lanes import Hub, Publication, Tickets
from equipoise.store.lanes.memory import MemoryHub
from equipoise.store.memory import MemoryStore
from equipoise.store.records import Request

KEY = bytes(range(32))
TABLES: dict[str, Any] = {
    "name": "chat",
    "models": [{"name": "large", "price": 0.02}, {"name": "small", "price": 0.01}],
    "features": {
        "context": [{"type": "number", "name": "words", "low": 0, "scale": 100}],
        "outputs": [{"type": "number", "name": "seconds"}],
    },
    "policy": {"assignment": "uniform", "rate": 0.5},
}
QUICK = LaneSettings(
    lease_seconds=5.0, publish_seconds=0.05, ship_seconds=0.005, stale_seconds=30.0
)


def config_of(**changes: Any) -> ExperimentConfig:
    return file_from_dict({**TABLES, **changes}).experiment


def request(name: str, words: float = 10.0, routed: str = "large") -> Request:
    return Request(request_id=name, routed=routed, features={"words": words})


@dataclass
class Clock:
    """Seconds that pass when a test says so."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Hubs:
    """A hub, in memory unless given, and who publishes in it."""

    clock: Clock = field(default_factory=Clock)
    config: ExperimentConfig = field(default_factory=config_of)
    tickets: Tickets = field(default_factory=Tickets)
    version: int = 0
    hub: Hub = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        self.hub = self.hub or MemoryHub(self.clock)
        term = self.hub.elect("authority", 1e6)
        assert term is not None
        self.term = term
        self.agent = Agent(self.config, MemoryStore(), KEY, at=self.clock())
        self.publish()

    def publish(self, **changes: Any) -> Publication:
        """The next publication, with tickets for every lane that is held."""
        self.version += 1
        lanes = self.hub.lanes()
        office = TicketOffice(len(self.agent.models), len(self.config.budget.segments))
        made, documents = publication(self.agent, self.version, office, lanes, 30.0)
        tickets = {lane.lane: self.tickets for lane in lanes}
        made = msgspec.structs.replace(made, tickets=tickets, **changes)
        self.hub.publish(self.term, made, documents)
        return made

    def decisions(self) -> list[DecisionBatch]:
        """What came, in the order of lane and place."""
        batches = []
        for parcel in sorted(
            self.hub.decisions(self.version), key=lambda each: (each.lane, each.place)
        ):
            batch = body_to_batch(parcel.body)
            assert isinstance(batch, DecisionBatch)
            assert len(batch) == parcel.rows
            assert int(batch.number[0]) == parcel.first
            batches.append(batch)
        return batches

    def shipped(self, lane: int) -> list[int]:
        """Counters of a lane that came, in order."""
        numbers = [
            batch.number for batch in self.decisions() if int(batch.positions[0]) >> 40 == lane
        ]
        return np.concatenate(numbers).tolist() if numbers else []


class Turns:
    """A thread that decides: what the keeper asks of it is done when the test says so, or at once
    under a lock."""

    def __init__(self) -> None:
        self.lock = threading.RLock()

    def run(self, work: Callable[[], None]) -> None:
        with self.lock:
            work()


def keeper(hubs: Hubs, folder: Path, settings: LaneSettings = QUICK, **others: Any) -> LaneKeeper:
    said: list[tuple[str, dict[str, Any]]] = []
    made = LaneKeeper(
        lambda: hubs.hub,
        others.pop("key", KEY),
        folder,
        "one",
        settings,
        run=others.pop("run", Turns().run),
        clock=hubs.clock,
        say=lambda event, facts: said.append((event, dict(facts))),
        **others,
    )
    made.said = said  # type: ignore[attr-defined]
    return made
