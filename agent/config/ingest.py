"""How a row of somebody's log becomes a record: the `[[ingest]]` tables and their paths."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from types import MappingProxyType
from typing import Annotated, Any, Literal, TypeAlias

import msgspec

from equipoise.agent.config.experiment import ExperimentConfig
from equipoise.agent.config.log_values import reward_faults
from equipoise.agent.config.parts import Part
from equipoise.agent.errors import AgentError
from equipoise.agent.features.declarations import bound, unknown
from equipoise.agent.features.values import LONGEST_SHOWN, Problem, listed, shown, suggestion

_STEP = re.compile(
    r"(?:^|\.)(?P<name>[^.\[\]]+)"
    r"|\[(?P<index>-?\d{1,9})\]"
    r"|\[(?P<key>[^.\[\]=]+)=(?P<value>[^\[\]]*)\]"
)
GRAMMAR = "names joined by dots, [0] or [-1] for an entry of a list, [role=user] to choose entries"
_MOST_NAMES = 200


@dataclass(frozen=True, slots=True)
class Chosen:
    """A step that keeps those entries of a list whose `key` is `value`."""

    key: str
    value: str

    def __str__(self) -> str:
        return f"[{self.key}={self.value}]"


Step: TypeAlias = str | int | Chosen


@dataclass(frozen=True, slots=True)
class Path:
    """Steps from a row to a value; build it with `parse_path`."""

    text: str
    steps: tuple[Step, ...]

    @property
    def columns(self) -> list[str]:
        """The columns of the row where it may start: `a` and `a.b` for `a.b[0]`."""
        names: list[str] = []
        for step in self.steps:
            if not isinstance(step, str):
                break
            names.append(f"{names[-1]}.{step}" if names else step)
        return names

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
        """
        taken, value = self.walk(row)
        return value if taken == len(self.steps) else None

    def walk(self, row: Any) -> tuple[int, Any]:
        """How many steps lead somewhere in this row, and what stands there."""
        taken = 0
        while taken < len(self.steps):
            step = self.steps[taken]
            if isinstance(row, str):
                row = _decoded(row)
            if isinstance(step, str):
                name, end = step, taken + 1
                if not isinstance(row, Mapping):
                    return taken, row
                while name not in row:
                    following = self.steps[end] if end < len(self.steps) else None
                    if not isinstance(following, str):
                        return taken, row
                    name, end = f"{name}.{following}", end + 1
                row, taken = row[name], end
                continue
            if not isinstance(row, Sequence) or isinstance(row, str | bytes):
                return taken, row
            if isinstance(step, int):
                if not -len(row) <= step < len(row):
                    return taken, row
                row = row[step]
            else:
                kept = [each for each in row if _has(each, step)]
                if not kept and taken + 1 < len(self.steps):
                    return taken, row
                row = kept
            taken += 1
        return taken, row


def parse_path(text: str) -> Path:
    """The path that `text` writes. Raises AgentError with the grammar."""
    steps: list[Step] = []
    end = 0
    for found in _STEP.finditer(text):
        if found.start() != end:
            break
        end = found.end()
        if found["name"] is not None:
            steps.append(found["name"])
        elif found["index"] is not None:
            steps.append(int(found["index"]))
        else:
            steps.append(Chosen(found["key"], found["value"]))
    if end != len(text) or not steps or not isinstance(steps[0], str):
        raise AgentError(f"path {text[:60]!r} is none: expected {GRAMMAR}")
    return Path(text, tuple(steps))


class Sightings:
    """Which paths lead somewhere in at least one row; what stood there where they do not.

    A path that matches no row is a typing error, or a column that is not in this file: its feature
    would be the same in every row, and nothing would say so. paths: by what they fill.
    """

    def __init__(self, paths: Mapping[str, Path]) -> None:
        self._missing = dict(paths)
        self._farthest = dict.fromkeys(paths, -1)
        self._seen: dict[str, dict[str, None]] = {}
        self.rows = 0

    @property
    def complete(self) -> bool:
        """Whether every path was seen."""
        return not self._missing

    def look(self, row: Any) -> None:
        """Take a row into account."""
        self.rows += 1
        for label, path in list(self._missing.items()):
            taken, there = path.walk(row)
            if taken == len(path.steps):
                del self._missing[label]
                continue
            if taken > self._farthest[label]:
                self._farthest[label], self._seen[label] = taken, {}
            if taken == self._farthest[label]:
                names = self._seen[label]
                for name in _names(there, path.steps[taken]):
                    if len(names) < _MOST_NAMES:
                        names[name] = None

    def check(self, source: str) -> None:
        """Raise AgentError where rows were seen and a path led nowhere in any of them."""
        if self._missing and self.rows:
            sentences = [self._sentence(label) for label in self._missing]
            raise AgentError(f"{source}: {'; '.join(sentences)}")

    def _sentence(self, label: str) -> str:
        path, taken = self._missing[label], max(self._farthest[label], 0)
        step, names = path.steps[taken], self._seen.get(label, {})
        text = f"{label}: no row has {path.text}"
        if not names:
            before = "".join(
                f".{each}"
                if isinstance(each, str)
                else f"[{each}]"
                if isinstance(each, int)
                else str(each)
                for each in path.steps[:taken]
            ).lstrip(".")
            return f"{text}: nothing stands at {before}" if before else text
        wanted = step.value if isinstance(step, Chosen) else step
        return f"{text}: {shown(wanted)} is not there; {suggestion(wanted, names)}"


