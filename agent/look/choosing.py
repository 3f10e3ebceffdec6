"""Which column of a log is the model, the reward, the time: by a preset, by its name and content,
or as the user says; and which of the others were known before the model was chosen."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import msgspec

from equipoise.agent.config.ingest import NOTHING, as_number, as_seconds, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown, suggestion
from equipoise.agent.ingest.derived import DERIVED, GUESSED_BY
from equipoise.agent.ingest.presets import Preset
from equipoise.agent.look.values import ELSEWHERE, NAMES, REWARD_WORDS

Kind: TypeAlias = Literal["category", "number", "length", "tags"]
GUESSED = ("stream", "provider", "asked", "error")
"""By which the counts of LiteLLM are told from its guesses."""
ROLES = (
    *("model", "reward", "at", "unit", "cost", "ended", "seconds", "input_tokens"),
    *("output_tokens", "prompt", "status", "cached", "call", "unpriced", "propensity"),
    *GUESSED,
)
MOST_PATHS, DEEPEST, MOST_VALUES, MOST_EXAMPLES = 400, 6, 2001, 200
FEW = 40
"""Distinct values up to which a column of texts is one of categories."""
UNKNOWN = "numbers whose meaning is not known"
"""Not tested where no column is known as cost, seconds or reward: one of these may be it, and what
is known only after the answer would be tested as if it had been known before."""
MOST_LETTERS = 48
"""Letters on average up to which a text may be the name of a group."""
MOST_COLUMNS = 40
"""Columns that are tested; the first ones of a row come first."""
_THEIRS = {"model": "routed", "unit": "unit_id"}
"""What a preset calls what we call so."""
_LITELLM: Mapping[str, str] = MappingProxyType(
    {
        "model": "model_group | model",
        "at": "startTime",
        "ended": "endTime",
        "unit": "end_user | metadata.user_api_key_end_user_id | metadata.user_api_key_user_id",
        "cost": "response_cost | spend",
        "input_tokens": "prompt_tokens",
        "output_tokens": "completion_tokens",
        "status": "status | metadata.status",
        "cached": "cache_hit",
        "call": "call_type",
        "unpriced": "response_cost_failure_debug_info",
        **dict(zip(GUESSED, (*GUESSED_BY, "error_str"), strict=True)),
        "prompt": "messages",
    }
)
RAW = MappingProxyType({"litellm": _LITELLM, "litellm-spend": _LITELLM})
"""Where the rows of a preset hold what its own function works out of them, so that a row need not
become an object for it. That both say the same is tested."""


@dataclass
class Sighting:
    """What stood at one path in the rows that were looked at. keys: the names that lead there;
    plain: whether only mappings do, not JSON in a text. values: distinct ones, as counts."""

    keys: tuple[str, ...]
    plain: bool = True
    rows: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    values: Counter[Any] = field(default_factory=Counter)
    letters: int = 0

    @property
    def text(self) -> str:
        return ".".join(self.keys)

    @property
    def kind(self) -> str:
        """The most frequent one."""
        return self.kinds.most_common(1)[0][0] if self.kinds else "nothing"

    @property
    def distinct(self) -> int:
        return len(self.values)

    def numbers(self) -> list[float]:
        """The values as numbers; empty where one is none."""
        try:
            found = [as_number("", value) for value in self.values]
        except AgentError:
            return []
        return [number for number in found if number is not None]


class Sightings:
    """Every path of the rows that were looked at, up to MOST_PATHS."""

    def __init__(self) -> None:
        self.rows = 0
        self._known: set[tuple[str, ...]] = set()
        self.paths: dict[str, Sighting] = {}
        self.examples: list[Mapping[str, Any]] = []

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
        if len(self.examples) < MOST_EXAMPLES:
            self.examples.append(row)
        self._walk(row, (), True)

    def _walk(self, row: Mapping[str, Any], before: tuple[str, ...], plain: bool) -> None:
        for name, value in row.items():
            inner, inside = value, plain
            if type(value) is str and value[:1] in ("{", "["):
                try:
                    inner = msgspec.json.decode(value)
                    # A list is read from its text; what is below a mapping in a text is not plain.
                    inside = plain and type(inner) is not dict
                except (msgspec.DecodeError, UnicodeError, RecursionError):
                    pass
            keys = (*before, name)
            if type(inner) is dict and len(keys) < DEEPEST:
                self._walk(inner, keys, inside)
            elif keys in self._known or all(_PLAIN.fullmatch(str(each)) for each in keys):
                self._known.add(keys)
                self._see(keys, inside, inner)

    def _see(self, keys: tuple[str, ...], plain: bool, value: Any) -> None:
        text = ".".join(keys)
        sighting = self.paths.get(text)
        if sighting is None:
            if len(self.paths) >= MOST_PATHS:
                return
            sighting = self.paths[text] = Sighting(keys)
        sighting.plain &= plain
        if value is None or value == "" or (type(value) is float and not math.isfinite(value)):
            return
        sighting.rows += 1
        kind, counted = _content(value)
        sighting.kinds[kind] += 1
        if isinstance(value, str):
            sighting.letters += len(value)
        if counted in sighting.values or sighting.distinct < MOST_VALUES:
            sighting.values[counted] += 1


def _content(value: Any) -> tuple[str, Any]:
    if isinstance(value, bool):
        return "flag", value
    if isinstance(value, int | float):
        return "number", value
    if isinstance(value, timedelta):
        return "number", value.total_seconds()
    if isinstance(value, str):
        return "text", value[:200]
    if isinstance(value, list) and all(isinstance(each, str) for each in value):
        return "texts", tuple(each[:100] for each in value[:20])
    if isinstance(value, list | Mapping):
        return "parts", len(value)
    return ("time", value) if hasattr(value, "timestamp") else ("text", str(value)[:200])


@dataclass(frozen=True, slots=True)
class Column:
    """A column that was known before the model was chosen. path: where it is. kind: what becomes
    of it: a category, a number, the length of a text, or each of a list of tags."""

    path: str
    kind: Kind


@dataclass(frozen=True, slots=True)
class Chosen:
    """The paths of a log. preset: whose log it is; whole: whether its function has to see each row.
    roles: role to path. how: role to what the choice rests on. columns: that are tested; left_out:
    the others, with the reason. rewards: words of the reward to numbers. milliseconds: whether
    `seconds` are. unread: role to why the column of that name was not taken."""

    preset: Preset | None
    whole: bool
    roles: Mapping[str, str]
    how: Mapping[str, str]
    columns: Sequence[Column]
    left_out: Mapping[str, str]
    rewards: Mapping[str, float]
    milliseconds: bool
    unread: Mapping[str, str] = field(default_factory=dict)

    @property
    def paths(self) -> list[str]:
        return list(dict.fromkeys([*self.roles.values(), *(each.path for each in self.columns)]))


_AFTER = re.compile(
    r"respon|output|complet|answer|usage|cost|spend|price|usd|latenc|durat|second|elapsed|took|\bend"
    r"|ended|finish|error|exception|status|fail|cache|scor|rating|feedback|reward|thumb|eval|label"
    r"|overhead|attempt|retr(y|ies)|fallback|total_tokens|generated|guardrail|first_token|ttft"
)
_OF_MODEL = re.compile(
    r"model|provider|api_base|endpoint|deployment|engine|fingerprint|system$|backend|llm|vendor"
)
_IDS = re.compile(r"(^|[._])(id|uuid|guid|hash|trace_?id|span_?id|call_?id|request_?id|key)$", re.I)
_TOKENS = re.compile(r"tokens?(_|$)", re.I)
_CAMEL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_PLAIN = re.compile(r"[^.\[\]|\"\\\x00-\x1f]+(\.[^.\[\]|\"\\\x00-\x1f]+)*")
"""Names that a path can hold, and a field of a struct."""


def is_whole(preset: Preset | None) -> bool:
    """Whether every row has to become an object, for the preset's own function to see."""
    return preset is not None and preset.rows is not None and preset.name not in RAW


