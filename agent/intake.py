"""The checks at the agent's door: what enters the log is whole, finite, in range, and new."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.errors import AgentError, ConflictError, UnknownDecisionError
from equipoise.agent.features import Transform
from equipoise.agent.fold import Fold
from equipoise.store.batches import (
    Flags,
    Floats,
    Ints,
    ObservationBatch,
    OutcomeBatch,
    RequestBatch,
    SimulationBatch,
)
from equipoise.store.contract import Store


class Intake:
    """Validation against one experiment's configuration and state."""

    def __init__(
        self, config: ExperimentConfig, transform: Transform, fold: Fold, store: Store
    ) -> None:
        self._reward = config.reward
        self._models = len(config.models)
        self._transform = transform
        self._fold = fold
        self._store = store

    def check_requests(self, batch: RequestBatch) -> None:
        """Raise AgentError naming the column, the row, the value and what was expected."""
        count = len(batch)
        self._transform.check_context(batch.x)
        self._check_lengths(count, unit=batch.unit, context=batch.context, at=batch.at, x=batch.x)
        self._check_models("routed", batch.routed)
        if batch.eligible is not None and batch.eligible.shape != (count, self._models):
            raise AgentError(
                f"eligible has shape {batch.eligible.shape}, expected {(count, self._models)}"
            )

    def check_observations(self, batch: ObservationBatch) -> None:
        """As `check_requests`; outputs and rewards too."""
        self._transform.check_context(batch.x)
        self._transform.check_outputs(batch.outputs)
        self._check_lengths(
            len(batch), unit=batch.unit, at=batch.at, outputs=batch.outputs, reward=batch.reward
        )
        self._check_models("routed", batch.routed)
        self._check_rewards(batch.reward, np.zeros(len(batch), dtype=bool))

    def outcomes(self, batch: OutcomeBatch) -> tuple[OutcomeBatch, int, int]:
        """The rows that are new, the number of exact repeats, the number after expiry."""
        count, table = len(batch), self._fold.pending
        q = self._transform.q
        if batch.outputs.shape != (count, q):
            raise AgentError(f"outputs have shape {batch.outputs.shape}, expected {(count, q)}")
        self._check_lengths(count, reward=batch.reward, served=batch.served, at=batch.at)
        self._check_models("served", batch.served)
        with_reward = ~np.isnan(batch.reward)
        self._check_rewards(batch.reward, ~with_reward)
        with_outputs = ~np.isnan(batch.outputs).any(axis=1) if q else np.zeros(count, dtype=bool)
        if with_outputs.any():
            self._transform.check_outputs(batch.outputs[with_outputs])
        if count == 0:
            return batch, 0, 0
        number = batch.number
        if int(number.max()) >= table.next or int(number.min()) < 0:
            wrong = number[(number >= table.next) | (number < 0)][0]
            raise UnknownDecisionError(
                f"decision d{wrong} does not exist: the newest is d{table.next - 1}"
            )
        repeated = count > 1 and not (np.diff(number) > 0).all()
        if repeated and len(np.unique(number)) < count:
            raise ConflictError("one batch holds two outcomes of one decision; send them apart")
        if int(number.min()) < table.base:
            return self._with_old_rows(batch)
        at = number - table.base
        clash = (with_reward & table.has_reward[at]) | table.expired[at]
        if q:
            clash |= with_outputs & table.has_outputs[at]
        if not clash.any():
            return batch, 0, 0
        return self._sorted_out(batch, at, clash)

    def simulations(self, batch: SimulationBatch) -> tuple[SimulationBatch, int]:
        """The rows that are new, and the number of exact repeats."""
        self._transform.check_context(batch.x)
        self._transform.check_outputs(batch.outputs)
        count = len(batch)
        self._check_lengths(count, context=batch.context, outputs=batch.outputs, cost=batch.cost)
        self._check_models("model", batch.model)
        pair = batch.context * np.int64(self._models) + batch.model
        _, first = np.unique(pair, return_index=True)
        fresh = np.zeros(count, dtype=bool)
        fresh[first] = True
        phi = self._transform.phi(batch.x, batch.outputs)
        if len(self._fold.simulated):
            known_phi, known = self._fold.simulated.lookup(batch.context, batch.model)
            other = known & (known_phi != phi).any(axis=1)
            if other.any():
                row = int(np.flatnonzero(other)[0])
                raise ConflictError(
                    f"simulation row {row}: context {batch.context[row]} on model "
                    f"{batch.model[row]} is known with other outputs"
                )
            fresh &= ~known
        if fresh.all():
            return batch, 0
        return select(batch, fresh), int(count - np.count_nonzero(fresh))

    def _sorted_out(
        self, batch: OutcomeBatch, at: Ints, clash: Flags
    ) -> tuple[OutcomeBatch, int, int]:
        """Drop exact repeats and late rows; raise ConflictError on contradictions."""
        table = self._fold.pending
        keep = ~clash
        duplicates = late = 0
        for row in np.flatnonzero(clash).tolist():
            position = int(at[row])
            if table.expired[position]:
                late += 1
                continue
            parts = [
                (table.has_reward, table.reward, batch.reward, "reward"),
                (table.has_outputs, table.y, batch.outputs, "outputs"),
            ]
            fresh = False
            for has, held, new, name in parts:
                part = np.atleast_1d(new[row])
                if not len(part) or np.isnan(part).any():
                    continue
                if not has[position]:
                    fresh = True
                elif not np.array_equal(np.atleast_1d(held[position]), part):
                    raise ConflictError(
                        f"{name} of decision d{batch.number[row]} was {held[position]}, "
                        f"now {new[row]}: a part is accepted once"
                    )
            keep[row] = fresh
            duplicates += not fresh
        return select(batch, keep), duplicates, late

    def _with_old_rows(self, batch: OutcomeBatch) -> tuple[OutcomeBatch, int, int]:
        """Some decisions have left the table of open ones: the store knows what they got."""
        table = self._fold.pending
        old = batch.number < table.base
        duplicates = late = 0
        for row in np.flatnonzero(old).tolist():
            number = int(batch.number[row])
            stored = self._store.outcome_parts(number)
            rewards = [part.reward[0] for part in stored if not np.isnan(part.reward[0])]
            if not rewards:
                late += 1
            elif np.isnan(batch.reward[row]) or rewards[0] == batch.reward[row]:
                duplicates += 1
            else:
                raise ConflictError(
                    f"reward of decision d{number} was {rewards[0]}, now {batch.reward[row]}: "
                    "a part is accepted once"
                )
        rest, more_duplicates, more_late = self.outcomes(select(batch, ~old))
        return rest, duplicates + more_duplicates, late + more_late

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


def select(batch: Any, rows: Flags) -> Any:
    """The rows of a batch where `rows` (n,) is true."""
    picked = np.flatnonzero(rows)
    columns: dict[str, Any] = {}
    for name in batch.__slots__:
        column = getattr(batch, name)
        if isinstance(column, np.ndarray) and column.ndim:
            column = column[picked]
        elif isinstance(column, (list, tuple)):
            column = [column[row] for row in picked.tolist()]
        columns[name] = column
    return type(batch)(**columns)
