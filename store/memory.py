"""A store that lives in memory: the log as references to the batches it was given.

Made for the replay's inner loop: appending keeps a reference and moves two counters. Nothing is
copied or frozen, so the caller hands each batch over and must not write its arrays again;
segments that are read are views of those same arrays.

`RecentOutcomes` is what a store over a file keeps in memory beside it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator, Sequence

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
    KEPT_CHECKPOINTS,
    BaseSnapshot,
    Checkpoint,
    Store,
    StoredRecord,
    check_checkpoint,
    check_draws,
    check_numbers,
    check_same_era,
    check_same_rule,
    check_setting,
    ends_of,
    repeated_request,
)
from equipoise.store.records import Alert, Control, Era, Gap, RuleRecord

_STORE = "store in memory"


class MemoryStore(Store):
    """The Store contract without durability; one thread at a time."""

    def __init__(self) -> None:
        self._next_seq = 0
        self._starts: list[int] = []
        self._batches: list[Batch] = []
        self._decisions = 0
        self._decision_starts: list[int] = []
        self._decision_batches: list[DecisionBatch] = []
        self._requests: dict[str, int] = {}
        self._draws: dict[int, int] = {}
        self._lane_ends: dict[int, int] = {}
        self._parts: dict[int, list[tuple[OutcomeBatch, int]]] = {}
        self._batches_with_parts = 0
        self._observed: set[str] = set()
        self._batches_with_observations = 0
        self._settings: dict[str, str] = {}
        self._eras: dict[int, Era] = {}
        self._rules: dict[str, RuleRecord] = {}
        self._alerts: dict[Alert, None] = {}
        self._controls: dict[Control, None] = {}
        self._checkpoints: deque[Checkpoint] = deque(maxlen=KEPT_CHECKPOINTS)

    @property
    def next_seq(self) -> int:
        return self._next_seq

    @property
    def decisions(self) -> int:
        return self._decisions

    def append(self, batch: Batch) -> int:
        first = self._next_seq
        rows = len(batch)
        if not rows:
            return first
        if type(batch) is DecisionBatch:
            self._admit(batch, rows)
        self._starts.append(first)
        self._batches.append(batch)
        self._next_seq = first + rows
        return first

    def _admit(self, batch: DecisionBatch, rows: int) -> None:
        first = self._decisions
        if batch.row is not None and batch.row[0] == first and batch.row[-1] is None:
            # Decided alone, under its number: as below, and no column is made for it.
            request_id: Texts | None = batch.row[15]
            if request_id is not None:
                self._name_requests(request_id, first)
            self._decision_starts.append(first)
            self._decision_batches.append(batch)
            self._decisions = first + 1
            return
        if batch.number[0] != first or batch.number[-1] != first + rows - 1:
            check_numbers(_STORE, batch, first)
        if batch.draw is not None:
            check_draws(_STORE, batch.draw, self._draws)
        if batch.request_id is not None:
            self._name_requests(batch.request_id, first)
        if batch.draw is not None:
            self._draws.update(zip(batch.draw.tolist(), batch.number.tolist(), strict=True))
            self._lane_ends |= ends_of(batch.draw)
        self._decision_starts.append(first)
        self._decision_batches.append(batch)
        self._decisions = first + rows

    def _name_requests(self, request_ids: Sequence[str], first: int) -> None:
        if len(request_ids) == 1:
            if request_ids[0] and self._requests.setdefault(request_ids[0], first) != first:
                raise repeated_request(_STORE, request_ids, self._requests)
            return
        named = {name: number for number, name in enumerate(request_ids, first) if name}
        if len(named) < sum(map(bool, request_ids)) or not self._requests.keys().isdisjoint(named):
            raise repeated_request(_STORE, request_ids, self._requests)
        self._requests.update(named)

    def read(self, since: int = 0, until: int | None = None) -> Iterator[Segment]:
        end = self._next_seq if until is None else min(until, self._next_seq)
        return self._segments(max(since, 0), end)

    def _segments(self, since: int, until: int) -> Iterator[Segment]:
        position = max(bisect_right(self._starts, since) - 1, 0)
        while since < until:
            start, batch = self._starts[position], self._batches[position]
            stop = min(start + len(batch), until)
            yield Segment(since, slice_rows(batch, since - start, stop - start))
            since = stop
            position += 1

    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        numbers = self._requests
        return {name: numbers[name] for name in request_ids if name in numbers}

    def find_observations(self, request_ids: Sequence[str]) -> set[str]:
        for batch in self._batches[self._batches_with_observations :]:
            if isinstance(batch, ObservationBatch):
                self._observed.update(batch.request_id or ())
        self._batches_with_observations = len(self._batches)
        return {name for name in request_ids if name and name in self._observed}

    def observations(self, request_ids: Sequence[str]) -> dict[str, Segment]:
        wanted, first = set(request_ids), dict[str, Segment]()
        for name, segment in named_observations(self.read(), wanted):
            first.setdefault(name, segment)
        return first

    def simulations(self, context: Ints, model: Ints) -> dict[tuple[int, int], Segment]:
        # Only repeats are looked up, so an index would cost more than it saves.
        wanted, first = set(pairs_of(context, model)), dict[tuple[int, int], Segment]()
        for pair, segment in replays_of(self.read(), wanted):
            first.setdefault(pair, segment)
        return first

    def decision(self, number: int) -> DecisionBatch | None:
        if not 0 <= number < self._decisions:
            return None
        position = bisect_right(self._decision_starts, number) - 1
        row = number - self._decision_starts[position]
        return slice_rows(self._decision_batches[position], row, row + 1)

    def find_draws(self, positions: Sequence[int]) -> dict[int, int]:
        numbers = self._draws
        return {each: numbers[each] for each in positions if each in numbers}

    def lane_ends(self) -> dict[int, int]:
        return dict(self._lane_ends)

    def outcome_parts(self, number: int) -> list[OutcomeBatch]:
        self._index_parts()
        return [slice_rows(batch, row, row + 1) for batch, row in self._parts.get(number, ())]

    def _index_parts(self) -> None:
        """Catch up with the batches appended since the last look-up; the hot path never pays."""
        for batch in self._batches[self._batches_with_parts :]:
            if isinstance(batch, OutcomeBatch):
                for row, number in enumerate(batch.number.tolist()):
                    self._parts.setdefault(number, []).append((batch, row))
        self._batches_with_parts = len(self._batches)

    def checkpoint(self, seq: int, state: Buffer, at: float) -> None:
        check_checkpoint(_STORE, seq, self._next_seq)
        self._checkpoints.append(Checkpoint(seq, bytes(state), at))

    def restore(self) -> Checkpoint | None:
        return self._checkpoints[-1] if self._checkpoints else None

    def base_snapshot(self) -> BaseSnapshot | None:
        return None

    def freeze(self, name: str, value: str) -> None:
        check_setting(_STORE, name, self._settings.setdefault(name, value), value)

    def settings(self) -> dict[str, str]:
        return dict(self._settings)

    def put(self, record: StoredRecord) -> None:
        if isinstance(record, Era):
            check_same_era(_STORE, self._eras.setdefault(record.era, record), record)
        elif isinstance(record, RuleRecord):
            check_same_rule(_STORE, self._rules.setdefault(record.rule_id, record), record)
        elif isinstance(record, Alert):
            self._alerts.setdefault(record)
        else:
            self._controls.setdefault(record)

    def eras(self) -> list[Era]:
        return [self._eras[era] for era in sorted(self._eras)]

    def rules(self) -> list[RuleRecord]:
        return list(self._rules.values())

    def rule(self, rule_id: str) -> RuleRecord | None:
        return self._rules.get(rule_id)

    def alerts(self) -> list[Alert]:
        return list(self._alerts)

    def controls(self) -> list[Control]:
        return list(self._controls)

    def gaps(self) -> list[Gap]:
        return []

    def close(self) -> None:
        """Nothing to release; the log stays readable."""


_OUTCOME_ROWS = 20_000
"""Parts of outcomes that are kept: up to 30 MB, where each came alone."""


class RecentOutcomes:
    """Parts of the newest `limit` outcome rows. decisions: how many there were at the start.

    A decision that is younger than the oldest row kept has all its parts here, so `find` knows
    them without asking anybody; of older ones it knows nothing.
    """

    def __init__(self, decisions: int, limit: int = _OUTCOME_ROWS) -> None:
        self._limit = limit
        self._first = decisions
        self._rows = 0
        self._parts: dict[int, list[tuple[OutcomeBatch, int]]] = {}
        self._order: deque[tuple[int, list[int]]] = deque()

    def add(self, batch: OutcomeBatch, decisions: int) -> None:
        """Keep a batch that was appended when there were so many decisions."""
        numbers = batch.number.tolist()
        self._order.append((decisions, numbers))
        self._rows += len(numbers)
        for row, number in enumerate(numbers):
            self._parts.setdefault(number, []).append((batch, row))
        while self._rows > self._limit:
            _, old = self._order.popleft()
            self._rows -= len(old)
            self._first = self._order[0][0] if self._order else decisions
            for number in old:
                parts = self._parts[number]
                del parts[0]
                if not parts:
                    del self._parts[number]

    def find(self, number: int) -> list[OutcomeBatch] | None:
        """Every part of a decision in log order; None where only the log knows."""
        if number < self._first:
            return None
        parts = self._parts.get(number, ())
        return [slice_rows(batch, row, row + 1) for batch, row in parts]


_BITS = 27
"""2^27 bits are 16 MB, whatever the length of history."""
_MASK = (1 << _BITS) - 1
_WORD = (1 << 64) - 1
_SPREAD = 0x9E3779B97F4A7C15


class BloomFilter:
    """Names that were added: a new name is surely not in it, and need not be looked up in SQLite.

    With ten million names it takes fewer than one new name in a hundred for one of them; with a
    hundred million nearly all, and then costs what it saved. One thread adds, any may ask.

    Python's own hash of a string is keyed anew in every process, so nobody can aim at the filter.
    """

    def __init__(self) -> None:
        self._bits = bytearray(1 << (_BITS - 3))
        self._empty = True

    def add(self, names: Iterable[str]) -> None:
        bits, self._empty = self._bits, False
        for name in names:
            key = hash(name) & _WORD
            second = (key * _SPREAD) & _WORD
            for place in (key & _MASK, (key >> 32) & _MASK, second >> (64 - _BITS)):
                bits[place >> 3] |= 1 << (place & 7)

    def __contains__(self, name: str) -> bool:
        """False: it was never added. True: it may have been."""
        if self._empty:
            return False
        bits = self._bits
        key = hash(name) & _WORD
        place = key & _MASK
        if not bits[place >> 3] & (1 << (place & 7)):
            return False
        place = (key >> 32) & _MASK
        if not bits[place >> 3] & (1 << (place & 7)):
            return False
        place = ((key * _SPREAD) & _WORD) >> (64 - _BITS)
        return bool(bits[place >> 3] & (1 << (place & 7)))
