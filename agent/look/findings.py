"""What a log shows: its traffic, its naive means, and what the tests say of who is sent where.

Sums are exact over all rows. Whatever needs rows (tests, medians, comparisons) rests on at most
SAMPLE of them, drawn at random with a fixed seed, so that memory does not grow with the log.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
from scipy import special

from equipoise.agent.ingest.derived import CACHED, FAILED
from equipoise.agent.look.assignment import FEWEST_ROWS, Sample, Sent, Split, assignment
from equipoise.agent.look.crossing import Ints, starts
from equipoise.agent.look.reading import FATES, MOST_REASONS, Block, Reader
from equipoise.agent.look.values import NONE, OTHER
from equipoise.store.batches import Floats

SAMPLE = 100_000
SEED = 20_260
MOST_DAYS = 5000
FEWEST_RATED = 30
"""Rated requests of each of two models below which nothing is said of their difference."""
NO_MODEL, BEYOND = "without a model", "of a model beyond the first thousand"
FROM_CACHE, FAILURES = "answered from a cache", "failed"


class ModelRow(msgspec.Struct, frozen=True):
    """A model in the log. requests: that it answered itself; share: of all of them. rated:
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


class Comparison(msgspec.Struct, frozen=True):
    """A model against the one with the most requests. naive: difference of the means; adjusted: by
    least squares on every column, with a 95% interval clustered by user, None where no column
    leaves a choice. robustness: share of what is left of choice and reward that a hidden cause
    would have to explain to bring `adjusted` to 0 (Cinelli and Hazlett 2020, equation 18).
    strongest: the column that explains most of the choice, and the shares that it explains of
    choice and of reward."""

    model: str
    against: str
    naive: float
    low: float
    high: float
    adjusted: float | None
    adjusted_low: float | None
    adjusted_high: float | None
    robustness: float | None
    strongest: str
    explains_choice: float
    explains_reward: float
    rows: int


class Reward(msgspec.Struct, frozen=True):
    """The rewards. low, high: the range that is assumed. binary: whether there are no others."""

    rated: int
    mean: float
    sd: float
    low: float
    high: float
    binary: bool


