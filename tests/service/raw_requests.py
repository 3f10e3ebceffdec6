"""Requests as bytes on a socket, for tests of what the server makes of them."""

from __future__ import annotations

import json
import socket

from running import Running

TOKEN = "authorization: Bearer a-token-of-some-length\r\n"


class Raw:
    """A connection that says exactly what it is told."""

    def __init__(self, daemon: Running) -> None:
        self.socket = socket.create_connection(("127.0.0.1", daemon.port), timeout=10)
        self.file = self.socket.makefile("rb")

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *error: object) -> None:
        self.file.close()
        self.socket.close()

    def say(self, text: str | bytes) -> None:
        self.socket.sendall(text.encode() if isinstance(text, str) else text)

    def hear(self) -> tuple[int, dict[str, str], bytes]:
        """One answer; (0, {}, b"") where the connection was closed."""
        first = self.file.readline()
        if not first:
            return 0, {}, b""
        headers = {}
        while line := self.file.readline().strip():
            name, _, value = line.decode().partition(": ")
            headers[name.lower()] = value
        return int(first.split()[1]), headers, self.file.read(int(headers["content-length"]))


def asked(name: str, words: object = 1.0) -> str:
    return json.dumps({"request_id": name, "routed": "large", "features": {"words": words}})


def plainly(body: str, more: str = TOKEN, version: str = "1.1") -> str:
    """A request that is answered directly."""
    head = f"POST /v1/decide HTTP/{version}\r\nhost: x\r\n{more}content-length: {len(body)}"
    return f"{head}\r\n\r\n{body}"


def in_chunks(body: str, more: str = TOKEN) -> str:
    """The same request, by ASGI."""
    head = f"POST /v1/decide HTTP/1.1\r\nhost: x\r\n{more}transfer-encoding: chunked"
    return f"{head}\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\n"
