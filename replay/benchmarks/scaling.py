"""Features on a common scale: robustly standardized, so that one odd output moves no scorer."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from equipoise.agent.features.problems import listed
from equipoise.replay.benchmarks.base import BenchmarkError
from equipoise.store.batches import Floats

CLIP = 4.0
"""Standardized features are cut off at this many deviations from the median."""

_NORMAL_IQR = 1.349
_ROUNDING = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class ScaledFeatures:
    """names: q names. values: (..., q) scaled features. constant: names left out, as they say
    nothing."""

    names: tuple[str, ...]
    values: Floats
    constant: tuple[str, ...]

    def require_one(self, where: object) -> None:
        """Raise BenchmarkError where no feature is left."""
        if not self.names:
            constant = listed(self.constant)
            raise BenchmarkError(
                f"{where}: no output feature varies ({constant}), must be at least one"
            )

    def exclusions(self, side: str) -> dict[str, int]:
        """What a benchmark counts as left out: the constant features of this side."""
        if not self.constant:
            return {}
        return {f"constant {side} features ({listed(self.constant)})": len(self.constant)}


def scaled(
    columns: Mapping[str, Floats], shape: tuple[int, ...], indicators: Collection[str] = ()
) -> ScaledFeatures:
    """Finite columns by name, each of the same shape, as one table with a last axis of features.

    A column becomes (v - median) / (IQR / 1.349), cut off at ±CLIP; where half the values are
    equal, so that the IQR is 0, the median distance of the others from the median takes its
    place. `indicators` are 0 or 1 (or scaled by their definition) and stay as they are. Constant
    columns are left out.
    """
    kept: dict[str, Floats] = {}
    for name, column in columns.items():
        if column.size and column.max() > column.min():
            kept[name] = column if name in indicators else _standardized(column)
    values = np.stack(list(kept.values()), axis=-1) if kept else np.zeros((*shape, 0))
    return ScaledFeatures(tuple(kept), values, tuple(name for name in columns if name not in kept))


def _standardized(column: Floats) -> Floats:
    low, middle, high = np.quantile(column, (0.25, 0.5, 0.75))
    spread = (high - low) / _NORMAL_IQR
    if spread <= _ROUNDING * max(abs(low), abs(high)):
        distance = np.abs(column - middle)
        spread = np.median(distance[distance > 0])
    with np.errstate(over="ignore"):  # what overflows is clipped
        clipped: Floats = np.clip((column - middle) / spread, -CLIP, CLIP)
    return clipped
