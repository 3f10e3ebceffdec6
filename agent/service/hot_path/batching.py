"""Micro-batching and group commit: decisions of one turn of the loop, answers of one fsync.

Most of what a single decision costs are array operations that take as long for one row as for
fifty. Under load several requests arrive within one turn: they are answered together when it ends,
so the dearer the load, the cheaper a decision. Nobody waits for anybody who has not arrived yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias


class GroupCommit:
    """Group commit. begin: called in the loop; what it returns is called in a thread and puts
    everything written before `begin` on the disk, or raises."""

    def __init__(self, begin: Callable[[], Callable[[], None]]) -> None:
        self._begin = begin
        self._next: asyncio.Future[None] | None = None
        self._rounds: asyncio.Task[None] | None = None

    async def wait(self) -> None:
        """Return when everything that was written before this call is on the disk.

        Raises what the sync raised.
        """
        # The round that runs now may have begun before our write: only the next one covers it.
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        ours = self._next
        if self._rounds is None:
            self._rounds = asyncio.get_running_loop().create_task(self._go_round())
        # A client that leaves takes only itself away.
        await asyncio.shield(ours)

    async def _go_round(self) -> None:
        while self._next is not None:
            covered, self._next = self._next, None
            try:
                await asyncio.to_thread(self._begin())
            except Exception as error:
                covered.set_exception(error)
                covered.exception()  # retrieved, even if every client has left
            else:
                covered.set_result(None)
        self._rounds = None


Answer: TypeAlias = bytes | Exception

MOST = 64
"""Requests that are decided at once; half a millisecond."""


class MicroBatcher:
    """decide: answers or errors for bodies, in their order; it never raises. report: called with
    the error of a reply that fails."""

    def __init__(
        self,
        decide: Callable[[Sequence[bytes]], list[Answer]],
        report: Callable[[Exception], None],
    ) -> None:
        self._decide = decide
        self._report = report
        self._batch: list[tuple[bytes, Callable[[Answer], None]]] = []

    def add(self, body: bytes, reply: Callable[[Answer], None]) -> None:
        """Call `reply` with the answer to this body at the end of the turn, or before."""
        self._batch.append((body, reply))
        if len(self._batch) == 1:
            asyncio.get_running_loop().call_soon(self.flush)
        elif len(self._batch) >= MOST:
            self.flush()

    def flush(self) -> None:
        """Answer everything that was added so far."""
        batch, self._batch = self._batch, []
        if batch:
            answers = self._decide([body for body, _ in batch])
            for (_, reply), answer in zip(batch, answers, strict=True):
                try:
                    reply(answer)
                except Exception as error:  # one connection's trouble is not the next one's
                    self._report(error)
