"""Decisions per second of one process, of one worker and of two, and what a row costs whom.

    python tests/performance/lanes_bench.py
    python tests/performance/lanes_bench.py --against OLD/.venv/bin/python --only before,alone
    python tests/performance/lanes_bench.py --only cost-sqlite,cost-postgres --rate 1500

alone: `serve` as ever. workers-1, workers-2: `serve --workers N`, with its authority. before:
`serve` of another checkout, in the same run. For each the highest rate is looked for at which 99%
of decisions take less than 10 ms; all take turns, round after round, so that what else the machine
does meets all of them. cost-alone, cost-sqlite, cost-postgres: processor time and bytes of one
decision and its outcome, by process, at a rate that the machine does easily.

The generator shares the machine, so it is light: requests go out in groups over kept connections,
at scheduled times whatever the server does, and a group counts from then until its last answer. Its
own processor time is told beside each figure.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

CONFIG = """
name = "bench"
models = [{name="m0", price=0.01}, {name="m1", price=0.02}, {name="m2", price=0.01},
          {name="m3", price=0.04}]
[features]
context = [{type="vector", name="x", length=8}]
outputs = [{type="vector", name="y", length=4}]
[policy]
rate = 0.2
[service]
log_level = "error"
"""
EQUIPOISE = "from equipoise.replay.cli import main; main()"
GROUP, CONNECTIONS = 8, 32
LIMIT_MS = 10.0
STEP = 1.15
WARM_SECONDS = 1.0
_clock = time.perf_counter


class Requests:
    """Decisions with ids of their own, a group at a time as bytes; and outcomes of them."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        groups = []
        for _ in range(64):
            parts = []
            for row in range(GROUP):
                x = json.dumps(np.round(rng.normal(size=8), 4).tolist())
                head = f'{{"request_id":"b{seed}-%09d","routed":"m{row % 4}",'
                body = f'{head}"features":{{"x":{x}}}}}'
                length = len(body % 0)
                parts.append(
                    f"POST /v1/decide HTTP/1.1\r\nhost: bench\r\ncontent-length: {length}\r\n\r\n"
                    + body
                )
            groups.append("".join(parts).encode())
        self._groups = groups
        self._seed = seed

    def group(self, index: int) -> bytes:
        first = index * GROUP
        return self._groups[index % 64] % tuple(range(first, first + GROUP))

    def outcomes(self, first: int, count: int) -> bytes:
        rows = [
            {"request_id": f"b{self._seed}-{at:09d}", "reward": at % 2, "outputs": {"y": [0.5] * 4}}
            for at in range(first, first + count)
        ]
        return json.dumps(rows).encode()


@dataclass
class Load:
    """What came of a stretch of load. latency: seconds of each group from its schedule. late: of
    the generator itself. decided, others: answers. processor: seconds of the generator."""

    seconds: float
    latency: list[float] = field(default_factory=list)
    late: list[float] = field(default_factory=list)
    decided: int = 0
    others: int = 0
    processor: float = 0.0

    @property
    def p99(self) -> float:
        """Milliseconds; infinite where something was not decided."""
        if self.others or not self.latency:
            return float("inf")
        return float(np.percentile(self.latency, 99)) * 1e3


class _Connection:
    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.scheduled = 0.0
        self._received = b""

    def send(self, group: bytes, scheduled: float) -> None:
        self.scheduled, self._received = scheduled, b""
        self.socket.sendall(group)

    def receive(self) -> bytes | None:
        """The answers of the group once all are there."""
        data = self.socket.recv(1 << 16)
        if not data:
            raise ConnectionError("the server closed a connection")
        received = self._received = self._received + data
        # Each answer is a head and a body that ends with the one brace that closes it.
        if received.count(b"\r\n\r\n") < GROUP:
            return None
        head = received.rindex(b"content-length:")
        length = int(received[head + 15 : received.index(b"\r\n", head)])
        if len(received) - received.index(b"\r\n\r\n", head) - 4 < length:
            return None
        return received


