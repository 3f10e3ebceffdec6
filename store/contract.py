"""The contract every store keeps: an append-only log of column batches, and what surrounds it.

The log is the truth and state is a fold over it. Rows of all kinds share one total order, `seq`,
counted 0, 1, 2, … without gaps. What is not a row of the log (settings, eras, rules, alerts,
controls, checkpoints) is written once and looked up by name.

Stores differ in what survives, never in what they answer: `MemoryStore` lives as long as the
process, `SqliteStore` survives kill -9 (or a power cut, if asked to).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self, TypeAlias

from equipoise.store.batches import Batch, Buffer, DecisionBatch, Ints, OutcomeBatch, Segment
from equipoise.store.records import Alert, Control, Era, Gap, RuleRecord
from equipoise.store.roots import Root

KEPT_CHECKPOINTS = 3

Kept: TypeAlias = Era | Alert | Control | RuleRecord


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The state after folding every row before `seq`. at: seconds since the epoch."""

    seq: int
    state: Buffer
    at: float


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

    def outcome_parts(self, number: int) -> list[OutcomeBatch]:
        """The outcome rows of a decision in seq order, each as a batch of one row."""

    def checkpoint(self, seq: int, state: Buffer, at: float) -> None:
        """Keep the state after the rows before `seq`. Only the newest three are kept.

        at: seconds since the epoch. Raises SequenceError where `seq` lies beyond the log.
        """

    def restore(self) -> Checkpoint | None:
        """The newest checkpoint that is whole and not ahead of the log, None where none is.

        Where the log does not begin at row 0 there is always one, its root at least.
        """

    def root(self) -> Root | None:
        """What the log begins at, None where it begins at row 0. `read` begins there too."""

    def freeze(self, name: str, value: str) -> None:
        """Write a setting once. The same value again is no change, on a read-only store too.

        Raises ContradictionError where the setting is frozen with another value.
        """

    def settings(self) -> dict[str, str]:
        """Every frozen setting by name."""

    def put(self, record: Kept) -> None:
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
