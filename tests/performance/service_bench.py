"""`make bench-service`: what the daemon costs beside a bare server, under open-loop load.

Both servers live through the whole run, confined to one core with all their processes where the
machine has more than one; the generator has another. They are measured in turns, `--rounds` times
at every rate, and the one whose turn it is not is stopped. Both get what `equipoise.agent.client`
sends: decisions, and what came of them in lists of what has gathered for 50 ms, 100 at the most,
each by its `decision_id` with its outcome token. A tenth of the outcomes are repeats, as after an
answer that was lost.

The daemon logs every decision before it answers (durability `process`), keeps the outcomes, and
refreshes every second. The bare server is a Starlette endpoint on uvicorn that decodes the same
bodies into the same structs and answers as much, and keeps nothing.

Ratios compare the two sides of one round; printed is the median of all rounds, with every round's
own. Processor time is the scheduler's count, by process and thread, so it says where it goes.

    make bench-service
    python tests/performance/service_bench.py --rates 1000,2500 --rounds 5 --seconds 5
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
import time
import urllib.request
from collections import Counter, deque
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

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
from equipoise.agent.service.api.schema import (DecideRequest, DecisionAnswer, OutcomesAnswer,
    OutcomesRequest)
read = msgspec.json.Decoder(DecideRequest).decode
read_outcomes = msgspec.json.Decoder(OutcomesRequest).decode
async def decide(request):
    asked = read(await request.body())
    shares = {"m0": .25, "m1": .25, "m2": .25, "m3": .25}
    answer = DecisionAnswer(decision_id="d1", request_id=asked.request_id, model=asked.routed,
        randomized=False, propensity=.85, probabilities=shares, rule_id="r" + 20 * "0", era=0,
        outcome_token=20 * "t")
    return Response(msgspec.json.encode(answer), media_type="application/json")
async def outcomes(request):
    answer = OutcomesAnswer(accepted=len(read_outcomes(await request.body())))
    return Response(msgspec.json.encode(answer), media_type="application/json")
app = Starlette(routes=[Route("/v1/decide", decide, methods=["POST"]),
                        Route("/v1/outcomes", outcomes, methods=["POST"])])
uvicorn.run(app, port=int(sys.argv[1]), log_level="error", access_log=False)
"""
DAEMON = """
import threading
run = threading.Thread.run
def named(self):  # so that the system's lists of threads say which is which
    with open(f"/proc/self/task/{threading.get_native_id()}/comm", "w") as file:
        file.write(self.name[:15])
    run(self)
threading.Thread.run = named
from equipoise.replay.cli import main
main()
"""
OUTCOMES_AT_ONCE, GATHER_SECONDS = 100, 0.05
VOID_LATENESS = 0.0002
SETTLE_SECONDS = 1.5


