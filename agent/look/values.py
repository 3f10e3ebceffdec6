"""Values of a row, whatever their types, as codes, numbers, hashes and flags."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np

from equipoise.agent.config.ingest import as_flag, as_number
from equipoise.agent.errors import AgentError
from equipoise.store.batches import Floats

MOST_CODES = 1000
"""Distinct values of a column that are told apart; the rest count as one."""
NONE, OTHER = -1, -2
"""Codes of a value that is not there, and of all that are beyond MOST_CODES."""


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
