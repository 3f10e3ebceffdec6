"""Error levels: how delta is divided over what is said, so that all of it holds at once.

METHOD section 4. Each level is one-sided and for one statement; the statements a user may read
together cover together with probability at least 1 - delta, by the union bound.

What was thought before an era's first certified row was decided (`EraPrior`) may move evidence to
where it is likely to be needed: levels of decisions here, weights of bets in `mixture`. It is
frozen before that row, so a wrong one costs requests and never validity.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import numpy as np
from scipy import special

from equipoise.store.batches import Flags, Floats

Level = TypeVar("Level", float, Floats, Floats | float)

FALLBACK_SHARE = 0.1
"""Share of a level that the bounded sequence keeps where another one is the certified one.

A fifth instead of a tenth delays decisions by 2 to 3% where the other sequence opens early and
hastens them by 3% or a little more where it does not (docs/coverage.md): no clear gain.
"""
EVEN_SHARE = 0.3
"""Share of the level of a decision that is spread evenly over the models, whatever was thought.

A best model that was thought hopeless pays log(1 / EVEN_SHARE) nats for it, of 4 to 9 that a
decision takes.
"""
EFFECT = 0.1
"""Difference, in standard deviations of the reward, that an experiment is planned to find where
nothing else was declared."""
AT_ANY_TIME = 2.0
"""How many times the requests of one Gaussian test a decision takes: it waits for the last of K - 1
comparisons and may be read at any time."""


@dataclass(frozen=True, slots=True)
class EraPrior:
    """What was thought of an era before its first certified row was decided; frozen with it.

    requests: all of them, randomized or not, that a decision is expected to take. variance:
    expected of the reward on the [0, 1] scale. best: (K,) chance that each model is the best, sums
    to 1.
    """

    requests: float
    variance: float
    best: Floats

    @classmethod
    def planned(
        cls,
        models: int,
        delta: float,
        rate: float,
        *,
        declared: float | None = None,
        budget: float | None = None,
        epsilon: float = 0.0,
        variance: float = 0.25,
        rated: float = 1.0,
        best: Floats | None = None,
    ) -> Self:
        """For K models that are compared at level delta, with a share `rate` randomized.

        declared: randomized requests it is planned for; without, those that find EFFECT standard
        deviations beyond epsilon ([0, 1] scale), or the budget of randomized requests, if less.
        rated: share of the requests that answers are about; the variance is then that of
        S (R - q), S = 1 if rated.
        best: None where nothing is known of them.
        """
        count = max(models, 2)
        if declared is None:
            effect = rated * (EFFECT * math.sqrt(variance) + epsilon)
            noise = 2.0 * count * rated * variance
            evidence = math.log(1.0 / decision_level(delta, count))
            needed = AT_ANY_TIME * 2.0 * evidence * noise / effect**2
            declared = needed if budget is None else min(needed, budget)
        even = np.full(models, 1.0 / max(models, 1))
        return cls(max(declared, 1.0) / rate, rated * variance, even if best is None else best)

    def encode(self) -> dict[str, Any]:
        return {"requests": self.requests, "variance": self.variance, "best": self.best.tolist()}

    @classmethod
    def decode(cls, fields: Mapping[str, Any]) -> Self:
        best = np.array(fields["best"], dtype=np.float64)
        return cls(float(fields["requests"]), float(fields["variance"]), best)

    def array(self) -> Floats:
        """(2 + K,) for a checkpoint."""
        return np.concatenate([[self.requests, self.variance], self.best])

    @classmethod
    def of_array(cls, array: Floats) -> Self | None:
        """From `array`; None where it is NaN, as before a first row."""
        if not np.isfinite(array).all():
            return None
        return cls(float(array[0]), float(array[1]), array[2:].copy())


def chances_of_best(values: Floats, covariance: Floats, active: Flags) -> Floats:
    """(K,) chance that each model has the largest value, for Gaussians that are independent but for
    what all of them share, which says nothing of which is best.

    values: (K,), larger being better, NaN where unknown; covariance: (K, K), of which the diagonal
    is used, less the smallest covariance of two models that are known; active: (K,) models that
    are compared, 0 for others. Even where nothing is known.
    """
    count = int(np.count_nonzero(active))
    even = np.where(active, 1.0 / max(count, 1), 0.0)
    variance = np.diagonal(covariance)
    known = active & np.isfinite(values) & np.isfinite(variance)
    if not known.any():
        return even
    several = np.count_nonzero(known) > 1
    shared = float(covariance[np.ix_(known, known)].min()) if several else 0.0
    deviation = np.sqrt(np.maximum(variance - np.maximum(shared, 0.0), 0.0))
    mean = np.where(known, values, values[known].mean())
    widest = max(float(deviation[known].max()), float(np.ptp(values[known])), 1e-12)
    sd = np.maximum(np.where(known, deviation, widest), 1e-9 * widest)
    # P(best) = integral of phi(z) prod over j of Phi((v_m + sd_m z - v_j) / sd_j), by a fine sum.
    z = np.linspace(-6.0, 6.0, 241)
    at = mean[:, None] + sd[:, None] * z
    below = special.log_ndtr((at[:, :, None] - mean) / sd)
    own = np.eye(len(values), dtype=bool)[:, None, :]
    below = np.where(own | ~active, 0.0, below).sum(axis=-1)
    chance = (np.exp(below - 0.5 * z * z)).sum(axis=1)
    chance = np.where(active, chance, 0.0)
    total = float(chance.sum())
    return chance / total if total > 0 else even


def decision_level(delta: float, models: int) -> float:
    """One-sided level of each comparison in "this model beats all others", spread evenly.

    Wrong only if some other model is certified above the best one: K - 1 comparisons, each with
    the best model on one side, so the leader may be chosen by the data.
    """
    return delta / max(models - 1, 1)


def decision_levels(delta: float, active: Flags, prior: EraPrior | None) -> Floats:
    """(K, K) one-sided level of "m beats b" in "m beats all others", by what was thought.

    A false "m" needs m above the best model b, so every column b may spend delta over the models m
    that are compared, in any way that was fixed before (Genovese, Roeder & Wasserman 2006):
    EVEN_SHARE of it evenly, the rest by the chance that m is the best of those other than b. delta
    where m or b is not compared.
    """
    count = len(active)
    even = decision_level(delta, int(np.count_nonzero(active)))
    both = active[:, None] & active[None, :] & ~np.eye(count, dtype=bool)
    if prior is None:
        return np.where(both, even, delta)
    chance = np.where(both, prior.best[:, None], 0.0)
    total = chance.sum(axis=0)
    known = total > 0
    share = np.where(known, chance / np.where(known, total, 1.0), even / delta)
    return np.where(both, EVEN_SHARE * even + (1.0 - EVEN_SHARE) * delta * share, delta)


def pair_level(delta: float, candidates: int) -> float:
    """One-sided level of the lower end of each ordered pair: every contrast that may be shown.

    For shown contrasts with a leader chosen by the data, and for `equivalent`.
    """
    return delta / max(candidates * (candidates - 1), 1)


def value_level(delta: float, candidates: int) -> float:
    """One-sided level of each end of each candidate's value."""
    return delta / (2 * max(candidates, 1))


def segment_levels(delta: float, segments: int) -> tuple[float, float]:
    """(overall, each declared segment): half of delta overall, half over the segments.

    All of delta overall where no segment is declared.
    """
    return (delta, 0.0) if segments == 0 else (delta / 2, delta / (2 * segments))


def era_level(delta: float, era: int) -> float:
    """delta of era 1, 2, … under a lifetime promise: 6 delta / (pi^2 era^2), which sum to delta.

    Raises ValueError for an era below 1.
    """
    if era < 1:
        raise ValueError(f"era is {era}, and eras are counted from 1")
    return 6.0 * delta / (math.pi**2 * era**2)


def split_level(alpha: Level) -> tuple[Level, Level]:
    """(preferred, fallback) levels of two sequences of which either may be the certified one."""
    return alpha * (1.0 - FALLBACK_SHARE), alpha * FALLBACK_SHARE
