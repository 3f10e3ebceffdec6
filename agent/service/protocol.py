"""Limits that only the connection can keep: how many, how slow, how much header.

uvicorn bounds none of these by itself: a client may connect and say nothing, send a header a byte
a minute, or send headers without end.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from equipoise.agent.service.settings import LimitSettings

HEADER_BYTES = 32_768
"""Request line and headers together."""

_REASONS = {
    408: "Request Timeout",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class GuardedProtocol(HttpToolsProtocol):
    """uvicorn's protocol within `limits`. refused: answers given before any request was whole."""

    def __init__(self, limits: LimitSettings, refused: dict[int, int], **others: Any) -> None:
        super().__init__(**others)
        self._guard = limits
        self._refused = refused
        self._header_bytes = 0
        self._waiting = True
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self._guard.connections:
            self._refuse(503)
            return
        self._wait_for_header()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._waiting:
            self._stop_waiting()
        elif self._deadline is None:
            self._wait_for_header()

    def on_message_begin(self) -> None:
        self._waiting, self._header_bytes = True, 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(url)
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(name, value)
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._waiting = False
        if not self.transport.is_closing():
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if self.cycle is not None:
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.cycle is not None:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        # A body that nobody reads would hold the connection for as long as it drips.
        if self.cycle is not None and self.cycle.more_body and not self.transport.is_closing():
            self.transport.close()
        super().on_response_complete()

    def _count(self, *parts: bytes) -> None:
        self._header_bytes += sum(map(len, parts))
        if self._header_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._refuse(431)

    def _wait_for_header(self) -> None:
        self._deadline = self.loop.call_later(self._guard.header_seconds, self._refuse, 408)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _refuse(self, status: int) -> None:
        self._refused[status] = self._refused.get(status, 0) + 1
        body = (
            b'{"title":"%s","status":%d,"detail":"see the limits of this server",'
            b'"type":"urn:equipoise:problem:limit"}' % (_REASONS[status].encode(), status)
        )
        self.transport.write(
            b"HTTP/1.1 %d %s\r\ncontent-type: application/problem+json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s"
            % (status, _REASONS[status].encode(), len(body), body)
        )
        self.transport.close()