def offer(port: int, rate: float, seconds: float, requests: Requests, first: int) -> Load:
    """Send groups at random times, `rate` decisions a second, and wait for the answers. first: the
    number of the first group."""
    load = Load(seconds)
    rng = np.random.default_rng(first)
    times = np.cumsum(rng.exponential(GROUP / rate, int(rate / GROUP * seconds))).tolist()
    everyone = [_Connection(port) for _ in range(CONNECTIONS)]
    by_file = {each.socket.fileno(): each for each in everyone}
    idle, waiting = deque(everyone), deque[tuple[int, float]]()
    poller = select.epoll()
    for file in by_file:
        poller.register(file, select.EPOLLIN)
    before, start = time.process_time(), _clock() + 0.02
    index = busy = 0
    while index < len(times) or busy:
        now = _clock() - start
        while index < len(times) and times[index] <= now:
            if idle:
                load.late.append(now - times[index])
                idle.popleft().send(requests.group(first + index), times[index])
                busy += 1
            else:
                waiting.append((index, times[index]))
            index += 1
            now = _clock() - start
        left = times[index] - now if index < len(times) else 1.0
        for file, _ in poller.poll(max(left, 0.0), 64):
            each = by_file[file]
            answers = each.receive()
            if answers is None:
                continue
            load.latency.append(_clock() - start - each.scheduled)
            decided = answers.count(b'"decision_id":"d')
            load.decided += decided
            load.others += GROUP - decided
            if waiting:
                at, scheduled = waiting.popleft()
                each.send(requests.group(first + at), scheduled)
            else:
                idle.append(each)
                busy -= 1
        if now > 3.0 * seconds + 5.0:
            load.others += GROUP * (busy + len(waiting))
            break
    load.processor = time.process_time() - before
    load.seconds = max(_clock() - start, 1e-9)
    poller.close()
    for each in everyone:
        each.socket.close()
    return load


class Server:
    """A service that runs. groups: of requests that it was sent."""

    def __init__(self, command: list[str], port: int, folder: Path) -> None:
        self.port = port
        self._process = subprocess.Popen(
            [*command, "--port", str(port)], stdout=subprocess.DEVNULL, cwd=folder
        )
        self.groups = 0

    def wait(self) -> None:
        """Until a request is decided."""
        body = b'{"request_id": "first-%d", "routed": "m0", "features": {"x": [0,0,0,0,0,0,0,0]}}'
        for turn in range(600):
            with contextlib.suppress(OSError, ValueError):
                url = f"http://127.0.0.1:{self.port}/v1/decide"
                asked = urllib.request.Request(url, body % turn, method="POST")
                with urllib.request.urlopen(asked, timeout=5) as answer:
                    if json.load(answer)["decision_id"] is not None:
                        return
            if self._process.poll() is not None:
                raise SystemExit("a server did not start")
            time.sleep(0.1)
        raise SystemExit("a server decides nothing")

    def processor(self) -> dict[str, float]:
        """Seconds of processor time so far, by what a process is."""
        found: dict[str, float] = {}
        for pid in self._family(self._process.pid):
            with contextlib.suppress(OSError):
                order = Path(f"/proc/{pid}/cmdline").read_bytes()
                name = "serve" if pid == self._process.pid else "analyst"
                if b"service.roles" in order:
                    name = json.loads(order.split(b"\0")[-2])["name"]
                name = "decider" if name.startswith("decider") else name
                fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
                used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
                found[name] = found.get(name, 0.0) + used
        return found

    def _family(self, pid: int) -> Iterator[int]:
        yield pid
        with contextlib.suppress(OSError):
            for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
                yield from self._family(int(child))

    def ask(self, method: str, path: str, body: bytes | None = None) -> object:
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(
            urllib.request.Request(url, body, method=method), timeout=60
        ) as answer:
            return json.load(answer)

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(60)


