"""Rows of logs as records, each refusal with its reason."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from hashlib import blake2b
from typing import Any, Self, TypeAlias, TypeVar

import msgspec

from equipoise.agent.config.ingest import (
    Chosen,
    FieldPath,
    IngestMapping,
    Kind,
    Rewards,
    Step,
    as_feature,
    as_flag,
    as_number,
    as_seconds,
    as_text,
    as_whole,
    parse_path,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.features.schema import FeatureSchema
from equipoise.agent.features.values import LONGEST_SHOWN, shown, suggestion
from equipoise.agent.ingest.drawn_rows import SPELLINGS, DrawnRow, as_candidates, with_candidates
from equipoise.agent.ingest.draws import BeforeDrawError
from equipoise.agent.ingest.files import JSON_FORMATS, STANDARD_INPUT, Format, Source
from equipoise.agent.ingest.presets import Preset, fields_of
from equipoise.store.records import Observation, Outcome, Simulation, readable

_MOST_NAMES = 200


class Sightings:
    """Which paths lead somewhere in at least one row; what stood there where they do not.

    A path that matches no row is a typing error, or a column that is not in this file: its feature
    would be the same in every row, and nothing would say so. paths: by what they fill.
    """

    def __init__(self, paths: Mapping[str, FieldPath]) -> None:
        self._missing = dict(paths)
        self._farthest = dict.fromkeys(paths, -1)
        self._seen: dict[str, dict[str, None]] = {}
        self.rows = 0

    @property
    def complete(self) -> bool:
        """Whether every path was seen."""
        return not self._missing

    def add(self, row: Any) -> None:
        """Take a row into account."""
        self.rows += 1
        for label, path in list(self._missing.items()):
            if path.leads(row):
                del self._missing[label]
                continue
            depth, value = path.walk(row)
            if depth > self._farthest[label]:
                self._farthest[label], self._seen[label] = depth, {}
            if depth == self._farthest[label]:
                names = self._seen[label]
                for name in _names(value, path.steps[depth]):
                    if len(names) < _MOST_NAMES:
                        names[name] = None

    def check(self, source: str) -> None:
        """Raise AgentError where rows were seen and a path led nowhere in any of them."""
        if self._missing and self.rows:
            sentences = [self._sentence(label) for label in self._missing]
            raise AgentError(f"{source}: {'; '.join(sentences)}")

    def _sentence(self, label: str) -> str:
        path, depth = self._missing[label], max(self._farthest[label], 0)
        step, names = path.steps[depth], self._seen.get(label, {})
        text = f"{label}: no row has {path.text}"
        if not names:
            before = "".join(
                f".{each}"
                if isinstance(each, str)
                else f"[{each}]"
                if isinstance(each, int)
                else str(each)
                for each in path.steps[:depth]
            ).lstrip(".")
            return f"{text}: nothing stands at {before}" if before else text
        wanted = step.value if isinstance(step, Chosen) else step
        return f"{text}: {shown(wanted)} is not there; {suggestion(wanted, names)}"


def _names(there: Any, step: Step) -> list[str]:
    if isinstance(there, Mapping):
        return [str(name)[:LONGEST_SHOWN] for name in there]
    if isinstance(step, Chosen) and isinstance(there, Sequence):
        values = [each.get(step.key) for each in there if isinstance(each, Mapping)]
        return [str(name)[:LONGEST_SHOWN] for name in values if name is not None]
    return []


def check_paths(
    mapping: IngestMapping | None,
    sources: Sequence[Source],
    rows: Callable[[Source], Iterable[Any]],
    unchecked: Iterable[str] = (),
) -> None:
    """Raise AgentError where a path of the mapping leads nowhere in a whole file, naming what
    stands there instead. Reads no further than to the first row of each path; not standard input,
    which is looked at as it is read.

    rows: the rows of a file. unchecked: what may stay empty. Outcomes come in parts, and gateways
    begin a new file whenever they like (LiteLLM one a call), so their paths may be spread over the
    files.
    """
    if mapping is None:
        return
    together = mapping.kind == "outcomes" or mapping.preset is not None
    paths = {name: path for name, path in mapping.declared.items() if name not in set(unchecked)}
    sightings = Sightings(paths)
    for source in sources:
        if source.path == STANDARD_INPUT:
            continue
        if not together:
            sightings = Sightings(paths)
        for row in rows(source):
            sightings.add(row)
            if sightings.complete:
                break
        if not together:
            sightings.check(source.name)
    if together:
        sightings.check(", ".join(source.name for source in sources))


def columns_of(mapping: IngestMapping | None) -> set[str] | None:
    """The columns of a table that a mapping reads, None where it reads all."""
    if mapping is None or mapping.preset is not None:
        return None
    paths = (mapping.fields, mapping.features, mapping.outputs)
    return {name for table in paths for path in table.values() for name in parse_path(path).columns}


Record: TypeAlias = Observation | Outcome | Simulation | DrawnRow
Row: TypeAlias = Mapping[str, Any]

RECORDS: Mapping[Kind, type[Record]] = {
    "observations": Observation,
    "outcomes": Outcome,
    "simulations": Simulation,
    "decisions": DrawnRow,
}
_TEXTS = ("request_id", "decision_id", "unit_id", "context_id", "routed", "model", "served")
_MODELS = ("routed", "model", "served")
_encode = msgspec.json.Encoder(order="sorted").encode


def mapped(
    mapping: IngestMapping, schema: FeatureSchema, left_out: Counter[str] | None = None
) -> Callable[[Row], Record]:
    """The function that turns a row of the log into a record; it raises AgentError.

    A field whose path leads nowhere is left out; the record then says what it lacks. Values are
    read as what the field or the feature declares (`agent/config/ingest.py`).
    left_out: counts the parts of contents that are no text.
    """
    kind = RECORDS[mapping.kind]
    rewards = Rewards(mapping.rewards) if mapping.rewards else None
    counted = Counter() if left_out is None else left_out
    fields = [(name, parse_path(path)) for name, path in fields_of(mapping).items()]
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
        after = _After(kind)
        for name, path in fields:
            value = path.find(row)
            with after.part(name) as part:
                value = rewards.find(value) if name == "reward" and rewards else _field(name, value)
            if part in after.unread:
                continue
            if value is not None:
                record[name] = mapping.models.get(value, value) if name in _MODELS else value
            elif name in ("routed", "model") and mapping.kind != "outcomes":
                raise AgentError(f"{name}: nothing at {path.text}")
        for side, kinds, paths in sides:
            values = {}
            with after.part(side):
                values = {
                    name: as_feature(kinds[name], name, path.find(row), counted)
                    for name, path in paths
                }
            values = {name: value for name, value in values.items() if value is not None}
            if values or mapping.kind != "outcomes":
                record[side] = values
        return after.with_unread(_convert(record, kind, mapping.models))

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
    plain = {*struct.__struct_fields__} - {*sides, "metrics", "unread"}
    plain |= SPELLINGS if kind == "decisions" else set()

    def read(row: Any) -> Record:
        if not isinstance(row, Mapping):
            return _convert(row, struct)
        record: dict[str, Any] = {}
        after = _After(struct)
        for name, value in row.items():
            entry = value
            with after.part(name):
                if name in plain:
                    entry = _field(name, value)
                elif name in sides and isinstance(value, Mapping):
                    kinds = sides[name]
                    # What we do not know is left as it is, to be refused by its name.
                    values = {
                        key: as_feature(kinds[key], key, each, counted) if key in kinds else each
                        for key, each in value.items()
                    }
                    entry = {key: each for key, each in values.items() if each is not None}
            if entry is not None and name not in after.unread:
                record[name] = entry
        return after.with_unread(_convert(record, struct))

    return read


def flat(kind: Kind, schema: FeatureSchema) -> Callable[[Row], Record]:
    """As `mapped`, for tables with our names: x_NAME for features, y_NAME for outputs."""
    kinds = {
        prefix + feature.name: type(feature).__name__
        for prefix, features in (("x_", schema.context), ("y_", schema.outputs))
        for feature in features
    }
    struct, counted = RECORDS[kind], Counter[str]()
    names = {*struct.__struct_fields__, *kinds} - {"features", "outputs", "metrics"}
    names = names - {"unread"} | (SPELLINGS if kind == "decisions" else set())

    def read(row: Row) -> Record:
        record: dict[str, Any] = {}
        after = _After(struct)
        for name, value in row.items():
            if value is None or value == "":
                continue
            if name in kinds:
                side, entry = "features" if name.startswith("x_") else "outputs", None
                with after.part(side):
                    entry = as_feature(kinds[name], name, value, counted)
                if entry is not None:
                    record.setdefault(side, {})[name[2:]] = entry
                continue
            if name not in names:
                fix = suggestion(name, sorted(names))
                raise AgentError(f"column {shown(name)} is unknown: {fix}")
            entry = None
            with after.part(name):
                entry = _field(name, value)
            if entry is not None:
                record[name] = entry
        if kind != "outcomes":
            record.setdefault("features", {})
            record.setdefault("outputs", {})
        return after.with_unread(_convert(record, struct))

    return read


_AFTER_DRAW = ("reward", "served", "delivered", "outputs")


class _After:
    """Faults of what came after a draw: such a row stays, without the part that cannot be read.

    Of records that were not drawn elsewhere every fault refuses the row.
    """

    __slots__ = ("_drawn", "_part", "unread")

    def __init__(self, kind: type[Record]) -> None:
        self._drawn, self._part = kind is DrawnRow, ""
        self.unread: dict[str, str] = {}

    def part(self, name: str) -> Self:
        """Read a part of the row, inside a `with`."""
        self._part = name
        return self

    def __enter__(self) -> str:
        return self._part

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: object
    ) -> bool:
        if not self._drawn or not isinstance(error, AgentError):
            return False
        if self._part in _AFTER_DRAW:
            self.unread.setdefault(self._part, str(error))
            return True
        if self._part in ("features", "candidates", "probabilities", "at"):
            raise BeforeDrawError(str(error)) from None
        return False

    def with_unread(self, record: Record) -> Record:
        """The record, with what could not be read."""
        if isinstance(record, DrawnRow):
            if record.unread:
                raise AgentError("unread: no field of a row")
            if self.unread:
                return msgspec.structs.replace(record, unread=self.unread)
        return record


def reader(
    format_: Format,
    kind: Kind,
    schema: FeatureSchema,
    mapping: IngestMapping | None,
    left_out: Counter[str] | None = None,
) -> Callable[[Any], Record]:
    """The function that makes a record of a row as `Log` gives it; it raises AgentError."""
    if mapping is not None:
        return mapped(mapping, schema, left_out)
    if format_ in JSON_FORMATS:
        return nested(kind, schema, left_out)
    return flat(kind, schema)


Named = TypeVar("Named", bound=Observation | DrawnRow)


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

    def named(self, record: Named) -> Named:
        if record.request_id is not None:
            return record
        digest = blake2b(_encode(record), digest_size=12).digest()
        here = self._here.get(digest, 0)
        self._here[digest] = here + 1
        count = self._before.get(digest, 0) + here
        name = f"row-{digest.hex()}" + (f"-{count}" if count else "")
        return msgspec.structs.replace(record, request_id=name)


def _convert(record: Any, kind: type[Record], models: Mapping[str, str] | None = None) -> Record:
    if kind is DrawnRow and isinstance(record, dict):
        record = with_candidates(record, models or {})
    try:
        return msgspec.convert(record, kind)
    except msgspec.ValidationError as error:
        raise AgentError(readable(error)) from None


def _field(name: str, value: Any) -> Any:
    if name in _TEXTS:
        return as_text(name, value)
    if name == "at":
        return as_seconds(name, value)
    if name in ("delivered", "sticky"):
        return as_flag(name, value)
    if name in ("candidates", "probabilities"):
        return as_candidates(name, value)
    return as_whole(name, value) if name == "attempt" else as_number(name, value)


_BEFORE = ("prompt", "input_tokens", "streamed")
_AFTER = ("answer", "seconds", "cost", "input_tokens", "output_tokens", "streamed", "stopped")
"""What of a preset can fill context features, and what outputs."""
_TEXTS_OF_LOGS = ("prompt", "answer")
_ALIASES = {
    "question": "prompt",
    "response": "answer",
    "latency_seconds": "seconds",
    "cost_usd": "cost",
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "tokens": "output_tokens",
}


def fitted(preset: Preset, schema: FeatureSchema) -> IngestMapping:
    """A mapping of a preset to these features, each by its name where the log has such a thing."""
    sides: dict[str, dict[str, str]] = {"features": {}, "outputs": {}}
    for side, features, able in (
        ("features", schema.context, _BEFORE),
        ("outputs", schema.outputs, _AFTER),
    ):
        for feature in features:
            name = feature.name.casefold()
            name = _ALIASES.get(name, name)
            text = type(feature).__name__ in ("Text", "Ngrams")
            if name in able and name in preset.fields and text == (name in _TEXTS_OF_LOGS):
                sides[side][feature.name] = preset.fields[name]
    return IngestMapping(name=preset.name, preset=preset.name, **sides)  # type: ignore[arg-type]


def without_path(mapping: IngestMapping, schema: FeatureSchema) -> Iterator[tuple[str, bool]]:
    """The features that a mapping does not fill, as `features.NAME`; whether they need a path."""
    for side, features in (("features", schema.context), ("outputs", schema.outputs)):
        for feature in features:
            if feature.name not in getattr(mapping, side):
                yield f"{side}.{feature.name}", feature.missing is None


def as_table(
    preset: Preset, schema: FeatureSchema, models: Sequence[str], seen: Mapping[str, int]
) -> str:
    """The `[[ingest]]` table of a preset as TOML, to be edited. seen: the log's own names of
    models, with their rows."""
    mapping = fitted(preset, schema)
    lines = [f"# {preset.holds}: {preset.about}."]
    lines += ["[[ingest]]", f'name = "{preset.name}"', f'preset = "{preset.name}"', ""]
    lines += ["# What the preset reads; a line without its # replaces that.", "[ingest.fields]"]
    lines += [f"# {name} = {_quoted(path)}" for name, path in fields_of(mapping).items()]
    if "reward" not in fields_of(mapping):
        lines.append('# reward = "a path, unless scores come from a file by --scores"')
    lines += ["", "# The log's names of models to yours.", "[ingest.models]"]
    for name, count in seen.items():
        if name not in models:
            lines.append(f"# {_quoted(name)} = {_quoted(models[0])}  # {count:,} rows")
    lacking = dict(without_path(mapping, schema))
    for side in ("features", "outputs"):
        lines += ["", f"[ingest.{side}]"]
        lines += [
            f"{_quoted(name)} = {_quoted(path)}" for name, path in getattr(mapping, side).items()
        ]
        for label, needed in lacking.items():
            if label.startswith(f"{side}."):
                why = "a path is needed" if needed else "its declared missing value without a path"
                lines.append(f'# {_quoted(label.partition(".")[2])} = ""  # {why}')
    lines += ["", "# What features and outputs can be filled from:"]
    able = dict.fromkeys([*_BEFORE, *_AFTER])
    lines += [f"# {name}: {_quoted(preset.fields[name])}" for name in able if name in preset.fields]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
