"""A store that answers at the speed of an append: SQLite behind a tail.

`append` writes one frame to the tail (a few microseconds, nothing that waits for a disk) and keeps
the batch in memory; a thread moves what has gathered into SQLite, hundreds of rows a transaction,
and forgets it. Look-ups see both. The log, its order and its bytes are those of `SqliteStore`,
which takes the tail in where a writer was killed.

Back-pressure: rows that wait for SQLite are bounded. Beyond that, appends are refused with the
reason SQLite is behind (slow, full, not writable), until it has caught up.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path

import numpy as np

from equipoise.store.batches import (
    Batch,
    Buffer,
    DecisionBatch,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    Segment,
    Texts,
    named_observations,
    pairs_of,
    replays_of,
    slice_rows,
)
from equipoise.store.contract import (
    BaseSnapshot,
    Checkpoint,
    Store,
    StoredRecord,
    check_draws,
    check_numbers,
    ends_of,
    repeated_request,
)
from equipoise.store.errors import (
    DisplacedStoreError,
    FullStoreError,
    SlowStoreError,
    StoreError,
    TornAppendError,
    WriteError,
)
from equipoise.store.format.frames import Sync, TailWriter, as_store_errors, seed_of, to_frame
from equipoise.store.format.mark import BLOCK
from equipoise.store.memory import BloomFilter, RecentOutcomes
from equipoise.store.records import Alert, Control, Era, Gap, RuleRecord
from equipoise.store.sql.chain import Anchor
from equipoise.store.sql.truncation import Trimmed
from equipoise.store.sqlite import SqliteStore
from equipoise.store.sqlite.connection import Durability
from equipoise.store.sqlite.opening import Leftovers

WAITING_ROWS = 200_000
"""Rows that may wait for SQLite: seconds of heavy traffic, some hundred megabytes at the most."""
_GATHER_SECONDS = 0.01
_BETWEEN_SECONDS = 0.25
"""From one transaction to the next under traffic, unless somebody waits for it: most of what a
transaction of few rows costs is the same for many. From rest the time doubles with each."""
_RETRY_SECONDS = 0.2
_BREATH_SECONDS = 0.002
_RULES_AT_ONCE = 256
_NOBODY: Texts = ()
_NAMES = [field.name for field in fields(DecisionBatch)].index("request_id")


class JournaledStore(Store):
    """The Store contract over a file and its tail. Parameters as of `SqliteStore`.

    grouped: with durability "power", `append` does not wait for the disk; whoever acknowledges
    rows calls `begin_sync` first, once for many.
    waiting_rows: how many rows may wait for SQLite.

    `append` and the look-ups belong to one thread; everything else may be called from any.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        durability: Durability = "process",
        *,
        busy_seconds: float = 1.0,
        waiting_rows: int = WAITING_ROWS,
        grouped: bool = False,
    ) -> None:
        self._log = SqliteStore(path, durability=durability, busy_seconds=busy_seconds)
        try:
            self._reader = SqliteStore(path, read_only=True, busy_seconds=busy_seconds)
        except BaseException:
            self._log.close()
            raise
        self.path = self._log.path
        self.where = str(self.path)
        self.read_only = False
        self.trouble: StoreError | None = None
        """Why SQLite does not take what waits, None while it does."""
        self.displaced: StoreError | None = None
        """Why what is logged now would be lost, None while the files are in their places."""
        self.commit_seconds = 0.0
        self.commits = 0
        self._name = f"store {self.path}"
        self._limit = waiting_rows
        self._next_seq, self._decisions = self._log.next_seq, self._log.decisions
        self._decisions_at_start = self._decisions
        self._settled = self._next_seq
        self.must_sync = grouped and durability == "power"
        """Whether appended rows may be acknowledged only after `begin_sync`."""
        unasked: Sync = "each" if durability == "power" else "never"
        self._mark = self._log.mark
        store_id = self._mark.standing.store_id
        self._seed = seed_of(store_id)
        self._tail = TailWriter(self.path, "asked" if self.must_sync else unasked, store_id)
        self._waiting: deque[Segment] = deque()
        self._settling: list[Segment] = []
        self._numbers: dict[str, int] = {}
        self._rows: dict[int, tuple[DecisionBatch, int]] = {}
        self._draws: dict[int, int] = {}
        self._lane_ends = self._log.lane_ends()
        self._observed: set[str] = set()
        self._recent = RecentOutcomes(self._decisions)
        self._absent: set[str] = set()
        # Two filters, each written by one thread: names from before, which are read beside the
        # first requests, and names since. Until the first is whole SQLite is asked.
        self._before, self._since = BloomFilter(), BloomFilter()
        self._filters_whole = False
        self._change = threading.Condition()
        self._wake, self._hurry = threading.Event(), threading.Event()
        self._closing = self._torn = False
        self._thread = threading.Thread(target=self._settle_on, name="settle", daemon=True)
        self._thread.start()
        self._learner = threading.Thread(target=self._learn_names, name="names", daemon=True)
        if self._decisions:
            self._learner.start()
        else:
            self._filters_whole = True

    @property
    def next_seq(self) -> int:
        return self._next_seq

    @property
    def decisions(self) -> int:
        return self._decisions

    @property
    def waiting(self) -> int:
        """Rows that are in the tail and not in SQLite yet."""
        return self._next_seq - self._settled

    def append(self, batch: Batch) -> int:
        first, rows = self._next_seq, len(batch)
        if self._torn:
            raise TornAppendError(f"{self._name}: an append was cut short: start anew")
        if not rows:
            return first
        self._check_room(rows)
        decisions, names = self._decisions, _NOBODY
        if isinstance(batch, DecisionBatch):
            decisions += rows
            if decisions > self._mark.reserved:
                with as_store_errors(self.path):
                    self._mark.reserve(decisions)
            row = batch.row
            if row is None or row[0] != self._decisions:
                check_numbers(self._name, batch, self._decisions)
            if (row is None or row[-1] is not None) and batch.draw is not None:
                known = self.find_draws(batch.draw.tolist())
                check_draws(self._name, batch.draw, known)
            names = _request_ids(batch)
            self._admit_requests(names)
        frame = to_frame(first, batch, self._seed)
        self._tail.append(first, rows, frame)
        # From here on the rows are in the log.
        try:
            # Only now: a mark ahead of the tail means a loss.
            self._mark.advance(first + rows, decisions)
            if isinstance(batch, DecisionBatch):
                self._index(batch, names)
            elif isinstance(batch, ObservationBatch):
                self._observed.update(name for name in batch.request_id or () if name)
            elif isinstance(batch, OutcomeBatch):
                self._recent.add(batch, self._decisions)
            self._next_seq = first + rows
            self._waiting.append(Segment(first, batch, frame))
        except BaseException as error:
            self._torn = True
            raise TornAppendError(
                f"{self._name}: {type(error).__name__} after rows were appended: start anew"
            ) from error
        if not self._wake.is_set():
            self._wake.set()
        if self._next_seq - self._settled > self._limit // 2:
            self._hurry.set()
        return first

    def check_files(self) -> StoreError | None:
        """Whether the files are in their places and can be written; for any thread.

        While they are not, appends are refused: what they would promise nobody could keep.
        """
        presence = self._log.presence
        assert presence is not None
        fault = self._tail.fault()
        problem = presence.check() if fault is None else DisplacedStoreError(fault)
        if problem is not None and self.displaced is None:
            self._hurry.set()
            self._wake.set()  # the thread saves what it can
        self.displaced = problem
        return problem

    def _check_room(self, rows: int) -> None:
        if self.displaced is not None:
            raise self.displaced
        # Where SQLite is slow or full the tail keeps what is promised. Where it cannot write at
        # all, neither may the tail be able to, whatever memory says.
        trouble = self.trouble
        if trouble is not None and not isinstance(trouble, (SlowStoreError, FullStoreError)):
            raise trouble
        if self.waiting + rows > self._limit and self.waiting:
            raise self.trouble or SlowStoreError(
                f"{self._name}: {self.waiting} rows wait to be written, at most {self._limit} may"
            )

    def _admit_requests(self, names: Texts) -> None:
        if len(names) == 1 and names[0] in self._absent:
            self._absent.clear()
            return
        names = [name for name in names if name]
        # A caller that has just looked these ids up need not have them looked up again.
        if not self._absent.issuperset(names):
            decided = self.find_requests(names)
            if decided:
                raise repeated_request(self._name, names, decided)
        if len(names) > 1 and len(set(names)) < len(names):
            raise repeated_request(self._name, names, ())
        self._absent.clear()

    def _index(self, batch: DecisionBatch, names: Texts) -> None:
        first = self._decisions
        self._decisions = first + len(batch)
        for number, name in enumerate(names, first):
            if name:
                self._numbers[name] = number
        self._since.add(names)
        if batch.row is not None and batch.row[-1] is None:
            self._rows[first] = batch, 0
            return
        for row in range(len(batch)):
            self._rows[first + row] = batch, row
        if batch.draw is not None:
            self._draws.update(zip(batch.draw.tolist(), batch.number.tolist(), strict=True))
            self._lane_ends |= ends_of(batch.draw)

    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        waiting = self._numbers
        if len(request_ids) == 1 and self._filters_whole:
            name = request_ids[0]
            if name not in waiting and name not in self._since and name not in self._before:
                self._absent = {name}
                return {}
        # In this order: what leaves memory meanwhile is in SQLite already.
        numbers = {name: waiting[name] for name in request_ids if name in waiting}
        others = [name for name in request_ids if name not in numbers]
        if others:
            possible = others
            if self._filters_whole:
                before, since = self._before, self._since
                possible = [name for name in others if name in since or name in before]
            if possible:
                numbers.update(self._reader.find_requests(possible))
            self._absent = {name for name in others if name not in numbers}
        return numbers

    def find_draws(self, positions: Sequence[int]) -> dict[int, int]:
        # In this order, as in `find_requests`.
        waiting = self._draws
        numbers = {each: waiting[each] for each in positions if each in waiting}
        others = [each for each in positions if each not in numbers]
        return {**numbers, **self._reader.find_draws(others)} if others else numbers

    def lane_ends(self) -> dict[int, int]:
        return dict(self._lane_ends)

    def find_observations(self, request_ids: Sequence[str]) -> set[str]:
        # In this order, as in `find_requests`.
        waiting = {name for name in request_ids if name in self._observed}
        others = [name for name in request_ids if name not in waiting]
        return waiting | self._reader.find_observations(others) if others else waiting

    def observations(self, request_ids: Sequence[str]) -> dict[str, Segment]:
        waiting: dict[str, Segment] = {}
        for name, segment in named_observations(self._unsettled(), set(request_ids)):
            waiting.setdefault(name, segment)
        # What both know is older in SQLite.
        return waiting | self._reader.observations(request_ids)

    def simulations(self, context: Ints, model: Ints) -> dict[tuple[int, int], Segment]:
        waiting: dict[tuple[int, int], Segment] = {}
        for pair, segment in replays_of(self._unsettled(), set(pairs_of(context, model))):
            waiting.setdefault(pair, segment)
        return waiting | self._reader.simulations(context, model)

    def _unsettled(self) -> list[Segment]:
        """What waits for SQLite. To be asked before SQLite is: what leaves memory meanwhile is
        there then, and only known twice."""
        return [*self._settling, *tuple(self._waiting)]

    def number_reader(self, request_id: str) -> Callable[[], int | None]:
        """Finds the decision of a request. Memory is looked at now, by the thread of the look-ups,
        SQLite when this is called, by any thread; so for the other two readers."""
        number = self._numbers.get(request_id)
        if number is not None:
            return lambda: number
        return lambda: self._reader.find_requests([request_id]).get(request_id)

    def decision_reader(self, number: int) -> Callable[[], DecisionBatch | None]:
        """Reads a decision; see `number_reader`."""
        waiting = self._rows.get(number)
        if waiting is None:
            return lambda: self._reader.decision(number)
        batch, row = waiting
        return partial(slice_rows, batch, row, row + 1)

    def decision(self, number: int) -> DecisionBatch | None:
        return self.decision_reader(number)()

    def outcome_parts(self, number: int) -> list[OutcomeBatch]:
        return self.parts_reader(number)()

    def parts_reader(self, number: int) -> Callable[[], list[OutcomeBatch]]:
        """Reads what `outcome_parts` is; see `number_reader`."""
        recent = self._recent.find(number)
        if recent is not None:
            return lambda: recent
        # Memory first: what leaves it meanwhile is in SQLite when that is asked, and then known
        # twice. A late repeat must not make the loop wait for a transaction.
        waiting: dict[int, OutcomeBatch] = {}
        for segment in self._unsettled():
            if isinstance(segment.batch, OutcomeBatch):
                for row in np.flatnonzero(segment.batch.number == number).tolist():
                    waiting[segment.seq + row] = slice_rows(segment.batch, row, row + 1)

        def both() -> list[OutcomeBatch]:
            settled = self._reader.outcome_rows(number)
            return [part for _, part in sorted({**waiting, **settled}.items())]

        return both

    def read(self, since: int = 0, until: int | None = None) -> Iterator[Segment]:
        end = self._next_seq if until is None else min(until, self._next_seq)
        self.settle(end)
        return self._reader.read(since, end)

    def probe(self) -> None:
        """Raise what `append` of a few rows would raise now; the log stays as it is."""
        self.check_files()
        self._check_room(1)
        self._tail.probe()

    def begin_sync(self) -> Callable[[], None]:
        """A function, for any thread, that puts on the disk what was appended before this call."""
        return self._tail.begin_sync()

    def settle(self, until: int | None = None, seconds: float | None = None) -> bool:
        """Wait until SQLite holds the first `until` rows (default: all); whether it does.

        Raises StoreError where SQLite refuses them and `seconds` were not given.
        """
        end = self._next_seq if until is None else until
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._change:
            while self._settled < end:
                if self.trouble is not None and deadline is None:
                    raise self.trouble
                self._hurry.set()
                remaining = None if deadline is None else deadline - time.monotonic()
                if remaining is not None and remaining <= 0:
                    return False
                self._change.wait(remaining)
        return True

    def checkpoint(self, seq: int, state: Buffer, at: float) -> None:
        self.settle(min(seq, self._next_seq))
        self._log.checkpoint(seq, state, at)

    def restore(self) -> Checkpoint | None:
        return self._reader.restore()

    def anchor(self, at: float) -> Anchor:
        """As of `SqliteStore`: rows that wait for SQLite are not in it yet."""
        return self._reader.anchor(at)

    def base_snapshot(self) -> BaseSnapshot | None:
        return self._reader.base_snapshot()

    def keep_base(self, seq: int, state: Buffer, at: float) -> None:
        """As of `SqliteStore`; waits until the rows before `seq` are in SQLite."""
        self.settle(min(seq, self._next_seq))
        self._log.keep_base(seq, state, at)

    def last_base_kept(self, now: float) -> float | None:
        """When the newest base up to `now` was kept, both in seconds since the epoch."""
        return self._reader.truncation.last_kept(now)

    def trim(
        self, before: float, now: float, archive: Path | None, newer: int = 0
    ) -> Trimmed | None:
        """As of `Truncation`; for any thread, and given up when the store is closed."""
        return self._log.truncation.trim(before, now, archive, lambda: self._closing, newer)

    def freeze(self, name: str, value: str) -> None:
        self._log.freeze(name, value)

    def settings(self) -> dict[str, str]:
        return self._reader.settings()

    def put(self, record: StoredRecord) -> None:
        self._log.put(record)

    def eras(self) -> list[Era]:
        return self._reader.eras()

    def rules(self) -> list[RuleRecord]:
        return self._reader.rules()

    def rule_ids(self) -> list[tuple[int, str]]:
        return self._reader.rule_ids()

    def bodies(self) -> Iterator[str]:
        return self._reader.bodies()

    def remove_rules(self, ordinals: Sequence[int]) -> None:
        """As of `SqliteStore`, a few at a time; for any thread."""
        for start in range(0, len(ordinals), _RULES_AT_ONCE):
            if self._closing:
                return
            self._log.remove_rules(ordinals[start : start + _RULES_AT_ONCE])
            time.sleep(_BREATH_SECONDS)

    def rule(self, rule_id: str) -> RuleRecord | None:
        return self._reader.rule(rule_id)

    def alerts(self) -> list[Alert]:
        return self._reader.alerts()

    def controls(self) -> list[Control]:
        return self._reader.controls()

    def gaps(self) -> list[Gap]:
        return self._reader.gaps()

    @property
    def leftovers(self) -> Leftovers:
        """What stood beside the database when it was opened."""
        return self._log.leftovers

    def close(self) -> None:
        """Move everything into SQLite and let go. What SQLite refuses stays in the tail."""
        if self._closing:
            return
        self._closing = True
        self._hurry.set()
        self._wake.set()
        self._thread.join()
        if self._learner.is_alive():
            self._learner.join()
        try:
            self._tail.close()
        finally:
            self._reader.close()
            settled = self.check_files() is None
            self._log.close()
        if settled:  # else the tail may be all that can be found
            self._tail.forget(self._settled)

    def _learn_names(self) -> None:
        """The thread that reads the names of the decisions that were there at the start."""
        try:
            with SqliteStore(self.path, read_only=True) as reader:
                for names in reader.request_names(self._decisions_at_start):
                    self._before.add(names)
                    if self._closing:
                        return
                    time.sleep(_BREATH_SECONDS)
        except StoreError:
            return  # SQLite is then asked for ever, which is right and only slower
        self._filters_whole = True

    def _settle_on(self) -> None:
        """The thread: gather, write, forget, until the store is closed."""
        last, pause = -_BETWEEN_SECONDS, _GATHER_SECONDS
        while True:
            self._wake.wait()
            since = time.monotonic() - last
            pause = 2 * pause if since < _BETWEEN_SECONDS else _GATHER_SECONDS
            pause = min(pause, _BETWEEN_SECONDS)
            if not self._closing:
                self._hurry.wait(max(_GATHER_SECONDS, pause - since))
            last = time.monotonic()
            self._hurry.clear()
            self._wake.clear()
            if self.displaced is not None:
                self._log.rescue_journal()
            # Cleared before the queue is emptied: what comes later wakes the thread again. A
            # segment is in one of the two lists at every moment, for look-ups.
            while self._waiting:
                self._settling.append(self._waiting[0])
                self._waiting.popleft()
            while self._settling and not self._write():
                if self._closing:
                    return
                time.sleep(_RETRY_SECONDS)
            if self._closing and not self._waiting:
                return

    def _write(self) -> bool:
        """Write what is settling in one transaction; whether it worked."""
        segments = self._settling
        problem = self.check_files()
        if problem is not None:
            self._log.rescue_journal()
            self._trouble(problem)
            return False
        start = time.perf_counter()
        try:
            self._log.append_together(segments)
        except StoreError as error:
            self._trouble(error)
            return False
        except Exception as error:  # a thread that died would leave rows waiting without a word
            kind = type(error).__name__
            self._trouble(WriteError(f"{self._name}: rows cannot be written ({kind})"))
            return False
        self.commit_seconds += time.perf_counter() - start
        self.commits += 1
        for segment in segments:
            batch = segment.batch
            if isinstance(batch, DecisionBatch):
                row = batch.row
                for number in batch.number.tolist() if row is None else row[:1]:
                    del self._rows[number]
                for name in _request_ids(batch):
                    if name:
                        self._numbers.pop(name, None)
                if (row is None or row[-1] is not None) and batch.draw is not None:
                    for position in batch.draw.tolist():
                        del self._draws[position]
            elif isinstance(batch, ObservationBatch):
                self._observed.difference_update(batch.request_id or ())
        self._settling = []
        with self._change:
            self._settled = segments[-1].seq + len(segments[-1].batch)
            self.trouble = None
            self._change.notify_all()
        with contextlib.suppress(OSError):
            if self._tail.has_files_before(self._settled):
                # The death of the machine must not take what both of them hold.
                self._log.sync_journal()
                self._tail.forget(self._settled)
            if self._decisions + BLOCK // 2 > self._mark.reserved:
                self._mark.reserve(self._decisions)
        return True

    def _trouble(self, error: StoreError) -> None:
        with self._change:
            self.trouble = error
            self._change.notify_all()


def _request_ids(batch: DecisionBatch) -> Texts:
    names = batch.request_id if batch.row is None else batch.row[_NAMES]
    return names or ()
