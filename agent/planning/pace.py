"""How fast requests come: the time that the next n of them take, out of when the last ones came.

The next n requests take as long as n requests took lately. So the pace looks as far back as the
forecast looks ahead: minutes where the decision is minutes away, a night where it is a day away. A
mean over the whole life of the experiment would count hours of silence before the traffic began,
and a mean over the last minutes would take a burst for the rule.

- **Idle starts.** The history begins at its hundredth part: requests that came one by one before
  the traffic began are not a part of it.
- **Bursts.** The past is cut into pieces of as many requests, and a future is a draw of pieces.
  Their spread is the spread of the times.
- **Nights.** Once a whole day was seen, all of this runs on a clock that goes as fast as traffic
  usually does at that time of the day. Until then nobody knows what the other hours bring: each
  future has a factor of its own for them, which matters the more the further it looks ahead.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import numpy as np

from equipoise.agent.budget.ledger import BINS, PERIOD, WIDTH, Arrivals
from equipoise.agent.state.open_decisions import OpenDecisions
from equipoise.store.batches import Floats, Ints

SKIPPED_SHARE, FEWEST = 0.01, 10.0
"""The history begins where this share of its requests, and so many of them, have come."""
BACK = 4.0
"""How many times as many requests as are to come the pieces of a future are drawn from."""
PIECES = 8.0
"""Pieces that a history is cut into at least."""
NEWEST_ROWS = 20_000
"""Open decisions whose times are read one by one."""
UNSEEN_HOURS = 1.0
"""Standard deviation of the logarithm of what hours of the day that were not seen may bring."""
SMOOTHED = 18
"""Bins of ten minutes over which the traffic of a day is smoothed: what is shorter is a burst."""
LEAST_PACE = 0.02
"""Of the mean of a day, what the clock goes at least."""
QUIET_SECONDS, QUIET_GAPS, QUIET_ROWS = 60.0, 20.0, 200.0
"""No traffic: no request for a minute, and for as long as 20 of the last 200 gaps together. Of
exponential gaps two in a billion are that long."""


@dataclass(frozen=True, slots=True)
class Pace:
    """When requests came, and how many of them become rows of the certified sums.

    at, count: (n,) times, seconds since the epoch, and how many requests had come by then;
    piecewise linear. now: seconds since the epoch. entering: share of requests that enter the
    certified sums.
    """

    at: Floats
    count: Floats
    now: float
    entering: float

    @classmethod
    def of(cls, table: OpenDecisions, arrivals: Arrivals, now: float, entering: float) -> Self:
        """Of what is logged: the open decisions one by one, what came before them by bins."""
        newest = table.at[max(table.size - NEWEST_ROWS, 0) : table.size]
        fine = np.sort(newest[np.isfinite(newest)])
        at, count = _before(arrivals, fine)
        begun = count[-1] if len(count) else 0.0
        if len(fine):
            at = np.concatenate([at, fine])
            count = np.concatenate([count, begun + np.arange(1.0, len(fine) + 1.0)])
        return cls(at, count, now, entering)

    @property
    def silent(self) -> float:
        """Seconds since the newest request, inf before any."""
        return max(self.now - float(self.at[-1]), 0.0) if len(self.at) else np.inf

    @property
    def quiet_after(self) -> float:
        """Seconds without a request from which on there is no traffic."""
        if len(self.at) < 2:
            return QUIET_SECONDS
        total = float(self.count[-1])
        back = min(QUIET_ROWS, total - self._begun)
        gaps = self.at[-1] - self._time(np.array([total - back]))[0]
        return max(QUIET_SECONDS, QUIET_GAPS * float(gaps) / max(back, 1.0))

    def per_hour(self, requests: float) -> float | None:
        """Requests an hour over the time that the last `requests` took, at least 200; None where
        unknown."""
        if not self._known:
            return None
        back = min(max(requests, QUIET_ROWS), float(self.count[-1]) - self._begun)
        took = self.now - self._time(np.array([self.count[-1] - back]))[0]
        return float(back / took * 3600.0) if took > 0.0 else None

    def hours(self, rows: Floats, rng: np.random.Generator) -> Floats | None:
        """(N,) hours until so many rows (N,) have come, one future each; inf for inf.

        None where too little came to say.
        """
        if not self._known or not self.entering > 0.0:
            return None
        result = np.full(len(rows), np.inf)
        asked = np.flatnonzero(np.isfinite(rows))
        requests = np.maximum(rows[asked], 0.0) / self.entering
        if self._seen < PERIOD + WIDTH:
            result[asked] = _with_unseen(self._by_pieces(requests, rng), self._seen, rng)
        else:
            result[asked] = self._by_day(requests, rng)
        return result / 3600.0

    @property
    def _known(self) -> bool:
        return len(self.at) > 0 and self.count[-1] - self._begun >= FEWEST and self._seen > 0.0

    @property
    def _begun(self) -> float:
        """How many requests had come where the history begins."""
        total = float(self.count[-1])
        return min(max(SKIPPED_SHARE * total, FEWEST), 0.5 * total)

    @property
    def _seen(self) -> float:
        """Seconds of history."""
        return self.now - float(self._time(np.array([self._begun]))[0])

    def _time(self, count: Floats) -> Floats:
        """When so many requests had come; of equal counts the last moment."""
        result: Floats = np.interp(count, self.count, self.at)
        return result

    def _by_pieces(self, requests: Floats, rng: np.random.Generator) -> Floats:
        """Seconds, from pieces of the last times as many requests."""
        total = float(self.count[-1])
        known = total - self._begun
        wanted = np.maximum(requests, 1.0)
        piece = np.minimum(wanted, max(known / PIECES, 1.0))
        earliest = total - np.minimum(BACK * wanted, known)
        # What came is a sample of what might have, and what is to come is another one.
        drawn = 1.0 / (piece / (total - earliest) + piece / wanted)
        most = int(np.ceil(drawn.max(initial=1.0)))
        start = earliest + rng.random((most, len(requests))) * (total - piece - earliest)
        took = self._until(start + piece) - self._time(start)
        weight = np.clip(drawn - np.arange(most)[:, None], 0.0, 1.0)
        weight[0] = 1.0
        seconds: Floats = (took * weight).sum(axis=0) / weight.sum(axis=0) * requests / piece
        return seconds

    def _until(self, count: Floats) -> Floats:
        """As `_time`; the newest request counts until now."""
        result: Floats = np.where(count >= self.count[-1] - 0.5, self.now, self._time(count))
        return result

    def _by_day(self, requests: Floats, rng: np.random.Generator) -> Floats:
        """Seconds, on a clock that goes as fast as traffic does at that time of the day."""
        edges = self.now + WIDTH * np.arange(-2 * BINS, BINS + 1)
        came = np.diff(np.interp(edges[: 2 * BINS + 1], self.at, self.count, left=0.0))
        days = came.reshape(2, BINS)
        whole = self._time(np.array([self._begun]))[0] <= edges[0] + WIDTH
        day = days.mean(axis=0) if whole else days[1]
        around = np.concatenate([day[-SMOOTHED // 2 :], day, day[: SMOOTHED // 2]])
        smooth = np.convolve(around, np.full(SMOOTHED, 1.0 / SMOOTHED), "same")
        smooth = smooth[SMOOTHED // 2 : SMOOTHED // 2 + BINS]
        speed = np.maximum(smooth / max(float(smooth.mean()), 1e-9), LEAST_PACE)
        speed /= speed.mean()
        clock = np.concatenate([[0.0], np.cumsum(np.tile(speed * WIDTH, 3))]) - 2.0 * PERIOD
        seen = self.at >= edges[0]
        turned = replace(
            self, at=np.interp(self.at[seen], edges, clock), count=self.count[seen], now=0.0
        )
        seconds = turned._by_pieces(requests, rng)
        passed = np.floor(seconds / PERIOD)
        rest: Floats = np.interp(seconds - passed * PERIOD, clock, edges) - self.now
        return rest + passed * PERIOD


def _before(arrivals: Arrivals, fine: Floats) -> tuple[Floats, Floats]:
    """Ends of the bins that ended before the first of the times `fine`, and requests by then."""
    state = arrivals.arrays()["arrivals"]
    newest, counts = int(state[3]), state[4:]
    if arrivals.total == 0 or newest < 0:
        return np.empty(0), np.empty(0)
    numbers: Ints = np.arange(newest - 2 * BINS + 1, newest + 1)
    came = counts[numbers % (2 * BINS)].copy()
    until = float(fine[0]) if len(fine) else np.inf
    own = np.searchsorted(fine, [numbers * WIDTH, (numbers + 1) * WIDTH])
    came = np.maximum(came - (own[1] - own[0]), 0.0)
    began = max(arrivals.first, float(numbers[0] * WIDTH))
    used = ((numbers + 1) * WIDTH > began) & (numbers * WIDTH < until)
    if not used.any():
        return np.array([min(began, until)]), np.zeros(1)
    ends = np.minimum((numbers[used] + 1) * WIDTH, until)
    at = np.concatenate([[min(began, float(ends[0]))], ends])
    return at, np.concatenate([[0.0], np.cumsum(came[used])])


def _with_unseen(seconds: Floats, seen: float, rng: np.random.Generator) -> Floats:
    """(N,) seconds, once hours of the day that were not seen yet bring more or less than those
    that were. seen: seconds of history.

    The pace swings from today's to a factor of it and back, once in the hours that were not seen.
    """
    if seen >= PERIOD:
        return seconds
    factor = np.exp(UNSEEN_HOURS * rng.standard_normal(len(seconds)))
    unseen = PERIOD - seen
    grid = np.linspace(0.0, 1.0, 97)
    swing = grid / 2.0 - np.sin(2.0 * np.pi * grid) / (4.0 * np.pi)
    # What a day brings, in seconds at the pace of the hours that were seen.
    whole = seen + unseen * (1.0 + (factor - 1.0) / 2.0)
    days = np.floor(seconds / whole)
    rest = seconds - days * whole
    result = np.empty(len(seconds))
    for index, (each, left) in enumerate(zip(factor.tolist(), rest.tolist(), strict=True)):
        done = unseen * (grid + (each - 1.0) * swing)
        ahead = float(np.interp(left, done, unseen * grid))
        result[index] = ahead + max(left - float(done[-1]), 0.0)
    return result + days * PERIOD
