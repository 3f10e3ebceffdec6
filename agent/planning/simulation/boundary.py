"""When a simulated experiment may stop: the certified sequences of `agent.inference`, batched.

The bounds are those functions themselves. Around them stands a necessary condition that costs
nothing and spares most calls: by log E <= s^2 / (2 V) no mixture reaches log(1 / alpha) before the
square of its sum does. For `per-model` the function `reach` is tabulated over V once for a level.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Protocol

import numpy as np

from equipoise.agent.inference import asymptotic, levels
from equipoise.agent.inference.certificate import RARER, Sequence
from equipoise.agent.inference.mixture import (
    LOWEST_LEVEL,
    evidence_of,
    lower_mean_of,
    reach,
    tuned_weights,
    usual_caps,
)
from equipoise.agent.inference.per_model import LEVELS
from equipoise.agent.planning.simulation.paths import PathState
from equipoise.store.batches import Flags, Floats, Ints

_TABLE_SQUARES: Floats = np.geomspace(1e-3, 1e9, 240)


class Boundary(Protocol):
    """One sequence at one level.

    `lower` gives the lower ends of V(a) - V(b) for index arrays that broadcast together; `hopeful`
    says where they may lie above a threshold, `beyond` where they do; `update` takes in every look
    before any of them is asked; `keep` of the paths that are simulated on.
    """

    def update(self, state: PathState) -> None: ...

    def keep(self, paths: Ints) -> None: ...

    def centre(self, state: PathState) -> Floats: ...

    def hopeful(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags: ...

    def beyond(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags: ...

    def lower(self, state: PathState, paths: Ints, a: Ints, b: Ints) -> Floats: ...


@dataclass(slots=True)
class Bounded:
    """Capped scores, mixed over the finite of the caps (C, N).

    alpha: one-sided level, of all pairs or (K, K). planned: (N,) requests that the era of each path
    is planned for, None for equal weights; variance: of the reward that it expects.
    """

    alpha: Floats | float
    caps: Floats
    planned: Floats | None = None
    variance: float = 0.25
    _known: tuple[float, Floats] | None = None
    """The last level that all pairs had, and the (N, C, J) weights of all paths at it."""

    def update(self, state: PathState) -> None:
        """It remembers nothing of a look."""

    def keep(self, paths: Ints) -> None:
        self.caps = self.caps[:, paths]
        self.planned = None if self.planned is None else self.planned[paths]
        self._known = None if self._known is None else (self._known[0], self._known[1][paths])

    def centre(self, state: PathState) -> Floats:
        """(N, K) the values the sequence is centred on."""
        return state.low_means(len(self.caps) - 1)

    def hopeful(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags:
        totals, squares, bound, alpha = self._sums(state, paths, a, b)
        sums = (totals - (state.rows[paths] * above)[..., None]) / bound
        evidence = np.where(sums > 0, sums**2, 0.0)
        needed = 2.0 * np.log(1.0 / alpha)[..., None]
        return np.asarray((evidence >= needed * squares).any(axis=-1))

    def beyond(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags:
        totals, squares, bound, alpha = self._sums(state, paths, a, b)
        # The evidence falls as the mean grows: where it suffices at `above`, the end lies beyond.
        sums = (totals - (state.rows[paths] * above)[..., None]) / bound
        weights = self._weights(paths, bound, alpha)
        result: Flags = np.asarray(evidence_of(sums, squares, weights) > np.log(1.0 / alpha))
        return result

    def lower(self, state: PathState, paths: Ints, a: Ints, b: Ints) -> Floats:
        totals, squares, bound, alpha = self._sums(state, paths, a, b)
        rows = np.maximum(state.rows[paths], 1.0)
        weights = self._weights(paths, bound, alpha)
        result: Floats = lower_mean_of(1.0, totals, squares, bound, alpha, weights) / rows
        return np.clip(result, -1.0, 1.0)

    def _weights(self, paths: Ints, bound: Floats, alpha: Floats) -> Floats | None:
        if self.planned is None or not alpha.size:
            return None
        caps = np.moveaxis(self.caps[np.isfinite(self.caps).all(axis=1)], 0, -1)
        level = float(alpha.flat[0])
        if (alpha != level).any():
            return tuned_weights(self.planned[paths], self.variance, caps[paths], bound, alpha)
        # They follow the path alone then, and nothing of a look.
        if self._known is None or self._known[0] != level:
            bounds = caps + 2.0
            weights = tuned_weights(self.planned, self.variance, caps, bounds, level)
            self._known = level, weights
        return self._known[1][paths]

    def _sums(
        self, state: PathState, paths: Ints, a: Ints, b: Ints
    ) -> tuple[Floats, Floats, Floats, Floats]:
        finite = [cap for cap in range(len(self.caps)) if np.isfinite(self.caps[cap]).all()]
        parts = [state.contrast(cap, paths, a, b) for cap in finite]
        totals = np.stack([total for total, _ in parts], axis=-1)
        shape = totals.shape[:-1]
        bound = np.stack(
            [np.broadcast_to(self.caps[cap][paths] + 2.0, shape) for cap in finite], -1
        )
        squares = np.stack([square for _, square in parts], axis=-1) / bound**2
        alpha = np.asarray(self.alpha, dtype=float)
        return totals, squares, bound, np.broadcast_to(alpha[a, b] if alpha.ndim else alpha, shape)


@lru_cache(maxsize=16)
def _reach_table(alpha: float) -> Floats:
    """(V, LEVELS) `reach` over sqrt(V + 1), which hardly bends: rows of _TABLE_SQUARES."""
    # The lowest level of either side takes no part in any rectangle.
    grid = np.linspace(LOWEST_LEVEL, np.log(1.0 / alpha) - LOWEST_LEVEL, LEVELS + 1)[1:]
    scale = np.sqrt(_TABLE_SQUARES + 1.0)
    return reach(grid[None, :], _TABLE_SQUARES[:, None]) / scale[:, None]


class PerModel:
    """Sequences on each model's own rewards."""

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self._table = _reach_table(alpha)
        self._logs = np.log(_TABLE_SQUARES)

    def update(self, state: PathState) -> None:
        """It remembers nothing of a look."""

    def keep(self, paths: Ints) -> None:
        """It knows nothing of single paths."""

    def centre(self, state: PathState) -> Floats:
        return state.mean_ends()[0]

    def hopeful(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags:
        count = np.maximum(state.count, 1.0)
        low, high = state.mean_ends()
        gap = low[paths, a] - high[paths, b] - above
        noise = (state.own[0] / count**2)[paths, a] + (state.own[1] / count**2)[paths, b]
        seen = (state.count[paths, a] > 0) & (state.count[paths, b] > 0)
        result: Flags = seen & (gap > 0) & (gap**2 >= 2.0 * np.log(1.0 / self._alpha) * noise)
        return result

    def beyond(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags:
        result: Flags = self.lower(state, paths, a, b) > above
        return result

    def lower(self, state: PathState, paths: Ints, a: Ints, b: Ints) -> Floats:
        (low, high), count = state.mean_ends(), np.maximum(state.count, 1.0)
        left, right = low[paths, a], high[paths, b]
        below = self._reach(state.own[0][paths, a]) / count[paths, a][..., None]
        over = self._reach(state.own[1][paths, b]) / count[paths, b][..., None]
        below = np.minimum(below, left[..., None])
        over = np.minimum(over, 1.0 - right[..., None])
        slack = (below + over[..., ::-1]).max(axis=-1)
        seen = (state.count[paths, a] > 0) & (state.count[paths, b] > 0)
        return np.where(seen, np.clip(left - right - slack, -1.0, 1.0), -1.0)

    def _reach(self, squares: Floats) -> Floats:
        """(..., LEVELS) the table at these squares."""
        step = self._logs[1] - self._logs[0]
        place = (np.log(np.maximum(squares, _TABLE_SQUARES[0])) - self._logs[0]) / step
        index = np.clip(place.astype(int), 0, len(self._logs) - 2)
        share = np.clip(place - index, 0.0, 1.0)[..., None]
        between = self._table[index] * (1.0 - share) + self._table[index + 1] * share
        result: Floats = between * np.sqrt(squares + 1.0)[..., None]
        return result


class Asymptotic:
    """The asymptotic sequence once it has opened; until then the bounded one at its share."""

    def __init__(
        self, alpha: Floats | float, opening_alpha: float, tuned_rows: float, before: Bounded
    ) -> None:
        self._alpha = levels.split_level(np.asarray(alpha, dtype=float))[0]
        self._opening = min(2.0 * levels.split_level(opening_alpha)[0], 0.5)
        self._tuned_rows = tuned_rows
        self._before, caps = before, before.caps
        self._cap = len(caps) - 1
        self._rho: Floats | None = None
        self._open: Flags | None = None

    def update(self, state: PathState) -> None:
        size, models = state.count.shape
        if self._rho is None or self._open is None:
            self._rho, self._open = np.zeros((size, models, models)), np.zeros(size, dtype=bool)
        new = np.flatnonzero((state.rarer() >= RARER) & ~self._open)
        if len(new):
            every = np.arange(models)
            squares = state.contrast(
                self._cap, new[:, None, None], every[None, :, None], every[None, None, :]
            )[1]
            scale = self._tuned_rows / np.maximum(state.rows[new], 1.0)
            self._rho[new] = asymptotic.tuned_rho(squares * scale[:, None, None], self._opening)
            self._open[new] = True

    def keep(self, paths: Ints) -> None:
        self._before.keep(paths)
        if self._rho is not None and self._open is not None:
            self._rho, self._open = self._rho[paths], self._open[paths]

    def centre(self, state: PathState) -> Floats:
        return state.low_means(self._cap)

    def hopeful(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags:
        assert self._open is not None
        totals, squares = state.contrast(self._cap, paths, a, b)
        sums = totals - state.rows[paths] * above
        opened = (sums > 0) & (sums**2 >= np.log(1.0 / self._level(a, b)) * squares)
        before = self._before.hopeful(state, paths, a, b, above)
        return np.where(self._open[paths], opened, before)

    def beyond(self, state: PathState, paths: Ints, a: Ints, b: Ints, above: Floats) -> Flags:
        assert self._open is not None
        result: Flags = self._opened(state, paths, a, b) > above
        shut = ~np.broadcast_to(self._open[paths], result.shape)
        if shut.any():
            result = np.where(shut, self._before.beyond(state, paths, a, b, above), result)
        return result

    def lower(self, state: PathState, paths: Ints, a: Ints, b: Ints) -> Floats:
        assert self._open is not None
        result = self._opened(state, paths, a, b)
        shut = ~np.broadcast_to(self._open[paths], result.shape)
        if shut.any():
            result = np.where(shut, self._before.lower(state, paths, a, b), result)
        return result

    def _level(self, a: Ints, b: Ints) -> Floats:
        return self._alpha[a, b] if self._alpha.ndim else self._alpha

    def _opened(self, state: PathState, paths: Ints, a: Ints, b: Ints) -> Floats:
        """Lower ends as if every path's sequence had opened."""
        assert self._rho is not None
        totals, squares = state.contrast(self._cap, paths, a, b)
        rho, alpha = self._rho[paths, a, b], self._level(a, b)
        width = asymptotic.one_sided_half_width(1.0, squares, rho, alpha)
        result: Floats = np.clip((totals - width) / np.maximum(state.rows[paths], 1.0), -1.0, 1.0)
        return result


def needed_caps(
    sequence: Sequence, models: int, rate: Floats, era_caps: tuple[float, ...] | None = None
) -> Floats:
    """(C, N) caps whose sums a sequence reads, for rates (N,). era_caps: of a running era."""
    caps = np.array([era_caps or usual_caps(models, each) for each in rate.tolist()]).T
    return caps[: {Sequence.BOUNDED: 2, Sequence.PER_MODEL: 0, Sequence.ASYMPTOTIC: 3}[sequence]]


def boundary(
    sequence: Sequence,
    alpha: Floats | float,
    opening_alpha: float,
    tuned_rows: float,
    caps: Floats,
    planned: Floats | None = None,
    variance: float = 0.25,
) -> Boundary:
    """The boundary of a declared sequence at one-sided level alpha, of all pairs or (K, K).

    opening_alpha: level of all pairs, for which the asymptotic sequence is tuned at `tuned_rows`.
    planned, variance: as of `Bounded`. The per-model one has a single level, the smallest.
    """
    if sequence is Sequence.BOUNDED:
        return Bounded(alpha, caps, planned, variance)
    if sequence is Sequence.PER_MODEL:
        return PerModel(levels.split_level(float(np.min(alpha)))[0])
    fallback = levels.split_level(np.asarray(alpha, dtype=float))[1]
    return Asymptotic(alpha, opening_alpha, tuned_rows, Bounded(fallback, caps, planned, variance))
