"""The contract every store keeps: an append-only log of column batches, and what may enter it.

The log is the truth and state is a fold over it. Rows of all kinds share one total order, `seq`,
counted 0, 1, 2, … without gaps. What is not a row of the log (settings, eras, rules, alerts,
controls, checkpoints) is written once and looked up by name.

Stores differ in what survives, never in what they answer: `MemoryStore` lives as long as the
process, `SqliteStore` survives kill -9 (or a power cut, if asked to).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

import msgspec
import numpy as np

from equipoise.store.batches import Batch, Buffer, DecisionBatch, Ints, OutcomeBatch, Segment
from equipoise.store.errors import ContradictionError, SequenceError
from equipoise.store.records import (
    LANE_BITS,
    Alert,
    Control,
    Era,
    Gap,
    RuleRecord,
    decision_id,
)

KEPT_CHECKPOINTS = 3

StoredRecord: TypeAlias = Era | Alert | Control | RuleRecord


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after folding every row before `seq`. at: seconds since the epoch."""

    seq: int
    state: Buffer
    at: float


@dataclass(frozen=True, slots=True)
class BaseSnapshot:
    """A state that a log begins at, or may begin at, instead of row 0.

    seq, decisions: rows and decisions before it. at: when its state was kept; sealed_at: when the
    rows before it went, None while they are there; both seconds since the epoch. digest: SHA-256
    over those rows and the digest of the base before.
    """

    seq: int
    decisions: int
    at: float
    state: Buffer
    sealed_at: float | None = None
    digest: str = ""


class Store(Protocol):
    """An event log with one writer. Every method raises StoreError (a ValueError) on failure."""

    @property
    def next_seq(self) -> int:
        """The seq the next appended row will get; the number of rows of the whole log."""

    @property
    def decisions(self) -> int:
        """The number the next decision must carry: that of decisions so far, the numbers of
        `gaps` included."""

    def append(self, batch: Batch) -> int:
        """Append the rows of a batch, all or none, and return the seq of the first.

        On return the rows are as durable as the store promises. An empty batch changes nothing.
        The caller hands the batch over: its arrays must not be written afterwards.

        Raises SequenceError where decision numbers do not continue at `decisions`,
        ContradictionError where a request_id already has a decision, WriteError where the medium
        refuses. After an error the log is as it was before the call.
        """

    def read(self, since: int = 0, until: int | None = None) -> Iterator[Segment]:
        """Segments that together hold every row with since <= seq < until, in seq order.

        `until` defaults to the end of the log at the time of the call. Where the log was cut into
        segments says nothing: they need not be the batches that were appended. Every number comes
        back bit for bit (one NaN is as good as another). A DecisionBatch has one rule and era.
        A row without a name has "" in request_id, unit_id and context_id; a column of nothing
        else may come back as None. eligible and metrics come back as None where they were None.
        The arrays may belong to the store: read them, do not write them.
        """

    def find_requests(self, request_ids: Sequence[str]) -> dict[str, int]:
        """Decision numbers of those request ids that have one; the others are left out."""

    def find_observations(self, request_ids: Sequence[str]) -> set[str]:
        """Those of the request ids under which an observation is in the log already."""

    def observations(self, request_ids: Sequence[str]) -> dict[str, Segment]:
        """The first observation of each of those request ids that have one, each alone."""

    def simulations(self, context: Ints, model: Ints) -> dict[tuple[int, int], Segment]:
        """The first simulation of each (context, model) (n,) that has one, each alone.

        Rows that were removed by age are not found; the state may still know of them.
        """

    def decision(self, number: int) -> DecisionBatch | None:
        """The decision as a batch of one row, None where there is none of that number."""

    def find_draws(self, positions: Sequence[int]) -> dict[int, int]:
        """Numbers of the decisions whose `draw` is one of these positions, by position; those that
        are in no row are left out."""

    def lane_ends(self) -> dict[int, int]:
        """By lane, 1 and above, the counter after the last of its decisions in the log."""

    def outcome_parts(self, number: int) -> list[OutcomeBatch]:
        """The outcome rows of a decision in seq order, each as a batch of one row."""

    def checkpoint(self, seq: int, state: Buffer, at: float) -> None:
        """Keep the state after the rows before `seq`. Only the newest three are kept.

        at: seconds since the epoch. Raises SequenceError where `seq` lies beyond the log.
        """

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole and not ahead of the log, None where none is.

        Where the log does not begin at row 0 there is always one, its base at least.
        """

    def base_snapshot(self) -> BaseSnapshot | None:
        """What the log begins at, None where it begins at row 0. `read` begins there too."""

    def freeze(self, name: str, value: str) -> None:
        """Write a setting once. The same value again is no change, on a read-only store too.

        Raises ContradictionError where the setting is frozen with another value.
        """

    def settings(self) -> dict[str, str]:
        """Every frozen setting by name."""

    def put(self, record: StoredRecord) -> None:
        """Keep an era, rule, alert or control. The same content again is no change, as in `freeze`.

        An era is known by its number, a rule by its id; the time of a rule is when it was first
        kept, and no part of its content. Alerts and controls are known by their whole content.
        Raises ContradictionError where the era or rule is kept with other content.
        """

    def eras(self) -> list[Era]:
        """Every era, by number."""

    def rules(self) -> list[RuleRecord]:
        """Every rule, in the order they were kept."""

    def rule_ids(self) -> list[tuple[int, str]]:
        """Ordinal (from 0, in the order they were kept) and id of every rule, in that order; those
        of removed rules are left out."""
        return [(ordinal, rule.rule_id) for ordinal, rule in enumerate(self.rules())]

    def bodies(self) -> Iterator[str]:
        """The texts of all rules, one at a time."""
        return (rule.body for rule in self.rules())

    def rule(self, rule_id: str) -> RuleRecord | None:
        """The rule of that id, None where there is none."""

    def alerts(self) -> list[Alert]:
        """Every alert, in the order they were kept."""

    def controls(self) -> list[Control]:
        """Everything an operator set, in the order it was kept."""

    def gaps(self) -> list[Gap]:
        """What is known to be missing from the log, in the order it was noted."""

    def close(self) -> None:
        """Release what the store holds. Closing again is no error."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def check_numbers(store: str, batch: DecisionBatch, first: int) -> None:
    """Decision numbers must run first, first + 1, …; raises SequenceError where they do not."""
    expected = np.arange(first, first + len(batch), dtype=np.int64)
    misnumbered = np.flatnonzero(batch.number != expected)
    if len(misnumbered):
        row = int(misnumbered[0])
        raise SequenceError(
            f"{store}: row {row} of the decisions has number {int(batch.number[row])}, "
            f"expected {int(expected[row])}"
        )


