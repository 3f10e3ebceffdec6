"""What hostile or broken clients send: a clear answer or a closed connection, and no harm."""

from __future__ import annotations

import contextlib
import socket
import time

import pytest
from running import Running, running, until

SERVICE = """
[service.limits]
body_bytes = 10000
rows = 50
connections = 200
header_seconds = 0.6
body_seconds = 0.6
idle_seconds = 1
"""


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("limits"), SERVICE) as started:
        yield started


@pytest.fixture(autouse=True)
def unharmed(daemon: Running):
    """After every attack the daemon decides as before."""
    yield
    until(lambda: daemon.ask("GET", "/readyz").status == 200)
    assert daemon.decide(f"after-{time.monotonic_ns()}")["decision_id"]
    assert not [line for line in daemon.log if '"level":"error"' in line]


def connected(daemon: Running) -> socket.socket:
    return socket.create_connection(("127.0.0.1", daemon.port), timeout=10)


def cut_off(client: socket.socket, byte: bytes) -> bool:
    """Whether the other side closes while such bytes come one at a time."""
    for _ in range(1000):
        try:
            client.sendall(byte)
        except OSError:
            return True
        time.sleep(0.05)
    return False


def everything(client: socket.socket) -> bytes:
    """All that comes until the other side closes."""
    parts = []
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            parts.append(part)
    return b"".join(parts)


def test_a_body_beyond_the_limit_is_refused(daemon: Running):
    answer = daemon.ask("POST", "/v1/decide", b" " * 10_001)
    assert answer.status == 413
    assert answer.json["limit"] == "10000 bytes"
    assert answer.headers["connection"] == "close"
    assert daemon.ask("POST", "/v1/decide", b" " * 10_000).status == 400
    assert daemon.ask("PUT", "/v1/budget", b" " * 10_001).status == 413


@pytest.mark.parametrize("chunked", [False, True])
def test_half_a_gigabyte_is_refused_without_being_kept(daemon: Running, chunked):
    piece = bytes(1 << 20)
    with connected(daemon) as client:
        head = b"transfer-encoding: chunked" if chunked else b"content-length: %d" % (1 << 29)
        client.sendall(b"POST /v1/outcomes HTTP/1.1\r\nhost: x\r\n" + head + b"\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(1 << 9):
                client.sendall(b"100000\r\n" + piece + b"\r\n" if chunked else piece)
            client.sendall(b"0\r\n\r\n" if chunked else b"")
        answer = everything(client)
    assert answer.startswith(b"HTTP/1.1 413 "), answer[:200]
    status = (daemon_status(daemon)).partition("VmHWM:")[2].split()
    assert int(status[0]) < 400_000, "kilobytes at the most ever"


@pytest.mark.parametrize("cut", range(1, 24))
def test_a_body_in_chunks_may_come_in_two_packets(daemon: Running, cut: int):
    """Cut behind a line end inside a chunk, its size or its end, too."""
    body = b"4\r\n[\r\n \r\n2\r\n\n]\r\n0\r\n\r\n"
    with connected(daemon) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        client.sendall(
            b"POST /v1/outcomes HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
            + body[:cut]
        )
        time.sleep(0.05)
        client.sendall(body[cut:])
        assert client.recv(65536).startswith(b"HTTP/1.1 200 ")


def daemon_status(daemon: Running) -> str:
    with open(f"/proc/{daemon.process.pid}/status") as file:
        return file.read()


def test_too_many_rows_are_refused(daemon: Running):
    rows = [{"decision_id": "d0"}] * 51
    answer = daemon.ask("POST", "/v1/outcomes", rows)
    assert (answer.status, answer.json["limit"]) == (413, "50 rows")


@pytest.mark.parametrize("sent", [b"", b"POST /v1/de", b"GET / HTTP/1.1\r\nhost: x\r\nx: "])
def test_a_header_that_never_ends_is_cut_off(daemon: Running, sent):
    with connected(daemon) as client:
        client.sendall(sent)
        assert everything(client).startswith(b"HTTP/1.1 408 ")


def test_a_header_a_byte_at_a_time_is_cut_off(daemon: Running):
    with connected(daemon) as client:
        assert cut_off(client, b"G")


def test_a_body_a_byte_at_a_time_is_cut_off(daemon: Running):
    with connected(daemon) as client:
        client.sendall(b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-length: 5000\r\n\r\n")
        assert cut_off(client, b"{")
        answer = everything(client)
        assert answer == b"" or answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(daemon: Running):
    for _ in range(20):
        with connected(daemon) as client:
            client.sendall(b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-length: 500\r\n\r\n{")


def test_headers_without_end_are_refused(daemon: Running):
    with connected(daemon) as client, contextlib.suppress(OSError):
        client.sendall(b"GET /healthz HTTP/1.1\r\nhost: x\r\n")
        for number in range(2000):
            client.sendall(b"x-%d: " % number + b"y" * 100 + b"\r\n")
        client.sendall(b"\r\n")
        assert everything(client).startswith(b"HTTP/1.1 431 ")


def test_an_idle_connection_is_closed(daemon: Running):
    with connected(daemon) as client:
        asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"
        client.sendall(asked)
        first = client.recv(65536)
        assert first.startswith(b"HTTP/1.1 200 ")
        client.sendall(asked)
        answer = everything(client)
        assert b"HTTP/1.1 200 " in answer, "and not before it was idle"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x00\x01\x02\r\n\r\n",
        b"NONSENSE\r\n\r\n",
        b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
        b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"GET /%00%ff%2e%2e/ HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /healthz HTTP/9.9\r\n\r\n",
        b"GET /v1/estimates?family=%ff HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n",
    ],
)
def test_what_is_no_http_gets_4xx_or_nothing(daemon: Running, sent):
    with connected(daemon) as client:
        client.sendall(sent)
        answer = everything(client)
    assert answer == b"" or answer[9:10] in b"42", answer[:100]


def test_a_thousand_slow_clients_do_not_keep_others_out(daemon: Running):
    """Connections beyond the limit are told so; when the slow ones are cut off there is room."""
    slow = []
    try:
        for _ in range(1000):
            client = connected(daemon)
            client.sendall(b"POST /v1/decide HTTP/1.1\r\nhost: x\r\ncontent-le")
            slow.append(client)
        with connected(daemon) as client, contextlib.suppress(ConnectionResetError):
            assert client.recv(100)[9:12] in (b"503", b"408", b"")
        until(lambda: answers(daemon))
    finally:
        for client in slow:
            client.close()


def answers(daemon: Running) -> bool:
    try:
        return daemon.ask("GET", "/healthz").status == 200
    except (OSError, ValueError):
        return False
