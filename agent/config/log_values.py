"""What other people's logs write, as what we mean: numbers as text, `TRUE`, milliseconds, parts.

Every field of a real log has another spelling somewhere. The functions take whatever a reader of
JSON, CSV or Parquet gives, return None where it says nothing (an empty cell, null, NaN), and raise
AgentError where it says something else than was asked for.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec

from equipoise.agent.errors import AgentError
from equipoise.agent.features.values import Problem, shown

NOTHING = frozenset({"", "nan", "na", "n/a", "null", "none"})
"""Texts that are no number and no answer; an id may be called so."""
_YES = frozenset({"true", "yes", "t", "y"})
_NO = frozenset({"false", "no", "f", "n"})
_EXACT = 2**53
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
            raise AgentError(f"{name}: {shown(value)} is no id")
        if isinstance(value, float) and abs(value) > _EXACT:
            raise AgentError(f"{name}: {shown(value)} has lost digits: write such ids as text")
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
    raise AgentError(f"{name}: {shown(value)} is no text")


def as_number(name: str, value: Any) -> float | None:
    """A number, as number or text; true and false are 1 and 0."""
    value = _plain(value)
    if isinstance(value, str):
        word = value.strip().casefold()
        if word in NOTHING:
            return None
        if word in ("true", "false"):
            return float(word == "true")
        try:
            # Python alone reads 1_000 as a number.
            number = math.nan if "_" in word else float(word)
        except ValueError:
            number = math.nan
        if math.isnan(number):
            raise AgentError(f"{name}: {shown(value)} is no number")
        return number
    if value is None or isinstance(value, bool | int | float | Decimal):
        return _float(name, value)
    raise AgentError(f"{name}: {shown(value)} is no number")


def as_whole(name: str, value: Any) -> int | None:
    """A whole number."""
    number = as_number(name, value)
    if number is None or number.is_integer():
        return None if number is None else int(number)
    raise AgentError(f"{name}: {shown(value)} is no whole number")


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
    raise AgentError(f"{name}: {shown(value)} is neither true nor false")


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
            raise AgentError(f"{name}: {shown(text)} is no time: seconds or ISO 8601")
    if isinstance(value, date) and not isinstance(value, datetime):
        value = datetime(value.year, value.month, value.day, tzinfo=UTC)
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp()
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | None):
        raise AgentError(f"{name}: {shown(value)} is no time: seconds or ISO 8601")
    if value is None:
        return None
    for least, unit in ((1e17, 1e9), (1e14, 1e6), (1e11, 1e3)):
        if least < value <= 1e20:
            return float(value) / unit
    return float(value)


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
            raise AgentError(f"{name}: {shown(part)} is no part of a content")
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
    if kind == "Text":
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
        raise AgentError(f"reward: {shown(value)} is none of {', '.join(self._exact)}")


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
        raise AgentError(f"{name}: {shown(value)} is too large a number") from None


def _iso(text: str) -> datetime | None:
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
            raise AgentError(f"{name}: {shown(value)} is no JSON list") from None
    if value is None or isinstance(value, list | tuple):
        return None if value is None else [as_number(name, each) for each in value]
    raise AgentError(f"{name}: {shown(value)} is no list of numbers")
