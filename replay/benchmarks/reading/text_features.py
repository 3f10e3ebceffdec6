"""Numbers that describe a prompt and an answer without judging them; computed once, then cached.

A cache must never be the reason for a failure or for a wrong number: a file that is missing,
damaged or of another version is computed anew, and a folder that cannot be written is ignored.

Statistics that the feature schema of a live experiment offers too (`agent.features`) are used as
they are there; what compares an answer with its prompt, or is about prose, is added here.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from hashlib import sha256
from math import log1p
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from equipoise.agent.features.text import BLANK, BOLD, HEADING, STATISTICS, refusal

Arrays: TypeAlias = dict[str, NDArray[Any]]

_CHECKSUM = "checksum"


def cached(name: str, version: str, compute: Callable[[], Arrays]) -> Arrays:
    """The arrays `compute` returns, from the cache where it holds this name and version."""
    folder = _folder()
    if folder is None:
        return compute()
    path = folder / f"{name}-{version}.npz"
    arrays = _read(path, version)
    if arrays is None:
        arrays = compute()
        _write(path, version, arrays)
    return arrays


def _folder() -> Path | None:
    """$XDG_CACHE_HOME/equipoise, or ~/.cache/equipoise; None where there is no home folder.

    The XDG specification asks to ignore a relative $XDG_CACHE_HOME.
    """
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):
        return Path(configured) / "equipoise"
    try:
        return Path.home() / ".cache" / "equipoise"
    except RuntimeError:
        return None


def _read(path: Path, version: str) -> Arrays | None:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        stored = str(arrays.pop(_CHECKSUM))
    except Exception:  # a damaged archive raises whatever its broken part leads to
        return None
    return arrays if stored == _checksum(version, arrays) else None


def _write(path: Path, version: str, arrays: Arrays) -> None:
    """Write beside the target and rename, so that no reader ever sees half a file."""
    columns: dict[str, Any] = {**arrays, _CHECKSUM: np.array(_checksum(version, arrays))}
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".part", delete=False) as file:
            temporary = file.name
            np.savez(file, **columns)
        os.replace(temporary, path)
        temporary = None
    except OSError:
        pass
    finally:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)


def _checksum(version: str, arrays: Mapping[str, NDArray[Any]]) -> str:
    digest = sha256(version.encode())
    for name in sorted(arrays):
        array = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {array.dtype.str} {array.shape}".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


MAX_CHARACTERS = 20_000
"""Only so many characters of a text are looked at."""

_WORD = re.compile(r"\w+")
_FIRST_WORDS = 200
_ENDS = (".", "!", "?", ":", ")", "]", "}", '"', "”", "*", "`", "|", "。", "！", "？")
_CODE = re.compile(
    r"```|\b(?:python|javascript|java|c\+\+|sql|html|css|regex|bash|code|function|script"
    r"|algorithm|compiler?|program(?:ming)?)\b"
)
_MATHS = re.compile(
    r"\d\s*[-+*/^=×÷]\s*\d|\b(?:calculate|equation|solve|sum|integer|probability|percent"
    r"|multiply|divided?|fraction|derivative|integral|how many)\b"
)
_ASKS_FOR_LIST = re.compile(
    r"\b(?:list|steps|ways|tips|ideas|examples|names of|suggest(?:ions)?|recommend(?:ations)?"
    r"|table|bullet|top (?:\d+|three|five|ten))\b"
)
_QUESTION = re.compile(r"\?|^(?:what|who|whom|whose|which|when|where|why|how|is|are|do|does|can)\b")

_OF_ANSWER = ("characters", "words", "code", "digits", "uppercase", "list_items")
_HINTS: dict[str, Callable[[str], object]] = {
    "about-code": _CODE.search,
    "about-maths": _MATHS.search,
    "asks-for-list": _ASKS_FOR_LIST.search,
    "question": _QUESTION.search,
}

PROMPT_INDICATORS = tuple(_HINTS)
"""Features of a prompt that are 0 or 1."""

PROMPT_FEATURES = ("characters", "words", "lines", *PROMPT_INDICATORS)
"""Names of what `prompt_features` returns."""

ANSWER_INDICATORS = ("refusal", "unfinished")
"""Features of an answer that are 0 or 1."""

ANSWER_FEATURES = (
    *(name.replace("_", "-") for name in _OF_ANSWER),
    *("headings", "emphasis", "paragraphs", "distinct-words"),
    *("prompt-recall", "prompt-overlap"),
    *ANSWER_INDICATORS,
)
"""Names of what `answer_features` returns."""


def words(text: str) -> list[str]:
    """The words of a text in lower case, punctuation left out."""
    return _WORD.findall(text[:MAX_CHARACTERS].lower())


def prompt_features(prompt: str) -> list[float]:
    """Length as in `agent.features.text`, then four hints by telling words.

    The hints are cheap guesses (whether it is about code or mathematics, asks for a list, is a
    question): they split prompts into kinds, and are wrong on some.
    """
    text = prompt[:MAX_CHARACTERS]
    lower = text.lower()
    return [
        *(STATISTICS[name](text, MAX_CHARACTERS) for name in ("characters", "words", "lines")),
        *(1.0 if hint(lower) else 0.0 for hint in _HINTS.values()),
    ]


def answer_features(prompt_words: frozenset[str], answer: str) -> list[float]:
    """Length, structure, vocabulary, overlap with the prompt, refusal and a cut-off end.

    headings, emphasis, paragraphs: log(1 + how many). distinct-words: share of distinct words
    among the first 200, so that length alone does not lower it. prompt-recall: share of the
    prompt's distinct words that the answer holds (ROUGE-1 recall, each word counted once).
    prompt-overlap: Jaccard similarity of the two sets of words. refusal: a phrase of refusal or
    apology among the first 300 characters. unfinished: no mark at the end that a finished text
    has.
    """
    text = answer[:MAX_CHARACTERS]
    tokens = words(text)
    types = frozenset(tokens)
    shared = len(types & prompt_words)
    head = tokens[:_FIRST_WORDS]
    return [
        *(STATISTICS[name](text, MAX_CHARACTERS) for name in _OF_ANSWER),
        log1p(len(HEADING.findall(text))),
        log1p(len(BOLD.findall(text))),
        log1p(len(BLANK.findall(text))),
        len(set(head)) / len(head) if head else 0.0,
        shared / len(prompt_words) if prompt_words else 0.0,
        shared / len(types | prompt_words) if shared else 0.0,
        refusal(text, MAX_CHARACTERS),
        0.0 if answer.rstrip().endswith(_ENDS) else 1.0,
    ]
