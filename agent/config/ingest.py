"""How a row of somebody's log becomes a record: the `[[ingest]]` tables, their paths, and values.

Every field of a real log has another spelling somewhere: numbers as text, `TRUE`, milliseconds,
contents in parts. The functions `as_*` take whatever a reader of JSON, CSV or Parquet gives, return
None where it says nothing (an empty cell, null, NaN), and raise AgentError where it says something
else than was asked for.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias
from uuid import UUID

import msgspec

from equipoise.agent.config.experiment import ExperimentConfig
from equipoise.agent.config.parts import Part
from equipoise.agent.errors import AgentError
from equipoise.agent.features.declarations import bound, unknown
from equipoise.agent.features.values import Problem, listed, shown, shown_sent

_STEP = re.compile(
    r"(?:^|\.)(?P<name>[^.\[\]]+)"
    r"|\[(?P<index>-?\d{1,9})\]"
    r"|\[(?P<key>[^.\[\]=]+)=(?P<value>[^\[\]]*)\]"
)
GRAMMAR = (
    "names joined by dots, [0] or [-1] for an entry of a list, [role=user] to choose entries; "
    "`a | b`: b where there is nothing at a"
)


@dataclass(frozen=True, slots=True)
class Chosen:
    """A step that keeps those entries of a list whose `key` is `value`."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"[{self.key}={self.value}]"


Step: TypeAlias = str | int | Chosen


@dataclass(frozen=True, slots=True)
class FieldPath:
    """Steps from a row to a value; build it with `parse_path`."""

    text: str
    steps: tuple[Step, ...]
    others: tuple[FieldPath, ...] = ()
    """Where to look when nothing stands at the first."""

    @property
    def ways(self) -> tuple[FieldPath, ...]:
        """Every path that it may be, in order."""
        return (self, *self.others)

    @property
    def columns(self) -> list[str]:
        """The columns of the row where it may start: `a` and `a.b` for `a.b[0]`."""
        names: list[str] = []
        for way in self.ways:
            start = ""
            for step in way.steps:
                if not isinstance(step, str):
                    break
                start = f"{start}.{step}" if start else step
                names.append(start)
        return names

    def leads(self, row: Any) -> bool:
        """Whether something is there, be it nothing but null."""
        return any(way.walk(row)[0] == len(way.steps) for way in self.ways)

    def find(self, row: Any) -> Any:
        """The value in a row of mappings and lists, None where there is none.

        A column may hold its mapping or list as JSON text, and flattened tables have the dots in
        the names of their columns.

        >>> turns = [{"role": "user", "content": "hi"}, {"role": "model", "content": "yes?"}]
        >>> parse_path("turns[role=user][-1].content").find({"turns": turns})
        'hi'
        >>> parse_path("usage.tokens").find({"usage": '{"tokens": 5}'})
        5
        >>> parse_path("usage.tokens").find({"usage.tokens": 5})
        5
        >>> parse_path("group | model").find({"group": "", "model": "large"})
        'large'
        """
        value = None
        for way in self.ways:
            steps, value = way.walk(row)
            value = value if steps == len(way.steps) else None
            if not self.others or not (value is None or value == ""):
                return value
        return value

    def walk(self, row: Any) -> tuple[int, Any]:
        """How many steps of the first way lead somewhere in this row, and what stands there."""
        place = 0
        while place < len(self.steps):
            step = self.steps[place]
            if isinstance(row, str):
                row = _decoded(row)
            if isinstance(step, str):
                name, end = step, place + 1
                if not isinstance(row, Mapping):
                    return place, row
                while name not in row:
                    following = self.steps[end] if end < len(self.steps) else None
                    if not isinstance(following, str):
                        return place, row
                    name, end = f"{name}.{following}", end + 1
                row, place = row[name], end
                continue
            if not isinstance(row, Sequence) or isinstance(row, str | bytes):
                return place, row
            if isinstance(step, int):
                if not -len(row) <= step < len(row):
                    return place, row
                row = row[step]
            else:
                entries = [each for each in row if _has(each, step)]
                if not entries and place + 1 < len(self.steps):
                    return place, row
                row = entries
            place += 1
        return place, row


