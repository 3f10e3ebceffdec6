"""The checks at the agent's door: what enters the log is whole, finite, in range, and new."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.errors import (
    LATEST,
    AgentError,
    ConflictError,
    UnknownDecisionError,
    check_times,
)
from equipoise.agent.features import Transform
from equipoise.agent.state.attempts import (
    MOST_ATTEMPTS,
    UNNAMED,
    Attempt,
    merged_attempts,
    reported_attempt,
)
from equipoise.agent.state.light_fold import LightFold
from equipoise.store.batches import (
    DecisionBatch,
    Flags,
    Floats,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    RequestBatch,
    RequestRow,
    SimulationBatch,
    select,
)
from equipoise.store.contract import Store
from equipoise.store.records import LANE_BITS, Gap, decision_id

_FLAG = np.dtype(np.bool_)
MOST_COST = 1e6
"""USD that one request on a model may cost: more is another unit, and would stop a budget."""


class Validator:
    """Validation against one experiment's configuration and state. lane: of `Agent`."""

    def __init__(
        self,
        config: ExperimentConfig,
        transform: Transform,
        light: LightFold,
        store: Store,
        gaps: Sequence[Gap] = (),
        lane: int = 0,
    ) -> None:
        self._origin = lane << LANE_BITS
        self._gaps = [gap for gap in gaps if gap.numbers]
        self._reward = config.reward
        self._guardrails = config.guardrails
        self._names = config.model_names
        self._models = len(config.models)
        self._transform = transform
        self._light = light
        self._store = store

    def plain(self, batch: RequestBatch) -> RequestRow | None:
        """One request as plain values; None where `check_requests` has to look closer."""
        unit, context, at, routed = batch.unit, batch.context, batch.at, batch.routed
        if not (unit.shape == context.shape == at.shape == routed.shape == (1,)):
            return None
        row = unit.item(), context.item(), at.item(), batch.x, routed.item(), batch.eligible
        names = batch.request_id, batch.unit_id, batch.context_id
        return (*row, *names) if self.sound(*row) else None

    def sound(
        self, unit: int, context: int, at: float, x: Floats, routed: int, eligible: Flags | None
    ) -> bool:
        """Whether one request is certainly fine. x: (1, d); eligible: (1, K)."""
        if type(unit) is not int or type(context) is not int or type(routed) is not int:
            return False
        if type(at) is not float or not (0.0 <= at <= LATEST and 0 <= routed < self._models):
            return False
        if eligible is not None and (
            eligible.shape != (1, self._models) or eligible.dtype is not _FLAG
        ):
            return False
        return self._transform.sound_context(x)

    def check_requests(self, batch: RequestBatch) -> None:
        """Raise AgentError naming the column, the row, the value and what was expected."""
        count = len(batch)
        self._transform.check_context(batch.x)
        self._check_lengths(count, unit=batch.unit, context=batch.context, at=batch.at, x=batch.x)
        self._check_models("routed", batch.routed)
        check_times(batch.at)
        if batch.eligible is not None and batch.eligible.shape != (count, self._models):
            raise AgentError(
                f"eligible has shape {batch.eligible.shape}, expected {(count, self._models)}"
            )

    def check_drawn(self, decisions: DecisionBatch, outcomes: OutcomeBatch) -> None:
        """As `check_requests`, of decisions that were drawn elsewhere and of their outcomes."""
        self._transform.check_context(decisions.x)
        self._check_models("model", decisions.model)
        self._check_models("routed", decisions.routed)
        check_times(decisions.at)
        with_outputs = ~np.isnan(outcomes.outputs).any(axis=1)
        if with_outputs.any():
            self._transform.check_outputs(outcomes.outputs[with_outputs])
        self._check_models("served", outcomes.served)
        self._check_rewards(outcomes.reward, np.isnan(outcomes.reward))

    def check_observations(self, batch: ObservationBatch) -> None:
        """As `check_requests`; outputs and rewards too."""
        self._transform.check_context(batch.x)
        self._transform.check_outputs(batch.outputs)
        self._check_lengths(
            len(batch), unit=batch.unit, at=batch.at, outputs=batch.outputs, reward=batch.reward
        )
        check_times(batch.at, unknown=True)
        self._check_models("routed", batch.routed)
        self._check_rewards(batch.reward, np.zeros(len(batch), dtype=bool))

    def check_outcomes(self, batch: OutcomeBatch) -> None:
        """As `check_requests`, of what can be said of outcomes without knowing their decisions."""
        self._carried(batch)

    def _carried(self, batch: OutcomeBatch) -> tuple[Flags, Flags]:
        """(n,) which parts carry a reward, and which carry outputs. Raises as `check_outcomes`."""
        count = len(batch)
        q = self._transform.q
        if batch.outputs.shape != (count, q):
            raise AgentError(f"outputs have shape {batch.outputs.shape}, expected {(count, q)}")
        self._check_lengths(count, reward=batch.reward, served=batch.served, at=batch.at)
        self._check_models("served", batch.served)
        if batch.attempt.any() and np.abs(batch.attempt).max() > MOST_ATTEMPTS:
            row = int(np.abs(batch.attempt).argmax())
            raise AgentError(
                f"attempt row {row}: {batch.attempt[row]} is above the limit of {MOST_ATTEMPTS}"
            )
        check_times(batch.at, unknown=True)
        without = np.isnan(batch.reward)
        self._check_rewards(batch.reward, without)
        with_outputs = self._with_outputs(batch)
        if with_outputs.all():
            self._transform.check_outputs(batch.outputs)
        elif with_outputs.any():
            self._transform.check_outputs(batch.outputs[with_outputs])
        self._check_metrics(batch)
        return ~without, with_outputs

    def _with_outputs(self, batch: OutcomeBatch) -> Flags:
        if not self._transform.q:
            return np.zeros(len(batch), dtype=bool)
        if np.vdot(batch.outputs, batch.outputs) < np.inf:
            # Nothing is NaN where a sum of squares is a number.
            return np.ones(len(batch), dtype=bool)
        # Of two axes; the stubs of NumPy make one number of it.
        return np.logical_not(np.atleast_1d(np.isnan(batch.outputs).any(axis=1)))

    def outcomes(self, batch: OutcomeBatch) -> tuple[OutcomeBatch, int]:
        """The rows that say something new, in time or not, and the number of exact repeats."""
        with_reward, with_outputs = self._carried(batch)
        count, table = len(batch), self._light.pending
        if count == 0:
            return batch, 0
        q, speaks = self._transform.q, bool(batch.attempt.any())
        number = batch.number
        for gap in self._gaps:
            lost = number[(number >= gap.first) & (number < gap.end)]
            if len(lost):
                raise UnknownDecisionError(f"decision d{lost[0]} does not exist: {gap.sentence}")
        lowest = int(number.min())
        if int(number.max()) >= table.next or lowest < 0:
            missing = number[(number >= table.next) | (number < 0)][0]
            raise UnknownDecisionError(
                f"decision {self._name(int(missing))} does not exist: the newest is"
                f" {self._name(table.next - 1)}"
            )
        repeated = count > 1 and not (number[1:] > number[:-1]).all()
        if repeated and len(np.unique(number)) < count:
            raise ConflictError("one batch holds two outcomes of one decision; send them apart")
        doubtful = table.too_late(number, self._light.watermark)
        at = number - table.base
        if lowest < table.base:
            at = np.maximum(at, 0)
        doubtful |= with_reward & table.has_reward[at]
        if q:
            doubtful |= with_outputs & table.has_outputs[at]
        if batch.metrics is not None:
            doubtful |= (~np.isnan(batch.metrics + table.metrics[at])).any(axis=1)
        if speaks:
            doubtful |= (batch.attempt != 0) & (table.confirmed[at] | self._retold(number))
        if not doubtful.any():
            return batch, 0
        fresh = ~doubtful
        if batch.metrics is None and batch.attempts is None:
            # Repeats of what the table holds; all else is looked at row by row.
            again = (number >= table.base) & (batch.attempt == 0)
            again &= ~with_reward | (table.has_reward[at] & (table.reward[at] == batch.reward))
            if q:
                same = table.has_outputs[at] & (table.y[at] == batch.outputs).all(axis=1)
                again &= same | np.isnan(batch.outputs).all(axis=1)
            doubtful &= ~again
        for row in np.flatnonzero(doubtful).tolist():
            fresh[row] = self._says_more(batch, row)
        return select(batch, fresh), int(count - np.count_nonzero(fresh))

    def simulations(self, batch: SimulationBatch) -> tuple[SimulationBatch, int]:
        """The rows that are new, and the number of exact repeats: (context, model) counts once.

        Raises ConflictError where a pair comes again with other content, naming both rows.
        """
        self._transform.check_context(batch.x)
        self._transform.check_outputs(batch.outputs)
        count = len(batch)
        self._check_lengths(count, context=batch.context, outputs=batch.outputs, cost=batch.cost)
        check_times(batch.at, unknown=True)
        self._check_models("model", batch.model)
        _check_within("cost", batch.cost, 0.0, MOST_COST, "USD")
        pair = batch.context * np.int64(self._models) + batch.model
        _, first, group = np.unique(pair, return_index=True, return_inverse=True)
        original = first[group]
        fresh = original == np.arange(count)
        for row in np.flatnonzero(~fresh).tolist():
            self._check_same_replay(batch, row, batch, int(original[row]), None)
        stored = self._known_replays(batch)
        if stored.any():
            self._check_known_replays(batch, stored)
            fresh &= ~stored
        if fresh.all():
            return batch, 0
        return select(batch, fresh), int(count - np.count_nonzero(fresh))

    def _known_replays(self, batch: SimulationBatch) -> Flags:
        """(n,) which pairs are in the log. The state knows most contexts, the store all."""
        index = self._light.simulated
        stored = np.zeros(len(batch), dtype=bool)
        if len(index):
            stored = index.has(index.rows(batch.context), batch.model)
        if index.full and not stored.all():
            replays = self._store.simulations(batch.context[~stored], batch.model[~stored])
            pairs = zip(batch.context.tolist(), batch.model.tolist(), strict=True)
            stored |= np.array(
                [
                    pair in replays and replays[pair].seq >= self._begun(int(pair[1]))
                    for pair in pairs
                ]
            )
        return stored

    def _begun(self, model: int) -> int:
        """The first log row of the present version of a model."""
        renewals = self._light.versions.renewals
        return max((each.seq for each in renewals if each.model == model), default=0)

    def _check_known_replays(self, batch: SimulationBatch, stored: Flags) -> None:
        replays = self._store.simulations(batch.context[stored], batch.model[stored])
        phi = self._transform.phi(batch.x, batch.outputs)
        for row in np.flatnonzero(stored).tolist():
            pair = int(batch.context[row]), int(batch.model[row])
            if pair in replays and replays[pair].seq >= self._begun(pair[1]):
                replay = replays[pair]
                assert isinstance(replay.batch, SimulationBatch)
                self._check_same_replay(batch, row, replay.batch, 0, replay.seq)
                continue
            # Its row was removed by age, or a former version's comes first: the state remembers
            # outputs and context features.
            one = slice(row, row + 1)
            remembered, _ = self._light.simulated.lookup(batch.context[one], batch.model[one])
            if (remembered[0] != phi[row]).any():
                raise ConflictError(
                    f"{self._replay(batch, row)} has other content than a row before the "
                    "beginning of the log"
                )

    def _check_same_replay(
        self,
        batch: SimulationBatch,
        row: int,
        other: SimulationBatch,
        at: int,
        seq: int | None,
    ) -> None:
        """Raise ConflictError unless the rows say the same. seq: of the other, None where it
        stands in the same batch."""
        differences = [
            name
            for name, ours, theirs in (
                ("features", batch.x[row], other.x[at]),
                ("outputs", batch.outputs[row], other.outputs[at]),
                # A cost that is left out contradicts nothing.
                ("cost", batch.cost[row], np.nan if np.isnan(batch.cost[row]) else other.cost[at]),
            )
            if not np.array_equal(ours, theirs, equal_nan=True)
        ]
        if differences:
            place = f"row {at} of this batch" if seq is None else stored_row(seq, other.at[at])
            raise ConflictError(f"{self._replay(batch, row)} {other_content(differences, place)}")

    def _replay(self, batch: SimulationBatch, row: int) -> str:
        context = batch.context[row] if batch.context_id is None else repr(batch.context_id[row])
        name = self._names[int(batch.model[row])]
        return f"simulation row {row}: context {context} on model {name}"

    def _says_more(self, batch: OutcomeBatch, row: int) -> bool:
        """Whether a part holds what was not known of its decision.

        Raises ConflictError where it contradicts what is known: a part is accepted once.
        """
        number = int(batch.number[row])
        if number < self._light.pending.base and any(
            _same_part(batch, row, part) for part in self._store.outcome_parts(number)
        ):
            return False
        more = False
        for (name, before), new in zip(
            self._known(number), _parts(batch, row, len(self._guardrails)), strict=True
        ):
            filled = ~np.isnan(new)
            other = filled & ~np.isnan(before) & (before != new)
            if other.any():
                old, now = (values[other] for values in (before, new))
                raise ConflictError(
                    f"{name} of decision {self._name(number)} was {_shown(old)}, now {_shown(now)}:"
                    " a part is accepted once"
                )
            more = more or bool((filled & np.isnan(before)).any())
        return more or self._tells_more(batch, row) or self._lists_more(batch, row)

    def _name(self, number: int) -> str:
        return decision_id(self._origin + number)

    def _retold(self, number: Ints) -> Flags:
        """(n,) decisions of whose attempts more is known than what most parts say."""
        attempts = self._light.pending.attempts
        return attempts.among(number) if len(attempts) else np.zeros(len(number), dtype=bool)

    def _tells_more(self, batch: OutcomeBatch, row: int) -> bool:
        """As `_says_more`, of the attempt that a part speaks of."""
        speaks = reported_attempt(batch, row)
        if speaks is None:
            return False
        (attempt, new), number = speaks, int(batch.number[row])
        before = self._attempts(number).get(attempt)
        if before is None:
            return True
        if UNNAMED not in (before.served, new.served) and before.served != new.served:
            old, now = (self._names[each.served] for each in (before, new))
            raise ConflictError(
                f"served of attempt {attempt} of decision {self._name(number)} was {old}, now"
                f" {now}: a part is accepted once"
            )
        return not before.holds(new)

    def _lists_more(self, batch: OutcomeBatch, row: int) -> bool:
        """As `_says_more`, of a list of attempts: one that was not logged before is kept beside
        earlier ones, so that a gateway may report again when more of them are over."""
        text = "" if batch.attempts is None else batch.attempts[row]
        parts = self._store.outcome_parts(int(batch.number[row])) if text else []
        return bool(text) and all(text not in (part.attempts or ()) for part in parts)

    def _attempts(self, number: int) -> dict[int, Attempt]:
        """What is known of a decision's attempts."""
        table, at = self._light.pending, number - self._light.pending.base
        if not table.too_late(np.array([number]), self._light.watermark)[0]:
            return table.attempts.of(number, bool(table.confirmed[at]), int(table.model[at]))
        decided = self._store.decision(number)
        assigned = 0 if decided is None else int(decided.model[0])
        return merged_attempts(self._store.outcome_parts(number), assigned)

    def _known(self, number: int) -> list[tuple[str, Floats]]:
        """Every value known of a decision by its name, NaN where it is not."""
        table = self._light.pending
        names = ["reward", "outputs", *(f"metric {item.name}" for item in self._guardrails)]
        at = number - table.base
        if not table.too_late(np.array([number]), self._light.watermark)[0]:
            reward = table.reward[at : at + 1] if table.has_reward[at] else np.array([np.nan])
            outputs = table.y[at] if table.has_outputs[at] else np.full(self._transform.q, np.nan)
            return list(zip(names, [reward, outputs, *table.metrics[at, :, None]], strict=True))
        # Late parts are in the log alone, like all parts of decisions that have left the table.
        count = len(self._guardrails)
        values = [
            np.array([np.nan]),
            np.full(self._transform.q, np.nan),
            *np.full((count, 1), np.nan),
        ]
        for part in self._store.outcome_parts(number):
            for value, new in zip(values, _parts(part, 0, count), strict=True):
                np.copyto(value, new, where=np.isnan(value))
        return list(zip(names, values, strict=True))

    def _check_metrics(self, batch: OutcomeBatch) -> None:
        if batch.metrics is None:
            return
        expected = (len(batch), len(self._guardrails))
        if batch.metrics.shape != expected:
            raise AgentError(f"metrics have shape {batch.metrics.shape}, expected {expected}")
        for position, item in enumerate(self._guardrails):
            value = batch.metrics[:, position]
            outside = ~((value >= item.low) & (value <= item.high)) & ~np.isnan(value)
            if outside.any():
                row = int(np.flatnonzero(outside)[0])
                raise AgentError(
                    f"metric {item.name} row {row}: {value[row]} is outside the declared range "
                    f"[{item.low}, {item.high}]"
                )

    def _check_models(self, name: str, models: Ints) -> None:
        # Seen as unsigned numbers the negative ones are large: one pass finds both ends.
        if len(models) and int(models.view(np.uint64).max()) >= self._models:
            row = int(np.flatnonzero((models < 0) | (models >= self._models))[0])
            raise AgentError(
                f"{name} row {row}: model {models[row]} does not exist, "
                f"expected 0 … {self._models - 1}"
            )

    def _check_rewards(self, reward: Floats, unknown: Flags) -> None:
        low, high = self._reward.low, self._reward.high
        inside = (reward >= low) & (reward <= high)
        if not (inside | unknown).all():
            row = int(np.flatnonzero(~(inside | unknown))[0])
            raise AgentError(
                f"reward row {row}: {reward[row]} is outside the declared range [{low}, {high}]"
            )

    @staticmethod
    def _check_lengths(count: int, **columns: NDArray[Any]) -> None:
        for name, column in columns.items():
            if len(column) != count:
                raise AgentError(f"{name} has {len(column)} rows, expected {count}")


