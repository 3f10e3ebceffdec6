"""Tables with gaps made complete, and their features on a common scale."""

from __future__ import annotations

from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from equipoise.agent.features.values import listed
from equipoise.replay.benchmarks.base import BenchmarkError, check, option
from equipoise.store.batches import Flags, Floats, Ints

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")

FEWEST = 2
"""Fewest models, and fewest contexts, of a benchmark."""


@dataclass(frozen=True, slots=True)
class ImportOptions:
    """Options of every benchmark that is read from files."""

    models: str = option("", "names of the models to read, with commas between; all if empty")
    max_missing: float = option(
        0.5,
        "a model that lacks more than this share of the contexts is left out; a context that a"
        " remaining model lacks is left out",
        unit="share",
        low=0,
        high=1,
    )

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, slots=True, eq=False)
class Selection:
    """contexts, models: kept positions, rising. exclusions: what was left out, with counts."""

    contexts: Ints
    models: Ints
    exclusions: dict[str, int]


def complete(
    faults: Ints, reasons: Sequence[str], models: Sequence[str], max_missing: float, unit: str
) -> Selection:
    """The models that have enough, then the contexts that all of them have.

    faults: (C, K), 0 where a cell is usable, else 1 + the position of its reason in `reasons`;
    the worst reason has the lowest position, and a context counts under its worst. unit: what a
    context is called, in the plural. Raises BenchmarkError where fewer than two of either stay.
    """
    contexts = len(faults)
    lacking = (faults != 0).sum(axis=0)
    stays = lacking <= max_missing * contexts
    exclusions: dict[str, int] = {}
    if not stays.all():
        dropped = [models[m] for m in np.flatnonzero(~stays).tolist()]
        key = f"models that lack more than {max_missing:.0%} of the {unit} ({listed(dropped)})"
        exclusions[key] = len(dropped)
    if stays.sum() < FEWEST:
        cells = ((reason, int((faults == i).sum())) for i, reason in enumerate(reasons, start=1))
        because = ", ".join(f"{count} cells {reason}" for reason, count in cells if count)
        raise BenchmarkError(
            f"{int(stays.sum())} of {len(models)} models have {1 - max_missing:.0%} of the"
            f" {contexts} {unit}, must be at least {FEWEST} ({because or 'there are no more'});"
            " max_missing sets the share"
        )
    remaining = np.flatnonzero(stays)
    worst = np.where(faults[:, remaining] == 0, len(reasons) + 1, faults[:, remaining]).min(axis=1)
    for position, reason in enumerate(reasons, start=1):
        if count := int((worst == position).sum()):
            exclusions[f"{unit} {reason}"] = count
    whole = np.flatnonzero(worst > len(reasons))
    if len(whole) < FEWEST:
        because = "; ".join(f"{count} {reason}" for reason, count in exclusions.items())
        raise BenchmarkError(
            f"{len(whole)} of {contexts} {unit} are usable for all {len(remaining)} models, must be"
            f" at least {FEWEST} ({because or 'there are no more'})"
        )
    return Selection(whole, remaining, exclusions)


def chosen(models: Sequence[str], wanted: str) -> tuple[Flags, dict[str, int]]:
    """Which models the option `models` asks for, and how many it leaves out.

    Raises BenchmarkError for a name that is not there.
    """
    names = [name.strip() for name in wanted.split(",") if name.strip()]
    for name in names:
        if name not in models:
            raise BenchmarkError(f"models: {name!r} is not there; there are: {listed(models, 64)}")
    keep = np.array([not names or model in names for model in models], dtype=bool)
    left_out = int((~keep).sum())
    return keep, {"models not asked for": left_out} if left_out else {}


def put_once(rows: dict[Key, Value], key: Key, value: Value, what: str) -> int:
    """Add a row; 1 where the very same row was there already, else 0.

    Values must compare equal if they say the same. Raises BenchmarkError, with `what` the row is
    about, where two rows contradict each other.
    """
    if key in rows:
        if rows[key] != value:
            raise BenchmarkError(f"{what} occurs twice and its rows differ, must be unique")
        return 1
    rows[key] = value
    return 0


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
    varying: dict[str, Floats] = {}
    for name, column in columns.items():
        if column.size and column.max() > column.min():
            varying[name] = column if name in indicators else _standardized(column)
    values = np.stack(list(varying.values()), axis=-1) if varying else np.zeros((*shape, 0))
    constant = tuple(name for name in columns if name not in varying)
    return ScaledFeatures(tuple(varying), values, constant)


def _standardized(column: Floats) -> Floats:
    low, middle, high = np.quantile(column, (0.25, 0.5, 0.75))
    spread = (high - low) / _NORMAL_IQR
    if spread <= _ROUNDING * max(abs(low), abs(high)):
        distance = np.abs(column - middle)
        spread = np.median(distance[distance > 0])
    with np.errstate(over="ignore"):  # what overflows is clipped
        clipped: Floats = np.clip((column - middle) / spread, -CLIP, CLIP)
    return clipped