def choose(
    seen: Sightings,
    preset: Preset | None,
    given: Mapping[str, str],
    columns: Sequence[str],
    rewards: Mapping[str, float],
) -> Chosen:
    """The paths of a log whose rows were looked at. given: role to path, as the user says;
    columns: the paths to test and no others, all if empty.

    Raises AgentError where a path is in no row, or no model can be found, with the nearest names.
    """
    roles: dict[str, str] = {}
    how: dict[str, str] = {}
    for role, path in given.items():
        if path not in ("", "none"):
            known(seen, path, f"--{role}")
            roles[role], how[role] = path, "as you said"
            _readable(seen, role, path)
    for role in ROLES:
        if role in given or (role == "seconds" and "ended" in roles):
            continue
        there = None if preset is None else _of_preset(seen, preset, role)
        if there is not None and preset is not None:
            roles[role], how[role] = there, f"as in logs of {preset.name}"
        elif role in _CONTENTS and not (preset is not None and role in ("status", "cached")):
            guess = _by_name(seen, role, set(roles.values()), rewards)
            if guess is not None:
                roles[role], how[role] = guess, "by its name and values"
            elif role == "at" and preset is None and (dates := _dates(seen, roles)):
                roles[role], how[role] = dates, "by its values, which are dates"
    if "model" not in roles:
        taken = set(roles.values())
        paths = seen.paths.items()
        texts = [name for name, each in paths if each.kind == "text" and name not in taken]
        raise AgentError(
            "no column looks like a model: name it with --model PATH, such as"
            f" {', '.join(texts[:8]) or 'none of these rows, which hold no texts'}"
        )
    words = _words(seen, roles, rewards)
    tested, left_out = _columns(seen, preset, roles, columns)
    return Chosen(
        preset,
        is_whole(preset),
        roles,
        how,
        tested,
        left_out,
        words,
        _milliseconds(seen, roles),
        {
            role: why
            for role in ("at", "reward", "cost")
            if (why := _near(seen, role, roles, given))
        },
    )


