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
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias
from uuid import uuid4

import msgspec
import numpy as np

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.config.service import LaneSettings
from equipoise.agent.decisions.uniforms import key_hash
from equipoise.agent.errors import AgentError
from equipoise.agent.lanes.lane import (
    Lane,
    LaneRecords,
    experiment_id,
    lane_config,
    spent_in_all,
)
from equipoise.agent.lanes.publishing import refuse_lanes
from equipoise.store.address import is_url
from equipoise.store.errors import StoreError
from equipoise.store.lanes import (
    Hub,
    HubError,
    LaneEndedError,
    Publication,
    Spent,
)
from equipoise.store.lanes.lane_journal import LaneFacts, LeftLane, left_lanes
from equipoise.store.lanes.lane_store import LaneStore
from equipoise.store.records import Era, RuleRecord
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
FORGET_EVERY = 1_024
LOOK_SECONDS = 15.0
"""Between two looks for lanes whose deciders are gone."""
_AWAY_SECONDS = 0.2


def lane_folder(store: str, folder: str | None = None) -> Path:
    """Where deciders keep what their authority does not have yet. store: path or URL; folder: as
    declared."""
    if folder is not None:
        return Path(folder)
    return Path("equipoise-lanes" if is_url(store) else f"{store}.lanes.d")


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
        # Of the next lane: where its answer is lost it is asked for again by the same name.
        self._asked = uuid4().hex
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
            except AgentError as error:
                self.fault = error
                self._trouble("lane-impossible", error)
                self._ready.set()
            except Exception as error:  # a thread that died would leave rows waiting without a word
                own = isinstance(error, (StoreError, OSError))
                self._failures += 1
                self._trouble("lane-files" if own else "lane-fault", error)
                pause = max(pause, min(_AWAY_SECONDS * 2.0 ** min(self._failures, 8), 10.0))
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
        self.trouble, held = None, self._held
        if held is None or newest.config != held.number or held.worn:
            self._move(hub)
        elif newest.version > held.told or newest.version > held.publication.version:
            self._adopt(hub, held, newest, fresh)
        else:
            held.fresh = fresh
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._looked = time.monotonic()
            self._recover(hub)
        self._failures = 0

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
        lease = hub.join(self._name, seconds, self._asked)
        self._asked = uuid4().hex
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
        with self._or_later(lane):
            self._prepare(hub, lane)
        before, self._held = self._held, lane
        self._say("lane", {"lane": lane.lease.lane, "publication": lane.publication.version})

        def change() -> None:
            if before is not None:
                before.store.seal()
            self.lane = lane
            self._changed(lane)

        if not self._call(change):
            if before is not None:
                before.store.close()
            return
        self._ready.set()
        if before is not None:
            with self._or_later(before):
                self._finish(hub, before)

    def _prepare(self, hub: Hub, lane: Lane) -> None:
        """Wait until a lane that is not decided in yet has its first tickets."""
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
            newest = lane.publication
            known = newest.uncounted or lane.lease.lane in newest.tickets
            if known or time.monotonic() > patience or self._stopping.is_set():
                break
            self._ship(hub, lane)
            if self._held is not None:
                self._ship(hub, self._held)
            self._stopping.wait(self._settings.ship_seconds)

    @contextlib.contextmanager
    def _or_later(self, lane: Lane) -> Iterator[None]:
        """Where what is to be done with a lane fails, leave it to the next look for lanes: by its
        files what it holds is shipped, and it is given back."""
        try:
            yield
        except BaseException:
            lane.store.close()
            self._looked = -np.inf
            raise

    def _call(self, work: Call) -> bool:
        """Have the thread that decides do something, and wait for it; whether it was done. It is
        given up only at the end."""
        done = threading.Event()

        def run() -> None:
            work()
            done.set()

        self._run(run)
        while not done.wait(0.5):
            if self._stopping.is_set() and time.monotonic() > self._until:
                return False
        return True

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
            lane.store.seal()
            if self.lane is lane:
                self.lane = None
                self._changed(None)

        self._held = None
        self._ready.clear()
        with self._or_later(lane):
            if not self._call(drop):
                raise HubError("whoever decides does not answer")
            self._ship_late(hub, lane)
        lane.store.close(remove=True)

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
            self._say("lane-damaged" if left.damaged else "lane-recovered", facts)

    def _end(self) -> None:
        """Ship everything and leave, until the time that a stop may take is over."""
        lane = self._held
        try:
            # What comes from now on is refused, so that nothing is answered and then removed.
            sealed = lane is not None and bool(self._until) and self._call(lane.store.seal)
            while lane is not None and sealed:
                try:
                    self._finish(self._opened(), lane)
                    self._held = lane = None
                except HubError as error:
                    self._lose_hub(error)
                    if time.monotonic() > self._until:
                        break
                    time.sleep(_AWAY_SECONDS)
        except Exception as error:
            self._trouble("lane-fault", error)
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
    spent = spent_in_all(spent, left, config)
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
