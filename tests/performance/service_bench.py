"""`make bench-service`: latency of decisions under open-loop load, beside a bare server.

Both servers run in this same run, one after the other, each confined to one core with all its
processes where the machine has more than one; the generator has another. The daemon logs every
decision before it answers (durability `process`), refreshes every second, and takes in outcomes
of the same decisions in batches of 100, a tenth of them late duplicates. The bare server is a
Starlette endpoint on uvicorn that decodes the same body and answers as much, and keeps nothing.

    make bench-service
    python tests/performance/service_bench.py --rates 5000 --seconds 60
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from open_loop import Stream, arrivals, run

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
refresh_seconds = 1.0
log_level = "warning"
"""
BARE = """
import sys, msgspec, uvicorn
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route
from equipoise.agent.service.api.schema import DecideRequest, DecisionAnswer
read = msgspec.json.Decoder(DecideRequest).decode
async def decide(request):
    asked = read(await request.body())
    shares = {"m0": .25, "m1": .25, "m2": .25, "m3": .25}
    answer = DecisionAnswer(decision_id="d1", request_id=asked.request_id, model=asked.routed,
        randomized=False, propensity=.85, probabilities=shares, rule_id="r" + 20 * "0", era=0)
    return Response(msgspec.json.encode(answer), media_type="application/json")
app = Starlette(routes=[Route("/v1/decide", decide, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""
OUTCOMES_AT_ONCE = 100
VOID_LATENESS = 0.0002


class Traffic:
    """Requests, and the outcomes of those that were decided."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        x = np.round(rng.normal(size=(1000, 8)), 4).tolist()
        self.ends = [
            json.dumps({"routed": f"m{row % 4}", "features": {"x": each}})[1:].encode()
            for row, each in enumerate(x)
        ]
        self.y = np.round(rng.normal(size=(1000, 4)), 4).tolist()
        self.prefix = b"b%d" % seed
        self.decided: deque[str] = deque()
        self.rewarded: deque[str] = deque(maxlen=50_000)
        self.undecided = self.refused = 0

    def request(self, index: int) -> bytes:
        # Put together from parts, for the generator must not be what is slow.
        return b'{"request_id": "%s-%d", %s' % (self.prefix, index, self.ends[index % 1000])

    def keep(self, index: int, status: int, body: bytes) -> None:
        name = body[16 : body.index(b'"', 16)].decode() if body[15:16] == b'"' else ""
        if name:
            self.decided.append(name)
        else:
            self.undecided += 1

    def outcomes(self, index: int) -> bytes:
        rows = []
        for row in range(OUTCOMES_AT_ONCE):
            again = row % 10 == 9 and len(self.rewarded) > 1000
            if not again and not self.decided:
                break
            name = self.rewarded[row] if again else self.decided.popleft()
            number = int(name[1:])
            rows.append(
                {"decision_id": name, "reward": number % 2, "outputs": {"y": self.y[number % 1000]}}
            )
            if not again:
                self.rewarded.append(name)
        return json.dumps(rows).encode()

    def check(self, index: int, status: int, body: bytes) -> None:
        self.refused += len(json.loads(body).get("rejected", ()))


@contextlib.contextmanager
def server(command: list[str], port: int) -> Iterator[int]:
    """A server on one core; its process id. It is stopped by its own id alone."""
    cores = sorted(os.sched_getaffinity(0))
    process = subprocess.Popen(
        command, preexec_fn=lambda: os.sched_setaffinity(0, {cores[0]}), stdout=subprocess.DEVNULL
    )
    try:
        for _ in range(200):
            with contextlib.suppress(OSError):
                urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1).close()
                break
            if process.poll() is not None:
                raise SystemExit("a server did not start")
            signal.sigtimedwait([], 0.05)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def row(name: str, rate: int, seconds: float, stream: Stream, processor: float) -> str:
    latency = np.array(stream.latency) * 1e3
    late = float(np.percentile(np.array(stream.lateness), 99)) if stream.lateness else np.inf
    p50, p90, p99, most = np.percentile(latency, [50, 90, 99, 100])
    errors = sum(count for status, count in stream.statuses.items() if status != 200)
    void = "" if late <= VOID_LATENESS else "  VOID: the generator was late"
    return (
        f"{name:22}{rate:>8,}{len(latency) / seconds:>10,.0f}{p50:>9.2f}{p90:>9.2f}{p99:>9.2f}"
        f"{most:>9.1f}{errors:>8}{late * 1e3:>9.3f}{processor / seconds:>6.0%}{void}"
    )


