"""The sequences under study, each read through its shipped bound function.

To look at thousands of runs at every row, a screen first finds the runs in which a bound *may* lie
above a given theta: `evidence` is never below the evidence that the shipped bound stands on, so
where it is not above zero the bound is not above theta. Only the others are put to the shipped
function. For the mixtures the screen is the supremum over lambda, s - V log(1 + s / V) at s > 0,
and where that is not enough the mixture at theta itself, a dozen times cheaper than its root; for
the asymptotic one log Phi(z) <= 0 is left out.
"""

from __future__ import annotations

import numpy as np

from equipoise.agent.inference import asymptotic, per_model
from equipoise.agent.inference.certificate import RARER, Sequence, choose, split_level
from equipoise.agent.inference.levels import EraPrior
from equipoise.agent.inference.mixture import (
    LAMBDAS,
    contrast_bound,
    contrast_bounds,
    tuned_weights,
    value_bounds,
)

_TINY = 1e-300
_PSI = -np.log1p(-LAMBDAS) - LAMBDAS
_ROUNDING = 1e-9


def screen(excess, squares):
    """sup over lambda in [0, 1) of lambda s - psi(lambda) V."""
    s = np.maximum(excess, 0.0)
    squares = np.maximum(squares, _TINY)
    return np.where(s > 0, s - squares * np.log1p(s / squares), 0.0)


def log_sum(excess, squares, base, weights=0.0):
    """(...) log(base + sum over the grid of w exp(lambda s - psi(lambda) V)); base is 0 or 1.
    weights: (..., J) logs of w."""
    exponent = LAMBDAS * excess[..., None] - _PSI * squares[..., None] + weights
    peak = np.maximum(exponent.max(axis=-1), 0.0 if base else -np.inf)
    inside = base * np.exp(-peak) if base else 0.0
    return peak + np.log(inside + np.exp(exponent - peak[..., None]).sum(axis=-1))


def mixed(parts, alpha, weights=None):
    """Evidence of the mixture over caps less log(1 / alpha): (excess, squares) per cap.

    weights: (..., C, J) logs, equal ones if None; they and alpha broadcast to the parts.
    """
    parts = [np.broadcast_arrays(*part) for part in parts]
    shape = parts[0][0].shape
    needed = np.broadcast_to(np.log(1.0 / np.asarray(alpha, dtype=float)), shape)
    result = np.max([screen(*part) for part in parts], axis=0) - needed
    here = result > 0
    if weights is None:
        weights = np.full((len(parts), len(LAMBDAS)), -np.log(len(parts) * len(LAMBDAS)))
    weights = np.broadcast_to(weights, (*shape, *np.shape(weights)[-2:]))[here]
    sums = [
        log_sum(excess[here], squares[here], 0, weights[..., cap, :])
        for cap, (excess, squares) in enumerate(parts)
    ]
    result[here] = np.logaddexp.reduce(sums, axis=0) - needed[here] + _ROUNDING
    return result


def planned(setup, delta=0.05, **known):
    """What an era is planned for where nothing is known of it."""
    return EraPrior.planned(setup.stream.models, delta, setup.rate, **known)


class Bounded:
    """The bounded sequence that ships: the mixture over finite caps. Theta is (A, A).

    alpha: one-sided level, of all pairs, (A, A), or (R, A, A) where each run has its own. prior:
    what the era is planned for: the default plan if not given, equal weights if None.
    """

    models_only = False

    def __init__(self, alpha, setup, prior="planned"):
        self.alpha, self.caps, self.models = alpha, setup.caps_in_force(), setup.stream.models
        self.finite = np.flatnonzero(np.isfinite(self.caps))
        self.prior = planned(setup) if prior == "planned" else prior
        size = self.models + 1
        caps = np.asarray(self.caps)[self.finite]
        self.bounds = contrast_bound(caps, size, self.models)
        self.weights = None
        if self.prior is not None:
            plan, bounds = self.prior, np.moveaxis(self.bounds, 0, -1)
            self.weights = tuned_weights(plan.requests, plan.variance, caps, bounds, alpha)

    def evidence(self, sums, theta):
        parts = []
        for place, cap in enumerate(self.finite):
            bound = self.bounds[place]
            total = sums.low[cap][:, :, None] - sums.high[cap][:, None, :]
            parts.append(((total - sums.t * theta) / bound, squares_of(sums, cap) / bound**2))
        return mixed(parts, self.alpha, self.weights)

    def lower(self, sums, runs):
        return np.stack([self._lower(sums, run) for run in runs])

    def _lower(self, sums, run):
        alpha = self.alpha[run] if np.ndim(self.alpha) == 3 else self.alpha
        return contrast_bounds(sums.of_run(run), self.caps, self.models, alpha, self.prior)


