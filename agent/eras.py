"""Eras: spans of the log within which certified sums belong together.

A change of what is compared (a model taken out, a new version) and an accepted drift alarm start a
new one. Nothing is silently forgotten inside a sequence, and nothing is carried into the next.
"""

from __future__ import annotations

import msgspec
import numpy as np

from equipoise.store.batches import Flags
from equipoise.store.contract import Store
from equipoise.store.records import Era

DRIFT = "drift"
"""How the reason of an era begins that a drift alarm opened."""


class Eras:
    """The eras of one store. models: (K,) names in the order of their positions."""

    def __init__(self, store: Store, models: tuple[str, ...]) -> None:
        self._store = store
        self._models = models

    @property
    def newest(self) -> Era | None:
        eras = self._store.eras()
        return eras[-1] if eras else None

    def reason(self, era: int) -> str:
        """Why an era was opened, "" where the store does not say."""
        return next((e.reason for e in self._store.eras() if e.era == era), "")

    def active(self, era: int) -> Flags:
        """(K,) the models that an era compares; none that came after it."""
        text = self._store.settings().get(f"active:{era}")
        if text is not None:
            names = msgspec.json.decode(text, type=list[str])
        else:
            names = next((e.models for e in self._store.eras() if e.era == era), [])
        return np.array([name in names for name in self._models])

    def added(self) -> Flags:
        """(K,) models that the newest era did not know."""
        newest = self.newest
        known = self._models if newest is None else newest.models
        return np.array([name not in known for name in self._models])

    def keep_active(self, era: int, active: Flags) -> None:
        """Keep which models an era compares."""
        names = [name for name, on in zip(self._models, active.tolist(), strict=True) if on]
        self._store.freeze(f"active:{era}", msgspec.json.encode(names).decode())

    def open(self, era: int, reason: str, at: float, active: Flags, like: Era) -> None:
        """Open an era. like: the one before it, whose key and schema stay."""
        record = Era(
            era=era,
            opened_at=at,
            reason=reason,
            models=list(self._models),
            key_hash=like.key_hash,
            schema_hash=like.schema_hash,
        )
        self._store.put(record)
        # After the era: if the process ends in between, the era compares every model, and what
        # asked for fewer (a guardrail) asks again.
        self.keep_active(era, active)
