"""Where records go: the store that is open here, or the daemon that has it open.

Where a sink refuses a batch, halves are tried until the rows that it refuses are alone.
"""

from __future__ import annotations

import http.client
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar, cast

import msgspec

from equipoise.agent.agent import Accepted
from equipoise.agent.client import Address
from equipoise.agent.config.ingest import Kind
from equipoise.agent.errors import AgentError, ConflictError
from equipoise.agent.features.values import FeatureError
from equipoise.agent.ingest.drawn import DRAWN_AT_ONCE, DrawnRows
from equipoise.agent.ingest.drawn_rows import DrawnRow
from equipoise.agent.ingest.records import Record
from equipoise.agent.record_adapter import RecordAdapter

T = TypeVar("T")

TIMEOUT_SECONDS = 60.0
_IN_BODY = re.compile(r" \(index \d+ of this body\)$")
"""Bodies are ours, and what counts is the row of the file."""


@dataclass(frozen=True, slots=True)
class BatchResult:
    """What became of a batch. counts: of accepted, duplicates and late. refused: positions in the
    batch, each with the reason and whether it contradicts a row that was there."""

    counts: Counter[str] = field(default_factory=Counter)
    refused: list[tuple[int, str, bool]] = field(default_factory=list)


def take_by_bisection(
    items: Sequence[T],
    rows: Sequence[int],
    take: Callable[[Sequence[T]], Mapping[str, int]],
    refusals: tuple[type[Exception], ...] = (AgentError, FeatureError),
) -> Iterator[tuple[Counter[str], tuple[int, Exception] | None]]:
    """Take the items at these positions; yields after every try what became of them, by name, or
    the row that was refused and why, so that others can have a turn.

    `take` takes all it is given or raises and takes none. Where it raises one of `refusals`, halves
    are tried until the rows it refuses are alone. Good rows cost one call, a bad one among n costs
    2 log2(n) more. Any other exception (a store that fails) is raised.
    """
    try:
        counts = Counter(take([items[row] for row in rows]))
    except refusals as error:
        yield Counter(), (rows[0], error) if len(rows) == 1 else None
    else:
        yield counts, None
        return
    if len(rows) > 1:
        middle = len(rows) // 2
        yield from take_by_bisection(items, rows[:middle], take, refusals)
        yield from take_by_bisection(items, rows[middle:], take, refusals)


class Sink(Protocol):
    """Takes batches of records of one kind."""

    rows_at_once: int

    def take(self, records: Sequence[Record]) -> BatchResult:
        """Take in what can be taken. Raises where it is not the rows' fault."""


class StoreSink:
    """Records into the store behind a gateway."""

    rows_at_once = 4096

    def __init__(self, gateway: RecordAdapter, kind: Kind, drawn: DrawnRows | None = None) -> None:
        takes: dict[Kind, Callable[[Sequence[Any]], Accepted]] = {
            "observations": gateway.ingest,
            "outcomes": gateway.observe,
            "simulations": gateway.simulate,
        }
        if drawn is not None:
            takes["decisions"] = drawn.take
            # Rules are frozen between batches, from the rows before.
            self.rows_at_once = DRAWN_AT_ONCE
        self._take, self._drawn = takes[kind], drawn

    def take(self, records: Sequence[Record]) -> BatchResult:
        result = BatchResult()
        if self._drawn is not None:
            self._drawn.begin(cast(Sequence[DrawnRow], records))
        for counts, refusal in take_by_bisection(records, range(len(records)), self._counts):
            result.counts.update(counts)
            if refusal is not None:
                row, error = refusal
                reason = str(error).replace(" row 0: ", ": ", 1)  # its place in a batch of one
                result.refused.append((row, reason, isinstance(error, ConflictError)))
        return result

    def _counts(self, records: Sequence[Record]) -> dict[str, int]:
        accepted = self._take(records)
        return {
            "accepted": accepted.rows,
            "duplicates": accepted.duplicates,
            "late": accepted.late,
            "decided": accepted.decided,
        }


class DaemonSink:
    """Records to a daemon, over one connection.

    url: http, https, or unix:///PATH of a socket. token: of scope `route`, None where none is
    needed. Raises AgentError for a url that is none, and from `take` where the daemon refuses a
    request as a whole.
    """

    rows_at_once = 100
    """A bulk answer lists so many refused rows, and no more."""

    def __init__(self, url: str, token: str | None, kind: Kind) -> None:
        try:
            address = Address.of(url)
        except ValueError as error:
            raise AgentError(str(error)) from None
        self._connection = address.connection(TIMEOUT_SECONDS)
        self._path = f"{address.path}/v1/{kind}"
        self._bulk = kind != "outcomes"
        content = "application/x-ndjson" if self._bulk else "application/json"
        self._headers = {"Content-Type": content}
        if token is not None:
            self._headers["Authorization"] = f"Bearer {token}"

    def close(self) -> None:
        self._connection.close()

    def take(self, records: Sequence[Record]) -> BatchResult:
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
        counts = Counter({name: answer.get(name, 0) for name in ("duplicates", "late", "decided")})
        counts["accepted"] = answer["rows" if self._bulk else "accepted"]
        refused = answer["rejects" if self._bulk else "rejected"]
        return BatchResult(
            counts,
            [
                (each["index"], _IN_BODY.sub("", each["detail"]), each["status"] == 409)
                for each in refused
            ],
        )
