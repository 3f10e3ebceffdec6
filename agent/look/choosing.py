"""Which column of a log is the model, the reward, the time: by a preset, by its name and content,
or as the user says; and which of the others were known before the model was chosen.

A guess is always said, with what it rests on, so that it can be overruled.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal, TypeAlias

import msgspec

from equipoise.agent.config.ingest import NOTHING, as_number, as_seconds, parse_path
from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import shown, suggestion

Kind: TypeAlias = Literal["category", "number", "length", "tags"]
ROLES = (
    *("model", "reward", "at", "unit", "cost", "ended", "seconds"),
    *("input_tokens", "output_tokens", "prompt", "status", "cached"),
)
MOST_PATHS, DEEPEST, MOST_VALUES = 400, 6, 2001
FEW = 40
"""Distinct values up to which a column of texts is one of categories."""
MOST_COLUMNS = 40
"""Columns that are tested; the first ones of a row come first."""


@dataclass(frozen=True, slots=True)
class Preset:
    """A log that many people have. fields: role to the paths it may be at, the first that is there
    counts. signs: paths that rows of this shape have, all of them. why: which rows could be
    randomized, and why the rest is not."""

    name: str
    fields: Mapping[str, Sequence[str]]
    signs: Sequence[str]
    why: str


_LITELLM = {
    "model": ("model_group", "model"),
    "at": ("startTime",),
    "ended": ("endTime",),
    "unit": ("metadata.user_api_key_user_id", "end_user", "user"),
    "input_tokens": ("prompt_tokens",),
    "output_tokens": ("completion_tokens",),
    "status": ("status",),
    "cached": ("cache_hit",),
    "prompt": ("messages",),
}
PRESETS: Mapping[str, Preset] = MappingProxyType(
    {
        preset.name: preset
        for preset in (
            Preset(
                "equipoise",
                {
                    "model": ("routed",),
                    "reward": ("reward",),
                    "at": ("at",),
                    "unit": ("unit_id",),
                    "cost": ("outputs.cost", "cost"),
                    "seconds": ("outputs.seconds",),
                    "output_tokens": ("outputs.tokens",),
                },
                ("routed", "features"),
                "a usage row names no draw",
            ),
            Preset(
                "litellm",
                {**_LITELLM, "cost": ("response_cost",)},
                ("model_group", "response_cost", "startTime"),
                "the weights of a router are no propensities: retries, cooldowns and fallbacks"
                " choose again",
            ),
            Preset(
                "litellm-spend",
                {**_LITELLM, "cost": ("spend",), "unit": ("end_user", "user", "api_key")},
                ("model_group", "spend", "startTime"),
                "the weights of a router are no propensities: retries, cooldowns and fallbacks"
                " choose again",
            ),
            Preset(
                "openai",
                {
                    "model": ("request.model",),
                    "at": ("response.created",),
                    "unit": ("request.user", "request.safety_identifier"),
                    "input_tokens": ("response.usage.prompt_tokens",),
                    "output_tokens": ("response.usage.completion_tokens",),
                    "prompt": ("request.messages",),
                },
                ("request.model", "response.usage"),
                "a call of the interface names no draw",
            ),
        )
    }
)


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
        found = []
        for value in self.values:
            try:
                number = as_number("", value)
            except AgentError:
                return []
            if number is not None:
                found.append(number)
        return found


class Sightings:
    """Every path of the rows that were looked at, up to MOST_PATHS."""

    def __init__(self) -> None:
        self.rows = 0
        self._known: set[tuple[str, ...]] = set()
        self.paths: dict[str, Sighting] = {}

    def add(self, row: Mapping[str, Any]) -> None:
        self.rows += 1
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
        if value is None or value == "":
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
    """The paths of a log. roles: role to path. how: role to what the choice rests on. columns: that
    are tested; left_out: the others, with the reason. rewards: words of the reward to numbers.
    scale: of seconds."""

    preset: Preset | None
    roles: Mapping[str, str]
    how: Mapping[str, str]
    columns: Sequence[Column]
    left_out: Mapping[str, str]
    rewards: Mapping[str, float]
    milliseconds: bool

    @property
    def paths(self) -> list[str]:
        return list(dict.fromkeys([*self.roles.values(), *(each.path for each in self.columns)]))


_NAMES: Mapping[str, Sequence[str]] = {
    "model": (
        *("model_group", "served_model", "served", "model", "model_name", "modelname", "llm"),
        *("routed", "engine", "deployment", "variant_name", "arm", "action"),
    ),
    "reward": (
        *("reward", "rating", "score", "feedback", "thumb", "thumbs", "resolved", "success"),
        *("accepted", "correct", "label", "stars", "csat", "grade", "quality", "vote", "outcome"),
    ),
    "at": (
        *("timestamp", "created_at", "start_time", "starttime", "created", "time", "at", "ts"),
        *("datetime", "date", "start", "requested_at", "request_time"),
    ),
    "ended": ("end_time", "endtime", "ended_at", "completed_at", "finished_at"),
    "unit": (
        *("user_id", "userid", "user", "unit_id", "unit", "end_user", "customer_id", "customer"),
        *("account_id", "account", "session_id", "sessionid", "session", "hashed_ip", "client"),
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
}
REWARD_WORDS: Mapping[str, float] = {
    **dict.fromkeys(("up", "thumbs_up", "thumbsup", "like", "liked", "good", "positive"), 1.0),
    "👍": 1.0,
    **dict.fromkeys(("yes", "true", "accepted", "resolved", "correct", "pass", "success"), 1.0),
    **dict.fromkeys(("down", "thumbs_down", "thumbsdown", "dislike", "disliked", "bad"), 0.0),
    **dict.fromkeys(("negative", "👎", "no", "false", "rejected", "unresolved", "wrong"), 0.0),
    **dict.fromkeys(("incorrect", "fail", "failure"), 0.0),
}
_AFTER = re.compile(
    r"respon|output|complet|answer|usage|cost|spend|price|usd|latenc|durat|second|elapsed|took|\bend"
    r"|ended|finish|error|exception|status|fail|cache|scor|rating|feedback|reward|thumb|eval|label"
    r"|overhead|attempt|retr(y|ies)|fallback|total_tokens|generated|guardrail|first_token|ttft"
)
_OF_MODEL = re.compile(
    r"model|provider|api_base|endpoint|deployment|engine|fingerprint|system$|backend|llm|vendor"
)
_IDS = re.compile(r"(^|[._])(id|uuid|guid|hash|trace_?id|span_?id|call_?id|request_?id|key)$", re.I)
_TOKENS = re.compile(r"tokens?$", re.I)
_PLAIN = re.compile(r"[^.\[\]]+(\.[^.\[\]]+)*")
"""Names that a path can hold."""


def choose(
    seen: Sightings,
    preset: str | None,
    given: Mapping[str, str],
    columns: Sequence[str],
    rewards: Mapping[str, float],
) -> Chosen:
    """The paths of a log whose rows were looked at. given: role to path, as the user says;
    columns: the paths to test and no others, all if empty.

    Raises AgentError where a path is in no row, or no model can be found, with the nearest names.
    """
    if preset is not None and preset not in PRESETS:
        raise AgentError(f"--from {preset}: {suggestion(preset, PRESETS)}")
    found = PRESETS[preset] if preset is not None else recognised(seen)
    roles: dict[str, str] = {}
    how: dict[str, str] = {}
    for role, path in given.items():
        if path in ("", "none"):
            continue
        known(seen, path, f"--{role.replace('_', '-')}")
        roles[role], how[role] = path, "as you said"
    for role in ROLES:
        if role in given:
            continue
        there = _of_preset(seen, found, role)
        if there is not None:
            roles[role], how[role] = there, f"as in logs of {found.name}" if found else ""
            continue
        if role == "seconds" and "ended" in roles:
            continue
        guess = _by_name(seen, role, set(roles.values()))
        if guess is not None:
            roles[role], how[role] = guess, "by its name and values"
    if "model" not in roles:
        texts = [name for name, each in seen.paths.items() if each.kind == "text"]
        raise AgentError(
            "no column looks like a model: name it with --model PATH, such as"
            f" {', '.join(texts[:8]) or 'none of these rows, which hold no texts'}"
        )
    if "seconds" in roles and roles.get("ended"):
        del roles["ended"], how["ended"]
    words = _words(seen, roles, rewards)
    tested, left_out = _columns(seen, roles, columns)
    return Chosen(found, roles, how, tested, left_out, words, _milliseconds(seen, roles))


def recognised(seen: Sightings) -> Preset | None:
    """The preset whose signs most rows have."""
    least = max(1, seen.rows // 2)

    def there(sign: str) -> bool:
        under = sign + "."
        rows = max(
            (
                each.rows if sign == name else each.kinds.total()
                for name, each in seen.paths.items()
                if name == sign or name.startswith(under)
            ),
            default=0,
        )
        return rows >= least

    return next(
        (each for each in PRESETS.values() if all(there(sign) for sign in each.signs)), None
    )


def known(seen: Sightings, path: str, option: str) -> None:
    """Raise AgentError where no row has this path, with the nearest one that there is."""
    parse_path(path)
    if path in seen.paths or "[" in path:
        return
    fix = suggestion(path, seen.paths)
    raise AgentError(f"{option} {path}: no row has it; {fix}")


def _of_preset(seen: Sightings, preset: Preset | None, role: str) -> str | None:
    if preset is None:
        return None
    paths = preset.fields.get(role, ())
    return next((path for path in paths if path in seen.paths and seen.paths[path].rows), None)


def _by_name(seen: Sightings, role: str, taken: set[str]) -> str | None:
    """The path with the best name whose content can be of this role; a shallow one before a deep
    one."""
    fits = _CONTENTS[role]
    ranked = []
    for name, each in seen.paths.items():
        if name in taken or not each.rows:
            continue
        last = each.keys[-1].lower().replace("-", "_").replace(" ", "_")
        words = _NAMES[role]
        if last in words:
            rank = words.index(last)
        elif role in ("model", "reward", "cost") and any(
            last.endswith(f"_{word}") for word in words[:6]
        ):
            rank = len(words)
        else:
            continue
        if fits(each, seen.rows):
            ranked.append((len(each.keys) > 1 and role != "model", rank, len(each.keys), name))
    return min(ranked)[-1] if ranked else None


def _is_model(each: Sighting, rows: int) -> bool:
    return each.kind == "text" and each.distinct <= max(2, each.rows // 3) and each.distinct <= 1000


def _is_reward(each: Sighting, rows: int) -> bool:
    if each.kind in ("number", "flag"):
        return True
    words = {str(value).strip().casefold() for value in each.values} - NOTHING
    return bool(each.numbers()) or (bool(words) and words <= REWARD_WORDS.keys())


def _is_time(each: Sighting, rows: int) -> bool:
    for value in list(each.values)[:20]:
        try:
            at = as_seconds("", value)
        except AgentError:
            return False
        if at is None or not 9e8 < at < 5e9:
            return False
    return bool(each.values)


def _is_number(each: Sighting, rows: int) -> bool:
    return each.kind != "flag" and bool(each.numbers())


def _is_unit(each: Sighting, rows: int) -> bool:
    return each.kind in ("text", "number") and each.distinct > 1


def _is_prompt(each: Sighting, rows: int) -> bool:
    return each.kind in ("parts", "texts") or (
        each.kind == "text" and each.letters > 12 * each.rows and each.distinct > FEW
    )


def _is_status(each: Sighting, rows: int) -> bool:
    return each.distinct <= FEW


def _is_flag(each: Sighting, rows: int) -> bool:
    return each.kinds.keys() <= {"flag", "text", "number"} and each.distinct <= 4


_CONTENTS: Mapping[str, Callable[[Sighting, int], bool]] = {
    "model": _is_model,
    "reward": _is_reward,
    "at": _is_time,
    "ended": _is_time,
    "unit": _is_unit,
    "cost": _is_number,
    "seconds": _is_number,
    "input_tokens": _is_number,
    "output_tokens": _is_number,
    "prompt": _is_prompt,
    "status": _is_status,
    "cached": _is_flag,
}


def _words(
    seen: Sightings, roles: Mapping[str, str], given: Mapping[str, float]
) -> Mapping[str, float]:
    """Words of the reward to numbers; empty where they are numbers."""
    if given or "reward" not in roles or roles["reward"] not in seen.paths:
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
    if re.search(r"(_|\b)(ms|millis|milliseconds)$", path.lower()):
        return True
    numbers = sorted(seen.paths[path].numbers()) if path in seen.paths else []
    # Half of all answers took longer than two minutes: these are no seconds.
    return bool(numbers) and numbers[len(numbers) // 2] > 120.0


def _columns(
    seen: Sightings, roles: Mapping[str, str], named: Iterable[str]
) -> tuple[list[Column], dict[str, str]]:
    """The columns to test, and why the others are not."""
    tested: list[Column] = []
    left_out: dict[str, str] = {}
    names = list(named)
    for path in names:
        known(seen, path, "--column")
    prompt, unit = roles.get("prompt"), roles.get("unit")
    for path, each in seen.paths.items():
        if names and path not in names:
            left_out[path] = "not named"
            continue
        reason = "" if names else _left_out(each, roles, seen.rows)
        kind = _kind(each)
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


def _left_out(each: Sighting, roles: Mapping[str, str], rows: int) -> str:
    """Why a column is no candidate; "" where it is one."""
    for role, path in roles.items():
        if path == each.text:
            return {"unit": "the user", "at": "the time", "prompt": ""}.get(role, f"the {role}")
    name = each.text.lower()
    if not each.rows:
        return "empty"
    if each.distinct < 2 and each.rows == rows:
        return "the same in every row"
    if _AFTER.search(name):
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
    if each.kind == "flag" or each.distinct <= FEW:
        return "category"
    if each.numbers():
        return "number"
    if each.distinct <= each.rows // 10:
        return "category"
    if each.kind == "time" or _is_time(each, each.rows):
        return None
    if each.letters > 25 * each.rows and each.distinct > each.rows // 2:
        return "length"
    return None
