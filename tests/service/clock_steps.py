"""Set the wall clock under a loaded daemon: what its jobs and its decisions do.

python tests/service/clock_steps.py --rounds 3

The daemon's processes read the wall clock through a library made here with `cc`, which adds what a
shared file says: all of them see a step at once, and no other clock moves. (libfaketime 0.9.10 with
the monotonic clock left alone makes time.sleep raise: findings/libfaketime-python-sleep.sh.)
"""

from __future__ import annotations

import argparse
import http.client
import json
import struct
import subprocess
import tempfile
import threading
import time
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
from running import CONFIG, Running, start

HOUR, DAY = 3600, 86_400
STEPS = {"-1 h": -HOUR, "+1 d": DAY, "+30 d": 30 * DAY}
INTERVALS = {"refresh": 1.0, "checkpoint": 2.0, "expiry": 1.0, "forecast": 2.0}
SERVICE = "\n".join(f"{job}_seconds = {seconds}" for job, seconds in INTERVALS.items())
MOST_INTERVALS, TOLERANCE = 2.0, 0.25
WINDOW = 12.0
"""Seconds between two settings of the clock."""
SOURCE = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static const volatile long long *ahead;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("CLOCK_STEPS");
  int file = path ? open(path, O_RDONLY) : -1;
  if (file >= 0) ahead = mmap(0, 8, PROT_READ, MAP_SHARED, file, 0);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
  int result = syscall(SYS_clock_gettime, clock, now);
  if (ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) now->tv_sec += *ahead;
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  struct timespec exact;
  int result = clock_gettime(CLOCK_REALTIME, &exact);
  now->tv_sec = exact.tv_sec;
  now->tv_usec = exact.tv_nsec / 1000;
  return result;
}

time_t time(time_t *kept) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (kept) *kept = exact.tv_sec;
  return exact.tv_sec;
}
"""


@dataclass(eq=False)
class Load(threading.Thread):
    """Decides and rewards on one connection, a pair every few milliseconds; (when, seconds) of each
    decision."""

    port: int
    took: list[tuple[float, float]] = field(default_factory=list)
    over: bool = False

    def __post_init__(self) -> None:
        super().__init__(daemon=True)

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        index = 0
        while not self.over:
            index += 1
            body = {"request_id": f"r{index}", "routed": "large", "features": {"words": index % 50}}
            begun = time.monotonic()
            answered = _post(connection, "/v1/decide", body)
            self.took.append((begun, time.monotonic() - begun))
            assert answered["decision_id"] is not None, answered
            if index % 10:
                outcome = {"request_id": f"r{index}", "reward": 0.5, "outputs": {"seconds": 1.0}}
                _post(connection, "/v1/outcomes", outcome)
            time.sleep(0.005)


def _post(connection: http.client.HTTPConnection, path: str, body: object) -> dict[str, object]:
    connection.request("POST", path, json.dumps(body))
    response = connection.getresponse()
    text = response.read()
    assert response.status == 200, text
    answer: dict[str, object] = json.loads(text)
    return answer


def job_runs(daemon: Running, ran: dict[str, list[float]], over: threading.Event) -> None:
    """Stamp every run of a job, as its line comes in, by a clock that nobody sets."""
    seen = 0
    while not over.is_set():
        lines = daemon.log[seen:]
        seen += len(lines)
        for line in lines:
            if '"event":"job"' in line:
                ran.setdefault(json.loads(line)["job"], []).append(time.monotonic())
        time.sleep(0.01)


def gap(times: list[float], begin: float, end: float) -> float:
    """The longest wait between two runs that began or ended in this window."""
    return max(
        (after - before for before, after in pairwise(times) if after > begin and before < end),
        default=float("inf"),
    )


def study(folder: Path, rounds: int) -> tuple[list[str], list[str]]:
    """The table, and what is not as it must be. Before each window in which the clock is set stands
    one in which it is not."""
    clock, library = folder / "clock", folder / "clock.so"
    clock.write_bytes(struct.pack("q", 0))
    made = ["cc", "-shared", "-fPIC", "-O2", "-xc", "-", "-o", str(library)]
    subprocess.run(made, input=SOURCE, text=True, check=True)
    daemon = start(
        folder,
        f'log_level = "debug"\n{SERVICE}',
        config=CONFIG.replace("[policy]", "[reward]\nwindow = 3.0\n[policy]"),
        environment={
            "LD_PRELOAD": str(library),
            "CLOCK_STEPS": str(clock),
        },
    )
    ran: dict[str, list[float]] = {job: [] for job in INTERVALS}
    over = threading.Event()
    load = Load(daemon.port)
    watch = threading.Thread(target=job_runs, args=(daemon, ran, over))
    windows: list[tuple[str, float, float]] = []
    try:
        load.start()
        watch.start()
        time.sleep(WINDOW / 2)
        at = 0
        for _ in range(rounds):
            for name, step in STEPS.items():
                for kind, moved in (("quiet", 0), (name, step)):
                    at += moved
                    with clock.open("r+b") as file:
                        file.write(struct.pack("q", at))
                    begun = time.monotonic()
                    time.sleep(WINDOW)
                    windows.append((kind, begun, time.monotonic()))
        load.over = True
        load.join(60)
        set_lines = sum('"event":"clock-set"' in line for line in daemon.log)
        assert set_lines == rounds * len(STEPS), f"{set_lines} lines of clock-set"
    finally:
        over.set()
        daemon.stop()
    return _table(windows, load.took, ran)


def _table(
    windows: list[tuple[str, float, float]],
    took: list[tuple[float, float]],
    ran: dict[str, list[float]],
) -> tuple[list[str], list[str]]:
    jobs = list(INTERVALS)
    rows = [
        f"| the wall clock | decisions | p50 ms | p99 ms | {' | '.join(jobs)} |",
        f"|---|{'---|' * (3 + len(jobs))}",
    ]
    begun, seconds = np.array(took).T
    found, quiet = [], (0.0, [0.0] * len(jobs))
    for kind in ("quiet", *STEPS):
        spans = [(low, high) for name, low, high in windows if name == kind]
        inside = np.any([(begun >= low) & (begun < high) for low, high in spans], axis=0)
        p50, p99 = np.quantile(seconds[inside], [0.5, 0.99]) * 1e3
        waits = [
            max(gap(ran[job], low, high) for low, high in spans) / INTERVALS[job] for job in jobs
        ]
        if kind == "quiet":
            quiet = p99, waits
        # A busy machine delays jobs with or without a step.
        found += [
            f"{job} waited for {wait:.1f} intervals after {kind}"
            for job, wait, usual in zip(jobs, waits, quiet[1], strict=True)
            if wait > MOST_INTERVALS * max(1.0, usual / MOST_INTERVALS) + TOLERANCE
        ]
        if p99 > 3.0 * quiet[0]:
            found.append(f"p99 {p99:.1f} ms after {kind}, {quiet[0]:.1f} ms while nothing is set")
        rows.append(
            f"| {kind} | {int(inside.sum()):,} | {p50:.2f} | {p99:.2f} |"
            f" {' | '.join(f'{wait:.2f}' for wait in waits)} |"
        )
    return rows, found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, found = study(Path(folder), chosen.rounds)
    print("Longest wait for a job in its own intervals, and how long decisions took:\n")
    print("\n".join([*rows, *found]))
    raise SystemExit(bool(found))


if __name__ == "__main__":
    main()
