"""Rows to records, one at a time, each refusal with its reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from equipoise.agent.config.ingest import IngestMapping, Kind, parse_path
from equipoise.agent.config.log_values import (
    Rewards,
    as_feature,
    as_flag,
    as_number,
    as_seconds,
    as_text,
    as_whole,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.values import shown, suggestion
from equipoise.store.records import Observation, Outcome, Simulation, readable

Record: TypeAlias = Observation | Outcome | Simulation
Row: TypeAlias = Mapping[str, Any]

RECORDS: Mapping[Kind, type[Record]] = {
    "observations": Observation,
    "outcomes": Outcome,
    "simulations": Simulation,
}
_TEXTS = ("request_id", "decision_id", "unit_id", "context_id", "routed", "model", "served")
_MODELS = ("routed", "model", "served")
_encode = msgspec.json.Encoder(order="sorted").encode


def mapped(
    mapping: IngestMapping, schema: FeatureSchema, left_out: Counter[str] | None = None
) -> Callable[[Row], Record]:
    """The function that turns a row of the log into a record; it raises AgentError.

    A field whose path leads nowhere is left out; the record then says what it lacks. Values are
    read as what the field or the feature declares (`agent/config/log_values.py`).
    left_out: counts the parts of contents that are no text.
    """
    kind = RECORDS[mapping.kind]
    rewards = Rewards(mapping.rewards) if mapping.rewards else None
    counted = Counter() if left_out is None else left_out
    fields = [(name, parse_path(path)) for name, path in mapping.all_fields.items()]
    declared = {"features": schema.context, "outputs": schema.outputs}
    sides = [
        (
            side,
            {feature.name: type(feature).__name__ for feature in declared[side]},
            [(name, parse_path(path)) for name, path in getattr(mapping, side).items()],
        )
        for side in (("outputs",) if mapping.kind == "outcomes" else ("features", "outputs"))
    ]

    def read(row: Row) -> Record:
        record: dict[str, Any] = {}
        for name, path in fields:
            value = path.find(row)
            if name == "reward" and rewards is not None:
                value = rewards.find(value)
            else:
                value = _field(name, value)
            if value is not None:
                record[name] = mapping.models.get(value, value) if name in _MODELS else value
            elif name in ("routed", "model") and mapping.kind != "outcomes":
                raise AgentError(f"{name}: nothing at {path.text}")
        for side, kinds, paths in sides:
            found = {
                name: as_feature(kinds[name], name, path.find(row), counted) for name, path in paths
            }
            found = {name: value for name, value in found.items() if value is not None}
            if found or mapping.kind != "outcomes":
                record[side] = found
        return _convert(record, kind)

    return read


def nested(
    kind: Kind, schema: FeatureSchema, left_out: Counter[str] | None = None
) -> Callable[[Any], Record]:
    """As `mapped`, for JSON lines with our names: values may be spelled as in any other log."""
    sides = {
        "features": {feature.name: type(feature).__name__ for feature in schema.context},
        "outputs": {feature.name: type(feature).__name__ for feature in schema.outputs},
    }
    struct, counted = RECORDS[kind], Counter[str]() if left_out is None else left_out
    plain = {*struct.__struct_fields__} - {*sides, "metrics"}

    def read(row: Any) -> Record:
        if not isinstance(row, Mapping):
            return _convert(row, struct)
        record: dict[str, Any] = {}
        for name, value in row.items():
            given = value
            if name in plain:
                given = _field(name, value)
            elif name in sides and isinstance(value, Mapping):
                kinds = sides[name]
                # What we do not know is left as it is, to be refused by its name.
                values = {
                    key: as_feature(kinds[key], key, each, counted) if key in kinds else each
                    for key, each in value.items()
                }
                given = {key: each for key, each in values.items() if each is not None}
            if given is not None:
                record[name] = given
        return _convert(record, struct)

    return read


def flat(kind: Kind, schema: FeatureSchema) -> Callable[[Row], Record]:
    """As `mapped`, for tables with our names: x_NAME for features, y_NAME for outputs."""
    kinds = {
        prefix + feature.name: type(feature).__name__
        for prefix, features in (("x_", schema.context), ("y_", schema.outputs))
        for feature in features
    }
    struct, counted = RECORDS[kind], Counter[str]()
    known = {*struct.__struct_fields__, *kinds} - {"features", "outputs", "metrics"}

    def read(row: Row) -> Record:
        record: dict[str, Any] = {}
        for name, value in row.items():
            if value is None or value == "":
                continue
            if name in kinds:
                side = "features" if name.startswith("x_") else "outputs"
                given = as_feature(kinds[name], name, value, counted)
                if given is not None:
                    record.setdefault(side, {})[name[2:]] = given
                continue
            if name not in known:
                raise AgentError(f"column {shown(name)} is none: {suggestion(name, sorted(known))}")
            given = _field(name, value)
            if given is not None:
                record[name] = given
        if kind != "outcomes":
            record.setdefault("features", {})
            record.setdefault("outputs", {})
        return _convert(record, struct)

    return read


class Namer:
    """Names for observations that have none, so that a file that is read again counts once.

    A name is a digest of the row's content and a count of equal rows before it, over all files of
    one intake: the parts of a log that was cut in pieces stay apart, a file that has grown or was
    corrected is still the same, and nothing depends on where a row stands. What this cannot tell
    apart are rows of two intakes that are equal in everything that is read of them: give a time or
    an id where that is more than one request. It takes about a hundred bytes of memory a row.
    """

    def __init__(self) -> None:
        self._before: dict[bytes, int] = {}
        self._here: dict[bytes, int] = {}

    def begin(self, copy: bool = False) -> None:
        """A further file begins; copy: of the one before, whose rows it names again."""
        if not copy:
            for digest, count in self._here.items():
                self._before[digest] = self._before.get(digest, 0) + count
        self._here = {}

    def named(self, record: Observation) -> Observation:
        if record.request_id is not None:
            return record
        digest = blake2b(_encode(record), digest_size=12).digest()
        here = self._here.get(digest, 0)
        self._here[digest] = here + 1
        count = self._before.get(digest, 0) + here
        name = f"row-{digest.hex()}" + (f"-{count}" if count else "")
        return msgspec.structs.replace(record, request_id=name)


def _convert(record: Any, kind: type[Record]) -> Record:
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise AgentError(readable(error)) from None


def _field(name: str, value: Any) -> Any:
    if name in _TEXTS:
        return as_text(name, value)
    if name == "at":
        return as_seconds(name, value)
    if name == "delivered":
        return as_flag(name, value)
    return as_whole(name, value) if name == "attempt" else as_number(name, value)