def _near(seen: Sightings, role: str, roles: Mapping[str, str], given: Mapping[str, str]) -> str:
    """Why the column with the name of a role that no column has was not taken, "" if none is."""
    if role in roles or role in given:
        return ""
    for name in NAMES[role]:
        each = seen.paths.get(name)
        if each is None or not each.rows or name in roles.values():
            continue
        value = next(iter(each.values))
        if role == "reward":
            return f"say what the words of {name}, such as {shown(value)}, are worth with --rewards"
        what = "time" if role == "at" else "number"
        return f"{shown(value)} in {name} is no {what}: {expected(role, value)}"
    return ""


_EXPECTED: Mapping[str, str] = {
    "at": "expected ISO 8601, such as 2026-11-01T12:00:00Z, or seconds since 1970",
    "cost": "expected a number of USD, such as 0.012",
    "seconds": "expected a number, such as 1.5",
}
_DOTTED = re.compile(r"\s*\d{1,2}[./]\d{1,2}[./]\d{2,4}\b")


def _readable(seen: Sightings, role: str, path: str) -> None:
    """Raise AgentError where a column that the user named holds values, and none can be read."""
    what = {"at": "time"}.get(role, "number")
    fault = _unreadable(seen, role, path)
    if fault is not None:
        raise AgentError(f"--{role} {path}: {shown(fault)} is no {what}; {expected(role, fault)}")


def expected(role: str, value: Any) -> str:
    """What stands in a column of this role, for one in which this value stands."""
    words = _EXPECTED[role]
    if role == "at" and isinstance(value, str) and _DOTTED.match(value):
        return f"{words}: a date of day, month and year alone does not say which is which"
    return words


def _unreadable(seen: Sightings, role: str, path: str) -> Any:
    """A value of a path of which none can be read, or None."""
    if role not in ("at", "cost", "seconds"):
        # `_words` says what of a reward cannot be read.
        return None
    first = None
    for value in _values(seen, path):
        try:
            number = as_seconds("", value) if role == "at" else as_number("", value)
        except (AgentError, OverflowError, TypeError):
            number = None
            first = value if first is None else first
            continue
        if number is None:
            continue
        if role != "at" or 0.0 < number < 1e11:
            return None
        first = value if first is None else first
    return first


def _values(seen: Sightings, path: str) -> list[Any]:
    """Distinct values that were seen at a path, or what it leads to in the examples."""
    each = seen.paths.get(path)
    if each is not None and each.kind not in ("parts", "texts"):
        return list(each.values)
    steps = parse_path(path)
    return [value for row in seen.examples if (value := steps.find(row)) not in (None, "")]


def known(seen: Sightings, path: str, option: str) -> None:
    """Raise AgentError where no row has this path, with the nearest one that there is."""
    if path not in seen.paths and not _found(seen, path):
        fix = suggestion(path, seen.paths)
        raise AgentError(f"{option} {path}: no row has it; {fix}")


def _found(seen: Sightings, path: str) -> bool:
    steps = parse_path(path)
    return any(steps.find(row) not in (None, "") for row in seen.examples)