def measure(
    name: str, pid: int, port: int, rate: int, seconds: float, seed: int, learn: bool
) -> float:
    """Print a row per kind of request; the p99 of decisions in ms."""
    traffic = Traffic(seed)
    times = arrivals(rate, seconds, traffic.rng)
    decide = Stream("/v1/decide", times, traffic.request, traffic.keep, connections=64)
    streams = [decide]
    if learn:
        batches = np.arange(0.5, seconds, OUTCOMES_AT_ONCE / min(rate, 5000))
        streams.append(Stream("/v1/outcomes", batches, traffic.outcomes, traffic.check, 4))
    before = processor_seconds(pid)
    run(port, streams)
    processor = processor_seconds(pid) - before
    print(row(name, rate, seconds, decide, processor), flush=True)
    if learn:
        print(row("  outcomes, 100 each", rate, seconds, streams[1], processor))
        if traffic.undecided or traffic.refused:
            print(f"  {traffic.undecided} passed through, {traffic.refused} outcomes refused")
    return float(np.percentile(decide.latency, 99)) * 1e3


def processor_seconds(pid: int) -> float:
    """Processor time of a process and its children so far, whatever else the machine does."""
    total = 0.0
    for one in (pid, *children(pid)):
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", default="1000,2500,5000,7500,10000")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--port", type=int, default=18_471)
    parser.add_argument("--durability", default="process", choices=["process", "power"])
    parser.add_argument("--only", choices=["bare", "daemon"])
    chosen = parser.parse_args()
    rates = [int(rate) for rate in chosen.rates.split(",")]
    cores = sorted(os.sched_getaffinity(0))
    here = os.getloadavg()[0]
    print(f"{len(cores)} cores, load average {here:.1f} before; latency in ms from schedule")
    print(
        f"{'':22}{'asked/s':>8}{'got/s':>10}{'p50':>9}{'p90':>9}{'p99':>9}{'most':>9}"
        f"{'errors':>8}{'late p99':>9}{'cpu':>6}"
    )
    with tempfile.TemporaryDirectory() as folder:
        config, store = Path(folder) / "bench.toml", Path(folder) / "bench.db"
        config.write_text(CONFIG + f'durability = "{chosen.durability}"\n')
        equipoise = [sys.executable, "-c", "from equipoise.replay.cli import main; main()"]
        commands = {
            "bare": [sys.executable, "-c", BARE, str(chosen.port)],
            "daemon": [*equipoise, "serve", "--config", str(config), "--store", str(store)],
        }
        commands["daemon"] += ["--port", str(chosen.port + 1)]
        names = [chosen.only] if chosen.only else ["bare", "daemon"]
        for offset, name in enumerate(names):
            port = chosen.port + (name == "daemon")
            with server(commands[name], port) as pid:
                if len(cores) > 1:
                    os.sched_setaffinity(0, set(cores[1:]))
                if name == "daemon":  # its analyst is a second in starting
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/estimates").close()
                found = []
                for turn, rate in enumerate(rates):
                    seed = 1000 * offset + turn
                    found.append(
                        measure(name, pid, port, rate, chosen.seconds, seed, name == "daemon")
                    )
                os.sched_setaffinity(0, set(cores))
                print(f"  {name}: {memory(pid):.0f} MB resident afterwards")
                for limit in (1.0, 5.0):
                    passed = [rate for rate, p99 in zip(rates, found, strict=True) if p99 > limit]
                    first = f"{passed[0]:,}/s" if passed else f"none up to {rates[-1]:,}/s"
                    print(f"  {name}: first rate with p99 above {limit:g} ms: {first}")


if __name__ == "__main__":
    main()
