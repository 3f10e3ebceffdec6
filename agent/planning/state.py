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

from equipoise.store.batches import Floats, Ints


@dataclass(frozen=True, slots=True)
class Draws:
    """What a step of `rows` (N,) requests drew, each (N, K).

    count: rewards; total: their sum; scatter: sum of (R - V)^2 around the true value;
    unexplained: (N,) share of the variance of R that the prediction leaves; residual: sum of R - V
    less what the prediction explains of it, None where it explains nothing.
    """

    rows: Floats
    count: Floats
    total: Floats
    scatter: Floats
    unexplained: Floats
    residual: Floats | None


@dataclass(slots=True)
class PathState:
    """Sums of N paths: K models, C caps.

    rows: (N,). count, total, squares, own: (N, K) rewards, sums of R and of R^2, and of squares
    around the running mean that was in force (`per_model`). ends, end_squares: (2, C, N, K) sums
    of low and of high scores and of their squares; cross: (C, N, K, K).
    """

    rows: Floats
    count: Floats
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
            total=np.zeros(two),
            squares=np.zeros(two),
            own=np.zeros(two),
            ends=np.zeros((2, *three)),
            end_squares=np.zeros((2, *three)),
            cross=np.zeros((*three, models)),
        )

    def take(self, paths: Ints) -> Self:
        """These paths only."""
        return type(self)(
            rows=self.rows[paths],
            count=self.count[paths],
            total=self.total[paths],
            squares=self.squares[paths],
            own=self.own[paths],
            ends=self.ends[:, :, paths],
            end_squares=self.end_squares[:, :, paths],
            cross=self.cross[:, paths],
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

    def low_means(self, cap: int) -> Floats:
        """(N, K) mean low scores under a cap, 1/2 before the first row."""
        rows = self.rows[:, None]
        return np.where(rows > 0, self.ends[0, cap] / np.maximum(rows, 1.0), 0.5)

    def step(self, draws: Draws, chance: Floats, values: Floats, caps: Floats) -> None:
        """Add a step, in place. chance: (N, K) e pi; values: (N, K) true ones; caps: (C, N)."""
        running = (self.total + 0.5) / (self.count + 1.0)
        self.own += _around(draws, values, running)
        if len(caps):
            self._score(caps[:, :, None], draws, chance, values, running)
        self.rows = self.rows + draws.rows
        self.count += draws.count
        self.total += draws.total
        off = draws.total - draws.count * values
        self.squares += draws.scatter + 2.0 * values * off + draws.count * values**2

    def _score(
        self, caps: Floats, draws: Draws, chance: Floats, values: Floats, mu: Floats
    ) -> None:
        """Both ends under all caps (C, N, 1) at once: arrays are (2, C, N, K)."""
        weight, rows = 1.0 / chance, draws.rows[:, None]
        with np.errstate(divide="ignore", invalid="ignore"):
            room = np.where(weight > 1.0, caps / (weight - 1.0), np.inf)
        guess = np.stack([np.minimum(mu, room), np.maximum(mu, 1.0 - room)])
        known, divisor = self.rows[:, None] > 0, np.maximum(self.rows, 1.0)[:, None]
        centre = np.where(known, np.clip(self.ends / divisor, 0.0, 1.0), 0.5)
        first, second = _residuals(draws, values, guess, mu)
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


def _around(draws: Draws, values: Floats, guess: Floats) -> Floats:
    """(N, K) sum of (R - guess)^2."""
    gap = values - guess
    off = draws.total - draws.count * values
    result: Floats = draws.scatter + 2.0 * gap * off + draws.count * gap**2
    return result


def _residuals(draws: Draws, values: Floats, guess: Floats, mu: Floats) -> tuple[Floats, Floats]:
    """(2, C, N, K) sums of R - guess and of its square over the rows drawn.

    guess: the mean of what is predicted; where it is mu, it follows the request and so takes the
    explained share out of the noise. Where a cap holds it down it is a constant.
    """
    gap = values - guess
    noise, kept = draws.total - draws.count * values, draws.scatter
    if draws.residual is not None:
        predicted = guess == mu
        noise = np.where(predicted, draws.residual, noise)
        kept = kept * np.where(predicted, draws.unexplained[:, None], 1.0)
    step = draws.count * gap
    return noise + step, np.maximum(kept + gap * (2.0 * noise + step), 0.0)
