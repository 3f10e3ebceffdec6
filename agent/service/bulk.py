"""Bulk bodies: a record a line (NDJSON), taken in as it streams, judged line by line."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Generic, TypeVar

import msgspec

from equipoise.agent.ingest.places import Places
from equipoise.agent.service.halving import take_apart
from equipoise.agent.service.problems import problem_of, refuse
from equipoise.agent.service.schema import BulkAnswer, Rejected
from equipoise.store.records import Observation, Simulation

R = TypeVar("R", Observation, Simulation)

ROWS_AT_ONCE = 256
"""Rows between two looks at other requests: about two milliseconds of work."""
SHOWN_REJECTS = 100
LONGEST_LINE = 1 << 20


class Bulk(Generic[R]):
    """One bulk body. take: takes records all or none, and says what became of them."""

    def __init__(self, kind: type[R], take: Callable[[Sequence[R]], dict[str, int]]) -> None:
        self._decode: Callable[[bytes], R] = msgspec.json.Decoder(kind).decode
        self._take: Callable[[Sequence[R]], dict[str, int]] = take
        self._line = 0
        self._lines: list[int] = []
        self._records: list[R] = []
        self._totals: Counter[str] = Counter()
        self._rejected = 0
        self._rejects: list[Rejected] = []
        self._places: Places[int] = Places()

    async def read(self, chunks: AsyncGenerator[bytes, None]) -> BulkAnswer:
        """Take in every line of the body. What was taken stays taken if the body breaks off."""
        rest = b""
        async with contextlib.aclosing(chunks):
            async for chunk in chunks:
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    await self._read_line(line)
                if len(rest) > LONGEST_LINE:
                    limit = f"{LONGEST_LINE} bytes"
                    raise refuse(413, f"line {self._line} is longer than {limit}", limit=limit)
        await self._read_line(rest)
        self._flush()
        return BulkAnswer(
            rows=self._totals["rows"],
            duplicates=self._totals["duplicates"],
            rejected=self._rejected,
            rejects=sorted(self._rejects, key=lambda row: row.index),
        )

    async def _read_line(self, line: bytes) -> None:
        number, self._line = self._line, self._line + 1
        if not line.strip():
            return
        try:
            self._records.append(self._decode(line))
            self._lines.append(number)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            document = problem_of(error)
            self._reject(number, document.status, document.detail)
        if len(self._records) >= ROWS_AT_ONCE:
            self._flush()
            await asyncio.sleep(0)

    def _flush(self) -> None:
        rejected: list[Rejected] = []
        if self._records:
            rows = range(len(self._records))
            self._totals += take_apart(self._records, rows, self._take, rejected)
        refused = {row.index: row for row in rejected}
        for at, record in enumerate(self._records):
            if at not in refused:
                self._places.keep(record, self._lines[at])
                continue
            row, detail = refused[at], refused[at].detail
            if row.status == 409:
                same = [str(line) for line in self._places.of(record)]
                detail += f" (index {same[0]} of this body)" if same else ""
            self._reject(self._lines[at], row.status, detail)
        self._records, self._lines = [], []

    def _reject(self, line: int, status: int, detail: str) -> None:
        self._rejected += 1
        if len(self._rejects) < SHOWN_REJECTS:
            self._rejects.append(Rejected(index=line, status=status, detail=detail))
