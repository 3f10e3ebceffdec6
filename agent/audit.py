"""Recompute a log: every probability from its stored rule, every draw from its uniform.

The uniform itself is drawn again where the key is at hand. Nothing the agent holds in memory is
trusted: the audit reads the store alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.draws import Draws, key_hash
from equipoise.agent.errors import AgentError
from equipoise.agent.rules import RuleBook
from equipoise.policies.draw import draw
from equipoise.store.batches import (
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Floats,
    OutcomeBatch,
    Segment,
)
from equipoise.store.contract import Store
from equipoise.store.slicing import slice_rows

TOLERANCE = 1e-9
_SHOWN = 20


@dataclass(slots=True)
class Audit:
    """What an audit found. `faults` holds sentences, at most 20; `fault_count` counts all.

    begins: the first row of the log; digest: of the removed rows before it, "" where there are
    none. unchecked: decisions that follow one among those rows. losses: what the log is known to
    lack, which is no fault of what it holds.
    """

    begins: int = 0
    digest: str = ""
    unchecked: int = 0
    rows: int = 0
    decisions: int = 0
    randomized: int = 0
    capped: int = 0
    outcomes: int = 0
    rules: int = 0
    uniforms_redrawn: bool = False
    losses: list[str] = field(default_factory=list)
    fault_count: int = 0
    faults: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.fault_count == 0

    def fault(self, sentence: str, count: int = 1) -> None:
        self.fault_count += count
        if len(self.faults) < _SHOWN:
            self.faults.append(sentence)


def audit(
    store: Store,
    config: ExperimentConfig,
    key: bytes | None = None,
    progress: Callable[[int], None] = lambda rows: None,
) -> Audit:
    """Audit a whole store. progress is called with the number of rows read so far.

    Raises AgentError where the key is not the one the store was opened with.
    """
    draws = None
    if key is not None:
        frozen = store.settings().get("key_hash")
        if frozen != key_hash(key):
            raise AgentError(f"key does not match the store: its hash should be {frozen}")
        draws = Draws(key, config.name)
    rules = RuleBook(store)
    result = Audit(rules=len(rules), uniforms_redrawn=draws is not None)
    seq = number = first = 0
    root = store.root()
    if root is not None:
        seq, number, first = root.seq, root.decisions, root.decisions
        result.begins, result.digest = root.seq, root.digest
    gaps = store.gaps()
    result.losses = [gap.sentence for gap in gaps]
    lost = {gap.first: gap.end for gap in gaps if gap.numbers}
    for segment in _consecutive(store.read()):
        batch = segment.batch
        if segment.seq != seq:
            result.fault(f"log rows {seq} to {segment.seq - 1} are missing", segment.seq - seq)
        seq = segment.seq + len(batch)
        result.rows += len(batch)
        if isinstance(batch, DecisionBatch):
            while number in lost:
                number = lost[number]
            _check_decisions(result, batch, rules, draws, number, store, first)
            number += len(batch)
        elif isinstance(batch, (OutcomeBatch, ExpiryBatch)):
            result.outcomes += isinstance(batch, OutcomeBatch) and len(batch)
            orphan = (batch.number < 0) | (batch.number >= number)
            _report(result, batch.number, orphan, "is answered for before it was made")
        progress(result.rows)
    return result


def _consecutive(segments: Iterator[Segment]) -> Iterator[Segment]:
    """The segments, cut where decision numbers leave some out."""
    for segment in segments:
        batch, start = segment.batch, 0
        if isinstance(batch, DecisionBatch):
            for cut in (np.flatnonzero(np.diff(batch.number) != 1) + 1).tolist():
                yield Segment(segment.seq + start, slice_rows(batch, start, cut))
                start = cut
        yield Segment(segment.seq + start, slice_rows(batch, start, len(batch)))


def _check_decisions(
    result: Audit,
    batch: DecisionBatch,
    rules: RuleBook,
    draws: Draws | None,
    number: int,
    store: Store,
    begins: int,
) -> None:
    """number: of the first decision of the batch; begins: of the first one of the log."""
    count = len(batch)
    result.decisions += count
    result.randomized += int(np.count_nonzero(batch.randomized))
    result.capped += int(np.count_nonzero(batch.capped))
    expected = np.arange(number, number + count)
    _report(result, batch.number, batch.number != expected, "is out of sequence")
    try:
        rule = rules.rule(batch.rule_id)
    except KeyError:
        result.fault(f"rule {batch.rule_id} of {count} decisions is not in the store", count)
        return
    rate, shares = rule.allocation.allocate(batch.x, batch.eligible)
    uniform = None if draws is None else draws.uniforms(number, count)
    if batch.leader is not None and (batch.leader != batch.number).any():
        rate, shares, uniform = _of_leaders(result, batch, store, begins, rate, shares, uniform)
    rate = np.where(batch.capped, 0.0, rate)
    off = np.abs(rate - batch.rate) > TOLERANCE
    _report(result, batch.number, off, f"has a rate that rule {batch.rule_id} does not give")
    off = np.abs(shares - batch.probabilities).max(axis=1) > TOLERANCE
    _report(result, batch.number, off, f"has probabilities that rule {batch.rule_id} does not give")
    model, randomized = draw(batch.uniform, batch.rate, batch.probabilities, batch.routed)
    off = (model != batch.model) | (randomized != batch.randomized)
    _report(result, batch.number, off, "does not follow from its own uniform and probabilities")
    if uniform is not None:
        off = uniform != batch.uniform
        _report(result, batch.number, off, "has a uniform the key does not give")


def _of_leaders(
    result: Audit,
    batch: DecisionBatch,
    store: Store,
    begins: int,
    rate: Floats,
    shares: Floats,
    uniform: Floats | None,
) -> tuple[Floats, Floats, Floats | None]:
    """What followers of a sticky unit should have: the rate, shares and uniform of the decision
    that opened it, as logged and so audited itself."""
    rate, shares = rate.copy(), shares.copy()
    uniform = None if uniform is None else uniform.copy()
    assert batch.leader is not None
    for row in np.flatnonzero(batch.leader != batch.number).tolist():
        leader = int(batch.leader[row])
        if 0 <= leader < begins:
            # Its leader's row was removed: what it was given has nothing to be compared with.
            result.unchecked += 1
            rate[row], shares[row] = batch.rate[row], batch.probabilities[row]
            if uniform is not None:
                uniform[row] = batch.uniform[row]
            continue
        opened = store.decision(leader) if 0 <= leader < int(batch.number[row]) else None
        if opened is None or int(opened.unit[0]) != int(batch.unit[row]):
            result.fault(f"decision d{batch.number[row]} follows d{leader}, not of its unit")
            continue
        rate[row], shares[row] = opened.rate[0], opened.probabilities[0]
        if uniform is not None:
            uniform[row] = opened.uniform[0]
    return rate, shares, uniform


def _report(result: Audit, numbers: np.ndarray, wrong: Flags, what: str) -> None:
    count = int(np.count_nonzero(wrong))
    if count:
        first = int(numbers[np.flatnonzero(wrong)[0]])
        more = f", and {count - 1} more" if count > 1 else ""
        result.fault(f"decision d{first} {what}{more}", count)
