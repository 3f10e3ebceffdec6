"""Many runs of one experiment at once, and every sequence looked at again and again.

Arrays have the run first. Requests come in blocks, one frozen rule each; within a block the early
rows are looked at one by one. The bounds come from the shipped functions; only the sums are taken
for all runs together.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from allocations import shares

from equipoise.agent.inference import fixed, levels, per_model
from equipoise.agent.inference.asymptotic import one_sided_half_width, tuned_rho
from equipoise.agent.inference.capped import contrast_bound, usual_caps
from equipoise.agent.inference.mixture import lower_mean, lower_mean_of

MIN_REWARDS = 30
"""Rewards of each model before the naive and the unconditional asymptotic sequences look."""


@dataclass(frozen=True)
class Scenario:
    """One world and one way of allocating. prediction: 'mean' (the running mean of each model),
    'garbage' (uniform noise, not tuned away)."""

    values: tuple[float, ...]
    allocation: str = "uniform"
    rate: float = 0.2
    rows: int = 10_000
    delta: float = 0.05
    missing: float = 0.0
    prediction: str = "mean"
    thresholds: tuple[float, ...] = (0.0, 10.0, 25.0, 50.0, 100.0)


@dataclass
class Sums:
    """Running sums of all runs. Scores have the cap axis first: (C, runs, K)."""

    t: int
    low: np.ndarray
    high: np.ndarray
    low_sq: np.ndarray
    high_sq: np.ndarray
    cross: np.ndarray
    rewards: per_model.RewardMoments


@dataclass
class Report:
    """Share of runs that ever missed a contrast, and mean widths at the end, by sequence."""

    missed: dict[str, np.ndarray] = field(default_factory=dict)
    width: dict[str, float] = field(default_factory=dict)
    looked: dict[str, float] = field(default_factory=dict)

    def miss(self, name, wrong):
        flags = self.missed.setdefault(name, np.zeros(len(wrong), dtype=bool))
        flags |= wrong

    def rate(self, name):
        return float(self.missed[name].mean())


def look_times(rows):
    """Every row to 200, then 3% apart."""
    late = np.unique(np.geomspace(200, rows, int(np.log(rows / 200) / 0.03) + 2).astype(int))
    return np.union1d(np.arange(1, min(200, rows) + 1), late)


def simulate(scenario, runs, seed, *, sequences=("bounded", "capped", "per-model", "others")):
    """The report of `runs` runs. Every pair of models at level delta / (K (K - 1))."""
    rng = np.random.default_rng(seed)
    values = np.array(scenario.values)
    models = len(values)
    truth = values[:, None] - values[None, :]
    alpha = levels.pair_level(scenario.delta, models)
    caps = usual_caps(models, scenario.rate)
    sums = _empty(len(caps), runs, models)
    watch = _Watch(scenario, truth, alpha, caps, runs, sequences)
    looks = look_times(scenario.rows)
    start = 0
    while start < scenario.rows:
        size = min(10 if start < 200 else 50 if start < 10_000 else 250, scenario.rows - start)
        block = _block(scenario, values, sums, size, rng)
        here = looks[(looks > start) & (looks <= start + size)]
        done = 0
        for row in here - start:
            _add(sums, block, slice(done, row), caps)
            done = row
            watch.look(sums)
        _add(sums, block, slice(done, size), caps)
        start += size
    watch.finish(sums)
    return watch.report


@dataclass
class _Block:
    """One frozen rule and the rows it decided: weight if drawn (runs, 1, K), drawn, rewards."""

    weight: np.ndarray
    drawn: np.ndarray
    low: np.ndarray
    high: np.ndarray
    mu: np.ndarray
    centre_low: np.ndarray
    centre_high: np.ndarray
    reward_centres: per_model.RewardCentres


def _empty(caps, runs, models):
    one = (caps, runs, models)
    rewards = per_model.RewardMoments(*(np.zeros((runs, models)) for _ in range(5)))
    cross = np.zeros((caps, runs, models, models))
    return Sums(0, *(np.zeros(one) for _ in range(4)), cross, rewards)


def _block(scenario, values, sums, size, rng):
    runs, models = sums.rewards.count.shape
    rewards = sums.rewards
    seen = np.maximum(rewards.count, 1.0)
    mean = np.where(rewards.count > 0, rewards.low / seen, 0.5)
    pi = shares(scenario.allocation, mean, rewards.count, rng)
    randomized = rng.random((runs, size)) < scenario.rate
    edges = pi.cumsum(axis=1)[:, None, :-1]
    model = (rng.random((runs, size))[..., None] > edges).sum(axis=-1)
    drawn = (model[..., None] == np.arange(models)) & randomized[..., None]
    reward = (rng.random((runs, size)) < values[model]).astype(float)
    known = rng.random((runs, size)) >= scenario.missing
    if scenario.prediction == "garbage":
        mu = rng.random((runs, size, models))
    else:
        mu = np.broadcast_to(rewards.centres().low[:, None], (runs, size, models))
    t = max(sums.t, 1)
    neutral = sums.t == 0
    return _Block(
        (1.0 / (scenario.rate * pi))[:, None],
        drawn,
        np.where(known, reward, 0.0),
        np.where(known, reward, 1.0),
        mu,
        np.full_like(sums.low, 0.5) if neutral else np.clip(sums.low / t, 0.0, 1.0),
        np.full_like(sums.high, 0.5) if neutral else np.clip(sums.high / t, 0.0, 1.0),
        rewards.centres(),
    )


def _add(sums, block, rows, caps):
    drawn = block.drawn[:, rows]
    if drawn.shape[1] == 0:
        return
    sums.t += drawn.shape[1]
    mu, w = block.mu[:, rows], np.where(drawn, block.weight, 0.0)
    low, high = block.low[:, rows, None], block.high[:, rows, None]
    for index, cap in enumerate(caps):
        room = cap / (block.weight - 1.0)
        mu_low, mu_high = np.minimum(mu, room), np.maximum(mu, 1.0 - room)
        score_low = mu_low + w * (low - mu_low)
        score_high = mu_high + w * (high - mu_high)
        sums.low[index] += score_low.sum(axis=1)
        sums.high[index] += score_high.sum(axis=1)
        u = score_low - block.centre_low[index][:, None]
        v = score_high - block.centre_high[index][:, None]
        sums.low_sq[index] += (u * u).sum(axis=1)
        sums.high_sq[index] += (v * v).sum(axis=1)
        sums.cross[index] += u.transpose(0, 2, 1) @ v
    rewards, centres = sums.rewards, block.reward_centres
    rewards.count += drawn.sum(axis=1)
    rewards.low += (drawn * low).sum(axis=1)
    rewards.high += (drawn * high).sum(axis=1)
    rewards.low_squares += (drawn * (low - centres.low[:, None]) ** 2).sum(axis=1)
    rewards.high_squares += (drawn * (high - centres.high[:, None]) ** 2).sum(axis=1)


class _Watch:
    """Looks at every sequence and remembers who ever missed."""

    def __init__(self, scenario, truth, alpha, caps, runs, sequences):
        self.scenario, self.truth, self.alpha, self.caps = scenario, truth, alpha, caps
        self.sequences = sequences
        self.report = Report()
        models = len(truth)
        self.off = ~np.eye(models, dtype=bool)
        finite = np.isfinite(caps)
        self.finite = finite
        self.bounds = np.moveaxis(contrast_bound(np.array(caps)[finite], models, models), 0, -1)
        self.rho = {n: np.full((runs, models, models), np.nan) for n in scenario.thresholds}
        self.next_per_model = 5

    def lower(self, sums, name, levels_of_contrast=24):
        """(runs, K, K) lower ends of one sequence."""
        t = sums.t
        totals = sums.low[..., :, None] - sums.high[..., None, :]
        squares = sums.low_sq[..., :, None] + sums.high_sq[..., None, :] - 2.0 * sums.cross
        squares = np.maximum(squares, 0.0)
        if name == "bounded":
            return lower_mean(t, totals[0], squares[0] / 4.0, 2.0, self.alpha)
        if name == "capped":
            total = np.moveaxis(totals[self.finite], 0, -1)
            square = np.moveaxis(squares[self.finite], 0, -1) / self.bounds**2
            return lower_mean_of(t, total, square, self.bounds, self.alpha)
        if name == "per-model":
            return per_model.contrast_bounds(sums.rewards, self.alpha, levels_of_contrast)
        mean = totals[-1] / t
        if name == "z":
            return mean - fixed.z_half_width(t, squares[-1], self.alpha)
        if name == "t":
            count = np.maximum(sums.rewards.count, 1.0)
            plain = sums.rewards.low / count
            spread = count * plain * (1.0 - plain)
            width = fixed.t_half_width(sums.rewards.count, spread, self.alpha)
            return plain[:, :, None] - plain[:, None, :] - width
        rho = self.rho[float(name)]
        return mean - one_sided_half_width(t, squares[-1], rho, self.alpha)

    def look(self, sums):
        for name in ("bounded", "capped"):
            if name in self.sequences:
                self._check(name, self.lower(sums, name))
        if "per-model" in self.sequences and sums.t >= self.next_per_model:
            self._check("per-model", self.lower(sums, "per-model"))
            self.next_per_model = sums.t * 1.08
        if "others" not in self.sequences:
            return
        enough = sums.rewards.count.min(axis=1) >= MIN_REWARDS
        if not enough.any():
            return
        for name in ("z", "t"):
            self._check(f"naive {name}", self.lower(sums, name), enough)
        rarer = sums.rewards.rarer().min(axis=1)
        squares = sums.low_sq[-1][:, :, None] + sums.high_sq[-1][:, None] - 2.0 * sums.cross[-1]
        for needed, rho in self.rho.items():
            ready = enough & (rarer >= needed)
            opening = ready & np.isnan(rho).all(axis=(1, 2))
            scale = self.scenario.rows / sums.t
            fresh = np.maximum(squares[opening], 0.0) * scale
            rho[opening] = tuned_rho(fresh, 2.0 * self.alpha)
            self._check(f"asymptotic from {needed:g}", self.lower(sums, needed), ready)

    def _check(self, name, lower, when=None):
        with np.errstate(invalid="ignore"):
            wrong = ((lower > self.truth + 1e-12) & self.off).any(axis=(1, 2))
        self.report.miss(name, wrong if when is None else wrong & when)

    def finish(self, sums):
        """Mean half-widths at the end, over that of the fixed-n z interval of the true variance."""
        reference = self.lower(sums, "z")
        centre = (sums.low[-1][:, :, None] - sums.high[-1][:, None, :]) / sums.t
        for name in ("bounded", "capped", "per-model"):
            if name in self.sequences:
                lower = self.lower(sums, name, 64)
                wide = -(lower + lower.transpose(0, 2, 1))[:, self.off] / 2.0
                base = (centre - reference)[:, self.off]
                self.report.width[name] = float(wide.mean() / base.mean())
        for needed, rho in self.rho.items():
            name = f"asymptotic from {needed:g}"
            if name in self.report.missed:
                open_share = np.isfinite(rho).all(axis=(1, 2))
                self.report.looked[name] = float(open_share.mean())