def check_draws(store: str, draw: Ints, known: Container[int]) -> None:
    """A position is drawn once; raises ContradictionError naming the first that comes again."""
    earlier: set[int] = set()
    for position in draw.tolist():
        if position in known or position in earlier:
            name = decision_id(position)
            raise ContradictionError(f"{store}: decision {name} is in the log already")
        earlier.add(position)


def ends_of(draw: Ints) -> dict[int, int]:
    """By lane, the counter after its last in these positions (n,), which rise within a lane."""
    lanes, counters = draw >> LANE_BITS, draw & ((1 << LANE_BITS) - 1)
    return {int(lane): int(counters[lanes == lane].max()) + 1 for lane in np.unique(lanes) if lane}


def check_checkpoint(store: str, seq: int, next_seq: int) -> None:
    """A checkpoint covers rows that are in the log; raises SequenceError where it does not."""
    if not 0 <= seq <= next_seq:
        raise SequenceError(f"{store}: checkpoint at seq {seq}, the log ends at {next_seq}")


def repeated_request(
    store: str, request_ids: Sequence[str], decided: Container[str]
) -> ContradictionError:
    """The error that names the first request id that already has, or gets twice, a decision."""
    earlier: set[str] = set()
    for name in request_ids:
        if name in decided or (name and name in earlier):
            return ContradictionError(f"{store}: request_id {name!r} already has a decision")
        earlier.add(name)
    return ContradictionError(f"{store}: a request_id already has a decision")


def check_setting(store: str, name: str, frozen: str, value: str) -> None:
    """A frozen setting keeps its value; raises ContradictionError where another is given."""
    if frozen != value:
        raise ContradictionError(
            f"{store}: setting {name} is frozen as {_shorten(frozen)}, got {_shorten(value)}"
        )


def check_same_era(store: str, kept: Era, era: Era) -> None:
    """An era keeps its content; raises ContradictionError naming the field that differs."""
    for name in era.__struct_fields__:
        before, now = getattr(kept, name), getattr(era, name)
        if before != now:
            change = f"{_shorten(before)}, got {_shorten(now)}"
            raise ContradictionError(f"{store}: era {era.era} is kept with {name} {change}")


def check_same_rule(store: str, kept: RuleRecord, rule: RuleRecord) -> None:
    """A rule keeps its content; raises ContradictionError where era or body differ.

    A rule frozen again later is the same rule: its time is no part of its content.
    """
    if msgspec.structs.replace(rule, at=kept.at) != kept:
        raise ContradictionError(f"{store}: rule {rule.rule_id} is kept with another era or body")


def _shorten(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