def parse_path(text: str) -> FieldPath:
    """The path that `text` writes. Raises AgentError with the grammar."""
    first, *others = text.split(" | ")
    if others:
        return FieldPath(text, parse_path(first).steps, tuple(parse_path(each) for each in others))
    steps: list[Step] = []
    end = 0
    for match in _STEP.finditer(text):
        if match.start() != end:
            break
        end = match.end()
        if match["name"] is not None:
            steps.append(match["name"])
        elif match["index"] is not None:
            steps.append(int(match["index"]))
        else:
            steps.append(Chosen(match["key"], match["value"]))
    if end != len(text) or not steps or not isinstance(steps[0], str):
        raise AgentError(f"path {text[:60]!r} is not valid: expected {GRAMMAR}")
    return FieldPath(text, tuple(steps))


@lru_cache(maxsize=32)
def _decoded(text: str) -> Any:
    """The mapping or list that a text holds as JSON; the text itself where it holds none.

    A few are kept, since several paths of one row go through the same column.
    """
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return msgspec.json.decode(text)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return text


def _has(entry: Any, step: Chosen) -> bool:
    return isinstance(entry, Mapping) and str(entry.get(step.key)) == step.value


NOTHING = frozenset({"", "nan", "na", "n/a", "null", "none", r"\n"})
"""Texts that are no number and no answer; an id may be called so. \\N is that of PostgreSQL's COPY
and of MySQL, in the letters that texts are compared in."""
_YES = frozenset({"true", "yes", "t", "y"})
_NO = frozenset({"false", "no", "f", "n"})
_EXACT = 2**53
"""The first float that may be another whole number rounded: 2**53 + 1 reads as it."""
_TEXT_PARTS = frozenset({None, "text", "input_text", "output_text"})


def as_text(name: str, value: Any) -> str | None:
    """An id or a name. A column of numbers with a gap is a column of floats: 7.0 means "7"."""
    value = _plain(value)
    if value is None:
        return None
    if isinstance(value, str):
        return value.strip() or None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | Decimal):
        if not value.is_finite() if isinstance(value, Decimal) else not math.isfinite(value):
            raise AgentError(f"{name}: {shown_sent(value)} is not an id")
        if isinstance(value, float) and abs(value) >= _EXACT:
            raise AgentError(f"{name}: {shown_sent(value)} has lost digits: write such ids as text")
        return str(int(value)) if value == int(value) else str(value)
    if isinstance(value, bytes):
        try:
            return value.decode().strip() or None
        except UnicodeDecodeError:
            return value.hex()
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, int | UUID):
        return str(value)
    raise AgentError(f"{name}: {shown_sent(value)} is not text")


def as_number(name: str, value: Any) -> float | None:
    """A number, as number or text; true and false are 1 and 0, a span of time its seconds."""
    value = _plain(value)
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        word = value.strip().casefold()
        if word in NOTHING:
            return None
        # PostgreSQL's COPY writes t and f.
        if word in ("true", "t", "false", "f"):
            return float(word in ("true", "t"))
        try:
            # Python alone reads 1_000 as a number.
            number = math.nan if "_" in word else float(word)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise AgentError(f"{name}: {shown_sent(value)} is not a number")
        return number
    if value is None or isinstance(value, bool | int | float | Decimal):
        return _float(name, value)
    raise AgentError(f"{name}: {shown_sent(value)} is not a number")


def as_whole(name: str, value: Any) -> int | None:
    """A whole number."""
    number = as_number(name, value)
    if number is None or number.is_integer():
        return None if number is None else int(number)
    raise AgentError(f"{name}: {shown_sent(value)} is not a whole number")


def as_flag(name: str, value: Any) -> bool | None:
    """True or false, 1 or 0, yes or no, in any case of letters."""
    value = _plain(value)
    word = value.strip().casefold() if isinstance(value, str) else ""
    if value is None or (isinstance(value, str) and word in NOTHING):
        return None
    if word in _YES or word in _NO:
        return word in _YES
    try:
        number = as_number(name, value)
    except AgentError:
        number = None
    if number in (0.0, 1.0):
        return number == 1.0
    raise AgentError(f"{name}: {shown_sent(value)} is neither true nor false")


