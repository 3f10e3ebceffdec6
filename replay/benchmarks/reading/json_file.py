"""JSON files read strictly: every complaint names the file, the place, the field and the value."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from equipoise.agent.features.values import LARGEST, listed, shown
from equipoise.replay.benchmarks.base import BenchmarkError

_LONGEST_REASON = 200


def read_json(path: Path) -> Any:
    """The contents of a UTF-8 file, where no object has the same key twice. NaN reads as null.

    Raises BenchmarkError with the file and the reason; OSError where it cannot be read.
    """
    raw = path.read_bytes()
    try:
        text = raw.decode("utf-8-sig")
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except _RepeatedKeyError as error:
        raise BenchmarkError(f"{path}: {error}") from None
    except RecursionError:
        raise BenchmarkError(f"{path} is not usable JSON: nested too deeply") from None
    except ValueError as error:
        if not raw.strip():
            raise BenchmarkError(f"{path} is empty, must be JSON") from None
        raise BenchmarkError(f"{path} is not JSON, or was cut short: {one_line(error)}") from None


def find_file(path: Path, name: str, folders: tuple[str, ...] = ("",)) -> Path:
    """The path itself where it is a file, else the file of that name in it or in a subfolder.

    Raises BenchmarkError where there is none.
    """
    if path.is_file():
        return path
    for folder in folders:
        if (found := path / folder / name).is_file():
            return found
    raise BenchmarkError(f"{path} holds no {name}")


def one_line(text: object) -> str:
    """A text from elsewhere (an error, a name) on one line, of bounded length, valid as UTF-8."""
    text = " ".join(str(text).encode("utf-8", "backslashreplace").decode().split())
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "…"


def names_listed(names: Iterable[str]) -> str:
    """Names from a file as a message or a reason of exclusion lists them."""
    return listed(one_line(name) for name in names)


@dataclass(frozen=True, slots=True)
class JsonObject:
    """An object of a file, with checked access to its fields. where: the file and the place."""

    where: str
    fields: Mapping[str, Any]

    def text(self, name: str) -> str:
        """A text with something in it. Raises BenchmarkError."""
        value = self._required(name)
        if not isinstance(value, str) or not value.strip():
            raise self.fault(name, "a text that is not empty")
        return value

    def optional_text(self, name: str) -> str | None:
        """A text, possibly empty, or None where it is absent or null. Raises BenchmarkError."""
        value = self.fields.get(name)
        if value is not None and not isinstance(value, str):
            raise self.fault(name, "a text or null")
        return value

    def number(self, name: str, low: float = -LARGEST, high: float = LARGEST) -> float:
        """A number within [low, high]; NaN where it is absent or null.

        Raises BenchmarkError; true and false are no numbers.
        """
        value = self.fields.get(name)
        if value is None:
            return math.nan
        number = math.inf
        if not isinstance(value, bool) and isinstance(value, int | float):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
        if not low <= number <= high:
            raise self.fault(name, _limit(low, high))
        return number

    def flag(self, name: str) -> float:
        """1 for true, 0 for false, NaN where it is absent or null. Raises BenchmarkError."""
        value = self.fields.get(name)
        if value is None:
            return math.nan
        if value not in (True, False) or isinstance(value, float):
            raise self.fault(name, "true or false")
        return float(value)

    def objects(self, name: str) -> list[JsonObject]:
        """A list of objects. Raises BenchmarkError."""
        return objects(self._required(name), f"{self.where}: {name}")

    def named_objects(self, name: str) -> dict[str, JsonObject] | None:
        """A table of objects by key, None where it is absent or null. Raises BenchmarkError."""
        value = self.fields.get(name)
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise self.fault(name, "an object or null")
        return {
            key: json_object(entry, f"{self.where}, {one_line(key)}")
            for key, entry in value.items()
        }

    def fault(self, name: str, limit: str) -> BenchmarkError:
        """The complaint about a field's value."""
        return BenchmarkError(
            f"{self.where}: {name} is {shown(self.fields.get(name))}, must be {limit}"
        )

    def _required(self, name: str) -> Any:
        if name not in self.fields:
            has = names_listed(self.fields)
            raise BenchmarkError(f"{self.where}: field {name!r} is absent; it has: {has}")
        return self.fields[name]


def json_object(value: object, where: str) -> JsonObject:
    """Raises BenchmarkError unless the value is a JSON object."""
    if not isinstance(value, Mapping):
        raise BenchmarkError(f"{where} is {_kind(value)}, must be an object")
    return JsonObject(where, value)


def objects(value: object, where: str) -> list[JsonObject]:
    """The entries of a list of objects, each with its position. Raises BenchmarkError."""
    if not isinstance(value, list):
        raise BenchmarkError(f"{where} is {_kind(value)}, must be a list of objects")
    return [json_object(entry, f"{where}[{i}]") for i, entry in enumerate(value)]


class _RepeatedKeyError(Exception):
    """An object with the same key twice: which of the two values holds nobody can say."""


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        counts = Counter(key for key, _ in pairs)
        twice = next(key for key, count in counts.items() if count > 1)
        raise _RepeatedKeyError(f"an object holds the key {shown(twice)} twice, must be unique")
    return fields


def _constant(name: str) -> float | None:
    """What Python writes for an unknown number is unknown; infinities are refused as values."""
    return None if name == "NaN" else float(name)


def _kind(value: object) -> str:
    return f"an object with {names_listed(value)}" if isinstance(value, Mapping) else shown(value)


def _limit(low: float, high: float) -> str:
    if high < LARGEST:
        return f"a number from {shown(low)} to {shown(high)}"
    if low > -LARGEST:
        return f"a finite number of at least {shown(low)}"
    return "a finite number"