class Traffic:
    """Requests, and the outcomes of those that were decided."""

    def __init__(self, rate: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self.rng = rng
        x = np.round(rng.normal(size=(1000, 8)), 4).tolist()
        self.ends = [
            json.dumps({"routed": f"m{row % 4}", "features": {"x": each}})[1:].encode()
            for row, each in enumerate(x)
        ]
        y = np.round(rng.normal(size=(1000, 4)), 4).tolist()
        self.starts = [
            b'{"outputs": {"y": %s}, "reward": %d, ' % (json.dumps(each).encode(), row % 2)
            for row, each in enumerate(y)
        ]
        self.prefix = b"b%d" % seed
        self.decided: deque[bytes] = deque()
        # What was sent two seconds ago, the time-out of a delivery, may come again.
        self.rewarded: deque[bytes] = deque(maxlen=2 * rate)
        self.undecided = self.refused = self.index = 0

    def request(self, index: int) -> bytes:
        # Put together from parts, for the generator must not be what is slow.
        return b'{"request_id": "%s-%d", %s' % (self.prefix, index, self.ends[index % 1000])

    def keep(self, index: int, status: int, body: bytes) -> None:
        if body[15:16] != b'"':
            self.undecided += 1
            return
        name = body[16 : body.index(b'"', 16)]
        at = body.index(b'"outcome_token":"') + 17
        token = body[at : body.index(b'"', at)]
        self.decided.append(
            b'%s"outcome_token": "%s", "decision_id": "%s"}'
            % (self.starts[index % 1000], token, name)
        )

    def outcomes(self, index: int) -> bytes:
        rows = []
        for row in range(OUTCOMES_AT_ONCE):
            if not self.decided:
                break
            again = row % 10 == 9 and len(self.rewarded) == self.rewarded.maxlen
            rows.append(self.rewarded[row] if again else self.decided.popleft())
            if not again:
                self.rewarded.append(rows[-1])
        return b"[%s]" % b",".join(rows)

    def check(self, index: int, status: int, body: bytes) -> None:
        self.refused += len(json.loads(body).get("rejected", ()))


class Processors(NamedTuple):
    """Seconds of processor time so far. parts: by process and thread, as long as these live."""

    whole: float
    parts: Counter[str]


class Measured(NamedTuple):
    """One side of one round. processor: seconds a decision, in all and by part; p99: seconds."""

    processor: float
    parts: dict[str, float]
    p99: float
    valid: bool


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
        halted(process.pid, False)
        process.terminate()
        process.wait(30)


def halted(pid: int, halt: bool) -> None:
    """Stop a server with all its processes, or let them go on."""
    for one in (pid, *children(pid)):
        with contextlib.suppress(ProcessLookupError):
            os.kill(one, signal.SIGSTOP if halt else signal.SIGCONT)


def row(name: str, rate: int, seconds: float, stream: Stream, processor: float | None) -> str:
    latency = np.array(stream.latency) * 1e3
    late = _lateness(stream)
    p50, p90, p99, most = np.percentile(latency, [50, 90, 99, 100])
    errors = sum(count for status, count in stream.statuses.items() if status != 200)
    void = "" if late <= VOID_LATENESS else "  VOID: the generator was late"
    share = "" if processor is None else f"{processor / seconds:.0%}"
    return (
        f"{name:22}{rate:>8,}{len(latency) / seconds:>10,.0f}{p50:>9.2f}{p90:>9.2f}{p99:>9.2f}"
        f"{most:>9.1f}{errors:>8}{late * 1e3:>9.3f}{share:>6}{void}"
    )


def _lateness(stream: Stream) -> float:
    return float(np.percentile(np.array(stream.lateness), 99)) if stream.lateness else np.inf


def measure(name: str, pid: int, port: int, rate: int, seconds: float, seed: int) -> Measured:
    """One side of one round; prints a row per kind of request."""
    traffic = Traffic(rate, seed)
    times = arrivals(rate, seconds, traffic.rng)
    decide = Stream("/v1/decide", times, traffic.request, traffic.keep, connections=64)
    every = min(GATHER_SECONDS, OUTCOMES_AT_ONCE * 0.9 / rate)
    # The last ones after the last decision, so that no decision waits for its outcome for ever.
    batches = np.arange(every, seconds + 0.5, every)
    learn = Stream("/v1/outcomes", batches, traffic.outcomes, traffic.check, connections=1)
    before = processors(pid)
    run(port, [decide, learn])
    after = processors(pid)
    processor, count = after.whole - before.whole, len(times)
    print(row(name, rate, seconds, decide, processor), flush=True)
    print(row("  lists of outcomes", rate, seconds, learn, None))
    if traffic.undecided or traffic.refused:
        print(f"  {traffic.undecided} passed through, {traffic.refused} outcomes refused")
    parts = {part: used / count for part, used in (after.parts - before.parts).items()}
    named = sum(parts.values())
    parts["ended threads"] = max(0.0, processor / count - named)
    valid = _lateness(decide) <= VOID_LATENESS
    p99 = float(np.percentile(decide.latency, 99))
    return Measured(processor / count, parts, p99, valid)


def processors(pid: int) -> Processors:
    """Processor time of a process and its children so far, whatever else the machine does."""
    whole, parts = 0.0, Counter[str]()
    for one in (pid, *children(pid)):
        kind = "" if one == pid else "analyst: "
        fields = Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split()
        ticks = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
        alive = 0.0
        for task in Path(f"/proc/{one}/task").iterdir():
            with contextlib.suppress(OSError):
                used = int((task / "schedstat").read_text().split()[0]) / 1e9
                main = int(task.name) == one
                thread = "loop" if main else (task / "comm").read_text().strip()
                parts[kind + thread.partition("_")[0]] += used
                alive += used
        # What threads used that have ended is in the count of ticks alone.
        whole += max(alive, ticks)
    return Processors(whole, parts)


def children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def memory(pid: int) -> float:
    """Resident megabytes of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(text.partition("VmRSS:")[2].split()[0]) / 1024


def summary(rate: int, found: dict[str, list[Measured]]) -> None:
    """Print processor time a decision on both sides, where it goes, and the ratios."""
    print(f"\n{rate:,} a second, microseconds of processor time a decision with its outcome")
    for name, rounds in found.items():
        parts = {
            part: np.median([each.parts.get(part, 0.0) for each in rounds]) * 1e6
            for part in sorted({part for each in rounds for part in each.parts})
        }
        most = ", ".join(f"{part} {used:.0f}" for part, used in parts.items() if used >= 0.5)
        whole = np.median([each.processor for each in rounds]) * 1e6
        p99 = np.median([each.p99 for each in rounds]) * 1e3
        print(f"  {name:8}{whole:>7.0f}  p99 {p99:.2f} ms  ({most})")
    if len(found) == 2:
        pairs = list(zip(found["daemon"], found["bare"], strict=True))
        for what, ratios in (
            ("processor time", [ours.processor / bare.processor for ours, bare in pairs]),
            ("p99", [ours.p99 / bare.p99 for ours, bare in pairs]),
        ):
            each = ", ".join(f"{ratio:.2f}" for ratio in ratios)
            print(f"  {what}: {np.median(ratios):.2f} times the bare server's ({each})")
    late = sum(not each.valid for rounds in found.values() for each in rounds)
    if late:
        print(f"  VOID: the generator was late in {late} of the rounds above")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rates", default="1000,2500,5000")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=5)
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
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as servers:
        config, store = Path(folder) / "bench.toml", Path(folder) / "bench.db"
        config.write_text(CONFIG + f'durability = "{chosen.durability}"\n')
        commands = {
            "bare": [sys.executable, "-c", BARE, str(chosen.port)],
            "daemon": [sys.executable, "-c", DAEMON, "serve", "--config", str(config)],
        }
        commands["daemon"] += ["--store", str(store), "--port", str(chosen.port + 1)]
        names = [chosen.only] if chosen.only else ["bare", "daemon"]
        ports = {name: chosen.port + (name == "daemon") for name in names}
        pids = {name: servers.enter_context(server(commands[name], ports[name])) for name in names}
        if "daemon" in pids:  # its analyst is a second in starting
            urllib.request.urlopen(f"http://127.0.0.1:{ports['daemon']}/v1/estimates").close()
        if len(cores) > 1:
            os.sched_setaffinity(0, set(cores[1:]))
        for pid in pids.values():
            halted(pid, True)
        for rate in rates:
            found: dict[str, list[Measured]] = {name: [] for name in names}
            for turn in range(chosen.rounds):
                for name in names if turn % 2 == 0 else names[::-1]:
                    pid, seed = pids[name], rate + turn
                    halted(pid, False)
                    time.sleep(SETTLE_SECONDS)
                    found[name].append(measure(name, pid, ports[name], rate, chosen.seconds, seed))
                    time.sleep(0.2)
                    halted(pid, True)
            summary(rate, found)
            print(flush=True)
        for name, pid in pids.items():
            each = [f"{memory(one):.0f}" for one in (pid, *children(pid))]
            print(f"{name}: {' and '.join(each)} MB resident afterwards")


if __name__ == "__main__":
    main()