def as_seconds(name: str, value: Any) -> float | None:
    """Seconds since the epoch: of a number of seconds, milli-, micro- or nanoseconds, of ISO 8601
    text, or of a timestamp; UTC where nothing says otherwise.

    The units cannot be mixed up: 1e11 seconds are the year 5138, 1e11 milliseconds 1973. A text of
    eight digits is a date.
    """
    value = _plain(value)
    if isinstance(value, str):
        text = value.strip()
        if text.casefold() in NOTHING:
            return None
        try:
            value = _iso(text) if len(text) == 8 and text.isdecimal() else float(text)
        except ValueError:
            value = _iso(text)
        if value is None or (isinstance(value, float) and math.isnan(value)):
            raise AgentError(
                f"{name}: {shown_sent(text)} is not a time: expected seconds or ISO 8601"
            )
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | None):
        raise AgentError(f"{name}: {shown_sent(value)} is not a time: expected seconds or ISO 8601")
    if value is None:
        return None
    seconds = _float(name, value)
    for least, unit in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
        if seconds is not None and least < value <= 1e20:
            return seconds / unit
    return seconds


def as_words(name: str, value: Any, left_out: Counter[str]) -> str | None:
    """A text, or the texts of a content in parts, a line each. left_out: counts other parts."""
    value = _plain(value)
    if isinstance(value, Mapping):
        value = [value]
    if not isinstance(value, list | tuple):
        return value if isinstance(value, str) else as_text(name, value)
    texts = []
    for part in value:
        if isinstance(part, str):
            texts.append(part)
            continue
        if not isinstance(part, Mapping):
            raise AgentError(f"{name}: {shown_sent(part)} is not a part of a content")
        text = part.get("text")
        if isinstance(text, Mapping):
            text = text.get("value")
        if isinstance(text, str) and part.get("type") in _TEXT_PARTS:
            texts.append(text)
        else:
            left_out[str(part.get("type") or "no type")[:40]] += 1
    return "\n".join(texts)


def as_feature(kind: str, name: str, value: Any, left_out: Counter[str]) -> Any:
    """The value of a feature of this type, None where there is none."""
    if kind in ("Text", "Ngrams"):
        return as_words(name, value, left_out)
    if kind == "Category":
        return as_text(name, value)
    if kind == "Boolean":
        return as_flag(name, value)
    if kind == "Vector":
        return _vector(name, value)
    return as_number(name, value)


class Rewards:
    """A table of words to rewards: the words as text, whatever type the log gives them.

    true, "TRUE" and 1 are found under `true` as under `1`; 1, "1" and "1.0" under each other.
    """

    def __init__(self, table: Mapping[str, float]) -> None:
        self._exact = dict(table)
        self._words = {_word(key): reward for key, reward in table.items()}
        self._numbers = {
            number: reward
            for key, reward in table.items()
            if (number := _number_or_none(key)) is not None
        }

    def find(self, value: Any) -> float | None:
        """The reward, None where the value is nothing. Raises AgentError for any other word."""
        value = _plain(value)
        if value is None:
            return None
        if isinstance(value, str) and value in self._exact:
            return self._exact[value]
        word = _word(value) if isinstance(value, str | bool) else ""
        if word in self._words and (word or isinstance(value, str)):
            return self._words[word]
        if isinstance(value, str) and word in NOTHING:
            return None
        number = _number_or_none(value)
        if number is not None and number in self._numbers:
            return self._numbers[number]
        as_word = {1.0: "true", 0.0: "false"}.get(number) if number is not None else None
        if as_word in self._words:
            return self._words[as_word]
        raise AgentError(f"reward: {shown_sent(value)} is not one of {', '.join(self._exact)}")


def reward_faults(table: Mapping[str, float]) -> Iterator[Problem]:
    """Keys that are the same word and have two rewards."""
    seen: dict[object, str] = {}
    for key, reward in table.items():
        number = _number_or_none(key)
        same = _word(key) if number is None or _word(key) in ("true", "false") else number
        first = seen.setdefault(same, key)
        if table[first] != reward:
            limit = f"one reward for it, since it is the same as {shown(first)}"
            yield Problem("rewards", shown(key), limit, "remove one")


def _word(value: str | bool) -> str:
    return str(value).strip().casefold()


