"""Bounded statistics of a text, each from 0 to 1 and fixed by its definition here.

Lengths enter as log(1 + length) / log(1 + max_chars), since a tenth character matters and a
ten-thousandth does not. Shares of an empty text are 0. A change of any definition must raise
`schema.TRANSFORM`, which is part of the hash of every schema.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from math import log1p
from typing import TypeAlias

Statistic: TypeAlias = Callable[[str, int], float]

FENCE = "```"
_DIGITS = string.digits.encode()
_LETTERS = string.ascii_letters.encode()
_UPPERCASE = string.ascii_uppercase.encode()
_ITEM = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]", re.MULTILINE)


def characters(text: str, max_chars: int) -> float:
    """Length in characters, on the log scale."""
    return _length(len(text), max_chars)


def words(text: str, max_chars: int) -> float:
    """Number of runs of characters other than white space, on the log scale."""
    return _length(len(text.split()), max_chars)


def lines(text: str, max_chars: int) -> float:
    """Number of lines, on the log scale; an empty text has none."""
    return _length(text.count("\n") + 1 if text else 0, max_chars)


def code(text: str, max_chars: int) -> float:
    """Share of the characters that stand between code fences; an open fence runs to the end."""
    return _share(sum(map(len, text.split(FENCE)[1::2])), len(text))


def digits(text: str, max_chars: int) -> float:
    """Share of the characters that are digits."""
    return _share(_count(text, _DIGITS, str.isdigit), len(text))


def uppercase(text: str, max_chars: int) -> float:
    """Share of the letters that are capitals."""
    letters = _count(text, _LETTERS, str.isalpha)
    return _share(_count(text, _UPPERCASE, str.isupper), letters)


def non_ascii(text: str, max_chars: int) -> float:
    """Share of the characters outside ASCII."""
    if text.isascii():
        return 0.0
    return 1.0 - _share(sum(map(str.isascii, text)), len(text))


def question(text: str, max_chars: int) -> float:
    """1 where a question mark occurs, else 0."""
    return 1.0 if "?" in text or "？" in text or "؟" in text else 0.0


def list_items(text: str, max_chars: int) -> float:
    """Share of the lines that begin as an item of a list, bulleted or numbered."""
    return _share(len(_ITEM.findall(text)), text.count("\n") + 1)


STATISTICS: dict[str, Statistic] = {
    statistic.__name__: statistic
    for statistic in (
        characters,
        words,
        lines,
        code,
        digits,
        uppercase,
        non_ascii,
        question,
        list_items,
    )
}


def _length(length: int, max_chars: int) -> float:
    return min(1.0, log1p(length) / log1p(max_chars))


def _share(part: int, whole: int) -> float:
    # Titlecase and other odd characters count in one way and not the other; a share stays a share.
    return min(1.0, part / whole) if whole else 0.0


def _count(text: str, ascii_kind: bytes, is_kind: Callable[[str], bool]) -> int:
    """Characters of a kind. ASCII text, by far the most, is counted 20 times faster as bytes."""
    if text.isascii():
        raw = text.encode("ascii")
        return len(raw) - len(raw.translate(None, ascii_kind))
    return sum(map(is_kind, text))
