"""Refusals as problem documents (RFC 9457): which kind, which field, which limit."""

from __future__ import annotations

import re

import msgspec

from equipoise.agent.errors import (
    AgentError,
    BrokenError,
    ConflictError,
    TimeError,
    UnknownDecisionError,
)
from equipoise.agent.features.values import FeatureError, shown_sent
from equipoise.agent.service.api.schema import ProblemDocument
from equipoise.agent.service.telemetry import Log
from equipoise.store.errors import ContradictionError, ReadOnlyStoreError, StoreError
from equipoise.store.records import readable

_AT = re.compile(r" - at `\$\.?(.*)`$", re.DOTALL)
_UNKNOWN_FIELD = re.compile(r"unknown field `(.*)`(?= - at `|$)", re.DOTALL)
_LONGEST_DETAIL = 1000

_WORDS = {
    400: ("Malformed body", "malformed"),
    401: ("Token missing or unknown", "unauthorized"),
    403: ("Token without the scope", "forbidden"),
    404: ("Not found", "not-found"),
    405: ("Method not allowed", "method-not-allowed"),
    408: ("Too slow", "too-slow"),
    409: ("Conflict", "conflict"),
    413: ("Too large", "too-large"),
    415: ("Unsupported media type", "media-type"),
    421: ("Wrong host", "misdirected"),
    422: ("Refused", "refused"),
    429: ("Too many requests", "too-many"),
    500: ("Internal error", "internal"),
    503: ("Not available now", "unavailable"),
}
"""Title of a status, and its name in the type."""


class Refusal(Exception):  # noqa: N818
    """An answer that is a problem document. headers: beyond the content type."""

    def __init__(self, document: ProblemDocument, headers: dict[str, str] | None = None) -> None:
        super().__init__(document.detail)
        self.document = document
        self.headers = headers or {}


def problem(
    status: int,
    detail: str,
    *,
    field: str | None = None,
    limit: str | None = None,
    retry_after: float | None = None,
) -> ProblemDocument:
    """The document of a status, with the words that belong to it."""
    title, kind = _WORDS[status]
    return ProblemDocument(
        title=title,
        status=status,
        detail=detail[:_LONGEST_DETAIL],
        type=f"urn:equipoise:problem:{kind}",
        field=field,
        limit=limit,
        retry_after=retry_after,
    )


def refuse(
    status: int, detail: str, *, field: str | None = None, limit: str | None = None
) -> Refusal:
    """The exception to raise where a handler refuses."""
    return Refusal(problem(status, detail, field=field, limit=limit))


def problem_of(error: Exception) -> ProblemDocument:
    """The document for what decoding, the agent or the store raised.

    Anything else is a fault of ours: it is raised again, to be logged, and becomes a 500 that
    tells the client nothing of the inside.
    """
    if isinstance(error, Refusal):
        return error.document
    if isinstance(error, msgspec.ValidationError):
        text = _UNKNOWN_FIELD.sub(_brief, readable(error))
        place = _AT.search(text)
        return problem(422, text, field=place[1] if place else None)
    if isinstance(error, msgspec.DecodeError | UnicodeError | RecursionError):
        detail = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        return problem(400, f"the body is not JSON: {detail}")
    if isinstance(error, FeatureError):
        key = error.problems[0].key if error.problems else ""
        side = "features" if error.side == "context" else "outputs"
        limit = error.problems[0].expected if error.problems else None
        return problem(422, str(error), field=f"{side}.{key}" if key else side, limit=limit)
    if isinstance(error, UnknownDecisionError):
        return problem(404, str(error))
    if isinstance(error, ConflictError | ContradictionError):
        return problem(409, str(error))
    if isinstance(error, TimeError):
        return problem(422, str(error), field=error.field, limit=error.limit)
    if isinstance(error, AgentError):
        return problem(422, str(error))
    if isinstance(error, BrokenError):
        return problem(503, "the daemon is starting again: send this anew", retry_after=2.0)
    if isinstance(error, StoreError):
        # The path of the store is no business of a client.
        why = "it may not be written" if isinstance(error, ReadOnlyStoreError) else "it failed"
        return problem(503, f"the store cannot take this now: {why}", retry_after=1.0)
    raise error


def _brief(match: re.Match[str]) -> str:
    """The name of a field that nobody declared, unless it may be something a user wrote."""
    name = shown_sent(match[1], "name")
    return f"unknown field `{match[1]}`" if name == repr(match[1]) else f"an unknown field, {name}"


def document_of(error: Exception, path: str, log: Log) -> ProblemDocument:
    """The document of whatever a handler raised; a fault of ours is logged and becomes a 500."""
    try:
        return problem_of(error)
    except Exception as fault:
        log.failed("request", fault, path=path)
        return problem(500, "the daemon could not answer this; its log says why")
