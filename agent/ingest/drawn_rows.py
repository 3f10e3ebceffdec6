"""A row that was randomized elsewhere, as a record, and its candidates in their many spellings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from equipoise.agent.config.ingest import as_number, as_text
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown
from equipoise.store.batches import OutcomeBatch
from equipoise.store.records import Features, Id, Record, Seconds

SPELLINGS = frozenset({"probabilities", "drop_prob"})
"""Names that a row may use beside those of a record."""


class DrawnRow(Record, frozen=True, kw_only=True):
    """A row that was randomized elsewhere.

    model: that was drawn. features: value of every declared context feature by name, or the list of
    context columns. outputs: the same for output features; none where they are not known.
    candidates: probability of each model before the draw. propensity: of the drawn model, where
    that is all that is known. keep_prob: of keeping the row, in the log of a sample. routed: what
    would have been served without a draw. served: the model that answered, where it may be another
    than the one drawn. delivered: whether the answer reached the user. sticky: whether the model
    was kept from an earlier draw. reward: in the declared range, left out where none came.
    request_id: your name of the row. unit_id: who asked. at: when it was drawn, in seconds.
    unread: parts that came after the draw and could not be read, each with why; no row gives it.
    """

    model: Id
    features: Features
    outputs: Features = msgspec.field(default_factory=dict)
    candidates: dict[Id, float] | None = None
    propensity: float | None = None
    keep_prob: float | None = None
    routed: Id | None = None
    served: Id | None = None
    delivered: bool | None = None
    sticky: bool | None = None
    reward: float | None = None
    request_id: Id | None = None
    unit_id: Id | None = None
    at: Seconds | None = None
    unread: dict[str, str] = msgspec.field(default_factory=dict)

    @property
    def unit(self) -> str:
        """Who asked; the row itself where nobody is named."""
        return self.unit_id or self.request_id or ""


def as_candidates(name: str, value: Any) -> Any:
    """Names of candidates, or names with their probabilities, also as JSON text; None for none."""
    if isinstance(value, str):
        try:
            value = msgspec.json.decode(value) if value.strip() else None
        except msgspec.DecodeError:
            raise AgentError(f"{name}: {shown(value)} is neither a list nor a mapping") from None
    if value is None:
        return None
    if isinstance(value, Mapping):
        # Arrow and DuckDB give every row all keys of a struct, null where it has none.
        pairs = {as_text(name, key) or "": as_number(name, each) for key, each in value.items()}
        return {key: each for key, each in pairs.items() if each is not None}
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        return list(value)
    raise AgentError(f"{name}: {shown(value)} is neither a list nor a mapping")


def with_candidates(record: dict[str, Any], models: Mapping[str, str]) -> dict[str, Any]:
    """A record with one mapping of candidates to probabilities. models: the log's names to ours.

    What a log says of dropping a row is turned into the probability of keeping it. A list of
    probabilities follows the list of candidates; without one, candidates are called by
    their places: 0, 1, …
    """
    record = dict(record)
    if (dropped := record.pop("drop_prob", None)) is not None:
        record["keep_prob"] = 1.0 - dropped
    numbers, names = record.pop("probabilities", None), record.get("candidates")
    if isinstance(numbers, Mapping):
        names, numbers = numbers, None
    if numbers is not None:
        values = [as_number("probabilities", each) for each in numbers]
        names = range(len(values)) if names is None else list(names)
        if len(names) != len(values):
            raise AgentError(f"probabilities: {len(values)} numbers, of {len(names)} candidates")
        texts = [as_text("candidates", name) or "" for name in names]
        if len(set(texts)) < len(texts):
            raise AgentError(f"candidates: {shown(texts)} names one twice")
        names = dict(zip(texts, values, strict=True))
    record.pop("candidates", None)
    if isinstance(names, Mapping):
        for name, each in names.items():
            if each is None:
                raise AgentError(f"candidates: {shown(name)} has no probability")
        ours = {models.get(name, name): each for name, each in names.items()}
        if len(ours) < len(names):
            raise AgentError(f"candidates: two of {shown(list(names))} are one model")
        record["candidates"] = ours
    return record


def answered(part: OutcomeBatch) -> tuple[int, bool, int]:
    """What an outcome says of who answered: its attempt, whether it was delivered, and the model,
    -1 where it names none."""
    attempt = int(part.attempt[0])
    return attempt, bool(part.delivered[0]), int(part.served[0]) if attempt > 0 else -1
