"""Nobody holds the loop: offers to upgrade, pipelined requests, broken lines, descriptors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import resource
import socket
import subprocess
from collections.abc import AsyncGenerator, Sequence
from pathlib import Path

import pytest
import yaml
from running import COMMAND, Running, running, until, write_config
from test_direct import Raw, asked

from equipoise.agent.service.handlers.admin import Bulk
from equipoise.agent.service.http.connection_limits import Turns, _without_upgrade
from equipoise.store.records import Observation

SERVICE = "[service.limits]\nbody_seconds = 30\nheader_seconds = 5"
OFFER = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAoAAA\r\n"
)
HEALTH = "GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with running(tmp_path_factory.mktemp("turns"), SERVICE) as started:
        yield started


def request(name: str, before: str = "", after: str = "", method: str = "POST") -> str:
    """A decide whose header has lines before and after its length."""
    body = asked(name)
    length = f"Content-Length: {len(body)}\r\n"
    return f"{method} /v1/decide HTTP/1.1\r\nHost: x\r\n{before}{length}{after}\r\n{body}"


OFFERS = [
    OFFER,
    OFFER.upper(),
    "Upgrade: h2c\r\nConnection: Upgrade\r\n",
    "connection: keep-alive, Upgrade\r\nupgrade: h2c, TLS/1.0\r\n",
    "Connection: Upgrade\r\nUpgrade: TLS/1.3\r\n",
    "Connection: Upgrade\r\nUpgrade:foo/2\r\nUpgrade: bar\r\n",
    "Connection: Upgrade\r\nUpgrade: h2c,\r\n foo/2\r\n",
    "Upgrade: h2c\r\n",
]


@pytest.mark.parametrize("offer", OFFERS)
def test_an_offer_to_upgrade_is_ignored(daemon: Running, offer: str):
    name = f"offer-{OFFERS.index(offer)}"
    with Raw(daemon) as one:
        for number, (before, after) in enumerate(((offer, ""), ("", offer))):
            one.say(request(f"{name}-{number}", before, after))
            status, headers, body = one.hear()
            assert (status, headers.get("upgrade")) == (200, None), body
            assert json.loads(body)["request_id"] == f"{name}-{number}"
        # Behind others, in pieces, in chunks, and for a request without a body.
        body = asked(f"{name}-c")
        chunked = f"transfer-encoding: chunked\r\n\r\n{len(body):x}\r\n{body}\r\n0\r\n\r\n"
        head = "POST /v1/decide HTTP/1.1\r\nHost: x\r\n"
        read = f"GET /healthz HTTP/1.1\r\nHost: x\r\n{offer}\r\n"
        text = request(f"{name}-a", offer) + read + head + offer + chunked + request(f"{name}-b")
        one.say(text[:150])
        one.say(text[150:])
        heard = [one.hear() for _ in range(4)]
        assert [status for status, _, _ in heard] == [200] * 4
        names = [json.loads(text).get("request_id") for _, _, text in heard]
        assert names == [f"{name}-a", None, f"{name}-c", f"{name}-b"]


def test_who_offers_an_upgrade_may_ask_first_whether_to_send(daemon: Running):
    head, _, body = request("offer-expect", OFFER + "Expect: 100-continue\r\n").partition(
        "\r\n\r\n"
    )
    with Raw(daemon) as one:
        one.say(f"{head}\r\n\r\n")
        assert one.file.readline().startswith(b"HTTP/1.1 100 ")
        assert one.file.readline() == b"\r\n"
        one.say(body)
        assert one.hear()[0] == 200


def test_a_websocket_is_refused_and_nothing_else(daemon: Running):
    shake = (
        "Connection: Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Version: 13\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    )
    with Raw(daemon) as one:
        for path in ("/v1/estimates", "/v1/decide", "/readyz", "/"):
            one.say(f"GET {path} HTTP/1.1\r\nHost: x\r\n{shake}\r\n")
            status, _, body = one.hear()
            assert status == (405 if path == "/v1/decide" else 400), path
            assert b"WebSockets" in body or path == "/v1/decide"
        one.say(request("shake", shake))
        assert one.hear()[0] == 400
        one.say(request("after-shake"))
        assert one.hear()[0] == 200


def test_only_the_offer_is_taken_out_of_a_header():
    header = b"POST /upgrade HTTP/1.1\r\nX-Upgrade: 1\r\nUpgrade-Insecure-Requests: 1\r\n\r\n"
    assert _without_upgrade(header) == header
    offer = header.replace(b"X-Upgrade", b"uPgrade:  h2c\r\nX-Upgrade")
    assert _without_upgrade(offer) == header


def test_a_length_beyond_the_limit_is_refused_before_anything_comes(daemon: Running):
    for expect in ("", "Expect: 100-continue\r\n"):
        with Raw(daemon) as one:
            one.socket.settimeout(15)  # half of what a body may take
            head = "POST /v1/decide HTTP/1.1\r\nHost: x\r\nContent-Length: "
            one.say(f"{head}{10**18}\r\n{expect}\r\n")
            assert one.hear()[0] == 413


def memory(daemon: Running) -> int:
    """Megabytes."""
    text = Path(f"/proc/{daemon.process.pid}/status").read_text()
    return int(re.findall(r"VmRSS:\s+(\d+)", text)[0]) // 1024


def test_pipelined_requests_wait_unread(daemon: Running):
    before = memory(daemon)
    with contextlib.ExitStack() as stack:
        for _ in range(8):
            greedy = stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            greedy.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                greedy.send(HEALTH.encode() * 9000)
        assert daemon.decide("beside")["decision_id"]
        assert memory(daemon) - before < 40, "one connection held 20 MB"
    until(lambda: memory(daemon) - before < 40)


def test_who_reads_no_answer_cannot_send_for_ever(daemon: Running):
    """What the kernel holds for both ends is below 16 MB; the daemon adds nothing to that."""
    most = 40_000_000
    with socket.create_connection(("127.0.0.1", daemon.port), timeout=1) as greedy:
        sent, many = 0, HEALTH.encode() * 5000
        with contextlib.suppress(TimeoutError):
            while sent < most:
                sent += greedy.send(many[sent % len(HEALTH) :])
        assert sent < most
        assert daemon.decide("beside-it")["decision_id"]


def test_every_pipelined_request_is_answered_in_order(daemon: Running):
    """Whatever their kind, however they come, with a body in chunks between them."""
    body = asked("chunked")
    chunked = (
        "POST /v1/decide HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        f"5\r\n{body[:5]}\r\n{len(body) - 5:x}\r\n{body[5:]}\r\n0\r\n\r\n"
    )
    text, names = "", []
    for number in range(60):
        text += request(f"line-{number}") + HEALTH + "\r\n"
        names += [f"line-{number}", None]
        if number % 7 == 3:
            text += chunked
            names.append("chunked")
    for size in (len(text), 1000, 131):
        with Raw(daemon) as one:
            for start in range(0, len(text), size):
                one.say(text[start : start + size])
            heard = [json.loads(one.hear()[2]).get("request_id") for _ in names]
        assert heard == names, size


def test_what_follows_the_last_request_is_none(daemon: Running):
    with Raw(daemon) as one:
        last = request("last", "Connection: close\r\n")
        one.say(last + request("beyond") + HEALTH)
        assert one.hear()[0] == 200
        assert one.hear()[0] == 0
    answer = daemon.ask("POST", "/v1/decide", {**json.loads(asked("beyond")), "again": True})
    assert answer.status == 404


def test_those_who_wait_have_their_turns_in_order():
    class Connection:
        def __init__(self, name: str, loop: asyncio.AbstractEventLoop) -> None:
            self.name, self.loop, self.left = name, loop, 3

        def take_turn(self) -> None:
            had.append(self.name)
            self.left -= 1
            if self.left:
                turns.wait(self)  # type: ignore[arg-type]

    async def work() -> None:
        for name in "abc":
            turns.wait(Connection(name, asyncio.get_running_loop()))  # type: ignore[arg-type]
        for _ in range(20):
            had.append(".")
            await asyncio.sleep(0)

    had: list[str] = []
    turns = Turns()
    asyncio.run(work())
    assert "".join(had).replace(".", "") == "abcabcabc"
    assert max(map(len, "".join(had).split("."))) <= 2, "others come in between"
    assert len(turns) == 0


async def chunks(text: bytes) -> AsyncGenerator[bytes, None]:
    for start in range(0, len(text), 60_000):
        yield text[start : start + 60_000]


def nothing(rows: Sequence[Observation]) -> dict[str, int]:
    return {"rows": len(rows)}


GOOD = b'{"routed":"large","features":{},"outputs":{},"reward":1}\n'


@pytest.mark.parametrize("line", [b"{\n", b"\n", b"\xff\n", b"[" * 500 + b"\n", GOOD])
def test_lines_of_any_kind_let_others_in(line: bytes):
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    async def work() -> None:
        beside = asyncio.create_task(others())
        count = min(4_000_000 // len(line), 300_000)
        await Bulk(Observation, nothing, 10**9).read(chunks(line * count))
        beside.cancel()

    asyncio.run(work())
    assert turns >= 5, "so much is at least 5 ms of work, and a turn is 1"


def test_a_body_ends_after_so_many_refused_lines(tmp_path: Path):
    with running(tmp_path, "[service.limits]\nrejects = 50") as daemon:
        good = (
            b'{"request_id":"o1","routed":"large","features":{"words":1},"outputs":{"seconds":1},'
        )
        good += b'"reward":1}\n'
        wrong = good.replace(b'"reward":1', b'"reward":9').replace(b"o1", b"o2")
        answer = daemon.ask("POST", "/v1/observations", good + b"{\n" * 20 + wrong * 30)
        assert (answer.status, answer.json["rows"], answer.json["rejected"]) == (200, 1, 50)
        for lines in (b"{\n" * 51, wrong * 51, b"{\n" * 100_000):
            answer = daemon.ask("POST", "/v1/observations", lines)
            assert (answer.status, answer.json["limit"]) == (413, "50 refused lines")
        fresh = good.replace(b"o1", b"o3")
        answer = daemon.ask("POST", "/v1/observations", fresh + b"{\n" * 51)
        assert answer.status == 413
        assert daemon.ask("POST", "/v1/observations", fresh).json["duplicates"] == 0
        assert daemon.ask("POST", "/v1/observations", fresh).json["duplicates"] == 1


def test_descriptors_are_raised_or_fewer_connections_are_taken(tmp_path: Path):
    def limited(soft: int, hard: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    (tmp_path / "raised").mkdir()
    with running(tmp_path / "raised", before=lambda: limited(200, 6000)) as daemon:
        text = Path(f"/proc/{daemon.process.pid}/limits").read_text()
        assert re.findall(r"Max open files\s+(\d+)", text) == ["4224"]
    (tmp_path / "few").mkdir()
    with running(tmp_path / "few", before=lambda: limited(200, 400)) as daemon:
        assert daemon.decide("one")["decision_id"]
        until(lambda: any('"descriptors"' in line for line in daemon.log))
        with contextlib.ExitStack() as stack:
            for _ in range(300):
                stack.enter_context(socket.create_connection(("127.0.0.1", daemon.port)))
            until(lambda: any('"connections-refused"' in line for line in daemon.log))
        until(lambda: answers(daemon))
        assert daemon.decide("two")["decision_id"], "the store had its files all the time"
        assert not [line for line in daemon.log if '"level":"error"' in line]


def answers(daemon: Running) -> bool:
    try:
        return daemon.ask("GET", "/healthz").status == 200
    except (OSError, ValueError):
        return False


def test_check_compares_descriptors_with_connections(tmp_path: Path):
    path = write_config(tmp_path, "[service.limits]\nconnections = 300")

    def said(hard: int) -> str:
        return subprocess.run(
            [*COMMAND, "serve", "--config", path, "--check"],
            capture_output=True,
            text=True,
            check=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard)),
        ).stdout

    sentence = " ".join(said(200).split())
    assert "728 file descriptors; the hard limit is 200: 36 connections" in sentence
    assert "descriptors" not in said(4096)


def test_the_kill_switch_is_no_server_error(daemon: Running):
    """The alarm's own selector, on the daemon's own metrics."""
    rules = yaml.safe_load((Path(__file__).parents[2] / "docs/operations/alerts.yml").read_text())
    (alarm,) = (
        rule["expr"]
        for group in rules["groups"]
        for rule in group["rules"]
        if rule["alert"] == "EquipoiseErrors"
    )
    (inner,) = re.findall(r"equipoise_responses_total\{(.*?)\}", alarm, flags=re.DOTALL)
    wanted = re.findall(r'(\w+)(=~|!=|=)"(.*?)"', inner)

    def counted() -> float:
        total = 0.0
        for line in daemon.ask("GET", "/metrics").body.decode().splitlines():
            found = re.fullmatch(r"equipoise_responses_total\{(.*)\} (\S+)", line)
            labels = dict(re.findall(r'(\w+)="(.*?)"', found[1])) if found else {}
            fits = {"=~": lambda a, b: bool(re.fullmatch(b, a)), "!=": str.__ne__, "=": str.__eq__}
            if found and all(fits[how](labels[name], value) for name, how, value in wanted):
                total += float(found[2])
        return total

    assert counted() == 0
    switch = Path(f"{daemon.store}.kill")
    switch.touch()
    try:
        until(lambda: daemon.ask("GET", "/readyz").status == 503)
        assert counted() == 0
        text = daemon.ask("GET", "/metrics").body.decode()
        assert 'equipoise_responses_total{route="/readyz",status="503"}' in text
    finally:
        switch.unlink()
    until(lambda: daemon.ask("GET", "/readyz").status == 200)
