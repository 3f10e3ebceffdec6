"""Hot requests answered without a task or an ASGI cycle.

A hot request that arrives whole is answered while its bytes are being parsed, or together with
those that arrive in the same turn of the loop: that saves about two thirds of the server's own
work per request. Everything out of the ordinary (no
length given, a large body, `Expect`, an answer still under way, a client that does not read) goes
the ASGI way, which answers the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

from equipoise.agent.service.front import Front
from equipoise.agent.service.protocol import GuardedProtocol

_HEAD = {
    status.value: (f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-length: ").encode()
    for status in HTTPStatus
}


class DirectProtocol(GuardedProtocol):
    """front: gives the answers. Other parameters as of `GuardedProtocol`."""

    def __init__(self, front: Front, **others: Any) -> None:
        super().__init__(**others)
        self._front = front
        self._path: str | None = None
        self._parts: list[bytes] = []
        self._late: asyncio.TimerHandle | None = None

    def on_message_begin(self) -> None:
        if self._asked:
            self._front.settle()  # answers leave in the order of their requests, refusals too
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._begin_body()
        path = self._direct_path()
        if path is None:
            super().on_headers_complete()
        else:
            self._path = path

    def on_body(self, body: bytes) -> None:
        if self._path is None:
            super().on_body(body)
        else:
            self._parts.append(body)

    def on_message_complete(self) -> None:
        path, self._path = self._path, None
        if path is None:
            super().on_message_complete()
            return
        body = b"".join(self._parts)
        self._parts.clear()
        keep = self.parser.get_http_version() != "1.0" and self.parser.should_keep_alive()
        self._in_body, self._ended = False, not keep

        def reply(status: int, text: bytes, headers: Mapping[str, str]) -> None:
            self._asked = False
            self._write(status, text, headers, keep)

        self._asked = True
        self._front.answer(path, self.headers, body, reply)

    def _parsed(self) -> None:
        if self._path is not None:
            if self._late is None:
                seconds = self._guard.body_seconds
                self._late = self.loop.call_later(seconds, self._refuse, 408)
        elif self._late is not None:
            self._late.cancel()
            self._late = None

    def connection_lost(self, exc: Exception | None) -> None:
        if self._late is not None:
            self._late.cancel()
        self._path = None
        super().connection_lost(exc)

    def _direct_path(self) -> str | None:
        """The path of a hot request that can be answered at once, None for all others."""
        path, most = self._front.direct.get(self.url, (None, 0))
        if path is None or self.parser.get_method() != b"POST":
            return None
        if self._answering or self.pipeline or self.expect_100_continue or self.flow.write_paused:
            return None
        if self.transport.is_closing() or self._body_left is None or self._body_left > most:
            return None
        return path

    def shutdown(self) -> None:
        if self._asked:
            self._front.settle()
        super().shutdown()

    def _refuse(self, status: int) -> None:
        if self._asked:
            self._front.settle()
        super()._refuse(status)

    def _write(self, status: int, body: bytes, headers: Mapping[str, str], keep: bool) -> None:
        if self.transport.is_closing():
            return
        lines = "".join(f"\r\n{name}: {value}" for name, value in headers.items())
        end = b"\r\n\r\n" if keep else b"\r\nconnection: close\r\n\r\n"
        self.transport.write(b"%s%d%s%s%s" % (_HEAD[status], len(body), lines.encode(), end, body))
        self.server_state.total_requests += 1
        if not keep:
            self.transport.close()
            return
        self._unset_keepalive_if_required()
        self.timeout_keep_alive_task = self.loop.call_later(
            self.timeout_keep_alive, self.timeout_keep_alive_handler
        )
