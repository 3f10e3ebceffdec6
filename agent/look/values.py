"""Values of a row, whatever their types, as codes, numbers, hashes and flags."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

import msgspec
import numpy as np

from equipoise.agent.config.ingest import FieldPath, as_flag, as_number
from equipoise.agent.errors import AgentError
from equipoise.store.batches import Floats

MOST_CODES = 1000
"""Distinct values of a column that are told apart; the rest count as one."""
NONE, OTHER = -1, -2
"""Codes of a value that is not there, and of all that are beyond MOST_CODES."""


NAMES: Mapping[str, Sequence[str]] = {
    "model": (
        *("model_group", "served_model", "served", "model", "model_name", "llm"),
        *("routed", "engine", "deployment", "variant_name", "arm", "action"),
    ),
    "reward": (
        *("reward", "rating", "score", "feedback", "thumb", "thumbs", "resolved", "success"),
        *("accepted", "correct", "label", "stars", "csat", "grade", "quality", "vote", "outcome"),
    ),
    "at": (
        *("timestamp", "created_at", "start_time", "created", "time", "at", "ts"),
        *("datetime", "date", "start", "requested_at", "request_time"),
    ),
    "ended": ("end_time", "ended_at", "completed_at", "finished_at"),
    "unit": (
        *("user_id", "user", "unit_id", "unit", "end_user", "customer_id", "customer"),
        *("account_id", "account", "session_id", "session", "hashed_ip", "client"),
        *("conversation_id", "subject"),
    ),
    "cost": ("cost", "cost_usd", "total_cost", "response_cost", "spend", "usd", "price"),
    "seconds": (
        *("latency", "latency_seconds", "latency_ms", "seconds", "duration", "duration_ms"),
        *("duration_seconds", "elapsed", "elapsed_ms", "elapsed_seconds", "response_time"),
        *("response_ms", "took", "took_ms"),
    ),
    "input_tokens": ("input_tokens", "prompt_tokens", "tokens_prompt", "tokens_in"),
    "output_tokens": ("output_tokens", "completion_tokens", "tokens_completion", "tokens_out"),
    "prompt": ("messages", "prompt", "question", "query", "input", "user_message", "text"),
    "status": ("status", "state", "status_code", "http_status"),
    "cached": ("cache_hit", "cached", "from_cache"),
    "propensity": ("propensity", "action_probability", "probability", "pscore", "prob"),
}
ELSEWHERE: Mapping[str, Sequence[str]] = {
    "model": ("modell", "modèle", "modele", "modelo"),
    "reward": ("bewertung", "évaluation", "evaluation", "valoración", "calificación"),
    "at": ("zeitpunkt", "zeitstempel", "zeit", "datum", "horodatage", "fecha"),
    "unit": ("nutzer", "benutzer", "kunde", "utilisateur", "usuario", "cliente"),
    "cost": ("kosten", "preis", "coût", "prix", "costo", "coste"),
    "seconds": ("dauer", "laufzeit", "durée", "duración"),
    "prompt": ("anfrage", "frage", "eingabe", "requête", "pregunta"),
}
"""The same in German, French and Spanish."""
REWARD_WORDS: Mapping[str, float] = {
    **dict.fromkeys(("up", "thumbs_up", "thumbsup", "like", "liked", "good", "positive"), 1.0),
    "👍": 1.0,
    **dict.fromkeys(("yes", "true", "accepted", "resolved", "correct", "pass", "success"), 1.0),
    **dict.fromkeys(("down", "thumbs_down", "thumbsdown", "dislike", "disliked", "bad"), 0.0),
    **dict.fromkeys(("negative", "👎", "no", "false", "rejected", "unresolved", "wrong"), 0.0),
    **dict.fromkeys(("incorrect", "fail", "failure"), 0.0),
}


class Codes(dict[Any, int]):
    """Values to codes in the order they come, up to MOST_CODES of them."""

    def __init__(self, most: int = MOST_CODES) -> None:
        super().__init__({None: NONE, "": NONE})
        self._most = most
        self.labels: list[Any] = []

    def __missing__(self, value: Any) -> int:
        if len(self.labels) >= self._most:
            return OTHER
        self[value] = code = len(self.labels)
        self.labels.append(value)
        return code

    def of(self, values: list[Any]) -> np.ndarray:
        try:
            return np.fromiter(map(self.__getitem__, values), np.int32, len(values))
        except TypeError:
            # A list or a mapping where others have a text.
            hashable = [
                tuple(map(str, value))
                if isinstance(value, list)
                else value
                if value.__hash__ is not None
                else str(value)[:200]
                for value in values
            ]
            return np.fromiter(map(self.__getitem__, hashable), np.int32, len(values))


def named(value: Any) -> Any:
    return value if isinstance(value, str) or value is None else str(value)[:200]


def length(value: Any) -> float:
    if value is None:
        return math.nan
    if isinstance(value, msgspec.Raw):
        size = len(memoryview(value))
        return math.nan if size <= 4 and bytes(value) == b"null" else float(size)
    return float(len(value) if isinstance(value, str) else len(msgspec.json.encode(value)))


def hashes(values: list[Any], count: int) -> np.ndarray:
    if not values:
        return np.zeros(count, np.int64)
    if any(isinstance(value, msgspec.Raw) for value in values):
        texts = (bytes(value) if isinstance(value, msgspec.Raw) else value for value in values)
        values = [None if text == b"null" else text for text in texts]
    try:
        found = np.fromiter(map(hash, values), np.int64, count)
    except TypeError:
        found = np.fromiter((hash(str(value)) for value in values), np.int64, count)
    found[[value is None or value == "" for value in values]] = 0
    return found


def told(
    values: list[Any], count: int, known: dict[Any, int], tell: Callable[[Any], int]
) -> np.ndarray:
    """A number for each row, worked out once for each distinct value."""
    numbers = np.zeros(count, np.int64)
    for at, value in enumerate(values):
        try:
            number = known.get(value)
        except TypeError:
            number = tell(value)
        if number is None:
            number = tell(value)
            if len(known) < MOST_CODES:
                known[value] = number
        numbers[at] = number
    return numbers


def forget_zeros(numbers: dict[str, Floats], unpriced: np.ndarray) -> None:
    """Zeros that stand for unknown become so, as in `presets`: every request has input, so 0
    tokens in and 0 out are those of a stream without usage, and its cost of 0 follows from that."""
    tokens_in, tokens_out = numbers.get("input_tokens"), numbers.get("output_tokens")
    if tokens_in is None or tokens_out is None:
        return
    unknown = (np.nan_to_num(tokens_in) == 0) & (np.nan_to_num(tokens_out) == 0)
    for tokens in (tokens_in, tokens_out):
        tokens[unknown] = math.nan
    if "cost" in numbers:
        free = (numbers["cost"] == 0) & (np.isnan(tokens_in) | unpriced)
        numbers["cost"][free] = math.nan


CHATS = ("completion", "responses", "anthropic_messages", "generate_content")
_FAILURES = ("fail", "error", "exception", "timeout", "timed_out", "refused", "cancel")


def is_failure(value: Any) -> bool:
    try:
        code = as_number("", value)
    except (AgentError, TypeError):
        return any(word in str(value).casefold() for word in _FAILURES)
    return code is not None and 400 <= code < 600


def flag(value: Any) -> int:
    try:
        return int(bool(as_flag("", value)))
    except (AgentError, TypeError):
        return int(str(value).casefold() in ("hit", "cached"))


class Place(Protocol):
    """Where a path leads: keys of mappings within one another; plain: without a text on the way."""

    @property
    def keys(self) -> tuple[str, ...]: ...
    @property
    def plain(self) -> bool: ...


class Fields:
    """A struct of nothing but the fields that are needed, and how to get at their values.

    Whatever else a line holds is skipped by the decoder and never becomes an object.
    """

    def __init__(
        self, paths: Mapping[str, FieldPath], raw: set[str], seen: Mapping[str, Place]
    ) -> None:
        tops = {each.keys[0] for each in seen.values()}
        ways = {way.text: way for steps in paths.values() for way in steps.ways}
        keys_of: dict[str, tuple[str, ...]] = {}
        # A top-level name is taken whole, and followed from there, where a path below it leads
        # through a list or through JSON in a text, or where its value is asked for, too.
        whole: set[str] = set()
        for text, way in ways.items():
            sighting = seen.get(text)
            if sighting is not None:
                keys_of[text] = sighting.keys
            elif all(isinstance(step, str) for step in way.steps):
                keys_of[text] = tuple(map(str, way.steps))
            else:
                names = FieldPath(text, way.steps).columns
                keys_of[text] = (next((name for name in names[::-1] if name in tops), names[0]),)
                whole.add(keys_of[text][0])
            if sighting is not None and not sighting.plain:
                whole.add(keys_of[text][0])
        known = set(keys_of.values())
        whole |= {keys[0] for keys in known for end in range(1, len(keys)) if keys[:end] in known}
        tree: dict[str, Any] = {}
        self._paths = paths
        self._ways: dict[str, tuple[tuple[str, ...], FieldPath | None]] = {}
        for text, keys in keys_of.items():
            if keys[0] in whole:
                tree[keys[0]] = object
                self._ways[text] = keys[:1], FieldPath(text, ways[text].steps)
                continue
            node = tree
            for key in keys[:-1]:
                node = node.setdefault(key, {})
            node[keys[-1]] = msgspec.Raw if text in raw else object
            self._ways[text] = keys, None
        self.decoder = msgspec.json.Decoder(_struct("Row", tree))
        self._names: dict[tuple[str, ...], Callable[[Any], Any]] = {}
        self._name(tree, ())

    def _name(self, tree: Mapping[str, Any], before: tuple[str, ...]) -> None:
        for at, (key, inner) in enumerate(tree.items()):
            self._names[(*before, key)] = attrgetter(f"f{at}")
            if isinstance(inner, dict):
                self._name(inner, (*before, key))

    def values(self, rows: list[Any]) -> dict[str, list[Any]]:
        """The values of every path in these rows, None where there is none."""
        found: dict[tuple[str, ...], list[Any]] = {(): rows}
        by_way = {}
        for text, (keys, rest) in self._ways.items():
            values = self._at(keys, found)
            if rest is not None:
                values = [rest.find({keys[0]: value}) for value in values]
            by_way[text] = values
        result = {}
        for path, steps in self._paths.items():
            values, *others = (by_way[way.text] for way in steps.ways)
            for more in others:
                values = [
                    other if value is None or value == "" else value
                    for value, other in zip(values, more, strict=True)
                ]
            # The caller may add to a list, and several paths may lead to one.
            result[path] = list(values)
        return result

    def _at(self, keys: tuple[str, ...], found: dict[tuple[str, ...], list[Any]]) -> list[Any]:
        """The values below these names. found: those that are known already.

        No inner function: one that calls itself is a cycle, and would keep the rows for ever.
        """
        if keys not in found:
            get, parents = self._names[keys], self._at(keys[:-1], found)
            if len(keys) == 1:
                found[keys] = list(map(get, parents))
            else:
                found[keys] = [None if row is None else get(row) for row in parents]
        return found[keys]


def _struct(name: str, tree: Mapping[str, Any]) -> type[msgspec.Struct]:
    fields, names = [], {}
    for at, (key, inner) in enumerate(tree.items()):
        kind = _struct(f"{name}{at}", inner) | None if isinstance(inner, dict) else inner
        default = msgspec.Raw(b"null") if kind is msgspec.Raw else None
        fields.append((f"f{at}", kind, default))
        names[f"f{at}"] = key
    return msgspec.defstruct(name, fields, rename=names, gc=False)