@contextlib.contextmanager
def serving(python: str, folder: Path, *options: str, store: str | None = None) -> Iterator[Server]:
    folder.mkdir()
    (folder / "bench.toml").write_text(CONFIG)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    order = [python, "-c", EQUIPOISE, "serve", "--config", "bench.toml"]
    server = Server([*order, "--store", store or "bench.db", *options], port, folder)
    try:
        server.wait()
        yield server
    finally:
        server.end()


def capacity(
    server: Server, requests: Requests, start: float, seconds: float
) -> tuple[float, Load]:
    """The highest rate with p99 under the limit, and its load; steps of 15%, up from `start` or
    down to it."""
    best: tuple[float, Load] | None = None
    rate = start
    for _ in range(24):
        load = offer(server.port, rate, seconds, requests, server.groups)
        server.groups += int(rate / GROUP * seconds) + 1
        if load.p99 < LIMIT_MS:
            best = rate, load
            rate *= STEP
        elif best is not None:
            break
        else:
            rate /= STEP
        time.sleep(0.3)  # what waits to be written is written
    if best is None:
        return 0.0, load
    return best


def compare(
    names: list[str], against: str | None, rounds: int, seconds: float, start: float
) -> None:
    """A table of rates, a column a round."""
    found: dict[str, list[float]] = {name: [] for name in names}
    options = {"before": [], "alone": [], "workers-1": ["--workers", "1"]}
    options["workers-2"] = ["--workers", "2"]
    starts = dict.fromkeys(names, start)
    print(f"{'':12}{'round':>6}{'decided/s':>11}{'p50 ms':>8}{'p99 ms':>8}  shares of one core")
    for turn in range(rounds):
        for name in names if turn % 2 == 0 else reversed(names):
            python = sys.executable
            if name == "before":
                assert against is not None
                python = against
            with (
                tempfile.TemporaryDirectory(prefix="lanes-") as folder,
                serving(python, Path(folder) / "run", *options[name]) as server,
            ):
                requests = Requests(turn + 1)
                offer(server.port, starts[name] / 2, WARM_SECONDS, requests, 0)
                server.groups = int(starts[name])
                rate, load = capacity(server, requests, starts[name], seconds)
                used = server.processor()
                again = offer(server.port, max(rate, 100.0), seconds, requests, server.groups)
                spent = {each: time_ - used[each] for each, time_ in server.processor().items()}
            starts[name] = max(rate / STEP**2, 200.0)
            found[name].append(rate)
            shares = ", ".join(f"{k} {v / again.seconds:.0%}" for k, v in spent.items())
            p50 = float(np.percentile(load.latency, 50)) * 1e3 if load.latency else float("nan")
            print(
                f"{name:12}{turn + 1:>6}{rate:>11,.0f}{p50:>8.2f}{load.p99:>8.2f}  {shares}, "
                f"generator {again.processor / again.seconds:.0%}",
                flush=True,
            )
    for name in names:
        print(f"{name:12}median {np.median(found[name]):>9,.0f} decisions/s at p99 < 10 ms")
    if "workers-1" in found and "workers-2" in found:
        ratio = np.median(np.array(found["workers-2"]) / np.array(found["workers-1"]))
        print(f"two workers / one worker: {ratio:.2f}")
    if "before" in found and "alone" in found:
        ratio = np.median(np.array(found["alone"]) / np.array(found["before"]))
        print(f"alone / before: {ratio:.2f}")


