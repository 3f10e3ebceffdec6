"""A decider: it leases a lane, decides by what the authority publishes, and ships what it decided.

Decisions are made by one thread and wait for nobody. A second one, the keeper's, talks to the hub:
it joins, fetches publications and has them adopted, ships, renews the lease, and moves to a new
lane where this one was ended or another configuration came.

A decider stops drawing by its own clock before its lease can have run out, and when the newest
publication is older than its authority allows: then requests are served as routed and not logged.
What a killed decider left in the folder is shipped by whichever starts next, late where its lane
was ended meanwhile.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from equipoise.agent.agent import Accepted, Agent
from equipoise.agent.budget.caps import Caps, Quotas, model_caps, segment_ranges
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.service import LaneSettings
from equipoise.agent.decisions.uniforms import key_hash
from equipoise.agent.errors import AgentError
from equipoise.agent.lanes.publishing import refuse_lanes
from equipoise.agent.record_adapter import RecordAdapter
from equipoise.store.batches import DecisionBatch, Ints
from equipoise.store.errors import StoreError
from equipoise.store.lanes import (
    Hub,
    HubError,
    LaneEndedError,
    Lease,
    Publication,
    Report,
    Spent,
    Tickets,
)
from equipoise.store.lanes.lane_journal import LaneFacts, LeftLane, left_lanes
from equipoise.store.lanes.lane_store import LaneStore
from equipoise.store.records import Era, Outcome, RuleRecord, decision_position
from equipoise.store.sqlite.connection import Durability

Call: TypeAlias = Callable[[], None]
Say: TypeAlias = Callable[[str, Mapping[str, object]], None]
"""Called with what happened and its facts."""

MARGIN = 0.1
"""Share of a lease that is not used: clocks of two machines run apart by far less."""
RENEW = 0.34
"""Share of a lease after which it is renewed at the latest."""
TICKET_SECONDS = 2.0
"""How long a new lane waits for its first tickets before it decides without any."""
MOST_RULES = 2_000
"""Rules that one lane adopts: a lane forgets none, so then a new one follows."""
FORGET_EVERY = 1_024
LOOK_SECONDS = 15.0
"""Between two looks for lanes whose deciders are gone."""
_AWAY_SECONDS = 0.2
_UNLIMITED = float(2**62)


def lane_config(config: ExperimentConfig) -> ExperimentConfig:
    """The configuration as a lane decides by it: caps are the authority's to count, by tickets."""
    models = [msgspec.structs.replace(model, max_requests=None) for model in config.models]
    budget = msgspec.structs.replace(
        config.budget, requests=None, money=None, harm=None, horizon=None, planned=None
    )
    return msgspec.structs.replace(config, models=models, budget=budget)


def experiment_id(config: ExperimentConfig, key: bytes) -> str:
    """32 hexadecimal digits that name an experiment and its key."""
    name = f"{config.name}\0{key_hash(key)}".encode()
    return blake2b(name, digest_size=16, person=b"equipoise-lanes").hexdigest()


class LaneRecords(RecordAdapter):
    """As `RecordAdapter`, over one lane: outcomes of decisions that it does not know are reported
    to the authority, which tells repeats and contradictions apart."""

    def __init__(self, agent: Agent, store: LaneStore, clock: Callable[[], float]) -> None:
        super().__init__(agent, clock)
        self._store = store

    def number(self, name: str) -> int | None:
        """As of `RecordAdapter`; None too for what the lane has forgotten."""
        number = super().number(name)
        return None if number is None or number < self._store.oldest else number

    def observe(
        self,
        outcomes: Sequence[Outcome],
        check: Callable[[Ints], None] | None = None,
        came: float | None = None,
    ) -> Accepted:
        """As `RecordAdapter.observe`; `check` gets -1 for a decision that is not known here."""
        came = self._clock() if came is None else came
        decided = self._store.find_requests([o.request_id for o in outcomes if o.request_id])
        known = [self._knows(outcome, decided) for outcome in outcomes]
        own = [outcome for outcome, here in zip(outcomes, known, strict=True) if here]
        others = [outcome for outcome, here in zip(outcomes, known, strict=True) if not here]
        numbers = np.full(len(outcomes), -1, dtype=np.int64)
        numbers[known] = self._numbers(own)
        if check is not None:
            check(numbers)
        reports = self._reports(others, came)
        accepted = Accepted(0)
        if own:
            batch = self._outcomes(own, numbers[known])
            accepted = self.agent.observe(batch, came=came)
        if reports:
            self._store.report(len(reports), msgspec.json.encode(reports))
        return Accepted(accepted.rows + len(reports), accepted.duplicates, accepted.late)

    def _knows(self, outcome: Outcome, decided: dict[str, int]) -> bool:
        """Whether an outcome is of a decision of this lane, or cannot be of any."""
        name = outcome.decision_id
        if name is None:
            return outcome.request_id is None or outcome.request_id in decided
        return decision_position(name) is None or self.number(name) is not None

    def _reports(self, outcomes: Sequence[Outcome], came: float) -> list[Report]:
        if not outcomes:
            return []
        # Checked as if they were of the first decision: what is right of any is right of that one.
        batch = self._outcomes(outcomes, np.full(len(outcomes), -1, dtype=np.int64))
        self.agent.check_outcomes(batch)
        fields = Outcome.__struct_fields__
        return [
            Report(
                outcome=Outcome(**{name: getattr(each, name) for name in fields}),
                came=came,
                # Who named the decision had its token compared already.
                token=getattr(each, "outcome_token", None) if each.decision_id is None else None,
                unit=getattr(each, "unit_id", None),
            )
            for each in outcomes
        ]