def _number_or_none(value: Any) -> float | None:
    try:
        return as_number("reward", value)
    except AgentError:
        return None


def _plain(value: Any) -> Any:
    """NumPy's and Arrow's scalars as Python's, NaN and NaT as nothing."""
    if type(value) in (str, bool, int, dict, list) or value is None:
        return value
    if hasattr(value, "as_py"):
        value = value.as_py()
    elif hasattr(value, "tolist"):
        value = value.tolist()
    try:
        return None if value != value else value
    except (ArithmeticError, ValueError):
        return value


def _float(name: str, value: bool | float | Decimal | None) -> float | None:
    if value is None:
        return None
    try:
        return float(value)
    except OverflowError:
        raise AgentError(f"{name}: {shown_sent(value)} is too large a number") from None


_ZONE = re.compile(r"(?<=\d) (UTC|GMT|Z|[+-]\d\d:?\d\d)(?: UTC)?$")
"""A zone after a space, as BigQuery, Snowflake, Ruby, Go and Rust write it."""


def _iso(text: str) -> datetime | None:
    zone = _ZONE.search(text)
    if zone is not None:
        text = text[: zone.start()] + (zone[1] if zone[1][0] in "+-" else "Z")
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return None


def _vector(name: str, value: Any) -> list[float | None] | None:
    value = _plain(value)
    if isinstance(value, str):
        if value.strip().casefold() in NOTHING:
            return None
        try:
            value = msgspec.json.decode(value)
        except msgspec.DecodeError:
            raise AgentError(f"{name}: {shown_sent(value)} is not a JSON list") from None
    if value is None or isinstance(value, list | tuple):
        return None if value is None else [as_number(name, each) for each in value]
    raise AgentError(f"{name}: {shown_sent(value)} is not a list of numbers")


Kind: TypeAlias = Literal["observations", "outcomes", "simulations", "decisions"]

FIELDS: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "observations": ("routed", "reward", "request_id", "unit_id", "at"),
        "outcomes": ("request_id", "decision_id", "reward", "served", "attempt", "delivered", "at"),
        "simulations": ("context_id", "model", "cost", "at"),
        "decisions": (
            *("model", "candidates", "probabilities", "propensity", "keep_prob", "drop_prob"),
            *("sticky", "routed", "served", "delivered", "reward", "request_id", "unit_id", "at"),
        ),
    }
)
"""What a mapping can fill beside features and outputs."""

PRESETS = (
    "litellm",
    "litellm-spend",
    "langfuse",
    "langfuse-traces",
    "tensorzero",
    "tensorzero-model",
    "helicone",
    "openrouter",
    "dsjson",
    "otlp",
    "lmsys-chat",
    "wildchat",
    "openai",
)
"""Logs that many people have, as `agent/ingest/presets.py` reads them.

A preset names rows by an id only where no two rows can share it. WildChat's conversation_hash is
one of the content, and the id of a response is served again with it from a cache; their rows are
named by their whole content, like all rows without an id (`Namer`). Where your ids are unique,
declare the path of `request_id`.
"""


_COVERAGE = bound(
    "a number above 0, at most 1", "leave it out where rows add up to 1", gt=0.0, le=1.0
)
How: TypeAlias = Literal["request", "unit", "unknown"]
"""How rows were drawn elsewhere: each for itself, each unit once, or nobody knows."""


