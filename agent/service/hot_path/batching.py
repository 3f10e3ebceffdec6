"""Decisions of one turn of the event loop are taken together; their answers share one fsync.

Most of what a single decision costs are array operations that take as long for one row as for
fifty. Under load several requests arrive within one turn: they are answered together when it ends,
so the dearer the load, the cheaper a decision. Nobody waits for anybody who has not arrived yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias


class Barrier:
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
        waited = self._next
        if self._rounds is None:
            self._rounds = asyncio.get_running_loop().create_task(self._go_round())
        # A client that leaves takes only itself away.
        await asyncio.shield(waited)

    async def _go_round(self) -> None:
        while self._next is not None:
            waited, self._next = self._next, None
            try:
                await asyncio.to_thread(self._begin())
            except Exception as error:
                waited.set_exception(error)
                waited.exception()  # heard, even if every client has left
            else:
                waited.set_result(None)
        self._rounds = None


Decide: TypeAlias = Callable[[Sequence[bytes]], list[bytes | Exception]]
Reply: TypeAlias = Callable[[bytes | Exception], None]

MOST = 64
"""Requests that are decided at once; half a millisecond."""


class Gathering:
    """decide: answers or errors for bodies, in their order; it never raises. report: told of
    replies that do."""

    def __init__(self, decide: Decide, report: Callable[[Exception], None]) -> None:
        self._decide = decide
        self._report = report
        self._asked: list[tuple[bytes, Reply]] = []

    def ask(self, body: bytes, reply: Reply) -> None:
        """Call `reply` with the answer to this body at the end of the turn, or before."""
        self._asked.append((body, reply))
        if len(self._asked) == 1:
            asyncio.get_running_loop().call_soon(self.answer)
        elif len(self._asked) >= MOST:
            self.answer()

    def answer(self) -> None:
        """Answer everybody who has asked so far."""
        asked, self._asked = self._asked, []
        if asked:
            answers = self._decide([body for body, _ in asked])
            for (_, reply), answer in zip(asked, answers, strict=True):
                try:
                    reply(answer)
                except Exception as error:  # one connection's trouble is not the next one's
                    self._report(error)
