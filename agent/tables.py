"""Tidy tables of a log: one row per decision, outcome part, observation, simulation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd

from equipoise.agent.config import ExperimentConfig
from equipoise.agent.features import Transform
from equipoise.agent.wholefolder import whole_folder
from equipoise.store.batches import (
    Batch,
    DecisionBatch,
    ExpiryBatch,
    Floats,
    ObservationBatch,
    OutcomeBatch,
    SimulationBatch,
)
from equipoise.store.contract import Store

_NAMES: dict[type, str] = {
    DecisionBatch: "decisions",
    OutcomeBatch: "outcomes",
    ObservationBatch: "observations",
    SimulationBatch: "simulations",
    ExpiryBatch: "expiries",
}


def tables(store: Store, config: ExperimentConfig) -> dict[str, pd.DataFrame]:
    """Every table of a store by name, rows in log order."""
    parts: dict[str, list[pd.DataFrame]] = {name: [] for name in _NAMES.values()}
    for segment in store.read():
        frame = _frame(segment.batch, config)
        frame.insert(0, "seq", np.arange(segment.seq, segment.seq + len(frame)))
        parts[_NAMES[type(segment.batch)]].append(frame)
    return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items() if frames}


def write_tables(store: Store, config: ExperimentConfig, out: Path, format_: str) -> dict[str, int]:
    """Write every table into a new folder, whole or not at all; rows written by table."""
    frames = tables(store, config)
    with whole_folder(out) as folder:
        for name, frame in frames.items():
            path = folder / f"{name}.{format_}"
            if format_ == "csv":
                frame.to_csv(path, index=False)
            else:
                frame.to_parquet(path, index=False)
    return {name: len(frame) for name, frame in frames.items()}


def _frame(batch: Batch, config: ExperimentConfig) -> pd.DataFrame:
    models = np.array([model.name for model in config.models])
    transform = Transform(config.features)
    columns: dict[str, object] = {}
    for name in batch.__slots__:
        value = getattr(batch, name)
        if value is None:
            continue
        if name == "x":
            columns.update(_wide("x", transform.context_names, value))
        elif name == "outputs":
            columns.update(_wide("y", transform.output_names, value))
        elif name == "probabilities":
            columns.update(_wide("p", models[: value.shape[1]], value))
        elif name == "metrics":
            columns.update(_wide("metric", [item.name for item in config.guardrails], value))
        elif name == "eligible":
            columns.update(_wide("eligible", models[: value.shape[1]], value))
        elif name == "attempt":
            columns[name] = pd.Series(np.abs(value), dtype="Int64").mask(value == 0)
        elif isinstance(batch, OutcomeBatch) and name == "served":
            # Unknown where the part names nobody.
            columns[name] = np.where(batch.attempt > 0, models[value], None)
        elif name in ("routed", "model"):
            columns[name] = models[value]
        elif name == "number":
            columns["decision_id"] = [f"d{number}" for number in value.tolist()]
        elif name == "leader":
            columns["leader_id"] = [f"d{number}" for number in value.tolist()]
        else:
            columns[name] = value
    return pd.DataFrame(columns)


def _wide(prefix: str, names: Iterable[str], table: Floats) -> Iterator[tuple[str, Floats]]:
    return ((f"{prefix}_{name}", table[:, index]) for index, name in enumerate(names))