class IngestMapping(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping by name.

    name: what `equipoise ingest --mapping` calls it. kind: of the records. preset: fields of a
    common log, which `fields` override. fields: name of a field to the path of its value. features:
    the same for context features. outputs: the same for outputs. models: the log's model names to
    ours, where they differ; rows of other models are rejected. rewards: values of the reward's
    column, as text, to rewards, where it holds words: `true` finds true, "TRUE" and 1, `1` finds
    "1.0" too. drawn: of `decisions`, how models were drawn: each `request` for itself with
    probabilities that were fixed before, each `unit` once, or `unknown`, which is never certified.
    shares: of `decisions`, the probability of each model where it never changed and rows do not say
    it. coverage: of `decisions`, the share of the traffic that was drawn at all, where the
    probabilities of a row add up to that and not to 1.
    """

    name: Annotated[str, bound("a name", "`equipoise ingest --mapping NAME`", min_length=1)]
    kind: Kind = "observations"
    preset: str | None = None
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    features: dict[str, str] = msgspec.field(default_factory=dict)
    outputs: dict[str, str] = msgspec.field(default_factory=dict)
    models: dict[str, str] = msgspec.field(default_factory=dict)
    rewards: dict[str, float] = msgspec.field(default_factory=dict)
    drawn: How | None = None
    shares: dict[str, float] = msgspec.field(default_factory=dict)
    coverage: Annotated[float, _COVERAGE] = 1.0

    @property
    def declared(self) -> dict[str, FieldPath]:
        """The paths that the user wrote, by what they fill; a preset's may be absent."""
        return {
            f"{table}.{name}": parse_path(path)
            for table in ("fields", "features", "outputs")
            for name, path in getattr(self, table).items()
        }

    def faults(self) -> Iterator[Problem]:
        yield from reward_faults(self.rewards)
        if self.preset is not None:
            yield from unknown("preset", self.preset, PRESETS)
        for name in self.fields:
            limit = f"a field of {self.kind}"
            yield from unknown("fields", name, FIELDS[self.kind], ("kind",), limit)
        for table in ("fields", "features", "outputs"):
            for name, path in getattr(self, table).items():
                try:
                    parse_path(path)
                except AgentError:
                    yield Problem(f"{table}.{name}", shown(path), f"a path: {GRAMMAR}")
        yield from self._draw_faults()

    def _draw_faults(self) -> Iterator[Problem]:
        if self.kind != "decisions":
            for name in ("drawn", "shares", "coverage"):
                if (value := getattr(self, name)) not in (None, {}, 1.0):
                    fix = 'set kind = "decisions"'
                    yield Problem(name, shown(value), "nothing, of other kinds", fix, ("kind",))
            return
        if self.drawn is None:
            limit = '"request", "unit" or "unknown": how each row was drawn'
            yield Problem("drawn", "nothing", limit, "declare it")
        if self.drawn == "unit" and self.preset is None and "unit_id" not in self.fields:
            limit = "a path, as draws by unit are counted by unit"
            yield Problem("fields.unit_id", "nothing", limit, "add it", ("drawn",))
        if self.shares and not abs(sum(self.shares.values()) - 1.0) <= 1e-9:
            yield Problem("shares", f"{sum(self.shares.values()):.9g} in all", "1 in all")
        for name, share in self.shares.items():
            if not 0.0 < share < 1.0:
                yield Problem(f"shares.{name}", shown(share), "a number above 0, below 1")


def mapping_faults(
    mappings: list[IngestMapping], experiment: ExperimentConfig
) -> Iterator[Problem]:
    """What only shows beside the experiment: models and features that it does not have."""
    declared = {"features": experiment.features.context, "outputs": experiment.features.outputs}
    mapping_names = [mapping.name for mapping in mappings]
    for at, mapping in enumerate(mappings):
        key = f"ingest[{at}]"
        if mapping_names.index(mapping.name) != at:
            yield Problem(f"{key}.name", shown(mapping.name), "each name once", "rename one")
        for theirs, ours in mapping.models.items():
            if ours not in experiment.model_names:
                limit = f"one of {listed(experiment.model_names)}"
                yield Problem(f"{key}.models", f"{shown(ours)} for {shown(theirs)}", limit)
        for name in mapping.shares:
            yield from unknown(f"{key}.shares", name, experiment.model_names, limit="a model")
        if mapping.drawn == "unit" and experiment.units is None:
            limit = "a ttl, as draws by unit are counted by unit"
            yield Problem("units", "nothing", limit, "add [units] with a ttl", (f"{key}.drawn",))
        for table, features in declared.items():
            mapped, names = getattr(mapping, table), [feature.name for feature in features]
            for name in mapped:
                limit = f"a name in features.{'context' if table == 'features' else 'outputs'}"
                yield from unknown(f"{key}.{table}", name, names, limit=limit)
            for feature in features:
                needed = feature.missing is None and mapping.kind != "outcomes"
                needed = needed and (table == "features" or mapping.kind != "decisions")
                if needed and feature.name not in mapped:
                    yield Problem(f"{key}.{table}.{feature.name}", "nothing", "a path", "add it")
