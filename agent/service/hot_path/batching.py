"""Micro-batching and group commit: decisions of one turn of the loop, answers of one fsync.

One decision takes 33 us on plain numbers; array operations take as long for one row as for fifty,
and 64 decisions together take 11 us each. So a request is answered as soon as it is there, unless
many came within a millisecond: those of one turn of the loop are then answered together when it
ends, and the dearer the load, the cheaper a decision. Nobody waits for anybody who has not arrived
yet.
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
FEWEST_TOGETHER = 8
"""Fewer decisions together cost more than they cost alone."""
WINDOW_SECONDS = 0.001
"""So many in the present or in the last window make it a crowd."""


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
        self._since = self._count = self._before = 0.0

    def add(self, body: bytes, reply: Callable[[Answer], None]) -> None:
        """Call `reply` with the answer to this body, at the end of the turn at the latest."""
        loop = asyncio.get_running_loop()
        now = loop.time()
        passed = now - self._since
        if passed >= WINDOW_SECONDS:
            self._before = self._count if passed < 2 * WINDOW_SECONDS else 0
            self._since, self._count = now, 0
        self._count += 1
        self._batch.append((body, reply))
        if self._count < FEWEST_TOGETHER and self._before < FEWEST_TOGETHER:
            self.flush()
        elif len(self._batch) == 1:
            loop.call_soon(self.flush)
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
