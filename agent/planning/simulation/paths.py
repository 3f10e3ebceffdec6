"""N simulated experiments at once: their assignment shares and certified sums, step by step.

The shares are the formulas of `equipoise.policies`, which freezes one rule at a time where a plan
freezes one for every path at every look; a test holds the two to each other. Plans know no
contexts, so only context-free assignments are offered.

Within a step the rule is frozen, so chances, predictions and centres are constants and every sum
of `inference.score` is an exact function of three numbers per model: rewards drawn, their sum and
their sum of squares (a test adds up single rows and finds the same). Only those three are drawn:
binomial for rewards of 0 and 1, normal otherwise. Everything is on the [0, 1] scale, larger being
better.

A lost reward, which never comes and counts as the worst case, is 0 for the lower ends and 1 for the
upper ones; the upper ends then have a sum and squares of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
from scipy import special

from equipoise.policies.assignments.certify import cautious, certifying_shares
from equipoise.policies.assignments.top_two import BETA
from equipoise.policies.assignments.track_and_stop import START_REWARDS
from equipoise.policies.posterior import VALUE_DRAWS
from equipoise.store.batches import Flags, Floats, Ints

Shares: TypeAlias = Callable[[Floats, Floats, Floats, Floats, float, float], Floats]

_NODES = 32
_BISECTIONS = 24
_LEAST_VARIANCE = 1e-9


def best_chances(means: Floats, variances: Floats) -> Floats:
    """(N, K) probability that each of K independent normals is the largest.

    The integral of phi_i(x) prod over j != i of Phi_j(x) by the midpoint rule, on a grid that
    spans every normal that can still win.
    """
    sd = np.sqrt(np.maximum(variances, _LEAST_VARIANCE))
    low = (means - 4.5 * sd).max(axis=1)
    high = (means + 4.5 * sd).max(axis=1)
    x = low[:, None] + (high - low)[:, None] * (np.arange(_NODES) + 0.5) / _NODES
    z = x[:, None, :] - means[:, :, None]
    z /= sd[:, :, None]
    below = special.ndtr(z)
    # phi_i / Phi_i, times all Phi: where a Phi is 0 nothing can win anyway.
    z *= z
    z *= -0.5
    own = np.exp(z, out=z)
    own /= np.maximum(below, 1e-300)
    # A normal far narrower than the grid's step may fall between two nodes.
    weight = np.einsum("nkj,nj->nk", own, below.prod(axis=1)) / sd + 1e-300
    result: Floats = weight / weight.sum(axis=1, keepdims=True)
    return result


def optimal_shares(means: Floats, variances: Floats, epsilon: float) -> Floats:
    """(N, K) Garivier & Kaufmann's shares, as `track_and_stop.optimal_weights`, one leader each."""
    rows = np.arange(len(means))
    leader = means.argmax(axis=1)
    gaps = np.maximum(means[rows, leader][:, None] - means, 1e-6) + epsilon
    ratio = np.maximum(variances, _LEAST_VARIANCE)
    ratio = ratio / ratio[rows, leader][:, None]
    ratio[rows, leader] = 0.0
    gaps[rows, leader] = np.inf
    q = (gaps / gaps.min(axis=1, keepdims=True)) ** 2
    q[rows, leader] = 1.0
    low = 1.0 / np.sqrt(ratio.sum(axis=1))
    high = 1.0 / np.sqrt(np.where(q == 1.0, ratio, 0.0).sum(axis=1))
    for _ in range(_BISECTIONS):
        middle = np.sqrt(low * high)[:, None]
        total = (ratio * (middle / (q + middle * (q - 1.0))) ** 2).sum(axis=1)
        below = total < 1.0
        low, high = np.where(below, middle[:, 0], low), np.where(below, high, middle[:, 0])
    s = high[:, None]
    weights = ratio * s / (q + s * (q - 1.0))
    weights[rows, leader] = 1.0
    result: Floats = weights / weights.sum(axis=1, keepdims=True)
    return result


def _all(holds: Flags) -> Flags:
    """(N, 1) whether it holds for every model."""
    return np.asarray(holds.all(axis=1, keepdims=True), dtype=np.bool_)