@dataclass(slots=True)
class Lane:
    """A lane that is held, or was. until: when its lease may have run out, fresh: when its
    publication is too old, both by the monotonic clock."""

    lease: Lease
    config: ExperimentConfig
    store: LaneStore
    agent: Agent
    records: LaneRecords
    publication: Publication
    number: int
    """Of the configuration that it decides by."""
    until: float = 0.0
    fresh: float = 0.0
    rules: int = 1
    told: int = 0
    """The newest publication that the hub knows it to act by."""

    def decides(self) -> bool:
        """Whether it may draw now."""
        now = time.monotonic()
        return now < self.until and now < self.fresh

    @property
    def worn(self) -> bool:
        """Whether another lane is to follow."""
        return self.rules >= MOST_RULES or self.agent.broken is not None

    def counted(self) -> Spent:
        """What it has randomized so far."""
        ledger = self.agent.light.ledger
        models = tuple(int(count) for count in ledger.by_model)
        segments = tuple(int(count) for count in ledger.by_segment)
        return Spent(sum(models), models, segments)

    def act_by(self, publication: Publication, records: Sequence[Era | RuleRecord]) -> None:
        """Adopt a publication, in the thread that decides. records: of it, eras first."""
        agent, store = self.agent, self.store
        for record in records:
            store.put(record)
            if isinstance(record, RuleRecord):
                agent.controls.adopt(record)
                self.rules += 1
        state = agent.state
        state.observing_only = publication.observing
        state.paused = None if publication.observing else publication.off
        agent.limit(publication.tickets.get(self.lease.lane, Tickets(draws=0)))
        state.caps = _caps(self.config, publication.closed_segments)
        self.publication = publication
        store.version = publication.version


def _caps(config: ExperimentConfig, closed: Sequence[int]) -> Caps:
    """The caps of a lane: segments whose cap is reached are closed, the rest its tickets count."""
    quotas = Quotas.of(config)
    left = [0 if at in closed else int(_UNLIMITED) for at in range(len(quotas.segments))]
    limits = Quotas(quotas.segments, tuple(left), None)
    return Caps(config.policy.exclude, model_caps(config), limits)


