"""Tidy tables of a store: one row per decision, outcome part, observation, simulation, expiry.

With the tables of `export_sums` beside them, nothing else is needed to recompute a
certified interval. Rows are read table by table in column batches and written as they come, so
that memory does not grow with the log.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from equipoise.agent.agent import Agent
from equipoise.agent.config import ExperimentConfig
from equipoise.agent.features import Transform
from equipoise.agent.lifecycle.drawn import LEAST_OPEN
from equipoise.agent.lifecycle.rules import RuleBook
from equipoise.agent.maintenance.atomic_files import whole_folder
from equipoise.agent.maintenance.export_sums import (
    column_meanings,
    experiment_json,
    frozen_tables,
    reader,
)
from equipoise.store.batches import (
    LEFT_OUT,
    Batch,
    Closure,
    DecisionBatch,
    Flags,
    Floats,
    Ints,
    OutcomeBatch,
)
from equipoise.store.contract import Store
from equipoise.store.format.sql_rows import DECISIONS, LOG_TABLES, Kind, Table, merge
from equipoise.store.records import decision_id
from equipoise.store.sql.store import SqlStore

if TYPE_CHECKING:
    import pandas as pd

ROWS_AT_ONCE = 16_384
_OF_MODELS = ("routed", "model", "served")
_TYPES = {
    Kind.INTEGER: pa.int64(),
    Kind.REAL: pa.float64(),
    Kind.FLAG: pa.bool_(),
    Kind.TEXT: pa.string(),
    Kind.VECTOR: pa.float64(),
    Kind.OPTIONAL_VECTOR: pa.float64(),
    Kind.MASK: pa.bool_(),
}


def tables(store: Store, config: ExperimentConfig) -> dict[str, pd.DataFrame]:
    """Every table of a store by name, rows in log order; those without a row are left out."""
    import pandas as pd  # slow to import, and no file needs it

    frames: dict[str, pd.DataFrame] = {}
    for name, schema, batches in _tables(store, config, reader(store, config)):
        table = pa.Table.from_batches(batches, schema)
        if table.num_rows:
            frames[name] = table.to_pandas(types_mapper={pa.int32(): pd.Int32Dtype()}.get)
    return frames


def write_tables(
    store: Store,
    config: ExperimentConfig,
    out: Path,
    format_: str,
    *,
    force: bool = False,
    progress: Callable[[str, int], None] = lambda table, rows: None,
) -> dict[str, int]:
    """Write every table into a new folder, whole or not at all; rows written by table.

    format_: parquet or csv. force: replace a folder that an export made before. progress: called
    with the table that is written and its rows so far. Raises AgentError, before anything is read,
    where `out` exists otherwise.
    """
    rows: dict[str, int] = {}
    source: Path | None = getattr(store, "path", None)
    with whole_folder(out, replace="experiment.json" if force else None, source=source) as folder:
        agent = reader(store, config)
        for name, schema, batches in _tables(store, config, agent):
            path = folder / f"{name}.{format_}"
            rows[name] = _write(path, schema, batches, format_, partial(progress, name))
            if not rows[name]:
                del rows[name]
                path.unlink()
        (folder / "experiment.json").write_bytes(experiment_json(store, config, agent))
    return rows


def _write(
    path: Path,
    schema: pa.Schema,
    batches: Iterator[pa.RecordBatch],
    format_: str,
    progress: Callable[[int], None],
) -> int:
    rows = 0
    csv = format_ == "csv"
    with pa_csv.CSVWriter(path, schema) if csv else pq.ParquetWriter(path, schema) as writer:
        for group in _gathered(batches):
            table = pa.Table.from_batches(group, schema)
            writer.write_table(table)
            rows += table.num_rows
            progress(rows)
    return rows


def _gathered(batches: Iterator[pa.RecordBatch]) -> Iterator[list[pa.RecordBatch]]:
    group: list[pa.RecordBatch] = []
    count = 0
    for batch in batches:
        group.append(batch)
        count += batch.num_rows
        if count >= ROWS_AT_ONCE:
            yield group
            group, count = [], 0
    if group:
        yield group


def _tables(
    store: Store, config: ExperimentConfig, agent: Agent | None
) -> Iterator[tuple[str, pa.Schema, Iterator[pa.RecordBatch]]]:
    # What was certified when the agent had read the log, and the log as it was then.
    until = store.next_seq if agent is None else agent.light.next_seq
    shape = _Shape(store, config, agent)
    for table in LOG_TABLES:
        schema = pa.schema(list(shape.fields(table)))
        yield table.name, schema, _records(store, table, until, shape, schema)
    yield from frozen_tables(store, config)
    yield column_meanings()


def _records(
    store: Store, table: Table, until: int, shape: _Shape, schema: pa.Schema
) -> Iterator[pa.RecordBatch]:
    for seqs, batch in _blocks(store, table, until):
        columns = shape.columns(table, seqs, batch)
        arrays = [
            pa.nulls(len(batch), field.type)
            if columns.get(field.name) is None
            else pa.array(columns[field.name], field.type, from_pandas=True)
            for field in schema
        ]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _blocks(store: Store, table: Table, until: int) -> Iterator[tuple[Ints, Any]]:
    """The rows of one table as (seqs, batch), in log order but for changes of shape."""
    if isinstance(store, SqlStore):
        yield from store.blocks(table, until)
        return
    segments = [
        segment for segment in store.read(0, until) if isinstance(segment.batch, table.batch)
    ]
    yield from merge(segments)


class _Shape:
    """What the columns of a batch are called, and what is known of a decision beside them."""

    def __init__(self, store: Store, config: ExperimentConfig, agent: Agent | None) -> None:
        self._config, self._agent = config, agent
        self._limited = -1
        self._rules = RuleBook(store) if agent is None else agent.state.rules
        self._models = np.array([model.name for model in config.models])
        self._names = pa.array(self._models.tolist())
        self._transform = Transform(config.features)
        models = self._models.tolist()
        self._wide: dict[str, tuple[str, Sequence[str]]] = {
            "x": ("x", self._transform.context_names),
            "outputs": ("y", self._transform.output_names),
            "probabilities": ("p", models),
            "eligible": ("eligible", models),
            "metrics": ("metric", [item.name for item in config.guardrails]),
        }

    def fields(self, table: Table) -> Iterator[pa.Field]:
        """The columns of the table of a kind of row, in order."""
        yield pa.field("seq", pa.int64())
        for name, kind in table.columns.items():
            if name in self._wide:
                prefix, names = self._wide[name]
                yield from (pa.field(f"{prefix}_{each}", _TYPES[kind]) for each in names)
            elif name == "number":
                yield pa.field("decision_id", pa.string())
            elif name == "leader":
                yield pa.field("leader_id", pa.string())
            elif name == "draw":
                yield pa.field("lane_id", pa.string())
            elif name == "closed_by" or name in _OF_MODELS or name == "rule_id":
                yield pa.field(name, pa.string())
            elif name == "attempt":
                # Unknown in parts that speak of none.
                yield pa.field(name, pa.int32())
            else:
                yield pa.field(name, pa.int64() if name == "era" else _TYPES[kind])
        if table is DECISIONS:
            yield from (pa.field(f"raw_{name}", pa.float64()) for name in self._models.tolist())
            yield pa.field("drawn_by", pa.string())
            yield pa.field("certifiable", pa.bool_())
            yield pa.field("entered", pa.bool_())

    def columns(self, table: Table, seqs: Ints, batch: Batch) -> dict[str, Any]:
        """The columns of a batch by name; those that it does not have are left out."""
        count = len(batch)
        columns: dict[str, Any] = {"seq": seqs}
        for name, kind in table.columns.items():
            value = getattr(batch, name)
            if value is None:
                continue
            if name in self._wide:
                prefix, names = self._wide[name]
                for index, each in enumerate(names[: value.shape[1]]):
                    columns[f"{prefix}_{each}"] = np.ascontiguousarray(value[:, index])
            elif name in ("number", "leader"):
                ids = [f"d{number}" for number in value.tolist()]
                columns["decision_id" if name == "number" else "leader_id"] = ids
            elif isinstance(batch, OutcomeBatch) and name == "attempt":
                # A part that speaks of no attempt says 0, one that names nobody is negative.
                columns[name] = pa.array(np.abs(value), pa.int32(), mask=value == 0)
            elif isinstance(batch, OutcomeBatch) and name == "served":
                columns[name] = self._names.take(pa.array(value, mask=batch.attempt <= 0))
            elif name in _OF_MODELS:
                columns[name] = self._names.take(pa.array(value))
            elif name == "draw":
                columns["lane_id"] = [decision_id(position) for position in value.tolist()]
            elif name == "closed_by":
                columns[name] = [Closure(each).name.lower() for each in value.tolist()]
            elif kind is Kind.SHARED:
                columns[name] = [value] * count
            elif kind is Kind.TEXT:
                columns[name] = [text or None for text in value]
            else:
                columns[name] = value
        if isinstance(batch, DecisionBatch):
            raw = self._predicted(batch)
            for index, each in enumerate(self._models[: raw.shape[1]].tolist()):
                columns[f"raw_{each}"] = np.ascontiguousarray(raw[:, index])
            drawn = self._rules.rule(batch.rule_id).drawn
            columns["drawn_by"] = None if drawn is None else [drawn.label] * count
            if drawn is not None and not drawn.routed:
                columns["routed"] = None  # nothing says it
            certifiable = self._certifiable(batch)
            columns["certifiable"] = certifiable
            columns["entered"] = certifiable & self._entered(batch)
        return columns

    def _certifiable(self, batch: DecisionBatch) -> Flags:
        """(n,) rows that certified sums may count: known before the draw."""
        rule = self._rules.rule(batch.rule_id)
        if rule.after_decision == "ramp":
            # Drawn for the checks alone: nothing more is certified.
            return np.zeros(len(batch), dtype=bool)
        result: Flags = batch.rate >= self._config.limits.rate_min
        if rule.uncertified:
            result = np.zeros_like(result)
        elif rule.drawn is not None:
            result &= (batch.probabilities[:, rule.active] >= LEAST_OPEN).all(axis=1)
        if batch.eligible is not None:
            result = result & batch.eligible[:, rule.active].all(axis=1)
        if batch.leader is not None and self._config.units is not None:
            result = result & (batch.leader == batch.number)
        if batch.closed_by is not None:
            result = result & ~np.isin(batch.closed_by, LEFT_OUT)
        return result

    def _entered(self, batch: DecisionBatch) -> Flags:
        """(n,) rows of the era in force behind its watermark."""
        if self._agent is None:
            return np.zeros(len(batch), dtype=bool)
        view = self._agent.answers.view()
        passed: Flags = batch.number < view.watermark
        era = view.certified.era
        if self._agent.state.certifier.spec.freezes and batch.closed_by is not None:
            # No row enters after the first that a limit on a part of the traffic closed.
            limited = np.isin(batch.closed_by, (Closure.SEGMENT, Closure.USER)) & (batch.era == era)
            passed = passed & ~np.logical_or.accumulate(limited) & (self._limited != era)
            if limited.any():
                self._limited = era
        return passed & (batch.era == era)

    def _predicted(self, batch: DecisionBatch) -> Floats:
        """(n, K) raw predictions that the rule had frozen, NaN where it made none."""
        rule = self._rules.rule(batch.rule_id)
        prediction = rule.prediction
        if prediction is None or self._agent is None:
            return np.full(batch.probabilities.shape, np.nan)
        simulated = self._agent.light.simulated
        if not len(simulated) or (batch.context < 0).all():
            return prediction.raw(batch.x, None, None)
        models = len(prediction.effects)
        phi, known = simulated.lookup_all(batch.context, batch.number, rule.known_before)
        return prediction.raw(batch.x, phi[:, :models], known[:, :models])
