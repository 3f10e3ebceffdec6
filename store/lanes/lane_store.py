"""The store of a decider: the log of one lane, as much of it as look-ups ask for.

`append` writes one frame to the lane's journal before it returns and remembers the rows for a
while; nothing else of the log is here. Decisions have the numbers 0, 1, 2, … of the lane. What the
agent beside it closes for itself (`ExpiryBatch`) is neither journaled nor shipped: the authority
closes decisions by its own clock.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from equipoise.store.batches import (
    Batch,
    Buffer,
    DecisionBatch,
    ExpiryBatch,
    Ints,
    OutcomeBatch,
    Segment,
    slice_rows,
)
from equipoise.store.contract import (
    BaseSnapshot,
    Checkpoint,
    Store,
    StoredRecord,
    check_numbers,
    repeated_request,
)
from equipoise.store.errors import (
    DisplacedStoreError,
    SlowStoreError,
    StoreError,
    TornAppendError,
    WriteError,
)
from equipoise.store.format.frames import batch_to_body, body_to_batch
from equipoise.store.lanes.contract import Parcel, Spent
from equipoise.store.lanes.lane_journal import (
    REPORTS,
    Entry,
    LaneFacts,
    LaneJournal,
    Outbox,
    kind_of,
)
from equipoise.store.memory import MemoryStore, RecentOutcomes
from equipoise.store.records import LANE_BITS, Alert, Control, Era, Gap, RuleRecord
from equipoise.store.sqlite.connection import Durability

KEPT_DECISIONS = 50_000
"""The newest decisions of a lane, which a repeated request is answered from; some 50 MB."""
WAITING_ROWS = 200_000
"""Rows that may wait for the hub: beyond that, appends are refused."""


class LaneStore(Store):
    """The Store contract over one lane.

    folder: where its files are, there already. facts: whose lane. durability: what an acknowledged
    row survives, as of `JournaledStore`; with "power", whoever acknowledges rows calls `begin_sync`
    first (`must_sync`). kept: decisions that are remembered. waiting_rows: that may wait for the
    hub.

    version: of the publication in force, which decisions are made under; set by whoever adopts it.
    `append`, `report` and the look-ups belong to one thread; `parcels`, `shipped` and `begin_sync`
    may be called from another one, `check_files` from any.
    """

    must_sync: bool
    trouble: StoreError | None = None
    """Why nothing is shipped; set by whoever ships."""

    def __init__(
        self,
        folder: Path,
        facts: LaneFacts,
        durability: Durability = "process",
        *,
        kept: int | None = None,
        waiting_rows: int = WAITING_ROWS,
    ) -> None:
        self.facts = facts
        self.version = 0
        self.displaced: StoreError | None = None
        """Why what is logged now would be lost, None while the files are in their places."""
        self.must_sync = durability == "power"
        """Whether appended rows may be acknowledged only after `begin_sync`."""
        self._journal = LaneJournal(folder, facts, "asked" if self.must_sync else "never")
        self._outbox = Outbox(facts.lane, self._journal.cut)
        self._name = f"lane {facts.lane} in {folder}"
        self._kept, self._limit = kept or KEPT_DECISIONS, waiting_rows
        self._records = MemoryStore()
        self._next_seq = self._decisions = self._oldest = 0
        self._numbers: dict[str, int] = {}
        self._held: deque[tuple[str, bytes, int]] = deque()
        """Request id, batch and row of the decisions from `_oldest` on."""
        self._recent = RecentOutcomes(0)
        self._torn = self._sealed = False
        self._shipping = threading.Lock()

    @property
    def next_seq(self) -> int:
        return self._next_seq

    @property
    def decisions(self) -> int:
        return self._decisions

    @property
    def oldest(self) -> int:
        """The first decision that is remembered."""
        return self._oldest

    @property
    def waiting(self) -> int:
        """Rows that the hub does not have."""
        return self._outbox.waiting

    def append(self, batch: Batch) -> int:
        first, rows = self._next_seq, len(batch)
        if not rows:
            return first
        if isinstance(batch, ExpiryBatch):
            self._next_seq = first + rows
            return first
        kind = kind_of(batch)
        if kind is None:
            what = type(batch).__name__
            raise WriteError(f"{self._name}: {what}: a lane takes decisions and outcomes only")
        self._check_room(rows)
        if isinstance(batch, DecisionBatch):
            if rows > 1 or batch.number[0] != self._decisions:
                check_numbers(self._name, batch, self._decisions)
            self._admit_requests(batch)
        body = batch_to_body(batch)
        number = self._journal.append(kind, self.version, rows, body)
        # From here on the rows are in the log.
        try:
            self._outbox.add(Entry(number, kind, self.version, rows, batch, len(body)))
            if isinstance(batch, DecisionBatch):
                self._remember(batch, body)
            elif isinstance(batch, OutcomeBatch):
                self._recent.add(batch, self._decisions)
            self._next_seq = first + rows
        except BaseException as error:
            self._torn = True
            raise TornAppendError(
                f"{self._name}: {type(error).__name__} after rows were appended: start anew"
            ) from error
        return first

    def report(self, rows: int, body: bytes) -> None:
        """Journal outcomes of decisions that this lane does not know. body: a JSON list of them.

        Raises as `append`.
        """
        self._check_room(rows)
        number = self._journal.append(REPORTS, self.version, rows, body)
        self._outbox.add(Entry(number, REPORTS, self.version, rows, body, len(body)))

    def seal(self) -> None:
        """Take no more rows: what is there by now is all of it."""
        self._sealed = True

    def _check_room(self, rows: int) -> None:
        if self._sealed:
            raise WriteError(f"{self._name}: the lane was given back: send this anew")
        if self._torn:
            raise TornAppendError(f"{self._name}: an append was cut short: start anew")
        if self.displaced is not None:
            raise self.displaced
        if self.waiting + rows > self._limit and self.waiting:
            raise SlowStoreError(
                f"{self._name}: {self.waiting} rows wait for the hub, at most {self._limit} may"
            )

    def _admit_requests(self, batch: DecisionBatch) -> None:
        names = [name for name in batch.request_id or () if name]
        if any(name in self._numbers for name in names):
            raise repeated_request(self._name, names, self._numbers)
        if len(names) > 1 and len(set(names)) < len(names):
            raise repeated_request(self._name, names, ())

    def _remember(self, batch: DecisionBatch, body: bytes) -> None:
        names = batch.request_id or [""] * len(batch)
        for row, name in enumerate(names):
            if name:
                self._numbers[name] = self._decisions + row
            self._held.append((name, body, row))
        self._decisions += len(batch)
        while len(self._held) > self._kept:
            name, _, _ = self._held.popleft()
            self._numbers.pop(name, None)
            self._oldest += 1

    def parcels(self, spent: Callable[[], Spent]) -> tuple[list[Parcel], int, Spent]:
        """What to ship next, the publication that has been adopted once it is shipped, and what was
        spent by then. The same parcels again until `shipped` is called. Raises StoreError."""
        with self._shipping:
            version = self.version  # first: whatever is decided from now on is of this one or later
            parcels, adopted = self._outbox.parcels(version, spent())
            return parcels, adopted, spent()

    def shipped(self) -> None:
        """The hub has the parcels: forget what is needed for them alone."""
        with self._shipping:
            self._journal.forget(self._outbox.shipped())

    @property
    def shipped_all(self) -> bool:
        """Whether the hub has everything."""
        return self._outbox.empty

    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        numbers = self._numbers
        return {name: numbers[name] for name in request_ids if name in numbers}

    def decision(self, number: int) -> DecisionBatch | None:
        if not self._oldest <= number < self._decisions:
            return None
        _, body, row = self._held[number - self._oldest]
        batch = body_to_batch(body)
        assert isinstance(batch, DecisionBatch)
        return slice_rows(batch, row, row + 1)

    def find_draws(self, positions: Sequence[int]) -> dict[int, int]:
        first = self.facts.lane << LANE_BITS
        return {each: each - first for each in positions if 0 <= each - first < self._decisions}

    def lane_ends(self) -> dict[int, int]:
        return {self.facts.lane: self._decisions} if self._decisions else {}

    def outcome_parts(self, number: int) -> list[OutcomeBatch]:
        """As the contract says, of the newest parts; older ones only the authority knows."""
        return self._recent.find(number) or []

    def read(self, since: int = 0, until: int | None = None) -> Iterator[Segment]:
        """Nothing: whoever reads a lane reads it from the log of its authority."""
        return iter(())

    def find_observations(self, request_ids: Sequence[str]) -> set[str]:
        return set()

    def observations(self, request_ids: Sequence[str]) -> dict[str, Segment]:
        return {}

    def simulations(self, context: Ints, model: Ints) -> dict[tuple[int, int], Segment]:
        return {}

    def check_files(self) -> StoreError | None:
        """Whether the files are in their places and can be written; for any thread."""
        fault = self._journal.fault()
        self.displaced = None if fault is None else DisplacedStoreError(fault)
        return self.displaced

    def probe(self) -> None:
        """Raise what `append` of a few rows would raise now; the log stays as it is."""
        self.check_files()
        self._check_room(1)
        self._journal.probe()

    def begin_sync(self) -> Callable[[], None]:
        """A function, for any thread, that puts on the disk what was appended before this call."""
        return self._journal.begin_sync()

    def checkpoint(self, seq: int, state: Buffer, at: float) -> None:
        """Nothing: a lane is not opened again."""

    def restore(self) -> Checkpoint | None:
        return None

    def base_snapshot(self) -> BaseSnapshot | None:
        return None

    def freeze(self, name: str, value: str) -> None:
        self._records.freeze(name, value)

    def settings(self) -> dict[str, str]:
        return self._records.settings()

    def put(self, record: StoredRecord) -> None:
        self._records.put(record)

    def eras(self) -> list[Era]:
        return self._records.eras()

    def rules(self) -> list[RuleRecord]:
        return self._records.rules()

    def rule(self, rule_id: str) -> RuleRecord | None:
        return self._records.rule(rule_id)

    def alerts(self) -> list[Alert]:
        return self._records.alerts()

    def controls(self) -> list[Control]:
        return self._records.controls()

    def gaps(self) -> list[Gap]:
        return []

    def close(self, *, remove: bool = False) -> None:
        """Let go. remove: the files too, since the hub has everything."""
        self.seal()
        self._journal.close(remove=remove)