def _of_preset(seen: Sightings, preset: Preset, role: str) -> str | None:
    """The ways of the preset's path at which something was seen."""
    table = RAW.get(preset.name, preset.fields)
    if preset.name in RAW and role in ("status", "cached", "call", "unpriced", *GUESSED):
        # What is rare may be in none of the rows that were looked at.
        return table[role]
    ways = table.get(role if preset.name in RAW else _THEIRS.get(role, role), "").split(" | ")
    there = []
    for way in ways:
        sighting = seen.paths.get(way)
        if (sighting is not None and sighting.rows) or ("[" in way and _found(seen, way)):
            there.append(way)
    if role == "prompt" and there and "[" in there[0]:
        start = there[0].partition("[")[0]
        return start if start in seen.paths else there[0]
    return " | ".join(there) or None


def _by_name(
    seen: Sightings, role: str, taken: set[str], rewards: Mapping[str, float]
) -> str | None:
    """The path with the best name whose content can be of this role; a shallow one before a deep
    one."""
    ranked = []
    for name, each in seen.paths.items():
        if name in taken or not each.rows:
            continue
        last = _CAMEL.sub("_", each.keys[-1]).lower().replace("-", "_").replace(" ", "_")
        words = (*NAMES[role], *ELSEWHERE.get(role, ()))
        if last in words:
            rank = words.index(last)
        elif role in ("model", "reward", "cost") and any(
            last.endswith(f"_{word}") for word in words[:6]
        ):
            rank = len(words)
        else:
            continue
        worth = role == "reward" and any(str(value).strip() in rewards for value in each.values)
        if worth or _CONTENTS[role](each):
            ranked.append((len(each.keys) > 1 and role != "model", rank, len(each.keys), name))
    return min(ranked)[-1] if ranked else None


def _dates(seen: Sightings, roles: Mapping[str, str]) -> str | None:
    """The first column of times as texts, whatever its name."""
    for name, each in seen.paths.items():
        text = each.kind in ("text", "time") and each.distinct > 1 and not each.numbers()
        before = name not in roles.values() and not _AFTER.search(name.lower())
        if text and before and _is_time(each):
            return name
    return None


