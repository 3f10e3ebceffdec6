"""Live requests and their replays, matched: what simulator fidelity compares.

A pair is a live response and a replay of the same context on the model that served it. Either may
come first: a live row meets replays that are known, and one that finds none waits, for a router
replays a share of its requests after it has served them. A (context, model) forms one pair at
most: its replay is one draw, and a second live row against it would count the same error twice.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.simulated import SimulationIndex
from equipoise.store.batches import Flags, Floats, Ints

MOST_AT_ONCE = 64
"""Pairs of one chunk of the log, the first to come; it bounds what the check costs."""
WAITING = 2048
"""Live rows that wait for a replay; the oldest make room."""
NO_CONTEXT = -1


class Pairs:
    """Which (context, model) have met, and the live rows that wait.

    models: K; width: F, the features of phi that are compared. Rows are taken chunk by chunk, so
    all of this is a function of the log.
    """

    def __init__(self, models: int, width: int) -> None:
        self._met: Flags = np.zeros((64, models), dtype=bool)
        self._context: Ints = np.zeros(WAITING, dtype=np.int64)
        self._model: Ints = np.full(WAITING, -1)
        self._phi: Floats = np.zeros((WAITING, width))
        self._taken = 0
        self._left = False

    def take(
        self,
        index: SimulationIndex,
        context: Ints,
        model: Ints,
        live: Callable[[Ints], Floats],
        replayed: bool,
    ) -> tuple[Ints, Floats, Ints]:
        """The pairs of a chunk: model (m,), live phi (m, F), row in the index (m,).

        context, model: (n,) live rows with outputs, in the order they were completed, and the
        model that served each; live: positions among them -> their phi; replayed: whether the
        index has grown since the last chunk.
        """
        nobody = np.zeros(0, dtype=np.int64)
        known_model, known_phi, known_row = nobody, self._phi[:0], nobody
        if replayed or self._left:
            known_model, known_phi, known_row = self._called_for(index)
        named = np.flatnonzero(context != NO_CONTEXT)
        if not len(named):
            return known_model, known_phi, known_row
        row = index.rows(context[named])
        has = index.has(row, model[named])
        fresh = self._first(row, model[named], has, MOST_AT_ONCE - len(known_model))
        alone = named[~has]
        if len(alone):
            self._wait(context[alone], model[alone], live(alone))
        if not len(fresh):
            return known_model, known_phi, known_row
        return (
            np.concatenate([known_model, model[named[fresh]]]),
            np.concatenate([known_phi, live(named[fresh])]),
            np.concatenate([known_row, row[fresh]]),
        )

    def copy(self) -> Self:
        twin = self.__class__.__new__(self.__class__)
        twin.__dict__.update(
            {
                name: value.copy() if isinstance(value, np.ndarray) else value
                for name, value in self.__dict__.items()
            }
        )
        return twin

    def arrays(self) -> dict[str, NDArray[Any]]:
        """The state by name, for a checkpoint."""
        size = min(self._taken, WAITING)
        return {
            "met": self._met,
            "taken": np.array([self._taken]),
            "left": np.array([self._left]),
            "context": self._context[:size],
            "model": self._model[:size],
            "phi": self._phi[:size],
        }

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        size, phi = len(arrays["context"]), arrays["phi"]
        if arrays["met"].shape[1:] != self._met.shape[1:] or phi.shape[1:] != self._phi.shape[1:]:
            raise ValueError(
                f"state of pairs has {arrays['met'].shape[1:]} models and {phi.shape[1:]} "
                f"features, must be {self._met.shape[1:]} and {self._phi.shape[1:]}"
            )
        self._met, self._taken = arrays["met"].copy(), int(arrays["taken"][0])
        self._left = bool(arrays["left"][0])
        self._model[:] = -1
        self._context[:size], self._model[:size] = arrays["context"], arrays["model"]
        self._phi[:size] = phi

    def _called_for(self, index: SimulationIndex) -> tuple[Ints, Floats, Ints]:
        """The waiting rows whose replay has come, oldest first; they wait no longer.

        Those beyond the most at once are left for the next chunk.
        """
        waits = np.flatnonzero(self._model >= 0)
        waits = waits[np.argsort((waits - self._taken) % WAITING, kind="stable")]
        row, model = index.rows(self._context[waits]), self._model[waits]
        has = index.has(row, model)
        fresh = self._first(row, model, has, MOST_AT_ONCE)
        result = model[fresh].copy(), self._phi[waits[fresh]], row[fresh]
        met = has.copy()
        met[has] = self._met[row[has], model[has]]
        self._model[waits[met]] = -1
        self._left = bool((has & ~met).any())
        return result

    def _first(self, row: Ints, model: Ints, has: Flags, most: int) -> Ints:
        """Positions of the first rows of pairs that have not met, marked as met; at most `most`."""
        if len(row) and int(row.max()) >= len(self._met):
            size = max(2 * len(self._met), int(row.max()) + 1)
            grown = np.zeros((size, self._met.shape[1]), dtype=bool)
            grown[: len(self._met)] = self._met
            self._met = grown
        at = np.flatnonzero(has)
        at = at[~self._met[row[at], model[at]]]
        _, first = np.unique(row[at] * self._met.shape[1] + model[at], return_index=True)
        at = at[np.sort(first)[: max(most, 0)]]
        self._met[row[at], model[at]] = True
        return at

    def _wait(self, context: Ints, model: Ints, phi: Floats) -> None:
        at = (self._taken + np.arange(len(context))) % WAITING
        self._context[at], self._model[at], self._phi[at] = context, model, phi
        self._taken += len(context)
