"""How long a decision takes while one client does its worst, beside quiet phases of the same run.

python tests/service/flood.py --seconds 10 --rounds 3

The client pipelines on five connections, floods broken bulk lines, idles on 1,500 connections, or
repeats every GET. Between two such phases the daemon is left alone; a phase is compared with the
quiet ones around it. What is measured is what a router waits: one connection, a request every few
milliseconds, the 99th percentile. Exits with 1 where a ratio of all rounds exceeds `--most`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import resource
import selectors
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from running import Running, running

GET = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
PAUSE_SECONDS = 0.004
IDLE_CONNECTIONS = 1500
MOST = 3.0


def pipelines(port: int) -> None:
    """Requests without end on five connections, answers read only to make room for more."""
    wanted = selectors.DefaultSelector()
    for _ in range(5):
        one = socket.create_connection(("127.0.0.1", port))
        one.setblocking(False)
        wanted.register(one, selectors.EVENT_READ | selectors.EVENT_WRITE, [0])
    many = GET * 5000
    while True:
        for key, events in wanted.select():
            one, sent = key.fileobj, key.data
            assert isinstance(one, socket.socket)
            if events & selectors.EVENT_READ:
                one.recv(1 << 20)
            if events & selectors.EVENT_WRITE:
                sent[0] += one.send(many[sent[0] % len(GET) :])


def broken_lines(port: int) -> None:
    """Bulk bodies of lines that are no JSON, and of rows that are refused."""
    row = {"routed": "large", "features": {"words": 1}, "outputs": {"seconds": 1}, "reward": 9}
    bodies = (b"{\n" * 500_000, (json.dumps(row).encode() + b"\n") * 5000, b"\n" * 1_000_000)
    while True:
        for body in bodies:
            ask(port, "POST", "/v1/observations", body)


def idles(port: int) -> None:
    """Open connections that say nothing; those that are closed are opened again."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2 * IDLE_CONNECTIONS), hard))
    while True:
        held = [socket.create_connection(("127.0.0.1", port)) for _ in range(IDLE_CONNECTIONS)]
        time.sleep(8.0)  # before the daemon gives them up
        for one in held:
            one.close()


def reads(port: int) -> None:
    """Every GET there is, again and again, one after the other."""
    document = json.loads(ask(port, "GET", "/openapi.json"))
    paths = [path for path, methods in document["paths"].items() if "get" in methods]
    paths = [path.replace("{decision_id}", "d1").replace("{rule_id}", "r1") for path in paths]
    paths += ["/metrics", "/", "/page/history", "/healthz", "/readyz"]
    paths += [f"/v1/estimates?family={name}" for name in ("ipw", "cvci,grounded", "doubly-robust")]
    while True:
        for path in paths:
            ask(port, "GET", path)


ATTACKS: dict[str, Callable[[int], None]] = {
    "pipelines": pipelines,
    "broken-lines": broken_lines,
    "idles": idles,
    "reads": reads,
}


def ask(port: int, method: str, path: str, body: bytes | None = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, path, body)
        return connection.getresponse().read()
    finally:
        connection.close()


class Router:
    """One connection that asks for decisions and reports what came of them."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
        self._number = 0

    def close(self) -> None:
        self._connection.close()

    def ask(self) -> float:
        """Seconds that one decision took."""
        self._number += 1
        name = f"router-{self._number}"
        body = {"request_id": name, "routed": "large", "features": {"words": self._number % 50}}
        begun = time.perf_counter()
        answer = self._post("/v1/decide", body)
        took = time.perf_counter() - begun
        assert answer["decision_id"] is not None, answer
        outcome = {"request_id": name, "reward": self._number % 3 / 2, "outputs": {"seconds": 1.0}}
        self._post("/v1/outcomes", outcome)
        return took

    def _post(self, path: str, body: object) -> dict[str, object]:
        self._connection.request("POST", path, json.dumps(body))
        response = self._connection.getresponse()
        answer: dict[str, object] = json.loads(response.read())
        assert response.status == 200, answer
        return answer


def phase(
    daemon: Running, router: Router, attack: str | None, seconds: float, after: float = 1.0
) -> list[float]:
    """What decisions took while a client does that, None for nothing. after: seconds of peace."""
    if attack is not None:
        command = [sys.executable, __file__, "--attack", attack, "--port", str(daemon.port)]
        client = subprocess.Popen(command)
        time.sleep(1.0)
    try:
        taken, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            taken.append(router.ask())
            time.sleep(PAUSE_SECONDS)
        return taken
    finally:
        if attack is not None:
            assert client.poll() is None, f"{attack} gave up"
            client.kill()
            client.wait()
            time.sleep(after)


def p99(taken: list[float]) -> float:
    """Milliseconds."""
    return 1000 * statistics.quantiles(taken, n=100)[98]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each phase")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--most", type=float, default=MOST, help="largest ratio that passes")
    parser.add_argument("--only", choices=[*ATTACKS])
    parser.add_argument("--attack", choices=[*ATTACKS], help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.attack:
        ATTACKS[given.attack](given.port)
        return
    names = [given.only] if given.only else [*ATTACKS]
    ratios: dict[str, list[float]] = {name: [] for name in names}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        daemon = stack.enter_context(running(Path(folder)))
        router = Router(daemon.port)
        stack.callback(router.close)
        phase(daemon, router, None, 2.0)
        quiet = p99(phase(daemon, router, None, given.seconds))
        for turn in range(given.rounds):
            for name in names:
                loud = p99(phase(daemon, router, name, given.seconds))
                after = p99(phase(daemon, router, None, given.seconds))
                ratio = loud / statistics.mean((quiet, after))
                ratios[name].append(ratio)
                print(
                    f"round {turn + 1} {name:12} p99 {loud:7.2f} ms, quiet before {quiet:6.2f}"
                    f" and after {after:6.2f} ms: {ratio:.2f}",
                    flush=True,
                )
                quiet = after
    print("\n| client | p99 of decide, times the quiet one: median | each round |\n|---|---|---|")
    for name, each in ratios.items():
        shown = ", ".join(f"{ratio:.2f}" for ratio in each)
        print(f"| {name} | {statistics.median(each):.2f} | {shown} |")
    sys.exit(any(statistics.median(each) > given.most for each in ratios.values()))


if __name__ == "__main__":
    main()