def cost(kind: str, rate: float, seconds: float, outcomes: bool) -> None:
    """What a decision, and its outcome where they are sent, costs each process."""
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="lanes-")))
        store = key = None
        database = None
        if kind == "postgres":
            sys.path.append(str(Path(__file__).parents[1]))
            from postgres import own_server

            database = stack.enter_context(own_server())
            store, key = database.url(schema="bench"), folder / "bench.key"
            key.touch(mode=0o600)
            key.write_bytes(os.urandom(32))
        options = ["--workers", "1"] if kind != "alone" else []
        options += [] if key is None else ["--key", str(key)]
        server = stack.enter_context(serving(sys.executable, folder / "run", *options, store=store))
        requests = Requests(7)
        offer(server.port, rate, 2.0, requests, 0)
        _drain(server)
        first = 1_000_000 // GROUP
        before = server.processor()
        sizes = _sizes(folder / "run", database)
        ticks = 0.0 if database is None else _database_seconds(database.pid)
        load = offer(server.port, rate, seconds, requests, first)
        rows = load.decided
        if outcomes:
            for at in range(0, rows, 100):
                body = requests.outcomes(first * GROUP + at, min(100, rows - at))
                server.ask("POST", "/v1/outcomes", body)
        _drain(server)
        after = server.processor()
        what = "a decision and its outcome" if outcomes else "a decision"
        print(f"{kind}: {what}, of {rows:,} at {rate:,.0f}/s, p99 {load.p99:.1f} ms")
        for name, used in sorted(after.items()):
            print(f"  {name:12}{(used - before.get(name, 0.0)) / rows * 1e6:>8.1f} µs of processor")
        if database is not None:
            used = _database_seconds(database.pid) - ticks
            print(f"  {'postgres':12}{used / rows * 1e6:>8.1f} µs of processor")
        for name, size in _sizes(folder / "run", database).items():
            print(f"  {name:12}{(size - sizes.get(name, 0)) / rows:>8.1f} bytes")
        print(f"  generator   {load.processor / rows * 1e6:>8.1f} µs of processor")


def _drain(server: Server) -> None:
    """Wait until everything is in the log."""
    for _ in range(1200):
        try:
            report = server.ask("GET", "/v1/lanes")
        except urllib.error.HTTPError:
            break  # there are none
        assert isinstance(report, dict)
        if not any(report["waiting"].values()):
            break
        time.sleep(0.1)
    time.sleep(2.0)


def _sizes(folder: Path, database: object) -> dict[str, int]:
    """Bytes of what is kept, by what it is."""
    if database is None:
        with contextlib.suppress(OSError):
            return {
                "store": sum(
                    each.stat().st_size for each in folder.glob("bench.db*") if each.is_file()
                ),
            }
        return {}
    import psycopg

    with psycopg.connect(database.url(), autocommit=True) as connection:
        (wal,) = connection.execute("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn").fetchone()
        rows = connection.execute(
            "SELECT left(relname, 5) = 'lane_', sum(pg_total_relation_size(c.oid)) FROM pg_class c"
            " JOIN pg_namespace n ON n.oid = relnamespace"
            " WHERE nspname = 'bench' AND relkind IN ('r', 'p') GROUP BY 1"
        ).fetchall()
    sizes = {"hub" if hub else "store": int(size) for hub, size in rows}
    return {**sizes, "wal": int(wal)}


def _database_seconds(pid: int) -> float:
    """Of a database server and everything it started, those that ended too."""
    total = 0.0
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    for each in (pid, *map(int, children)):
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
            ended = (int(fields[13]) + int(fields[14])) if each == pid else 0
            total += (int(fields[11]) + int(fields[12]) + ended) / os.sysconf("SC_CLK_TCK")
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="alone,workers-1,workers-2")
    parser.add_argument("--against", help="the Python of another checkout, for `before`")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each rate")
    parser.add_argument("--start", type=float, default=2000.0, help="decisions a second")
    parser.add_argument("--rate", type=float, default=1000.0, help="of the costs")
    chosen = parser.parse_args()
    load = os.getloadavg()[0]
    print(f"{len(os.sched_getaffinity(0))} cores, load average {load:.1f} before", flush=True)
    names = chosen.only.split(",")
    rates = [name for name in names if not name.startswith("cost-")]
    if rates:
        compare(rates, chosen.against, chosen.rounds, chosen.seconds, chosen.start)
    for name in names:
        if name.startswith("cost-"):
            for outcomes in (False, True):
                cost(name.removeprefix("cost-"), chosen.rate, chosen.seconds, outcomes)


if __name__ == "__main__":
    main()