class BoundedValues:
    """Value ends of the bounded sequence, as a row per candidate: theta is (1, A).

    `evidence` and `lower` are for lower ends; with `upper` they are for minus the upper ends.
    """

    models_only = False

    def __init__(self, alpha, setup, upper=False):
        self.alpha, self.caps, self.upper = alpha, setup.caps_in_force(), upper
        self.finite = np.flatnonzero(np.isfinite(self.caps))
        self.prior, caps = planned(setup), np.asarray(self.caps)[self.finite]
        plan = self.prior
        self.weights = tuned_weights(plan.requests, plan.variance, caps, caps + 1.0, alpha, 0.5)

    def evidence(self, sums, theta):
        parts = []
        for cap in self.finite:
            bound = self.caps[cap] + 1.0
            total = -sums.high[cap] if self.upper else sums.low[cap]
            squares = sums.high_squares[cap] if self.upper else sums.low_squares[cap]
            excess = (total[:, None] - sums.t * theta) / bound
            parts.append((excess, squares[:, None] / bound**2))
        return mixed(parts, self.alpha, self.weights)

    def lower(self, sums, runs):
        ends = [value_bounds(sums.of_run(run), self.caps, self.alpha, self.prior) for run in runs]
        return np.stack([-high[None] if self.upper else low[None] for low, high in ends])


class PerModel:
    """The per-model sequence. Theta is (K, K)."""

    models_only = True

    def __init__(self, alpha, levels=per_model.LEVELS):
        self.alpha, self.levels = alpha, levels

    def evidence(self, sums, theta):
        rewards = sums.rewards
        count = np.maximum(rewards.count, 1.0)
        low, high = rewards.low / count, rewards.high / count
        # The bound lies above theta only if every pair of values in the unit square that differ
        # by theta is ruled out, so each one that is looked at has to be.
        gap = np.maximum(low[:, :, None] - high[:, None, :] - theta, 0.0)
        spread = (rewards.low_squares[:, :, None], rewards.high_squares[:, None, :])
        sizes = (rewards.count[:, :, None], rewards.count[:, None, :])
        room = (low[:, :, None], 1.0 - high[:, None, :])
        needed = np.log(1.0 / self.alpha)
        first = self._smallest(gap, spread, sizes, room, screen) - needed
        here = first > 0
        picked = [
            [np.broadcast_to(p, gap.shape)[here] for p in pair] for pair in (spread, sizes, room)
        ]
        exact = self._smallest(gap[here], *picked, self._log_mixture)
        first[here] = exact - needed + _ROUNDING
        return first

    @staticmethod
    def _log_mixture(excess, squares):
        return log_sum(excess, squares, 1) - np.log(len(LAMBDAS) + 1)

    @staticmethod
    def _smallest(gap, spread, sizes, room, evidence):
        """The least evidence over nine pairs of values that differ by theta, inf where none of
        them lies in the unit square."""
        best = np.full(gap.shape, np.inf)
        for share in np.linspace(0.0, 1.0, 9):
            one, two = gap * share, gap * (1.0 - share)
            inside = (one <= room[0]) & (two <= room[1])
            together = evidence(one * sizes[0], spread[0]) + evidence(two * sizes[1], spread[1])
            best = np.where(inside, np.minimum(best, together), best)
        return best

    def lower(self, sums, runs):
        return per_model.contrast_bounds(sums.rewards_of(runs), self.alpha, self.levels)


