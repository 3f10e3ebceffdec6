"""Rows to records, one at a time, each refusal with its reason."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any, TypeAlias

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.agent.features.problems import shown
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.ingest.mapping import IngestMapping, Kind
from equipoise.agent.ingest.paths import parse_path
from equipoise.store.records import Observation, Outcome, Simulation

Record: TypeAlias = Observation | Outcome | Simulation
Row: TypeAlias = Mapping[str, Any]

RECORDS: Mapping[Kind, type[Record]] = {
    "observations": Observation,
    "outcomes": Outcome,
    "simulations": Simulation,
}
_TEXTS = ("request_id", "decision_id", "unit_id", "context_id", "routed", "model", "served")
_encode = msgspec.json.Encoder(order="sorted").encode


def mapped(mapping: IngestMapping) -> Callable[[Row], Record]:
    """The function that turns a row of the log into a record; it raises AgentError.

    A field whose path leads nowhere is left out; the record then says what it lacks. Times may be
    seconds since the epoch, ISO 8601 text, or timestamps of a Parquet file.
    """
    kind = RECORDS[mapping.kind]
    fields = [(name, parse_path(path)) for name, path in mapping.all_fields.items()]
    sides = [
        (side, [(name, parse_path(path)) for name, path in getattr(mapping, side).items()])
        for side in (("outputs",) if mapping.kind == "outcomes" else ("features", "outputs"))
    ]

    def read(row: Row) -> Record:
        record: dict[str, Any] = {}
        for name, path in fields:
            value = path.find(row)
            if value is not None:
                record[name] = _field(mapping, name, value)
            elif name in ("routed", "model", "reward") and mapping.kind != "outcomes":
                raise AgentError(f"{name}: nothing at {path.text}")
        for side, paths in sides:
            found = {name: path.find(row) for name, path in paths}
            found = {name: value for name, value in found.items() if value is not None}
            if found or mapping.kind != "outcomes":
                record[side] = found
        return _convert(record, kind)

    return read


def flat(kind: Kind, schema: FeatureSchema) -> Callable[[Row], Record]:
    """As `mapped`, for tables with our names: x_NAME for features, y_NAME for outputs.

    Texts, which are all that CSV has, become what the feature declares: numbers, true or false, or
    JSON for a vector.
    """
    kinds = {
        prefix + feature.name: type(feature).__name__
        for prefix, features in (("x_", schema.context), ("y_", schema.outputs))
        for feature in features
    }
    struct = RECORDS[kind]

    def read(row: Row) -> Record:
        record: dict[str, Any] = {}
        for name, value in row.items():
            if value is None or value == "":
                continue
            if name in kinds:
                side = "features" if name.startswith("x_") else "outputs"
                record.setdefault(side, {})[name[2:]] = _value(name, value, kinds[name])
            elif name in _TEXTS:
                record[name] = str(value)
            else:
                record[name] = _number(name, value)
        if kind != "outcomes":
            record.setdefault("features", {})
            record.setdefault("outputs", {})
        return _convert(record, struct)

    return read


class Namer:
    """Names for observations that have none, so that a file that is read again counts once.

    A name is a digest of the row's content and a count of equal rows before it; it takes about a
    hundred bytes of memory a row.
    """

    def __init__(self) -> None:
        self._seen: dict[bytes, int] = {}

    def named(self, record: Observation) -> Observation:
        if record.request_id is not None:
            return record
        digest = blake2b(_encode(record), digest_size=12).digest()
        count = self._seen.get(digest, 0)
        self._seen[digest] = count + 1
        name = f"row-{digest.hex()}" + (f"-{count}" if count else "")
        return msgspec.structs.replace(record, request_id=name)


def _convert(record: dict[str, Any], kind: type[Record]) -> Record:
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise AgentError(str(error)) from None


def _field(mapping: IngestMapping, name: str, value: Any) -> Any:
    if name in ("routed", "model", "served"):
        return mapping.models.get(str(value), str(value))
    if name == "reward" and mapping.rewards:
        if str(value) not in mapping.rewards:
            raise AgentError(f"reward: {shown(value)} is none of {', '.join(mapping.rewards)}")
        return mapping.rewards[str(value)]
    if name == "at":
        return _seconds(value)
    return str(value) if name in _TEXTS else value


def _seconds(value: Any) -> float:
    if isinstance(value, str):
        try:
            value = datetime.fromisoformat(value)
        except ValueError:
            raise AgentError(f"at: {shown(value)} is no time: seconds or ISO 8601") from None
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise AgentError(f"at: {shown(value)} is no time: seconds or ISO 8601")


def _value(name: str, value: Any, kind: str) -> Any:
    if not isinstance(value, str) or kind in ("Category", "Text"):
        return value
    if kind == "Vector":
        try:
            return msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise AgentError(f"{name}: {shown(value)} is no JSON list") from None
    return _number(name, value)


def _number(name: str, value: Any) -> Any:
    if not isinstance(value, str):
        return value
    if value in ("true", "false"):
        return value == "true"
    try:
        return float(value) if name != "attempt" else int(value)
    except ValueError:
        raise AgentError(f"{name}: {shown(value)} is no number") from None
