"""The benchmark table and its one place of validation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from equipoise.store.batches import Floats


class BenchmarkError(ValueError):
    """A benchmark that cannot be had, in one line for the person who asked for it."""


@dataclass(frozen=True, slots=True, eq=False)
class Benchmark:
    """C contexts × K models: what each model put out, how well it did, what it cost.

    x: (C, d) context features. outputs: (C, K, q) features of the cached outputs.
    outcome: (C, K) success at the task in [0, 1]. cost: (C, K) USD, NaN where unknown.
    models: K names. context_names: d names. output_names: q names. context_ids: C texts.
    source: where the data is from. exclusions: what was left out, and how many of each.
    outcome_features: whether the outcome is itself one of the output features.

    Arrays are copied to float64 and made read-only. Raises BenchmarkError naming the field, the
    value and the limit.
    """

    name: str
    title: str
    models: tuple[str, ...]
    context_names: tuple[str, ...]
    output_names: tuple[str, ...]
    x: Floats
    outputs: Floats
    outcome: Floats
    cost: Floats
    context_ids: tuple[str, ...]
    source: str
    exclusions: Mapping[str, int] = field(default_factory=dict)
    outcome_features: bool = False

    def __post_init__(self) -> None:
        for names in ("models", "context_names", "output_names", "context_ids"):
            object.__setattr__(self, names, _unique_names(names, getattr(self, names)))
        contexts, models = len(self.context_ids), len(self.models)
        if models < 2:
            raise BenchmarkError(f"models has {models} entries, must have at least 2")
        if contexts < 2:
            raise BenchmarkError(f"context_ids has {contexts} entries, must have at least 2")
        shapes = {
            "x": (contexts, len(self.context_names)),
            "outputs": (contexts, models, len(self.output_names)),
            "outcome": (contexts, models),
            "cost": (contexts, models),
        }
        for name, shape in shapes.items():
            object.__setattr__(self, name, _table(name, getattr(self, name), shape))
        for name in ("x", "outputs", "outcome"):
            table = getattr(self, name)
            _require(name, table, np.isfinite(table), "finite")
        _require("outcome", self.outcome, (self.outcome >= 0) & (self.outcome <= 1), "in [0, 1]")
        known = (self.cost >= 0) & (self.cost < np.inf)
        _require("cost", self.cost, known | np.isnan(self.cost), "0 or more, or NaN if unknown")
        for reason, count in self.exclusions.items():
            if count < 0:
                raise BenchmarkError(f"exclusions[{reason!r}] is {count}, must be 0 or more")

    def summary(self) -> list[dict[str, str | float]]:
        """One row per model: its name, mean outcome, and mean cost (USD) where it is known."""
        known = ~np.isnan(self.cost)
        total = np.where(known, self.cost, 0.0).sum(axis=0)
        with np.errstate(invalid="ignore"):
            cost = total / known.sum(axis=0)
        columns = zip(self.models, self.outcome.mean(axis=0).tolist(), cost.tolist(), strict=True)
        return [{"model": name, "outcome": mean, "cost": usd} for name, mean, usd in columns]


def _unique_names(name: str, names: Sequence[str]) -> tuple[str, ...]:
    if "" in names:
        raise BenchmarkError(f"{name}[{list(names).index('')}] is empty, must be a name")
    seen: set[str] = set()
    for entry in names:
        if entry in seen:
            raise BenchmarkError(f"{name} holds {entry!r} twice, must be unique")
        seen.add(entry)
    return tuple(names)


def _table(name: str, values: Floats, shape: tuple[int, ...]) -> Floats:
    """A read-only float64 copy of the expected shape."""
    try:
        table = np.array(values, dtype=np.float64, order="C")
    except (TypeError, ValueError) as error:
        raise BenchmarkError(f"{name} is not a table of numbers: {error}") from error
    if table.shape != shape:
        raise BenchmarkError(f"{name} has shape {table.shape}, must have {shape}")
    table.flags.writeable = False
    return table


def _require(name: str, table: Floats, holds: np.ndarray, limit: str) -> None:
    if holds.all():
        return
    cell = tuple(int(i) for i in np.argwhere(~holds)[0])
    raise BenchmarkError(f"{name}{list(cell)} is {table[cell]}, must be {limit}")
