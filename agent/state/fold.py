"""State as a fold over the log.

Log rows carry one total seq and are folded in chunks of 1,024 seqs: the grouping of every
floating-point sum is a function of the log alone, so state rebuilt from the store, from the start
or from a checkpoint, equals the live state bit for bit. Copies of inputs (pending decisions, the
index of SIM rows) are made when a row arrives; sums are taken when its chunk is complete.
`Fold.view` adds the unfinished chunk on copies, so nothing that was logged is invisible.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.moments.additive import context_groups, unit_groups
from equipoise.agent.moments.codec import StateFormatError, decode_like, encode, encode_to
from equipoise.agent.moments.state import Dimensions, Moments
from equipoise.agent.monitors.monitor_set import MonitorSet
from equipoise.agent.state.certified_sums import CertifiedSums, Rules, Spec
from equipoise.agent.state.chunk import joined, occurrence, open_arrays, widened
from equipoise.agent.state.monitor_feed import Features, MonitorFeed
from equipoise.agent.state.open_decisions import OpenDecisions
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

CHUNK = 1024


class FrozenRules(Rules, Protocol):
    """What the fold needs of the frozen rules: an ordinal per id, the rule per ordinal."""

    def ordinal(self, rule_id: str) -> int: ...


@dataclass(frozen=True, slots=True)
class View:
    """Sums up to the newest log row. `certified` belongs to the era of the newest row in it."""

    moments: Moments
    certified: CertifiedSums

    @property
    def watermark(self) -> int:
        """The first decision that is not among the certified sums."""
        return self.certified.watermark


class Fold:
    """Owner of the state. Rows go in by `apply`, in log order.

    panel: the checks, which are fed chunk by chunk; metrics: how many an outcome may carry.
    randomized: decisions that came from a draw; masked: decisions whose request was closed to
    some model; late: parts of outcomes that came too late to be used; ledger: what was randomized,
    and how traffic comes in.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        outputs: int,
        features: Features,
        rules: FrozenRules,
        spec: Spec,
        rate_min: float,
        panel: MonitorSet,
        metrics: int = 0,
        ttl: float | None = None,
        ledger: Ledger | None = None,
        open_bytes: int | None = None,
        folder: Path | None = None,
    ) -> None:
        self.dimensions = dimensions
        self._features = features
        self._rules = rules
        self._rate_min = rate_min
        self._outputs = outputs
        self.next_seq = 0
        self.keeps_sums = True
        self.moments = Moments.empty(dimensions)
        self.certified = CertifiedSums(spec)
        self.randomized = 0
        self.masked = 0
        self.late = 0
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
        self.watch = MonitorFeed(panel, features, spec, dimensions.models, dimensions.features)
        self._declared: dict[int, bool] = {}
        self._rewarded: list[Ints] = []
        self._completed: list[Ints] = []
        self._observed: list[tuple[Floats, Ints, Ints]] = []
        self._replayed: list[tuple[Ints, Ints, Floats, Floats]] = []

    def apply(self, seq: int, batch: Batch) -> None:
        """Take in a batch whose first row has this seq, which must be `next_seq`."""
        if seq != self.next_seq:
            raise ValueError(f"log row {seq} arrived where {self.next_seq} was due")
        start, count = 0, len(batch)
        while start < count:
            stop = min(count, start + CHUNK - self.next_seq % CHUNK)
            part = batch if stop - start == count else slice_rows(batch, start, stop)
            self._take(part)
            self.next_seq += stop - start
            start = stop
            if self.next_seq % CHUNK == 0:
                self._settle()

    def lighten(self) -> None:
        """Keep no more sums: they are another's to keep, who folds the same log.

        What decisions and outcomes ask for stays (the table, units, the ledger, what was replayed,
        how far rows are closed), and is what it would be with them. `load_bytes` and the rows since
        bring the sums back.
        """
        self.keeps_sums = False

    def view(self) -> View:
        """Everything that was logged so far, the unfinished chunk included, on copies."""
        self._need_sums()
        moments, certified = self.moments.copy(), self.certified.copy()
        self._sum_rows(moments)
        start = certified.watermark
        certified.advance(self.pending, self._rules, self.simulated)
        self._sum_passed(moments, start, certified.watermark)
        return View(moments, certified)

    def watched(self) -> MonitorSet:
        """The checks up to the newest log row, the unfinished chunk included, on copies."""
        self._need_sums()
        watch, certified = self.watch.copy(), self.certified.copy()
        self._compare(watch)
        start = certified.watermark
        predicted = certified.advance(self.pending, self._rules, self.simulated)
        watch.take(self.pending, start, certified.watermark, predicted, self._rules)
        return watch.monitors

    def to_bytes(self) -> bytes:
        """The whole state, for a checkpoint; also what "bit for bit" is compared on."""
        self._need_sums()
        return self.kept_bytes()

    def kept_bytes(self) -> bytes:
        """As `to_bytes`, of a light fold too, whose sums then are of long ago."""
        return encode(*self._kept())

    def write(self, file: BinaryIO) -> int:
        """Write `to_bytes` to a file that can seek, a piece at a time; how many bytes."""
        self._need_sums()
        return encode_to(file, *self._kept(), self.pending.release)

    def _kept(self) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
        arrays: dict[str, NDArray[Any]] = {}
        front = self.pending.front(self.certified.watermark)
        parts: dict[str, Mapping[str, NDArray[Any]]] = {
            "certified": self.certified.arrays(),
            "pending": self.pending.arrays(front),
            "simulated": self.simulated.arrays(),
            "open": open_arrays(
                self._rewarded,
                self._completed,
                self._observed,
                self._replayed,
                self.dimensions.features,
            ),
            "watch": self.watch.arrays(),
            "ledger": self.ledger.arrays(),
        }
        for part, named in parts.items():
            arrays.update({f"{part}.{name}": array for name, array in named.items()})
        arrays["moments"] = np.frombuffer(self.moments.to_bytes(), dtype=np.uint8)
        fields = {
            "next_seq": self.next_seq,
            "era": self.certified.era,
            "watermark": self.certified.watermark,
            "clock": self.pending.clock,
            "randomized": self.randomized,
            "masked": self.masked,
            "late": self.late,
            "base": front,
        }
        return arrays, fields

    def load_bytes(self, state: Buffer) -> None:
        """Become the state of `to_bytes`; StateFormatError, and no change, on any other bytes."""
        arrays, fields = decode_like(state, *self._kept())
        part: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in arrays.items():
            if "." in name:
                head, tail = name.split(".", 1)
                part.setdefault(head, {})[tail] = array
        if not self.certified.holds(part["certified"]):
            raise StateFormatError("the certified sums are of another configuration")
        self.moments = Moments.from_bytes(arrays["moments"].tobytes())
        self.certified.load(part["certified"], fields["era"], fields["watermark"])
        self.pending.load(fields["base"], part["pending"])
        self.pending.clock = float(fields["clock"])
        self.units.rebuild(self.pending)
        self.simulated.load(**part["simulated"])
        self.ledger.load(**part["ledger"])
        self.next_seq, self.randomized = fields["next_seq"], fields["randomized"]
        self.masked, self.late = fields["masked"], fields["late"]
        self.watch.load(part["watch"])
        self.keeps_sums = True
        waiting = part["open"]
        self._rewarded = [waiting["rewarded"]]
        self._completed = [waiting["completed"]]
        self._observed = [
            (waiting["observed_rows"], waiting["observed_model"], waiting["observed_unit"])
        ]
        self._replayed = [
            (
                waiting["replayed_context"],
                waiting["replayed_model"],
                waiting["replayed_phi"],
                waiting["replayed_cost"],
            )
        ]

    def _take(self, batch: Batch) -> None:
        if isinstance(batch, DecisionBatch):
            rule = self._rules.ordinal(batch.rule_id)
            active = self._rules.by_ordinal(rule).active
            if len(active) < self.dimensions.models:
                batch, active = widened(batch, active, self.dimensions.models)
            for part in self._without_gaps(batch, rule):
                self.pending.insert(part, rule, self._rate_min, self.certified.watermark, active)
            if self.pending.ttl is not None:
                self.units.take(batch, self.pending)
            self.randomized += int(np.count_nonzero(batch.randomized))
            self.ledger.take(batch)
            if batch.eligible is not None:
                self.masked += int(np.count_nonzero(~batch.eligible[:, active].all(axis=1)))
        elif isinstance(batch, OutcomeBatch):
            self._take_outcomes(batch)
        elif isinstance(batch, ObservationBatch):
            rows = self._rows(batch.x, batch.outputs, batch.reward)
            self._observed.append((rows, batch.routed, batch.unit))
        elif isinstance(batch, SimulationBatch):
            phi = self._features.phi(batch.x, batch.outputs)
            self.simulated.add(batch.context, batch.model, phi, self.pending.next)
            self._replayed.append((batch.context, batch.model, phi, batch.cost))
        elif isinstance(batch, ExpiryBatch):
            self._expire(batch)

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
            self.pending.skip(gap, rule, batch.era, self.certified.watermark)
            yield slice_rows(batch, start, stop)

    def _expire(self, batch: ExpiryBatch) -> None:
        """Close decisions: a reward that did not come counts as what was declared, if anything."""
        table, number, now = self.pending, batch.number, float(batch.at.max())
        rows = table.rows(number)
        table.expired[rows] = True
        ahead = rows[table.at[rows] > batch.at]
        if len(ahead):
            # Closed before they were made: their clock was set back since, and so is ours.
            table.until[ahead] = -np.inf
            table.clock = now
        else:
            table.clock = max(table.clock, now)
        lost = np.flatnonzero(~table.has_reward[rows])
        rules = table.rule[rows[lost]]
        for ordinal in np.unique(rules).tolist():
            value = self.certified.spec.missing_reward(self._rules.by_ordinal(ordinal))
            if value is None:
                continue
            at = rows[lost[rules == ordinal]]
            table.reward[at], table.filled[at] = value, True

    def _wait(self, gathered: list[Ints], number: Ints) -> None:
        """Gather decisions for the sums of this chunk; they stay in the table until then."""
        self.pending.waits[self.pending.rows(number)] = True
        gathered.append(number)

    def _take_outcomes(self, batch: OutcomeBatch) -> None:
        number = batch.number
        if len(number) < 2 or (np.diff(number) > 0).all():
            rewarded, complete = self._take_parts(batch)
            self._wait(self._rewarded, number[rewarded])
            self._wait(self._completed, number[complete])
            return
        # Parts of one decision may meet in one batch: how the log is cut says nothing. Each goes
        # in after the part before it, and the decision completes where its last part stands.
        rewarded, complete = np.zeros((2, len(number)), dtype=bool)
        part = occurrence(number)
        for index in range(int(part.max()) + 1):
            rows = np.flatnonzero(part == index)
            rewarded[rows], complete[rows] = self._take_parts(select(batch, part == index))
        self._wait(self._rewarded, number[rewarded])
        self._wait(self._completed, number[complete])

    def _take_parts(self, batch: OutcomeBatch) -> tuple[Flags, Flags]:
        """Keep the parts of distinct decisions; (n,) which decisions they give their reward, and
        which they complete: reward and outputs."""
        table = self.pending
        late = table.too_late(batch.number, self.certified.watermark)
        if late.any():
            # Kept in the log, counted, and used for nothing.
            self.late += int(np.count_nonzero(late))
            rewarded, completed = np.zeros((2, len(late)), dtype=bool)
            in_time = np.flatnonzero(~late)
            rewarded[in_time], completed[in_time] = self._take_parts(select(batch, ~late))
            return rewarded, completed
        rows = table.rows(batch.number)
        had_reward = table.has_reward[rows]
        before = had_reward & table.has_outputs[rows]
        with_reward = ~np.isnan(batch.reward)
        table.reward[rows[with_reward]] = batch.reward[with_reward]
        table.reward_at[rows[with_reward]] = batch.at[with_reward]
        table.has_reward[rows[with_reward]] = True
        if self._outputs:
            with_outputs = ~np.isnan(batch.outputs[:, 0])
            table.y[rows[with_outputs]] = batch.outputs[with_outputs]
            table.has_outputs[rows[with_outputs]] = True
        if batch.metrics is not None:
            table.metrics[rows] = np.where(
                np.isnan(batch.metrics), table.metrics[rows], batch.metrics
            )
        table.take_attempts(batch)
        return with_reward & ~had_reward, table.has_reward[rows] & table.has_outputs[rows] & ~before

    def _settle(self) -> None:
        """Fold the finished chunk into the sums."""
        if self.keeps_sums:
            self._settle_sums()
        else:
            self.certified.pass_by(self.pending)
        for numbers in self._completed:
            self.pending.folded[self.pending.rows(numbers)] = True
        for numbers in (*self._completed, *self._rewarded):
            self.pending.waits[self.pending.rows(numbers)] = False
        for numbers in self._rewarded:
            at = self.pending.rows(numbers)
            self.pending.summed[at[~self._in_order(at)]] = True
        self._rewarded, self._completed, self._observed, self._replayed = [], [], [], []
        self.pending.release()

    def _settle_sums(self) -> None:
        # Before the sums: what the check of the simulator goes by must not know this chunk.
        self._compare(self.watch)
        self._sum_rows(self.moments)
        start = self.certified.watermark
        predicted = self.certified.advance(self.pending, self._rules, self.simulated)
        self._sum_passed(self.moments, start, self.certified.watermark)
        self.watch.take(self.pending, start, self.certified.watermark, predicted, self._rules)

    def _need_sums(self) -> None:
        if not self.keeps_sums:
            raise RuntimeError("this fold was told to keep no sums")

    def _compare(self, watch: MonitorFeed) -> None:
        replayed = any(len(context) for context, *_ in self._replayed)
        watch.compare(self.pending, self.simulated, self._completed, replayed, self.moments)

    def _sum_rows(self, moments: Moments) -> None:
        groups = self.dimensions.groups
        for context, model, phi, cost in joined(self._replayed):
            moments.simulation.update(context_groups(context, groups), model, phi, cost)
        for rows, model, unit in joined(self._observed):
            group = unit_groups(unit, groups)
            moments.scorers.update(group, model, np.ones(len(rows)), rows)
            moments.routing.update(group, np.ones(len(rows)), rows[:, -1].copy())
        table, start = self.pending, self.certified.watermark
        for (numbers,) in joined([(numbers,) for numbers in self._rewarded]):
            at = table.rows(numbers)
            self._sum_rewards(moments, at[~self._in_order(at)])
        for (numbers,) in joined([(numbers,) for numbers in self._completed]):
            at = table.rows(numbers)
            self._sum_scorers(moments, at[~self._in_order(at) | (numbers < start)])

    def _sum_passed(self, moments: Moments, start: int, stop: int) -> None:
        """Add decisions start … stop - 1, which the watermark passed, where a reward that never
        comes has a declared value.

        Rewards that come are there at once, and those that do not only when their window ends:
        counted as they come, every young request would have been rewarded. In decision order,
        behind the watermark, all of them are closed.
        """
        table = self.pending
        at = np.arange(start, stop) - table.base
        rewarded = (table.has_reward | table.filled)[start - table.base : stop - table.base]
        at = at[rewarded & ~table.summed[at]]
        at = at[self._in_order(at)]
        if len(at):
            self._sum_rewards(moments, at)
            self._sum_scorers(moments, at[table.has_outputs[at]])

    def _in_order(self, at: Ints) -> Flags:
        """(n,) rows whose rule gives a reward that never comes a value: they count in order."""
        rules = self.pending.rule[at]
        result = np.zeros(len(at), dtype=bool)
        for ordinal in np.unique(rules).tolist():
            if self._declared.get(ordinal) is None:
                rule = self._rules.by_ordinal(ordinal)
                self._declared[ordinal] = self.certified.spec.missing_reward(rule) is not None
            if self._declared[ordinal]:
                result |= rules == ordinal
        return result

    def _sum_rewards(self, moments: Moments, at: Ints) -> None:
        """Add what needs no outputs: rows `at` (n,) that got their reward."""
        table, groups = self.pending, self.dimensions.groups
        model, group = table.model[at], unit_groups(table.unit[at], groups)
        picked = np.flatnonzero(table.randomized[at] & table.as_drawn(at))
        if len(picked):
            rows = at[picked]
            if len(self.simulated):
                predicted, simulated = self.simulated.lookup(table.context[rows], model[picked])
            else:
                predicted = np.zeros((len(picked), self.dimensions.features - 1))
                simulated = np.zeros(len(picked), dtype=bool)
            moments.arms.update(
                group[picked],
                model[picked],
                1.0 / (table.rate[rows] * table.propensity[rows]),
                table.reward[rows],
                simulated,
                predicted,
                table.x[rows],
            )
        as_routed = np.flatnonzero(table.delivered[at] & (model == table.routed[at]))
        rows = at[as_routed]
        share = 1.0 - table.rate[rows] + table.rate[rows] * table.routed_share[rows]
        moments.routing.update(group[as_routed], 1.0 / share, table.reward[rows])

    def _sum_scorers(self, moments: Moments, at: Ints) -> None:
        """Add what scorers are fitted to: rows `at` (n,) that have outputs and reward."""
        table, groups = self.pending, self.dimensions.groups
        experiment = table.randomized[at] & table.as_drawn(at)
        group = unit_groups(table.unit[at], groups)
        rows = self._rows(table.x[at], table.y[at], table.reward[at])
        picked, observed = np.flatnonzero(experiment), np.flatnonzero(~experiment)
        source = np.concatenate([observed, picked, picked])
        offset = np.repeat([0, groups, 2 * groups], [len(observed), len(picked), len(picked)])
        weight = np.ones(len(source))
        drawn = at[picked]
        weight[len(observed) + len(picked) :] = 1.0 / (table.rate[drawn] * table.propensity[drawn])
        # OBS rows count for the model that really answered, EXP rows for the assigned one.
        arm = np.where(experiment, table.model[at], table.served[at])
        moments.scorers.update(group[source] + offset, arm[source], weight, rows[source])

    def _rows(self, x: Floats, y: Floats, reward: Floats) -> Floats:
        phi = self._features.phi(x, y)
        rows = np.empty((len(phi), self.dimensions.features))
        rows[:, :-1] = phi
        rows[:, -1] = reward
        return rows
