"""Decisions asked for in one turn of the event loop, decided together.

Most of what a single decision costs are array operations that take as long for one row as for
fifty. Under load several requests arrive within one turn: they are answered together when it ends,
so the dearer the load, the cheaper a decision. Nobody waits for anybody who has not arrived yet.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TypeAlias

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
