"""What may enter a log, the same for every store, and the sentence where it may not."""

from __future__ import annotations

from collections.abc import Container, Sequence

import msgspec
import numpy as np

from equipoise.store.batches import DecisionBatch
from equipoise.store.errors import ContradictionError, SequenceError
from equipoise.store.records import Era, RuleRecord


def check_numbers(store: str, batch: DecisionBatch, first: int) -> None:
    """Decision numbers must run first, first + 1, …; raises SequenceError where they do not."""
    expected = np.arange(first, first + len(batch), dtype=np.int64)
    wrong = np.flatnonzero(batch.number != expected)
    if len(wrong):
        row = int(wrong[0])
        raise SequenceError(
            f"{store}: row {row} of the decisions has number {int(batch.number[row])}, "
            f"expected {int(expected[row])}"
        )


def check_checkpoint(store: str, seq: int, next_seq: int) -> None:
    """A checkpoint covers rows that are in the log; raises SequenceError where it does not."""
    if not 0 <= seq <= next_seq:
        raise SequenceError(f"{store}: checkpoint at seq {seq}, the log ends at {next_seq}")


def repeated_request(
    store: str, request_ids: Sequence[str], known: Container[str]
) -> ContradictionError:
    """The error that names the first request id that already has, or gets twice, a decision."""
    seen: set[str] = set()
    for name in request_ids:
        if name in known or (name and name in seen):
            return ContradictionError(f"{store}: request_id {name!r} already has a decision")
        seen.add(name)
    return ContradictionError(f"{store}: a request_id already has a decision")


def check_setting(store: str, name: str, kept: str, value: str) -> None:
    """A frozen setting keeps its value; raises ContradictionError where another is given."""
    if kept != value:
        raise ContradictionError(
            f"{store}: setting {name} is frozen as {_shown(kept)}, got {_shown(value)}"
        )


def check_same_era(store: str, kept: Era, era: Era) -> None:
    """An era keeps its content; raises ContradictionError naming the field that differs."""
    for name in era.__struct_fields__:
        before, now = getattr(kept, name), getattr(era, name)
        if before != now:
            raise ContradictionError(
                f"{store}: era {era.era} is kept with {name} {_shown(before)}, got {_shown(now)}"
            )


def check_same_rule(store: str, kept: RuleRecord, rule: RuleRecord) -> None:
    """A rule keeps its content; raises ContradictionError where era or body differ.

    A rule frozen again later is the same rule: its time is no part of its content.
    """
    if msgspec.structs.replace(rule, at=kept.at) != kept:
        raise ContradictionError(f"{store}: rule {rule.rule_id} is kept with another era or body")


def _shown(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
