"""State as a fold over the log.

Log rows carry one total seq and are folded in chunks of 1,024 seqs: the grouping of every
floating-point sum is a function of the log alone, so state rebuilt from the store, from the start
or from a checkpoint, equals the live state bit for bit. Copies of inputs (pending decisions, the
index of SIM rows) are made when a row arrives; sums are taken when its chunk is complete.
`Fold.view` adds the unfinished chunk on copies, so nothing that was logged is invisible.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.budget.ledger import Ledger
from equipoise.agent.inference.bounded import Centres, CertifiedMoments
from equipoise.agent.keys import context_groups, unit_groups
from equipoise.agent.moments.codec import decode, encode
from equipoise.agent.moments.state import Dimensions, Moments
from equipoise.agent.pending import Pending
from equipoise.agent.simulated import SimulationIndex
from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    Flags,
    Floats,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    SimulationBatch,
)
from equipoise.store.slicing import slice_rows

CHUNK = 1024


class Features(Protocol):
    """What the fold needs of a feature transform."""

    def phi(self, x: Floats, y: Floats, /) -> Floats:
        """(n, d), (n, q) -> (n, p - 1): phi without its intercept."""
        ...


class Rules(Protocol):
    """What the fold needs of the frozen rules: an ordinal per id, centres per ordinal."""

    def ordinal(self, rule_id: str) -> int: ...

    def centres(self, ordinal: int) -> Centres: ...


@dataclass(frozen=True, slots=True)
class Reward:
    """Declared range of the reward, and what a certified sum takes for a missing one.

    missing: a value in [low, high], or None for the worst case.
    """

    low: float
    high: float
    missing: float | None = None

    def scaled(self, reward: Floats) -> Floats:
        return (reward - self.low) / (self.high - self.low)


@dataclass(frozen=True, slots=True)
class View:
    """Sums up to the newest log row. `certified` belongs to the current era."""

    moments: Moments
    certified: CertifiedMoments
    watermark: int


class Fold:
    """Owner of the state. Rows go in by `apply`, in log order.

    randomized: decisions that came from a draw; masked: decisions whose request was closed to
    some model; ledger: what was randomized, and how traffic comes in.
    """

    def __init__(
        self,
        dimensions: Dimensions,
        outputs: int,
        features: Features,
        rules: Rules,
        reward: Reward,
        rate_min: float,
    ) -> None:
        self.dimensions = dimensions
        self._features = features
        self._rules = rules
        self._reward = reward
        self._rate_min = rate_min
        self._outputs = outputs
        self.next_seq = 0
        self.moments = Moments.empty(dimensions)
        self.certified = CertifiedMoments.empty(dimensions.models)
        self.era = 0
        self.watermark = 0
        self.randomized = 0
        self.masked = 0
        self.ledger = Ledger(dimensions.models)
        self.pending = Pending(dimensions.context, outputs)
        self.simulated = SimulationIndex(dimensions.models, dimensions.features - 1)
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

    def view(self) -> View:
        """Everything that was logged so far, the unfinished chunk included, on copies."""
        moments, certified = self.moments.copy(), self.certified.copy()
        self._sum_rows(moments)
        _, watermark = self._advance(certified)
        return View(moments, certified, watermark)

    def to_bytes(self) -> bytes:
        """The whole state, for a checkpoint; also what "bit for bit" is compared on."""
        arrays: dict[str, NDArray[Any]] = {}
        front = self.pending.front(self.watermark)
        parts = {
            "certified": self.certified.arrays(),
            "pending": self.pending.arrays(front),
            "simulated": self.simulated.arrays(),
            "open": self._open_arrays(),
            "ledger": self.ledger.arrays(),
        }
        for part, named in parts.items():
            arrays.update({f"{part}.{name}": array for name, array in named.items()})
        arrays["moments"] = np.frombuffer(self.moments.to_bytes(), dtype=np.uint8)
        fields = {
            "next_seq": self.next_seq,
            "era": self.era,
            "watermark": self.watermark,
            "randomized": self.randomized,
            "masked": self.masked,
            "base": front,
        }
        return encode(arrays, fields)

    def load_bytes(self, state: bytes) -> None:
        """Become the state of `to_bytes`. Raises StateFormatError on bytes that cannot be read."""
        arrays, fields = decode(state)
        part: dict[str, dict[str, NDArray[Any]]] = {}
        for name, array in arrays.items():
            if "." in name:
                head, tail = name.split(".", 1)
                part.setdefault(head, {})[tail] = array
        self.moments = Moments.from_bytes(arrays["moments"].tobytes())
        self.certified = CertifiedMoments(**part["certified"])
        self.pending.load(fields["base"], part["pending"])
        self.simulated.load(**part["simulated"])
        self.ledger.load(**part["ledger"])
        self.next_seq, self.era = fields["next_seq"], fields["era"]
        self.watermark, self.randomized = fields["watermark"], fields["randomized"]
        self.masked = fields["masked"]
        waiting = part["open"]
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
            self.pending.insert(batch, rule, self._rate_min, self.watermark)
            self.randomized += int(np.count_nonzero(batch.randomized))
            self.ledger.take(batch)
            if batch.eligible is not None:
                self.masked += int(np.count_nonzero(~batch.eligible.all(axis=1)))
        elif isinstance(batch, OutcomeBatch):
            self._take_outcomes(batch)
        elif isinstance(batch, ObservationBatch):
            rows = self._rows(batch.x, batch.outputs, batch.reward)
            self._observed.append((rows, batch.routed, batch.unit))
        elif isinstance(batch, SimulationBatch):
            phi = self._features.phi(batch.x, batch.outputs)
            self.simulated.add(batch.context, batch.model, phi)
            self._replayed.append((batch.context, batch.model, phi, batch.cost))
        elif isinstance(batch, ExpiryBatch):
            self.pending.expired[self.pending.rows(batch.number)] = True

    def _take_outcomes(self, batch: OutcomeBatch) -> None:
        number = batch.number
        if len(number) < 2 or (np.diff(number) > 0).all():
            self._completed.append(number[self._take_parts(batch)])
            return
        # Parts of one decision may meet in one batch: how the log is cut says nothing. Each goes
        # in after the part before it, and the decision completes where its last part stands.
        complete = np.zeros(len(number), dtype=bool)
        part = _occurrence(number)
        for index in range(int(part.max()) + 1):
            rows = np.flatnonzero(part == index)
            complete[rows] = self._take_parts(_select(batch, rows))
        self._completed.append(number[complete])

    def _take_parts(self, batch: OutcomeBatch) -> Flags:
        """Keep the parts of distinct decisions; (n,) which decisions they complete."""
        table = self.pending
        rows = table.rows(batch.number)
        before = table.has_reward[rows] & table.has_outputs[rows]
        with_reward = ~np.isnan(batch.reward)
        table.reward[rows[with_reward]] = batch.reward[with_reward]
        table.has_reward[rows[with_reward]] = True
        if self._outputs:
            with_outputs = ~np.isnan(batch.outputs[:, 0])
            table.y[rows[with_outputs]] = batch.outputs[with_outputs]
            table.has_outputs[rows[with_outputs]] = True
        table.served[rows] = batch.served
        table.delivered[rows] &= batch.delivered
        complete: Flags = table.has_reward[rows] & table.has_outputs[rows] & ~before
        return complete

    def _settle(self) -> None:
        """Fold the finished chunk into the sums."""
        self._sum_rows(self.moments)
        self.era, self.watermark = self._advance(self.certified)
        for numbers in self._completed:
            self.pending.folded[self.pending.rows(numbers)] = True
        self._completed, self._observed, self._replayed = [], [], []

    def _sum_rows(self, moments: Moments) -> None:
        groups = self.dimensions.groups
        for context, model, phi, cost in _joined(self._replayed):
            moments.simulation.update(context_groups(context, groups), model, phi, cost)
        for rows, model, unit in _joined(self._observed):
            group = unit_groups(unit, groups)
            moments.scorers.update(group, model, np.ones(len(rows)), rows)
            moments.routing.update(group, np.ones(len(rows)), rows[:, -1].copy())
        for (numbers,) in _joined([(numbers,) for numbers in self._completed]):
            self._sum_decisions(moments, numbers)

    def _sum_decisions(self, moments: Moments, numbers: Ints) -> None:
        table, groups = self.pending, self.dimensions.groups
        at = table.rows(numbers)
        rate, model, served = table.rate[at], table.model[at], table.served[at]
        experiment = table.randomized[at] & table.delivered[at]
        group = unit_groups(table.unit[at], groups)
        rows = self._rows(table.x[at], table.y[at], table.reward[at])

        picked = np.flatnonzero(experiment)
        observed = np.flatnonzero(~experiment)
        source = np.concatenate([observed, picked, picked])
        offset = np.repeat([0, groups, 2 * groups], [len(observed), len(picked), len(picked)])
        weight = np.ones(len(source))
        weight[len(observed) + len(picked) :] = 1.0 / rate[picked]
        # OBS rows count for the model that really answered, EXP rows for the assigned one.
        arm = np.where(experiment, model, served)
        moments.scorers.update(group[source] + offset, arm[source], weight, rows[source])

        if len(picked):
            context = table.context[at[picked]]
            if len(self.simulated):
                predicted, simulated = self.simulated.lookup(context, model[picked])
            else:
                predicted = np.zeros((len(picked), self.dimensions.features - 1))
                simulated = np.zeros(len(picked), dtype=bool)
            moments.arms.update(
                group[picked],
                model[picked],
                1.0 / (rate[picked] * table.propensity[at[picked]]),
                rows[picked, -1],
                simulated,
                predicted,
                rows[picked, : self.dimensions.context],
            )
        as_routed = np.flatnonzero(table.delivered[at] & (model == table.routed[at]))
        share = 1.0 - rate + rate * table.routed_share[at]
        moments.routing.update(group[as_routed], 1.0 / share[as_routed], rows[as_routed, -1].copy())

    def _rows(self, x: Floats, y: Floats, reward: Floats) -> Floats:
        phi = self._features.phi(x, y)
        rows = np.empty((len(phi), self.dimensions.features))
        rows[:, :-1] = phi
        rows[:, -1] = reward
        return rows

    def _advance(self, certified: CertifiedMoments) -> tuple[int, int]:
        """Enter closed rows in decision order; returns era and watermark after them."""
        table, era = self.pending, self.era
        start = self.watermark - table.base
        closed = (table.has_reward | table.expired)[start : table.size]
        count = len(closed) if closed.all() else int(np.argmin(closed))
        if not count:
            return era, self.watermark
        rule = table.rule[start : start + count]
        edges = np.flatnonzero(np.diff(rule)) + 1
        for first, last in zip([0, *edges.tolist()], [*edges.tolist(), count], strict=True):
            rows = slice(start + first, start + last)
            if int(table.era[rows][0]) != era:
                era = int(table.era[rows][0])
                for array in certified.arrays().values():
                    array[...] = 0.0
            self._certify(certified, self._rules.centres(int(rule[first])), rows)
        return era, self.watermark + count

    def _certify(self, certified: CertifiedMoments, centres: Centres, rows: slice) -> None:
        table = self.pending
        if not table.certifiable[rows].all():
            at = np.flatnonzero(table.certifiable[rows]) + rows.start
        else:
            at = np.arange(rows.start, rows.stop)
        if not len(at):
            return
        rate, model = table.rate[at], table.model[at]
        randomized, delivered = table.randomized[at], table.delivered[at]
        known = table.has_reward[at] & delivered
        reward = table.reward[at]
        if self._reward.missing is not None:
            reward = np.where(known, reward, self._reward.missing)
            known = delivered
        weight = np.where(randomized, 1.0 / (rate * table.propensity[at]), 0.0)
        share = 1.0 - rate + rate * table.routed_share[at]
        routing = np.where(model == table.routed[at], 1.0 / share, 0.0)
        scaled = self._reward.scaled(reward)
        certified.update(centres, model, weight, routing, scaled, known)

    def _open_arrays(self) -> dict[str, NDArray[Any]]:
        width = self.dimensions.features
        completed = list(_joined([(numbers,) for numbers in self._completed]))
        observed = list(_joined(self._observed))
        replayed = list(_joined(self._replayed))
        none = np.zeros(0, dtype=np.int64)
        rows, observed_model, unit = observed[0] if observed else (np.zeros((0, width)), none, none)
        context, replayed_model, phi, cost = (
            replayed[0] if replayed else (none, none, np.zeros((0, width - 1)), np.zeros(0))
        )
        return {
            "completed": completed[0][0] if completed else none,
            "observed_rows": rows,
            "observed_model": observed_model,
            "observed_unit": unit,
            "replayed_context": context,
            "replayed_model": replayed_model,
            "replayed_phi": phi,
            "replayed_cost": cost,
        }


def _joined(parts: Sequence[tuple[NDArray[Any], ...]]) -> list[tuple[NDArray[Any], ...]]:
    """The parts' columns end to end: a list of one tuple, or of none where there are no rows."""
    kept = [part for part in parts if len(part[0])]
    if not kept:
        return []
    if len(kept) == 1:
        return [kept[0]]
    return [tuple(np.concatenate(column) for column in zip(*kept, strict=True))]


def _occurrence(number: Ints) -> Ints:
    """(n,) how many earlier rows hold the same number."""
    order = np.argsort(number, kind="stable")
    ordered = number[order]
    start = np.flatnonzero(np.diff(ordered, prepend=ordered[0] - 1))
    length = np.diff(start, append=len(ordered))
    result = np.empty(len(number), dtype=np.int64)
    result[order] = np.arange(len(ordered)) - np.repeat(start, length)
    return result


def _select(batch: OutcomeBatch, rows: Ints) -> OutcomeBatch:
    return OutcomeBatch(*(getattr(batch, name)[rows] for name in batch.__slots__))
