"""Figures of the running daemon, counted cheaply where things happen.

Plain numbers and lists: an increment costs far less than a metrics library's, and the loop's
thread is the only one that counts. `metrics.py` turns them into Prometheus text when asked.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter

SECONDS = (
    0.00005,
    0.0001,
    0.00025,
    0.0005,
    0.001,
    0.0025,
    0.005,
    0.01,
    0.025,
    0.05,
    0.1,
    0.25,
    1.0,
    2.5,
)


class Histogram:
    """Counts of values up to each bound; the last cell is for everything above."""

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total = 0.0

    def add(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.total += value

    def cumulative(self) -> list[tuple[str, float]]:
        """(bound as text, values up to it), the last one "+Inf"."""
        rows, so_far = [], 0
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            so_far += count
            rows.append((bound, float(so_far)))
        return rows


class Figures:
    """decisions: by (model, randomized); repeated: requests decided before; passed_through: by
    reason; outcomes: by what became of them; bulk: rows by kind; responses: by (route, status);
    seconds: inside a handler, by route; clock_steps: times the machine's clock was set."""

    def __init__(self) -> None:
        self.decisions: Counter[tuple[str, bool]] = Counter()
        self.repeated = 0
        self.passed_through: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self.bulk: Counter[str] = Counter()
        self.responses: Counter[tuple[str, int]] = Counter()
        self.seconds: dict[str, Histogram] = {}
        self.refresh_seconds = Histogram((0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0))
        self.refresh_failures = 0
        self.job_failures: Counter[str] = Counter()
        self.clock_steps = 0

    def answered(self, route: str, status: int, seconds: float) -> None:
        """A response of `status` that took so long inside the handler."""
        self.responses[route, status] += 1
        histogram = self.seconds.get(route)
        if histogram is None:
            histogram = self.seconds[route] = Histogram()
        histogram.add(seconds)
