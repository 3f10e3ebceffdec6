"""Texts as numbers: bounded statistics, and counts of n-grams under a fixed random projection.

Nothing of a text is kept but these numbers. A change of any definition must raise
`schema.TRANSFORM`, which is part of the hash of every schema.

A statistic is from 0 to 1. Lengths enter as log(1 + length) / log(1 + max_chars), since a tenth
character matters and a ten-thousandth does not. Shares of an empty text are 0.

The projection. A text is cut into tokens, and these into runs of 1 to n of them; a run counts in
one of 4,096 buckets by its CRC-32. Column j is the sum over buckets of sign * log(1 + count), over
a constant. Signs come from BLAKE2b and sums are of whole numbers, so that a text becomes the same
numbers on every machine. Sums
of that kind keep distances between texts (Achlioptas 2003, *Database-friendly random projections*;
Weinberger et al. 2009, *Feature hashing*), and a product of the same column of a prompt and of an
answer, as an interaction, says how much both have in common.
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from functools import cache
from hashlib import blake2b
from math import log1p
from typing import TypeAlias
from zlib import crc32

import numpy as np

from equipoise.store.batches import Floats, Ints

Statistic: TypeAlias = Callable[[str, int], float]

FENCE = "```"
_DIGITS = string.digits.encode()
_LETTERS = string.ascii_letters.encode()
_UPPERCASE = string.ascii_uppercase.encode()
_ITEM = re.compile(r"^[ \t]*(?:[-*+•]|\d{1,3}[.)])[ \t]", re.MULTILINE)
HEADING = re.compile(r"^#{1,6} ", re.MULTILINE)
BOLD = re.compile(r"\*\*[^*\n]+\*\*")
BLANK = re.compile(r"\n[ \t]*\n")
_REFUSAL = re.compile(
    r"\b(?:i(?:'|’)?m sorry|i am sorry|i apologi[sz]e|my apologies|unfortunately"
    r"|i(?: am|(?:'|’)m) (?:unable|not able|not comfortable)|i (?:cannot|can(?:'|’)t|can not)"
    r"|i (?:do not|don(?:'|’)t) (?:have|feel|know)|as an? (?:ai|language model|text-based))\b"
)
_REFUSES_WITHIN = 300


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


def headings(text: str, max_chars: int) -> float:
    """Share of the lines that are headings of Markdown."""
    return _share(len(HEADING.findall(text)), text.count("\n") + 1)


def emphasis(text: str, max_chars: int) -> float:
    """Share of the characters in bold of Markdown, its marks included."""
    return _share(sum(map(len, BOLD.findall(text))), len(text))


def paragraphs(text: str, max_chars: int) -> float:
    """Number of blank lines, on the log scale."""
    return _length(len(BLANK.findall(text)), max_chars)


def refusal(text: str, max_chars: int) -> float:
    """1 where an English phrase of refusal or apology is among the first 300 characters, else 0."""
    return 1.0 if _REFUSAL.search(text[:_REFUSES_WITHIN].lower()) else 0.0


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
        headings,
        emphasis,
        paragraphs,
        refusal,
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


BUCKETS = 4096
MOST_PROJECTED = 64
"""Most columns of one projection: their squares are what the sums cost."""
LONGEST_RUN = 3
_UNIT, _FRACTION = 16.0, 65_536.0
_TOKEN = re.compile(r"\w+|[^\w\s]|\n")


def _word(token: str) -> str:
    return token.lower()


def _shape(token: str) -> str:
    """A mark or line break as it is; of a number or word only its kind and rough length."""
    if not (token[0].isalnum() or token[0] == "_"):
        return token
    if token.isdigit():
        return "0"
    return f"{'A' if token[0].isupper() else 'a'}{min(len(token), 12) // 3}"


TOKENS: dict[str, Callable[[str], str]] = {"words": _word, "shapes": _shape}
"""What n-grams are of: words say what a text is about, shapes how it is written, in any language
that separates words."""


def projected(text: str, tokens: str, longest: int, size: int) -> Floats:
    """(size,) the projection of a text. tokens: a name of `TOKENS`; longest: of a run."""
    name = TOKENS[tokens]
    parts = [f" {name(token)}".encode("utf-8", "surrogatepass") for token in _TOKEN.findall(text)]
    hashes: list[int] = []
    runs = [0] * len(parts)
    for length in range(longest):
        # A run is its predecessor's checksum continued by one token.
        runs = [crc32(part, run) for part, run in zip(parts[length:], runs, strict=False)]
        hashes += runs
    counts = np.bincount(np.array(hashes, dtype=np.int64) % BUCKETS, minlength=BUCKETS)
    used = np.flatnonzero(counts)
    # Whole numbers: the order of a sum of fractions, and so its last digit, varies with libraries.
    weights = np.rint(np.log1p(counts[used]) * _FRACTION).astype(np.int64)
    result: Floats = (weights @ _signs(tokens)[used, :size]) / (_FRACTION * _UNIT)
    return result


@cache
def _signs(tokens: str) -> Ints:
    """(BUCKETS, MOST_PROJECTED) of -1 and 1."""
    width = MOST_PROJECTED // 8
    raw = b"".join(
        blake2b(f"{tokens} {bucket}".encode(), digest_size=width, person=b"projection 1").digest()
        for bucket in range(BUCKETS)
    )
    bits = np.unpackbits(np.frombuffer(raw, dtype=np.uint8)).reshape(BUCKETS, MOST_PROJECTED)
    signs: Ints = 2 * bits.astype(np.int64) - 1
    return signs
