"""Which rows of a log are requests, and whose score is whose.

Gateways write a row for each attempt, each cache hit and each step of an agent, and ratings lie in
another file. Both need the log as a whole, so it is read twice: a survey, then the rows.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final, TypeAlias

import msgspec

from equipoise.agent.config.ingest import (
    IngestMapping,
    Rewards,
    as_number,
    as_seconds,
    as_text,
    parse_path,
)
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import listed, shown
from equipoise.agent.ingest.derived import ANSWERED, CACHED, FAILED, UNACTIVATED, find
from equipoise.agent.ingest.files import Source, from_json, is_cut, rows
from equipoise.agent.ingest.presets import PRESETS, fields_of, preset_rows

IDS = ("request_id", "response_id", "call_id", "trace")
"""Fields by whose ids a score may name a row."""
ANY: Final = ""
"""Instead of one of them, where a score does not say which."""
_KINDS: Final[Mapping[str, str]] = {
    "request_id": "request_id",
    "response_id": "response_id",
    "call_id": "call_id",
    "litellm_call_id": "call_id",
    "trace_id": "trace",
    "traceId": "trace",
}
"""What a score calls an id to which it is; subjects, targets and the like may be any."""
CACHE_HITS: Final = "cache hits"
ATTEMPTS: Final = "failed attempts of answered requests"
FAILURES: Final = "calls of requests that failed"
STEPS: Final = "earlier calls of requests"
CACHED_STEPS: Final = "calls of requests whose answer came from a cache"
COPIES: Final = "answers of another model, as caches hand them out (same id and time)"
EMPTY: Final = "traces without calls"
"""Why rows are no observations. A row that is none for another reason brings its own words."""
_TRACE_ID: Final = re.compile("(?:tr-)?(?:[0-9a-f]{32}|[0-9A-F]{32})")
AFTER_DRAW: Final = frozenset({CACHE_HITS, CACHED_STEPS, COPIES, ATTEMPTS, FAILURES, UNACTIVATED})
"""Of these what came after the draw of a row, if it was drawn."""
NO_TIME: Final = float("-inf")
EXAMPLES: Final = 3
Key: TypeAlias = "str | int"
Named: TypeAlias = tuple[str, str]
"""One of IDS or ANY, and the id as `normal` has it."""
"""A row: by its request_id, or by its place in the log where it has none."""


def decoded(row: Mapping[str, Any] | bytes | AgentError) -> Any:
    """A row as Python's. Raises AgentError where it is none."""
    if isinstance(row, AgentError):
        raise row
    if not isinstance(row, bytes):
        return row
    try:
        return msgspec.json.decode(row)
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        if not is_cut(row):
            raise AgentError(str(error)) from None
    try:
        return from_json(row)
    except (ValueError, RecursionError) as error:
        raise AgentError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Usage:
    """A row of the log after its preset.

    number: of the file's row. row: None where error says why there is none. reason: why it is no
    observation, None where it is one. reward: of a joined score.
    """

    number: int
    row: Any
    error: AgentError | None = None
    reason: str | None = None
    reward: float | None = None


@dataclass(slots=True)
class Joined:
    """What became of the rows of score files. joined: to an observation. superseded: by a later
    score of the same one. others: of another name than was asked for. left_out: of rows of the log
    that are no observations. unmatched: of no row at all. refused: with a reason each."""

    read: int = 0
    joined: int = 0
    superseded: int = 0
    others: int = 0
    left_out: int = 0
    unmatched: int = 0
    refused: int = 0


@dataclass(slots=True)
class _Score:
    at: float
    value: float


@dataclass(slots=True)
class _Last:
    """The last row under an id that holds an answer: when it came and which it is; cached: whether
    its answer was another one's."""

    at: float
    key: Key
    group: str | None
    cached: bool