class LaneKeeper:
    """One decider's life with its hub.

    connect: opens a hub; called in the keeper's thread, again after trouble. key: 32 secret bytes.
    folder: of lane journals; made where it is missing. name: of the decider, for people. settings:
    times. run: has the thread that decides call something soon, in order. say: told what happens.
    changed: told by the thread that decides which lane it is from now on.

    lane: the one that is held, None before the first. Only the thread that decides may use it.
    """

    def __init__(
        self,
        connect: Callable[[], Hub],
        key: bytes,
        folder: Path,
        name: str,
        settings: LaneSettings,
        durability: Durability = "process",
        *,
        run: Callable[[Call], None],
        clock: Callable[[], float] = time.time,
        say: Say = lambda event, facts: None,
        changed: Callable[[Lane | None], None] = lambda lane: None,
    ) -> None:
        self.lane: Lane | None = None
        self.trouble: str | None = "no lane is leased yet"
        """Why there is no word from the hub, None while there is."""
        self.fault: AgentError | None = None
        """Why this decider cannot ever decide."""
        self.recovered = 0
        """Rows of lanes of others that were shipped for them."""
        self._connect, self._key, self._folder, self._name = connect, key, folder, name
        self._settings, self._durability = settings, durability
        self._run, self._clock, self._say, self._changed = run, clock, say, changed
        self._hub: Hub | None = None
        self._held: Lane | None = None
        self._looked = -LOOK_SECONDS
        self._failures = 0
        self._stopping = threading.Event()
        self._until = 0.0
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="lane", daemon=True)

    def start(self) -> None:
        """Begin to look for a lane."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._thread.start()

    def wait(self, seconds: float) -> bool:
        """Whether a lane is held within so many seconds. Raises AgentError where none ever is."""
        self._ready.wait(seconds)
        if self.fault is not None:
            raise self.fault
        return self._ready.is_set()

    @property
    def decides(self) -> bool:
        """Whether requests may be drawn now."""
        lane = self.lane
        return lane is not None and lane.decides()

    def close(self, seconds: float) -> bool:
        """Ship everything and give the lane back; whether that worked in so many seconds. What
        remains is shipped by the next decider with the folder. The thread that decides must go on
        doing what it is asked to meanwhile."""
        self._until = time.monotonic() + seconds
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(seconds + 5.0)
        return self._held is None

    # What follows is done by the keeper's thread.

    def _keep(self) -> None:
        while not self._stopping.is_set() and self.fault is None:
            pause = self._settings.ship_seconds
            try:
                self._turn()
            except HubError as error:
                self._lose_hub(error)
                pause = max(pause, min(_AWAY_SECONDS * self._failures, 2.0))
            except (StoreError, OSError) as error:
                self._trouble("lane-files", error)
                pause = max(pause, _AWAY_SECONDS)
            except AgentError as error:
                self.fault = error
                self.trouble = str(error)
                self._ready.set()
            except Exception as error:  # a thread that died would leave rows waiting without a word
                self._trouble("lane", error)
                pause = max(pause, _AWAY_SECONDS)
            self._stopping.wait(pause)
        self._end()

    def _turn(self) -> None:
        hub = self._opened()
        held = self._held
        if held is not None:
            self._ship(hub, held)
        asked = time.monotonic()
        newest = hub.newest()
        if newest is None:
            raise HubError("no authority has published anything yet")
        age = max(hub.now() - newest.at, 0.0)
        fresh = asked + newest.seconds - age
        self.trouble, self._failures = None, 0
        held = self._held
        if held is None or newest.config != held.number or held.worn:
            self._move(hub)
        elif newest.version > held.told or newest.version > held.publication.version:
            self._adopt(hub, held, newest, fresh)
        else:
            held.fresh = fresh
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._recover(hub)

    def _opened(self) -> Hub:
        if self._hub is None:
            self._hub = self._connect()
        return self._hub

    def _lose_hub(self, error: HubError) -> None:
        self._failures += 1
        self._trouble("hub-away", error)
        hub, self._hub = self._hub, None
        if hub is not None:
            with contextlib.suppress(Exception):
                hub.close()

    def _trouble(self, event: str, error: Exception) -> None:
        sentence = str(error) or type(error).__name__
        if sentence != self.trouble:
            self._say(event, {"problem": sentence})
        self.trouble = sentence

    def _ship(self, hub: Hub, lane: Lane) -> None:
        """Ship what has gathered, and renew the lease where that is due."""
        parcels, adopted, spent = lane.store.parcels(lane.counted)
        asked = time.monotonic()
        due = lane.until - asked < (1.0 - MARGIN - RENEW) * self._settings.lease_seconds
        if not (parcels or due or adopted != lane.told):
            return
        try:
            lease = hub.ship(lane.lease, parcels, adopted=adopted, spent=spent)
        except LaneEndedError:
            self._lose(hub, lane)
            return
        lane.until, lane.told = asked + (1.0 - MARGIN) * lease.seconds, adopted
        lane.store.shipped()

    def _documents(self, hub: Hub, lane: Lane | None, newest: Publication) -> list[str] | None:
        """Texts of the era and the rule of a publication that a lane lacks; None where a newer one
        has replaced them."""
        eras = () if lane is None else [era.era for era in lane.store.eras()]
        names = [] if newest.era in eras else [f"era:{newest.era}"]
        if lane is None or lane.store.rule(newest.rule_id) is None:
            names.append(f"rule:{newest.rule_id}")
        texts = [hub.document(name) for name in names]
        found = [text for text in texts if text is not None]
        return found if len(found) == len(texts) else None

    def _adopt(self, hub: Hub, lane: Lane, newest: Publication, fresh: float) -> None:
        if newest.version <= lane.publication.version:
            lane.fresh = fresh  # it is on its way to the thread that decides
            return
        texts = self._documents(hub, lane, newest)
        if texts is None:
            return
        records = [_record(text) for text in texts]
        if newest.rule_id != lane.publication.rule_id and not any(
            isinstance(record, RuleRecord) for record in records
        ):
            known = lane.store.rule(newest.rule_id)
            records += [] if known is None else [known]

        def adopt() -> None:
            if newest.version > lane.publication.version:
                lane.act_by(newest, records)
                lane.fresh = fresh
                lane.agent.forget(lane.store.oldest - FORGET_EVERY, self._clock())

        self._run(adopt)

    def _join(self, hub: Hub) -> Lane | None:
        """A new lane, which decides nothing yet; None where a newer publication came between."""
        asked = time.monotonic()
        seconds = self._settings.lease_seconds
        lease = hub.join(self._name, seconds)
        store: LaneStore | None = None
        try:
            newest = hub.newest()
            if newest is None:
                raise HubError("no authority has published anything yet")
            text = hub.document(f"config:{newest.config}")
            texts = self._documents(hub, None, newest)
            if text is None or texts is None:
                hub.leave(lease, Spent())
                return None
            whole = ExperimentConfig.from_json(text)
            if (why := refuse_lanes(whole)) is not None:
                raise AgentError(why)
            records = [_record(each) for each in texts]
            self._check_key(records)
            config = lane_config(whole)
            facts = LaneFacts(
                lane=lease.lane,
                token=lease.token,
                experiment=experiment_id(config, self._key),
                config=config.to_json(),
                name=self._name,
            )
            store = LaneStore(self._folder, facts, self._durability)
            for record in records:
                store.put(record)
            agent = Agent(config, store, self._key, at=self._clock(), lane=lease.lane)
            agent.state.lighten()
            adapter = LaneRecords(agent, store, self._clock)
            lane = Lane(lease, config, store, agent, adapter, newest, newest.config)
            lane.act_by(newest, ())
        except BaseException:
            with contextlib.suppress(HubError):
                hub.leave(lease, Spent())
            if store is not None:
                store.close(remove=True)
            raise
        lane.until = asked + (1.0 - MARGIN) * lease.seconds
        return lane

    def _check_key(self, records: Sequence[Era | RuleRecord]) -> None:
        for record in records:
            if isinstance(record, Era) and record.key_hash != key_hash(self._key):
                raise AgentError("the key is that of another experiment: give the one of the hub's")

    def _move(self, hub: Hub) -> None:
        """Lease a new lane, decide in it from now on, and give the one before back."""
        lane = self._join(hub)
        if lane is None:
            return
        patience = time.monotonic() + TICKET_SECONDS
        while True:
            asked = time.monotonic()
            newest = hub.newest()
            if newest is None or newest.config != lane.number:
                break
            if newest.version > lane.publication.version:
                texts = self._documents(hub, lane, newest)
                if texts is not None:
                    lane.act_by(newest, [_record(text) for text in texts])
            lane.fresh = asked + newest.seconds - max(hub.now() - newest.at, 0.0)
            known = lane.lease.lane in lane.publication.tickets
            if known or time.monotonic() > patience or self._stopping.is_set():
                break
            self._ship(hub, lane)
            if self._held is not None:
                self._ship(hub, self._held)
            self._stopping.wait(self._settings.ship_seconds)
        before, self._held = self._held, lane
        self._say("lane", {"lane": lane.lease.lane, "publication": lane.publication.version})

        def change() -> None:
            self.lane = lane
            self._changed(lane)

        self._call(change)
        self._ready.set()
        if before is not None:
            self._finish(hub, before)

    def _call(self, work: Call) -> bool:
        """Have the thread that decides do something, and wait for it; whether it was done."""
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._run(run)
        return done.wait(5.0)

    def _finish(self, hub: Hub, lane: Lane) -> None:
        """Ship what is left of a lane in which nothing is decided any more, and give it back."""
        try:
            while not lane.store.shipped_all:
                parcels, adopted, spent = lane.store.parcels(lane.counted)
                hub.ship(lane.lease, parcels, adopted=adopted, spent=spent)
                lane.store.shipped()
            hub.leave(lane.lease, lane.counted())
        except LaneEndedError:
            self._ship_late(hub, lane)
        lane.store.close(remove=True)

    def _ship_late(self, hub: Hub, lane: Lane) -> None:
        rows = lane.store.waiting
        while True:
            parcels, _, spent = lane.store.parcels(lane.counted)
            whole = lane.store.shipped_all or sum(p.rows for p in parcels) >= lane.store.waiting
            hub.ship_late(lane.lease, parcels, spent, whole)
            lane.store.shipped()
            if whole:
                break
        self._say("lane-shipped-late", {"lane": lane.lease.lane, "rows": rows})

    def _lose(self, hub: Hub, lane: Lane) -> None:
        """The lane was ended: decide nothing in it any more, ship the rest late."""
        lane.until = -np.inf
        self._say("lane-lost", {"lane": lane.lease.lane, "rows": lane.store.waiting})
        if self._held is not lane:
            return

        def drop() -> None:
            if self.lane is lane:
                self.lane = None
                self._changed(None)

        self._held = None
        self._ready.clear()
        if self._call(drop):
            self._ship_late(hub, lane)
            lane.store.close(remove=True)
        else:
            lane.store.close()

    def _recover(self, hub: Hub) -> None:
        """Ship what deciders that are gone left in the folder."""
        held = self._held
        if held is None:
            return
        for left in left_lanes(self._folder, held.store.facts.experiment):
            try:
                rows = _ship_left(hub, left)
            except BaseException:
                left.close(remove=False)
                raise
            if rows is None:
                aside = left.put_aside()
                self._say("lane-refused", {"lane": left.facts.lane, "kept": aside.name})
                continue
            left.close(remove=True)
            self.recovered += rows
            facts = {"lane": left.facts.lane, "rows": rows, "damaged": left.damaged}
            self._say("lane-recovered", facts)

    def _end(self) -> None:
        """Ship everything and leave, until the time that a stop may take is over."""
        lane = self._held
        try:
            while lane is not None and self._until:
                try:
                    self._finish(self._opened(), lane)
                    self._held = lane = None
                except HubError as error:
                    self._lose_hub(error)
                    if time.monotonic() > self._until:
                        break
                    time.sleep(_AWAY_SECONDS)
        except Exception as error:
            self._trouble("lane", error)
        if lane is not None:
            lane.store.close()
        if self._hub is not None:
            with contextlib.suppress(Exception):
                self._hub.close()


def _record(text: str) -> Era | RuleRecord:
    """The record of a document."""
    try:
        return msgspec.json.decode(text, type=RuleRecord)
    except msgspec.ValidationError:
        return msgspec.json.decode(text, type=Era)


def _ship_left(hub: Hub, left: LeftLane) -> int | None:
    """Ship what a killed decider left; how many rows, None where the hub never knew its lease."""
    lease, spent = left.facts.lease, left.spent
    config = ExperimentConfig.from_json(left.facts.config)
    spent = _and(spent, left, config)
    rows, late = left.outbox.waiting, False
    while True:
        parcels, adopted = left.outbox.parcels(left.version, spent)
        whole = sum(parcel.rows for parcel in parcels) >= left.outbox.waiting
        try:
            if late:
                hub.ship_late(lease, parcels, spent, whole)
            else:
                hub.ship(lease, parcels, adopted=adopted, spent=spent)
        except LaneEndedError:
            if late:
                return None if rows else 0
            late = True
            continue
        left.outbox.shipped()
        if whole:
            break
    if not late:
        try:
            hub.leave(lease, spent)
        except LaneEndedError:
            hub.ship_late(lease, [], spent, True)
    return rows


def _and(spent: Spent, left: LeftLane, config: ExperimentConfig) -> Spent:
    """What a killed decider had spent: what it said last, and the draws of its entries since."""
    models = np.zeros(len(config.models), dtype=np.int64)
    models[: len(spent.models)] = spent.models
    ranges = segment_ranges(config)
    segments = np.zeros(len(ranges), dtype=np.int64)
    segments[: len(spent.segments)] = spent.segments
    for entry in left.since:
        if isinstance(entry.content, DecisionBatch):
            drawn = entry.content.randomized
            models += np.bincount(entry.content.model[drawn], minlength=len(models))
            for at, segment in enumerate(ranges):
                segments[at] += int(np.count_nonzero(segment.holds(entry.content.x[drawn])))
    return Spent(int(models.sum()), tuple(models.tolist()), tuple(segments.tolist()))