def _uniform(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    return np.full(means.shape, 1.0 / means.shape[1])


def _neyman(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    known = _all(counts > 1)
    sd = np.sqrt(np.maximum(np.where(known, variances, 1.0), _LEAST_VARIANCE))
    priced = bool((np.isfinite(costs) & (costs > 0)).all())
    shares = sd / np.sqrt(costs) if priced else sd
    result: Floats = shares / shares.sum(axis=1, keepdims=True)
    return result


def _top_two(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    known = _all(counts > 1)
    size = means.shape[1]
    chance = best_chances(
        np.where(known, means, 0.0),
        np.where(known, variances / np.maximum(counts, 1.0), 1.0),
    )
    chance = (chance * VALUE_DRAWS + 0.5) / (VALUE_DRAWS + 0.5 * size)
    odds = chance / (1.0 - chance)
    shares: Floats = chance * (BETA + (1.0 - BETA) * (odds.sum(axis=1, keepdims=True) - odds))
    return np.where(known, shares, 1.0 / size)


def _track_and_stop(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    rows, size = np.arange(len(means)), means.shape[1]
    started = _all(counts >= START_REWARDS)
    leader = means.argmax(axis=1)
    noise = variances / np.maximum(counts, 1.0)
    gaps = means[rows, leader][:, None] - means + epsilon
    scale = np.maximum(2.0 * (noise[rows, leader][:, None] + noise), 1e-300)
    evidence = gaps**2 / scale
    evidence[rows, leader] = np.inf
    total = np.maximum(counts.sum(axis=1), 1.0)
    threshold = np.log((1.0 + np.log(total)) / delta)
    stopped = np.asarray(evidence.min(axis=1) > threshold)[:, None]
    alone = np.arange(size)[None, :] == leader[:, None]
    shares = np.where(stopped, alone, optimal_shares(means, variances, epsilon))
    return np.where(started, shares, 1.0 / size)


def _certify(
    counts: Floats, means: Floats, variances: Floats, costs: Floats, epsilon: float, delta: float
) -> Floats:
    known, size = _all(counts > 1), means.shape[1]
    noise = np.where(known, np.maximum(variances, _LEAST_VARIANCE) / np.maximum(counts, 1.0), 1.0)
    chance = best_chances(np.where(known, means, 0.0), noise)
    chance = (chance * VALUE_DRAWS + 0.5) / (VALUE_DRAWS + 0.5 * size)
    gaps = means[:, :, None] - means[:, None, :] + epsilon
    apart = noise[:, :, None] + noise[:, None, :]
    own = cautious(np.where(known, variances, 0.25), counts)
    shares = certifying_shares(chance, gaps, apart, own, np.clip(means, 0.0, 1.0))
    return np.where(known, shares, 1.0 / size)


ASSIGNMENTS: dict[str, Shares] = {
    "uniform": _uniform,
    "neyman": _neyman,
    "top-two": _top_two,
    "certify": _certify,
    "track-and-stop": _track_and_stop,
}
"""Assignments that a plan can simulate, by the name of the policy."""


@dataclass(frozen=True, slots=True)
class Draws:
    """What a step of `rows` (N,) requests drew, each (N, K).

    values: true means; count: rewards; total: their sum; scatter: sum of (R - V)^2 around the true
    value; unexplained: (N,) share of the variance of R that the prediction leaves; residual: sum of
    R - V less what the prediction explains of it, None where it explains nothing. lost: how many
    of the rewards never came, which are 0 here; high: the same draws with those as 1. None where
    none is lost.
    """

    rows: Floats
    values: Floats
    count: Floats
    total: Floats
    scatter: Floats
    unexplained: Floats
    residual: Floats | None
    lost: Floats | None = None
    high: Draws | None = None


@dataclass(slots=True)
class PathState:
    """Sums of N paths: K models, C caps.

    rows: (N,). count, lost, total, squares: (N, K) rows that drew a model, those of them without a
    reward, sums of R and of R^2. own: (2, N, K) sums of squares around the running mean that was in
    force (`per_model`), lost rewards as 0 and as 1. ends, end_squares: (2, C, N, K) sums of low and
    of high scores and of their squares; cross: (C, N, K, K).
    """

    rows: Floats
    count: Floats
    lost: Floats
    total: Floats
    squares: Floats
    own: Floats
    ends: Floats
    end_squares: Floats
    cross: Floats

    @classmethod
    def empty(cls, paths: int, models: int, caps: int) -> Self:
        two, three = (paths, models), (caps, paths, models)
        return cls(
            rows=np.zeros(paths),
            count=np.zeros(two),
            lost=np.zeros(two),
            total=np.zeros(two),
            squares=np.zeros(two),
            own=np.zeros((2, *two)),
            ends=np.zeros((2, *three)),
            end_squares=np.zeros((2, *three)),
            cross=np.zeros((*three, models)),
        )

    def take(self, paths: Ints) -> Self:
        """These paths only."""
        return type(self)(
            rows=self.rows[paths],
            count=self.count[paths],
            lost=self.lost[paths],
            total=self.total[paths],
            squares=self.squares[paths],
            own=self.own[:, paths],
            ends=self.ends[:, :, paths],
            end_squares=self.end_squares[:, :, paths],
            cross=self.cross[:, paths],
        )

    @property
    def seen(self) -> Floats:
        """(N, K) rewards that came."""
        return self.count - self.lost

    def means(self) -> Floats:
        """(N, K) plain means of the rewards that came, 1/2 where there is none."""
        return np.where(self.seen > 0, self.total / np.maximum(self.seen, 1.0), 0.5)

    def variances(self) -> Floats:
        """(N, K) their sample variances with divisor n - 1; 0 where there are fewer than two."""
        enough = np.maximum(self.seen - 1.0, 1.0)
        scatter = self.squares - self.seen * self.means() ** 2
        return np.where(self.seen > 1, np.maximum(scatter, 0.0) / enough, 0.0)

    def mean_ends(self) -> tuple[Floats, Floats]:
        """(N, K) twice: means over all rows with lost rewards as 0 and as 1; 0 and 1 without."""
        some, count = self.count > 0, np.maximum(self.count, 1.0)
        low, high = self.total / count, (self.total + self.lost) / count
        return np.where(some, low, 0.0), np.where(some, high, 1.0)

    def rarer(self) -> Floats:
        """(N,) the least amount of the rarer outcome over the models."""
        result: Floats = np.minimum(self.total, self.seen - self.total).min(axis=1)
        return result

    def low_means(self, cap: int) -> Floats:
        """(N, K) mean low scores under a cap, 1/2 before the first row."""
        rows = self.rows[:, None]
        return np.where(rows > 0, self.ends[0, cap] / np.maximum(rows, 1.0), 0.5)

    def step(self, draws: Draws, chance: Floats, caps: Floats) -> None:
        """Add a step, in place. chance: (N, K) e pi; caps: (C, N)."""
        weight, high = self.count + 1.0, draws.high or draws
        self.own[0] += _around(draws, (self.total + 0.5) / weight)
        self.own[1] += _around(high, (self.total + self.lost + 0.5) / weight)
        if len(caps):
            running = (self.total + 0.5) / (self.seen + 1.0)
            self._score(caps[:, :, None], draws, chance, running)
        self.rows = self.rows + draws.rows
        self.count += draws.count
        self.total += draws.total
        if draws.lost is not None:
            self.lost += draws.lost
        values = draws.values
        off = draws.total - draws.count * values
        self.squares += draws.scatter + 2.0 * values * off + draws.count * values**2

    def _score(self, caps: Floats, draws: Draws, chance: Floats, mu: Floats) -> None:
        """Both ends under all caps (C, N, 1) at once: arrays are (2, C, N, K)."""
        weight, rows = 1.0 / chance, draws.rows[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(weight > 1.0, caps / (weight - 1.0), np.inf)
        guess = np.stack([np.minimum(mu, room), np.maximum(mu, 1.0 - room)])
        known, divisor = self.rows[:, None] > 0, np.maximum(self.rows, 1.0)[:, None]
        centre = np.where(known, np.clip(self.ends / divisor, 0.0, 1.0), 0.5)
        if draws.high is None:
            first, second = _residuals(draws, guess, mu)
        else:
            ends = [_residuals(draws, guess[:1], mu), _residuals(draws.high, guess[1:], mu)]
            first, second = (np.concatenate(part) for part in zip(*ends, strict=True))
        first *= weight
        base = guess - centre
        self.ends += rows * guess + first
        weighed = rows * base
        # Sum over rows of low(a) high(b), as two outer products a path.
        left = np.stack([weighed[0] + first[0], base[0]], axis=-1)
        weighed += 2.0 * first
        weighed *= base
        second *= weight
        second *= weight
        weighed += second
        self.end_squares += weighed
        self.cross += left @ np.stack([base[1], first[1]], axis=-2)

    def contrast(self, cap: int, paths: Ints, a: Ints, b: Ints) -> tuple[Floats, Floats]:
        """Totals and squares of low(a) - high(b); index arrays that broadcast together."""
        total = self.ends[0, cap, paths, a] - self.ends[1, cap, paths, b]
        squares = self.end_squares[0, cap, paths, a] + self.end_squares[1, cap, paths, b]
        return total, np.maximum(squares - 2.0 * self.cross[cap, paths, a, b], 0.0)


def _around(draws: Draws, guess: Floats) -> Floats:
    """(N, K) sum of (R - guess)^2."""
    gap = draws.values - guess
    off = draws.total - draws.count * draws.values
    result: Floats = draws.scatter + 2.0 * gap * off + draws.count * gap**2
    return result


def _residuals(draws: Draws, guess: Floats, mu: Floats) -> tuple[Floats, Floats]:
    """(E, C, N, K) sums of R - guess and of its square over the rows drawn, of E ends.

    guess: the mean of what is predicted; where it is mu, it follows the request and so takes the
    explained share out of the noise. Where a cap holds it down it is a constant.
    """
    gap = draws.values - guess
    noise, scatter = draws.total - draws.count * draws.values, draws.scatter
    if draws.residual is not None:
        predicted = guess == mu
        noise = np.where(predicted, draws.residual, noise)
        scatter = scatter * np.where(predicted, draws.unexplained[:, None], 1.0)
    step = draws.count * gap
    return noise + step, np.maximum(scatter + gap * (2.0 * noise + step), 0.0)
