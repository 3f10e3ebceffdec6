"""Where records go: into a store that is open here, or to the daemon that has it open."""

from __future__ import annotations

import http.client
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

import msgspec

from equipoise.agent.agent import Accepted
from equipoise.agent.config.ingest import Kind
from equipoise.agent.errors import AgentError, ConflictError
from equipoise.agent.features.values import FeatureError
from equipoise.agent.ingest.records import Record
from equipoise.agent.record_adapter import RecordAdapter

SECONDS = 60.0
_IN_BODY = re.compile(r" \(index \d+ of this body\)$")
"""Bodies are ours, and what counts is the row of the file."""


@dataclass(frozen=True, slots=True)
class Taken:
    """What became of a batch. counts: of accepted, duplicates and late. refused: positions in the
    batch, each with the reason and whether it contradicts a row that was there."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str, bool]] = field(default_factory=list)


class Sink(Protocol):
    """Takes batches of records of one kind."""

    rows_at_once: int

    def take(self, records: Sequence[Record]) -> Taken:
        """Take in what can be taken. Raises where it is not the rows' fault."""


class StoreSink:
    """Records into the store behind a gateway."""

    rows_at_once = 4096

    def __init__(self, gateway: RecordAdapter, kind: Kind) -> None:
        takes: dict[Kind, Callable[[Sequence[Any]], Accepted]] = {
            "observations": gateway.ingest,
            "outcomes": gateway.observe,
            "simulations": gateway.simulate,
        }
        self._take = takes[kind]

    def take(self, records: Sequence[Record]) -> Taken:
        taken = Taken()
        self._take_apart(records, 0, taken)
        return taken

    def _take_apart(self, records: Sequence[Record], first: int, taken: Taken) -> None:
        """All at once where all are fine; else halves, until those that are refused are alone."""
        try:
            accepted = self._take(records)
        except (AgentError, FeatureError) as error:
            if len(records) == 1:
                reason = str(error).replace(" row 0: ", ": ", 1)  # its place in a batch of one
                taken.refused.append((first, reason, isinstance(error, ConflictError)))
                return
            middle = len(records) // 2
            self._take_apart(records[:middle], first, taken)
            self._take_apart(records[middle:], first + middle, taken)
            return
        taken.counts["accepted"] += accepted.rows
        taken.counts["duplicates"] += accepted.duplicates
        taken.counts["late"] += accepted.late


class DaemonSink:
    """Records to a daemon, over one connection.

    url: http or https. token: of scope `route`, None where none is needed. Raises AgentError for
    a url that is none, and from `take` where the daemon refuses a request as a whole.
    """

    rows_at_once = 100
    """A bulk answer lists so many refused rows, and no more."""

    def __init__(self, url: str, token: str | None, kind: Kind) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise AgentError(f"url is {url!r}, expected http://HOST:PORT or https://HOST:PORT")
        secure = parts.scheme == "https"
        scheme = http.client.HTTPSConnection if secure else http.client.HTTPConnection
        self._connection = scheme(parts.hostname, parts.port, timeout=SECONDS)
        self._path = f"{parts.path.rstrip('/')}/v1/{kind}"
        self._bulk = kind != "outcomes"
        content = "application/x-ndjson" if self._bulk else "application/json"
        self._headers = {"Content-Type": content}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def take(self, records: Sequence[Record]) -> Taken:
        lines = [msgspec.json.encode(record) for record in records]
        body = b"\n".join(lines) if self._bulk else b"[" + b",".join(lines) + b"]"
        try:
            self._connection.request("POST", self._path, body, self._headers)
            response = self._connection.getresponse()
            answer = msgspec.json.decode(response.read())
        except (OSError, http.client.HTTPException, msgspec.DecodeError) as error:
            raise AgentError(
                f"the daemon does not answer: {error or type(error).__name__}"
            ) from None
        if response.status != 200:
            detail = answer.get("detail", "") if isinstance(answer, dict) else ""
            raise AgentError(f"the daemon answers with status {response.status}: {detail}")
        counts = Counter({name: answer.get(name, 0) for name in ("duplicates", "late")})
        counts["accepted"] = answer["rows" if self._bulk else "accepted"]
        refused = answer["rejects" if self._bulk else "rejected"]
        return Taken(
            counts,
            [
                (each["index"], _IN_BODY.sub("", each["detail"]), each["status"] == 409)
                for each in refused
            ],
        )
