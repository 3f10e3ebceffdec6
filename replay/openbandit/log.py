"""The log as an object: what was shown where, with which probability, and what was clicked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace

import numpy as np

from equipoise.replay.benchmarks.base import BenchmarkError
from equipoise.store.batches import Flags, Floats, Ints

_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True, eq=False)
class LoggedFeedback:
    """n rows of one logging policy over K items at P positions of a page.

    behaviour: the logging policy, "random" or "bts". items: K names. positions: P names.
    x: (n, d) user features, x_names: d names. affinity: (n, K) how close each user is to each
    item, (n, 0) where unknown. item_features: (K, q), item_names: q names.
    item: (n,) the item shown. position: (n,) where. propensity: (n,) the probability with which
    the logging policy showed this item at this position then. reward: (n,) 1 for a click, else 0.
    at: (n,) seconds since the epoch. exclusions: what was left out, and how many of each.

    Arrays are read-only. Raises BenchmarkError where shapes contradict each other.
    """

    behaviour: str
    items: tuple[str, ...]
    positions: tuple[str, ...]
    x_names: tuple[str, ...]
    x: Floats
    affinity: Floats
    item_names: tuple[str, ...]
    item_features: Floats
    item: Ints
    position: Ints
    propensity: Floats
    reward: Floats
    at: Floats
    exclusions: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        n, k = len(self.item), len(self.items)
        shapes: dict[str, tuple[int, ...]] = {
            "x": (n, len(self.x_names)),
            "item_features": (k, len(self.item_names)),
            **dict.fromkeys(("item", "position", "propensity", "reward", "at"), (n,)),
            "affinity": (n, k if self.affinity.ndim == 2 and self.affinity.shape[1] else 0),
        }
        for name, shape in shapes.items():
            if getattr(self, name).shape != shape:
                raise BenchmarkError(
                    f"{name} has shape {getattr(self, name).shape}, must be {shape}"
                )
        for declared in fields(self):
            value = getattr(self, declared.name)
            if isinstance(value, np.ndarray):
                value = value.view()
                value.flags.writeable = False
                object.__setattr__(self, declared.name, value)

    def __len__(self) -> int:
        return len(self.item)

    @property
    def position_counts(self) -> Ints:
        """(P,) rows at each position."""
        return np.bincount(self.position, minlength=len(self.positions))

    @property
    def position_shares(self) -> Floats:
        """(P,) share of the rows at each position."""
        return np.asarray(self.position_counts / len(self))

    @property
    def is_uniform(self) -> bool:
        """Whether every item was always equally likely, which rejection replay rests on."""
        return bool(np.all(np.abs(self.propensity * len(self.items) - 1.0) <= _ROUNDING))

    def select(self, rows: Flags | Ints, propensity: Floats | None = None) -> LoggedFeedback:
        """Some rows, with other propensities where `propensity` (of those rows) is given."""
        columns = ("x", "affinity", "item", "position", "reward", "at")
        picked = {name: getattr(self, name)[rows] for name in columns}
        chosen = self.propensity[rows] if propensity is None else propensity
        return replace(self, propensity=chosen, **picked)