def _is_model(each: Sighting) -> bool:
    return each.kind == "text" and each.distinct <= max(2, each.rows // 3) and each.distinct <= 1000


def _is_reward(each: Sighting) -> bool:
    if each.kind in ("number", "flag"):
        return True
    words = {str(value).strip().casefold() for value in each.values} - NOTHING
    return bool(each.numbers()) or (bool(words) and words <= REWARD_WORDS.keys())


def _is_time(each: Sighting) -> bool:
    for value in list(each.values)[:20]:
        try:
            at = as_seconds("", value)
        except AgentError:
            return False
        if at is None or not 9e8 < at < 5e9:
            return False
    return bool(each.values)


def _is_number(each: Sighting) -> bool:
    return each.kind != "flag" and bool(each.numbers())


def _is_unit(each: Sighting) -> bool:
    return each.kind in ("text", "number") and each.distinct > 1


def _is_prompt(each: Sighting) -> bool:
    return each.kind in ("parts", "texts") or (
        each.kind == "text" and each.letters > 12 * each.rows and each.distinct > FEW
    )


def _is_chance(each: Sighting) -> bool:
    numbers = each.numbers() if each.kind != "flag" else []
    return bool(numbers) and 0.0 < min(numbers) < 1.0 and max(numbers) <= 1.0


def _is_few(each: Sighting) -> bool:
    return each.distinct <= FEW


_CONTENTS: Mapping[str, Callable[[Sighting], bool]] = {
    "model": _is_model,
    "reward": _is_reward,
    "unit": _is_unit,
    "prompt": _is_prompt,
    "propensity": _is_chance,
    **dict.fromkeys(("at", "ended"), _is_time),
    **dict.fromkeys(("cost", "seconds", "input_tokens", "output_tokens"), _is_number),
    **dict.fromkeys(("status", "cached"), _is_few),
}


def _words(
    seen: Sightings, roles: Mapping[str, str], given: Mapping[str, float]
) -> Mapping[str, float]:
    """Words of the reward to numbers; empty where they are numbers."""
    if given and "reward" not in roles:
        raise AgentError("--rewards: no column holds these words; name it with --reward")
    if given:
        values = [str(value).strip() for value in _values(seen, roles["reward"])]
        if values and not any(value in given for value in values):
            raise AgentError(
                f"--rewards {next(iter(given))}: no value of {roles['reward']} is one of these"
                f" words; it holds {', '.join(map(shown, values[:3]))}"
            )
        return given
    if "reward" not in roles or roles["reward"] not in seen.paths:
        return given
    each = seen.paths[roles["reward"]]
    if each.kind in ("number", "flag") or each.numbers():
        return {}
    words = {str(value).strip() for value in each.values if str(value).casefold() not in NOTHING}
    unknown = sorted(word for word in words if word.casefold() not in REWARD_WORDS)
    if unknown:
        raise AgentError(
            f"--reward {each.text}: {shown(unknown[0])} is no number; say what the words are worth"
            f" with --rewards, such as {unknown[0][:20]}=1"
        )
    return {word: REWARD_WORDS[word.casefold()] for word in words}


def _milliseconds(seen: Sightings, roles: Mapping[str, str]) -> bool:
    path = roles.get("seconds", "")
    if path.startswith(DERIVED):
        return False
    if re.search(r"(_|\b)(ms|millis|milliseconds)$", path.lower()):
        return True
    numbers = sorted(seen.paths[path].numbers()) if path in seen.paths else []
    # Half of all answers took longer than two minutes: these are no seconds.
    return bool(numbers) and numbers[len(numbers) // 2] > 120.0


def _columns(
    seen: Sightings, preset: Preset | None, roles: Mapping[str, str], named: Iterable[str]
) -> tuple[list[Column], dict[str, str]]:
    """The columns to test, and why the others are not."""
    tested: list[Column] = []
    left_out: dict[str, str] = {}
    names = list(named)
    for path in names:
        known(seen, path, "--column")
    prompt, unit = roles.get("prompt"), roles.get("unit")
    measured = preset is not None or any(role in roles for role in ("reward", "cost", "seconds"))
    for path, each in seen.paths.items():
        if names and path not in names:
            left_out[path] = "not named"
            continue
        reason = "" if names else reason_against(each, roles, seen.rows)
        kind = _kind(each)
        if not (reason or names or measured) and each.kind != "flag" and each.numbers():
            reason = UNKNOWN
        if path == prompt:
            reason, kind = "", "length"
        if path == unit and kind == "length":
            reason = "the user"
        if not reason and kind is None:
            reason = "an id"
        if reason or kind is None:
            if reason:
                left_out[path] = reason
            continue
        if len(tested) < MOST_COLUMNS:
            tested.append(Column(path, kind))
        else:
            left_out[path] = f"beyond the first {MOST_COLUMNS}"
    if prompt is None and not names and "input_tokens" in roles:
        tested.append(Column(roles["input_tokens"], "number"))
        left_out.pop(roles["input_tokens"], None)
    return tested, left_out


def reason_against(each: Sighting, roles: Mapping[str, str], rows: int) -> str:
    """Why a column is no candidate; "" where it is one."""
    for role, path in roles.items():
        # Whether a request is streamed is known before its model, whatever else it tells.
        if each.text in path.split(" | ") and role not in ("stream", "asked"):
            return {"unit": "the user", "at": "the time", "prompt": ""}.get(role, f"the {role}")
    name = each.text.lower()
    if not each.rows:
        return "empty"
    if each.distinct < 2 and each.rows == rows:
        return "the same in every row"
    if _AFTER.search(name) or each.keys[0] == DERIVED:
        return "known only after the answer"
    if _OF_MODEL.search(name) and each.kind != "texts":
        return "names the model"
    if _TOKENS.search(name):
        return "tokens, which each model counts in its own way"
    if _IDS.search(name) and each.distinct > FEW:
        return "an id"
    return ""


def _kind(each: Sighting) -> Kind | None:
    if each.kind == "texts":
        return "tags"
    if each.kind == "parts":
        return "length"
    if each.kind == "text" and each.letters > MOST_LETTERS * each.rows and not _is_time(each):
        # Texts that people or templates wrote: what tells them apart is no name of a group.
        return "length"
    if each.kind == "flag" or each.distinct <= FEW:
        return "category"
    if each.numbers():
        return "number"
    if each.distinct <= each.rows // 10:
        return "category"
    if each.kind == "time" or _is_time(each):
        return None
    if each.letters > 25 * each.rows and each.distinct > each.rows // 2:
        return "length"
    return None