def _check_within(name: str, column: Floats, low: float, high: float, what: str) -> None:
    """Raise AgentError naming the first row outside [low, high]; NaN is let through."""
    inside = (column >= low) & (column <= high)
    if not inside.all():
        outside = ~inside & ~np.isnan(column)
        if outside.any():
            row = int(np.flatnonzero(outside)[0])
            raise AgentError(
                f"{name} row {row}: {column[row]} is not within {low:g} … {high:g}: {what}"
            )


def _parts(batch: OutcomeBatch, row: int, metrics: int) -> list[Floats]:
    """Reward (1,), outputs (q,) and each metric (1,) of one part, NaN where it carries none."""
    values = np.full(metrics, np.nan) if batch.metrics is None else batch.metrics[row]
    return [batch.reward[row : row + 1], batch.outputs[row], *values[:, None]]


def _same_part(batch: OutcomeBatch, row: int, part: OutcomeBatch) -> bool:
    """Whether a row says what another part (1,) says, and neither has metrics or attempts."""
    more = batch.metrics, batch.attempts, part.metrics, part.attempts
    return (
        all(each is None for each in more)
        and batch.attempt[row] == part.attempt[0] == 0
        and batch.reward[row : row + 1].tobytes() == part.reward.tobytes()
        and batch.outputs[row].tobytes() == part.outputs.tobytes()
    )


def _shown(values: Floats) -> str:
    return str(values[0] if len(values) == 1 else values.tolist())


def stored_row(seq: int, at: float) -> str:
    """A row of the log as a message names it. at: its own time, seconds since the epoch."""
    return f"row {seq} of the store, of {datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC"


def other_content(names: Sequence[str], place: str) -> str:
    """What is wrong with a row that repeats an id and says something else."""
    return f"has other {' and '.join(names)} than {place}"
