"""Set the wall clock under a loaded daemon: what its jobs and its decisions do. Needs libfaketime
(Debian: faketime).

python tests/service/clock_steps.py --rounds 3
"""

from __future__ import annotations

import argparse
import http.client
import json
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
WINDOW = 12.0
"""Seconds between two settings of the clock."""
LIBRARY = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)


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
                ran[json.loads(line)["job"]].append(time.monotonic())
        time.sleep(0.01)


def gap(times: list[float], begin: float, end: float) -> float:
    """The longest wait between two runs that began or ended in this window."""
    return max(
        (after - before for before, after in pairwise(times) if after > begin and before < end),
        default=float("inf"),
    )


def study(folder: Path, rounds: int) -> list[str]:
    """The table; a window in which nothing is set stands before every one in which it is."""
    assert LIBRARY is not None, "libfaketime is not installed: apt-get install faketime"
    clock = folder / "clock"
    clock.write_text("+0\n")
    daemon = start(
        folder,
        f'log_level = "debug"\n{SERVICE}',
        config=CONFIG.replace("[policy]", "[reward]\nwindow = 3.0\n[policy]"),
        environment={
            "LD_PRELOAD": str(LIBRARY),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "DONT_FAKE_MONOTONIC": "1",
            "FAKETIME_CACHE_DURATION": "1",
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
                    clock.write_text(f"{at:+d}\n")
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
) -> list[str]:
    jobs = list(INTERVALS)
    rows = [
        f"| the wall clock | decisions | p50 ms | p99 ms | {' | '.join(jobs)} |",
        f"|---|{'---|' * (3 + len(jobs))}",
    ]
    begun, seconds = np.array(took).T
    for kind in ("quiet", *STEPS):
        spans = [(low, high) for name, low, high in windows if name == kind]
        inside = np.any([(begun >= low) & (begun < high) for low, high in spans], axis=0)
        p50, p99 = np.quantile(seconds[inside], [0.5, 0.99]) * 1e3
        waits = [
            max(gap(ran[job], low, high) for low, high in spans) / INTERVALS[job] for job in jobs
        ]
        rows.append(
            f"| {kind} | {int(inside.sum()):,} | {p50:.2f} | {p99:.2f} |"
            f" {' | '.join(f'{wait:.2f}' for wait in waits)} |"
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = study(Path(folder), chosen.rounds)
    print("Longest wait for a job in its own intervals, and how long decisions took:\n")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
