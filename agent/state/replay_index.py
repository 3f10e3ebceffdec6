"""Index of replays (SIM) by context, and live requests matched with their replays.

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

from equipoise.store.batches import Flags, Floats, Ints


class ReplayIndex:
    """phi of every (context, model) replayed so far, up to `capacity` contexts.

    Rows beyond the capacity still count in the moments; requests on such contexts are then
    predicted by regression, like those that were never replayed.
    renewed: models that became another version, and the first decision after that. Replays of the
    versions before stay beside the models, for the decisions that were made on them.
    """

    def __init__(self, models: int, width: int, capacity: int = 200_000) -> None:
        self._capacity = capacity
        self._models = models
        self.renewed: list[tuple[int, int]] = []
        self._row: dict[int, int] = {}
        self._phi = np.zeros((64, models, width))
        self._has = np.zeros((64, models), dtype=bool)
        self._since = np.zeros((64, models), dtype=np.int64)

    def __len__(self) -> int:
        return len(self._row)

    @property
    def full(self) -> bool:
        """Whether a further context would not be kept."""
        return len(self._row) >= self._capacity

    def renew(self, model: int, number: int) -> None:
        """Know no replay of a model any more, from decision `number` on."""
        for name in ("_phi", "_has", "_since"):
            array = getattr(self, name)
            grown = np.concatenate([array, array[:, [model]]], axis=1)
            grown[:, model] = 0
            setattr(self, name, grown)
        self.renewed.append((model, number))

    def add(self, context: Ints, model: Ints, phi: Floats, since: int = 0) -> None:
        """Keep n rows: context, model (n,), phi (n, p - 1). since: the next decision's number."""
        rows = np.array([self._place(key) for key in context.tolist()], dtype=np.int64)
        kept = rows >= 0
        self._phi[rows[kept], model[kept]] = phi[kept]
        self._has[rows[kept], model[kept]] = True
        self._since[rows[kept], model[kept]] = since

    def lookup(self, context: Ints, model: Ints) -> tuple[Floats, Flags]:
        """phi (n, p - 1) of each (context, model), and (n,) whether it is known."""
        rows = self.rows(context)
        return self._phi[rows, model], self.has(rows, model)

    def rows(self, context: Ints) -> Ints:
        """(n,) row of each context, in order of first arrival; -1 where it was never replayed."""
        if (context == NO_CONTEXT).all() and NO_CONTEXT not in self._row:
            return np.full(len(context), -1)
        get = self._row.get
        return np.array([get(key, -1) for key in context.tolist()], dtype=np.int64)

    def has(self, rows: Ints, model: Ints) -> Flags:
        """(n,) whether the model was replayed on the context of each row."""
        known: Flags = self._has[rows, model] & (rows >= 0)
        return known

    def phi(self, rows: Ints, model: Ints) -> Floats:
        """(n, p - 1) of rows and models that were replayed."""
        phi: Floats = self._phi[rows, model]
        return phi

    def lookup_all(
        self, context: Ints, number: Ints, end: int | None = None
    ) -> tuple[Floats, Flags]:
        """phi (n, K, p - 1) of a context on every model, and (n, K) which were known when
        decision `number` (n,) was made. end: of decisions that got their numbers later than they
        were made, the number from which on nothing counts as known."""
        get = self._row.get
        rows = np.array([get(key, -1) for key in context.tolist()], dtype=np.int64)
        known = self._has[rows] & (rows >= 0)[:, None] & (self._since[rows] <= number[:, None])
        if end is not None:
            known &= self._since[rows] < end
        phi = self._phi[rows]
        for at in reversed(range(len(self.renewed))):
            model, first = self.renewed[at]
            before, column = number < first, self._models + at
            phi[before, model], known[before, model] = phi[before, column], known[before, column]
        return phi[:, : self._models], known[:, : self._models]

    def contexts(self, width: int, limit: int) -> Floats | None:
        """(n, width) heads of phi of up to `limit` contexts, evenly over their arrival.

        None where there is none.
        """
        size = len(self._row)
        if not size:
            return None
        rows = np.unique(np.linspace(0, size - 1, min(size, limit)).astype(np.int64))
        return np.ascontiguousarray(self._phi[rows, self._has[rows].argmax(axis=1), :width])

    def arrays(self) -> dict[str, Floats | Ints | Flags]:
        """The index as arrays for a checkpoint, in order of first arrival."""
        size = len(self._row)
        keys = np.fromiter(self._row, dtype=np.int64, count=size)
        return {
            "keys": keys,
            "phi": self._phi[:size],
            "has": self._has[:size],
            "since": self._since[:size],
        }

    def load(self, keys: Ints, phi: Floats, has: Flags, since: Ints) -> None:
        self._row = {key: row for row, key in enumerate(keys.tolist())}
        self._phi, self._has, self._since = phi.copy(), has.copy(), since.copy()
        if not len(self._phi):
            self._phi = np.zeros((64, *phi.shape[1:]))
            self._has = np.zeros((64, *has.shape[1:]), dtype=bool)
            self._since = np.zeros((64, *has.shape[1:]), dtype=np.int64)

    def _place(self, key: int) -> int:
        row = self._row.get(key)
        if row is not None:
            return row
        row = len(self._row)
        if row >= self._capacity:
            return -1
        if row == len(self._phi):
            self._phi = np.concatenate([self._phi, np.zeros_like(self._phi)])
            self._has = np.concatenate([self._has, np.zeros_like(self._has)])
            self._since = np.concatenate([self._since, np.zeros_like(self._since)])
        self._row[key] = row
        return row


MOST_AT_ONCE = 512
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
        index: ReplayIndex,
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

    def renew(self, model: int) -> None:
        """Start afresh with a model that became another version."""
        self._met[:, model] = False
        self._model[self._model == model] = -1

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

    def _called_for(self, index: ReplayIndex) -> tuple[Ints, Floats, Ints]:
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
