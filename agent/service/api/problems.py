"""Refusals as problem documents (RFC 9457): which kind, which field, which limit."""

from __future__ import annotations

import re

import msgspec

from equipoise.agent.errors import (
    AgentError,
    AwaitedError,
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
_UNKNOWN_FIELD = re.compile(r"unknown field `(.*?)`(?= - at `\$[\w.\[\]]*`\Z|\Z)", re.DOTALL)
_LONGEST_DETAIL = 1000

STATUSES = {
    400: ("Malformed body", "malformed", "The body is not JSON."),
    401: ("Token missing or unknown", "unauthorized", "A token is needed."),
    403: (
        "Token without the scope",
        "forbidden",
        "The token lacks the scope, or a page of another site asks.",
    ),
    404: ("Not found", "not-found", "There is no such thing."),
    405: ("Method not allowed", "method-not-allowed", "The path takes other methods."),
    408: ("Too slow", "too-slow", "The body came too slowly."),
    409: ("Conflict", "conflict", "The same id came with other content before."),
    413: ("Too large", "too-large", "The body is too large, or has too many rows."),
    415: (
        "Unsupported media type",
        "media-type",
        "The body says that it is no JSON, or is compressed in a way that is not read here.",
    ),
    421: ("Wrong host", "misdirected", "The host name is not one of this daemon's."),
    422: ("Refused", "refused", "A field is not acceptable; the document names it and its limit."),
    429: (
        "Too many requests",
        "too-many",
        "Too many at once, or in this second; try again after the time given.",
    ),
    431: ("Request Header Fields Too Large", "limit", "The headers are too large."),
    500: ("Internal error", "internal", "A fault of the daemon."),
    503: ("Not available now", "unavailable", "Not now; try again after the time given."),
}
"""Title of a status, its name in the type of a problem, and when it is given."""


class Refusal(Exception):  # noqa: N818
    """An answer that is a problem document. field: the key that is not acceptable; limit: what it
    must keep; retry_after: seconds; headers: beyond those of every problem."""

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        field: str | None = None,
        limit: str | None = None,
        retry_after: float | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        title, kind, _ = STATUSES[status]
        self.headers = headers or {}
        self.document = ProblemDocument(
            title=title,
            status=status,
            detail=detail[:_LONGEST_DETAIL],
            type=f"urn:equipoise:problem:{kind}",
            field=field,
            limit=limit,
            retry_after=retry_after,
        )


def refusal_of(error: Exception) -> Refusal:
    """The refusal for what decoding, the agent or the store raised.

    Anything else is a fault of ours: it is raised again, to be logged, and becomes a 500 that
    tells the client nothing of the inside.
    """
    if isinstance(error, Refusal):
        return error
    if isinstance(error, msgspec.ValidationError):
        text = _UNKNOWN_FIELD.sub(_brief, readable(error))
        place = _AT.search(text)
        return Refusal(422, text, field=place[1] if place else None)
    if isinstance(error, msgspec.DecodeError | UnicodeError | RecursionError):
        detail = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)
        if "surrogate" in detail or "truncated" in detail:
            # A decoder calls half a pair at the end of a body a truncated one.
            detail += "; is a text in it cut inside a character, such as \\ud83d without \\ude00?"
        return Refusal(400, f"the body is not JSON: {detail}")
    if isinstance(error, FeatureError):
        key = error.problems[0].key if error.problems else ""
        side = "features" if error.side == "context" else "outputs"
        limit = error.problems[0].expected if error.problems else None
        return Refusal(422, str(error), field=f"{side}.{key}" if key else side, limit=limit)
    if isinstance(error, AwaitedError):
        return Refusal(503, str(error), retry_after=2.0)
    if isinstance(error, UnknownDecisionError):
        return Refusal(404, str(error))
    if isinstance(error, ConflictError | ContradictionError):
        return Refusal(409, str(error))
    if isinstance(error, TimeError):
        return Refusal(422, str(error), field=error.field, limit=error.limit)
    if isinstance(error, AgentError):
        return Refusal(422, str(error))
    if isinstance(error, BrokenError):
        return Refusal(503, "the daemon is starting again: send this anew", retry_after=2.0)
    if isinstance(error, StoreError):
        # The path of the store is no business of a client.
        why = "it may not be written" if isinstance(error, ReadOnlyStoreError) else "it failed"
        return Refusal(503, f"the store cannot take this now: {why}", retry_after=1.0)
    raise error


def _brief(match: re.Match[str]) -> str:
    """The name of a field that nobody declared, unless it may be something a user wrote."""
    name = shown_sent(match[1], "name")
    return f"unknown field `{match[1]}`" if name == repr(match[1]) else f"an unknown field, {name}"


def logged_refusal_of(error: Exception, path: str, log: Log) -> Refusal:
    """The refusal for whatever a handler raised; a fault of ours is logged and becomes a 500."""
    try:
        return refusal_of(error)
    except Exception as fault:
        log.failed("request", fault, path=path)
        return Refusal(500, "the daemon could not answer this; its log says why")
