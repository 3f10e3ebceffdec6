"""What arrives of spans and evaluations, and whether two calls had the same answer."""

from __future__ import annotations

import json
import re
from typing import TypeAlias

import msgspec

from equipoise.store.records import Observation

UNIQUE = 16
"""Characters after its prefix, from which on the id of a response is nobody else's: Ollama's are
"chatcmpl-" and a number below 999."""
_PREFIX = re.compile(r"^[a-z]+[-_]")
_TRACE = 32
"""Digits of a trace id, with which the id of a span begins here."""


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """A model call. span, parent: ids of spans, with that of their trace. answer: id of the
    response. decision: of which it is an attempt. failed: no answer came. reward: where the span
    itself has one. row: what it is as a row of the usage log, None where `refusal` says why it is
    none. outputs: columns, None where the span lacks them. tokens, provider: of the answer, by
    which it is known again."""

    span: str
    parent: str | None
    answer: str | None
    decision: str | None
    ended: float
    seconds: float | None
    failed: bool
    served: str
    reward: float | None
    outputs: list[float] | None
    row: Observation | None
    refusal: str = ""
    tokens: float | None = None
    provider: str | None = None


class Rating(msgspec.Struct, frozen=True, kw_only=True):
    """A reward. span, answer, decision: of what, by at least one of these; at: when it was given,
    in seconds since the epoch."""

    reward: float
    at: float
    span: str = ""
    answer: str = ""
    decision: str = ""


class Decided(msgspec.Struct, frozen=True, kw_only=True):
    """A span that names a decision, and in which its call happens."""

    span: str
    decision: str


class Within(msgspec.Struct, frozen=True):
    """Any span at all, and the one that it happened within, "" for none."""

    span: str
    parent: str


Arrival: TypeAlias = Call | Rating | Decided | Within


def same_trace(span: str, other: str) -> bool:
    """Whether two spans are of one trace."""
    return span[:_TRACE] == other[:_TRACE]


def trace_range(span: str) -> tuple[str, str]:
    """From and to which, exclusively, the ids of the spans of its trace go."""
    return f"{span[:_TRACE]}-", f"{span[:_TRACE]}."


def alike(call: Call) -> tuple[str, float | None, str | None]:
    """By what an answer is known again."""
    tokens = None if call.tokens is None else float(call.tokens)
    return call.served, tokens, call.provider


def unique(answer: str) -> bool:
    """Whether the id of a response is long enough to be nobody else's."""
    return len(_PREFIX.sub("", answer, count=1)) >= UNIQUE


def same_answer(answer: str, in_one_trace: bool, own: str | None, other: str | None) -> bool:
    """Whether two calls whose answers have the same id had the same answer: in one trace, where
    that id is nobody else's, or model and tokens agree; in two, only if all of that and the
    provider agree. What one of them lacks agrees."""
    is_unique = unique(answer)
    if in_one_trace and is_unique:
        return True
    facts = zip(*(json.loads(each) if each else [None] * 3 for each in (own, other)), strict=True)
    agree = [left is None or right is None or left == right for left, right in facts]
    return all(agree[:2]) if in_one_trace else is_unique and all(agree)