@dataclass(frozen=True, slots=True)
class ScorePaths:
    """Where a row of scores says what it is about. id: the first that is there; `id` itself is the
    score's own in Langfuse and TensorZero, so it comes last. rewards: words to rewards."""

    id: str = (
        "subject.id | observationId | observation_id | target_id | request_id | response_id"
        " | call_id | litellm_call_id | generation_id | inference_id | EventId | trace_id"
        " | traceId | id"
    )
    value: str = "reward | score | value | rating | RewardValue"
    word: str = "stringValue | string_value"
    type: str = "dataType | data_type"
    name: str = "name | metric_name | metric"
    at: str = "timestamp | at | created_at | createdAt | time"
    rewards: Mapping[str, float] | None = None

    @classmethod
    def of(cls, mapping: IngestMapping) -> ScorePaths:
        """Of a table of outcomes. Raises AgentError where it names no id or no reward."""
        fields = fields_of(mapping)
        for name in ("request_id", "reward"):
            if mapping.kind != "outcomes" or name not in fields:
                raise AgentError(
                    f"--scores-from {mapping.name}: expected an [[ingest]] table of kind outcomes "
                    "with fields request_id and reward"
                )
        given = {"id": fields["request_id"], "value": fields["reward"]}
        if "at" in fields:
            given["at"] = fields["at"]
        return cls(**given, rewards=mapping.rewards)


class Scores:
    """Ratings of a second file, by the ids that they name.

    paths: where they are. name: which of several scores to take, such as "helpful"; files that hold
    more than one kind need it. refuse: takes the file, the row and the reason.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        paths: ScorePaths,
        name: str | None,
        refuse: Callable[[str, int, str], None],
    ) -> None:
        self.result = Joined()
        self.by_id: dict[Named, _Score] = {}
        self.files = ", ".join(source.name for source in sources)
        self._paths, self._name = paths, name
        self._rewards = Rewards(paths.rewards) if paths.rewards else None
        self._names = Counter[str]()
        self._ways = [replace(way, others=()) for way in parse_path(paths.id).ways]
        for source in sources:
            for number, row in rows(source.path, source.format, name=source.name):
                for each in _page(row):
                    self.result.read += 1
                    try:
                        self._add(decoded(each))
                    except AgentError as error:
                        self.result.refused += 1
                        refuse(source.name, number, str(error))
        names = listed(sorted(self._names))
        if name is not None and self._names and name not in self._names:
            raise AgentError(f"{self.files}: no score is called {shown(name)}; there are {names}")
        if name is None and len(self._names) > 1:
            raise AgentError(f"{self.files}: several scores, name one by --score: {names}")

    def _add(self, row: Any) -> None:
        if not isinstance(row, Mapping):
            raise AgentError("expected an object")
        paths = self._paths
        name = as_text("name", find(row, paths.name))
        if name is not None:
            self._names[name] += 1
            if self._name not in (None, name):
                self.result.others += 1
                return
        named = self._named(row)
        if named is None:
            raise AgentError(f"nothing at {paths.id}")
        value = find(row, paths.value)
        if str(find(row, paths.type)) in ("CATEGORICAL", "TEXT") and not isinstance(value, str):
            # Their number is the place of the word in a list, or always 0.
            value = find(row, paths.word)
        reward = as_number("score", value) if self._rewards is None else self._rewards.find(value)
        if reward is None:
            raise AgentError(f"nothing at {paths.value}")
        if not math.isfinite(reward):
            raise AgentError(f"score: {reward} is not a finite number")
        at = as_seconds("time", find(row, paths.at))
        score = _Score(NO_TIME if at is None else at, reward)
        known = self.by_id.get(named)
        if known is not None:
            self.result.superseded += 1
        # Of two at the same time, or without any, the one further down.
        if known is None or score.at >= known.at:
            self.by_id[named] = score

    def _named(self, row: Any) -> Named | None:
        """What a score is about: the first of its paths that leads to an id."""
        for way in self._ways:
            id_ = as_text("id", way.find(row))
            if id_ is not None:
                return _KINDS.get(way.columns[-1] if way.columns else "", ANY), normal(id_)
        return None


def normal(id_: str) -> str:
    """An id as it is compared: UUIDs and trace ids in small letters, as tables of them are
    written, and a trace id of MLflow (`tr-` before it) as that of its spans."""
    if len(id_) == 36 and id_.count("-") == 4:
        return id_.lower()
    return id_[-32:].lower() if _TRACE_ID.fullmatch(id_) else id_


def _page(row: Mapping[str, Any] | bytes | AgentError) -> Iterator[Any]:
    """The rows of a page of an API's answer, or the row."""
    if isinstance(row, bytes) and b'"data"' in row:
        try:
            row = decoded(row)
        except AgentError:
            yield row
            return
    page = row.get("data") if isinstance(row, Mapping) else None
    if isinstance(page, list):
        yield from page
    else:
        yield row