class Asymptotic:
    """The asymptotic sequence once every model has `needed` of its rarer outcome; no bound before.

    tuned: rows at which it is tightest.
    """

    models_only = False

    def __init__(self, alpha, setup, needed=RARER, tuned=None):
        self.alpha, self.needed = alpha, needed
        self.tuned = setup.stream.rows if tuned is None else tuned
        self.openings = {}
        self.rho = None

    def open(self, sums):
        """(R,) whether the sequence is open; those that open now freeze their rho."""
        if self.rho is None:
            runs, size = sums.low.shape[1:]
            self.rho = np.full((runs, size, size), np.nan)
        here = sums.rarer() >= self.needed
        for run in np.flatnonzero(here & np.isnan(self.rho[:, 0, 0])):
            opening = asymptotic.Opening.tuned(sums.of_run(run), self.tuned, self.alpha)
            self.openings[run] = opening
            self.rho[run] = opening.contrast
        return here

    def evidence(self, sums, theta):
        here = self.open(sums)
        with np.errstate(invalid="ignore", divide="ignore"):
            spread = squares_of(sums, -1) + 1.0 / self.rho**2
            total = sums.low[-1][:, :, None] - sums.high[-1][:, None, :]
            z = np.maximum(total - sums.t * theta, 0.0) / np.sqrt(spread)
            result = 0.5 * z * z - np.log(np.sqrt(spread) * self.rho / (2.0 * self.alpha))
        return np.where(here[:, None, None] & np.isfinite(result), result, -np.inf)

    def lower(self, sums, runs):
        return np.stack([self._lower(sums, run) for run in runs])

    def _lower(self, sums, run):
        opening = self.openings.get(run)
        if opening is None:
            size = sums.low.shape[2]
            return np.full((size, size), -1.0)
        return asymptotic.contrast_bounds(sums.of_run(run), opening, self.alpha)


class Declared:
    """What ships where 'asymptotic' or 'per-model' is declared: it, or the bounded sequence where
    its condition does not hold, by `choose`. share: another split of the level."""

    def __init__(
        self,
        declared,
        alpha,
        setup,
        needed=RARER,
        context_free=True,
        tuned=None,
        share=None,
    ):
        self.declared, self.needed, self.context_free = declared, needed, context_free
        self.models_only = declared is Sequence.PER_MODEL
        preferred, fallback = split_level(alpha)
        if share is not None:
            preferred, fallback = alpha * share, alpha * (1.0 - share)
        self.fallback = Bounded(fallback, setup)
        if declared is Sequence.ASYMPTOTIC:
            self.preferred = Asymptotic(preferred, setup, needed, tuned)
        else:
            self.preferred = PerModel(preferred)

    def chosen(self, sums):
        """(R,) whether the declared sequence is the certified one."""
        rarer = sums.rarer()
        enough, result = rarer >= self.needed, np.zeros(len(rarer), dtype=bool)
        for group in (enough, ~enough):
            if group.any():
                chosen = choose(
                    self.declared,
                    context_free=self.context_free,
                    drift_alarm=False,
                    rarer=rarer[group][:1],
                    needed=self.needed,
                )
                result[group] = chosen.sequence is self.declared
        return result

    def evidence(self, sums, theta):
        one = self.preferred.evidence(sums, theta)
        size = one.shape[-1]
        full = np.zeros((sums.low.shape[2],) * 2)
        full[: len(theta), : len(theta)] = theta
        other = self.fallback.evidence(sums, full)[:, :size, :size]
        return np.where(self.chosen(sums)[:, None, None], one, other)

    def lower(self, sums, runs):
        one = self.preferred.lower(sums, runs)
        size = one.shape[-1]
        other = self.fallback.lower(sums, runs)[:, :size, :size]
        return np.where(self.chosen(sums)[runs][:, None, None], one, other)


def squares_of(sums, cap):
    """(R, A, A) sums of (u_a - v_b)^2, as `ScoreMoments.contrast_squares` has them."""
    return np.maximum(
        sums.low_squares[cap][:, :, None]
        + sums.high_squares[cap][:, None, :]
        - 2.0 * sums.cross[cap],
        0.0,
    )