def _names(there: Any, step: Step) -> list[str]:
    if isinstance(there, Mapping):
        return [str(name)[:LONGEST_SHOWN] for name in there]
    if isinstance(step, Chosen) and isinstance(there, Sequence):
        found = [each.get(step.key) for each in there if isinstance(each, Mapping)]
        return [str(name)[:LONGEST_SHOWN] for name in found if name is not None]
    return []


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


Kind: TypeAlias = Literal["observations", "outcomes", "simulations"]

FIELDS: Mapping[Kind, tuple[str, ...]] = MappingProxyType(
    {
        "observations": ("routed", "reward", "request_id", "unit_id", "at"),
        "outcomes": ("request_id", "decision_id", "reward", "served", "attempt", "delivered", "at"),
        "simulations": ("context_id", "model", "cost", "at"),
    }
)
"""What a mapping can fill beside features and outputs."""

PRESETS: Mapping[str, Mapping[str, str]] = MappingProxyType(
    {
        "lmsys-chat": {"request_id": "conversation_id", "routed": "model"},
        "wildchat": {
            "routed": "model",
            "at": "timestamp",
            "unit_id": "conversation[0].hashed_ip",
        },
        "openai": {
            "routed": "request.model",
            "at": "response.created",
            "unit_id": "request.user",
        },
    }
)
"""Fields of logs that many people have. Their rewards are yours: name the column you joined.

lmsys-chat, wildchat: the Parquet files of LMSYS-Chat-1M and WildChat; the text of a prompt is
`conversation[role=user][0].content`, of an answer `conversation[role=assistant][0].content`.
openai: a line for each call with the bodies of the chat completions API under `request` and
`response`; the prompt is `request.messages[role=user][-1].content`, the answer
`response.choices[0].message.content`, its length `response.usage.completion_tokens`.

A preset names rows by an id only where no two rows can share it. WildChat's conversation_hash is
one of the content, and the id of a response is served again with it from a cache; their rows are
named by their whole content, like all rows without an id (`Namer`). Where your ids are unique,
declare the path of `request_id`.
"""


class IngestMapping(Part, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A mapping by name.

    kind: of the records. preset: fields of a common log, which `fields` override. fields, features,
    outputs: name to path (`agent/config/ingest.py`). models: the log's model names to ours, where
    they differ; rows of other models are rejected. rewards: values of the reward's column, as
    text, to rewards, where it holds words: `true` finds true, "TRUE" and 1, `1` finds "1.0" too.
    """

    name: Annotated[str, bound("a name", "`equipoise ingest --mapping NAME`", min_length=1)]
    kind: Kind = "observations"
    preset: str | None = None
    fields: dict[str, str] = msgspec.field(default_factory=dict)
    features: dict[str, str] = msgspec.field(default_factory=dict)
    outputs: dict[str, str] = msgspec.field(default_factory=dict)
    models: dict[str, str] = msgspec.field(default_factory=dict)
    rewards: dict[str, float] = msgspec.field(default_factory=dict)

    @property
    def all_fields(self) -> dict[str, str]:
        """Fields with those of the preset."""
        taken = FIELDS[self.kind]
        preset = PRESETS.get(self.preset or "", {})
        return {name: path for name, path in preset.items() if name in taken} | self.fields

    @property
    def declared(self) -> dict[str, Path]:
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


def mapping_faults(
    mappings: list[IngestMapping], experiment: ExperimentConfig
) -> Iterator[Problem]:
    """What only shows beside the experiment: models and features that it does not have."""
    declared = {"features": experiment.features.context, "outputs": experiment.features.outputs}
    taken = [mapping.name for mapping in mappings]
    for at, mapping in enumerate(mappings):
        key = f"ingest[{at}]"
        if taken.index(mapping.name) != at:
            yield Problem(f"{key}.name", shown(mapping.name), "each name once", "rename one")
        for theirs, ours in mapping.models.items():
            if ours not in experiment.model_names:
                limit = f"one of {listed(experiment.model_names)}"
                yield Problem(f"{key}.models", f"{shown(ours)} for {shown(theirs)}", limit)
        for table, features in declared.items():
            mapped, names = getattr(mapping, table), [feature.name for feature in features]
            for name in mapped:
                limit = f"a name in features.{'context' if table == 'features' else 'outputs'}"
                yield from unknown(f"{key}.{table}", name, names, limit=limit)
            for feature in features:
                needed = feature.missing is None and mapping.kind != "outcomes"
                if needed and feature.name not in mapped:
                    yield Problem(f"{key}.{table}.{feature.name}", "nothing", "a path", "add it")
