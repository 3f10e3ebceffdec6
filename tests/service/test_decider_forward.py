"""What a decider hands to its authority: as it came, and back as it comes."""

from __future__ import annotations

import asyncio
import io
from pathlib import Path
from typing import Any

import msgspec

from equipoise.agent.config.service import LimitSettings
from equipoise.agent.service import decider
from equipoise.agent.service.decider import UNIX, Forward
from equipoise.agent.service.telemetry import Log


class Authority:
    """Answers one request at the file of a socket with fixed bytes; heard: what came."""

    def __init__(self, path: Path, answer: bytes) -> None:
        self.path, self.answer, self.heard = path, answer, b""

    async def __aenter__(self) -> Authority:
        self._server = await asyncio.start_unix_server(self._serve, self.path)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.heard += head
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        if length:
            self.heard += await reader.readexactly(int(length))
        elif b"chunked" in head:
            self.heard += await reader.read()
        writer.write(self.answer)
        await writer.drain()
        writer.close()


async def ask(
    forward: Forward,
    method: str,
    path: str,
    body: bytes = b"",
    query: bytes = b"",
    headers: list[tuple[bytes, bytes]] | None = None,
) -> tuple[int, dict[bytes, bytes], bytes]:
    sent: list[Any] = []
    parts = [body[:3], body[3:]]

    async def receive() -> dict[str, Any]:
        if not parts:
            return {"type": "http.disconnect"}
        part = parts.pop(0)
        return {"type": "http.request", "body": part, "more_body": bool(parts)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query,
        "headers": headers or [],
    }
    await forward(scope, receive, send)
    answer = b"".join(each.get("body", b"") for each in sent[1:])
    return sent[0]["status"], dict(sent[0]["headers"]), answer


OK = b"HTTP/1.1 201 Created\r\ncontent-length: 5\r\nx-one: 1\r\nconnection: close\r\n\r\nhello"


def forward_to(target: str | None, base: str = "") -> Forward:
    return Forward(target, LimitSettings(), Log("error", io.StringIO()), base)


def test_a_request_is_handed_on_as_it_came_and_its_answer_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Authority(tmp_path / "a", OK) as authority:
            forward = forward_to(f"{UNIX}{tmp_path / 'a'}", "/base")
            headers = [
                (b"host", b"example.net"),
                (b"authorization", b"Bearer token"),
                (b"connection", b"keep-alive"),
                (b"content-length", b"7"),
            ]
            status, back, body = await ask(
                forward, "POST", "/base/v1/pause", b"a-body.", b"x=1&y=%20", headers
            )
        assert (status, body) == (201, b"hello")
        assert back == {b"content-length": b"5", b"x-one": b"1"}
        head, _, came = authority.heard.partition(b"\r\n\r\n")
        line, *rest = head.split(b"\r\n")
        assert line == b"POST /v1/pause?x=1&y=%20 HTTP/1.1"
        assert sorted(each.lower() for each in rest) == [
            b"authorization: bearer token",
            b"content-length: 7",
            b"host: example.net",
        ]
        assert came == b"a-body."

    asyncio.run(scenario())


def test_a_request_without_a_body_has_none_on_its_way(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Authority(tmp_path / "a", OK) as authority:
            forward = forward_to(f"{UNIX}{tmp_path / 'a'}")
            status, _, _ = await ask(forward, "GET", "/v1/checks", headers=[(b"host", b"h")])
        assert status == 201
        assert authority.heard == b"GET /v1/checks HTTP/1.1\r\nhost: h\r\n\r\n"

    asyncio.run(scenario())


def test_an_authority_that_is_away_or_unknown_is_said(tmp_path: Path, monkeypatch: Any) -> None:
    async def scenario() -> None:
        gone = forward_to(f"{UNIX}{tmp_path / 'nobody'}")
        status, headers, body = await ask(gone, "GET", "/v1/checks")
        assert (status, headers[b"retry-after"]) == (503, b"1")
        assert "the authority does not answer" in msgspec.json.decode(body)["detail"]
        status, _, body = await ask(forward_to(None), "GET", "/v1/checks")
        assert status == 503
        assert "say where it is by `authority`" in msgspec.json.decode(body)["detail"]
        monkeypatch.setattr(decider, "AT_ONCE", 0)
        status, _, body = await ask(gone, "GET", "/v1/checks")
        assert status == 503
        assert msgspec.json.decode(body)["detail"] == "more for the authority than 0 at once"

    asyncio.run(scenario())


def test_a_body_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with Authority(tmp_path / "a", OK):
            limits = LimitSettings(bulk_bytes=4)
            log = Log("error", io.StringIO())
            forward = Forward(f"{UNIX}{tmp_path / 'a'}", limits, log, "")
            status, _, _ = await ask(forward, "POST", "/v1/observations", b"too long a body")
            assert status == 413

    asyncio.run(scenario())