class Findings(msgspec.Struct, frozen=True):
    """Everything that the rows say. rows: in the files; used: answered, by a known model;
    reasons: the others. lost: of these, rows that could not be read. unreadable: values, by role.
    sampled: rows that tests rest on. hours: from the first to the last. days:
    day (UTC) to requests by model."""

    rows: int
    used: int
    reasons: dict[str, int]
    lost: int
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
        self.rows = self.nameless = self.beyond = 0
        self._fates = np.zeros(len(FATES) + MOST_REASONS + 1, np.int64)
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
        self._fates += np.bincount(block.fate, minlength=len(self._fates))
        answered = block.fate == 0
        self.nameless += int(np.count_nonzero(answered & (block.model == NONE)))
        self.beyond += int(np.count_nonzero(answered & (block.model == OTHER)))
        known = block.model >= 0
        for name in (CACHED, FAILED):
            self._count(name, block.model, known & (block.fate == FATES.index(name)))
        used = known & answered
        self._count("requests", block.model, used)
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
            total = counts + np.pad(before, (0, len(counts) - len(before)))
            self._days[day] = total.astype(np.float64)

    def _keep(self, block: Block, used: np.ndarray) -> None:
        draws = self._draws.random(block.rows)
        at = np.flatnonzero(used & (draws < self._limit))
        if not len(at):
            return
        kept = {"draw": draws[at], "model": block.model[at], "unit": block.unit[at]}
        for name in ("reward", "at", "seconds", "propensity"):
            if name in block.numbers:
                kept[name] = block.numbers[name][at]
        for number, column in enumerate(block.columns):
            kept[f"column {number}"] = column[at]
        for number, hashed in enumerate(block.keys):
            kept[f"key {number}"] = hashed[at]
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
        sample.fraction = sample.rows / max(float(requests.sum()), 1.0)
        reasons = {
            NO_MODEL: self.nameless,
            BEYOND: self.beyond,
            FROM_CACHE: int(self._fates[FATES.index(CACHED)]),
            FAILURES: int(self._fates[FATES.index(FAILED)]),
            **dict(zip(self._reader.reasons, self._fates[len(FATES) :].tolist(), strict=False)),
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
            lost=self._reader.lost.total(),
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
            comparisons=comparisons(sample, models),
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
            failed=int(self.sums(FAILED)[code]),
            cached=int(self.sums(CACHED)[code]),
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


def alike(models: Sequence[ModelRow]) -> float:
    """p-value of all these means being one, by their intervals: the highest of many means is high
    by chance alone."""
    known = [each for each in models if (each.high or 0.0) > (each.low or 0.0)]
    if len(known) < 2:
        return 1.0
    means = np.array([each.mean or 0.0 for each in known])
    halves = np.array([((each.high or 0.0) - (each.low or 0.0)) / 2.0 for each in known])
    weights = (float(special.ndtri(0.975)) / halves) ** 2
    middle = (weights @ means) / weights.sum()
    return float(special.chdtrc(len(known) - 1, weights @ (means - middle) ** 2))


def _day(number: int) -> str:
    return str(np.datetime64(number, "D"))


def comparisons(sample: Sample, models: Sequence[ModelRow]) -> list[Comparison]:
    """Each model against the one with the most rated requests, FEWEST_RATED or more of each."""
    rated = [each for each in models if each.rated >= FEWEST_RATED and each.name in sample.names]
    if len(rated) < 2:
        return []
    against = max(rated, key=lambda model: model.rated)
    return [_comparison(sample, model, against) for model in rated if model is not against]


def _comparison(sample: Sample, model: ModelRow, against: ModelRow) -> Comparison:
    codes = (sample.names.index(model.name), sample.names.index(against.name))
    rows = np.isin(sample.model, codes) & np.isfinite(sample.reward)
    naive = (model.mean or 0.0) - (against.mean or 0.0)
    halves = [((each.high or 0.0) - (each.low or 0.0)) / 2.0 for each in (model, against)]
    half = math.hypot(*halves)
    fit = _adjusted(sample, rows, codes[0])
    adjusted, low, high, robustness, strongest, choice, explained = fit
    return Comparison(
        model=model.name,
        against=against.name,
        naive=naive,
        low=naive - half,
        high=naive + half,
        adjusted=adjusted,
        adjusted_low=low,
        adjusted_high=high,
        robustness=robustness,
        strongest=strongest,
        explains_choice=choice,
        explains_reward=explained,
        rows=int(rows.sum()),
    )


_Fit: TypeAlias = "tuple[float | None, float | None, float | None, float | None, str, float, float]"
_BLOCK = 8192


def _adjusted(sample: Sample, rows: np.ndarray, code: int) -> _Fit:
    """Least squares of the reward on the model and every factor's levels, in blocks of rows."""
    reward, cluster = sample.reward[rows], sample.cluster[rows]
    chosen = (sample.model[rows] == code).astype(np.float64)
    factors = [(factor.name, factor.codes[rows], len(factor.labels)) for factor in sample.factors]
    nothing: _Fit = (None, None, None, None, "", 0.0, 0.0)
    if len(reward) < FEWEST_ROWS or not 0.0 < chosen.mean() < 1.0:
        return nothing
    owners = np.array([-1, *(at for at, each in enumerate(factors) for _ in range(1, each[2]))])
    size = len(owners)
    gram = np.zeros((size + 2, size + 2))
    middle = reward.mean()

    def block(at: int) -> Floats:
        part = slice(at, at + _BLOCK)
        columns = [np.ones((len(reward[part]), 1))]
        columns += [
            (codes[part, None] == np.arange(1, levels)).astype(np.float64)
            for _, codes, levels in factors
        ]
        return np.hstack([*columns, chosen[part, None], reward[part, None] - middle])

    for at in range(0, len(reward), _BLOCK):
        matrix = block(at)
        gram += matrix.T @ matrix
    every = np.arange(size)
    choice, left = _left(gram, every, size)
    if left < 1e-9 * gram[size, size]:
        return nothing
    outcome, _ = _left(gram, np.r_[every, size], size + 1)
    influence = np.empty(len(reward))
    for at in range(0, len(reward), _BLOCK):
        matrix = block(at)
        part = slice(at, at + _BLOCK)
        of_choice = matrix[:, size] - matrix[:, :size] @ choice
        influence[part] = of_choice * (matrix[:, size + 1] - matrix[:, : size + 1] @ outcome)
    effect = float(outcome[-1])
    sums = np.add.reduceat(influence, starts(cluster))
    error = math.sqrt(float(sums @ sums)) / left
    z = float(special.ndtri(0.975))
    _, rest = _left(gram, np.r_[every, size], size + 1)
    squared = effect * effect * left / max(rest, 1e-300)
    # Cinelli and Hazlett, equation 18, with f² = t² / df of the plain regression.
    robustness = (math.sqrt(squared * squared + 4.0 * squared) - squared) / 2.0
    strongest = ("", 0.0, 0.0)
    for at, (name, _, _) in enumerate(factors):
        others = every[owners != at]
        _, without = _left(gram, others, size)
        explains = 1.0 - left / without if without > 0 else 0.0
        if explains > strongest[1]:
            _, plain = _left(gram, np.r_[others, size], size + 1)
            strongest = (name, explains, 1.0 - rest / plain if plain > 0 else 0.0)
    return effect, effect - z * error, effect + z * error, robustness, *strongest


def _left(gram: Floats, columns: Ints, target: int) -> tuple[Floats, float]:
    """Coefficients of one column on others, and the sum of squares that is left of it."""
    inner, cross = gram[np.ix_(columns, columns)], gram[columns, target]
    coefficients = np.linalg.pinv(inner, rcond=1e-10, hermitian=True) @ cross
    return coefficients, max(float(gram[target, target] - cross @ coefficients), 0.0)
