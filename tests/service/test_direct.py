"""Two ways through the server, one answer: in the parser's call, and by ASGI."""

from __future__ import annotations

import json
import socket
import time

import pytest
from running import Running, running

SERVICE = """
[service.limits]
body_bytes = 5000
body_seconds = 0.5
idle_seconds = 1
[[service.tokens]]
name = "router"
token = "a-token-of-some-length"
"""
TOKEN = "authorization: Bearer a-token-of-some-length\r\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("direct"), SERVICE) as started:
        yield started


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


@pytest.mark.parametrize(
    ("body", "more", "status"),
    [
        (asked("same"), TOKEN, 200),
        (asked("same", 2.0), TOKEN, 409),
        (asked("other", "many"), TOKEN, 422),
        ("{", TOKEN, 400),
        (asked("same"), "", 401),
        (asked("same"), "authorization: Bearer wrong\r\n", 401),
    ],
)
def test_both_ways_answer_alike(daemon: Running, body: str, more: str, status: int):
    with Raw(daemon) as one:
        answers = []
        for way in (plainly, in_chunks, plainly):
            one.say(way(body, more))
            answers.append(one.hear())
        assert answers[0] == answers[1] == answers[2]
        assert answers[0][0] == status


def test_requests_on_one_connection_are_answered_in_order_whatever_their_way(daemon: Running):
    health = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
    with Raw(daemon) as one:
        one.say(plainly(asked("o1")) + health + plainly(asked("o2")) + in_chunks(asked("o3")))
        one.say(plainly(asked("o4")) + health)
        said = [json.loads(one.hear()[2]).get("request_id", "health") for _ in range(6)]
    assert said == ["o1", "health", "o2", "o3", "o4", "health"]


def test_a_refusal_does_not_overtake_the_answer_before_it(daemon: Running):
    endless = "POST /v1/decide HTTP/1.1\r\nhost: x\r\n" + 40 * f"filler: {1000 * 'a'}\r\n"
    with Raw(daemon) as one:
        one.say(plainly(asked("first")) + endless)
        assert one.hear()[0] == 200
        assert one.hear()[0] == 431


def test_a_request_may_come_in_any_pieces(daemon: Running):
    text = plainly(asked("pieces")).encode()
    with Raw(daemon) as one:
        for cut in (1, 20, 60, len(text) - 30, len(text) - 1):
            one.say(text[:cut])
            time.sleep(0.02)
            one.say(text[cut:])
            assert one.hear()[0] == 200


def test_a_body_that_does_not_come_is_given_up(daemon: Running):
    with Raw(daemon) as one:
        one.say(plainly(asked("slow"))[:-5])
        assert one.hear()[0] == 408
        assert one.hear()[0] == 0


def test_a_connection_is_kept_as_long_as_it_was_agreed(daemon: Running):
    with Raw(daemon) as one:
        one.say(plainly(asked("close"), TOKEN + "connection: close\r\n"))
        status, headers, _ = one.hear()
        assert (status, headers["connection"]) == (200, "close")
        assert one.hear()[0] == 0
    with Raw(daemon) as one:
        one.say(plainly(asked("old"), version="1.0"))
        assert one.hear()[0] == 200
        assert one.hear()[0] == 0
    with Raw(daemon) as one:
        for name in ("idle", "idle no more"):  # the first answer does not end it
            one.say(plainly(asked(name)))
            assert one.hear()[0] == 200
        assert one.hear()[0] == 0, "after a second without a request"


def test_what_asks_first_whether_it_may_send_is_told(daemon: Running):
    body = asked("expect")
    with Raw(daemon) as one:
        one.say(plainly(body, TOKEN + "expect: 100-continue\r\n").removesuffix(body))
        assert one.file.readline().startswith(b"HTTP/1.1 100 ")
        assert one.file.readline() == b"\r\n"
        one.say(body)
        assert one.hear()[0] == 200


def test_a_large_body_goes_the_other_way_and_is_refused(daemon: Running):
    with Raw(daemon) as one:
        one.say(plainly(" " * 5001))
        status, headers, _ = one.hear()
        assert (status, headers["connection"]) == (413, "close")
