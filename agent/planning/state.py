"""The certified sums of N simulated experiments, moved forward a step at a time.

Within a step the rule is frozen, so chances, predictions and centres are constants and every sum
of `inference.score_moments` is an exact function of three numbers per model: rewards drawn, their
sum and their sum of squares (test_state.py adds up single rows and finds the same). Only those
three are drawn: binomial for rewards of 0 and 1, normal otherwise. Everything is on the [0, 1]
scale, larger being better.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from equipoise.store.batches import Flags, Floats, Ints


@dataclass(frozen=True, slots=True)
class Draws:
    """What a step of `rows` (N,) requests drew, each (N, K).

    count: rewards; total: their sum; scatter: sum of (R - V)^2 around the true value;
    residual: sum of R - V less what the prediction explains of it. unexplained: (N,) share of the
    variance of R that the prediction leaves.
    """

    rows: Floats
    count: Floats
    total: Floats
    scatter: Floats
    residual: Floats
    unexplained: Floats


@dataclass(slots=True)
class PathState:
    """Sums of N paths: K models, C caps.

    rows: (N,). count, total, squares, own: (N, K) rewards, sums of R and of R^2, and of squares
    around the running mean that was in force (`per_model`). low, high: (C, N, K) score sums;
    low_squares, high_squares: (C, N, K); cross: (C, N, K, K).
    """

    rows: Floats
    count: Floats
    total: Floats
    squares: Floats
    own: Floats
    low: Floats
    high: Floats
    low_squares: Floats
    high_squares: Floats
    cross: Floats

    @classmethod
    def empty(cls, paths: int, models: int, caps: int) -> Self:
        two, three = (paths, models), (caps, paths, models)
        return cls(
            rows=np.zeros(paths),
            count=np.zeros(two),
            total=np.zeros(two),
            squares=np.zeros(two),
            own=np.zeros(two),
            low=np.zeros(three),
            high=np.zeros(three),
            low_squares=np.zeros(three),
            high_squares=np.zeros(three),
            cross=np.zeros((*three, models)),
        )

    def take(self, paths: Ints) -> Self:
        """These paths only."""
        lead = ("rows", "count", "total", "squares", "own")
        return type(self)(
            *(getattr(self, name)[paths] for name in lead),
            *(getattr(self, name)[:, paths] for name in self.__slots__ if name not in lead),
        )

    def means(self) -> Floats:
        """(N, K) plain means, 1/2 where there is no reward."""
        return np.where(self.count > 0, self.total / np.maximum(self.count, 1.0), 0.5)

    def variances(self) -> Floats:
        """(N, K) sample variances with divisor n - 1; 0 where there are fewer than two."""
        enough = np.maximum(self.count - 1.0, 1.0)
        scatter = self.squares - self.count * self.means() ** 2
        return np.where(self.count > 1, np.maximum(scatter, 0.0) / enough, 0.0)

    def rarer(self) -> Floats:
        """(N,) the least amount of the rarer outcome over the models."""
        result: Floats = np.minimum(self.total, self.count - self.total).min(axis=1)
        return result

    def score_means(self, cap: int) -> tuple[Floats, Floats]:
        """(N, K) mean low and high scores under a cap, 1/2 before the first row."""
        rows = self.rows[:, None]
        known, divisor = rows > 0, np.maximum(rows, 1.0)
        return (
            np.where(known, self.low[cap] / divisor, 0.5),
            np.where(known, self.high[cap] / divisor, 0.5),
        )

    def step(self, draws: Draws, chance: Floats, values: Floats, caps: Floats) -> None:
        """Add a step, in place. chance: (N, K) e pi; values: (N, K) true ones; caps: (C, N)."""
        running = (self.total + 0.5) / (self.count + 1.0)
        self.own += _around(draws, values, running)
        for index, cap in enumerate(caps):
            self._score(index, cap[:, None], draws, chance, values, running)
        self.rows = self.rows + draws.rows
        self.count += draws.count
        self.total += draws.total
        off = draws.total - draws.count * values
        self.squares += draws.scatter + 2.0 * values * off + draws.count * values**2

    def _score(
        self,
        index: int,
        cap: Floats,
        draws: Draws,
        chance: Floats,
        values: Floats,
        mu: Floats,
    ) -> None:
        weight, rows = 1.0 / chance, draws.rows[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(weight > 1.0, cap / (weight - 1.0), np.inf)
        centre_low, centre_high = self.score_means(index)
        bases, firsts = [], []
        for guess, centre, sums, squares in (
            (np.minimum(mu, room), centre_low, self.low, self.low_squares),
            (np.maximum(mu, 1.0 - room), centre_high, self.high, self.high_squares),
        ):
            first, second = _residuals(draws, values, guess, guess == mu)
            base = guess - np.clip(centre, 0.0, 1.0)
            sums[index] += rows * guess + weight * first
            squares[index] += rows * base**2 + 2.0 * base * weight * first + weight**2 * second
            bases.append(base)
            firsts.append(weight * first)
        low, high = bases
        self.cross[index] += (
            rows[:, :, None] * low[:, :, None] * high[:, None, :]
            + firsts[0][:, :, None] * high[:, None, :]
            + firsts[1][:, None, :] * low[:, :, None]
        )

    def contrast(self, cap: int, paths: Ints, a: Ints, b: Ints) -> tuple[Floats, Floats]:
        """Totals and squares of low(a) - high(b); index arrays that broadcast together."""
        total = self.low[cap, paths, a] - self.high[cap, paths, b]
        squares = self.low_squares[cap, paths, a] + self.high_squares[cap, paths, b]
        return total, np.maximum(squares - 2.0 * self.cross[cap, paths, a, b], 0.0)


def _around(draws: Draws, values: Floats, guess: Floats) -> Floats:
    """(N, K) sum of (R - guess)^2."""
    gap = values - guess
    off = draws.total - draws.count * values
    result: Floats = draws.scatter + 2.0 * gap * off + draws.count * gap**2
    return result


def _residuals(
    draws: Draws, values: Floats, guess: Floats, predicted: Flags
) -> tuple[Floats, Floats]:
    """(N, K) sums of R - mu and of its square over the rows drawn.

    guess: the mean of mu; predicted: where mu follows the request and so takes the explained share
    out of the noise. Where a cap holds mu down it is a constant.
    """
    gap = values - guess
    off = draws.total - draws.count * values
    noise = np.where(predicted, draws.residual, off)
    kept = draws.scatter * np.where(predicted, draws.unexplained[:, None], 1.0)
    first = noise + draws.count * gap
    return first, np.maximum(kept + 2.0 * gap * noise + draws.count * gap**2, 0.0)
