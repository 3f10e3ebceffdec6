"""What all checks with a state share: named arrays that add, copy and go into a checkpoint."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np

from equipoise.agent.monitors.check import Check
from equipoise.store.batches import Floats


class Monitor(ABC):
    """A check that is fed rows and says at any moment what it makes of them.

    name: what the check is called. models: (K,) names, for its sentences. level: share of honest
    experiments in which it may ever raise an alarm. sums: float64 arrays, all of its state.
    `update` takes columns of n rows, in decision order, and differs from check to check.

    One owner updates in place; `a + b` is the check of both sets of rows.
    """

    name: ClassVar[str]
    maxima: ClassVar[frozenset[str]] = frozenset()
    """The names of sums that combine by their maximum."""

    def __init__(self, models: Sequence[str], level: float = 0.01) -> None:
        if not 0 < level < 1:
            raise ValueError(f"level of {self.name} is {level}, must be above 0 and below 1")
        self.models = tuple(models)
        self.level = level
        self.sums: dict[str, Floats] = {}

    @abstractmethod
    def result(self) -> Check:
        """The verdict on all rows so far."""

    def arrays(self) -> dict[str, Floats]:
        """The state by name, for a checkpoint: views, not copies."""
        return dict(self.sums)

    def load(self, arrays: Mapping[str, Floats]) -> None:
        """Become the state of `arrays`. Raises ValueError where names or shapes do not fit."""
        shapes = {name: array.shape for name, array in arrays.items()}
        expected = {name: array.shape for name, array in self.sums.items()}
        if shapes != expected:
            raise ValueError(f"state of {self.name} has {shapes}, must be {expected}")
        self.sums = {name: np.array(arrays[name], dtype=np.float64) for name in self.sums}

    def copy(self) -> Self:
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(self.__dict__)
        twin.sums = {name: array.copy() for name, array in self.sums.items()}
        return twin

    def __add__(self, other: Self) -> Self:
        if type(other) is not type(self) or other.models != self.models:
            raise TypeError(f"{self.name} cannot be added to a check of something else")
        total = self.copy()
        for name, array in total.sums.items():
            theirs = other.sums[name]
            if array.shape != theirs.shape:
                raise ValueError(f"{self.name}: {name} has {array.shape} and {theirs.shape}")
            if name in self.maxima:
                np.maximum(array, theirs, out=array)
            else:
                array += theirs
        return total
