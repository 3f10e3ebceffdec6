"""Names as a log takes them: readable, unique, and the same for the same file."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable

_LONGEST_ID = 160
_LONGEST_FEATURE = 80
_NOT_IN_ID = re.compile(r"[^A-Za-z0-9._:/@+\-]+")
_NOT_IN_FEATURE = re.compile(r"[^A-Za-z0-9_.\-]+")


def identifiers(names: Iterable[str], empty: str = "model") -> tuple[str, ...]:
    """Ids of models or contexts (`store.records.Id`), unique and in the same order.

    A name that is an id already stays as it is. Otherwise accents go, each run of characters that
    an id cannot hold becomes one hyphen, and hyphens at the ends go. Names that become equal are
    told apart by their order: "a", "a-2", "a-3". `empty` stands in where nothing is left.

    >>> identifiers(["GPT-5 mini (2025-08-07) (medium reasoning)", "o4-mini"])
    ('GPT-5-mini-2025-08-07-medium-reasoning', 'o4-mini')
    """
    return _unique(names, lambda name: _identifier(name) or empty)


def feature_names(names: Iterable[str]) -> tuple[str, ...]:
    """Names of features (a letter, then letters, digits, `_`, `.`, `-`), unique, in order.

    A name that is valid already stays as it is, whichever comes first.

    >>> feature_names(["Rouge 1", "Rouge-1", "x_length"])
    ('Rouge-1-2', 'Rouge-1', 'x_length')
    """
    return _unique(names, lambda name: _feature(name) or "feature")


def _unique(names: Iterable[str], short: Callable[[str], str]) -> tuple[str, ...]:
    names = list(names)
    # Names that are valid as they stand keep themselves, whichever comes first.
    taken = {name for name in names if short(name) == name}
    seen: set[str] = set()
    result: list[str] = []
    for name in names:
        base = candidate = short(name)
        count = 1
        while candidate in seen or (candidate in taken and candidate != name):
            count += 1
            candidate = f"{base}-{count}"
        seen.add(candidate)
        result.append(candidate)
    return tuple(result)


def _identifier(name: str) -> str:
    text = _NOT_IN_ID.sub("-", _plain(name))
    text = re.sub(r"^[^A-Za-z0-9]+", "", text)
    return name if text == name and len(name) <= _LONGEST_ID else text.strip("-")[:_LONGEST_ID]


def _feature(name: str) -> str:
    text = _NOT_IN_FEATURE.sub("-", _plain(name))
    text = re.sub(r"^[^A-Za-z]+", "", text)
    return name if text == name and len(name) <= _LONGEST_FEATURE else text.strip("-")[:80]


def _plain(name: str) -> str:
    decomposed = unicodedata.normalize("NFKD", name)
    return "".join(letter for letter in decomposed if not unicodedata.combining(letter))
