"""What decisions and outcomes ask for of the fold: what is open, and no sums.

The daemon keeps this alone; the analyst's process, and a program that keeps everything, hold it
inside a `Fold`, which takes the sums whenever a chunk of the log is complete.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.moments.codec import decode, encode
from equipoise.agent.moments.state import Dimensions, Renewal, Versions
from equipoise.agent.state.certified_sums import Rules, Spec
from equipoise.agent.state.chunk import (
    distinct,
    joined,
    named,
    occurrence,
    open_arrays,
    parts,
    some,
    widened,
)
from equipoise.agent.state.monitor_feed import Features
from equipoise.agent.state.open_decisions import OpenDecisions, span
from equipoise.agent.state.replay_index import ReplayIndex
from equipoise.agent.state.sticky_units import StickyUnits
from equipoise.store.batches import (
    Batch,
    Buffer,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Floats,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    SimulationBatch,
    select,
    slice_rows,
)

CHUNK = 8192
"""Log rows of which the sums are taken together."""


class FrozenRules(Rules, Protocol):
    """What the fold needs of the frozen rules: an ordinal per id, the rule per ordinal."""

    def ordinal(self, rule_id: str) -> int: ...


class LightFold:
    """What decisions and outcomes ask for: open decisions, sticky units, the index of replays, the
    ledger, and the watermark; no sums. `Fold` is the whole.

    metrics: how many an outcome may carry. ttl: of units, seconds; open_bytes, folder: see
    `OpenDecisions`. watermark: the first decision that is not closed. randomized: decisions that
    came from a draw of ours; masked: decisions whose request was closed to some model; late: parts
    of outcomes that came too late to be used; ledger: what was randomized, and how traffic comes
    in. renewals: models that became another version, in order.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        outputs: int,
        features: Features,
        rules: FrozenRules,
        spec: Spec,
        rate_min: float,
        metrics: int = 0,
        ttl: float | None = None,
        ledger: Ledger | None = None,
        open_bytes: int | None = None,
        folder: Path | None = None,
        renewals: tuple[Renewal, ...] = (),
    ) -> None:
        self.dimensions = dimensions
        self._features = features
        self._rules = rules
        self._spec = spec
        self._rate_min = rate_min
        self._outputs = outputs
        self.versions = Versions(dimensions.models, renewals)
        self.next_seq = 0
        self.watermark = 0
        self.randomized = 0
        self.masked = 0
        self.late = 0
        self.retold = 0
        """Changes whenever a part comes of a decision that the chunk had gathered before."""
        self.ledger = ledger or Ledger(dimensions.models)
        self.pending = OpenDecisions(
            dimensions.context,
            outputs,
            dimensions.models,
            metrics,
            ttl,
            most_bytes=open_bytes,
            folder=folder,
        )
        self.units = StickyUnits()
        self.simulated = ReplayIndex(dimensions.models, dimensions.features - 1)
        self._declared: dict[int, bool] = {}
        self._alone: tuple[str, int, float, Flags | None] = "", 0, 0.0, None
        """Of the rule of the last decision that came alone: its id, its ordinal, the least rate of
        a certified row, and the models that its era compares, None for all."""
        self.rewarded: list[Ints] = []
        self.completed: list[Ints] = []
        self.observed: list[tuple[Floats, Ints, Ints]] = []
        self.replayed: list[tuple[Ints, Ints, Floats, Floats]] = []

    def apply(self, seq: int, batch: Batch) -> None:
        """Take in a batch whose first row has this seq, which must be `next_seq`."""
        if self.took_one(seq, batch):
            return
        for _ in self.chunks(seq, batch):
            count = self.pending.passed(self.watermark - self.pending.base)
            self.end_chunk(self.watermark + count)

    def took_one(self, seq: int, batch: Batch) -> bool:
        """Take in a decision that came alone, as plain values and within a chunk, at a fraction of
        the cost of `chunks`; False, and nothing is done, where it is not such a one."""
        if type(batch) is not DecisionBatch or batch.row is None or self.pending.ttl is not None:
            return False
        if seq != self.next_seq or (seq + 1) % CHUNK == 0 or self.ledger.counts_rows:
            return False
        versions, row = self.versions.renewals, batch.row
        if versions and (versions[-1].seq > seq or len(self.simulated.renewed) < len(versions)):
            return False
        number, at, routed, rate, shares = row[0], row[3], row[5], row[6], row[7]
        model, randomized, rule_id = row[9], row[10], row[12]
        known, rule, least, active = self._alone
        if known != rule_id:
            rule = self._rules.ordinal(rule_id)
            frozen = self._rules.by_ordinal(rule)
            if frozen.drawn is not None or len(frozen.active) < self.dimensions.models:
                return False
            least = np.inf if self.watches(rule) else self._rate_min
            active = None if frozen.active.all() else frozen.active
            self._alone = rule_id, rule, least, active
        if number != self.pending.next:
            return False
        self.masked += self.pending.insert_one(row, rule, least, self.watermark, active)
        self.randomized += randomized
        self.ledger.take_one(at, routed, rate, shares, model, randomized)
        self.next_seq = seq + 1
        return True

    def chunks(self, seq: int, batch: Batch) -> Iterator[None]:
        """Take in a batch; yields where a chunk is complete, and `end_chunk` is due."""
        if seq != self.next_seq:
            raise ValueError(f"log row {seq} arrived where {self.next_seq} was due")
        start, count = 0, len(batch)
        while start < count:
            self._renew_replays()
            stop = min(count, start + CHUNK - self.next_seq % CHUNK)
            for renewal in self.versions.renewals:
                if renewal.seq > self.next_seq:
                    stop = min(stop, start + renewal.seq - self.next_seq)
            part = batch if stop - start == count else slice_rows(batch, start, stop)
            self._take(part)
            self.next_seq += stop - start
            start = stop
            if self.next_seq % CHUNK == 0:
                yield
        self._renew_replays()

    def renew(self, renewal: Renewal) -> None:
        """Know from the next row on that a model became another version."""
        self.versions = Versions(self.dimensions.models, (*self.versions.renewals, renewal))
        self._renew_replays()

    def _renew_replays(self) -> None:
        index = self.simulated
        for renewal in self.versions.renewals[len(index.renewed) : self._generation]:
            index.renew(renewal.model, renewal.number)

    @property
    def _generation(self) -> int:
        return self.versions.logged(self.next_seq)

    def end_chunk(self, watermark: int) -> None:
        """Let go of what waited for the sums of a chunk. watermark: where it stands now."""
        self.watermark = watermark
        table = self.pending
        for (numbers,) in joined([(numbers,) for numbers in self.completed]):
            at = span(table.rows(numbers))
            table.folded[at], table.waits[at] = True, False
        for (numbers,) in joined([(numbers,) for numbers in self.rewarded]):
            rows = table.rows(numbers)
            table.waits[span(rows)] = False
            table.summed[span(some(rows, ~self.in_order(rows)))] = True
        self.rewarded, self.completed, self.observed, self.replayed = [], [], [], []
        table.release()

    def arrays(self) -> dict[str, Mapping[str, NDArray[Any]]]:
        """The state by part and name; views, not copies."""
        return {
            "pending": self.pending.arrays(self.pending.front(self.watermark)),
            "simulated": self.simulated.arrays(),
            "open": open_arrays(
                self.rewarded,
                self.completed,
                self.observed,
                self.replayed,
                self.dimensions.features,
            ),
            "ledger": self.ledger.arrays(),
        }

    def fields(self) -> dict[str, Any]:
        """The rest of the state: numbers by name."""
        return {
            "next_seq": self.next_seq,
            "watermark": self.watermark,
            "clock": self.pending.clock,
            "randomized": self.randomized,
            "masked": self.masked,
            "late": self.late,
            "base": self.pending.front(self.watermark),
        }

    def load(self, part: Mapping[str, dict[str, NDArray[Any]]], fields: Mapping[str, Any]) -> None:
        """Become the state of `arrays` and `fields`."""
        self.watermark = fields["watermark"]
        self.pending.load(fields["base"], part["pending"])
        self.pending.clock = float(fields["clock"])
        self.units.rebuild(self.pending)
        self.simulated.load(**part["simulated"])
        former = part["simulated"]["has"].shape[1] - self.dimensions.models
        self.simulated.renewed = [
            (each.model, each.number) for each in self.versions.renewals[:former]
        ]
        self.ledger.load(**part["ledger"])
        self.next_seq, self.randomized = fields["next_seq"], fields["randomized"]
        self.masked, self.late = fields["masked"], fields["late"]
        self._renew_replays()
        waiting = part["open"]
        self.rewarded = [waiting["rewarded"]]
        self.completed = [waiting["completed"]]
        self.observed = [
            (waiting["observed_rows"], waiting["observed_model"], waiting["observed_unit"])
        ]
        self.replayed = [
            (
                waiting["replayed_context"],
                waiting["replayed_model"],
                waiting["replayed_phi"],
                waiting["replayed_cost"],
            )
        ]

    def to_bytes(self) -> bytes:
        """The light state alone, to come back to."""
        return encode(named(self.arrays()), self.fields())

    def load_bytes(self, state: Buffer) -> None:
        """Become the state of `to_bytes`."""
        arrays, fields = decode(state)
        self.load(parts(arrays), fields)

    def in_order(self, at: Ints) -> Flags:
        """(n,) rows whose rule gives a reward that never comes a value: they count in order."""
        rules = self.pending.rule[span(at)]
        result = np.zeros(len(at), dtype=bool)
        for ordinal in distinct(rules):
            if self._declared.get(ordinal) is None:
                rule = self._rules.by_ordinal(ordinal)
                self._declared[ordinal] = self._spec.missing_reward(rule) is not None
            if self._declared[ordinal]:
                result |= rules == ordinal
        return result

    def watches(self, rule: int) -> bool:
        """Whether draws of a rule (by ordinal) are for the checks alone: those after the decision,
        at the smallest rate, whose weights would drown what was decided on."""
        return self._rules.by_ordinal(rule).after_decision == "ramp"

    def routes(self, rule: int) -> bool:
        """Whether decisions of a rule (by ordinal) say what today's routing would have served."""
        drawn = self._rules.by_ordinal(rule).drawn
        return drawn is None or drawn.routed

    def asks(self, rule: int) -> float | None:
        """The share of users that a rule (by ordinal) asks for a rating, None where it does not."""
        return self._rules.by_ordinal(rule).ask

    def rows_of(self, x: Floats, y: Floats, reward: Floats) -> Floats:
        rows = self._features.phi(x, y, 1)
        rows[:, -1] = reward
        return rows

    def _take(self, batch: Batch) -> None:
        if isinstance(batch, DecisionBatch):
            rule = self._rules.ordinal(batch.rule_id)
            frozen, ramp = self._rules.by_ordinal(rule), self.watches(rule)
            active, drawn = frozen.active, frozen.drawn
            ramp = ramp or (drawn is not None and not drawn.certifies)
            if len(active) < self.dimensions.models:
                batch, active = widened(batch, active, self.dimensions.models)
            for part in self._without_gaps(batch, rule):
                least = np.inf if ramp else self._rate_min
                self.pending.insert(part, rule, least, self.watermark, active, drawn)
            if self.pending.ttl is not None:
                self.units.take(batch, self.pending)
            if drawn is None:
                # What others randomized is no traffic of ours, and no part of our budget.
                self.randomized += int(np.count_nonzero(batch.randomized))
                self.ledger.take(batch)
            if batch.eligible is not None:
                self.masked += int(np.count_nonzero(~batch.eligible[:, active].all(axis=1)))
        elif isinstance(batch, OutcomeBatch):
            self._take_outcomes(batch)
        elif isinstance(batch, ObservationBatch):
            rows = self.rows_of(batch.x, batch.outputs, batch.reward)
            model = self._coded(self.versions.dated(self.next_seq, batch.at), batch.routed)
            self.observed.append((rows, model, batch.unit))
        elif isinstance(batch, SimulationBatch):
            phi = self._features.phi(batch.x, batch.outputs)
            self.simulated.add(batch.context, batch.model, phi, self.pending.next)
            model = self._coded(self._generation, batch.model)
            self.replayed.append((batch.context, model, phi, batch.cost))
        elif isinstance(batch, ExpiryBatch):
            self._expire(batch)

    def _coded(self, generation: Ints | int, model: Ints) -> Ints:
        """(n,) a model and the generation of its row as one number: the model itself at first."""
        return model + self.dimensions.models * generation

    def _without_gaps(self, batch: DecisionBatch, rule: int) -> Iterator[DecisionBatch]:
        """The batch in parts of consecutive numbers; numbers that no decision has are filled in
        before each, as rows that were closed before they were open."""
        number = batch.number
        if number[0] == self.pending.next and number[-1] - number[0] == len(number) - 1:
            yield batch
            return
        cuts = (np.flatnonzero(np.diff(number) != 1) + 1).tolist()
        for start, stop in zip([0, *cuts], [*cuts, len(number)], strict=True):
            gap = int(number[start]) - self.pending.next
            self.pending.skip(gap, rule, batch.era, self.watermark)
            yield slice_rows(batch, start, stop)

    def _expire(self, batch: ExpiryBatch) -> None:
        """Close decisions: a reward that did not come counts as what was declared, if anything."""
        table, number, now = self.pending, batch.number, float(batch.at.max())
        rows = table.rows(number)
        table.expired[rows] = True
        # A unit that was drawn elsewhere is whole once its rows were read.
        table.until[rows[np.isposinf(table.until[rows])]] = -np.inf
        ahead = rows[table.at[rows] > batch.at]
        if len(ahead):
            # Closed before they were made: their clock was set back since, and so is ours.
            table.until[ahead] = -np.inf
            table.clock = now
        else:
            table.clock = max(table.clock, now)
        lost = np.flatnonzero(~table.has_reward[rows])
        rules = table.rule[rows[lost]]
        for ordinal in distinct(rules):
            value = self._spec.missing_reward(self._rules.by_ordinal(ordinal))
            if value is None:
                continue
            at = rows[lost[rules == ordinal]]
            table.reward[at], table.filled[at] = value, True

    def _wait(self, gathered: list[Ints], number: Ints) -> None:
        """Gather decisions for the sums of this chunk; they stay in the table until then."""
        if len(number):
            self.pending.waits[span(self.pending.rows(number))] = True
            gathered.append(number)

    def _take_outcomes(self, batch: OutcomeBatch) -> None:
        number = batch.number
        if len(number) == 1 and batch.metrics is None:
            self._take_part(batch)
            return
        if (number[1:] > number[:-1]).all():
            rewarded, complete = self._take_parts(batch)
            self._wait(self.rewarded, some(number, rewarded))
            self._wait(self.completed, some(number, complete))
            return
        # Parts of one decision may meet in one batch: how the log is cut says nothing. Each goes
        # in after the part before it, and the decision completes where its last part stands.
        rewarded, complete = np.zeros((2, len(number)), dtype=bool)
        part = occurrence(number)
        for index in range(int(part.max()) + 1):
            rows = np.flatnonzero(part == index)
            rewarded[rows], complete[rows] = self._take_parts(select(batch, part == index))
        self._wait(self.rewarded, number[rewarded])
        self._wait(self.completed, number[complete])

    def _take_part(self, batch: OutcomeBatch) -> None:
        """The same of one part without metrics, as most come to a daemon: arrays of one would cost
        three times as much."""
        table, number = self.pending, batch.number.item()
        row = number - table.base
        complete = row >= 0 and bool(table.has_reward[row] and table.has_outputs[row])
        if row < 0 or table.expired[row] or (complete and number < self.watermark):
            self.late += 1
            return
        self.retold += bool(table.waits[row])
        reward = batch.reward.item()
        if reward == reward:
            if not table.has_reward[row]:
                table.waits[row] = True
                self.rewarded.append(batch.number)
            table.reward[row], table.reward_at[row] = reward, batch.at[0]
            table.has_reward[row] = True
        if self._outputs and not np.isnan(batch.outputs[0, 0]):
            table.y[row], table.has_outputs[row] = batch.outputs[0], True
        table.take_attempts(batch)
        if not complete and table.has_reward[row] and table.has_outputs[row]:
            table.waits[row] = True
            self.completed.append(batch.number)

    def _take_parts(self, batch: OutcomeBatch) -> tuple[Flags, Flags]:
        """Keep the parts of distinct decisions; (n,) which decisions they give their reward, and
        which they complete: reward and outputs."""
        table = self.pending
        late = table.too_late(batch.number, self.watermark)
        if late.any():
            # Kept in the log, counted, and used for nothing.
            self.late += int(np.count_nonzero(late))
            rewarded, completed = np.zeros((2, len(late)), dtype=bool)
            in_time = np.flatnonzero(~late)
            rewarded[in_time], completed[in_time] = self._take_parts(select(batch, ~late))
            return rewarded, completed
        # Outcomes in the order of their decisions lie in one piece of the table.
        rows = span(table.rows(batch.number))
        self.retold += bool(table.waits[rows].any())
        had_reward = table.has_reward[rows].copy()
        before = had_reward & table.has_outputs[rows]
        with_reward = ~np.isnan(batch.reward)
        if with_reward.all():
            table.reward[rows], table.reward_at[rows] = batch.reward, batch.at
            table.has_reward[rows] = True
        else:
            at = table.rows(batch.number)[with_reward]
            table.reward[at] = batch.reward[with_reward]
            table.reward_at[at] = batch.at[with_reward]
            table.has_reward[at] = True
        if self._outputs:
            with_outputs = ~np.isnan(batch.outputs[:, 0])
            if with_outputs.all():
                table.y[rows], table.has_outputs[rows] = batch.outputs, True
            else:
                at = table.rows(batch.number)[with_outputs]
                table.y[at], table.has_outputs[at] = batch.outputs[with_outputs], True
        if batch.metrics is not None:
            table.metrics[rows] = np.where(
                np.isnan(batch.metrics), table.metrics[rows], batch.metrics
            )
        table.take_attempts(batch)
        return with_reward & ~had_reward, table.has_reward[rows] & table.has_outputs[rows] & ~before
