"""What a log shows: its traffic, its naive means, and what the tests say of who is sent where.

Sums are exact over all rows. Whatever needs rows (tests, medians, comparisons) rests on at most
SAMPLE of them, drawn at random with a fixed seed, so that memory does not grow with the log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import msgspec
import numpy as np
from scipy import special

from equipoise.agent.look.assignment import (
    Comparison,
    Rated,
    Sample,
    Sent,
    Split,
    assignment,
    comparisons,
)
from equipoise.agent.look.reading import NONE, OTHER, Block, Reader
from equipoise.store.batches import Floats

SAMPLE = 100_000
SEED = 20_260
MOST_DAYS = 5000


class ModelRow(msgspec.Struct, frozen=True):
    """A model in the log. requests: without answers from a cache; share: of all of them. rated:
    requests with a reward; mean, low, high: of the rewards, naive, with a 95% interval; design: by
    how much the interval's variance is larger since users have several requests. cost: USD a
    request, tokens: a request, seconds: median and 95th percentile; None where unknown."""

    name: str
    requests: int
    share: float
    failed: int
    cached: int
    rated: int
    mean: float | None
    low: float | None
    high: float | None
    design: float
    cost: float | None
    spent: float | None
    seconds: float | None
    slow: float | None
    input_tokens: float | None
    output_tokens: float | None


class Reward(msgspec.Struct, frozen=True):
    """The rewards. low, high: the range that is assumed. binary: whether there are no others."""

    rated: int
    mean: float
    sd: float
    low: float
    high: float
    binary: bool


class Findings(msgspec.Struct, frozen=True):
    """Everything that the rows say. rows: in the files; used: of a known model, not from a cache;
    reasons: the others. sampled: rows that tests rest on. hours: from the first to the last. days:
    day (UTC) to requests by model."""

    rows: int
    used: int
    reasons: dict[str, int]
    unreadable: dict[str, int]
    sampled: int
    users: int | None
    first: float | None
    last: float | None
    hours: float | None
    traffic: float | None
    models: list[ModelRow]
    days: dict[str, dict[str, int]]
    reward: Reward | None
    sent: list[Sent]
    splits: list[Split]
    tried: dict[str, int]
    comparisons: list[Comparison]


class Tally:
    """Sums over all blocks, and a sample of their rows."""

    def __init__(self, reader: Reader, seed: int = SEED, sample: int = SAMPLE) -> None:
        self._reader = reader
        self._draws = np.random.default_rng(seed)
        self._most = sample
        self.rows = self.cached = self.nameless = 0
        self._sums: dict[str, Floats] = {}
        self._days: dict[int, Floats] = {}
        self.first, self.last, self.timed = math.inf, -math.inf, 0
        self._rewards: set[float] = set()
        self._kept: list[dict[str, np.ndarray]] = []
        self._held = 0
        self._limit = 1.0

    def add(self, block: Block) -> None:
        """Take a block into account."""
        self.rows += block.rows
        named = block.model != NONE
        self.nameless += int(np.count_nonzero(~named))
        self.cached += int(np.count_nonzero(named & block.cached))
        known = block.model >= 0
        self._count("cached", block.model, known & block.cached)
        used = known & ~block.cached
        self._count("requests", block.model, used)
        self._count("beyond", np.zeros_like(block.model), block.model == OTHER)
        self._count("failed", block.model, used & block.failed)
        for name, values in block.numbers.items():
            if name == "at":
                self._times(block, values, used)
                continue
            there = used & np.isfinite(values)
            self._count(f"{name}.n", block.model, there)
            self._count(f"{name}.sum", block.model, there, values)
            if name == "reward":
                self._count("reward.squares", block.model, there, values * values)
                if len(self._rewards) < 300:
                    self._rewards.update(np.unique(values[there])[:300].tolist())
        self._keep(block, used)

    def _count(
        self, name: str, codes: np.ndarray, rows: np.ndarray, values: Floats | None = None
    ) -> None:
        weights = None if values is None else values[rows]
        counts = np.bincount(codes[rows], weights).astype(np.float64)
        before = self._sums.get(name, np.zeros(0))
        if len(counts) < len(before):
            counts = np.pad(counts, (0, len(before) - len(counts)))
        else:
            before = np.pad(before, (0, len(counts) - len(before)))
        self._sums[name] = before + counts

    def sums(self, name: str) -> Floats:
        """(models,) sums over all rows."""
        found = self._sums.get(name, np.zeros(0))
        return np.pad(found, (0, len(self._reader.models.labels) - len(found)))

    def _times(self, block: Block, at: Floats, used: np.ndarray) -> None:
        there = used & (at > 0) & (at < 1e11)
        self._reader.bad["at"] += int(np.count_nonzero(used & np.isfinite(at) & ~there))
        if not there.any():
            return
        self.timed += int(np.count_nonzero(there))
        self.first = min(self.first, float(at[there].min()))
        self.last = max(self.last, float(at[there].max()))
        days = np.floor(at[there] / 86400.0).astype(np.int64)
        codes = block.model[there]
        for day in np.unique(days).tolist():
            if day not in self._days and len(self._days) >= MOST_DAYS:
                continue
            counts = np.bincount(codes[days == day], minlength=len(self._reader.models.labels))
            before = self._days.get(day, np.zeros(0))
            self._days[day] = 1.0 * counts + np.pad(before, (0, len(counts) - len(before)))

    def _keep(self, block: Block, used: np.ndarray) -> None:
        draws = self._draws.random(block.rows)
        at = np.flatnonzero(used & (draws < self._limit))
        if not len(at):
            return
        kept = {"draw": draws[at], "model": block.model[at], "unit": block.unit[at]}
        for name in ("reward", "at", "seconds"):
            if name in block.numbers:
                kept[name] = block.numbers[name][at]
        for number, column in enumerate(block.columns):
            kept[f"column {number}"] = column[at]
        self._kept.append(kept)
        self._held += len(at)
        if self._held > 1.5 * self._most:
            self._thin()

    def _thin(self) -> None:
        if not self._kept:
            return
        whole = {
            name: np.concatenate([part[name] for part in self._kept]) for name in self._kept[0]
        }
        if len(whole["draw"]) > self._most:
            self._limit = float(np.partition(whole["draw"], self._most)[self._most])
            inside = whole["draw"] < self._limit
            whole = {name: values[inside] for name, values in whole.items()}
        self._kept, self._held = [whole], len(whole["draw"])

    def findings(self) -> Findings:
        """What it all says."""
        self._thin()
        sample = Sample(self._reader, self._kept[0] if self._kept else None)
        requests = self.sums("requests")
        order = [int(code) for code in np.argsort(-requests, kind="stable") if requests[code] > 0]
        reward = self._reward()
        models = [self._model(code, sample, requests.sum(), reward) for code in order]
        sample.settle(order)
        beyond = self._sums.get("beyond", np.zeros(1))
        reasons = {
            "no model": self.nameless,
            "answered from a cache": self.cached,
            "a model beyond the first thousand": int(beyond.sum()),
            **self._reader.lost,
        }
        hours = (self.last - self.first) / 3600.0 if self.timed > 1 else None
        hours = hours if hours else None
        sent, splits, tried = assignment(sample)
        labels = self._reader.models.labels
        return Findings(
            rows=self.rows + self._reader.lost.total(),
            used=int(requests.sum()),
            reasons={name: count for name, count in reasons.items() if count},
            unreadable={name: count for name, count in self._reader.bad.items() if count},
            sampled=sample.rows,
            users=sample.clusters if sample.clustered else None,
            first=self.first if self.timed else None,
            last=self.last if self.timed else None,
            hours=hours,
            traffic=(self.timed - 1) / hours if hours else None,
            models=models,
            days={
                _day(day): {labels[code]: int(n) for code, n in enumerate(counts) if n}
                for day, counts in sorted(self._days.items())
            },
            reward=reward,
            sent=sent,
            splits=splits,
            tried=tried,
            comparisons=comparisons(sample, _rated(models)),
        )

    def _reward(self) -> Reward | None:
        rated = self.sums("reward.n").sum()
        if not rated:
            return None
        mean = float(self.sums("reward.sum").sum() / rated)
        square = float(self.sums("reward.squares").sum() / rated)
        low, high = reward_range(self._rewards)
        sd = math.sqrt(max(square - mean * mean, 0.0))
        return Reward(int(rated), mean, sd, low, high, self._rewards <= {low, high})

    def _model(self, code: int, sample: Sample, total: float, reward: Reward | None) -> ModelRow:
        def mean(name: str) -> float | None:
            rows = self.sums(f"{name}.n")[code]
            return float(self.sums(f"{name}.sum")[code] / rows) if rows else None

        requests, rated = self.sums("requests")[code], self.sums("reward.n")[code]
        low = high = None
        design = 1.0
        value = mean("reward")
        if value is not None and reward is not None:
            square = float(self.sums("reward.squares")[code] / rated)
            variance = max(square - value * value, 0.0)
            design = sample.design(code, requests)
            low, high = interval(value, float(variance), float(rated / design), reward)
        spent = self.sums("cost.sum")[code] if self.sums("cost.n")[code] else None
        seconds = sample.seconds(code)
        return ModelRow(
            name=self._reader.models.labels[code],
            requests=int(requests),
            share=float(requests / total),
            failed=int(self.sums("failed")[code]),
            cached=int(self.sums("cached")[code]),
            rated=int(rated),
            mean=value,
            low=low,
            high=high,
            design=design,
            cost=mean("cost"),
            spent=None if spent is None else float(spent),
            seconds=seconds[0],
            slow=seconds[1],
            input_tokens=mean("input_tokens"),
            output_tokens=mean("output_tokens"),
        )


def _rated(models: Sequence[ModelRow]) -> list[Rated]:
    return [
        Rated(each.name, each.rated, each.mean, each.low, each.high)
        for each in models
        if each.mean is not None and each.low is not None and each.high is not None
    ]


def interval(mean: float, variance: float, rows: float, reward: Reward) -> tuple[float, float]:
    """A 95% interval of a mean: Wilson's on the reward's range where rewards are its ends, the
    normal one otherwise. rows: as many as independent ones would be."""
    z = float(special.ndtri(0.975))
    span = reward.high - reward.low
    if not reward.binary:
        half = z * math.sqrt(variance / rows)
        return mean - half, mean + half
    share, squared = (mean - reward.low) / span, z * z / rows
    middle = (share + squared / 2.0) / (1.0 + squared)
    half = z * math.sqrt(share * (1.0 - share) / rows + squared / rows / 4.0) / (1.0 + squared)
    return reward.low + span * (middle - half), reward.low + span * (middle + half)


def reward_range(values: set[float]) -> tuple[float, float]:
    """The range that rewards of these values are likely to have.

    >>> reward_range({0.0, 1.0}), reward_range({-1.0, 1.0}), reward_range({2.0, 5.0})
    ((0.0, 1.0), (-1.0, 1.0), (1.0, 5.0))
    """
    low, high = min(values), max(values)
    if low >= 0.0 and high <= 1.0:
        return 0.0, 1.0
    if low >= -1.0 and high <= 1.0:
        return -1.0, 1.0
    whole = all(value.is_integer() for value in values)
    for least, most in ((1.0, 5.0), (0.0, 5.0), (1.0, 10.0), (0.0, 10.0), (0.0, 100.0)):
        if whole and least <= low and high <= most:
            return least, most
    return (low, high) if low < high else (low, low + 1.0)


def _day(number: int) -> str:
    return str(np.datetime64(number, "D"))