class Log:
    """The rows of files, each with whether it is an observation, and its score.

    mapping: None where the rows have our names. scores: None where there is no file of them.
    columns: those of a table that are needed, None for all.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        mapping: IngestMapping | None,
        scores: Scores | None = None,
        columns: set[str] | None = None,
    ) -> None:
        preset = None if mapping is None else PRESETS.get(mapping.preset or "")
        fields = {"request_id": "request_id"} if mapping is None else fields_of(mapping)
        self._preset, self._columns, self._scores = preset, columns, scores
        if preset is not None:
            fields = {**preset.fields, **fields}
        self._paths = {
            name: parse_path(path)
            for name, path in fields.items()
            if name in (*IDS, "at", "status")
        }
        written = () if preset is None else preset.written
        self._written = tuple(parse_path(path) for path in written)
        self._routed = parse_path(fields.get("routed", "model"))
        self._wrote: dict[int, int] = {}  # an answer, to the model of the first row that has it
        self._last: dict[str, _Last] = {}
        self._values: dict[Key, _Score] = {}
        self._place = 0
        if scores is not None or (preset is not None and preset.once is not None):
            self._survey(sources)
            self._place = 0

    def usages(self, source: Source) -> Iterator[Usage]:
        """The rows of one of the files; the files in the order in which they were given."""
        for usage, key, group in self._read(source):
            if usage.row is None:
                yield usage
                continue
            reason = usage.reason or self._reason(usage.row, key, group)
            score = None if reason is not None else self._values.get(key)
            reward = None if score is None else score.value
            yield Usage(usage.number, usage.row, reason=reason, reward=reward)

    def answers(self, source: Source) -> Iterator[Any]:
        """The rows of a file that hold an answer, for a look at their paths."""
        for number, each in rows(source.path, source.format, None, source.name):
            for usage in self._held(number, each):
                if usage.row is not None and self._status(usage.row) == ANSWERED:
                    yield usage.row

    def _read(self, source: Source) -> Iterator[tuple[Usage, Key, str | None]]:
        """Rows with their key and group."""
        once = None if self._preset is None else self._preset.once
        for number, each in rows(source.path, source.format, self._columns, source.name):
            for usage in self._held(number, each):
                self._place += 1
                if self._is_copy(usage):
                    usage = replace(usage, reason=COPIES)
                name = self._id(usage.row, "request_id")
                group = None if once is None else self._id(usage.row, once)
                yield usage, self._place if name is None else name, group

    def _is_copy(self, usage: Usage) -> bool:
        """Whether an earlier row holds the same answer, by another model."""
        if not self._written or usage.row is None or usage.reason is not None:
            return False
        answer = [path.find(usage.row) for path in self._written]
        model = self._routed.find(usage.row)
        if model is None or any(part is None for part in answer):
            return False
        # Numbers in place of texts: a log may have ten million rows.
        who = hash(repr(model))
        return self._wrote.setdefault(hash(repr(answer)), who) != who

    def _held(self, number: int, row: Any) -> Iterator[Usage]:
        try:
            row = decoded(row)
            held = [row] if self._preset is None else list(preset_rows(self._preset, row))
        except AgentError as error:
            yield Usage(number, None, error)
            return
        for each in held:
            if isinstance(each, AgentError):
                yield Usage(number, None, each)
            else:
                yield Usage(number, each)
        if not held:
            yield Usage(number, row, reason=EMPTY)

    def _survey(self, sources: Sequence[Source]) -> None:
        """The last row of every group with an answer in it, and the row that each score is of."""
        scores = {} if self._scores is None else self._scores.by_id
        named: dict[Named, _Last | None] = {}
        # A log without ids of a kind has them under another name; a trace is no request, though.
        anyhow = [ANY, *(name for name in IDS[:-1] if name not in self._paths)]
        examples: dict[str, list[str]] = {}
        for source in sources:
            for usage, key, group in self._read(source):
                if usage.row is None or usage.reason is not None:
                    continue
                status = self._status(usage.row)
                last = None
                if status in (ANSWERED, CACHED):
                    last = _Last(self._time(usage.row), key, group, status == CACHED)
                    if group is not None:
                        known = self._last.get(group)
                        if known is None or last.at >= known.at:
                            self._last[group] = last
                for name in IDS if scores else ():
                    id_ = self._id(usage.row, name)
                    kinds = [name, *anyhow]
                    if id_ is None and name == "response_id":
                        # Answers that were not kept: their ids are those of the requests.
                        id_, kinds = self._id(usage.row, "request_id"), [name]
                    if id_ is None:
                        continue
                    shown_ids = examples.setdefault(name, [])
                    if len(shown_ids) < EXAMPLES and id_ not in shown_ids:
                        shown_ids.append(id_)
                    for of in ((kind, normal(id_)) for kind in kinds):
                        if of not in scores:
                            continue
                        before = named.setdefault(of, None)
                        if last is None or last.cached:
                            continue
                        if before is None or last.at >= before.at:
                            named[of] = last
        if self._scores is not None:
            self._join(self._scores, named, examples)

    def _join(
        self,
        scores: Scores,
        named: Mapping[Named, _Last | None],
        examples: Mapping[str, Sequence[str]],
    ) -> None:
        result = scores.result
        for id_, score in scores.by_id.items():
            last = named.get(id_)
            if id_ not in named:
                result.unmatched += 1
            elif last is None or self._merged(last.key, last.group):
                result.left_out += 1
            else:
                known = self._values.get(last.key)
                if known is None:
                    result.joined += 1
                else:
                    result.superseded += 1
                if known is None or score.at >= known.at:
                    self._values[last.key] = score
        if scores.by_id and not named:
            theirs = ", ".join(shown(id_) for _, id_ in list(scores.by_id)[:EXAMPLES])
            ours = "; ".join(
                f"{name} {', '.join(map(shown, ids))}" for name, ids in examples.items()
            )
            raise AgentError(
                f"{scores.files}: no score is of a row of the log: scores name {theirs}; the log "
                f"has {ours or 'no ids'}"
            )

    def _merged(self, key: Key, group: str | None) -> bool:
        """Whether another row of its request stands for this one."""
        if self._preset is None or not self._preset.merged or group is None:
            return False
        last = self._last.get(group)
        return last is not None and last.key != key

    def _reason(self, row: Any, key: Key, group: str | None) -> str | None:
        """Why a row is no observation, None where it is one."""
        status = self._status(row)
        if status == FAILED:
            return ATTEMPTS if group is not None and group in self._last else FAILURES
        if status == CACHED:
            return CACHE_HITS
        if status != ANSWERED:
            return status
        if not self._merged(key, group):
            return None
        return CACHED_STEPS if self._last[group or ""].cached else STEPS

    def _status(self, row: Any) -> str:
        path = self._paths.get("status")
        status = None if path is None else path.find(row)
        return ANSWERED if status is None else str(status)

    def _id(self, row: Any, name: str) -> str | None:
        path = self._paths.get(name)
        try:
            return None if path is None or row is None else as_text(name, path.find(row))
        except AgentError:
            return None

    def _time(self, row: Any) -> float:
        path = self._paths.get("at")
        try:
            at = None if path is None else as_seconds("at", path.find(row))
        except AgentError:
            at = None
        return NO_TIME if at is None else at
