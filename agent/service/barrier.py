"""Where answers wait for the disk: those that come together share one fsync."""

from __future__ import annotations

import asyncio
from collections.abc import Callable


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
